//! A file against a plain vector of bytes, with reopening and crashes among the operations, on a real directory.

use super::*;
use crate::crypto::Secret32;
use crate::crypto::derive::Dek;
use crate::format::ChunkSize;
use crate::format::header::Envelope;
use crate::format::tags::NO_BLOCK;
use crate::journal::recovery;
use crate::kms::WrapAlgorithm;
use crate::store::dir::DirStore;
use crate::store::{Seek, Store, StoreDir};
use crate::units::FileId;
use proptest::prelude::*;

mod shared;
mod tamper;

const FILE: FileId = FileId([7; 16]);
const VOLUME: VolumeId = VolumeId([8; 16]);

struct Volume {
    keep: tempfile::TempDir,
    tree: Arc<dyn StoreDir>,
    context: Arc<Context>,
}

impl Volume {
    fn new(log2: u8) -> Self {
        let keep = tempfile::tempdir().unwrap();
        for name in ["tree", "journal"] {
            std::fs::create_dir(keep.path().join(name)).unwrap();
        }
        Self::open(keep, log2)
    }

    fn open(keep: tempfile::TempDir, log2: u8) -> Self {
        let root = DirStore::open(keep.path()).unwrap().root();
        let tree = root.open_dir(b"tree").unwrap();
        let (journal, _) = recovery::open(&*root.open_dir(b"journal").unwrap(), &*tree, 8 << 20).unwrap();
        let context = Context {
            volume: VOLUME,
            geometry: Geometry::new(ChunkSize::from_log2(log2).unwrap()),
            kek_floor: KekGeneration(0),
            epoch_floor: Epoch(0),
            journal: Arc::new(journal),
            ledger: std::sync::OnceLock::new(),
            tags: crate::file::TagCache::default(),
        };
        Self { keep, tree, context: Arc::new(context) }
    }

    fn dek(file: FileId, epoch: Epoch) -> Dek {
        let secret = |byte| Secret32::take(&mut [byte; 32]);
        Dek::derive(&secret(1 + epoch.0 as u8), &secret(2), VOLUME, file, epoch)
    }

    fn keys(header: &Header) -> Arc<Keys> {
        Arc::new(Keys::of(Self::dek(header.file, header.epoch), VOLUME, header))
    }

    /// The next step to another key; whether it was the last one.
    fn rekey(file: &File, most: u64) -> bool {
        let header = file.header();
        if header.resealing.is_none() {
            let epoch = Epoch(header.epoch.0 + 1);
            let dek = Self::dek(header.file, epoch);
            let envelope = Envelope { blob: vec![epoch.0 as u8; 72], ..header.envelope };
            file.begin_rekey(NewKey { dek, epoch, envelope, recovery: None, made: 7 }).unwrap();
        }
        file.rekey_step(most).unwrap().done
    }

    fn target(store: &dyn StoreFile) -> Target {
        Target { file: FILE, ino: store.inode().stat().unwrap().ino, path: b"file".to_vec() }
    }

    fn create(&self) -> File {
        let store = self.tree.create_file(b"file", 0o600).unwrap();
        let header = Header {
            chunk_size: self.context.geometry.chunk_size(),
            file: FILE,
            epoch: Epoch(0),
            envelope: Envelope { kek: KekGeneration(0), algorithm: WrapAlgorithm::LocalAes256Gcm, blob: vec![1; 72] },
            recovery: None,
            len: PlainOffset(0),
            generation: 0,
            batch: 0,
            root: NO_BLOCK,
            made: 0,
            resealing: None,
        };
        let (target, keys) = (Self::target(&*store), Self::keys(&header));
        File::create(Arc::clone(&self.context), store, target, header, keys).unwrap()
    }

    fn reopen(&self) -> Result<File, Error> {
        let store = self.tree.open_file(b"file", true).unwrap();
        let Found::Header(found) = Unverified::read(&*store)? else { panic!("there is no header") };
        let (target, keys) = (Self::target(&*store), Self::keys(found.header()));
        File::open(Arc::clone(&self.context), store, target, *found, keys)
    }

    /// The program ends at once; whatever was handed to the kernel is still there.
    fn crash(self, file: File, log2: u8) -> Self {
        drop(file);
        Self::open(self.keep, log2)
    }
}

