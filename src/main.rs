//! Parse the command line, run the command, turn its result into an exit code.

use std::process::ExitCode;

/// Memory is wiped when it is given back: names, contents and tokens pass through many hands, not all of them ours.
#[global_allocator]
static ALLOCATOR: zeroizing_alloc::ZeroAlloc<std::alloc::System> = zeroizing_alloc::ZeroAlloc(std::alloc::System);

fn main() -> ExitCode {
    kmsfs::cli::run()
}
