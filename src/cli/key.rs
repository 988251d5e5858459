//! `kmsfs key`: make a raw key, and find out whether a KEK works before anything depends on it.

mod test;

use super::{Exit, Failure};
use crate::crypto::Secret32;
use clap::Subcommand;
use std::io::Write;
use zeroize::Zeroizing;

/// What can be done with keys.
#[derive(Subcommand)]
pub enum KeyCommand {
    /// Print a fresh raw key, for a file that `file:PATH` names: 32 random bytes in base64
    Generate,
    /// Wrap and unwrap a throw-away secret with a KEK, and say what the KMS knows about it
    #[command(after_help = test::EXIT_CODES)]
    Test(test::Arguments),
}

/// Runs one of them.
///
/// # Errors
/// With the exit code that tells a refusal, a silence, a missing identity and a wrong key apart.
pub fn run(command: KeyCommand) -> Result<(), Failure> {
    match command {
        KeyCommand::Generate => generate(),
        KeyCommand::Test(arguments) => test::run(&arguments),
    }
}

fn generate() -> Result<(), Failure> {
    let mut text = Zeroizing::new([0; 45]);
    data_encoding::BASE64.encode_mut(Secret32::random().expose(), &mut text[..44]);
    text[44] = b'\n';
    // Standard output keeps a copy in its buffer: to go past it, not to leave one.
    let mut out = std::fs::File::from(rustix::io::dup(std::io::stdout()).map_err(|error| unprinted(&error.into()))?);
    out.write_all(&text[..]).map_err(|error| unprinted(&error))
}

fn print(text: &str) -> Result<(), Failure> {
    writeln!(std::io::stdout(), "{text}").map_err(|error| unprinted(&error))
}

fn unprinted(error: &std::io::Error) -> Failure {
    Failure::new(Exit::Failure, format!("standard output cannot be written: {error}"))
}