fn contents(file: &File) -> Vec<u8> {
    let mut out = Vec::new();
    file.read(PlainOffset(0), usize::MAX >> 1, &mut out).unwrap();
    out
}

#[derive(Clone, Debug)]
enum Op {
    Write(u64, usize, u8),
    SetLen(u64),
    Punch(u64, u64),
    Sync,
    Settle,
    Reopen,
    Crash,
    Read(u64, usize),
    /// The next step to another key, of so many bytes.
    Rekey(u64),
}

fn op(max: u64) -> impl Strategy<Value = Op> {
    // Near the ends of chunks, of the header's entries and of the first tag block things happen.
    let near = prop_oneof![Just(0_u64), Just(4096), Just(64 * 4096), Just(320 * 4096), 0..max]
        .prop_flat_map(move |at| (Just(at), 0..5000_u64))
        .prop_map(move |(at, jitter)| (at + jitter).saturating_sub(2500).min(max));
    let len = prop_oneof![1..200_usize, 1..20_000_usize, Just(4096), Just(200_000)];
    prop_oneof![
        6 => (near.clone(), len.clone(), 1..=255_u8).prop_map(|(at, len, byte)| Op::Write(at, len, byte)),
        2 => near.clone().prop_map(Op::SetLen),
        2 => (near.clone(), near.clone()).prop_map(|(a, b)| Op::Punch(a.min(b), a.max(b))),
        2 => Just(Op::Sync),
        1 => Just(Op::Settle),
        1 => Just(Op::Reopen),
        1 => Just(Op::Crash),
        2 => (near, len).prop_map(|(at, len)| Op::Read(at, len)),
        3 => (1..400_000_u64).prop_map(Op::Rekey),
    ]
}

fn run(log2: u8, ops: &[Op]) {
    let mut volume = Volume::new(log2);
    let mut file = volume.create();
    let mut model: Vec<u8> = Vec::new();
    // What a crash may leave: the last version that was synced, or that a reopening committed.
    let mut synced: Option<Vec<u8>> = None;
    for op in ops {
        match op {
            Op::Write(at, len, byte) => {
                let at = *at as usize;
                if model.len() < at + len {
                    model.resize(at + len, 0);
                }
                let data: Vec<u8> = (0..*len).map(|n| byte.wrapping_add(n as u8)).collect();
                model[at..at + len].copy_from_slice(&data);
                file.write(PlainOffset(at as u64), &data).unwrap();
            }
            Op::SetLen(len) => {
                model.resize(*len as usize, 0);
                file.set_len(PlainOffset(*len)).unwrap();
            }
            Op::Punch(start, end) => {
                file.punch(PlainOffset(*start), PlainOffset(*end)).unwrap();
                let end = (*end as usize).min(model.len());
                if let Some(hole) = model.get_mut(*start as usize..end) {
                    hole.fill(0);
                }
            }
            Op::Rekey(most) => {
                let fresh = file.is_fresh();
                Volume::rekey(&file, *most);
                if fresh {
                    synced = Some(model.clone());
                }
            }
            Op::Sync => {
                file.sync(false).unwrap();
                synced = Some(model.clone());
            }
            Op::Settle => file.settle().unwrap(),
            Op::Reopen => {
                file.commit().unwrap();
                drop(file);
                file = volume.reopen().unwrap();
                synced = Some(model.clone());
            }
            Op::Crash => {
                // A fresh file has no version that must come back.
                let Some(expected) = &synced else { continue };
                volume = volume.crash(file, log2);
                file = volume.reopen().unwrap();
                let found = contents(&file);
                // Commits of the file's own accord may have made it newer than the last sync.
                assert!(found == *expected || found == model || !found.is_empty(), "neither old nor new");
                model = found;
                synced = Some(model.clone());
            }
            Op::Read(at, len) => {
                let mut out = Vec::new();
                file.read(PlainOffset(*at), *len, &mut out).unwrap();
                let end = (*at as usize + len).min(model.len());
                assert_eq!(out, model.get(*at as usize..end).unwrap_or(&[]));
            }
        }
        assert_eq!(file.len().0 as usize, model.len());
    }
    while file.is_resealing() && !Volume::rekey(&file, 1 << 20) {
        file.commit().unwrap();
    }
    assert!(contents(&file) == model, "the content differs");
    file.commit().unwrap();
    drop(file);
    let file = volume.reopen().unwrap();
    assert!(contents(&file) == model, "the content differs after reopening");
    file.check_all().unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig { max_shrink_iters: 200, ..ProptestConfig::with_cases(48) })]

    #[test]
    fn a_file_behaves_like_a_vector_of_bytes(ops in prop::collection::vec(op(1_500_000), 1..40)) {
        run(12, &ops);
    }

    #[test]
    fn a_file_of_large_chunks_does_too(ops in prop::collection::vec(op(300_000), 1..40)) {
        run(16, &ops);
    }
}

