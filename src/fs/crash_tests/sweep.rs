//! The look at every file that follows a crash.

use super::*;
use crate::file::{Found, Unverified};
use crate::format::PAGE;
use crate::store::fault::{Fault, FaultStore, Faults, Plan};
use crate::store::{RenameMode, StoreDir};
use crate::units::StoredOffset;

/// A file under a name in a directory, closed, and durable if asked.
fn put(fs: &Fs, parent: u64, name: &[u8], bytes: &[u8], sync: bool) {
    let (_, handle) = done(fs, || fs.create(parent, name, creator(0o644))).unwrap();
    fs.write(handle, PlainOffset(0), bytes, false).unwrap();
    if sync {
        fs.sync(handle, false).unwrap();
    }
    fs.flush(handle).unwrap();
    fs.release(handle);
}

/// Every regular file below a directory of the store.
fn stored(dir: &dyn StoreDir, found: &mut Vec<(Arc<dyn StoreDir>, Vec<u8>)>, this: &Arc<dyn StoreDir>) {
    for entry in dir.list().unwrap() {
        match entry.kind {
            Some(Kind::File) => found.push((Arc::clone(this), entry.name)),
            Some(Kind::Directory) => {
                let below = dir.open_dir(&entry.name).unwrap();
                stored(&*below, found, &below);
            }
            _ => (),
        }
    }
}

fn stored_files(store: &MemStore) -> Vec<(Arc<dyn StoreDir>, Vec<u8>)> {
    let tree = store.root().open_dir(b"tree").unwrap();
    let mut found = Vec::new();
    stored(&*tree, &mut found, &tree);
    found
}

fn flip(dir: &dyn StoreDir, name: &[u8], at: u64) {
    let file = dir.open_file(name, true).unwrap();
    let mut byte = [0];
    file.read_at(&mut byte, StoredOffset(at)).unwrap();
    file.write_at(&[byte[0] ^ 1], StoredOffset(at)).unwrap();
}

fn bytes(dir: &dyn StoreDir, name: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; 1 << 20];
    let len = dir.open_file(name, false).unwrap().read_at(&mut bytes, StoredOffset(0)).unwrap();
    bytes.truncate(len);
    bytes
}

#[test]
fn a_file_or_directory_that_is_moved_while_the_sweep_goes_on_is_seen() {
    for what in [&b"file"[..], b"directory"] {
        // An envelope each, so that the sweep has to ask for every file.
        let store = make(InitOptions { files_per_envelope: 1, ..OPTIONS });
        let (fs, _) = mount(Arc::new(store.clone()));
        for name in [b"a", b"b"] {
            let ino = done(&fs, || fs.make_directory(ROOT, name, creator(0o755))).unwrap().stat.ino;
            put(&fs, ino, b"stays", b"content", false);
            put(&fs, ino, b"file", b"content", false);
            let below = done(&fs, || fs.make_directory(ino, b"directory", creator(0o755))).unwrap().stat.ino;
            put(&fs, below, b"below", b"content", false);
        }
        let found = store.snapshot().killed();
        drop(fs);

        let volume = Volume::read(found.root(), Path::new("memory")).unwrap();
        let (logs, tree) = (volume.journal().unwrap(), volume.tree().unwrap());
        let (journal, _) = recovery::open(&*logs, &*tree, LOG_LEN).unwrap();
        let kms = Arc::new(FakeKms::default());
        let fs = serve(volume, Arc::new(found.clone()), journal, &kms, false);
        let ino = |name: &[u8]| fs.lookup(ROOT, name).unwrap().stat.ino;
        let (a, b) = (ino(b"a"), ino(b"b"));
        let first = tree.list().unwrap().into_iter().find(|entry| [a, b].contains(&entry.ino)).unwrap().ino;
        kms.hold();
        std::thread::scope(|scope| {
            let sweep = scope.spawn(|| fs.sweep(&AtomicBool::new(false)));
            kms.wait_for_held(1);
            // From the directory that was not looked at yet to the one that was listed already.
            fs.rename(a + b - first, what, first, b"moved", RenameMode::NoReplace).unwrap();
            kms.let_go();
            sweep.join().unwrap().unwrap();
        });
        assert!(!fs.wants_sweep());
        let all = stored_files(&found);
        assert_eq!(all.len(), 6);
        for (dir, name) in all {
            let Ok(Found::Header(found)) = Unverified::read(&*dir.open_file(&name, false).unwrap()) else { panic!() };
            assert_eq!(found.header().batch, 0, "not seen");
        }
        assert!(fs.moved.lock().is_none());
        fs.shut_down().unwrap();
    }
}

