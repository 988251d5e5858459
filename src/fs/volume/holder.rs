//! Who has a volume mounted: a lock on a file in it that ends with the process that holds it, and says who that is.

use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

const NAME: &str = "lock";

/// Who holds a volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// The process that serves the mount.
    pub pid: u32,
    /// Where it is mounted.
    pub mountpoint: String,
    /// The host's name.
    pub host: String,
}

/// A volume that is held; given up when dropped, or when the process ends in whatever way.
#[derive(Debug)]
pub struct Holding {
    file: File,
}

impl Holding {
    /// Takes a volume, shared with others if all only read.
    ///
    /// # Errors
    /// `Ok(Err(holder))` names who has it, as far as that is known; else the system's error.
    pub fn take(volume: &Path, holder: &Holder, shared: bool) -> io::Result<Result<Self, Option<Holder>>> {
        let mut file =
            File::options().read(true).write(true).create(true).truncate(false).mode(0o600).open(volume.join(NAME))?;
        let operation =
            if shared { FlockOperation::NonBlockingLockShared } else { FlockOperation::NonBlockingLockExclusive };
        match rustix::fs::flock(&file, operation) {
            Ok(()) => (),
            Err(rustix::io::Errno::WOULDBLOCK) => {
                let mut text = String::new();
                // It may be being written at this moment: then nobody is named.
                let _ = Read::by_ref(&mut file).take(4096).read_to_string(&mut text);
                return Ok(Err(serde_json::from_str(&text).ok()));
            }
            Err(error) => return Err(error.into()),
        }
        let text = serde_json::to_string(holder)?;
        file.set_len(0)?;
        file.rewind()?;
        file.write_all(text.as_bytes())?;
        Ok(Ok(Self { file }))
    }

    /// Keeps a volume from being mounted other than read-only, without writing anything. `None` if it was never mounted,
    /// so that there is nothing to hold.
    ///
    /// # Errors
    /// `Ok(Err(holder))` names who has it, as far as that is known; else the system's error.
    pub fn look(volume: &Path) -> io::Result<Result<Option<Self>, Option<Holder>>> {
        let mut file = match File::open(volume.join(NAME)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Ok(None)),
            other => other?,
        };
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared) {
            Ok(()) => Ok(Ok(Some(Self { file }))),
            Err(rustix::io::Errno::WOULDBLOCK) => {
                let mut text = String::new();
                let _ = Read::by_ref(&mut file).take(4096).read_to_string(&mut text);
                Ok(Err(serde_json::from_str(&text).ok()))
            }
            Err(error) => Err(error.into()),
        }
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
        let mut file = match File::open(volume.join(NAME)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other?,
        };
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared) {
            Ok(()) => Ok(None),
            Err(rustix::io::Errno::WOULDBLOCK) => {
                let mut text = String::new();
                Read::by_ref(&mut file).take(4096).read_to_string(&mut text)?;
                Ok(serde_json::from_str(&text).ok())
            }
            Err(error) => Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_holder_is_refused_and_told_who_the_first_is() {
        let dir = tempfile::tempdir().unwrap();
        let me = Holder { pid: 7, mountpoint: "/mnt".into(), host: "here".into() };
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
}