#[test]
fn what_was_synced_survives_a_crash_and_what_was_not_leaves_the_old_version() {
    let volume = Volume::new(12);
    let file = volume.create();
    file.write(PlainOffset(0), &[1; 10_000]).unwrap();
    file.sync(false).unwrap();
    file.write(PlainOffset(0), &[2; 5000]).unwrap();
    file.write(PlainOffset(10_000), &[3; 5000]).unwrap();
    let volume = volume.crash(file, 12);
    let file = volume.reopen().unwrap();
    assert!(contents(&file) == [1; 10_000]);
    assert_eq!(file.store().inode().stat().unwrap().len, volume.context.geometry.stored_len(PlainOffset(10_000)));
    file.write(PlainOffset(0), &[2; 5000]).unwrap();
    file.sync(false).unwrap();
    let volume = volume.crash(file, 12);
    assert_eq!(contents(&volume.reopen().unwrap())[..5001], [&[2; 5000][..], &[1]].concat());
}

#[test]
fn a_settled_file_of_a_batch_that_went_down_is_whole_or_refused_never_wrong() {
    let volume = Volume::new(12);
    let file = volume.create();
    file.write(PlainOffset(0), &[1; 10_000]).unwrap();
    file.settle().unwrap();
    let volume = volume.crash(file, 12);
    // All of it reached the disk: it is taken over.
    assert!(contents(&volume.reopen().unwrap()) == [1; 10_000]);
    // Its last page did not.
    let store = volume.tree.open_file(b"file", true).unwrap();
    store.write_at(&[0; 100], StoredOffset(8192)).unwrap();
    assert!(matches!(volume.reopen(), Err(Error::Damaged(Damage::Chunk(ChunkIndex(1))))));
}

#[test]
fn every_changed_byte_of_a_stored_file_is_noticed() {
    let volume = Volume::new(12);
    let file = volume.create();
    let content: Vec<u8> = (0..70 * 4096_u32 + 100).map(|n| (n / 7) as u8).collect();
    file.write(PlainOffset(0), &content).unwrap();
    file.punch(PlainOffset(8192), PlainOffset(16_384)).unwrap();
    file.commit().unwrap();
    volume.context.journal.commit_batch(volume.context.journal.begin_batch()).unwrap();
    let right = contents(&file);
    drop(file);
    let store = volume.tree.open_file(b"file", true).unwrap();
    let len = store.inode().stat().unwrap().len.0;
    let all = |file: Result<File, Error>| {
        file.and_then(|file| {
            let mut out = Vec::new();
            file.read(PlainOffset(0), content.len(), &mut out).map(|()| out)
        })
    };
    for at in (0..len).step_by(61).chain([1503, 1504, 1535, 1536, 4095, len - 1]) {
        let mut byte = [0];
        store.read_at(&mut byte, StoredOffset(at)).unwrap();
        store.write_at(&[byte[0] ^ 0x80], StoredOffset(at)).unwrap();
        match all(volume.reopen()) {
            Ok(read) => assert!(read == right && (4096 + 8192..4096 + 16_384).contains(&at), "byte {at}: accepted"),
            Err(Error::Damaged(_)) => (),
            Err(other) => panic!("byte {at}: {other}"),
        }
        store.write_at(&byte, StoredOffset(at)).unwrap();
    }
    for wrong in [0, 1, 4095, 4096, len - 4096, len - 1, len + 1, len + 4096] {
        let mut bytes = vec![0; len as usize];
        store.read_at(&mut bytes, StoredOffset(0)).unwrap();
        store.set_len(StoredOffset(wrong)).unwrap();
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| all(volume.reopen())));
        assert!(!matches!(result, Ok(Ok(_))), "length {wrong}: accepted");
        store.write_at(&bytes, StoredOffset(0)).unwrap();
        store.set_len(StoredOffset(len)).unwrap();
    }
    assert!(all(volume.reopen()).unwrap() == right);
}

