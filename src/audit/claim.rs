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
        let path = dir.join(format!("{series}.lock"));
        let lock = File::from(rustix::fs::open(path, flags, Mode::RUSR | Mode::WUSR)?);
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
