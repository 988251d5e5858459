//! Parse the command line, run the command, turn its result into an exit code.

use std::process::ExitCode;

fn main() -> ExitCode {
    kmsfs::cli::run()
}
