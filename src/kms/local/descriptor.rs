//! Raw keys in file descriptors that were inherited. A file is read anew at every call, so that whoever overwrites or
//! truncates it revokes the key; what came through a pipe or a socket is gone from there, and can only be kept.

use super::file::{read_open, read_stream};
use super::text::malformed;
use crate::crypto::Secret32;
use crate::kms::{KmsError, KmsErrorKind};
use parking_lot::Mutex;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FileType, Mode, OFlags};
use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

/// The [`KmsError::code`] of a key that was kept in memory until the volume was locked.
const FORGOTTEN: &str = "KeyForgotten";

/// What a descriptor gave.
#[derive(Debug)]
pub(super) enum Descriptor {
    /// A regular file, also one in memory.
    File(File),
    /// The key that came through something that can be read once.
    Kept(Mutex<Option<Secret32>>),
}

impl Descriptor {
    /// Takes the descriptor of this number, and what is in it if it can be read only once.
    ///
    /// # Errors
    /// [`KmsErrorKind::Misconfigured`] if it was not inherited, or what comes out of it is no key.
    pub fn take(number: u32, place: &str, bound: Duration) -> Result<Self, KmsError> {
        let failed =
            |error: io::Error| KmsError::new(KmsErrorKind::Misconfigured, format!("{place} cannot be read: {error}"));
        if !is_inherited(number) {
            return Err(KmsError::new(
                KmsErrorKind::Misconfigured,
                format!("{place} was not inherited: it is not open"),
            )
            .hint(format!(
                "open it for this command, for example in a shell: kmsfs … --kek fd:{number} {number}<FILE"
            )));
        }
        let file = File::from(duplicate(number).map_err(failed)?);
        let kind = FileType::from_raw_mode(rustix::fs::fstat(&file).map_err(|error| failed(error.into()))?.st_mode);
        match kind {
            FileType::RegularFile => Ok(Self::File(file)),
            FileType::Fifo | FileType::Socket => {
                let mut stream = Bounded { file, until: Instant::now() + bound };
                Ok(Self::Kept(Mutex::new(Some(read_stream(place, &mut stream, &failed)?))))
            }
            _ => Err(malformed(place, "is neither a file nor a pipe nor a socket")),
        }
    }

    /// The key.
    pub fn read(&self, place: &str) -> Result<Secret32, KmsError> {
        match self {
            Self::File(file) => read_open(place, file, &|error| {
                KmsError::new(KmsErrorKind::Unreachable, format!("{place} cannot be read: {error}"))
            }),
            Self::Kept(key) => {
                key.lock().as_ref().and_then(|key| Secret32::from_slice(key.expose())).ok_or_else(|| {
                    let message = "the key could be read only once, and was forgotten when the volume was locked";
                    KmsError { code: Some(FORGOTTEN.to_owned()), ..KmsError::new(KmsErrorKind::Refused, message) }
                        .hint("unmount, and mount with the key again")
                })
            }
        }
    }

    /// Wipes what is kept.
    pub fn forget(&self) {
        if let Self::Kept(key) = self {
            key.lock().take();
        }
    }

    /// What whoever relies on it should know.
    pub fn warning(&self, place: &str) -> String {
        match self {
            Self::File(_) => format!(
                "{place} stays open: removing the file's name does not revoke the key, but truncating or overwriting it does"
            ),
            Self::Kept(_) => format!(
                "the key of {place} is kept in memory: nobody can take it away any more, and only 'kmsfs lock' and \
                 'kmsfs umount' revoke it; after either it has to be given again, with a new mount"
            ),
        }
    }
}

/// Whether a descriptor was there when this program began: our own ones are closed when a program is begun.
fn is_inherited(number: u32) -> bool {
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{number}")).unwrap_or_default();
    let flags = info.lines().find_map(|line| u32::from_str_radix(line.strip_prefix("flags:")?.trim(), 8).ok());
    flags.is_some_and(|flags| flags & OFlags::CLOEXEC.bits() == 0)
}

