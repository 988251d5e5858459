//! A new DEK for a file that may be in use: its chunks are sealed again, some at a time, and everybody who reads or
//! writes meanwhile uses the key that holds for the place.
//!
//! 1. the header gets the new envelope and epoch, and the DEK before, sealed by the new one, for all chunks that there
//!    are; what is appended from here on is sealed by the new one (a crash: the old header, or this one);
//! 2. some chunks are sealed again, and the watermark moves behind them (a crash: both, or neither: it is one commit);
//! 3. with the last of them the DEK before leaves the header (a crash: the same).
//!
//! Each step changes what is in memory, with the state's lock held; any commit that follows, whoever makes it, takes all
//! of it along. So a file that fits into one step is never seen in between.

use super::map::Fetched;
use super::state::{Mode, State};
use super::{Error, File, Keys};
use crate::crypto::derive::Dek;
use crate::format::geometry::EntryPlace;
use crate::format::header::{Envelope, Resealing};
use crate::format::tags::NO_BLOCK;
use crate::store::StoreFile;
use crate::units::{ChunkIndex, Epoch, PlainOffset};
use std::sync::Arc;

/// So many runs of chunks, or of holes, are passed in one step at the most.
const MOST_RUNS: usize = 512;

/// A key for a file, and what its header says of it.
pub struct NewKey {
    /// The key.
    pub dek: Dek,
    /// Its epoch, beyond that of the file.
    pub epoch: Epoch,
    /// Its wrapped envelope.
    pub envelope: Envelope,
    /// The same for recovery, if the volume has a KEK for that.
    pub recovery: Option<Envelope>,
    /// Now, in seconds since 1970.
    pub made: u64,
}

/// What came of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stepped {
    /// How many bytes were sealed again.
    pub bytes: u64,
    /// Nothing is left that the key before holds for.
    pub done: bool,
}

impl File {
    /// Whether some chunks are sealed by the key before.
    pub fn is_resealing(&self) -> bool {
        self.state.read().page.header().resealing.is_some()
    }

    /// The stored file is written through this from here on: what it was opened through may not be writable.
    pub fn write_through(&self, writer: Arc<dyn StoreFile>) {
        *self.writer.lock() = Some(writer);
    }

    /// Takes a new key. Nothing happens if the file is between two keys, or has one of this epoch or a later one. A new file
    /// is made durable first.
    ///
    /// # Errors
    /// [`Error::Locked`]; the store's.
    pub fn begin_rekey(&self, new: NewKey) -> Result<(), Error> {
        if self.is_fresh() {
            // In place, a crash would leave some chunks of each key and nothing that says which.
            self.sync(false)?;
        }
        let mut state = self.state.write();
        let before = self.keys()?;
        let header = state.page.header();
        if header.resealing.is_some() || header.epoch >= new.epoch {
            return Ok(());
        }
        let of = (self.context.volume, header.file);
        let (keys, sealed) = Keys::after(&before, new.dek, new.epoch, of).map_err(|_| Error::Locked)?;
        let to = self.context.geometry.chunk_count(state.len());
        let (epoch, has_chunks) = (header.epoch, to > 0);
        let header = state.page.header_mut();
        header.epoch = new.epoch;
        header.envelope = new.envelope;
        header.recovery = new.recovery;
        header.made = new.made;
        header.resealing = has_chunks.then(|| Box::new(Resealing { from: 0, to, epoch, sealed }));
        state.dirty.envelope = true;
        state.changed = true;
        *self.keys.write() = Some(Arc::new(keys));
        Ok(())
    }

    /// Seals about so many bytes again, at least a chunk; others wait that long. What it did reaches the disk with the next
    /// commit, which the caller makes: it must fit into one update.
    ///
    /// # Errors
    /// [`Error::Damaged`] for a chunk that cannot be opened; what came before it is done. [`Error::Locked`]; the store's.
    pub fn rekey_step(&self, most: u64) -> Result<Stepped, Error> {
        self.context.journal.check()?;
        let mut state = self.state.write();
        let keys = self.keys()?;
        let state = &mut *state;
        let Some(resealing) = state.page.header().resealing.clone() else {
            return Ok(Stepped { bytes: 0, done: true });
        };
        debug_assert_eq!(state.mode, Mode::Committed);
        let (mut chunk, mut bytes) = (resealing.from, 0);
        let end = resealing.to.min(self.context.geometry.chunk_count(state.len()));
        for _ in 0..MOST_RUNS {
            if chunk >= end || bytes >= most {
                break;
            }
            let (next, sealed) = self.reseal_run(state, &keys, chunk, end, most - bytes)?;
            (chunk, bytes) = (next, bytes + sealed);
        }
        let done = chunk >= end;
        if done {
            state.page.header_mut().resealing = None;
            state.dirty.envelope = true;
            state.changed = true;
            *self.keys.write() = Some(Arc::new(keys.alone().map_err(|_| Error::Locked)?));
        }
        Ok(Stepped { bytes, done })
    }

    /// Seals the chunks again that follow each other from this one on, or passes the holes that do, and moves the
    /// watermark; returns where it is then, and how many bytes were sealed. One tag block at a time.
    fn reseal_run(&self, state: &mut State, keys: &Keys, from: u64, end: u64, most: u64) -> Result<(u64, u64), Error> {
        let geometry = self.context.geometry;
        let first = ChunkIndex(from);
        self.load(state, keys, first, first)?;
        if let EntryPlace::Block(block, _) = geometry.entry_place(first)
            && self.mac_of(state, keys, block)? != NO_BLOCK
        {
            // Its MAC is made by the new key from here on, whether or not an entry changes.
            state.dirty.blocks.insert(block);
        }
        let exists = |state: &State, chunk: u64| self.entry(state, ChunkIndex(chunk)).is_some();
        let same_tags = end.min(geometry.last_with_same_tags(first).0 + 1);
        if !exists(state, from) {
            let next = match (from..same_tags).find(|chunk| exists(state, *chunk)) {
                Some(next) => next,
                None => end.min(self.last_of_hole(state, first).0.saturating_add(1)),
            };
            self.move_watermark(state, next);
            return Ok((next, 0));
        }
        let most = same_tags.min(from + (most / geometry.chunk_len()).max(1));
        let next = (from..most).find(|chunk| !exists(state, *chunk)).unwrap_or(most);
        let start = geometry.chunk_start(first);
        let last = ChunkIndex(next - 1);
        let stop = PlainOffset(geometry.chunk_start(last).0 + geometry.len_of_chunk(last, state.len()));
        let mut plain = zeroize::Zeroizing::new(Vec::with_capacity((stop.0 - start.0) as usize));
        self.open_range(state, keys, &Fetched::new(), start, stop, &mut plain)?;
        // Nothing fails from here on.
        self.move_watermark(state, next);
        let sealer = keys.sealer(self.context.volume, state.page.header(), first, next - from);
        for (chunk, piece) in (from..next).zip(plain.chunks(geometry.chunk_len() as usize)) {
            let mut sealed = vec![0; piece.len()];
            let entry = sealer.seal(ChunkIndex(chunk), piece, &mut sealed);
            self.mark_occupied(state, ChunkIndex(chunk));
            state.put_pending(chunk, Arc::from(sealed));
            self.set_entry(state, ChunkIndex(chunk), Some(&entry));
        }
        Ok((next, plain.len() as u64))
    }

    fn move_watermark(&self, state: &mut State, to: u64) {
        if let Some(resealing) = &mut state.page.header_mut().resealing {
            resealing.from = to;
        }
        state.changed = true;
    }
}
