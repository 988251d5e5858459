//! Stored files of every shape, which part of them depends on which, and what can be read of them.

use super::super::*;
use crate::format::PAGE;
use crate::format::geometry::EntryPlace;
use crate::format::tags::{BLOCK_LEN, ENTRIES_PER_BLOCK, ENTRY_LEN, Parent, parent};

pub(super) const ENTRIES_AT: u64 = 1536;

/// A stored file, what was written to it, and an older version of both.
pub(super) struct Sample {
    pub volume: Volume,
    pub name: &'static [u8],
    pub id: FileId,
    pub plain: Vec<u8>,
    pub stored: Vec<u8>,
    pub old_plain: Vec<u8>,
    pub old_stored: Vec<u8>,
}

/// A length, the ranges of it that are holes, in chunks, and whether the holes were punched or never written.
#[derive(Clone, Copy)]
pub(super) struct Shape {
    pub what: &'static str,
    pub log2: u8,
    pub len: u64,
    pub holes: &'static [(u64, u64)],
    pub punched: bool,
    /// Half of it is sealed by another key.
    pub between: bool,
}

/// All of them, with one key and between two.
pub(super) fn shapes() -> Vec<Shape> {
    SHAPES.iter().copied().chain(SHAPES.iter().map(|shape| Shape { between: shape.len > 0, ..*shape })).collect()
}

pub(super) const fn shape(what: &'static str, log2: u8, len: u64) -> Shape {
    Shape { what, log2, len, holes: &[], punched: false, between: false }
}

pub(super) const C: u64 = 4096;
pub(super) const SHAPES: &[Shape] = &[
    shape("empty", 12, 0),
    shape("one byte", 12, 1),
    shape("a chunk but a byte", 12, C - 1),
    shape("a chunk", 12, C),
    shape("a chunk and a byte", 12, C + 1),
    shape("three chunks", 12, 2 * C + 100),
    shape("all entries of the header", 12, 64 * C),
    shape("one byte in a tag block", 12, 64 * C + 1),
    shape("all of a tag block", 12, 320 * C),
    shape("one byte in the second tag block", 12, 320 * C + 1),
    shape("several MiB", 12, 900 * C + 17),
    Shape {
        what: "holes that were punched",
        log2: 12,
        len: 330 * C + 9,
        holes: &[(2, 5), (60, 70), (319, 321)],
        punched: true,
        between: false,
    },
    Shape { holes: &[(1, 63), (65, 580), (600, 700)], ..shape("sparse", 12, 700 * C + 1) },
    Shape { holes: &[(0, 71)], ..shape("a hole and nothing else", 12, 70 * C + 5) },
    shape("large chunks, one and a byte", 16, (1 << 16) + 1),
    shape("large chunks, two tag blocks", 16, (1 << 16) * 70 + 3),
    Shape { holes: &[(1, 3), (63, 66)], punched: true, ..shape("large chunks and holes", 16, (1 << 16) * 68) },
    shape("the largest chunks", 20, (1 << 20) * 2 + 4097),
];

/// Bytes of which no two chunks are alike.
pub(super) fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

impl Shape {
    pub(super) fn is_hole(&self, chunk: u64) -> bool {
        self.holes.iter().any(|(from, to)| (*from..*to).contains(&chunk))
    }

    /// Writes a version of the content; returns it.
    pub(super) fn write(&self, file: &File, seed: u64) -> Vec<u8> {
        let chunk = 1 << self.log2;
        let mut plain = noise(seed, self.len as usize);
        file.set_len(PlainOffset(self.len)).unwrap();
        let count = self.len.div_ceil(chunk);
        for index in 0..count {
            let range = (index * chunk) as usize..self.len.min((index + 1) * chunk) as usize;
            if self.is_hole(index) && !self.punched {
                plain[range].fill(0);
            } else {
                file.write(PlainOffset(index * chunk), &plain[range]).unwrap();
            }
        }
        for (from, to) in self.holes.iter().filter(|_| self.punched) {
            let (from, to) = (from * chunk, self.len.min(to * chunk));
            plain[from as usize..to as usize].fill(0);
            file.punch(PlainOffset(from), PlainOffset(to)).unwrap();
        }
        plain
    }
}

impl Sample {
    pub(super) fn new(shape: &Shape, id: u8) -> Self {
        Self::beside(Volume::new(shape.log2), shape, b"file", id)
    }