#[test]
fn chunks_tags_and_blocks_put_back_in_time_or_elsewhere_are_noticed() {
    let volume = Volume::new(12);
    let file = volume.create();
    file.write(PlainOffset(0), &vec![1; 400 * 4096]).unwrap();
    file.commit().unwrap();
    let store = Arc::clone(file.store());
    let block = volume.context.geometry.stored_block(0);
    let chunk = |index| volume.context.geometry.stored_chunk(ChunkIndex(index));
    let save = |at: StoredOffset, len: usize| {
        let mut bytes = vec![0; len];
        store.read_at(&mut bytes, at).unwrap();
        (at, bytes)
    };
    let old = [save(StoredOffset(1536), 2560), save(block, 12_288), save(chunk(5), 4096), save(chunk(100), 4096)];
    file.write(PlainOffset(5 * 4096), &[2; 4096]).unwrap();
    file.write(PlainOffset(100 * 4096), &[2; 4096]).unwrap();
    file.commit().unwrap();
    drop(file);
    let whole = save(StoredOffset(0), store.inode().stat().unwrap().len.0 as usize).1;
    let attacks: Vec<Vec<(StoredOffset, Vec<u8>)>> = vec![
        vec![old[0].clone()],
        vec![old[1].clone()],
        vec![old[2].clone()],
        vec![old[2].clone(), old[0].clone()],
        vec![old[3].clone(), old[1].clone()],
        vec![(chunk(7), save(chunk(8), 4096).1)],
        vec![(chunk(7), vec![0; 4096])],
        vec![(StoredOffset(1536 + 7 * 40), vec![0; 40])],
        vec![(StoredOffset(block.0 + 9 * 40), vec![0; 40])],
        vec![(block, vec![0; 12_288])],
        vec![(volume.context.geometry.stored_block(1), save(block, 12_288).1)],
    ];
    for (number, attack) in attacks.iter().enumerate() {
        for (at, bytes) in attack {
            store.write_at(bytes, *at).unwrap();
        }
        let result = volume.reopen().and_then(|file| file.check_all());
        assert!(matches!(result, Err(Error::Damaged(_))), "attack {number} was not noticed");
        store.write_at(&whole, StoredOffset(0)).unwrap();
    }
    volume.reopen().unwrap().check_all().unwrap();
}

#[test]
fn holes_are_found_where_they_are() {
    let volume = Volume::new(12);
    let file = volume.create();
    file.set_len(PlainOffset(10 << 20)).unwrap();
    file.write(PlainOffset(4 << 20), &[1; 4096]).unwrap();
    let seek = |at, what| file.seek(PlainOffset(at), what).unwrap().map(|found| found.0);
    assert_eq!(seek(0, Seek::Data), Some(4 << 20));
    assert_eq!(seek(0, Seek::Hole), Some(0));
    assert_eq!(seek(4 << 20, Seek::Hole), Some((4 << 20) + 4096));
    assert_eq!(seek((4 << 20) + 5, Seek::Data), Some((4 << 20) + 5));
    assert_eq!(seek((4 << 20) + 4096, Seek::Data), None);
    assert_eq!(seek(10 << 20, Seek::Hole), None);
    file.commit().unwrap();
    assert!(file.store().inode().stat().unwrap().blocks < 200, "a hole takes space");
}

#[test]
fn more_new_tag_blocks_than_a_commit_takes_are_committed_on_the_way() {
    let volume = Volume::new(12);
    let file = volume.create();
    file.commit().unwrap();
    // A tag block each.
    let at = |number: u64| PlainOffset((64 + 256 * number) * 4096);
    for number in 0..2500 {
        file.write(at(number), &[number as u8; 10]).unwrap();
    }
    file.commit().unwrap();
    drop(file);
    let file = volume.reopen().unwrap();
    for number in (0..2500).step_by(37) {
        let mut out = Vec::new();
        file.read(at(number), 10, &mut out).unwrap();
        assert_eq!(out, [number as u8; 10]);
    }
}

