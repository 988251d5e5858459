//! `kmsfs umount`.

use super::{Exit, Failure};
use crate::daemon::control::{self, Command};
use crate::daemon::mountpoint;
use clap::Args;
use std::path::PathBuf;
use std::time::Duration;

/// How long the mount's process may take to store everything after nobody uses it any more.
const PATIENCE: Duration = Duration::from_secs(300);

/// Unmounts.
#[derive(Args)]
pub struct Umount {
    /// Where the volume is mounted
    mountpoint: PathBuf,
    /// Take it out of the tree even if somebody uses it; it ends when nobody does any more
    #[arg(long, short = 'l')]
    lazy: bool,
}

pub fn run(arguments: &Umount) -> Result<(), Failure> {
    let path = mountpoint::absolute(&arguments.mountpoint)?;
    let failed = |error: std::io::Error| {
        if error.raw_os_error() == Some(libc::EBUSY) {
            let failure = Failure::new(Exit::Busy, format!("{} is still in use", path.display()));
            return failure.hint(format!("see who: fuser -vm {0}; or kmsfs umount --lazy {0}", path.display()));
        }
        Failure::new(Exit::Mountpoint, format!("{} cannot be unmounted: {error}", path.display()))
    };
    let mounted = mountpoint::mounted_at(&path).map_err(failed)?;
    let Some(mounted) = mounted.filter(|mounted| mounted.fs_type == mountpoint::FS_TYPE) else {
        let failure = Failure::new(Exit::Mountpoint, format!("{} is not a mount of kmsfs", path.display()));
        return Err(failure.hint("kmsfs status lists them"));
    };
    if control::is_stuck(&path) {
        return mountpoint::bury(&path).map_err(failed);
    }
    // Its end shows that everything is stored. A dead one has nothing more to store.
    let connection = control::ask(&path, Command::Watch).ok().map(|(_, connection)| connection);
    if arguments.lazy {
        return mountpoint::detach(&path).map_err(failed);
    }
    mountpoint::unmount_soon(&path).map_err(failed)?;
    if let Some((process, name)) = mountpoint::elsewhere(&mounted.device) {
        let message = format!(
            "{} is unmounted here, but not in the mount namespace of process {process} ({name})",
            path.display()
        );
        let hint =
            format!("it goes on until that ends, or: nsenter --mount --target {process} umount {}", path.display());
        return Err(Failure::new(Exit::Busy, message).hint(hint));
    }
    match connection.map(|connection| connection.wait_for_end(PATIENCE)) {
        Some(Err(_)) => Err(Failure::new(Exit::Failure, "it is unmounted, but its process still stores something")),
        _ => Ok(()),
    }
}
