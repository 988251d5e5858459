//! What a volume was last known to be: its counter, and the newest header of each file. Kept where whoever can write to
//! the volume cannot, so that an old version of a file or of the volume is noticed. Depends on keys and the store.
//! Invariant: nothing gets in before it is durable in the volume, so no crash makes a volume look older than its ledger.
//!
//! `manual/format.md`, "The ledger", has the bytes and the reasons. A file of blocks that grows:
//! 1. what is new is appended and synced (a crash: some of the blocks are there. Each says something that is true);
//! 2. when most of it is out of date it is written anew, beside, and renamed over (a crash: the old one or the new one).

pub mod block;

use crate::crypto::{Secret32, random_id};
use crate::store::{StoreDir, StoreFile, replace_file};
use crate::units::{FileId, StoredOffset, VolumeId};
use block::{BLOCK, Block, ENTRIES, Identity, NoHeader, is_sealed};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::fmt;
use std::io;
use std::sync::Arc;

/// So many blocks beyond what is needed are let be: a mebibyte.
const SLACK: u64 = 2048;

/// What the volume as a whole was known to be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mark {
    /// Its counter.
    pub counter: u64,
    /// The generation of its record.
    pub record: u64,
    /// A rollback was seen, and nobody accepted it yet.
    pub suspect: bool,
}

impl Mark {
    fn join(self, other: Self) -> Self {
        Self {
            counter: self.counter.max(other.counter),
            record: self.record.max(other.record),
            suspect: self.suspect || other.suspect,
        }
    }
}

/// Which version of a header it is. A later one is greater.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// The file's epoch.
    pub epoch: u32,
    /// The header's generation.
    pub generation: u64,
    /// The first bytes of the header's MAC: of two versions with one number, a crash made one void.
    pub mac: [u8; 4],
}

impl Stamp {
    fn order(&self) -> (u32, u64) {
        (self.epoch, self.generation)
    }
}

/// What a file's header is, compared with what is known of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// Nothing was known of the file.
    New,
    /// It is the one that is known, or a later one.
    Current,
    /// An earlier one, or another one with the same number.
    Old,
}

/// Why there is no ledger.
#[derive(Debug)]
pub enum LedgerError {
    /// There is no file.
    Missing,
    /// It is that of another volume.
    OtherVolume(VolumeId),
    /// It was not written with this volume's key, or not all of it is there.
    Damaged(String),
    /// It cannot be read or written.
    Io(io::Error),
}

