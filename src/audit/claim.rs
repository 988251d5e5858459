//! Who may write to which series: one process to one series, by a lock that ends with the process.
//! `main` belongs to whoever has the volume alone; those who share it take the first free one of `shared-1`, `shared-2` …

use rustix::fs::{FlockOperation, Mode, OFlags};
use std::fs::File;
use std::io;
use std::path::Path;

/// The series of whoever has the volume alone.
pub const MAIN: &str = "main";
/// So many can share a volume and have a log each.
const SHARED: u32 = 64;

/// A series that nobody else writes to while this lives.
#[derive(Debug)]
pub struct Claim {
    /// Which one.
    pub series: String,
    _lock: File,
}

impl Claim {
    /// Takes the main series, or one of those who share, in the directory of a volume's log.
    ///
    /// # Errors
    /// `WouldBlock` if others have what could be taken; the system's.
    pub fn take(dir: &Path, shared: bool) -> io::Result<Self> {
        if !shared {
            return Self::of(dir, MAIN);
        }
        for number in 1..=SHARED {
            match Self::of(dir, &format!("shared-{number}")) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => (),
                other => return other,
            }
        }
        Err(io::Error::new(io::ErrorKind::WouldBlock, "too many share the volume for each to have a log"))
    }

    fn of(dir: &Path, series: &str) -> io::Result<Self> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        // Nothing that is planted in the volume leads outside it.
        let dir = rustix::fs::open(dir, OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
        let lock = rustix::fs::openat(&dir, format!("{series}.lock"), flags, Mode::RUSR | Mode::WUSR)?;
        let lock = File::from(lock);
        match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Self { series: series.to_owned(), _lock: lock }),
            Err(rustix::io::Errno::WOULDBLOCK) => {
                Err(io::Error::new(io::ErrorKind::WouldBlock, "another process writes the audit log"))
            }
            Err(error) => Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_planted_link_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let (outside, inside) = (dir.path().join("outside"), dir.path().join("audit"));
        std::fs::create_dir(&outside).unwrap();
        std::os::unix::fs::symlink(&outside, &inside).unwrap();
        assert!(Claim::take(&inside, false).is_err());
        assert!(crate::audit::directory(dir.path()).is_err());
        std::fs::remove_file(&inside).unwrap();
        std::fs::create_dir(&inside).unwrap();
        std::os::unix::fs::symlink(outside.join("new"), inside.join("main.lock")).unwrap();
        assert!(Claim::take(&inside, false).is_err());
        assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 0);
    }

    #[test]
    fn each_writer_has_a_series_of_its_own_and_gives_it_back() {
        let dir = tempfile::tempdir().unwrap();
        let series = |shared| Claim::take(dir.path(), shared);
        let main = series(false).unwrap();
        assert_eq!(series(false).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        let (one, two) = (series(true).unwrap(), series(true).unwrap());
        assert_eq!([&*main.series, &*one.series, &*two.series], ["main", "shared-1", "shared-2"]);
        drop((main, one));
        assert_eq!(series(true).unwrap().series, "shared-1");
        assert_eq!(series(false).unwrap().series, "main");
    }
}
