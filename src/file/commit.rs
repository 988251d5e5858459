//! Making changes durable: the one place that decides in which order the parts of a file reach the disk.
//!
//! A fresh file ([`File::settle`]): chunks are in place; then tag blocks; then the header page with the number of
//! the batch in which it becomes valid. A crash before that batch is committed leaves an empty file, or all of it.
//!
//! A committed file ([`File::commit`]):
//! 1. take a snapshot of what changed (a crash: the committed version counts);
//! 2. sync what the snapshot relies on in place (a crash: the same);
//! 3. append header, tags and overwritten chunks to the journal as one record, and sync it: from here on the
//!    snapshot is committed (a crash: replayed);
//! 4. put the record's bytes in place (a crash: replayed).

use super::state::{Cut, Dirty, Mode, Sealed, State};
use super::{Error, File, Keys};
use crate::format::PAGE;
use crate::format::geometry::EntryPlace;
use crate::format::tags::{ENTRIES_PER_BLOCK, ENTRY_LEN, MAC_LEN, Parent, parent};
use crate::journal::{Appended, Content, Update, without_zeros};
use crate::store::{SetTime, StoreFile, Timestamp};
use crate::units::{ChunkIndex, StoredOffset};
use std::collections::HashMap;
use std::sync::Arc;

/// The parts of the header page that change with a commit, and where its tag entries begin.
const FIELDS: std::ops::Range<usize> = 0..128;
/// The wrapped secrets, and the DEK before, which change with a rewrap or a rekey only.
const WRAPS: std::ops::Range<usize> = 128..1504;
pub(super) const MAC: std::ops::Range<usize> = 1504..1536;
const ENTRIES_AT: usize = 1536;

/// A snapshot of what changed, on its way to the disk. To be finished with [`Batched::finish`].
#[must_use = "an unfinished commit loses what it took"]
pub struct Prepared {
    update: Update,
    dirty: Dirty,
    pending: HashMap<u64, Sealed>,
    occupied: HashMap<u64, bool>,
    cut: Option<Cut>,
    /// Something in place has to be synced before the journal may say so.
    needs_sync: bool,
}

impl File {
    /// Writes tags and header of a fresh file in place, so that it can be read as it is now; nothing is synced.
    /// Does nothing for a committed file.
    ///
    /// # Errors
    /// The store's.
    pub fn settle(&self) -> Result<(), Error> {
        let mut state = self.state.write();
        let keys = self.keys()?;
        self.settle_locked(&mut state, &keys, self.context.journal.batch()).map(drop)
    }

    /// The same, with this modification time from now on. Says whether the stored file has it already.
    ///
    /// # Errors
    /// The store's.
    pub fn settle_at(&self, mtime: Timestamp) -> Result<bool, Error> {
        let mut state = self.state.write();
        let keys = self.keys()?;
        state.mtime = Some(mtime);
        self.settle_locked(&mut state, &keys, self.context.journal.batch())
    }

    /// Says whether the stored file has the modification time that it should have, because it was written to.
    fn settle_locked(&self, state: &mut State, keys: &Keys, batch: u64) -> Result<bool, Error> {
        if state.mode != Mode::Fresh || !state.changed {
            return Ok(false);
        }
        for (chunk, sealed) in &state.pending {
            self.store.write_at(sealed, self.context.geometry.stored_chunk(ChunkIndex(*chunk)))?;
        }
        state.pending.clear();
        state.pending_bytes = 0;
        self.seal_blocks(state, keys)?;
        for block in &state.dirty.blocks {
            if let Some(bytes) = state.blocks.get(block) {
                self.store.write_at(bytes.bytes(), self.context.geometry.stored_block(*block))?;
            }
        }
        let expected = self.context.geometry.stored_len(state.len());
        let header = state.page.header_mut();
        header.generation += 1;
        header.batch = batch;
        self.store.write_at(state.page.seal(&keys.header_mac), StoredOffset(0))?;
        if self.store.inode().stat()?.len != expected {
            self.store.set_len(expected)?;
        }
        if let Some(ledger) = self.context.ledger.get() {
            ledger.expect(state.page.header().file, super::stamp(state), batch);
        }
        state.dirty = Dirty::default();
        state.changed = false;
        state.unsynced = true;
        Ok(self.keep_mtime(state))
    }

