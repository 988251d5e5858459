//! Everything that is counted of a mount, as one structure: its own server and the one for all mounts of the host make the
//! same text of it ([`of_all`]). Gathered without asking the KMS or the disk.

mod families;

use super::Status;
use crate::fs::Fs;
use crate::journal::Usage;
use crate::metrics::Counts;
pub use families::{of_all, of_host};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::atomic::Ordering::Relaxed;

/// The media type of [`of_all`].
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// What is known of a mount at one moment.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Metrics {
    /// Its state.
    pub status: Status,
    /// The version of the program that serves it.
    pub version: String,
    /// How long the operations took of which there were any, by name.
    pub operations: BTreeMap<String, Counts>,
    /// How often operations failed, by the number of the error.
    pub errors: BTreeMap<i32, u64>,
    /// Chunks that did not authenticate.
    pub failed_chunks: u64,
    /// How long calls to the KMS took.
    pub kms_latency: Counts,
    /// How long locks took.
    pub locks: Counts,
    /// Files with changes that are not committed.
    pub dirty_files: u64,
    /// Bytes at most that are not committed.
    pub dirty_bytes: u64,
    /// For how long changes have waited to be committed, in seconds.
    pub uncommitted_s: f64,
    /// Bytes at most that could not be stored before locks.
    pub lost_bytes: u64,
    /// What the journal has.
    pub journal: Usage,
    /// Memory that the process has, in bytes.
    pub resident_bytes: u64,
}

impl Metrics {
    /// Those of a mount now.
    pub fn of(fs: &Fs, status: Status) -> Self {
        let counters = &fs.counters;
        Self {
            status,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            operations: counters.meter.operations(),
            errors: counters.meter.errors(),
            failed_chunks: counters.failed_chunks.load(Relaxed),
            kms_latency: fs.leases().latency(),
            locks: counters.locks.counts(),
            dirty_files: fs.waiting_files(),
            dirty_bytes: fs.dirty_bytes(),
            uncommitted_s: fs.uncommitted_for().as_secs_f64(),
            lost_bytes: counters.lost_bytes.load(Relaxed),
            journal: fs.journal_usage(),
            resident_bytes: resident_bytes(),
        }
    }
}

fn resident_bytes() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = statm.split_whitespace().nth(1).and_then(|pages| pages.parse::<u64>().ok()).unwrap_or_default();
    pages * rustix::param::page_size() as u64
}
