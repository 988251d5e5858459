//! How a command fails: an exit code that scripts can rely on, a message and a hint for people.

use crate::format::volume::KekRole;
use crate::fs::volume::{Volume, VolumeError};
use crate::kms::{KEY_MALFORMED, KEY_REPLACED, KmsError, KmsErrorKind, OPERATION_FORBIDDEN};
use std::io;
use std::path::Path;
use std::process::ExitCode;

/// The exit codes. Stable: scripts depend on the numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// All went well.
    Ok = 0,
    /// A failure that has no code of its own.
    Failure = 1,
    /// The command line is wrong.
    Usage = 2,
    /// The volume is missing, not a volume, or damaged.
    Volume = 3,
    /// The mountpoint is missing, not a directory, not empty, or nothing is mounted there.
    Mountpoint = 4,
    /// FUSE is not available: no `/dev/fuse`, or no `fusermount3`.
    FuseMissing = 5,
    /// The KMS answered and refused: the key is disabled or deleted, or access was removed.
    KmsRefused = 6,
    /// The KMS did not answer in time.
    KmsUnreachable = 7,
    /// No credentials for the KMS, or they were not accepted.
    Credentials = 8,
    /// The volume is already mounted, or the mountpoint is taken; the message names the holder.
    AlreadyMounted = 9,
    /// Something still uses the mount, or another scrub runs on it.
    Busy = 10,
    /// The KMS answers, but this is not the key (or not the volume) that it takes.
    WrongKey = 11,
    /// The KMS or the key is set up in a way that cannot work.
    KmsMisconfigured = 12,
    /// The disk is full, or the backing directory cannot be read or written.
    Store = 13,
    /// A check found damage.
    Damage = 14,
    /// The volume was not unmounted, and has to be recovered first.
    NeedsRecovery = 15,
    /// The volume is older than its rollback guard has seen it, or the guard cannot tell.
    RolledBack = 16,
    /// A tenant's configuration is missing or wrong.
    Config = 17,
    /// The tenant is suspended by the operator.
    Suspended = 18,
    /// Interrupted by the user.
    Interrupted = 130,
}

impl Exit {
    /// The exit code with this number, [`Exit::Failure`] for an unknown one.
    pub fn from_code(code: u8) -> Self {
        let all = [
            Self::Ok,
            Self::Failure,
            Self::Usage,
            Self::Volume,
            Self::Mountpoint,
            Self::FuseMissing,
            Self::KmsRefused,
            Self::KmsUnreachable,
            Self::Credentials,
            Self::AlreadyMounted,
            Self::Busy,
            Self::WrongKey,
            Self::KmsMisconfigured,
            Self::Store,
            Self::Damage,
            Self::NeedsRecovery,
            Self::RolledBack,
            Self::Config,
            Self::Suspended,
            Self::Interrupted,
        ];
        all.into_iter().find(|exit| *exit as u8 == code).unwrap_or(Self::Failure)
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        ExitCode::from(exit as u8)
    }
}

/// Why a command failed.
#[derive(Debug)]
pub struct Failure {
    /// The process's exit code.
    pub exit: Exit,
    /// One line: what is wrong, lower case.
    pub message: String,
    /// One line: what to do about it.
    pub hint: Option<String>,
}

impl Failure {
    /// A failure without a hint.
    pub fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self { exit, message: message.into(), hint: None }
    }

    /// The same with a hint.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Writes `error: …` and `hint: …` to standard error.
    pub fn print(&self) {
        eprintln!("error: {}", self.message);
        if let Some(hint) = &self.hint {
            eprintln!("hint: {hint}");
        }
    }
}

