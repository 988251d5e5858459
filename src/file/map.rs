//! From a chunk to its tag entry: in the header page or in a tag block, which is read and verified up to the header
//! when it is needed for the first time.

use super::state::{Dirty, State};
use super::{Damage, Error, File, Keys};
use crate::crypto::cipher::NonceAndTag;
use crate::format::geometry::EntryPlace;
use crate::format::tags::{BLOCK_LEN, CHILDREN_PER_BLOCK, Mac, NO_BLOCK, Parent, TagBlock, parent};
use crate::units::ChunkIndex;
use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;

/// How many tag blocks of a file are kept because it is written to, 6 MiB: with 4 KiB chunks they cover 512 MiB of it.
const MAX_CACHED_BLOCKS: usize = 512;

impl Dirty {
    /// Whether a block or one below it has changed. Until changes are sealed they are not seen from above.
    fn reach_below(&self, block: u64) -> bool {
        let children = CHILDREN_PER_BLOCK as u64;
        let greatest = self.blocks.last().max(self.new_blocks.last());
        let (mut first, mut last) = (block, block);
        while greatest.is_some_and(|greatest| *greatest >= first) {
            let reaches = |blocks: &BTreeSet<u64>| blocks.range(first..=last).next().is_some();
            if reaches(&self.blocks) || reaches(&self.new_blocks) {
                return true;
            }
            first = first.saturating_mul(children).saturating_add(1);
            last = last.saturating_mul(children).saturating_add(children);
        }
        false
    }
}

/// Tag blocks that a reader needs and that are not in the state of the file, by their numbers. Those that do not exist are
/// not there.
pub(super) type Fetched = Vec<(u64, Arc<TagBlock>)>;

/// The MAC that the header, or the block above, holds for a block; `None` if that one is not in memory.
fn known_mac(state: &State, block: u64) -> Option<Mac> {
    let Parent::Block(above, position) = parent(block) else { return Some(state.page.header().root) };
    Some(state.blocks.get(&above)?.child(position))
}

/// The last of the blocks that are so many levels below a block.
fn last_below(block: u64, levels: u32) -> u64 {
    let children = CHILDREN_PER_BLOCK as u64;
    (0..levels).fold(block, |last, _| last.saturating_mul(children).saturating_add(children))
}

impl File {
    /// The last chunk on the level of this one that cannot be opened without the tag block `damaged`, as this one cannot.
    pub(super) fn last_without(&self, damaged: u64, chunk: ChunkIndex) -> ChunkIndex {
        let geometry = self.context.geometry;
        let EntryPlace::Block(block, _) = geometry.entry_place(chunk) else {
            return geometry.last_with_same_tags(chunk);
        };
        let (mut top, mut height) = (block, 0);
        while top > damaged
            && let Parent::Block(above, _) = parent(top)
        {
            (top, height) = (above, height + 1);
        }
        geometry.last_of_block(if top == damaged { last_below(top, height) } else { block })
    }

    /// The entry of a chunk, `None` for a hole. Only if the tag block is in memory; [`load`](Self::load) sees to it.
    pub(super) fn entry(&self, state: &State, chunk: ChunkIndex) -> Option<NonceAndTag> {
        match self.context.geometry.entry_place(chunk) {
            EntryPlace::Header(number) => state.page.entry(number),
            EntryPlace::Block(block, number) => state.blocks.get(&block).and_then(|block| block.entry(number)),
        }
    }

    /// The same for a reader, who has fetched what is not in the state.
    pub(super) fn entry_with(&self, state: &State, fetched: &Fetched, chunk: ChunkIndex) -> Option<NonceAndTag> {
        if !fetched.is_empty()
            && let EntryPlace::Block(block, number) = self.context.geometry.entry_place(chunk)
            && let Some((_, block)) = fetched.iter().find(|(fetched, _)| *fetched == block)
        {
            return block.entry(number);
        }
        self.entry(state, chunk)
    }

    /// The tag blocks of these chunks; none if all their entries are in the header page.
    pub(super) fn blocks_of(&self, first: ChunkIndex, last: ChunkIndex) -> Range<u64> {
        // A block that covers a chunk, or 0, and how many blocks begin before that chunk ends.
        let place = |chunk| match self.context.geometry.entry_place(chunk) {
            EntryPlace::Header(_) => (0, 0),
            EntryPlace::Block(block, _) => (block, block + 1),
        };
        place(first).0..place(last).1
    }