    /// Makes everything durable that was written before, and with `attributes` also the attributes.
    ///
    /// # Errors
    /// The store's and the journal's: what was not made durable stays in memory, and is tried again.
    pub fn sync(&self, attributes: bool) -> Result<(), Error> {
        let _one_at_a_time = self.committing.lock();
        let prepared = self.prepare(self.context.journal.batch())?;
        let (needs_sync, first) = {
            let mut state = self.state.write();
            let batch = state.page.header().batch;
            let first = batch != 0 && !self.context.journal.is_committed(batch);
            (std::mem::take(&mut state.unsynced), first)
        };
        let needs_sync = needs_sync || prepared.as_ref().is_some_and(|prepared| prepared.needs_sync);
        // A file of a batch that is not committed is synced whatever it looks like: the batch may be in the middle of it.
        if (needs_sync || attributes || first)
            && let Err(error) = self.store.sync(!(attributes || first))
        {
            self.state.write().unsynced = true;
            if let Some(prepared) = prepared {
                self.give_back(prepared);
            }
            return Err(error.into());
        }
        match prepared {
            Some(prepared) => self.finish_synced(prepared),
            None => {
                if needs_sync || attributes || first {
                    self.note_durable();
                }
                Ok(())
            }
        }
    }

    /// Lets a file that was found whole after a crash count as committed from now on, whatever batch it is of.
    ///
    /// # Errors
    /// As for [`sync`](Self::sync).
    pub fn confirm(&self) -> Result<(), Error> {
        let batch = self.state.read().page.header().batch;
        if batch != 0 && self.context.journal.crashed().contains(batch) {
            self.state.write().changed = true;
            return self.sync(false);
        }
        Ok(())
    }

    /// Commits what changed: durable when it returns. For a fresh file the same as [`sync`](Self::sync).
    ///
    /// # Errors
    /// As for [`sync`](Self::sync).
    pub fn commit(&self) -> Result<(), Error> {
        self.sync(false)
    }

