//! Whether a log is what was written: the chain for everybody, the checkpoints for whoever has the key.

use super::chain::{Head, Read, mac};
use super::log;
use crate::crypto::Secret32;
use crate::store::StoreDir;
use crate::units::VolumeId;
use serde::Serialize;
use std::io;

/// What was found in a series.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Verdict {
    /// Which one.
    pub series: String,
    /// Its files.
    pub files: usize,
    /// Its lines.
    pub lines: u64,
    /// The number of the first line that is there; more than 1 if old files were removed.
    pub first_seq: u64,
    /// The number of the last line.
    pub last_seq: u64,
    /// The hash of the last line, in hexadecimal.
    pub head: String,
    /// Checkpoints that are there.
    pub checkpoints: u64,
    /// The number of the last checkpoint that the key confirms, if it was asked for.
    pub authenticated_to: Option<u64>,
    /// Bytes of a last line that is not whole: a crash, or being written.
    pub torn_bytes: u64,
    /// The number of the line whose hash is the one that was looked for.
    pub noted_at: Option<u64>,
    /// The first thing that is wrong.
    pub broken: Option<Broken>,
}

/// A place where a log is not what was written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Broken {
    /// The file.
    pub file: String,
    /// The line in it, counted from 1.
    pub line: u64,
    /// Where that begins, in bytes.
    pub offset: u64,
    /// The number of the last line that is in order.
    pub after_seq: u64,
    /// What is wrong.
    pub what: String,
}

/// Checks all series of a log; with the key also their checkpoints. `noted` is the hash of a line to look for.
///
/// # Errors
/// The store's.
pub fn verify(
    dir: &dyn StoreDir,
    volume: VolumeId,
    key: Option<&Secret32>,
    noted: Option<&[u8; 32]>,
) -> io::Result<Vec<Verdict>> {
    let series = log::all_series(dir)?;
    series.iter().map(|series| Check::new(series, volume, key, noted).run(dir)).collect()
}

struct Check<'a> {
    volume: VolumeId,
    key: Option<&'a Secret32>,
    noted: Option<&'a [u8; 32]>,
    head: Head,
    /// The last line that a `removed` line accounts for.
    removed_to: u64,
    /// The last line that is in order.
    good: u64,
    verdict: Verdict,
}

impl<'a> Check<'a> {
    fn new(series: &str, volume: VolumeId, key: Option<&'a Secret32>, noted: Option<&'a [u8; 32]>) -> Self {
        let verdict = Verdict { series: series.to_owned(), ..Verdict::default() };
        Self { volume, key, noted, head: Head::default(), removed_to: 0, good: 0, verdict }
    }

    fn run(mut self, dir: &dyn StoreDir) -> io::Result<Verdict> {
        let numbers = log::files(dir, &self.verdict.series)?;
        let mut expected = numbers.first().copied();
        for (index, number) in numbers.iter().enumerate() {
            let name = log::name(&self.verdict.series, *number);
            self.verdict.files += 1;
            if expected != Some(*number) {
                self.broken(&name, 1, 0, "a file before this one is missing".into());
            }
            expected = number.checked_add(1);
            let bytes = match log::read(dir, &name) {
                Ok(bytes) => bytes,
                Err(error) => {
                    self.broken(&name, 1, 0, error.to_string());
                    continue;
                }
            };
            for (line, (offset, bytes)) in log::lines(&bytes).enumerate() {
                match self.line(bytes) {
                    Ok(()) => self.good = self.head.seq,
                    Err(what) => self.broken(&name, line as u64 + 1, offset, what),
                }
            }
            let torn = log::torn(&bytes);
            if index + 1 == numbers.len() {
                self.verdict.torn_bytes = torn;
            } else if torn > 0 {
                let offset = bytes.len() as u64 - torn;
                let line = log::lines(&bytes).count() as u64 + 1;
                self.broken(&name, line, offset, "a line is not whole, and is not the last".into());
            }
        }
        if self.verdict.first_seq > self.removed_to + 1 {
            let name = log::name(&self.verdict.series, numbers.first().copied().unwrap_or(1));
            let what = format!(
                "the log begins with line {}, and nothing in it says that those before were removed to make room",
                self.verdict.first_seq
            );
            self.good = 0;
            self.broken(&name, 1, 0, what);
        }
        Ok(self.verdict)
    }

    fn line(&mut self, bytes: &[u8]) -> Result<(), String> {
        let parsed = Read::parse(bytes);
        let first = self.verdict.lines == 0;
        self.verdict.lines += 1;
        let hash = *blake3::hash(bytes).as_bytes();
        let read = match parsed {
            Ok(read) => read,
            Err(what) => {
                // What follows may continue it, as what was found broken is continued.
                self.head.hash = hash;
                return Err(what);
            }
        };
        let before = self.head;
        self.head = Head { seq: read.seq, hash };
        (self.verdict.last_seq, self.verdict.head) = (read.seq, super::hex(&hash));
        if self.noted == Some(&hash) {
            self.verdict.noted_at = Some(read.seq);
        }
        if first {
            self.verdict.first_seq = read.seq;
            if read.seq == 1 && read.prev != Head::default().hash {
                return Err("the first line follows another one".into());
            }
        } else {
            before.follow(&read)?;
        }
        self.say(&read, if first { Head { seq: read.seq.saturating_sub(1), hash: read.prev } } else { before })
    }

    /// What a line of the log says about the log.
    fn say(&mut self, read: &Read, before: Head) -> Result<(), String> {
        match read.event.as_str() {
            "checkpoint" => {
                self.verdict.checkpoints += 1;
                if let Some(key) = self.key {
                    let expected = mac(key, self.volume, &self.verdict.series, &before, &read.time);
                    // Nobody measures how long this takes: whoever runs it has the key.
                    if read.value["mac"].as_str() != Some(&expected) {
                        return Err("the checkpoint is not one of this volume's key".into());
                    }
                    if self.verdict.broken.is_none() {
                        self.verdict.authenticated_to = Some(read.seq);
                    }
                }
            }
            "removed" => self.removed_to = self.removed_to.max(read.value["last_seq"].as_u64().unwrap_or(0)),
            _ => (),
        }
        Ok(())
    }

    fn broken(&mut self, file: &str, line: u64, offset: u64, what: String) {
        let after_seq = self.good;
        self.verdict.broken.get_or_insert_with(|| Broken { file: file.to_owned(), line, offset, after_seq, what });
    }
}
