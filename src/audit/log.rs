//! The files of one series, and how lines get into them. Depends on the chain and the store.
//!
//! A line is appended in one write. What a crash leaves of lines that were not durable (a part, or zeros) is cut off at
//! the next opening, which says so in the log. When a file is full:
//! 1. it is made durable, and the next one is made (a crash: an empty file, into which the next opening writes);
//! 2. its first line carries the hash of the last line of the file before;
//! 3. if there are too many files, a line says that the oldest is removed (a crash: it is still there, and is removed
//!    when the next file is full);
//! 4. it is removed.

use super::chain::{self, Head, Read};
use super::event::{Event, Settings};
use crate::crypto::Secret32;
use crate::store::StoreDir;
use crate::store::StoreFile;
use crate::units::{StoredOffset, VolumeId};
use std::io;
use std::ops::Deref;
use std::sync::Arc;
use std::time::SystemTime;

/// How long a file of the log gets, in bytes; a line may go beyond.
pub const FILE_LEN: u64 = 4 << 20;
/// How many files of a series are kept unless told otherwise.
pub const KEEP: u32 = 16;
/// No file of ours is longer than this.
const LONGEST_FILE: u64 = FILE_LEN + 2 * chain::LONGEST_LINE as u64;
const SUFFIX: &str = ".jsonl";

/// How much of a log is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// How long a file gets, in bytes.
    pub file_len: u64,
    /// How many files of a series are kept; `None` keeps all of them.
    pub keep: Option<u32>,
}

impl Default for Limits {
    fn default() -> Self {
        Self { file_len: FILE_LEN, keep: Some(KEEP) }
    }
}

/// A series that is being written.
pub struct Log {
    dir: Arc<dyn StoreDir>,
    volume: VolumeId,
    series: String,
    limits: Limits,
    head: Head,
    number: u64,
    file: Option<Arc<dyn StoreFile>>,
    len: u64,
    /// There may be something behind the last line.
    untidy: bool,
    unsynced: bool,
}

/// What an opening found.
#[derive(Debug, Default)]
pub struct Found {
    /// What has to be said in the log about how it was found.
    pub notes: Vec<Event>,
    /// The last event that was not a note about the log itself.
    pub last_event: Option<String>,
    /// The settings of the last mount.
    pub settings: Option<Settings>,
}

/// The numbers of the files of a series, in order.
pub(super) fn files(dir: &dyn StoreDir, series: &str) -> io::Result<Vec<u64>> {
    let mut numbers: Vec<u64> = dir
        .list()?
        .iter()
        .filter_map(|entry| parse_name(&entry.name))
        .filter(|(s, _)| s == series)
        .map(|(_, n)| n)
        .collect();
    numbers.sort_unstable();
    Ok(numbers)
}

/// The series that have files.
pub(super) fn all_series(dir: &dyn StoreDir) -> io::Result<Vec<String>> {
    let mut all: Vec<String> = dir.list()?.iter().filter_map(|entry| parse_name(&entry.name)).map(|(s, _)| s).collect();
    all.sort();
    all.dedup();
    Ok(all)
}

/// `SERIES.NUMBER.jsonl`, in its one form.
pub(super) fn name(series: &str, number: u64) -> String {
    format!("{series}.{number:08}{SUFFIX}")
}

fn parse_name(bytes: &[u8]) -> Option<(String, u64)> {
    let text = std::str::from_utf8(bytes).ok()?;
    let (series, number) = text.strip_suffix(SUFFIX)?.split_once('.')?;
    let number = number.parse().ok()?;
    (name(series, number) == text && !series.is_empty()).then(|| (series.to_owned(), number))
}

/// All of a file of the log.
pub(super) fn read(dir: &dyn StoreDir, name: &str) -> io::Result<Vec<u8>> {
    let file = dir.open_file(name.as_bytes(), false)?;
    let len = file.inode().stat()?.len.0;
    if len > LONGEST_FILE {
        return Err(io::Error::other(format!("{name} is {len} bytes long, which no file of the log is")));
    }
    let mut bytes = vec![0; len as usize];
    let read = file.read_at(&mut bytes, StoredOffset(0))?;
    bytes.truncate(read);
    Ok(bytes)
}

