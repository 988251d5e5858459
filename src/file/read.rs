//! Reading: geometry, one positional read for all chunks of a request, and each chunk opened into the reply.

use super::keys::Layer;
use super::map::Fetched;
use super::state::State;
use super::{Damage, Error, File, Keys};
use crate::crypto::cipher::NonceAndTag;
use crate::store::Seek;
use crate::units::{ChunkIndex, PlainOffset};
use parking_lot::{RwLockReadGuard, RwLockWriteGuard};
use std::cell::RefCell;
use std::sync::Arc;

thread_local! {
    /// Ciphertext on its way in: kept, so that a read does not have to fault in fresh pages.
    static SEALED: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// So much is announced to the disk together with the tag blocks that it needs. Longer reads are of those who read on, and
/// the system reads ahead for them.
const MAX_AHEAD: u64 = 128 << 10;

/// How much of a thread's buffer is kept between reads.
const KEEP_BUFFER: usize = 2 << 20;

impl File {
    /// Reads up to `len` bytes at `offset` to the end of `out`; fewer only at the end of the file.
    ///
    /// # Errors
    /// [`Error::Damaged`] if anything of the range does not authenticate; then `out` is as it was.
    pub fn read(&self, offset: PlainOffset, len: usize, out: &mut Vec<u8>) -> Result<(), Error> {
        let state = self.state.read();
        let keys = self.keys()?;
        let end = offset.0.saturating_add(len as u64).min(state.len().0);
        if offset.0 >= end {
            return Ok(());
        }
        let (first, last) = self.chunks(offset, PlainOffset(end));
        let fetched = self.fetch(&state, &keys, (first, last), || self.announce(first, last))?;
        let before = out.len();
        let result = self.open_range(&state, &keys, &fetched, offset, PlainOffset(end), out);
        if result.is_err() {
            out.truncate(before);
        }
        result
    }

    /// Tells the disk that these chunks are going to be read.
    fn announce(&self, first: ChunkIndex, last: ChunkIndex) {
        let (start, end) = (self.context.geometry.stored_chunk(first), self.context.geometry.stored_chunk(last));
        if end.0 - start.0 < MAX_AHEAD {
            self.store.will_read(start, end.0 - start.0 + self.context.geometry.chunk_len());
        }
    }

    /// The first and the last chunk of a range that is not empty.
    pub(super) fn chunks(&self, start: PlainOffset, end: PlainOffset) -> (ChunkIndex, ChunkIndex) {
        (self.context.geometry.chunk_of(start), self.context.geometry.chunk_of(PlainOffset(end.0 - 1)))
    }

    /// A state in which the tag blocks of these chunks are in memory, and the keys that it goes with.
    fn loaded<'a>(
        &'a self,
        (state, keys): (RwLockReadGuard<'a, State>, Arc<Keys>),
        first: ChunkIndex,
        last: ChunkIndex,
    ) -> Result<(RwLockReadGuard<'a, State>, Arc<Keys>), Error> {
        if self.is_loaded(&state, first, last) {
            return Ok((state, keys));
        }
        drop(state);
        let mut state = self.state.write();
        // The file may have got others.
        let keys = self.keys()?;
        if self.context.geometry.chunk_count(state.len()) > first.0 {
            self.load(&mut state, &keys, first, last)?;
        }
        Ok((RwLockWriteGuard::downgrade(state), keys))
    }

    pub(super) fn open_range(
        &self,
        state: &State,
        keys: &Keys,
        fetched: &Fetched,
        start: PlainOffset,
        end: PlainOffset,
        out: &mut Vec<u8>,
    ) -> Result<(), Error> {
        let geometry = self.context.geometry;
        let (first, last) = self.chunks(start, end);
        let base = out.len();
        out.resize(base + (end.0 - start.0) as usize, 0);
        SEALED.with_borrow_mut(|sealed| {
            let (stored_from, read) = self.read_stored(state, fetched, first, last, sealed)?;
            for index in first.0..=last.0 {
                let chunk = ChunkIndex(index);
                let Some(entry) = self.entry_with(state, fetched, chunk) else { continue };
                let chunk_start = geometry.chunk_start(chunk).0;
                let chunk_len = geometry.len_of_chunk(chunk, state.len()) as usize;
                let bytes = match state.waiting(index) {
                    Some(waiting) => waiting,
                    None => {
                        let at = (geometry.stored_chunk(chunk).0 - stored_from) as usize;
                        sealed[..read].get(at..at + chunk_len).ok_or(Damage::Chunk(chunk))?
                    }
                };
                let layer = keys.of_chunk(state.page.header(), chunk);
                let from = start.0.max(chunk_start);
                let to = end.0.min(chunk_start + chunk_len as u64);
                let plain = &mut out[base + (from - start.0) as usize..base + (to - start.0) as usize];
                if plain.len() == chunk_len {
                    self.open_chunk(layer, chunk, &entry, bytes, plain)?;
                } else {
                    let mut whole = zeroize::Zeroizing::new(vec![0; chunk_len]);
                    self.open_chunk(layer, chunk, &entry, bytes, &mut whole)?;
                    plain.copy_from_slice(&whole[(from - chunk_start) as usize..(to - chunk_start) as usize]);
                }
            }
            if sealed.len() > KEEP_BUFFER {
                *sealed = Vec::new();
            }
            Ok(())
        })
    }

    /// Reads the stored bytes from the first to the last of these chunks that is in place, tag blocks between them
    /// included; returns where they begin and how many bytes there were.
    fn read_stored(
        &self,
        state: &State,
        fetched: &Fetched,
        first: ChunkIndex,
        last: ChunkIndex,
        sealed: &mut Vec<u8>,
    ) -> Result<(u64, usize), Error> {
        let geometry = self.context.geometry;
        let in_place = |index: &u64| {
            state.waiting(*index).is_none() && self.entry_with(state, fetched, ChunkIndex(*index)).is_some()
        };
        let (Some(from), Some(to)) = ((first.0..=last.0).find(in_place), (first.0..=last.0).rfind(in_place)) else {
            return Ok((0, 0));
        };
        let start = geometry.stored_chunk(ChunkIndex(from));
        let end = geometry.stored_chunk(ChunkIndex(to)).0 + geometry.len_of_chunk(ChunkIndex(to), state.len());
        let len = (end - start.0) as usize;
        if sealed.len() < len {
            sealed.resize(len, 0);
        }
        let read = self.store.read_at(&mut sealed[..len], start)?;
        Ok((start.0, read))
    }

    fn open_chunk(
        &self,
        layer: &Layer,
        chunk: ChunkIndex,
        entry: &NonceAndTag,
        sealed: &[u8],
        plain: &mut [u8],
    ) -> Result<(), Error> {
        if sealed.len() != plain.len() {
            return Err(Damage::Chunk(chunk).into());
        }
        let of = (self.context.volume, self.target.file);
        layer.open(of, chunk, entry, sealed, plain).map_err(|_| Damage::Chunk(chunk).into())
    }

    /// The plaintext of one whole chunk as it is now: zeros for a hole.
    pub(super) fn whole_chunk(
        &self,
        state: &State,
        keys: &Keys,
        chunk: ChunkIndex,
    ) -> Result<zeroize::Zeroizing<Vec<u8>>, Error> {
        let geometry = self.context.geometry;
        let start = geometry.chunk_start(chunk);
        let len = geometry.len_of_chunk(chunk, state.len());
        let mut plain = zeroize::Zeroizing::new(Vec::with_capacity(geometry.chunk_len() as usize));
        if len > 0 {
            self.open_range(state, keys, &Fetched::new(), start, PlainOffset(start.0 + len), &mut plain)?;
        }
        Ok(plain)
    }

    /// Opens every chunk of the file once.
    ///
    /// # Errors
    /// [`Error::Damaged`] for the first that does not authenticate.
    pub fn check_all(&self) -> Result<(), Error> {
        let len = self.len().0;
        let step = (1 << 20_u64).max(self.context.geometry.chunk_len());
        let mut plain = zeroize::Zeroizing::new(Vec::new());
        let mut at = 0;
        while at < len {
            plain.clear();
            self.read(PlainOffset(at), step as usize, &mut plain)?;
            at += step;
        }
        Ok(())
    }

    /// The next byte at or after `offset` that is data or a hole, in chunks; `None` at or behind the end.
    ///
    /// # Errors
    /// Those of reading tag blocks.
    pub fn seek(&self, offset: PlainOffset, what: Seek) -> Result<Option<PlainOffset>, Error> {
        let mut at = offset;
        loop {
            let state = self.state.read();
            let keys = self.keys()?;
            let count = self.context.geometry.chunk_count(state.len());
            let first = self.context.geometry.chunk_of(at);
            if at.0 >= state.len().0 {
                return Ok((what == Seek::Hole && offset.0 < state.len().0).then_some(state.len()));
            }
            let (state, _) = self.loaded((state, keys), first, first)?;
            let same_tags = self.context.geometry.last_with_same_tags(first).0;
            let wanted = |chunk: &u64| self.entry(&state, ChunkIndex(*chunk)).is_some() == (what == Seek::Data);
            match (first.0..=same_tags.min(count - 1)).find(wanted) {
                Some(chunk) if chunk == first.0 => return Ok(Some(at)),
                Some(chunk) => return Ok(Some(self.context.geometry.chunk_start(ChunkIndex(chunk)))),
                None => {
                    let last = if what == Seek::Data { self.last_of_hole(&state, first).0 } else { same_tags };
                    at = self.context.geometry.chunk_start(ChunkIndex(last.saturating_add(1).min(count)));
                }
            }
        }
    }
}