/// A descriptor of our own for what one of this number is open on.
fn duplicate(number: u32) -> io::Result<OwnedFd> {
    let number = i32::try_from(number).map_err(io::Error::other)?;
    let duplicated =
        pidfd_open(getpid(), PidfdFlags::empty()).and_then(|this| pidfd_getfd(this, number, PidfdGetfdFlags::empty()));
    match duplicated {
        Ok(descriptor) => Ok(descriptor),
        // Some containers do not permit it. This opens anew, which needs permission to read the file.
        Err(_) => {
            let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOCTTY | OFlags::NONBLOCK;
            Ok(rustix::fs::open(format!("/proc/self/fd/{number}"), flags, Mode::empty())?)
        }
    }
}

/// Reads, and does not wait for ever.
struct Bounded {
    file: File,
    until: Instant,
}

impl Read for Bounded {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.until.saturating_duration_since(Instant::now());
        let bound = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) };
        match poll(&mut [PollFd::new(&self.file, PollFlags::IN)], Some(&bound))? {
            0 => Err(io::Error::new(io::ErrorKind::TimedOut, "nothing came, and its other end is open")),
            _ => self.file.read(buffer),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kms::local::tests::KEY;
    use std::io::Write;
    use std::os::fd::AsRawFd;

    const LONG: Duration = Duration::from_secs(60);

    /// As a descriptor is that was inherited.
    fn inherited(file: impl Into<OwnedFd>) -> OwnedFd {
        let file = file.into();
        rustix::io::fcntl_setfd(&file, rustix::io::FdFlags::empty()).unwrap();
        file
    }

    fn take(file: &OwnedFd, bound: Duration) -> Result<Descriptor, KmsError> {
        Descriptor::take(file.as_raw_fd() as u32, "it", bound)
    }

    #[test]
    fn a_file_is_read_anew_and_from_its_beginning() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(KEY.as_bytes()).unwrap();
        let inherited = inherited(file.try_clone().unwrap());
        let descriptor = take(&inherited, LONG).unwrap();
        assert!(descriptor.read("it").is_ok() && descriptor.read("it").is_ok());
        file.set_len(0).unwrap();
        assert!(descriptor.read("it").unwrap_err().message.contains("is empty"));
        descriptor.forget();
        rustix::io::pwrite(&file, KEY.as_bytes(), 0).unwrap();
        assert!(descriptor.read("it").is_ok());
    }

    #[test]
    fn a_pipe_is_read_once_and_kept_until_it_is_forgotten() {
        let (reader, mut writer) = io::pipe().unwrap();
        writer.write_all(KEY.as_bytes()).unwrap();
        drop(writer);
        let descriptor = take(&inherited(reader), LONG).unwrap();
        assert!(descriptor.read("it").is_ok() && descriptor.read("it").is_ok());
        assert!(!format!("{descriptor:?}").contains("AAECAw"));
        descriptor.forget();
        assert_eq!(descriptor.read("it").unwrap_err().kind, KmsErrorKind::Refused);
    }

    #[test]
    fn a_pipe_that_nobody_closes_does_not_hang_us() {
        let (reader, mut writer) = io::pipe().unwrap();
        writer.write_all(b"half a key").unwrap();
        let error = take(&inherited(reader), Duration::from_millis(50)).unwrap_err();
        assert_eq!(error.kind, KmsErrorKind::Misconfigured);
    }

    #[test]
    fn a_descriptor_that_is_ours_or_closed_is_refused() {
        let ours = OwnedFd::from(tempfile::tempfile().unwrap());
        assert!(take(&ours, LONG).unwrap_err().message.contains("not inherited"));
        assert!(Descriptor::take(1_000_000, "it", LONG).unwrap_err().message.contains("not inherited"));
        let directory = inherited(File::open("/").unwrap());
        assert!(take(&directory, LONG).unwrap_err().message.contains("neither a file"));
    }
}