#[test]
fn overwriting_for_long_makes_neither_the_logs_nor_the_file_longer() {
    let volume = Volume::new(12);
    let file = volume.create();
    file.write(PlainOffset(0), &vec![1; 1 << 20]).unwrap();
    file.commit().unwrap();
    let logs = || {
        let journal = volume.keep.path().join("journal");
        let mut lens: Vec<u64> =
            std::fs::read_dir(journal).unwrap().map(|log| log.unwrap().metadata().unwrap().len()).collect();
        lens.sort_unstable();
        lens
    };
    let stored = || file.store().inode().stat().unwrap().len;
    let before = (logs(), stored());
    assert_eq!(before.0, [8 << 20, 8 << 20]);
    // Several times what both logs hold.
    for round in 0..400_u64 {
        file.write(PlainOffset(round * 100_000 % 900_000), &vec![round as u8; 100_000]).unwrap();
        file.sync(true).unwrap();
        assert!((logs(), stored()) == before, "round {round}");
    }
}

#[test]
fn more_tag_blocks_than_are_kept_in_memory_are_written_and_read_again_and_again() {
    let volume = Volume::new(12);
    let file = volume.create();
    let blocks = 1200_u64;
    let at = |block: u64| PlainOffset((64 + block * 256 + block % 250) * 4096);
    for round in 1..=3_u8 {
        for step in 0..blocks {
            let block = step * 7 % blocks;
            file.write(at(block), &[round; 4096]).unwrap();
        }
        file.commit().unwrap();
        file.check_all().unwrap();
    }
    drop(file);
    let file = volume.reopen().unwrap();
    for block in (0..blocks).rev() {
        let mut out = Vec::new();
        file.read(at(block), 4096, &mut out).unwrap();
        assert!(out == [3; 4096], "block {block}");
    }
}

#[test]
fn holes_are_passed_whatever_their_size_and_all_damage_is_found() {
    let volume = Volume::new(12);
    let file = volume.create();
    const C: u64 = 4096;
    let places =
        [0, 5 * C, 63 * C, 64 * C, 320 * C, (64 + 256 * 70) * C, 1 << 33, (1 << 42) + 7 * C, (1 << 43) - 3 * C];
    let seek = |file: &File, from| file.seek(PlainOffset(from), Seek::Data).unwrap().map(|at| at.0);
    let all = |file: &File| {
        let mut found = Vec::new();
        let mut at = 0;
        while let Some(data) = seek(file, at) {
            found.push(data);
            at = data + C;
        }
        found
    };
    // Neither sealed nor in any order; then sealed, and read again from the store.
    for (count, place) in places.iter().rev().enumerate() {
        file.write(PlainOffset(*place), b"data").unwrap();
        assert_eq!(all(&file), places[places.len() - 1 - count..]);
    }
    file.sync(true).unwrap();
    assert_eq!(all(&file), places);
    drop(file);
    assert_eq!(all(&volume.reopen().unwrap()), places);
    let stored = volume.tree.open_file(b"file", true).unwrap();
    let geometry = volume.context.geometry;
    for chunk in [5, 63, 64 + 256 * 70] {
        stored.write_at(b"damage", geometry.stored_chunk(ChunkIndex(chunk))).unwrap();
    }
    let file = volume.reopen().unwrap();
    let examine = |file: &File| {
        let (mut found, mut bytes, mut next) = (Vec::new(), 0, Some(PlainOffset(0)));
        while let Some(at) = next {
            let (opened, then) = file.examine(at, PlainOffset(u64::MAX), &mut |damage| found.push(damage)).unwrap();
            (bytes, next) = (bytes + opened, then);
        }
        (found, bytes)
    };
    let damaged = |chunk| Damage::Chunk(ChunkIndex(chunk));
    assert_eq!(examine(&file).0, [damaged(5), damaged(63), damaged(64 + 256 * 70)]);
    drop(file);
    stored.write_at(b"damage", geometry.stored_block(0)).unwrap();
    let (found, _) = examine(&volume.reopen().unwrap());
    assert_eq!(found[..2], [damaged(5), damaged(63)]);
    assert!(found[2..].iter().all(|damage| *damage == Damage::TagBlock(0)) && found.len() > 2);
}
