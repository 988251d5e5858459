//! The command line: what is parsed, which command runs, what it prints and its exit code.
//! Every command is a file of `cli/`, a `clap` argument struct and a `run` that returns [`Failure`].

mod audit;
mod certify;
mod dev_vault;
mod fsck;
mod info;
mod init;
mod key;
mod lock;
mod log_level;
mod mount;
mod mount_helper;
mod offline;
mod rekey;
mod renewal;
mod report;
mod rewrap;
mod rollback;
mod scrub;
mod serve_status;
mod status;
mod tenant;
mod transfer;
mod umount;

use crate::failure::{Exit, Failure};
use clap::{CommandFactory, Parser, Subcommand};
use std::process::ExitCode;

/// Encrypted files that can be read only while a key in a cloud KMS says so.
#[derive(Parser)]
#[command(
    name = "kmsfs",
    version,
    about,
    propagate_version = true,
    subcommand_required = true,
    arg_required_else_help = true
)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Make a volume: an empty directory whose files a key will encrypt
    Init(init::Init),
    /// Mount a volume; comes back when the mount answers
    Mount(Box<mount::Mount>),
    /// Unmount, and wait until everything is stored
    Umount(umount::Umount),
    /// List, check, suspend and resume the tenants whose volumes are mounted on this machine
    #[command(subcommand)]
    Tenant(tenant::TenantCommand),
    /// Show how mounts are doing
    Status(status::StatusCommand),
    /// Show what a volume is, without its key
    Info(info::Info),
    /// Read and check what happened to a volume
    #[command(subcommand)]
    Audit(audit::AuditCommand),
    /// Check a volume that is not mounted: its structure without any key, everything with --deep
    Fsck(fsck::Fsck),
    /// Check a volume while it is mounted: authenticates everything, at a limited rate if told to
    Scrub(scrub::Scrub),
    /// Accept an older version of a volume or of a file, which its rollback guard refuses
    #[command(subcommand)]
    Rollback(rollback::RollbackCommand),
    /// Encrypt an existing directory into a volume, and verify it
    Import(transfer::Import),
    /// Decrypt a volume into a directory, and verify it
    Export(transfer::Export),
    /// Certify what became of a volume's keys after its owner took them away
    Certify(certify::Certify),
    /// Wrap everything in a volume by another key, or by the newest version of its own, while it is in use
    Rewrap(rewrap::RewrapCommand),
    /// Give files new data keys and seal their content again, while the volume is in use
    Rekey(rekey::RekeyCommand),
    /// Make a mount unreadable until it is unlocked
    Lock(lock::Lock),
    /// Make a mount readable again that was locked by hand, if the KMS grants its key
    Unlock(lock::Unlock),
    /// Serve how all mounts are doing, to Prometheus and to probes on this machine
    ServeStatus(serve_status::ServeStatus),
    /// Change how much the process of a mount logs
    LogLevel(log_level::LogLevel),
    /// Run an embedded Key Vault on loopback, to try and to test everything without a cloud
    #[command(subcommand)]
    DevVault(dev_vault::DevVault),
    /// What a mount's process needs from its own mount
    #[command(name = crate::daemon::errand::COMMAND, hide = true)]
    Errand,
    /// Make a raw key, or test a key in a KMS
    #[command(subcommand)]
    Key(key::KeyCommand),
}

/// What the command line looks like, for whoever writes manual pages and completions of it.
pub fn command() -> clap::Command {
    Arguments::command()
}

/// The options of `kmsfs mount` that a tenant's configuration may set, by their long names.
pub fn tenant_keys() -> Vec<crate::tenant::Key> {
    mount::tenant::keys()
}

/// Runs the program's command line and returns the process's exit code.
pub fn run() -> ExitCode {
    let mut words = std::env::args_os();
    if words.next().is_some_and(|program| mount_helper::is_called(&program)) {
        return end(mount_helper::run(words));
    }
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            let _ = error.print();
            return if error.use_stderr() { Exit::Usage.into() } else { Exit::Ok.into() };
        }
    };
    let result = match arguments.command {
        Command::Init(command) => init::run(&command),
        Command::Mount(command) => mount::run(&command),
        Command::Umount(command) => umount::run(&command),
        Command::Tenant(command) => tenant::run(&command),
        Command::Status(command) => status::run(&command),
        Command::Info(command) => info::run(&command),
        Command::Audit(command) => audit::run(&command),
        Command::Fsck(command) => fsck::run(&command),
        Command::Scrub(command) => scrub::run(&command),
        Command::Rollback(command) => rollback::run(&command),
        Command::Certify(command) => certify::run(&command),
        Command::Import(command) => transfer::import(&command),
        Command::Export(command) => transfer::export(&command),
        Command::Rewrap(command) => rewrap::run(&command),
        Command::Rekey(command) => rekey::run(&command),
        Command::Lock(command) => lock::lock(&command),
        Command::Unlock(command) => lock::unlock(&command),
        Command::ServeStatus(command) => serve_status::run(&command),
        Command::LogLevel(command) => log_level::run(&command),
        Command::DevVault(command) => dev_vault::run(command),
        Command::Errand => crate::daemon::errand::main(),
        Command::Key(command) => key::run(command),
    };
    end(result)
}

fn end(result: Result<(), Failure>) -> ExitCode {
    match result {
        Ok(()) => Exit::Ok.into(),
        Err(failure) => {
            failure.print();
            failure.exit.into()
        }
    }
}