/// The whole lines of a file, without their newlines, each with the offset at which it begins.
pub(super) fn lines(bytes: &[u8]) -> impl Iterator<Item = (u64, &[u8])> {
    let bytes = &bytes[..bytes.len() - torn(bytes) as usize];
    let mut at = 0;
    bytes.split_inclusive(|byte| *byte == b'\n').filter_map(move |line| {
        let begin = at;
        at += line.len() as u64;
        line.strip_suffix(b"\n").map(|line| (begin, line))
    })
}

/// How many bytes at the end are what a crash leaves of lines: a line without an end, or from the first line on that
/// has zeros in it, which is what a disk gives where nothing was written before the power failed.
pub(super) fn torn(bytes: &[u8]) -> u64 {
    let written = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    let whole = bytes[..written].iter().rposition(|byte| *byte == b'\n').map_or(0, |last| last + 1);
    (bytes.len() - whole) as u64
}

impl Log {
    /// Opens a series where it ended, or begins it. Writes nothing, but cuts off what a crash has left of a line.
    ///
    /// # Errors
    /// The store's.
    pub fn open(dir: Arc<dyn StoreDir>, volume: VolumeId, series: &str, limits: Limits) -> io::Result<(Self, Found)> {
        let (head, number) = (Head::default(), 1);
        let series = series.to_owned();
        let mut log =
            Self { dir, volume, series, limits, head, number, file: None, len: 0, untidy: false, unsynced: false };
        let mut found = Found::default();
        let numbers = files(&*log.dir, &log.series)?;
        let Some(&last) = numbers.last() else { return Ok((log, found)) };
        log.number = last;
        let mut broken = !log.tidy_up(&mut found);
        for number in numbers.iter().rev() {
            // What is wrong with the last file was found out before; older ones are for `kmsfs audit verify`.
            let Ok(content) = read(&*log.dir, &name(&log.series, *number)) else { continue };
            let (head, wrong) = end_of(&content, &mut found);
            if let Some(what) = wrong.filter(|_| *number == last) {
                found.notes.push(Event::Broken { file: log.name(), what });
                broken = true;
            }
            // The end is in the file before, if the machine went down between the two.
            if log.head.seq == 0 {
                log.head = head;
            }
            if log.head.seq > 0 && found.settings.is_some() {
                break;
            }
        }
        if broken {
            // Nothing that is wrong is written over, or looks as if it had been continued.
            (log.number, log.len, log.file) = (log.number + 1, 0, None);
        }
        Ok((log, found))
    }

    /// How far the chain goes.
    pub fn head(&self) -> Head {
        self.head
    }

    /// Which one it is.
    pub fn series(&self) -> &str {
        &self.series
    }

    /// Appends a line. Not durable before [`Log::sync`].
    ///
    /// # Errors
    /// The store's; the log is as it was then.
    pub fn append(&mut self, time: SystemTime, event: &Event) -> io::Result<()> {
        self.make_room(time)?;
        self.write(&chain::stamp(time), event)
    }

    /// Appends a checkpoint, if there is a key: whoever has it can see that no line before was changed. Whether it did.
    ///
    /// # Errors
    /// As for [`Log::append`].
    pub fn checkpoint<K: Deref<Target = Option<Secret32>>>(
        &mut self,
        time: SystemTime,
        key: impl FnOnce() -> K,
    ) -> io::Result<bool> {
        self.make_room(time)?;
        let time = chain::stamp(time);
        let mac = key().as_ref().map(|key| chain::mac(key, self.volume, &self.series, &self.head, &time));
        let Some(mac) = mac else { return Ok(false) };
        self.write(&time, &Event::Checkpoint { mac })?;
        Ok(true)
    }

    /// Makes the lines durable.
    ///
    /// # Errors
    /// The store's.
    pub fn sync(&mut self) -> io::Result<()> {
        if let Some(file) = self.file.as_ref().filter(|_| self.unsynced) {
            file.sync(true)?;
            self.unsynced = false;
        }
        Ok(())
    }

    /// Whether there are lines that are not durable.
    pub fn is_unsynced(&self) -> bool {
        self.unsynced
    }

