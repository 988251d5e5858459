//! Changing the length, and making holes. In a committed file the stored bytes that are given up stay until the
//! change is committed: until then a crash brings the old version back, and it has to be whole.

use super::state::{Cut, Mode, State};
use super::write::MAX_OCCUPIED;
use super::{Error, File, Keys};
use crate::format::geometry::{EntryPlace, MAX_PLAIN_LEN};
use crate::format::tags::{CHILDREN_PER_BLOCK, ENTRIES_PER_HEADER, NO_BLOCK};
use crate::store::Seek;
use crate::units::{ChunkIndex, PlainOffset};

impl File {
    /// Cuts the file, or extends it with a hole.
    ///
    /// # Errors
    /// The store's, or [`Error::Damaged`] if the chunk that is cut cannot be opened.
    pub fn set_len(&self, len: PlainOffset) -> Result<(), Error> {
        if len.0 > MAX_PLAIN_LEN {
            return Err(Error::TooLong);
        }
        self.context.journal.check()?;
        let mut state = self.state.write();
        let keys = self.keys()?;
        let old = state.len();
        match len.cmp(&old) {
            std::cmp::Ordering::Equal => Ok(()),
            // What it left behind the end has to be cut off again, which the next commit does.
            std::cmp::Ordering::Greater => self.extend(&mut state, &keys, len).inspect_err(|_| state.changed = true),
            std::cmp::Ordering::Less => self.shorten(&mut state, &keys, len),
        }
    }

    fn extend(&self, state: &mut State, keys: &Keys, len: PlainOffset) -> Result<(), Error> {
        let geometry = self.context.geometry;
        let last = geometry.chunk_of(state.len());
        if geometry.len_of_chunk(last, state.len()) > 0 {
            self.lengthen(state, keys, last, geometry.len_of_chunk(last, len))?;
        }
        state.page.header_mut().len = len;
        state.changed = true;
        Ok(())
    }

    /// Everything that may fail comes first: a cut that is made by half would lose what lies behind it.
    fn shorten(&self, state: &mut State, keys: &Keys, len: PlainOffset) -> Result<(), Error> {
        let geometry = self.context.geometry;
        let old = state.len();
        let count = geometry.chunk_count(len);
        let rest = geometry.len_of_chunk(geometry.chunk_of(len), len);
        if count > 0 {
            self.load(state, keys, ChunkIndex(count - 1), ChunkIndex(count - 1))?;
        }
        let gone = self.load_parents_of_gone(state, keys, geometry.block_count(len), geometry.block_count(old))?;
        if rest > 0 && self.entry(state, ChunkIndex(count - 1)).is_some() {
            self.reseal(state, keys, ChunkIndex(count - 1), rest as usize)?;
        }
        self.clear_tags(state, count, old, &gone);
        let stored = geometry.stored_len(len);
        let chunks: Vec<u64> = state.pending.range(count..).map(|(chunk, _)| *chunk).collect();
        for chunk in chunks {
            state.take_pending(chunk);
        }
        state.occupied.retain(|chunk, _| *chunk < count);
        state.page.header_mut().len = len;
        state.changed = true;
        if state.mode == Mode::Fresh {
            self.store.set_len(stored)?;
        } else {
            state.voids.push((stored, geometry.stored_len(old).0 - stored.0));
            if state.cut.is_none_or(|cut| stored < cut.stored) {
                // The chunk that is cut in two belongs to what must not be written in place until then.
                state.cut = Some(Cut { chunk: geometry.chunk_of(len).0, stored });
            }
        }
        Ok(())
    }

    /// Brings those blocks into memory that stay and hold the MACs of blocks that go; returns those that go.
    fn load_parents_of_gone(
        &self,
        state: &mut State,
        keys: &Keys,
        blocks: u64,
        old_blocks: u64,
    ) -> Result<Vec<u64>, Error> {
        let mut gone = Vec::new();
        for above in 0..blocks {
            let first = above * CHILDREN_PER_BLOCK as u64 + 1;
            let children = first.max(blocks)..(first + CHILDREN_PER_BLOCK as u64).min(old_blocks);
            if first >= old_blocks {
                break;
            }
            if children.is_empty() || !self.exists(state, keys, above)? {
                continue;
            }
            self.load_block(state, keys, above)?;
            for child in children {
                if self.mac_of(state, keys, child)? != NO_BLOCK {
                    gone.push(child);
                }
            }
        }
        Ok(gone)
    }

    /// Clears the entries of all chunks from `count` on, and the MACs of the blocks that go. What is needed for it is
    /// in memory.
    fn clear_tags(&self, state: &mut State, count: u64, old: PlainOffset, gone: &[u64]) {
        let geometry = self.context.geometry;
        let old_count = geometry.chunk_count(old);
        for chunk in count..old_count.min(ENTRIES_PER_HEADER as u64) {
            self.clear_entry(state, ChunkIndex(chunk));
        }
        let blocks = geometry.block_count(geometry.chunk_start(ChunkIndex(count)));
        if blocks > 0 {
            let end = geometry.last_with_same_tags(ChunkIndex(count - 1)).0 + 1;
            for chunk in count..old_count.min(end) {
                self.clear_entry(state, ChunkIndex(chunk));
            }
        }
        state.blocks.retain(|block, _| *block < blocks);
        state.dirty.blocks.retain(|block| *block < blocks);
        state.dirty.new_blocks.retain(|block| *block < blocks);
        state.dirty.entries.retain(|chunk| match geometry.entry_place(ChunkIndex(*chunk)) {
            EntryPlace::Header(_) => true,
            EntryPlace::Block(block, _) => block < blocks,
        });
        if blocks == 0 {
            self.set_child(state, 0, &NO_BLOCK);
        }
        for child in gone {
            self.set_child(state, *child, &NO_BLOCK);
            state.dirty.cleared_children.insert(*child);
        }
    }

