//! Who has a volume mounted: a lock on a file in it that ends with the process that holds it, and says who that is.

use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

pub(super) const NAME: &str = "lock";

/// Who holds a volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// The process that serves the mount.
    pub pid: u32,
    /// Where it is mounted.
    pub mountpoint: String,
    /// The host's name.
    pub host: String,
    /// The mount answers, or did.
    #[serde(default)]
    pub answers: bool,
}

impl Holder {
    /// This process, for what is mounted there.
    pub fn here(mountpoint: impl Into<String>) -> Self {
        Self {
            pid: std::process::id(),
            mountpoint: mountpoint.into(),
            host: rustix::system::uname().nodename().to_string_lossy().into_owned(),
            answers: false,
        }
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "at {} by process {} on {}", self.mountpoint, self.pid, self.host)
    }
}

/// A volume that is held; given up when dropped, or when the process ends in whatever way.
#[derive(Debug)]
pub struct Holding {
    file: File,
}

/// Opens the lock file. What somebody planted in its place leads nowhere, and is not waited for.
fn open(options: &mut OpenOptions, volume: &Path) -> io::Result<File> {
    options.read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(volume.join(NAME))
}

/// Takes the lock, or says who has it: nobody is named who is just writing down who it is.
fn lock(file: &mut File, operation: FlockOperation) -> io::Result<Result<(), Option<Holder>>> {
    match rustix::fs::flock(&*file, operation) {
        Ok(()) => Ok(Ok(())),
        Err(rustix::io::Errno::WOULDBLOCK) => {
            let mut text = String::new();
            let _ = file.take(4096).read_to_string(&mut text);
            Ok(Err(serde_json::from_str(&text).ok()))
        }
        Err(error) => Err(error.into()),
    }
}

fn is_read_only(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied)
}

impl Holding {
    /// Takes a volume, shared with others if all only read. Those leave no trace where nothing can be written.
    ///
    /// # Errors
    /// `Ok(Err(holder))` names who has it, as far as that is known; else the system's error.
    pub fn take(volume: &Path, holder: &Holder, shared: bool) -> io::Result<Result<Self, Option<Holder>>> {
        let mut file = match open(File::options().write(true).create(true).truncate(false).mode(0o600), volume) {
            Err(error) if shared && is_read_only(&error) => {
                // A volume that was never mounted has no such file, and nobody can make it.
                let unheld = || File::open(volume).map(|file| Self { file });
                return Ok(match Self::look(volume)? {
                    Ok(held) => Ok(held.map_or_else(unheld, Ok)?),
                    Err(other) => Err(other),
                });
            }
            other => other?,
        };
        let operation =
            if shared { FlockOperation::NonBlockingLockShared } else { FlockOperation::NonBlockingLockExclusive };
        if let Err(other) = lock(&mut file, operation)? {
            return Ok(Err(other));
        }
        let mut held = Self { file };
        held.write(holder)?;
        Ok(Ok(held))
    }

    /// Notes that the mount answers. A volume is held a little longer than its mount can be seen; whoever knows that it
    /// was there can tell that from a mount in the making.
    pub fn answers(&mut self, holder: &Holder) {
        // Of a volume that cannot be written to there is nothing to wait for.
        let _ = self.write(&Holder { answers: true, ..holder.clone() });
    }

    fn write(&mut self, holder: &Holder) -> io::Result<()> {
        let text = serde_json::to_string(holder)?;
        self.file.set_len(0)?;
        self.file.rewind()?;
        self.file.write_all(text.as_bytes())
    }

    /// Keeps a volume from being mounted other than read-only, without writing anything. `None` if it was never mounted,
    /// so that there is nothing to hold.
    ///
    /// # Errors
    /// `Ok(Err(holder))` names who has it, as far as that is known; else the system's error.
    pub fn look(volume: &Path) -> io::Result<Result<Option<Self>, Option<Holder>>> {
        let mut file = match open(&mut File::options(), volume) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Ok(None)),
            other => other?,
        };
        Ok(lock(&mut file, FlockOperation::NonBlockingLockShared)?.map(|()| Some(Self { file })))
    }

    /// Lets others that only read in, too.
    ///
    /// # Errors
    /// The system's.
    pub fn share(&self) -> io::Result<()> {
        Ok(rustix::fs::flock(&self.file, FlockOperation::NonBlockingLockShared)?)
    }

    /// Who has a volume mounted now, `None` if nobody.
    ///
    /// # Errors
    /// The system's.
    pub fn current(volume: &Path) -> io::Result<Option<Holder>> {
        Ok(Self::look(volume)?.err().flatten())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_holder_is_refused_and_told_who_the_first_is() {
        let dir = tempfile::tempdir().unwrap();
        let me = Holder { pid: 7, mountpoint: "/mnt".into(), host: "here".into(), answers: false };
        assert_eq!(Holding::current(dir.path()).unwrap(), None);
        let held = Holding::take(dir.path(), &me, false).unwrap().unwrap();
        assert_eq!(Holding::take(dir.path(), &me, false).unwrap().unwrap_err(), Some(me.clone()));
        assert_eq!(Holding::take(dir.path(), &me, true).unwrap().unwrap_err(), Some(me.clone()));
        assert_eq!(Holding::current(dir.path()).unwrap(), Some(me.clone()));
        assert_eq!(Holding::look(dir.path()).unwrap().unwrap_err(), Some(me.clone()));
        drop(held);
        let looking = Holding::look(dir.path()).unwrap().unwrap();
        assert!(Holding::take(dir.path(), &me, false).unwrap().is_err(), "while somebody looks");
        drop(looking);
        let first = Holding::take(dir.path(), &me, true).unwrap().unwrap();
        let second = Holding::take(dir.path(), &me, true).unwrap().unwrap();
        assert!(Holding::take(dir.path(), &me, false).unwrap().is_err());
        drop((first, second));
    }

    #[test]
    fn a_planted_link_is_neither_followed_nor_written_to() {
        let dir = tempfile::tempdir().unwrap();
        let (outside, volume) = (dir.path().join("outside"), dir.path().join("volume"));
        std::fs::write(&outside, "somebody's").unwrap();
        std::fs::create_dir(&volume).unwrap();
        std::os::unix::fs::symlink(&outside, volume.join(NAME)).unwrap();
        let me = Holder::here("/mnt");
        for error in [
            Holding::take(&volume, &me, false).unwrap_err(),
            Holding::look(&volume).unwrap_err(),
            Holding::current(&volume).unwrap_err(),
        ] {
            assert_eq!(error.raw_os_error(), Some(libc::ELOOP));
        }
        assert_eq!(std::fs::read(&outside).unwrap(), b"somebody's");
    }
}