    /// Whether the tag blocks of these chunks are in memory.
    pub(super) fn is_loaded(&self, state: &State, first: ChunkIndex, last: ChunkIndex) -> bool {
        self.blocks_of(first, last).all(|block| state.blocks.contains_key(&block))
    }

    /// Reads and verifies the tag blocks of these chunks.
    pub(super) fn load(
        &self,
        state: &mut State,
        keys: &Keys,
        first: ChunkIndex,
        last: ChunkIndex,
    ) -> Result<(), Error> {
        let blocks = self.blocks_of(first, last);
        self.evict(state, &blocks);
        for block in blocks {
            self.load_block(state, keys, block)?;
        }
        Ok(())
    }

    /// The tag blocks of these chunks that are not in the state. Who needs only to look does not need the lock that it
    /// takes to change the state, and nobody waits for the disk to answer another one. `announce` is told when something
    /// has to be read: where it lies does not depend on what was read before, so the disk can do all of it at once.
    pub(super) fn fetch(
        &self,
        state: &State,
        keys: &Keys,
        (first, last): (ChunkIndex, ChunkIndex),
        announce: impl Fn(),
    ) -> Result<Fetched, Error> {
        let mut fetched = Vec::new();
        for number in self.blocks_of(first, last) {
            if !state.blocks.contains_key(&number)
                && let Some(block) = self.fetch_block(state, keys, number, &announce)?
            {
                fetched.push((number, block));
            }
        }
        Ok(fetched)
    }

    /// A block that is not in the state, `None` if it does not exist. Those above it are brought into the cache first.
    fn fetch_block(
        &self,
        state: &State,
        keys: &Keys,
        block: u64,
        announce: &impl Fn(),
    ) -> Result<Option<Arc<TagBlock>>, Error> {
        let (geometry, cache, file) = (self.context.geometry, &self.context.tags, self.opened);
        let mut missing = vec![block];
        while let Some(Parent::Block(above, _)) = missing.last().map(|lowest| parent(*lowest))
            && !state.blocks.contains_key(&above)
        {
            missing.push(above);
        }
        let mut found: Option<Arc<TagBlock>> = None;
        let mut announced = false;
        while let Some(number) = missing.pop() {
            let expected = match (&found, parent(number)) {
                (Some(above), Parent::Block(_, position)) => above.child(position),
                // The way up has ended here, because this is known.
                _ => known_mac(state, number).ok_or(Damage::TagBlock(number))?,
            };
            // What is not there has nothing below it either.
            if expected == NO_BLOCK {
                return Ok(None);
            }
            let cached = cache.get(file, number, &expected);
            if cached.is_none() && !std::mem::replace(&mut announced, true) {
                announce();
                for below in &missing {
                    self.store.will_read(geometry.stored_block(*below), BLOCK_LEN as u64);
                }
            }
            found = Some(match cached {
                Some(block) => block,
                None => {
                    let block = Arc::new(self.read_block(state, keys, number, &expected)?);
                    cache.put(file, number, expected, Arc::clone(&block));
                    block
                }
            });
        }
        Ok(found)
    }

    pub(super) fn load_block(&self, state: &mut State, keys: &Keys, block: u64) -> Result<(), Error> {
        if state.blocks.contains_key(&block) {
            return Ok(());
        }
        let expected = self.mac_of(state, keys, block)?;
        let loaded = if expected == NO_BLOCK {
            TagBlock::empty()
        } else if let Some(cached) = self.context.tags.take(self.opened, block, &expected) {
            cached
        } else {
            self.read_block(state, keys, block, &expected)?
        };
        state.blocks.insert(block, loaded);
        Ok(())
    }

    fn read_block(&self, state: &State, keys: &Keys, block: u64, expected: &Mac) -> Result<TagBlock, Error> {
        let mut bytes = Box::new([0; BLOCK_LEN]);
        let read = self.store.read_at(&mut bytes[..], self.context.geometry.stored_block(block))?;
        if read < BLOCK_LEN {
            return Err(Damage::TagBlock(block).into());
        }
        let key = &keys.of_block(state.page.header(), block).tags_mac;
        Ok(TagBlock::verify(key, block, bytes, expected).map_err(|_| Damage::TagBlock(block))?)
    }

    /// The MAC that the parent of a block holds for it. The parent is read if it is not in memory any more, so that an
    /// absent parent is never taken for an absent block.
    pub(super) fn mac_of(&self, state: &mut State, keys: &Keys, block: u64) -> Result<Mac, Error> {
        let Parent::Block(above, position) = parent(block) else { return Ok(state.page.header().root) };
        self.load_block(state, keys, above)?;
        Ok(state.blocks.get(&above).map_or(NO_BLOCK, |above| above.child(position)))
    }