    pub(super) fn beside(volume: Volume, shape: &Shape, name: &'static [u8], id: u8) -> Self {
        let id = FileId([id; 16]);
        let store = volume.tree.create_file(name, 0o600).unwrap();
        let target = Target { file: id, ino: store.inode().stat().unwrap().ino, path: name.to_vec() };
        let chunk_size = volume.context.geometry.chunk_size();
        let envelope = Envelope { kek: KekGeneration(0), algorithm: WrapAlgorithm::LocalAes256Gcm, blob: vec![1; 72] };
        let header = Header {
            chunk_size,
            file: id,
            epoch: Epoch(0),
            envelope,
            recovery: None,
            len: PlainOffset(0),
            generation: 0,
            batch: 0,
            root: NO_BLOCK,
            made: 0,
            resealing: None,
        };
        let context = Arc::clone(&volume.context);
        let keys = Volume::keys(&header);
        let file = File::create(context, Arc::clone(&store), target, header, keys).unwrap();
        let all = || {
            let mut bytes = vec![0; store.inode().stat().unwrap().len.0 as usize];
            store.read_at(&mut bytes, StoredOffset(0)).unwrap();
            bytes
        };
        let old_plain = shape.write(&file, 1000 + u64::from(id.0[0]));
        file.commit().unwrap();
        let old_stored = all();
        let plain = shape.write(&file, u64::from(id.0[0]));
        file.commit().unwrap();
        if shape.between {
            let half =
                (0..shape.len.div_ceil(1 << shape.log2)).filter(|chunk| !shape.is_hole(*chunk)).count() as u64 / 2;
            let done = Volume::rekey(&file, (half << shape.log2).max(1));
            assert!(done == (half == 0), "{}: {:?}", shape.what, file.header());
            file.commit().unwrap();
        }
        volume.context.journal.commit_batch(volume.context.journal.begin_batch()).unwrap();
        drop(file);
        let stored = all();
        Self { volume, name, id, plain, stored, old_plain, old_stored }
    }

    pub(super) fn geometry(&self) -> Geometry {
        self.volume.context.geometry
    }

    pub(super) fn store(&self) -> Arc<dyn StoreFile> {
        self.volume.tree.open_file(self.name, true).unwrap()
    }

    /// Opens it as the tree does: with the keys of whatever file the header says it is.
    pub(super) fn open(&self) -> Result<File, Error> {
        let store = self.store();
        let Found::Header(found) = Unverified::read(&*store)? else { return Err(Damage::NoHeader.into()) };
        let keys = Volume::keys(found.header());
        let target = Target { file: found.header().file, ino: store.inode().stat()?.ino, path: self.name.to_vec() };
        File::open(Arc::clone(&self.volume.context), store, target, *found, keys)
    }

    pub(super) fn chunks(&self) -> u64 {
        self.geometry().chunk_count(PlainOffset(self.plain.len() as u64))
    }

