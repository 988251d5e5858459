//! The operator's lock that outlives a mount: a file `suspended` in the tenant's state directory.
//! Invariant: whoever sees the file mounts nothing and unlocks nothing.

use super::TenantName;
use crate::failure::{Exit, Failure};
use serde::{Deserialize, Serialize};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// Why a tenant is suspended, and since when.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Suspension {
    /// In the operator's words.
    pub reason: String,
    /// When, in UTC (RFC 3339).
    pub since: String,
}

/// Where a tenant's state is kept: in a directory of its own in `KMSFS_STATE_DIR`, or in `/var/lib/kmsfs`.
pub fn state_directory(tenant: &TenantName) -> PathBuf {
    let variable = std::env::var_os("KMSFS_STATE_DIR").filter(|path| !path.is_empty());
    variable.map_or_else(|| PathBuf::from("/var/lib/kmsfs"), PathBuf::from).join(tenant.as_str())
}

impl Suspension {
    /// One that begins now.
    pub fn now(reason: &str) -> Self {
        let since = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
        Self { reason: reason.to_owned(), since }
    }

    fn path(directory: &Path) -> PathBuf {
        directory.join("suspended")
    }

    /// The suspension in a tenant's state directory. A file that cannot be understood suspends as well.
    ///
    /// # Errors
    /// The system's: whether the tenant is suspended cannot be told.
    pub fn read(directory: &Path) -> io::Result<Option<Self>> {
        match std::fs::read_to_string(Self::path(directory)) {
            Ok(text) => Ok(Some(serde_json::from_str(&text).unwrap_or_else(|_| Self {
                reason: "the file that says why cannot be read".to_owned(),
                since: "1970-01-01T00:00:00Z".to_owned(),
            }))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// That a tenant is not suspended, so that it may be mounted and unlocked.
    ///
    /// # Errors
    /// [`Exit::Suspended`]; [`Exit::Failure`] if that cannot be told.
    pub fn forbids(tenant: &TenantName) -> Result<(), Failure> {
        let directory = state_directory(tenant);
        match Self::read(&directory) {
            Ok(None) => Ok(()),
            Ok(Some(Self { reason, since })) => {
                let message = format!("{tenant} is suspended since {since}: {reason}");
                Err(Failure::new(Exit::Suspended, message).hint(format!("kmsfs tenant resume {tenant}")))
            }
            Err(error) => {
                let message = format!("whether {tenant} is suspended cannot be told: {}: {error}", directory.display());
                Err(Failure::new(Exit::Failure, message).hint("run as the user to whom the directory belongs"))
            }
        }
    }

    /// Makes it durable.
    ///
    /// 1. The new file is written and synced under another name: a crash leaves the tenant as it was.
    /// 2. It is renamed, and the directory synced: from here on the tenant is suspended.
    ///
    /// # Errors
    /// The system's.
    pub fn write(&self, directory: &Path) -> io::Result<()> {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
        let (path, new) = (Self::path(directory), directory.join("suspended.new"));
        let mut file = std::fs::File::options().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        file.write_all(serde_json::to_string(self)?.as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&new, &path)?;
        std::fs::File::open(directory)?.sync_all()
    }

    /// Ends the suspension of a tenant, if it is suspended.
    ///
    /// # Errors
    /// The system's.
    pub fn remove(directory: &Path) -> io::Result<()> {
        match std::fs::remove_file(Self::path(directory)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
            Ok(()) => std::fs::File::open(directory)?.sync_all(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_suspension_holds_until_it_is_removed_and_also_if_its_file_is_broken() {
        let parent = tempfile::tempdir().unwrap();
        let directory = parent.path().join("acme");
        assert_eq!(Suspension::read(&directory).unwrap(), None);
        Suspension::remove(&directory).unwrap();
        let suspension = Suspension::now("does not pay");
        suspension.write(&directory).unwrap();
        assert_eq!(Suspension::read(&directory).unwrap(), Some(suspension));
        std::fs::write(directory.join("suspended"), "").unwrap();
        assert!(Suspension::read(&directory).unwrap().is_some());
        Suspension::remove(&directory).unwrap();
        assert_eq!(Suspension::read(&directory).unwrap(), None);
    }
}
