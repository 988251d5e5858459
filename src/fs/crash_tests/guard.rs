//! The ledger of a volume and the power: whatever is left of the volume, it is never older than its ledger says.

use super::*;
use crate::ledger::{Ledger, Mark, Place};
use crate::store::RenameMode;
use crate::store::mem::Snapshot;
use crate::units::StoredOffset;

fn ledger(fs: &Fs) -> Arc<Ledger> {
    let key = crate::crypto::Secret32::take(&mut [1; 32]);
    let place = Place { directory: MemStore::default().root(), name: b"ledger".to_vec() };
    let counter = fs.context.journal.committed();
    Arc::new(Ledger::create(place, fs.volume.record().id, &key, Mark { counter, ..Mark::default() }).unwrap())
}

fn guarded(store: &MemStore, ledger: Ledger) -> Fs {
    let (fs, _) = mount(Arc::new(store.clone()));
    assert!(fs.context.ledger.set(Arc::new(ledger)).is_ok());
    fs
}

/// Nothing of what is there is older than this ledger knows it, now and after another cut.
fn no_alarm(found: MemStore, ledger: &Ledger, what: &str, seed: u64) {
    let counter = recovery::committed(&*found.root().open_dir(b"journal").unwrap()).unwrap();
    assert!(
        counter >= ledger.mark().counter,
        "{what}: the volume is at {counter}, the ledger at {}",
        ledger.mark().counter
    );
    let fs = guarded(&found, ledger.copy());
    walk(&fs, ROOT, "", &mut Tree::new()).unwrap_or_else(|error| panic!("{what}: {error:?}"));
    assert_eq!(fs.counters.damaged.load(Ordering::Relaxed), 0, "{what}");
    if seed.is_multiple_of(3) {
        // What was learned from looking is durable as well.
        let learned = fs.context.ledger.get().unwrap().copy();
        let again = found.snapshot().cut(seed);
        let fs = guarded(&again, learned);
        walk(&fs, ROOT, "", &mut Tree::new()).unwrap_or_else(|error| panic!("{what}, again: {error:?}"));
        assert_eq!(fs.counters.damaged.load(Ordering::Relaxed), 0, "{what}, again");
    }
}

