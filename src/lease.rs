//! Unwrapped keys over time: which are in memory, who fetches them, and for how long the volume may use them.
//! Depends on `kms` and below. [`Leases`] holds the secrets, [`Watch`] decides when the volume locks, and
//! [`Keeper`] is the thread that asks the KMS for both.
//! Invariant: after [`Leases::lock`] no secret is kept and none is handed out until [`Leases::unlock`], not even one
//! whose unwrap was under way.

mod breaker;
mod budget;
mod clock;
mod keeper;
mod leases;
mod watch;

pub use clock::BootTime;
pub use keeper::{Canary, Event, Keeper, Status, UnlockError, Volume};
pub use leases::{KMS_RATE, LeaseError, LeaseStats, Leases};
pub use watch::{LOCK_WITHIN, LockReason, OnRevoked, Policy, State, Step, Watch};