impl From<KmsError> for Failure {
    fn from(error: KmsError) -> Self {
        let exit = match error.kind {
            // To a lease they are all refusals; to whoever mounts, some are the wrong file or the wrong setting.
            KmsErrorKind::Refused => match error.code.as_deref() {
                Some(KEY_REPLACED) => Exit::WrongKey,
                Some(KEY_MALFORMED | OPERATION_FORBIDDEN) => Exit::KmsMisconfigured,
                _ => Exit::KmsRefused,
            },
            KmsErrorKind::Unreachable => Exit::KmsUnreachable,
            KmsErrorKind::Damaged => Exit::WrongKey,
            KmsErrorKind::Misconfigured => Exit::KmsMisconfigured,
            KmsErrorKind::Credentials => Exit::Credentials,
        };
        let hint = error.hint.clone().or_else(|| {
            let hint = match exit {
                Exit::WrongKey => "kmsfs info VOLUME names the key that it needs; --kek says where that key is now",
                Exit::KmsUnreachable => "see whether it can be reached: kmsfs key test KEK",
                Exit::KmsRefused => "ask whoever owns the key; try it: kmsfs key test KEK",
                Exit::Credentials => {
                    "give the variables of the identity that may use the key, or log in: az login, bao login"
                }
                _ => return None,
            };
            Some(hint.to_owned())
        });
        Self { exit, message: error.to_string(), hint }
    }
}

impl Failure {
    /// What is wrong with the volume in this directory.
    pub fn of_volume(path: &Path, error: VolumeError) -> Self {
        let message = format!("{}: {error}", path.display());
        match error {
            VolumeError::Missing => Self::new(Exit::Volume, message)
                .hint(format!("make a volume first: kmsfs init {} --kek KEK", path.display())),
            VolumeError::NotAVolume => {
                Self::new(Exit::Volume, message).hint("give the directory that `kmsfs init` made")
            }
            VolumeError::Damaged(_) => Self::new(Exit::Volume, message)
                .hint("restore volume.kmsfs from a backup; nothing else can open the volume's files"),
            VolumeError::NotEmpty { volume: true } => {
                Self::new(Exit::Volume, message).hint(format!("kmsfs info {}", path.display()))
            }
            VolumeError::NotEmpty { volume: false } => {
                Self::new(Exit::Volume, message).hint("choose a directory that is empty or does not exist yet")
            }
            VolumeError::Io(error) => Self::of_store(path, &error),
            VolumeError::Kms(error) => error.into(),
        }
    }

    /// Why a volume's key does not open it: which key it is, and what can still be done.
    pub fn of_key(volume: &Volume, error: KmsError) -> Self {
        let refused = matches!(error.kind, KmsErrorKind::Refused);
        let failure = Self::from(error);
        let Some(kek) = volume.opening_kek().filter(|_| refused) else { return failure };
        let id = kek.volume_key.kek.to_string();
        let message = match failure.message.contains(&id) {
            true => failure.message,
            false => format!("{}: the volume needs {id}", failure.message),
        };
        let spare = volume.record().newest_of(KekRole::Recovery).is_some() && kek.role == KekRole::Primary;
        let hint = match (failure.hint, spare) {
            (Some(hint), false) => Some(hint),
            (hint, true) => {
                let way = "if it is lost for good, the recovery key opens the volume: mount -o ro --with-recovery-kek";
                Some(hint.map_or_else(|| way.to_owned(), |hint| format!("{hint}; {way}")))
            }
            (None, false) => None,
        };
        Self { message, hint, ..failure }
    }

    /// What the backing directory could not do.
    pub fn of_store(path: &Path, error: &io::Error) -> Self {
        let failure = Self::new(Exit::Store, format!("{}: {error}", path.display()));
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                failure.hint("the disk below the volume is full; nothing was changed")
            }
            io::ErrorKind::PermissionDenied => failure.hint("run as the user to whom the volume belongs"),
            io::ErrorKind::ReadOnlyFilesystem => failure.hint("mount with -o ro"),
            _ if error.raw_os_error() == Some(libc::ELOOP) => failure.hint(
                "a symbolic link stands where the volume has a file of its own: see who put it there, and remove it",
            ),
            _ => failure,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_exit_code_is_in_the_manual_and_the_manual_has_no_others() {
        let known: Vec<u8> = (0..=u8::MAX).filter(|code| Exit::from_code(*code) as u8 == *code).collect();
        assert!(known.len() > 15, "{known:?}");
        for (name, page) in
            [("operations.md", include_str!("manual/operations.md")), ("README.md", include_str!("../README.md"))]
        {
            let table = page.lines().skip_while(|line| !line.starts_with("| 0 | all went well"));
            let rows = table.take_while(|line| line.starts_with('|'));
            let told: Vec<u8> = rows.filter_map(|row| row.split('|').nth(1)?.trim().parse().ok()).collect();
            assert_eq!(told, known, "{name}");
        }
    }
}