    /// Opens the last file and cuts off what a crash has left of a line; whether it can be written to.
    fn tidy_up(&mut self, found: &mut Found) -> bool {
        let tidied = read(&*self.dir, &self.name()).and_then(|bytes| {
            let file = self.dir.open_file(self.name().as_bytes(), true)?;
            let cut = torn(&bytes);
            self.len = bytes.len() as u64 - cut;
            if cut > 0 {
                file.set_len(StoredOffset(self.len))?;
                file.sync(true)?;
                found.notes.push(Event::Torn { file: self.name(), bytes: cut });
            }
            self.file = Some(file);
            Ok(())
        });
        if let Err(error) = &tidied {
            let what = super::event::clean(&error.to_string());
            found.notes.push(Event::Broken { file: self.name(), what });
        }
        tidied.is_ok()
    }

    fn name(&self) -> String {
        name(&self.series, self.number)
    }

    fn write(&mut self, time: &str, event: &Event) -> io::Result<()> {
        let (line, head) = self.head.line(time, event)?;
        let file = match &self.file {
            Some(file) => Arc::clone(file),
            None => {
                let file = self.dir.create_file(self.name().as_bytes(), 0o600)?;
                self.dir.sync()?;
                Arc::clone(self.file.insert(file))
            }
        };
        if self.untidy {
            file.set_len(StoredOffset(self.len))?;
            self.untidy = false;
        }
        if let Err(error) = file.write_at(&line, StoredOffset(self.len)) {
            // If it cannot be tidied up now, it is before the next line is written.
            self.untidy = file.set_len(StoredOffset(self.len)).is_err();
            return Err(error);
        }
        self.len += line.len() as u64;
        self.head = head;
        self.unsynced = true;
        Ok(())
    }

    /// Goes on to the next file if this one is full.
    fn make_room(&mut self, time: SystemTime) -> io::Result<()> {
        if self.len < self.limits.file_len {
            return Ok(());
        }
        self.sync()?;
        let next = self.dir.create_file(name(&self.series, self.number + 1).as_bytes(), 0o600)?;
        self.dir.sync()?;
        (self.number, self.file, self.len, self.untidy) = (self.number + 1, Some(next), 0, false);
        let Some(keep) = self.limits.keep else { return Ok(()) };
        let numbers = files(&*self.dir, &self.series)?;
        for old in &numbers[..numbers.len().saturating_sub(keep.max(2) as usize)] {
            let file = name(&self.series, *old);
            let last_seq = read(&*self.dir, &file).ok().and_then(|bytes| {
                let last = lines(&bytes).last().and_then(|(_, line)| Read::parse(line).ok());
                last.map(|line| line.seq)
            });
            self.write(&chain::stamp(time), &Event::Removed { file: file.clone(), last_seq: last_seq.unwrap_or(0) })?;
            self.sync()?;
            self.dir.unlink(file.as_bytes())?;
        }
        Ok(())
    }
}

/// The head at the end of a file's content, and what is wrong with its lines. Takes up what is of interest.
fn end_of(content: &[u8], found: &mut Found) -> (Head, Option<String>) {
    let (mut head, mut wrong) = (Head::default(), None);
    let (mut settings, mut last_event) = (None, None);
    for (at, line) in lines(content) {
        let read = Read::parse(line);
        let follows = read.as_ref().map_err(Clone::clone).and_then(|read| {
            // The first line of a file continues another one, which is not looked at here.
            if at == 0 { Ok(()) } else { head.follow(read).map(drop) }
        });
        if let Err(what) = follows {
            wrong = wrong.or(Some(format!("at byte {at}: {what}")));
        }
        let Ok(read) = read else {
            head.hash = *blake3::hash(line).as_bytes();
            continue;
        };
        head = Head { seq: read.seq, hash: read.hash };
        if read.event == "mount" {
            settings = serde_json::from_value(read.value["settings"].clone()).ok().or(settings);
        }
        if !matches!(read.event.as_str(), "checkpoint" | "torn" | "lost" | "broken" | "removed") {
            last_event = Some(read.event);
        }
    }
    found.settings = found.settings.take().or(settings);
    found.last_event = found.last_event.take().or(last_event);
    (head, wrong)
}

#[cfg(test)]
mod tests;