impl fmt::Display for LedgerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing => f.write_str("it is not there"),
            Self::OtherVolume(other) => write!(f, "it is of the volume {other}"),
            Self::Damaged(what) => write!(f, "it is damaged: {what}"),
            Self::Io(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for LedgerError {}

impl From<io::Error> for LedgerError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// Where a ledger is kept.
#[derive(Clone)]
pub struct Place {
    /// The directory.
    pub directory: Arc<dyn StoreDir>,
    /// The file's name in it.
    pub name: Vec<u8>,
}

/// The ledger of one volume.
pub struct Ledger {
    place: Place,
    /// Nothing is ever written.
    read_only: bool,
    /// What is older is reported, and taken nevertheless.
    lenient: bool,
    known: Mutex<Known>,
    /// Held while it is written.
    writer: Mutex<Writer>,
}

#[derive(Default)]
struct Known {
    mark: Mark,
    files: HashMap<FileId, Stamp>,
    /// What is not written yet.
    pending: HashMap<FileId, Option<Stamp>>,
    /// New files that are durable with the batch that goes with them.
    expected: HashMap<FileId, (u64, Stamp)>,
    error: Option<String>,
}

struct Writer {
    identity: Identity,
    /// `None`: it has to be written as a whole first.
    file: Option<Arc<dyn StoreFile>>,
    /// Blocks that are written and durable.
    blocks: u64,
    /// What the last of them says.
    written: Mark,
}

/// What is in the file of a ledger.
struct Contents {
    identity: Identity,
    known: Known,
    blocks: u64,
    /// Every block can be read.
    whole: bool,
}

impl Ledger {
    /// A ledger that knows nothing yet but what the volume is as a whole, in the place of the one that is there, if any. It is
    /// durable when this returns.
    ///
    /// # Errors
    /// The store's.
    pub fn create(place: Place, volume: VolumeId, key: &Secret32, mark: Mark) -> io::Result<Self> {
        let ledger = Self::of(place, volume, Known { mark, ..Known::default() });
        ledger.rewrite(&mut ledger.writer.lock(), key)?;
        Ok(ledger)
    }

    /// Reads the ledger of a volume.
    ///
    /// # Errors
    /// [`LedgerError`].
    pub fn open(place: Place, volume: VolumeId, key: &Secret32) -> Result<Self, LedgerError> {
        let contents = Contents::read(&place, volume, Some(key))?;
        let Contents { identity, known, blocks, whole } = contents;
        let written = known.mark;
        let ledger = Self::of(place, volume, known);
        {
            let mut writer = ledger.writer.lock();
            writer.identity = identity;
            writer.blocks = blocks;
            writer.written = written;
            // What a crash has left at its end must not lie between blocks that are whole.
            writer.file = if whole { ledger.place.directory.open_file(&ledger.place.name, true).ok() } else { None };
        }
        Ok(ledger)
    }

    /// What the ledger of a volume says, without the key: of the volume as a whole, and how many files it knows. Nothing of
    /// it is authentic.
    ///
    /// # Errors
    /// [`LedgerError`].
    pub fn peek(place: &Place, volume: VolumeId) -> Result<(Mark, u64), LedgerError> {
        let known = Contents::read(place, volume, None)?.known;
        Ok((known.mark, known.files.len() as u64))
    }

    fn of(place: Place, volume: VolumeId, known: Known) -> Self {
        let identity = Identity { volume, ledger: random_id() };
        let writer = Writer { identity, file: None, blocks: 0, written: Mark::default() };
        Self { place, read_only: false, lenient: false, known: Mutex::new(known), writer: Mutex::new(writer) }
    }

    /// The same, of which nothing is written.
    #[must_use]
    pub fn read_only(mut self) -> Self {
        self.read_only = true;
        self
    }

    /// The same, for a mount that goes on with what is older.
    #[must_use]
    pub fn lenient(mut self) -> Self {
        self.lenient = true;
        self
    }

    /// What it knows now, for a test that lets the power fail and goes on from there.
    #[cfg(test)]
    pub(crate) fn copy(&self) -> Self {
        let known = self.known.lock();
        let (files, pending) = (known.files.clone(), known.pending.clone());
        let copy = Known { mark: known.mark, files, pending, ..Known::default() };
        Self::of(self.place.clone(), self.writer.lock().identity.volume, copy)
    }

    /// Whether what is older is to be taken nevertheless.
    pub fn is_lenient(&self) -> bool {
        self.lenient
    }

    /// What is known of the volume as a whole.
    pub fn mark(&self) -> Mark {
        self.known.lock().mark
    }

    /// The counter that is durable in its file.
    pub fn durable_counter(&self) -> u64 {
        self.writer.lock().written.counter
    }

    /// How many files are known.
    pub fn files(&self) -> u64 {
        self.known.lock().files.len() as u64
    }

    /// Why the last attempt to write it failed.
    pub fn error(&self) -> Option<String> {
        self.known.lock().error.clone()
    }

    /// Notes that a rollback was seen and is not accepted, which every later mount is told.
    pub fn suspect(&self) {
        self.known.lock().mark.suspect = true;
    }

    /// Notes the generation of the volume's record, which is durable.
    pub fn note_record(&self, generation: u64) {
        let mut known = self.known.lock();
        known.mark.record = known.mark.record.max(generation);
    }

    /// Compares a file's header with what is known. One that is durable in the volume is known from now on.
    pub fn see(&self, file: FileId, stamp: Stamp, durable: bool) -> Seen {
        let mut known = self.known.lock();
        let seen = match known.files.get(&file) {
            None => Seen::New,
            Some(newest) if stamp == *newest => return Seen::Current,
            Some(newest) if stamp.order() > newest.order() => Seen::Current,
            Some(_) => return Seen::Old,
        };
        if durable && !self.read_only {
            known.put(file, stamp);
        }
        seen
    }

    /// Notes a header that is durable in the volume.
    pub fn note(&self, file: FileId, stamp: Stamp) {
        self.see(file, stamp, true);
    }

    /// Notes the header of a new file, which is durable as soon as this batch is committed.
    pub fn expect(&self, file: FileId, stamp: Stamp, batch: u64) {
        if !self.read_only {
            self.known.lock().expected.insert(file, (batch, stamp));
        }
    }

    /// Everything of this batch, and of those before, is durable.
    pub fn committed(&self, batch: u64) {
        let expected = std::mem::take(&mut self.known.lock().expected);
        for (file, (of, stamp)) in expected {
            if of <= batch {
                self.note(file, stamp);
            } else {
                // Unless it was settled once more meanwhile.
                self.known.lock().expected.entry(file).or_insert((of, stamp));
            }
        }
    }

    /// Notes that a file was removed: what else has its id later is a file that nothing is known of.
    pub fn forget(&self, file: FileId) -> bool {
        let mut known = self.known.lock();
        known.expected.remove(&file);
        let was_known = known.files.remove(&file).is_some();
        if was_known && !self.read_only {
            known.pending.insert(file, None);
        }
        was_known
    }

    /// Writes what is new, with the volume's counter, which is durable in the volume. Durable when it returns.
    ///
    /// # Errors
    /// The store's; then it is tried again with the next call.
    pub fn flush(&self, key: &Secret32, counter: u64) -> io::Result<()> {
        if self.read_only {
            return Ok(());
        }
        let mut writer = self.writer.lock();
        let (pending, upto, files) = {
            let mut known = self.known.lock();
            known.mark.counter = known.mark.counter.max(counter);
            let upto = known.mark;
            if known.pending.is_empty() && upto == writer.written && writer.file.is_some() {
                return Ok(());
            }
            (std::mem::take(&mut known.pending), upto, known.files.len())
        };
        let needed = files.div_ceil(ENTRIES) as u64;
        let result = if writer.file.is_none() || writer.blocks > 2 * needed + SLACK {
            self.rewrite(&mut writer, key)
        } else {
            writer.append(&pending, upto, key)
        };
        let mut known = self.known.lock();
        known.error = result.as_ref().err().map(ToString::to_string);
        if result.is_err() {
            for (file, stamp) in pending {
                known.pending.entry(file).or_insert(stamp);
            }
        }
        result
    }

    /// Writes all of it anew.
    fn rewrite(&self, writer: &mut Writer, key: &Secret32) -> io::Result<()> {
        let identity = Identity { ledger: random_id(), ..writer.identity };
        let mut bytes = identity.encode(key).to_vec();
        let upto = {
            let known = self.known.lock();
            let entries: Vec<_> = known.files.iter().map(|(file, stamp)| (*file, Some(*stamp))).collect();
            let mut parts: Vec<&[_]> = entries.chunks(ENTRIES).collect();
            if parts.is_empty() {
                parts.push(&[]);
            }
            // It has a name only when all of it is durable.
            let synced = 1 + parts.len() as u64;
            for part in parts {
                let number = (bytes.len() / BLOCK) as u64;
                let block = Block { mark: known.mark, synced, entries: part.to_vec() };
                bytes.extend_from_slice(&block.encode(&identity, number, key));
            }
            known.mark
        };
        let Place { directory, name } = &self.place;
        replace_file(&**directory, name, &bytes, 0o600)?;
        writer.file = Some(directory.open_file(name, true)?);
        writer.identity = identity;
        writer.blocks = (bytes.len() / BLOCK) as u64;
        writer.written = upto;
        Ok(())
    }
}

impl Writer {
    fn append(&mut self, pending: &HashMap<FileId, Option<Stamp>>, upto: Mark, key: &Secret32) -> io::Result<()> {
        let Some(file) = &self.file else { return Err(io::ErrorKind::NotFound.into()) };
        let entries: Vec<_> = pending.iter().map(|(file, stamp)| (*file, *stamp)).collect();
        let mut parts: Vec<&[_]> = entries.chunks(ENTRIES).collect();
        if parts.is_empty() {
            parts.push(&[]);
        }
        let mut bytes = Vec::with_capacity(parts.len() * BLOCK);
        for (number, part) in (self.blocks..).zip(parts) {
            let block = Block { mark: upto, synced: self.blocks, entries: part.to_vec() };
            bytes.extend_from_slice(&block.encode(&self.identity, number, key));
        }
        file.write_at(&bytes, StoredOffset(self.blocks * BLOCK as u64))?;
        file.sync(true)?;
        self.blocks += (bytes.len() / BLOCK) as u64;
        self.written = upto;
        Ok(())
    }
}

impl Known {
    fn put(&mut self, file: FileId, stamp: Stamp) {
        self.files.insert(file, stamp);
        self.pending.insert(file, Some(stamp));
    }

    fn take(&mut self, block: Block) {
        self.mark = self.mark.join(block.mark);
        for (file, stamp) in block.entries {
            match stamp {
                Some(stamp) => self.files.insert(file, stamp),
                None => self.files.remove(&file),
            };
        }
    }
}

impl Contents {
    fn read(place: &Place, volume: VolumeId, key: Option<&Secret32>) -> Result<Self, LedgerError> {
        let damaged = |what: &str| LedgerError::Damaged(what.to_owned());
        let file = match place.directory.open_file(&place.name, false) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(LedgerError::Missing),
            other => other?,
        };
        let len = usize::try_from(file.inode().stat()?.len.0).map_err(|_| damaged("it is too long"))?;
        let mut bytes = vec![0; len];
        let read = file.read_at(&mut bytes, StoredOffset(0))?;
        bytes.truncate(read);
        let (blocks, rest) = bytes.as_chunks::<BLOCK>();
        let first = blocks.first().ok_or_else(|| damaged("it is shorter than its first block"))?;
        let identity = Identity::decode(first).map_err(|error| match error {
            NoHeader::Malformed => damaged("it does not begin as a ledger does"),
            NoHeader::Version(version) => damaged(&format!("it has version {version}, which is not known")),
        })?;
        if identity.volume != volume {
            return Err(LedgerError::OtherVolume(identity.volume));
        }
        if key.is_some_and(|key| !is_sealed(first, &identity, 0, key)) {
            return Err(damaged("its first block was not written with this volume's key"));
        }
        let mut known = Known::default();
        let (mut gap, mut synced, mut taken) = (None, 1, 0_u64);
        for (number, bytes) in (0_u64..).zip(blocks).skip(1) {
            match Block::decode(bytes, &identity, number, key) {
                Some(block) => {
                    synced = synced.max(block.synced);
                    taken += 1;
                    known.take(block);
                }
                None => gap = gap.or(Some(number)),
            }
        }
        // It was written with a block at least; and what was durable when a later block was written cannot be torn.
        if taken == 0 || gap.is_some_and(|gap| gap < synced) || (blocks.len() as u64) < synced {
            let at = gap.unwrap_or(blocks.len() as u64);
            return Err(damaged(&format!("block {at} is not what was written there")));
        }
        let whole = gap.is_none() && rest.is_empty();
        Ok(Self { identity, known, blocks: blocks.len() as u64, whole })
    }
}

#[cfg(test)]
mod tests;