    pub(super) fn chunk<'a>(&self, plain: &'a [u8], index: u64) -> &'a [u8] {
        let chunk = self.geometry().chunk_len();
        let at = |index: u64| (index * chunk).min(plain.len() as u64) as usize;
        &plain[at(index)..at(index + 1)]
    }

    /// The chunks that cannot be read, `None` if the file cannot even be opened. Those that can are what they were in
    /// one of these versions, all of them in the same.
    pub(super) fn damaged(&self, what: &str, versions: &[&[u8]]) -> Option<Vec<u64>> {
        let file = match self.open() {
            Ok(file) => file,
            Err(Error::Damaged(_)) => return None,
            Err(other) => panic!("{what}: {other}"),
        };
        let mut damaged = Vec::new();
        let mut may_be: Vec<&[u8]> = versions.to_vec();
        let mut out = Vec::new();
        let count = self.geometry().chunk_count(file.len());
        for index in 0..count {
            out.clear();
            let at = self.geometry().chunk_start(ChunkIndex(index));
            match file.read(at, self.geometry().chunk_len() as usize, &mut out) {
                Ok(()) => may_be.retain(|version| self.chunk(version, index) == out),
                Err(Error::Damaged(_)) => {
                    assert!(out.is_empty(), "{what}: bytes with an error");
                    damaged.push(index);
                }
                Err(other) => panic!("{what}: chunk {index}: {other}"),
            }
            assert!(!may_be.is_empty(), "{what}: chunk {index} is nothing that was written");
        }
        may_be.retain(|version| version.len() as u64 == file.len().0);
        assert!(!may_be.is_empty(), "{what}: a length of {} that it never had", file.len().0);
        // All at once: an error if there is one anywhere, and nothing with it.
        out.clear();
        match file.read(PlainOffset(0), self.plain.len() + 1, &mut out) {
            Ok(()) => {
                assert!(damaged.is_empty() && may_be.iter().any(|version| **version == out), "{what}: in one piece")
            }
            Err(Error::Damaged(_)) => assert!(!damaged.is_empty() && out.is_empty(), "{what}: in one piece"),
            Err(other) => panic!("{what}: in one piece: {other}"),
        }
        Some(damaged)
    }

    /// Which chunks depend on a byte of the stored file; `None` if all of them do.
    pub(super) fn behind(&self, at: u64) -> Option<Vec<u64>> {
        let geometry = self.geometry();
        let is_hole = |index: u64| self.entry(index) == [0; ENTRY_LEN];
        if at < PAGE as u64 {
            return None;
        }
        for index in 0..self.chunks() {
            let start = geometry.stored_chunk(ChunkIndex(index)).0;
            if (start..start + self.chunk(&self.plain, index).len() as u64).contains(&at) {
                return Some(if is_hole(index) { vec![] } else { vec![index] });
            }
        }
        let mut blocks = 0..geometry.block_count(PlainOffset(self.plain.len() as u64));
        let block = blocks.find(|block| {
            let start = geometry.stored_block(*block).0;
            (start..start + BLOCK_LEN as u64).contains(&at)
        });
        let block = block.expect("a chunk or a block");
        Some(if self.exists(block) {
            (0..self.chunks()).filter(|index| self.is_above(block, *index)).collect()
        } else {
            vec![]
        })
    }

    /// The entry of a chunk as it is stored, zeros if its block does not exist.
    pub(super) fn entry(&self, index: u64) -> [u8; ENTRY_LEN] {
        let at = match self.geometry().entry_place(ChunkIndex(index)) {
            EntryPlace::Header(number) => ENTRIES_AT + (number * ENTRY_LEN) as u64,
            EntryPlace::Block(block, _) if !self.exists(block) => return [0; ENTRY_LEN],
            EntryPlace::Block(..) => self.entry_at(index),
        } as usize;
        self.stored[at..at + ENTRY_LEN].try_into().unwrap()
    }

    pub(super) fn entry_at(&self, index: u64) -> u64 {
        match self.geometry().entry_place(ChunkIndex(index)) {
            EntryPlace::Header(number) => ENTRIES_AT + (number * ENTRY_LEN) as u64,
            EntryPlace::Block(block, number) => self.geometry().stored_block(block).0 + (number * ENTRY_LEN) as u64,
        }
    }

    /// Whether a block exists: its MAC above is not zeros.
    pub(super) fn exists(&self, block: u64) -> bool {
        let at = match parent(block) {
            Parent::Header => 84,
            Parent::Block(above, _) if !self.exists(above) => return false,
            Parent::Block(above, position) => {
                self.geometry().stored_block(above).0 as usize + ENTRIES_PER_BLOCK * ENTRY_LEN + position * 32
            }
        };
        self.stored[at..at + 32] != [0; 32]
    }

    /// Whether a block authenticates the entry of a chunk, directly or through others.
    pub(super) fn is_above(&self, block: u64, index: u64) -> bool {
        let EntryPlace::Block(mut at, _) = self.geometry().entry_place(ChunkIndex(index)) else { return false };
        loop {
            match parent(at) {
                _ if at == block => return true,
                Parent::Block(above, _) => at = above,
                Parent::Header => return false,
            }
        }
    }

    /// Puts bytes in place, looks at what it has done, and puts back what was there.
    pub(super) fn try_out(
        &self,
        what: &str,
        changes: &[(u64, Vec<u8>)],
        versions: &[&[u8]],
        expected: Option<Option<Vec<u64>>>,
    ) {
        let store = self.store();
        for (at, bytes) in changes {
            store.write_at(bytes, StoredOffset(*at)).unwrap();
        }
        let damaged = self.damaged(what, versions);
        if let Some(expected) = expected {
            assert_eq!(damaged, expected, "{what}: not all of the damage, or too much");
        }
        for (at, bytes) in changes {
            let at = *at as usize;
            let end = self.stored.len().min(at + bytes.len());
            store.write_at(&self.stored[at..end], StoredOffset(at as u64)).unwrap();
        }
        if store.inode().stat().unwrap().len.0 != self.stored.len() as u64 {
            store.set_len(StoredOffset(self.stored.len() as u64)).unwrap();
        }
    }

    pub(super) fn now(&self) -> [&[u8]; 1] {
        [&self.plain]
    }

    pub(super) fn place(&self, index: u64) -> std::ops::Range<usize> {
        let at = self.geometry().stored_chunk(ChunkIndex(index)).0 as usize;
        at..at + self.chunk(&self.plain, index).len()
    }

    pub(super) fn block_place(&self, block: u64) -> std::ops::Range<usize> {
        let at = self.geometry().stored_block(block).0 as usize;
        at..at + BLOCK_LEN
    }

    pub(super) fn blocks(&self) -> u64 {
        self.geometry().block_count(PlainOffset(self.plain.len() as u64))
    }

    /// Chunks at the ends of everything, and some between.
    pub(super) fn some_chunks(&self) -> Vec<u64> {
        let ends = [0, 1, 2, 3, 62, 63, 64, 65, 318, 319, 320, 321, self.chunks().saturating_sub(1)];
        let mut some: Vec<u64> =
            ends.into_iter().chain((0..self.chunks()).step_by(97)).filter(|at| *at < self.chunks()).collect();
        some.sort_unstable();
        some.dedup();
        some
    }
}
