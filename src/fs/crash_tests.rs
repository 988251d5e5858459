//! The tree on a store that loses power: random work, cut after every change, mounted again, and walked. A failure
//! prints the seed of the work and of the cut.

mod cloud;
mod faults;
mod guard;
mod recovery_kek;
mod rekey;
mod rewrap;
mod sweep;
mod work;

use super::volume::{InitOptions, fill};
use super::*;
use crate::file::crash_tests::Draws;
use crate::format::{ChunkSize, Geometry};
use crate::journal::Journal;
use crate::journal::recovery::{self, Recovery};
use crate::kms::Kms;
use crate::kms::fake::FakeKms;
use crate::store::mem::MemStore;
use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::path::Path;
use work::Model;

const LOG_LEN: u64 = 700 * 1024;
const XATTR: &[u8] = b"user.version";

pub(super) const OPTIONS: InitOptions =
    InitOptions { chunk_size: ChunkSize::DEFAULT, files_per_envelope: 1000, plain_names: false };

pub(super) fn make(options: InitOptions) -> MemStore {
    let store = MemStore::default();
    fill(&*store.root(), "fake:key", &FakeKms::default(), options, None).unwrap();
    store.sync_all().unwrap();
    store
}

pub(super) fn mount(store: Arc<dyn Store>) -> (Fs, Recovery) {
    let volume = Volume::read(store.root(), Path::new("memory")).unwrap();
    let (journal, recovery) = recovery::open(&*volume.journal().unwrap(), &*volume.tree().unwrap(), LOG_LEN).unwrap();
    (serve(volume, store, journal, &Arc::default(), false), recovery)
}

/// A mount that changes nothing but for what recovery has to.
fn mount_read_only(store: Arc<dyn Store>) -> Fs {
    let volume = Volume::read(store.root(), Path::new("memory")).unwrap();
    let logs = volume.journal().unwrap();
    if !recovery::read_only(&*logs).unwrap().1 {
        recovery::open(&*logs, &*volume.tree().unwrap(), LOG_LEN).unwrap().0.close().unwrap();
    }
    let (journal, clean) = recovery::read_only(&*logs).unwrap();
    assert!(clean);
    serve(volume, store, journal, &Arc::default(), true)
}

fn serve(volume: Volume, store: Arc<dyn Store>, journal: Journal, kms: &Arc<FakeKms>, read_only: bool) -> Fs {
    let record = volume.record();
    let context = Context {
        volume: record.id,
        geometry: Geometry::new(record.chunk_size),
        kek_floor: record.kek_floor,
        epoch_floor: record.epoch_floor,
        journal: Arc::new(journal),
        ledger: std::sync::OnceLock::new(),
        tags: crate::file::TagCache::default(),
    };
    let key = kms.unwrap(&record.newest().volume_key, record.id).unwrap().secret;
    let kms: Arc<dyn Kms> = Arc::<FakeKms>::clone(kms);
    let leases = Leases::new(kms, record.id, NonZeroUsize::new(100).unwrap());
    Fs::new(volume, store, Arc::new(context), Arc::new(leases), key, read_only).unwrap()
}

/// Calls again when the key is there, as whoever serves the kernel does.
pub(super) fn done<T>(fs: &Fs, act: impl Fn() -> Result<T>) -> Result<T> {
    loop {
        match act() {
            Err(Error::NeedKey(need)) => fs.fetch(&need)?,
            other => return other,
        }
    }
}

pub(super) fn creator(permissions: u32) -> Creator {
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    Creator { uid, gid, permissions, umask: 0 }
}

fn read(fs: &Fs, ino: u64) -> Result<Vec<u8>> {
    let handle = done(fs, || fs.open(ino, false, false))?;
    let mut out = Vec::new();
    let result = fs.read(handle, PlainOffset(0), 1 << 20, &mut out);
    fs.release(handle);
    result.map(|()| out)
}

/// By path: the content of a file, and its attribute.
type Tree = BTreeMap<String, (Vec<u8>, Option<Vec<u8>>)>;

/// Every file of the tree. Whatever is visible must be readable.
fn walk(fs: &Fs, ino: u64, path: &str, found: &mut Tree) -> Result<()> {
    let handle = fs.open_directory(ino)?;
    let mut entries = Vec::new();
    fs.list(handle, 0, false, |listed| {
        entries.push((listed.name.clone(), listed.kind));
        true
    })?;
    fs.release_directory(handle);
    for (name, kind) in entries.into_iter().skip(2) {
        let below = format!("{path}/{}", String::from_utf8_lossy(&name));
        let entry = done(fs, || fs.lookup(ino, &name))?;
        match kind {
            Kind::Directory => walk(fs, entry.stat.ino, &below, found)?,
            Kind::Symlink => assert!(fs.read_symlink(entry.stat.ino)?.starts_with(b"target")),
            _ => {
                let content = read(fs, entry.stat.ino)?;
                assert_eq!(fs.attributes(entry.stat.ino)?.len.0 as usize, content.len(), "{below}: length");
                found.insert(below, (content, fs.xattr(entry.stat.ino, XATTR)?));
            }
        }
    }
    Ok(())
}

