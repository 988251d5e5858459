//! `kmsfs umount`: one mount, a tenant's, or all of them.

use super::{Exit, Failure};
use crate::daemon::control::{self, Command, Reply};
use crate::daemon::mountpoint;
use crate::tenant::{Config, TenantName, config_directory};
use clap::Args;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long the mount's process may take to store everything after nobody uses it any more.
const PATIENCE: Duration = Duration::from_secs(300);

/// Unmounts.
#[derive(Args)]
pub struct Umount {
    /// Where the volume is mounted
    #[arg(required_unless_present_any = ["tenant", "all"])]
    mountpoint: Option<PathBuf>,
    /// The mount of this tenant
    #[arg(long, value_name = "TENANT", conflicts_with = "mountpoint")]
    tenant: Option<TenantName>,
    /// Where the configurations of tenants are, if not in KMSFS_CONFIG_DIR or /etc/kmsfs
    #[arg(long, value_name = "DIR", requires = "tenant")]
    config_dir: Option<PathBuf>,
    /// All mounts of this user; goes on after one that fails
    #[arg(long, conflicts_with_all = ["mountpoint", "tenant"])]
    all: bool,
    /// Take it out of the tree even if somebody uses it; it ends when nobody does any more
    #[arg(long, short = 'l')]
    lazy: bool,
    /// Store what was written, and end it even if somebody uses it: they get errors
    #[arg(long, conflicts_with = "lazy")]
    force: bool,
    /// It is no failure if nothing is mounted
    #[arg(long, short = 'q')]
    quiet: bool,
}

/// How it is taken away from whoever uses it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum How {
    /// Not at all.
    Politely,
    /// When they have finished.
    Lazily,
    /// At once, after what they have written is stored.
    ByForce,
}

pub fn run(arguments: &Umount) -> Result<(), Failure> {
    let how = match (arguments.lazy, arguments.force) {
        (true, _) => How::Lazily,
        (_, true) => How::ByForce,
        _ => How::Politely,
    };
    if arguments.all {
        return all(how);
    }
    if let Some(tenant) = &arguments.tenant {
        let directory = config_directory(arguments.config_dir.clone());
        let config = Config::read(&directory, tenant, &super::mount::tenant::keys())?;
        return unless_absent(arguments.quiet, &config.mountpoint, how);
    }
    unless_absent(arguments.quiet, arguments.mountpoint.as_deref().unwrap_or(Path::new("")), how)
}

fn unless_absent(quiet: bool, mountpoint: &Path, how: How) -> Result<(), Failure> {
    let ours = |path: &PathBuf| {
        let mounted = mountpoint::mounted_at(path).ok().flatten();
        mounted.is_some_and(|mounted| mounted.fs_type == mountpoint::FS_TYPE)
    };
    match mountpoint::absolute(mountpoint) {
        Ok(path) if quiet && !ours(&path) => Ok(()),
        _ => umount(mountpoint, how),
    }
}

/// Every mount whose process answers, and those whose process is dead, which no socket tells of.
fn all(how: How) -> Result<(), Failure> {
    let sockets = std::fs::read_dir(control::directory()).into_iter().flatten().flatten();
    let answering = sockets.filter_map(|entry| match control::ask_socket(&entry.path(), Command::Status) {
        Ok((Reply::Status(status), _)) => Some(status.mountpoint),
        _ => None,
    });
    let mut mountpoints: BTreeSet<_> = answering.collect();
    let mounts = mountpoint::mounts().map_err(|error| {
        Failure::new(Exit::Mountpoint, format!("the mounts of this machine cannot be listed: {error}"))
    })?;
    let ours =
        mounts.into_iter().filter(|mounted| mounted.fs_type == mountpoint::FS_TYPE).map(|mounted| mounted.mountpoint);
    // An ordinary user has no business with those of others.
    let is_root = rustix::process::geteuid().is_root();
    mountpoints.extend(ours.filter(|path| is_root && mountpoint::is_dead(path)));
    let mut first = None;
    for mountpoint in &mountpoints {
        if let Err(failure) = umount(mountpoint, how) {
            failure.print();
            first.get_or_insert(failure.exit);
        }
    }
    match first {
        None => Ok(()),
        Some(exit) => Err(Failure::new(exit, "not everything could be unmounted")
            .hint("see above; kmsfs umount --all --force takes it away from whoever uses it")),
    }
}

/// Unmounts what is mounted at a place, and waits until everything is stored.
///
/// # Errors
/// [`Exit::Busy`], [`Exit::Mountpoint`].
pub fn umount(mountpoint: &Path, how: How) -> Result<(), Failure> {
    let path = mountpoint::absolute(mountpoint)?;
    let failed = |error: std::io::Error| {
        if error.raw_os_error() == Some(libc::EBUSY) {
            let failure = Failure::new(Exit::Busy, format!("{} is still in use", path.display()));
            return failure.hint(format!(
                "see who: fuser -vm {0}; or kmsfs umount --lazy {0}, or --force, which ends it at once",
                path.display()
            ));
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
    match how {
        How::Lazily => return mountpoint::detach(&path).map_err(failed),
        How::Politely => mountpoint::unmount_soon(&path).map_err(failed)?,
        How::ByForce => {
            if let Ok((Reply::Failed(problem), _)) = control::ask(&path, Command::Stop) {
                return Err(problem.into());
            }
            // Whoever does not answer has nothing more to say.
            if mountpoint::mounted_at(&path).map_err(failed)?.is_some_and(|now| now.device == mounted.device) {
                mountpoint::bury(&path).map_err(failed)?;
            }
        }
    }
    if let Some((process, name)) = mountpoint::lastingly_elsewhere(&mounted.device).filter(|_| how == How::Politely) {
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