    /// The first half of a commit, for many files at once: the caller makes everything in place durable next
    /// (`sync_all` of the store), and then calls [`Batched::finish`]. Until then nobody else is told that the file is
    /// durable. A new file becomes part of `batch`.
    ///
    /// # Errors
    /// The store's; then nothing has changed.
    pub fn prepare_batch(&self, batch: u64) -> Result<Batched<'_>, Error> {
        let guard = self.committing.lock();
        let prepared = self.prepare(batch)?;
        let unsynced = std::mem::take(&mut self.state.write().unsynced);
        Ok(Batched { file: self, prepared, unsynced, _one_at_a_time: guard })
    }

    /// Takes the snapshot. A fresh file is settled instead, and counts as committed from here on.
    fn prepare(&self, batch: u64) -> Result<Option<Prepared>, Error> {
        let mut state = self.state.write();
        let state = &mut *state;
        if state.mode == Mode::Fresh {
            let keys = self.keys()?;
            self.settle_locked(state, &keys, batch)?;
            state.mode = Mode::Committed;
            return Ok(None);
        }
        if !state.is_dirty() {
            return Ok(None);
        }
        self.context.journal.check()?;
        let keys = self.keys()?;
        self.seal_blocks(state, &keys)?;
        let header = state.page.header_mut();
        header.generation += 1;
        header.batch = 0;
        let page = *state.page.seal(&keys.header_mac);
        let mut writes: Vec<(StoredOffset, Content)> = Vec::new();
        writes.push((StoredOffset(FIELDS.start as u64), page[FIELDS].into()));
        if state.dirty.envelope {
            writes.push((StoredOffset(WRAPS.start as u64), page[WRAPS].into()));
        }
        writes.push((StoredOffset(MAC.start as u64), page[MAC].into()));
        self.tag_writes(state, &page, &mut writes);
        for (chunk, sealed) in &state.pending {
            writes.push((self.context.geometry.stored_chunk(ChunkIndex(*chunk)), Content::Bytes(Arc::clone(sealed))));
        }
        let stored_len = self.context.geometry.stored_len(state.len());
        let pending: HashMap<_, _> = std::mem::take(&mut state.pending).into_iter().collect();
        state.pending_bytes = 0;
        state.in_flight.extend(pending.iter().map(|(chunk, sealed)| (*chunk, Arc::clone(sealed))));
        let dirty = std::mem::take(&mut state.dirty);
        state.blocks_in_flight = dirty.blocks.iter().copied().collect();
        state.changed = false;
        state.underway = true;
        let occupied = std::mem::take(&mut state.occupied);
        // What the snapshot gives up stays occupied until the snapshot is what a crash brings back.
        state.occupied = occupied
            .iter()
            .filter(|(chunk, occupied)| {
                **occupied && self.entry_if_loaded(state, ChunkIndex(**chunk)).is_some_and(|hole| hole)
            })
            .map(|(chunk, _)| (*chunk, true))
            .collect();
        state.cut_in_flight = state.cut.take();
        Ok(Some(Prepared {
            update: Update { stored_len, writes, voids: std::mem::take(&mut state.voids) },
            dirty,
            pending,
            occupied,
            cut: state.cut_in_flight,
            needs_sync: std::mem::take(&mut state.unsynced),
        }))
    }

    /// Whether a chunk is a hole now, `None` if its tag block is not in memory: then it did not change.
    fn entry_if_loaded(&self, state: &State, chunk: ChunkIndex) -> Option<bool> {
        match self.context.geometry.entry_place(chunk) {
            EntryPlace::Header(number) => Some(state.page.entry(number).is_none()),
            EntryPlace::Block(block, number) => state.blocks.get(&block).map(|block| block.entry(number).is_none()),
        }
    }

    /// The changed tags, as few bytes as say it: whole blocks only where the block is new.
    fn tag_writes(&self, state: &State, page: &[u8; PAGE], writes: &mut Vec<(StoredOffset, Content)>) {
        let geometry = self.context.geometry;
        let whole = |block: &u64| state.dirty.new_blocks.contains(block);
        for (number, block) in
            state.dirty.new_blocks.iter().filter_map(|number| Some((number, state.blocks.get(number)?)))
        {
            writes.extend(without_zeros(geometry.stored_block(*number), block.bytes()));
        }
        for chunk in &state.dirty.entries {
            match geometry.entry_place(ChunkIndex(*chunk)) {
                EntryPlace::Header(number) => {
                    let at = ENTRIES_AT + number * ENTRY_LEN;
                    writes.push((StoredOffset(at as u64), page[at..at + ENTRY_LEN].into()));
                }
                EntryPlace::Block(number, _) if whole(&number) => (),
                EntryPlace::Block(number, entry) => {
                    let Some(block) = state.blocks.get(&number) else { continue };
                    let at = entry * ENTRY_LEN;
                    let stored = StoredOffset(geometry.stored_block(number).0 + at as u64);
                    writes.push((stored, block.bytes()[at..at + ENTRY_LEN].into()));
                }
            }
        }
        for number in state.dirty.blocks.union(&state.dirty.cleared_children) {
            if let Parent::Block(above, position) = parent(*number)
                && !whole(&above)
                && let Some(block) = state.blocks.get(&above)
            {
                let at = ENTRIES_PER_BLOCK * ENTRY_LEN + position * MAC_LEN;
                let stored = StoredOffset(geometry.stored_block(above).0 + at as u64);
                writes.push((stored, block.bytes()[at..at + MAC_LEN].into()));
            }
        }
    }

    /// Appends, syncs the journal, applies. What is in place was synced before.
    fn finish_synced(&self, prepared: Prepared) -> Result<(), Error> {
        match self.append(&prepared) {
            Ok(appended) => self.apply(prepared, appended),
            Err(error) => {
                self.give_back(prepared);
                Err(error)
            }
        }
    }

    fn append(&self, prepared: &Prepared) -> Result<Appended, Error> {
        let journal = &self.context.journal;
        let appended = journal.append(&self.target, &prepared.update)?;
        match journal.sync_appended(&appended) {
            Ok(()) => {
                self.note_durable();
                Ok(appended)
            }
            Err(error) => {
                journal.not_applied(appended, &error);
                Err(error.into())
            }
        }
    }

    /// What the stored file is written through.
    fn writer(&self) -> Arc<dyn StoreFile> {
        self.writer.lock().as_ref().map_or_else(|| Arc::clone(&self.store), Arc::clone)
    }

    /// Puts a durable record in place.
    fn apply(&self, prepared: Prepared, appended: Appended) -> Result<(), Error> {
        let update = &prepared.update;
        let store = self.writer();
        let placed = (|| {
            if let Some(cut) = prepared.cut {
                store.set_len(cut.stored)?;
            }
            for (offset, len) in &update.voids {
                store.punch(*offset, *len)?;
            }
            for (offset, bytes) in &update.writes {
                store.write_at(bytes, *offset)?;
            }
            Ok(())
        })();
        let mut state = self.state.write();
        let placed = placed.and_then(|()| {
            // Under the lock: others append in place, and what they wrote is not to be cut off. What lies behind that
            // is of a write that failed, or waits for the next commit to give it up.
            let len = store.inode().stat()?.len;
            let most = update.stored_len.max(self.context.geometry.stored_len(state.len()));
            if len < update.stored_len {
                store.set_len(update.stored_len)?;
            } else if len > most && state.cut.is_none() {
                store.set_len(most)?;
            }
            Ok(())
        });
        if let Err(error) = placed {
            self.context.journal.not_applied(appended, &error);
            return Err(error.into());
        }
        self.context.journal.applied(appended, self.target.ino, Some(&self.store));
        state.underway = false;
        state.blocks_in_flight.clear();
        state.in_flight.clear();
        state.cut_in_flight = None;
        // Given up by the snapshot, which is what a crash brings back now. What was given up once more meanwhile is
        // freed by the next commit: nothing may be written there before that.
        let free = if state.voids.is_empty() { prepared.occupied } else { HashMap::new() };
        for (chunk, _) in free.into_iter().filter(|(_, occupied)| *occupied) {
            if !state.pending.contains_key(&chunk) && self.entry_if_loaded(&state, ChunkIndex(chunk)) == Some(true) {
                state.occupied.remove(&chunk);
            }
        }
        self.keep_mtime(&state);
        Ok(())
    }

    /// Undoes what writing in place has done to the modification time, if that is known. Says whether it could; it is
    /// only a nicety, as the content is what it should be.
    fn keep_mtime(&self, state: &State) -> bool {
        state.mtime.is_some_and(|mtime| self.store.inode().set_times(SetTime::Keep, SetTime::At(mtime)).is_ok())
    }

    /// Puts a snapshot back that could not be made durable; newer changes stay on top.
    fn give_back(&self, prepared: Prepared) {
        let mut state = self.state.write();
        state.underway = false;
        state.in_flight.clear();
        state.blocks_in_flight.clear();
        state.cut_in_flight = None;
        let count = self.context.geometry.chunk_count(state.len());
        for (chunk, sealed) in prepared.pending {
            let gone = chunk >= count || self.entry_if_loaded(&state, ChunkIndex(chunk)) == Some(true);
            if !gone && !state.pending.contains_key(&chunk) {
                state.put_pending(chunk, sealed);
            }
        }
        state.dirty.entries.extend(prepared.dirty.entries);
        state.dirty.blocks.extend(prepared.dirty.blocks);
        state.dirty.new_blocks.extend(prepared.dirty.new_blocks);
        state.dirty.cleared_children.extend(prepared.dirty.cleared_children);
        state.dirty.envelope |= prepared.dirty.envelope;
        state.occupied.extend(prepared.occupied);
        state.cut = match (state.cut, prepared.cut) {
            (Some(a), Some(b)) => Some(if a.chunk < b.chunk { a } else { b }),
            (a, b) => a.or(b),
        };
        let newer = std::mem::take(&mut state.voids);
        state.voids = prepared.update.voids.into_iter().chain(newer).collect();
        state.unsynced |= prepared.needs_sync;
        state.changed = true;
    }
}