#[test]
fn what_a_crash_left_of_a_file_is_kept_and_can_be_put_back() {
    let store = make(OPTIONS);
    let (fs, _) = mount(Arc::new(store.clone()));
    let content: Vec<u8> = (0..5 * 4096_u32).map(|n| (n / 100) as u8).collect();
    put(&fs, ROOT, b"file", &content, true);
    let found = store.snapshot().cut(1);
    drop(fs);
    let (dir, name) = stored_files(&found).remove(0);
    flip(&*dir, &name, PAGE as u64 + 2 * 4096 + 5);
    let damaged = bytes(&*dir, &name);

    // No room for a copy: then the file stays as it is, and cannot be opened.
    let faults = Faults::default();
    let (fs, _) = mount(Arc::new(FaultStore::new(Arc::new(found.clone()), faults.clone())));
    let ino = || done(&fs, || fs.lookup(ROOT, b"file")).unwrap().stat.ino;
    faults.plan(Some(Plan { at: 0, lasting: true, only_changes: true, fault: Fault::Errno(libc::ENOSPC) }));
    assert!(matches!(read(&fs, ino()), Err(Error::Errno(libc::ENOSPC))));
    assert!(fs.sweep(&AtomicBool::new(false)).is_err() && fs.wants_sweep());
    assert!(bytes(&*dir, &name) == damaged);
    faults.plan(None);

    assert_eq!(read(&fs, ino()).unwrap(), b"");
    assert_eq!(fs.counters.set_aside.load(Ordering::Relaxed), 1);
    fs.sweep(&AtomicBool::new(false)).unwrap();
    fs.shut_down().unwrap();
    drop(fs);
    let lost = found.root().open_dir(b"lost").unwrap();
    let kept = lost.list().unwrap();
    assert_eq!(kept.len(), 1);
    assert!(bytes(&*lost, &kept[0].name) == damaged);

    // Back in its place, it is a file of which one chunk is damaged.
    lost.rename(&kept[0].name, &*dir, &name, RenameMode::Replace).unwrap();
    let (fs, _) = mount(Arc::new(found));
    assert!(!fs.wants_sweep());
    let handle = done(&fs, || fs.open(fs.lookup(ROOT, b"file")?.stat.ino, false, false)).unwrap();
    for (chunk, expected) in content.chunks(4096).enumerate() {
        let mut out = Vec::new();
        let result = fs.read(handle, PlainOffset(chunk as u64 * 4096), 4096, &mut out);
        match chunk {
            2 => assert!(matches!(result, Err(Error::Damaged))),
            _ => assert!(out == expected, "chunk {chunk}"),
        }
    }
}

#[test]
fn a_new_file_that_can_neither_get_its_header_nor_be_removed_is_an_empty_one() {
    let mut met = 0;
    for at in 0..12 {
        let store = make(OPTIONS);
        let faults = Faults::default();
        let (fs, _) = mount(Arc::new(FaultStore::new(Arc::new(store.clone()), faults.clone())));
        put(&fs, ROOT, b"other", b"content", true);
        faults.plan(Some(Plan { at, lasting: true, only_changes: true, fault: Fault::Errno(libc::EIO) }));
        let created = done(&fs, || fs.create(ROOT, b"file", creator(0o644)));
        faults.plan(None);
        if created.is_ok() {
            assert!(met > 0, "an entry without a header was never left");
            return;
        }
        if let Ok(entry) = done(&fs, || fs.lookup(ROOT, b"file")) {
            met += 1;
            assert_eq!(read(&fs, entry.stat.ino).unwrap(), b"", "operation {at}");
        }
        fs.shut_down().unwrap();
        drop(fs);
        let (fs, _) = mount(Arc::new(store.snapshot().cut(0)));
        if let Ok(entry) = done(&fs, || fs.lookup(ROOT, b"file")) {
            assert_eq!(read(&fs, entry.stat.ino).unwrap(), b"", "operation {at}, mounted again");
        }
        assert_eq!(fs.counters.damaged.load(Ordering::Relaxed), 0);
    }
    panic!("more operations than a file is made with");
}
