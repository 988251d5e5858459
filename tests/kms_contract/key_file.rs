//! A raw key in a file.

use crate::bench::{Bench, Calls, Change, Shown};
use kmsfs::kms::WrapAlgorithm;
use std::collections::HashMap;
use std::ops::RangeInclusive;
use std::process::Command;
use tempfile::TempDir;

/// A directory with keys.
pub struct KeyFile {
    directory: TempDir,
}

impl KeyFile {
    pub fn new() -> Self {
        let bench = Self { directory: TempDir::new().expect("a temporary directory") };
        for name in ["key", "other"] {
            let output = Command::new(env!("CARGO_BIN_EXE_kmsfs")).args(["key", "generate"]).output();
            std::fs::write(bench.directory.path().join(name), output.expect("the program runs").stdout).expect("a key");
        }
        std::fs::write(bench.directory.path().join("short"), "too short\n").expect("no key");
        bench
    }

    fn rename(&self, from: &str, to: &str) {
        let path = |name: &str| self.directory.path().join(name);
        std::fs::rename(path(from), path(to)).expect("it is moved");
    }

    fn key(&self, name: &str) -> String {
        format!("file:{}", self.directory.path().join(name).display())
    }
}

impl Bench for KeyFile {
    fn name(&self) -> &'static str {
        "a key in a file"
    }

    fn reference(&self) -> String {
        self.key("key")
    }

    fn other_reference(&self) -> String {
        self.key("other")
    }

    fn environment(&self) -> HashMap<String, String> {
        HashMap::new()
    }

    fn algorithm(&self) -> WrapAlgorithm {
        WrapAlgorithm::LocalAes256Gcm
    }

    fn blob_len(&self) -> RangeInclusive<usize> {
        72..=72
    }

    fn binds_volume(&self) -> bool {
        true
    }

    fn calls(&self) -> Shown<Calls> {
        Shown::No("a file counts nothing")
    }

    fn calls_for_a_wrap(&self) -> u64 {
        0
    }

    fn rotate(&self) -> Shown<()> {
        Shown::No("a file holds one key, and has no versions")
    }

    fn refusals(&self) -> Vec<Change<'_>> {
        vec![
            Change::new("taken away", || self.rename("key", "away"), || self.rename("away", "key")).code("KeyNotFound"),
        ]
    }

    fn silences(&self) -> Shown<Vec<Change<'_>>> {
        Shown::No("a disk that does not answer cannot be made here")
    }

    fn throttle(&self) -> Shown<Change<'_>> {
        Shown::No("a file does not throttle")
    }

    fn misconfigured(&self) -> Vec<(String, &'static str)> {
        vec![
            (self.key("short"), "a raw key is one line"),
            (format!("file://host{}", self.directory.path().display()), "file:PATH"),
            (self.directory.path().join("key").display().to_string(), "write file:"),
        ]
    }

    fn strangers(&self) -> Shown<Vec<HashMap<String, String>>> {
        Shown::No("whoever may read the file has the key")
    }
}