/// One of many files whose changes are made durable together.
pub struct Batched<'a> {
    file: &'a File,
    prepared: Option<Prepared>,
    unsynced: bool,
    _one_at_a_time: parking_lot::MutexGuard<'a, ()>,
}

impl Batched<'_> {
    /// The second half of a commit of many files that have little to commit, with one sync of the journal for all of
    /// them. What they rely on in place is synced first.
    ///
    /// # Errors
    /// The first of the journal's and the store's; what was not committed stays in memory, and is tried again.
    pub fn finish_all(batch: Vec<Self>) -> Result<(), Error> {
        let mut failed = None;
        let mut ready = Vec::new();
        for mut batched in batch {
            // Nothing has changed.
            let Some(prepared) = &batched.prepared else { continue };
            let relies = prepared.needs_sync || batched.unsynced;
            if relies && let Err(error) = batched.file.store.sync(true) {
                // It is given back as it is dropped.
                failed.get_or_insert(error.into());
                continue;
            }
            batched.unsynced = false;
            ready.push(batched);
        }
        let Some(journal) = ready.first().map(|batched| Arc::clone(&batched.file.context.journal)) else {
            return failed.map_or(Ok(()), Err);
        };
        let updates: Vec<_> = ready
            .iter()
            .filter_map(|batched| Some((&batched.file.target, &batched.prepared.as_ref()?.update)))
            .collect();
        let appended = journal.append_all(&updates)?;
        let synced = appended.last().map_or(Ok(()), |last| journal.sync_appended(last));
        for (mut batched, appended) in ready.into_iter().zip(appended) {
            match (&synced, batched.prepared.take()) {
                (Ok(()), Some(prepared)) => {
                    batched.file.note_durable();
                    failed = failed.or(batched.file.apply(prepared, appended).err());
                }
                (Ok(()), None) => journal.applied(appended, batched.file.target.ino, None),
                (Err(error), prepared) => {
                    batched.prepared = prepared;
                    journal.not_applied(appended, error);
                }
            }
        }
        synced?;
        failed.map_or(Ok(()), Err)
    }

    /// The second half of a commit, after everything in place was made durable.
    ///
    /// # Errors
    /// The journal's and the store's.
    pub fn finish(mut self) -> Result<(), Error> {
        self.unsynced = false;
        match self.prepared.take() {
            Some(prepared) => self.file.finish_synced(prepared),
            None => {
                self.file.note_durable();
                Ok(())
            }
        }
    }
}

impl Drop for Batched<'_> {
    fn drop(&mut self) {
        if let Some(prepared) = self.prepared.take() {
            self.file.give_back(prepared);
        }
        self.file.state.write().unsynced |= self.unsynced;
    }
}
