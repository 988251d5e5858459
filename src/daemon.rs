//! A mount as a process: opening the volume, serving the kernel, locking and unlocking, scrubbing, rewrapping and rekeying, the
//! control socket, and the end. Depends on everything below. Failures are those of the command line, as they end up there.

pub mod attach;
mod bring_up;
pub mod control;
pub mod errand;
mod gatekeeper;
pub mod guard;
pub mod host;
mod idle;
mod job;
pub mod log;
mod maintenance;
pub mod metrics;
mod monitor;
pub mod mountpoint;
pub mod options;
pub mod page;
mod process;
mod rekey;
mod renewal;
mod resident;
mod rewrap;
mod scrub;
mod serve;
mod service;
mod status;
mod trail;

pub use idle::Idle;
pub use job::State as JobState;
pub use monitor::Readiness;
pub use options::MountOptions;
pub use process::harden;
pub use rekey::{RekeyOrder, RekeyStatus, Rekeyer};
pub use renewal::LeftFile;
pub use rewrap::{RewrapStatus, Rewrapper};
pub use scrub::ScrubStatus;
pub use serve::{Stage, serve};
pub use service::Service;
pub use status::Status;