fn check(found: MemStore, model: &Model, cut: u64) {
    let keep = found.clone();
    let (fs, recovery) = mount(Arc::new(found));
    assert!(recovery.damaged_at.is_empty());
    let mut contents = Tree::new();
    walk(&fs, ROOT, "", &mut contents).unwrap_or_else(|error| panic!("cut {cut}: {error:?}"));
    assert_eq!(fs.counters.damaged.load(Ordering::Relaxed), 0, "cut {cut}: damage");
    model.check(&contents).unwrap_or_else(|why| panic!("cut {cut}: {why}"));
    if cut.is_multiple_of(8) {
        drop(fs);
        let fs = mount_read_only(Arc::new(keep.clone()));
        keep.record();
        let mut contents = Tree::new();
        walk(&fs, ROOT, "", &mut contents).unwrap_or_else(|error| panic!("cut {cut}, read-only: {error:?}"));
        model.check(&contents).unwrap_or_else(|why| panic!("cut {cut}, read-only: {why}"));
        assert!(keep.recorded().is_empty(), "cut {cut}: a read-only mount changed something");
        return;
    }
    if cut.is_multiple_of(3) {
        // Another crash, or the sweep to its end and a proper one.
        if cut.is_multiple_of(2) {
            fs.sweep(&AtomicBool::new(false)).unwrap_or_else(|error| panic!("cut {cut}: sweep: {error:?}"));
            assert!(!fs.wants_sweep());
            fs.shut_down().unwrap();
        }
        drop(fs);
        let (fs, _) = mount(Arc::new(keep.snapshot().cut(cut)));
        assert!(!cut.is_multiple_of(2) || !fs.wants_sweep());
        let mut again = Tree::new();
        walk(&fs, ROOT, "", &mut again).unwrap_or_else(|error| panic!("cut {cut}, again: {error:?}"));
        model.check(&again).unwrap_or_else(|why| panic!("cut {cut}, again: {why}"));
    }
}

fn crash(seed: u64, options: InitOptions, ops: usize) -> u64 {
    let store = make(options);
    let (fs, _) = mount(Arc::new(store.clone()));
    store.record();
    let mut draws = Draws(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
    let mut model = Model::new();
    let mut cut = seed << 20;
    for number in 0..ops {
        // What is promised by this operation is not before it returns.
        let before = model.promises();
        let what = model.act(&fs, &mut draws);
        let snapshots = store.recorded();
        let after = model.promises();
        model.hold_back(before, &after);
        let count = snapshots.len();
        for (position, snapshot) in snapshots.into_iter().enumerate() {
            cut += 1;
            let checked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                check(if cut.is_multiple_of(5) { snapshot.killed() } else { snapshot.cut(cut) }, &model, cut);
            }));
            assert!(checked.is_ok(), "work {seed}: {number} {what}, after {} ({position} of {count})", snapshot.after);
        }
        model.restore(after);
    }
    model.close_all(&fs);
    fs.shut_down().unwrap();
    drop(fs);
    let (fs, recovery) = mount(Arc::new(store.snapshot().cut(0)));
    assert!(!recovery.crashed && !fs.wants_sweep());
    let mut contents = Tree::new();
    walk(&fs, ROOT, "", &mut contents).unwrap();
    for (path, number) in &model.paths {
        let file = &model.files[*number];
        let (content, xattr) = &contents[path];
        let same = Some(content) == file.versions.last() && Some(xattr) == file.xattrs.last();
        assert!(same, "work {seed}: {path} after shutting down");
    }
    cut - (seed << 20)
}

#[test]
fn after_every_cut_the_tree_is_whole_and_what_was_promised_is_there() {
    let cuts: u64 = (1..6).map(|seed| crash(seed, OPTIONS, 36)).sum();
    println!("{cuts} cuts");
}

#[test]
fn so_it_is_with_plain_names_and_larger_chunks() {
    let with =
        |log2, plain_names| InitOptions { chunk_size: ChunkSize::from_log2(log2).unwrap(), plain_names, ..OPTIONS };
    let cuts: u64 = [with(12, true), with(14, false), with(16, true)]
        .into_iter()
        .zip(100..)
        .map(|(options, seed)| crash(seed, options, 30) + crash(seed + 10, options, 30))
        .sum();
    println!("{cuts} cuts");
}