#[test]
fn after_every_cut_nothing_is_older_than_the_ledger_says() {
    let mut cuts = 0;
    for seed in 300..306_u64 {
        let store = make(OPTIONS);
        let (fs, _) = mount(Arc::new(store.clone()));
        let live = ledger(&fs);
        assert!(fs.context.ledger.set(Arc::clone(&live)).is_ok());
        store.record();
        let mut draws = Draws(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
        let mut model = Model::new();
        for number in 0..30 {
            let before = live.copy();
            let what = model.act(&fs, &mut draws);
            let look = |snapshot: &Snapshot, ledger: &Ledger, cut: u64| {
                let what = format!("work {seed}: {number} {what}, after {}", snapshot.after);
                let found = if cut.is_multiple_of(5) { snapshot.killed() } else { snapshot.cut(cut) };
                no_alarm(found, ledger, &what, cut);
            };
            for snapshot in store.recorded().iter().step_by(3) {
                cuts += 1;
                look(snapshot, &before, cuts);
            }
            // What is known by now, on what is durable by now.
            for _ in 0..4 {
                cuts += 1;
                look(&store.snapshot(), &live, cuts);
            }
        }
        model.close_all(&fs);
        fs.shut_down().unwrap();
        assert!(live.files() > 0 && live.mark().counter > 0, "work {seed}: nothing is known");
        no_alarm(store.snapshot().cut(0), &live, "shut down", 3);
    }
    println!("{cuts} cuts");
}

/// All bytes of a stored file.
fn stored(store: &MemStore, name: &[u8]) -> Vec<u8> {
    let file = store.root().open_dir(b"tree").unwrap().open_file(name, false).unwrap();
    let mut bytes = vec![0; 1 << 20];
    let len = file.read_at(&mut bytes, StoredOffset(0)).unwrap();
    bytes.truncate(len);
    bytes
}

/// Puts bytes in the place of a stored file, as a copy would.
fn put_back(store: &MemStore, name: &[u8], bytes: &[u8]) {
    let tree = store.root().open_dir(b"tree").unwrap();
    let file = tree.create_file(b"copy", 0o644).unwrap();
    file.write_at(bytes, StoredOffset(0)).unwrap();
    tree.rename(b"copy", &*tree, name, RenameMode::Replace).unwrap();
}

fn write(fs: &Fs, name: &[u8], bytes: &[u8], make: bool, sync: bool) {
    let handle = if make {
        done(fs, || fs.create(ROOT, name, creator(0o644))).unwrap().1
    } else {
        let ino = done(fs, || fs.lookup(ROOT, name)).unwrap().stat.ino;
        done(fs, || fs.open(ino, true, false)).unwrap()
    };
    fs.write(handle, PlainOffset(0), bytes, false).unwrap();
    if sync {
        fs.sync(handle, false).unwrap();
    }
    fs.flush(handle).unwrap();
    fs.release(handle);
}

fn content(fs: &Fs, name: &[u8]) -> Result<Vec<u8>> {
    let ino = done(fs, || fs.lookup(ROOT, name))?.stat.ino;
    read(fs, ino)
}

#[test]
fn a_file_that_is_put_back_as_it_was_is_refused_however_it_was_made_durable() {
    let options = InitOptions { plain_names: true, ..OPTIONS };
    // Each name says by what its versions became durable: `fsync`, a batch, or the end of the mount.
    for (first, second) in [(true, true), (true, false), (false, true), (false, false)] {
        let store = make(options);
        let (fs, _) = mount(Arc::new(store.clone()));
        let live = ledger(&fs);
        assert!(fs.context.ledger.set(Arc::clone(&live)).is_ok());
        for (make, version, sync) in [(true, &b"first"[..], first), (false, b"second", second)] {
            write(&fs, b"file", version, make, sync);
            write(&fs, b"other", version, make, sync);
            if !sync {
                fs.commit_all().unwrap();
            }
            if make {
                fs.commit_all().unwrap();
            }
        }
        // As it was when its first version was durable.
        fs.shut_down().unwrap();
        let newest = stored(&store, b"file");
        drop(fs);
        let fs = guarded(&store, live.copy());
        assert_eq!(content(&fs, b"file").unwrap(), b"second");
        write(&fs, b"file", b"third!", false, true);
        let live = fs.context.ledger.get().unwrap().copy();
        fs.shut_down().unwrap();
        drop(fs);
        let third = stored(&store, b"file");
        put_back(&store, b"file", &newest);
        let fs = guarded(&store, live.copy());
        assert!(matches!(content(&fs, b"file"), Err(Error::Damaged)), "{first} {second}");
        assert_eq!(content(&fs, b"other").unwrap(), b"second");
        assert_eq!(fs.counters.damaged.load(Ordering::Relaxed), 1);
        drop(fs);
        // Without a guard nobody can tell; with a lenient one it is read, and the ledger remembers.
        let fs = mount(Arc::new(store.clone())).0;
        assert_eq!(content(&fs, b"file").unwrap(), b"second");
        drop(fs);
        let fs = guarded(&store, live.copy().lenient());
        assert_eq!(content(&fs, b"file").unwrap(), b"second");
        assert!(fs.context.ledger.get().unwrap().mark().suspect);
        drop(fs);
        // The newest one is taken, and so is the old one when it is forgotten what was known.
        put_back(&store, b"file", &third);
        let fs = guarded(&store, live.copy());
        assert_eq!(content(&fs, b"file").unwrap(), b"third!");
        drop(fs);
        put_back(&store, b"file", &newest);
        let accepted = live.copy();
        let mut id = [0; 16];
        id.copy_from_slice(&newest[16..32]);
        assert!(accepted.forget(crate::units::FileId(id)));
        assert_eq!(content(&guarded(&store, accepted), b"file").unwrap(), b"second");
    }
}

#[test]
fn a_file_that_is_put_back_while_the_volume_is_mounted_is_refused_when_it_is_opened_again() {
    let store = make(InitOptions { plain_names: true, ..OPTIONS });
    let (fs, _) = mount(Arc::new(store.clone()));
    let live = ledger(&fs);
    assert!(fs.context.ledger.set(live).is_ok());
    write(&fs, b"file", b"first", true, true);
    fs.commit_all().unwrap();
    let first = stored(&store, b"file");
    write(&fs, b"file", b"second", false, true);
    fs.commit_all().unwrap();
    let tree = store.root().open_dir(b"tree").unwrap();
    let file = tree.open_file(b"file", true).unwrap();
    file.set_len(StoredOffset(first.len() as u64)).unwrap();
    file.write_at(&first, StoredOffset(0)).unwrap();
    assert!(matches!(content(&fs, b"file"), Err(Error::Damaged)));
    fs.unlink(ROOT, b"file").unwrap();
    write(&fs, b"file", b"third", true, true);
    assert_eq!(content(&fs, b"file").unwrap(), b"third");
}

#[test]
fn what_was_removed_is_not_known_any_more() {
    let store = make(InitOptions { plain_names: true, ..OPTIONS });
    let (fs, _) = mount(Arc::new(store.clone()));
    let live = ledger(&fs);
    assert!(fs.context.ledger.set(Arc::clone(&live)).is_ok());
    for name in [b"a", b"b", b"c", b"d"] {
        write(&fs, name, b"content", true, false);
    }
    fs.commit_all().unwrap();
    assert_eq!(live.files(), 4);
    // One that is in nobody's memory, one that is replaced, and one that is open until later.
    fs.unlink(ROOT, b"a").unwrap();
    fs.rename(ROOT, b"b", ROOT, b"c", RenameMode::Replace).unwrap();
    assert_eq!(live.files(), 2);
    let entry = done(&fs, || fs.lookup(ROOT, b"d")).unwrap();
    let handle = done(&fs, || fs.open(entry.stat.ino, true, false)).unwrap();
    fs.unlink(ROOT, b"d").unwrap();
    fs.write(handle, PlainOffset(0), b"more", false).unwrap();
    fs.sync(handle, false).unwrap();
    fs.forget(entry.stat.ino, u64::MAX);
    fs.release(handle);
    fs.commit_all().unwrap();
    assert_eq!(live.files(), 1);
}
