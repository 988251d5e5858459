//! Where a check that was interrupted goes on: a file outside the volume's tree.

use super::Finding;
use crate::store::dir::DirStore;
use crate::store::{Store, replace_file};
use serde::{Deserialize, Serialize};
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

const VERSION: u32 = 1;

/// The state of a check that has not come to its end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Saved {
    version: u32,
    /// The volume's id.
    pub volume: String,
    /// The sequence number of its journal: a volume that was mounted for writing since is checked from the beginning.
    pub journal: u64,
    /// Everything up to this place has been looked at.
    pub passed: Option<Vec<u8>>,
    /// Files that were looked at.
    pub files: u64,
    /// Bytes that were authenticated.
    pub bytes: u64,
    /// How far it was in the plaintext of all files.
    pub position: u64,
    /// What was found so far.
    pub findings: Vec<Finding>,
}

impl Saved {
    /// The state at the beginning.
    pub fn new(volume: String, journal: u64) -> Self {
        let findings = Vec::new();
        Self { version: VERSION, volume, journal, passed: None, files: 0, bytes: 0, position: 0, findings }
    }

    /// Reads a state; `None` if there is none yet, or if it is of an earlier state of the volume.
    ///
    /// # Errors
    /// In words: it cannot be read, or is the state of something else, which is not to be overwritten.
    pub fn read(path: &Path, volume: &str, journal: u64) -> Result<Option<Self>, String> {
        let bytes = match std::fs::read(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other.map_err(|error| error.to_string())?,
        };
        let saved: Self =
            serde_json::from_slice(&bytes).map_err(|_| "it is not the state of a check by kmsfs".to_owned())?;
        match saved {
            Self { version, .. } if version != VERSION => Err(format!("it has version {version}, which is not known")),
            Self { volume: other, .. } if other != volume => Err(format!("it is of the volume {other}")),
            Self { journal: other, .. } if other != journal => Ok(None),
            saved => Ok(Some(saved)),
        }
    }

    /// Writes it, so that a crash leaves the old or the new one.
    ///
    /// # Errors
    /// The system's.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let name = path.file_name().map_or(&b"-"[..], OsStr::as_bytes);
        replace_file(&*DirStore::open(parent)?.root(), name, &serde_json::to_vec(self)?, 0o600)
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Findings, Kind};
    use super::*;

    #[test]
    fn a_state_comes_back_unless_the_volume_changed_or_is_another() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        assert_eq!(Saved::read(&path, "v", 3), Ok(None));
        let mut saved = Saved::new("v".into(), 3);
        saved.passed = Some(b"tree/a\xFF".to_vec());
        let mut findings = Findings::default();
        findings.add(Kind::Chunk, b"tree/a\xFF", None, "x");
        saved.findings = findings.iter().cloned().collect();
        saved.write(&path).unwrap();
        assert_eq!(Saved::read(&path, "v", 3), Ok(Some(saved)));
        assert_eq!(Saved::read(&path, "v", 4), Ok(None));
        Saved::read(&path, "w", 3).unwrap_err();
        std::fs::write(&path, "{}").unwrap();
        Saved::read(&path, "v", 3).unwrap_err();
    }
}
