//! `kmsfs log-level`.

use super::Failure;
use super::lock::ask;
use crate::daemon::control::{Command, Reply};
use clap::{Args, ValueEnum};
use std::path::PathBuf;

/// Changes how much the process of a mount logs.
#[derive(Args)]
pub struct LogLevel {
    /// Where the volume is mounted
    mountpoint: PathBuf,
    /// From now on, until it is unmounted
    level: Level,
}

/// How much is logged.
#[derive(Clone, Copy, ValueEnum)]
enum Level {
    /// What went wrong
    Error,
    /// What somebody should look at
    Warn,
    /// What happened; what it begins with
    Info,
    /// Each answer of the KMS
    Debug,
    /// Everything
    Trace,
}

pub fn run(arguments: &LogLevel) -> Result<(), Failure> {
    let level = match arguments.level {
        Level::Error => "error",
        Level::Warn => "warn",
        Level::Info => "info",
        Level::Debug => "debug",
        Level::Trace => "trace",
    };
    match ask(&arguments.mountpoint, Command::LogLevel { level: level.to_owned() })? {
        Reply::Failed(problem) => Err(problem.into()),
        _ => Ok(()),
    }
}
