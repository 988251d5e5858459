//! What a process that holds keys does to itself: no core dumps, no swap, as many open files as it may have. And whether
//! another one lives.

use rustix::mm::MlockAllFlags;
use rustix::process::{DumpableBehavior, Resource, Rlimit, getrlimit, set_dumpable_behavior, setrlimit};

/// Keeps keys and plaintext from swap and from core dumps, where the system lets us.
pub fn harden() {
    let _ = setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) });
    let _ = set_dumpable_behavior(DumpableBehavior::NotDumpable);
    // Pages are locked as they are first used, so that big buffers which are not used cost nothing. Without the
    // privilege for it this fails, and swap has to be encrypted instead (threats.md).
    let flags = MlockAllFlags::CURRENT | MlockAllFlags::FUTURE | MlockAllFlags::ONFAULT;
    if let Err(error) = rustix::mm::mlockall(flags) {
        tracing::info!("memory cannot be kept from swap: {error}");
    }
    raise_open_files();
    // Modes are what applications ask for; their own umask was applied before.
    rustix::process::umask(rustix::fs::Mode::empty());
}

/// Whether a process was killed and has not gone yet: one of its threads may still be at something.
pub fn is_dead(process: u32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    // After the program's name, which may hold anything, comes the state.
    status.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with(['Z', 'X']))
}

fn raise_open_files() {
    let limit = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
}
