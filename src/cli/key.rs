//! `kmsfs key`: make a raw key, and find out whether a KEK works before anything depends on it.

mod test;

use super::{Exit, Failure};
use crate::crypto::Secret32;
use clap::{Args, Subcommand};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use zeroize::Zeroizing;

/// What can be done with keys.
#[derive(Subcommand)]
pub enum KeyCommand {
    /// Print a fresh raw key, or write it to a new file: 32 random bytes in base64
    Generate(Generate),
    /// Wrap and unwrap a throw-away secret with a KEK, and say what the KMS knows about it
    #[command(after_help = test::EXIT_CODES)]
    Test(test::Arguments),
}

/// `key generate`.
#[derive(Args)]
pub struct Generate {
    /// Make this file, readable by its owner only, instead of printing the key; it must not exist
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
}

/// Runs one of them.
///
/// # Errors
/// With the exit code that tells a refusal, a silence, a missing identity and a wrong key apart.
pub fn run(command: KeyCommand) -> Result<(), Failure> {
    match command {
        KeyCommand::Generate(arguments) => generate(arguments.output.as_deref()),
        KeyCommand::Test(arguments) => test::run(&arguments),
    }
}

fn generate(output: Option<&Path>) -> Result<(), Failure> {
    let mut text = Zeroizing::new([0; 45]);
    data_encoding::BASE64.encode_mut(Secret32::random().expose(), &mut text[..44]);
    text[44] = b'\n';
    if let Some(path) = output {
        return write_new(path, &text[..]).map_err(|error| unwritten(path, &error));
    }
    // Standard output keeps a copy in its buffer: to go past it, not to leave one.
    let mut out = std::fs::File::from(rustix::io::dup(std::io::stdout()).map_err(|error| unprinted(&error.into()))?);
    out.write_all(&text[..]).map_err(|error| unprinted(&error))
}

/// Makes a file for its owner only, and returns when it is durable: a volume may depend on it in a moment.
pub(super) fn write_new(path: &Path, content: &[u8]) -> std::io::Result<()> {
    let mut file = std::fs::File::options().write(true).create_new(true).mode(0o600).open(path)?;
    let written = file.write_all(content).and_then(|()| file.sync_all()).and_then(|()| {
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        std::fs::File::open(parent)?.sync_all()
    });
    if written.is_err() {
        // Half a key is worse than none.
        let _ = std::fs::remove_file(path);
    }
    written
}

fn unwritten(path: &Path, error: &std::io::Error) -> Failure {
    if error.kind() == std::io::ErrorKind::AlreadyExists {
        let message = format!("{} exists already, and may hold a key that something depends on", path.display());
        return Failure::new(Exit::Usage, message).hint("give a file that does not exist yet");
    }
    Failure::new(Exit::Store, format!("{} cannot be written: {error}", path.display()))
}

fn print(text: &str) -> Result<(), Failure> {
    writeln!(std::io::stdout(), "{text}").map_err(|error| unprinted(&error))
}

fn unprinted(error: &std::io::Error) -> Failure {
    Failure::new(Exit::Failure, format!("standard output cannot be written: {error}"))
}
