//! Writing: partial chunks are merged, every chunk is sealed anew, and goes where a crash cannot hurt what is
//! committed: in place where nothing committed lies, else to the chunks that wait for the journal.
//!
//! 1. what must not fail later is reserved (a crash: nothing has changed);
//! 2. sealed chunks are written where the committed tags see a hole (a crash: they are not seen);
//! 3. the tag entries and the length change in memory (a crash: the committed ones count).

use super::state::{Mode, State};
use super::{Error, File, Keys, SECTOR};
use crate::crypto::cipher::NonceAndTag;
use crate::format::geometry::MAX_PLAIN_LEN;
use crate::units::{ChunkIndex, PlainOffset, StoredOffset};
use std::cell::RefCell;
use std::sync::Arc;

/// When so much waits for the journal, the writer commits it itself: it must fit into one update.
pub(super) const MAX_PENDING: usize = 2 << 20;
/// So many chunks may be remembered as changed since the last commit.
pub(super) const MAX_OCCUPIED: usize = 64 << 10;
/// So many tag blocks may be new since the last commit, 12 MiB. In the update each takes what its entries take, and they
/// are at most [`MAX_OCCUPIED`].
const MAX_NEW_BLOCKS: usize = 1024;

/// Up to so many bytes at a time go through the journal even where nothing committed would be overwritten.
const SMALL: usize = 16 << 10;

thread_local! {
    /// Ciphertext on its way out.
    static SEALED: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// A run of neighbouring chunks that go in place, collected until something else comes.
struct Run<'a> {
    start: StoredOffset,
    sealed: &'a mut Vec<u8>,
    entries: Vec<(ChunkIndex, NonceAndTag)>,
}

impl File {
    /// Writes `data` at `offset`, extending the file if it ends before.
    ///
    /// # Errors
    /// The store's, or [`Error::Damaged`] if a chunk that is partly overwritten cannot be opened. What was readable
    /// before stays readable.
    pub fn write(&self, offset: PlainOffset, data: &[u8]) -> Result<(), Error> {
        if data.is_empty() {
            return Ok(());
        }
        let end = offset.0.checked_add(data.len() as u64).filter(|end| *end <= MAX_PLAIN_LEN).ok_or(Error::TooLong)?;
        self.context.journal.check()?;
        let full = {
            self.warm(offset, PlainOffset(end))?;
            let mut state = self.state.write();
            let keys = self.keys()?;
            let written = self.write_locked(&mut state, &keys, offset, PlainOffset(end), data);
            // What it left behind the end has to be cut off again, which the next commit does.
            written.inspect_err(|_| state.changed = true)?;
            state.pending_bytes >= MAX_PENDING
                || state.occupied.len() >= MAX_OCCUPIED
                || (state.mode == Mode::Committed && state.dirty.new_blocks.len() >= MAX_NEW_BLOCKS)
        };
        if full { self.commit() } else { Ok(()) }
    }

    /// Brings tag blocks that are going to be changed into the cache, while others may still read. What is damaged is found
    /// when it is needed.
    fn warm(&self, offset: PlainOffset, end: PlainOffset) -> Result<(), Error> {
        let (first, last) = self.chunks(offset, end);
        if self.blocks_of(first, last).is_empty() {
            return Ok(());
        }
        let (state, keys) = (self.state.read(), self.keys()?);
        let _ = self.fetch(&state, &keys, (first, last), || ());
        Ok(())
    }

