//! `kmsfs tenant`: the tenants of this machine, as their configurations name them.

mod check;
mod list;
mod restart;
mod suspend;

use super::mount::tenant::{Loaded, keys};
use super::{Exit, Failure};
use crate::daemon::Status;
use crate::daemon::control::{self, Command, Reply};
use crate::daemon::mountpoint;
use crate::fs::volume::Volume;
use crate::tenant::{Config, Suspension, TenantName, config_directory, configured, state_directory};
use clap::{Args, Subcommand};
use std::path::{Path, PathBuf};

/// What can be done with tenants.
#[derive(Subcommand)]
pub enum TenantCommand {
    /// List the tenants that are configured, and how their mounts are doing
    List(list::List),
    /// Check configurations, credentials, volumes, mountpoints and keys, before or while they are mounted
    Check(check::Check),
    /// Lock a tenant's volume, and keep it locked whatever is restarted
    Suspend(suspend::Suspend),
    /// Take that back
    Resume(suspend::Resume),
    /// Restart mounts one after the other, as after an upgrade; what was written is stored, what is open gets errors
    Restart(restart::Restart),
    /// Mount what a tenant's service offers, which cannot do it itself
    #[command(hide = true)]
    Attach(Attach),
}

/// `tenant attach`.
#[derive(Args)]
pub struct Attach {
    /// The tenant
    tenant: TenantName,
    #[command(flatten)]
    place: Place,
}

/// Where the configurations are.
#[derive(Args)]
struct Place {
    /// Where the configurations of tenants are, if not in KMSFS_CONFIG_DIR or /etc/kmsfs
    #[arg(long, value_name = "DIR")]
    config_dir: Option<PathBuf>,
}

impl Place {
    fn directory(&self) -> PathBuf {
        config_directory(self.config_dir.clone())
    }
}

/// Runs one of them.
pub fn run(command: &TenantCommand) -> Result<(), Failure> {
    match command {
        TenantCommand::List(arguments) => list::run(arguments),
        TenantCommand::Check(arguments) => check::run(arguments),
        TenantCommand::Suspend(arguments) => suspend::suspend(arguments),
        TenantCommand::Resume(arguments) => suspend::resume(arguments),
        TenantCommand::Restart(arguments) => restart::run(arguments),
        TenantCommand::Attach(arguments) => {
            let options = Loaded::without_credentials(&arguments.place.directory(), &arguments.tenant)?.options;
            crate::daemon::attach::attach(&options.mountpoint, options.flags.nonempty)
        }
    }
}

/// How a tenant's mount is doing.
enum State {
    /// It answers.
    Mounted(Box<Status>),
    /// Its process is gone, or does not answer.
    Dead,
    /// There is none.
    NotMounted,
}

impl State {
    fn of(mountpoint: &Path) -> Self {
        let path = mountpoint::absolute(mountpoint).unwrap_or_else(|_| mountpoint.to_owned());
        if control::is_stuck(&path) {
            return Self::Dead;
        }
        match control::ask(&path, Command::Status) {
            Ok((Reply::Status(status), _)) => Self::Mounted(status),
            _ => match mountpoint::mounted_at(&path) {
                Ok(Some(mounted)) if mounted.fs_type == mountpoint::FS_TYPE => Self::Dead,
                _ => Self::NotMounted,
            },
        }
    }
}

/// How another process of this program ended: its error is that of this one.
fn succeeded(output: &std::process::Output) -> Result<(), Failure> {
    if output.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    let said = |what: &str| text.lines().rev().find_map(|line| line.strip_prefix(what)).map(str::to_owned);
    let code = output.status.code().and_then(|code| u8::try_from(code).ok());
    let message = said("error: ").unwrap_or_else(|| "it ended without a word".to_owned());
    Err(Failure { exit: code.map_or(Exit::Failure, Exit::from_code), message, hint: said("hint: ") })
}