    /// The last chunk that is a hole for the same reason as this one, which is one: the same tag block, or many, because a
    /// block above them does not exist. So a hole can be passed at a cost that does not grow with it.
    pub(super) fn last_of_hole(&self, state: &State, chunk: ChunkIndex) -> ChunkIndex {
        let geometry = self.context.geometry;
        let EntryPlace::Block(block, _) = geometry.entry_place(chunk) else {
            return geometry.last_with_same_tags(chunk);
        };
        let is_absent = |block| known_mac(state, block) == Some(NO_BLOCK);
        let (mut last, mut top, mut height) = (block, block, 0_u32);
        while is_absent(top) && !state.dirty.reach_below(top) {
            last = last_below(top, height);
            let Parent::Block(above, _) = parent(top) else { break };
            (top, height) = (above, height + 1);
        }
        geometry.last_of_block(last)
    }

    /// Sets an entry whose tag block is in memory, or makes it a hole.
    pub(super) fn set_entry(&self, state: &mut State, chunk: ChunkIndex, entry: Option<&NonceAndTag>) {
        state.changed = true;
        match self.context.geometry.entry_place(chunk) {
            EntryPlace::Header(number) => state.page.set_entry(number, entry),
            EntryPlace::Block(block, number) => {
                state.blocks.entry(block).or_insert_with(TagBlock::empty).set_entry(number, entry);
                state.dirty.blocks.insert(block);
            }
        }
        state.dirty.entries.insert(chunk.0);
    }

    /// Brings the MACs of the changed tag blocks up into the header, children before parents. A parent has a
    /// smaller number than its children, so descending numbers are the right order.
    pub(super) fn seal_blocks(&self, state: &mut State, keys: &Keys) -> Result<(), Error> {
        let mut queue = state.dirty.blocks.clone();
        while let Some(number) = queue.pop_last() {
            let Some(block) = state.blocks.get(&number) else { continue };
            let mac = block.mac(&keys.of_block(state.page.header(), number).tags_mac, number);
            match parent(number) {
                Parent::Header => state.page.header_mut().root = mac,
                Parent::Block(above, _) => {
                    self.load_block(state, keys, above)?;
                    self.set_child(state, number, &mac);
                    queue.insert(above);
                }
            }
        }
        Ok(())
    }

    /// Sets the MAC of a block in its parent, which is in memory or is the header.
    pub(super) fn set_child(&self, state: &mut State, block: u64, mac: &Mac) {
        state.changed = true;
        match parent(block) {
            Parent::Header => state.page.header_mut().root = *mac,
            Parent::Block(above, position) => {
                state.blocks.entry(above).or_insert_with(TagBlock::empty).set_child(position, mac);
                state.dirty.blocks.insert(above);
            }
        }
    }

    /// Sees to it that the tag blocks of a chunk, up to the header, have their place on disk before anything is
    /// promised that needs them: a block that does not exist yet is filled with zeros now, unless a crash could
    /// bring back an older block in its place.
    pub(super) fn reserve_blocks(&self, state: &mut State, keys: &Keys, chunk: ChunkIndex) -> Result<(), Error> {
        let EntryPlace::Block(mut block, _) = self.context.geometry.entry_place(chunk) else { return Ok(()) };
        while !state.dirty.new_blocks.contains(&block) && self.mac_of(state, keys, block)? == NO_BLOCK {
            let at = self.context.geometry.stored_block(block);
            let replaced = [state.cut, state.cut_in_flight].into_iter().flatten().any(|cut| at >= cut.stored);
            if !replaced {
                self.store.write_at(&[0; BLOCK_LEN], at)?;
            }
            state.dirty.new_blocks.insert(block);
            match parent(block) {
                Parent::Header => break,
                Parent::Block(above, _) => block = above,
            }
        }
        Ok(())
    }

    /// Makes room for more blocks by dropping every other clean one that is not wanted now, whichever these are. Parents
    /// of blocks that stay are dropped too: they are read again when they are needed.
    fn evict(&self, state: &mut State, wanted: &Range<u64>) {
        if state.blocks.len() < MAX_CACHED_BLOCKS {
            return;
        }
        let (dirty, in_flight) = (&state.dirty.blocks, &state.blocks_in_flight);
        let mut spare = false;
        state.blocks.retain(|block, _| {
            spare = !spare;
            spare || dirty.contains(block) || in_flight.contains(block) || wanted.contains(block)
        });
    }
}