    fn write_locked(
        &self,
        state: &mut State,
        keys: &Keys,
        offset: PlainOffset,
        end: PlainOffset,
        data: &[u8],
    ) -> Result<(), Error> {
        let geometry = self.context.geometry;
        let (first, last) = self.chunks(offset, end);
        self.prepare_growth(state, keys, first, end)?;
        self.load(state, keys, first, last)?;
        let mut chunk = first;
        while chunk <= last {
            self.reserve_blocks(state, keys, chunk)?;
            chunk = ChunkIndex(geometry.last_with_same_tags(chunk).0 + 1);
        }
        let new_len = PlainOffset(state.len().0.max(end.0));
        let sealer = keys.sealer(self.context.volume, state.page.header(), first, last.0 - first.0 + 1);
        // A little that is appended goes through the journal too: a sync then costs one sync of the journal, and not one
        // of the file, with its new length, besides.
        let small = state.mode == Mode::Committed && data.len() <= SMALL;
        SEALED.with_borrow_mut(|buffer| {
            buffer.clear();
            let mut run = Run { start: StoredOffset(0), sealed: buffer, entries: Vec::new() };
            for index in first.0..=last.0 {
                let chunk = ChunkIndex(index);
                let start = geometry.chunk_start(chunk).0;
                let len = geometry.len_of_chunk(chunk, new_len);
                let from = offset.0.max(start);
                let to = end.0.min(start + len);
                let piece = &data[(from - offset.0) as usize..(to - offset.0) as usize];
                let merged;
                let plain = if piece.len() as u64 == len {
                    piece
                } else {
                    let mut whole = self.whole_chunk(state, keys, chunk)?;
                    whole.resize(len as usize, 0);
                    whole[(from - start) as usize..(to - start) as usize].copy_from_slice(piece);
                    merged = whole;
                    &merged
                };
                let at = geometry.stored_chunk(chunk);
                let free = self.may_write_in_place(state, chunk);
                if free && small && self.entry(state, chunk).is_none() {
                    // Its place is taken now: when the journal has it, everything else was promised already.
                    self.store.write_at(&vec![0; plain.len()], at)?;
                }
                if free && !small {
                    if !run.entries.is_empty() && at.0 != run.start.0 + run.sealed.len() as u64 {
                        self.put_in_place(state, &mut run)?;
                    }
                    if run.entries.is_empty() {
                        run.start = at;
                    }
                    let begin = run.sealed.len();
                    run.sealed.resize(begin + plain.len(), 0);
                    let entry = sealer.seal(chunk, plain, &mut run.sealed[begin..]);
                    run.entries.push((chunk, entry));
                } else {
                    let mut sealed = vec![0; plain.len()];
                    let entry = sealer.seal(chunk, plain, &mut sealed);
                    self.mark_occupied(state, chunk);
                    state.put_pending(index, Arc::from(sealed));
                    self.set_entry(state, chunk, Some(&entry));
                    self.grow_to(state, PlainOffset(end.0.min(start + geometry.chunk_len())));
                }
            }
            self.put_in_place(state, &mut run)
        })?;
        self.grow_to(state, end);
        Ok(())
    }

    /// Whether the place of a chunk in the stored file holds nothing that is committed, nor anything that is on its
    /// way there through the journal.
    pub(super) fn may_write_in_place(&self, state: &State, chunk: ChunkIndex) -> bool {
        if state.waiting(chunk.0).is_some() {
            return false;
        }
        state.mode == Mode::Fresh || !self.is_occupied(state, chunk)
    }

    pub(super) fn is_occupied(&self, state: &State, chunk: ChunkIndex) -> bool {
        let cut = [state.cut, state.cut_in_flight].into_iter().flatten().any(|cut| chunk.0 >= cut.chunk);
        cut || state.occupied.get(&chunk.0).copied().unwrap_or_else(|| self.entry(state, chunk).is_some())
    }

    /// Remembers, before the entry of a chunk changes, whether its place holds committed bytes.
    pub(super) fn mark_occupied(&self, state: &mut State, chunk: ChunkIndex) {
        if state.mode == Mode::Committed {
            let occupied = self.is_occupied(state, chunk);
            state.occupied.insert(chunk.0, occupied);
        }
    }