    /// Whether a block exists: in memory, or according to its parents.
    fn exists(&self, state: &mut State, keys: &Keys, block: u64) -> Result<bool, Error> {
        if state.blocks.contains_key(&block) {
            return Ok(true);
        }
        Ok(self.mac_of(state, keys, block)? != NO_BLOCK)
    }

    fn clear_entry(&self, state: &mut State, chunk: ChunkIndex) {
        if self.entry(state, chunk).is_some() {
            self.mark_occupied(state, chunk);
            self.set_entry(state, chunk, None);
        }
        state.take_pending(chunk.0);
    }

    /// Makes a hole: the range reads as zeros and its whole chunks take no space. The length stays.
    ///
    /// # Errors
    /// As for [`write`](Self::write).
    pub fn punch(&self, start: PlainOffset, end: PlainOffset) -> Result<(), Error> {
        let geometry = self.context.geometry;
        self.context.journal.check()?;
        let end = PlainOffset(end.0.min(self.len().0));
        if start >= end {
            return Ok(());
        }
        let first_whole = geometry.chunk_count(start);
        let at_end = end.0 == self.len().0;
        let last_whole = if at_end { geometry.chunk_count(end) } else { geometry.chunk_of(end).0 };
        if first_whole >= last_whole {
            return self.write_zeros(start, end);
        }
        self.write_zeros(start, geometry.chunk_start(ChunkIndex(first_whole)))?;
        self.write_zeros(geometry.chunk_start(ChunkIndex(last_whole)), end)?;
        let mut from = first_whole;
        while from < last_whole {
            // In pieces: so much can be remembered as given up, and each is committed by itself.
            let to = last_whole.min(from + MAX_OCCUPIED as u64 / 2);
            self.punch_chunks(from, to)?;
            if to < last_whole {
                self.commit()?;
            }
            from = to;
        }
        Ok(())
    }

    fn punch_chunks(&self, from: u64, to: u64) -> Result<(), Error> {
        let geometry = self.context.geometry;
        let mut state = self.state.write();
        let keys = self.keys()?;
        let state = &mut *state;
        let to = to.min(geometry.chunk_count(state.len()));
        let mut chunk = from;
        while chunk < to {
            let next = (geometry.last_with_same_tags(ChunkIndex(chunk)).0 + 1).min(to);
            self.load(state, &keys, ChunkIndex(chunk), ChunkIndex(chunk))?;
            let mut start = chunk;
            while let Some((from, to, occupied)) = self.next_run(state, start..next) {
                for chunk in from..to {
                    self.clear_entry(state, ChunkIndex(chunk));
                }
                let stored = geometry.stored_chunk(ChunkIndex(from));
                let last = ChunkIndex(to - 1);
                let len = geometry.stored_chunk(last).0 + geometry.len_of_chunk(last, state.len()) - stored.0;
                if occupied {
                    state.voids.push((stored, len));
                } else {
                    self.store.punch(stored, len)?;
                }
                start = to;
            }
            chunk = next;
        }
        Ok(())
    }

    /// The next chunks in a row that are not holes and whose places a crash could bring back, or all could not. Only
    /// the former are given up with the commit: in the place of the latter, or of a hole, something new may be
    /// written before that.
    fn next_run(&self, state: &State, range: std::ops::Range<u64>) -> Option<(u64, u64, bool)> {
        let exists = |chunk: u64| self.entry(state, ChunkIndex(chunk)).is_some();
        let occupied = |chunk: u64| state.mode == Mode::Committed && self.is_occupied(state, ChunkIndex(chunk));
        let from = range.clone().find(|chunk| exists(*chunk))?;
        let kind = occupied(from);
        let to = (from..range.end).find(|chunk| !exists(*chunk) || occupied(*chunk) != kind).unwrap_or(range.end);
        Some((from, to, kind))
    }

    /// Overwrites a range that exists with zeros, except where it is a hole already.
    fn write_zeros(&self, start: PlainOffset, end: PlainOffset) -> Result<(), Error> {
        let geometry = self.context.geometry;
        let mut at = start;
        while at < end {
            let chunk = geometry.chunk_of(at);
            let to = PlainOffset(end.0.min(geometry.chunk_start(chunk).0 + geometry.chunk_len()));
            if self.seek(at, Seek::Data)?.is_some_and(|data| data < to) {
                self.write(at, &vec![0; (to.0 - at.0) as usize])?;
            }
            at = to;
        }
        Ok(())
    }
}
