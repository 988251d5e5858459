//! The state directory: its files, who may read them, and how they are replaced.
//!
//! Everything that must survive a restart is here, and is replaced by rename after an fsync, so a crash leaves the
//! old or the new file and never half of one. One process at a time holds the lock; it belongs to the open file and
//! not to a number in it, so a killed server leaves nothing behind that must be cleaned up.

use rustix::fs::{FlockOperation, Mode, OFlags, flock};
use serde::{Serialize, de::DeserializeOwned};
use std::fs::{DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// The identity of the vault: its address, tenant and secrets.
pub const IDENTITY: &str = "vault.json";
/// The environment for clients, as a POSIX shell file.
pub const ENVIRONMENT: &str = "env";
/// The certificate that clients trust.
pub const CA_CERTIFICATE: &str = "ca.pem";
/// Its private key.
pub const CA_KEY: &str = "ca.key";
/// One JSON file per key.
pub const KEYS: &str = "keys";
/// What the daemon writes to its standard output and error.
pub const LOG: &str = "log";
/// The socket that commands talk to.
pub const CONTROL: &str = "control.sock";
const LOCK: &str = "lock";

/// The state directory of one vault, by its absolute path.
#[derive(Clone, Debug)]
pub struct StateDir {
    path: PathBuf,
}

/// Held by the process that serves the vault, until it ends.
#[derive(Debug)]
pub struct StateLock {
    _file: File,
}

impl StateDir {
    /// Opens the directory, or makes it, readable by its owner only.
    ///
    /// # Errors
    /// Besides those of the file system: a directory that holds other things is refused, so that a mistyped path does
    /// not fill somebody's directory with keys and close it to others.
    pub fn create(path: &Path) -> io::Result<Self> {
        match DirBuilder::new().recursive(true).mode(0o700).create(path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        let state = Self { path: path.canonicalize()? };
        // Asked again last: a start at the same time may make a vault of it between the two questions.
        if !state.is_vault() && state.has_foreign_files()? && !state.is_vault() {
            return Err(io::Error::new(
                io::ErrorKind::DirectoryNotEmpty,
                "the directory is not empty and is not the state of a vault",
            ));
        }
        std::fs::set_permissions(&state.path, Permissions::from_mode(0o700))?;
        match DirBuilder::new().mode(0o700).create(state.file(KEYS)) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        Ok(state)
    }

    /// Opens the directory of a vault that was started before; `None` where there is none.
    pub fn open(path: &Path) -> Option<Self> {
        let state = Self { path: path.canonicalize().ok()? };
        state.is_vault().then_some(state)
    }

    /// The directory itself.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The path of one of its files.
    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Takes the lock, or says `None` where another process serves this vault.
    pub fn try_lock(&self) -> io::Result<Option<StateLock>> {
        let file = self.lock_file()?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(StateLock { _file: file })),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Waits until the process that holds the lock has ended.
    pub fn wait_until_unlocked(&self) -> io::Result<()> {
        Ok(flock(self.lock_file()?, FlockOperation::LockShared)?)
    }

    /// Replaces a file by these bytes: written aside, synced, renamed, and the directory synced.
    pub fn replace(&self, name: &str, mode: u32, bytes: &[u8]) -> io::Result<()> {
        let target = self.file(name);
        let folder = target.parent().unwrap_or(&self.path);
        let aside = self.file(&format!("{name}.new"));
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&aside)?;
        file.set_permissions(Permissions::from_mode(mode))?;
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(&aside, &target)?;
        File::open(folder)?.sync_all()
    }

    /// Removes a file for good.
    pub fn remove(&self, name: &str) -> io::Result<()> {
        let target = self.file(name);
        std::fs::remove_file(&target)?;
        File::open(target.parent().unwrap_or(&self.path))?.sync_all()
    }

    /// Replaces a file that only its owner may read by this value as JSON.
    pub fn replace_json(&self, name: &str, value: &impl Serialize) -> io::Result<()> {
        let mut bytes = serde_json::to_vec_pretty(value)?;
        bytes.push(b'\n');
        self.replace(name, 0o600, &bytes)
    }

    /// Reads a JSON file; `None` where there is none.
    pub fn read_json<T: DeserializeOwned>(&self, name: &str) -> io::Result<Option<T>> {
        match std::fs::read(self.file(name)) {
            Ok(bytes) => Ok(Some(serde_json::from_slice(&bytes)?)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The names of the keys that are stored.
    pub fn key_files(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(self.file(KEYS))? {
            if let Ok(name) = entry?.file_name().into_string()
                && name.ends_with(".json")
            {
                names.push(format!("{KEYS}/{name}"));
            }
        }
        Ok(names)
    }

    /// The control socket's address by way of an open directory: a socket's path holds 107 bytes at most, and a
    /// state directory may be deeper than that. The descriptor has to live as long as the path is used.
    pub fn control_socket(&self) -> io::Result<(OwnedFd, PathBuf)> {
        let directory =
            rustix::fs::open(&self.path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        let path = PathBuf::from(format!("/proc/self/fd/{}/{CONTROL}", directory.as_raw_fd()));
        Ok((directory, path))
    }

    fn lock_file(&self) -> io::Result<File> {
        OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(self.file(LOCK))
    }

    fn is_vault(&self) -> bool {
        self.file(IDENTITY).is_file()
    }

    /// Whether there is anything that a start which was cut short cannot have left.
    fn has_foreign_files(&self) -> io::Result<bool> {
        let ours = [KEYS, LOCK, LOG, CA_CERTIFICATE, CA_KEY, "vault.json.new", "ca.pem.new", "ca.key.new"];
        for entry in std::fs::read_dir(&self.path)? {
            let name = entry?.file_name();
            if !ours.iter().any(|our| name == *our) {
                return Ok(true);
            }
        }
        Ok(false)
    }
}