    /// Writes a run and makes it part of the file. If it cannot be written, the chunks that it was going to overwrite,
    /// and may have destroyed, are kept in memory until they can.
    fn put_in_place(&self, state: &mut State, run: &mut Run<'_>) -> Result<(), Error> {
        if run.entries.is_empty() {
            return Ok(());
        }
        let written = self.store.write_at(run.sealed, run.start);
        state.unsynced = true;
        for (chunk, entry) in run.entries.drain(..) {
            if written.is_err() && self.entry(state, chunk).is_none() {
                continue;
            }
            self.mark_occupied(state, chunk);
            self.set_entry(state, chunk, Some(&entry));
            let at = (self.context.geometry.stored_chunk(chunk).0 - run.start.0) as usize;
            let len = (run.sealed.len() - at).min(self.context.geometry.chunk_len() as usize);
            if written.is_err() {
                state.put_pending(chunk.0, Arc::from(&run.sealed[at..at + len]));
            }
            self.grow_to(state, PlainOffset(self.context.geometry.chunk_start(chunk).0 + len as u64));
        }
        run.sealed.clear();
        Ok(written?)
    }

    fn grow_to(&self, state: &mut State, len: PlainOffset) {
        if len > state.len() {
            state.page.header_mut().len = len;
            state.changed = true;
        }
    }

    /// Makes the file ready to grow to `end` by a write that begins in `first`: the old last chunk becomes a whole
    /// one if it will not be written anyway, and what must not run out of space later is reserved now.
    fn prepare_growth(&self, state: &mut State, keys: &Keys, first: ChunkIndex, end: PlainOffset) -> Result<(), Error> {
        let geometry = self.context.geometry;
        let len = state.len();
        if end <= len {
            return Ok(());
        }
        let old_last = geometry.chunk_of(len);
        let rest = geometry.len_of_chunk(old_last, len);
        if rest > 0 && first > old_last {
            self.lengthen(state, keys, old_last, geometry.chunk_len())?;
        } else if rest > 0 {
            self.reserve_rest(state, old_last, rest, geometry.len_of_chunk(old_last, end))?;
        }
        Ok(())
    }

    /// A chunk that exists is going to be overwritten by a longer version: that must not fail half-way for want of
    /// space, so the blocks that it does not have yet, which may be as small as a sector, are filled with zeros first.
    fn reserve_rest(&self, state: &State, chunk: ChunkIndex, from: u64, to: u64) -> Result<(), Error> {
        let block = SECTOR as u64;
        let at = self.context.geometry.stored_chunk(chunk).0;
        let cut = [state.cut, state.cut_in_flight].into_iter().flatten().any(|cut| at + from >= cut.stored.0);
        if to.div_ceil(block) > from.div_ceil(block) && self.entry(state, chunk).is_some() && !cut {
            self.store.write_at(&vec![0; (to - from) as usize], StoredOffset(at + from))?;
        }
        Ok(())
    }

    /// Seals the last chunk, which is partial, anew with zeros up to `len`; a hole stays one. The file then ends
    /// with it.
    pub(super) fn lengthen(&self, state: &mut State, keys: &Keys, chunk: ChunkIndex, len: u64) -> Result<(), Error> {
        let geometry = self.context.geometry;
        self.load(state, keys, chunk, chunk)?;
        if self.entry(state, chunk).is_some() {
            self.reserve_rest(state, chunk, geometry.len_of_chunk(chunk, state.len()), len)?;
            self.reseal(state, keys, chunk, len as usize)?;
        }
        self.grow_to(state, PlainOffset(geometry.chunk_start(chunk).0 + len));
        Ok(())
    }

    /// Seals a chunk anew, cut or filled with zeros to this length. The caller changes the length of the file.
    pub(super) fn reseal(&self, state: &mut State, keys: &Keys, chunk: ChunkIndex, len: usize) -> Result<(), Error> {
        let mut plain = self.whole_chunk(state, keys, chunk)?;
        plain.resize(len, 0);
        let mut sealed = vec![0; len];
        let sealer = keys.sealer(self.context.volume, state.page.header(), chunk, 1);
        let entry = sealer.seal(chunk, &plain, &mut sealed);
        let at = self.context.geometry.stored_chunk(chunk);
        let placed = self.may_write_in_place(state, chunk) && {
            state.unsynced = true;
            // If it fails, the old version may be destroyed: the new one is kept until it can be written.
            self.store.write_at(&sealed, at).is_ok()
        };
        self.mark_occupied(state, chunk);
        if !placed {
            state.put_pending(chunk.0, Arc::from(sealed));
        }
        self.set_entry(state, chunk, Some(&entry));
        Ok(())
    }
}
