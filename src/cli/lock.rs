//! `kmsfs lock` and `kmsfs unlock`.

use super::{Exit, Failure};
use crate::daemon::control::{self, Command, Problem, Reply};
use crate::daemon::mountpoint;
use clap::Args;
use std::path::{Path, PathBuf};

/// Locks a mount.
#[derive(Args)]
pub struct Lock {
    /// Where the volume is mounted
    mountpoint: PathBuf,
}

/// Unlocks a mount.
#[derive(Args)]
pub struct Unlock {
    /// Where the volume is mounted
    mountpoint: PathBuf,
}

pub fn lock(arguments: &Lock) -> Result<(), Failure> {
    tell(&arguments.mountpoint, Command::Lock)
}

pub fn unlock(arguments: &Unlock) -> Result<(), Failure> {
    tell(&arguments.mountpoint, Command::Unlock)
}

/// Tells the mount at a mountpoint to do something.
pub fn tell(mountpoint: &Path, command: Command) -> Result<(), Failure> {
    match ask(mountpoint, command)? {
        Reply::Failed(problem) => Err(problem.into()),
        _ => Ok(()),
    }
}

impl From<Problem> for Failure {
    fn from(Problem { kind, message, hint }: Problem) -> Self {
        let exit = match kind.as_str() {
            "refused" => Exit::KmsRefused,
            "unreachable" => Exit::KmsUnreachable,
            "credentials" => Exit::Credentials,
            "misconfigured" => Exit::KmsMisconfigured,
            "damaged" => Exit::WrongKey,
            "busy" => Exit::Busy,
            "store" => Exit::Store,
            "suspended" => Exit::Suspended,
            _ => Exit::Failure,
        };
        Self { exit, message, hint }
    }
}

/// Asks the mount at a mountpoint.
pub fn ask(mountpoint: &Path, command: Command) -> Result<Reply, Failure> {
    let path = mountpoint::absolute(mountpoint)?;
    control::ask(&path, command).map(|(reply, _)| reply).map_err(|error| {
        let failure = Failure::new(Exit::Mountpoint, format!("no kmsfs answers for {}: {error}", path.display()));
        failure.hint("kmsfs status lists the mounts of this user; those of others are theirs")
    })
}
