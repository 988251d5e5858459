//! How often each operation was called since the start, and the last calls one by one, as Key Vault's own log
//! (`AuditEvent`) has them: tests assert on both.

use super::names::KeyName;
use hyper::StatusCode;
use parking_lot::Mutex;
use serde::Serialize;
use std::collections::{BTreeMap, VecDeque};

/// Requests for a token.
pub const TOKEN: &str = "token";
/// Requests without a token that is good, answered by a challenge. They count as nothing else.
pub const CHALLENGE: &str = "challenge";

/// So many of the last calls are kept.
const KEPT: usize = 1024;

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
    /// The last calls that were answered, oldest first.
    log: VecDeque<Entry>,
}

/// A call in the vault's log.
#[derive(Clone, Debug, Serialize)]
pub struct Entry {
    /// What was called; `None` for what is no operation.
    pub operation: Option<&'static str>,
    /// The HTTP status of the answer.
    pub status: u16,
    /// The id that the vault gave the call.
    pub request_id: String,
    /// The id that the client gave it.
    pub client_request_id: Option<String>,
    /// What the client calls itself.
    pub client: Option<String>,
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
    pub fn answered(&self, status: StatusCode, entry: Entry) {
        let mut counts = self.counts.lock();
        *counts.answers.entry(status.as_u16()).or_default() += 1;
        if counts.log.len() == KEPT {
            counts.log.pop_front();
        }
        counts.log.push_back(entry);
    }

    /// The numbers now.
    pub fn counts(&self) -> Counts {
        self.counts.lock().clone()
    }
}
