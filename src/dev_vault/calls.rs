//! How often each operation was called since the start: tests assert on these numbers.

use super::names::KeyName;
use hyper::StatusCode;
use parking_lot::Mutex;
use serde::Serialize;
use std::collections::BTreeMap;

/// Requests for a token.
pub const TOKEN: &str = "token";
/// Requests without a token that is good, answered by a challenge. They count as nothing else.
pub const CHALLENGE: &str = "challenge";

/// The counters of a running vault.
#[derive(Debug, Default)]
pub struct Calls {
    counts: Mutex<Counts>,
}

/// The numbers at one time.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Counts {
    /// Requests by operation, those that met a fault included.
    calls: BTreeMap<&'static str, u64>,
    /// The same for each key.
    keys: BTreeMap<KeyName, BTreeMap<&'static str, u64>>,
    /// Answers of the vault by status; not those of the token endpoint. A request that was reset or hangs has none.
    answers: BTreeMap<u16, u64>,
}

impl Calls {
    /// Counts a request as it arrives.
    pub fn arrived(&self, operation: &'static str, key: Option<&KeyName>) {
        let mut counts = self.counts.lock();
        *counts.calls.entry(operation).or_default() += 1;
        if let Some(key) = key {
            *counts.keys.entry(key.clone()).or_default().entry(operation).or_default() += 1;
        }
    }

    /// Counts an answer as it leaves.
    pub fn answered(&self, status: StatusCode) {
        *self.counts.lock().answers.entry(status.as_u16()).or_default() += 1;
    }

    /// The numbers now.
    pub fn counts(&self) -> Counts {
        self.counts.lock().clone()
    }
}
