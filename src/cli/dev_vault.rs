//! `kmsfs dev-vault`: the commands of the embedded Key Vault.

use super::Failure;
use clap::Subcommand;

/// What the embedded Key Vault can be told.
#[derive(Subcommand)]
pub enum DevVault {}

/// Runs one of them.
pub fn run(command: DevVault) -> Result<(), Failure> {
    match command {}
}
