//! Tag blocks as they are on the disk, read and verified, of all files of a volume: those that were used last.
//!
//! Each is kept with the MAC by which it was verified, and asked for with the MAC that the block above it holds now. A block
//! that has changed since has another one, so nothing here is ever out of date: it is asked for no more.

use crate::format::tags::{BLOCK_LEN, Mac, TagBlock};
use lru::LruCache;
use parking_lot::Mutex;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// How many are kept: 32 MiB, which with 4 KiB chunks cover 2.6 GiB of files that are read here and there.
const CAPACITY: NonZeroUsize = NonZeroUsize::new((32 << 20) / BLOCK_LEN).unwrap();

/// A block, and the MAC by which it was verified.
type Verified = (Mac, Arc<TagBlock>);

/// An open file. One that is opened again is another one: it is read from the disk again, with whatever damage is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Opened(u64);

/// The tag blocks that were used last, by file and number.
pub struct TagCache {
    blocks: Mutex<LruCache<(Opened, u64), Verified>>,
    opened: AtomicU64,
}

impl TagCache {
    /// A file that has none yet.
    pub(super) fn open(&self) -> Opened {
        Opened(self.opened.fetch_add(1, Ordering::Relaxed))
    }

    /// The block of a file with this number, if it is here and has this MAC.
    pub(super) fn get(&self, file: Opened, number: u64, mac: &Mac) -> Option<Arc<TagBlock>> {
        let mut blocks = self.blocks.lock();
        blocks.get(&(file, number)).filter(|(of, _)| of == mac).map(|(_, block)| Arc::clone(block))
    }

    /// The same for somebody who is going to change it.
    pub(super) fn take(&self, file: Opened, number: u64, mac: &Mac) -> Option<TagBlock> {
        let (of, block) = self.blocks.lock().pop(&(file, number))?;
        (of == *mac).then(|| Arc::try_unwrap(block).unwrap_or_else(|shared| shared.copy()))
    }

    /// Keeps a block that was verified by this MAC.
    pub(super) fn put(&self, file: Opened, number: u64, mac: Mac, block: Arc<TagBlock>) {
        // What goes is freed without the lock.
        let _gone = self.blocks.lock().push((file, number), (mac, block));
    }

    /// Forgets all of them.
    pub fn clear(&self) {
        self.blocks.lock().clear();
    }
}

impl Default for TagCache {
    fn default() -> Self {
        // Room is made when it is needed: most mounts are idle, or have small files only.
        let mut blocks = LruCache::unbounded();
        blocks.resize(CAPACITY);
        Self { blocks: Mutex::new(blocks), opened: AtomicU64::new(0) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: Opened = Opened(1);

    #[test]
    fn a_block_is_given_out_for_its_own_mac_number_and_file_only() {
        let cache = TagCache::default();
        cache.put(FILE, 5, [7; 32], Arc::new(TagBlock::empty()));
        assert!(cache.get(FILE, 5, &[7; 32]).is_some());
        assert!(cache.get(FILE, 5, &[8; 32]).is_none());
        assert!(cache.get(FILE, 6, &[7; 32]).is_none());
        assert!(cache.get(Opened(2), 5, &[7; 32]).is_none());
        assert!(cache.take(FILE, 5, &[8; 32]).is_none(), "an older version");
        assert!(cache.get(FILE, 5, &[7; 32]).is_none(), "it is of no use to anybody");
    }

    #[test]
    fn those_that_were_not_used_for_longest_go_first() {
        let cache = TagCache::default();
        for number in 0..CAPACITY.get() as u64 {
            cache.put(FILE, number, [7; 32], Arc::new(TagBlock::empty()));
        }
        assert!(cache.get(FILE, 0, &[7; 32]).is_some());
        cache.put(FILE, u64::MAX, [7; 32], Arc::new(TagBlock::empty()));
        assert!(cache.get(FILE, 0, &[7; 32]).is_some());
        assert!(cache.get(FILE, 1, &[7; 32]).is_none());
        cache.clear();
        assert!(cache.get(FILE, 0, &[7; 32]).is_none());
    }
}
