//! A mount as a process: opening the volume, serving the kernel, locking and unlocking, scrubbing, the control socket,
//! and the end. Depends on everything below. Failures are those of the command line, as they end up there.

pub mod control;
pub mod errand;
mod gatekeeper;
pub mod guard;
mod maintenance;
pub mod mountpoint;
pub mod options;
mod process;
mod scrub;
mod serve;
mod status;
mod trail;

pub use options::MountOptions;
pub use scrub::{ScrubStatus, State as ScrubState};
pub use serve::{Stage, serve};
pub use status::Status;
