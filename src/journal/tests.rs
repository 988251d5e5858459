//! The log as a whole: how often it asks the disk, and how long it gets.

use super::*;
use crate::store::mem::MemStore;
use crate::store::{Inode, Seek, Store};
use std::sync::atomic::AtomicUsize;

/// A file whose syncs are counted, and wait while the gate is shut.
struct Gate {
    inner: Arc<dyn StoreFile>,
    syncs: AtomicUsize,
    shut: Mutex<bool>,
    changed: Condvar,
}

impl Gate {
    fn new(inner: Arc<dyn StoreFile>) -> Arc<Self> {
        Arc::new(Self { inner, syncs: AtomicUsize::new(0), shut: Mutex::new(false), changed: Condvar::new() })
    }

    fn shut(&self, shut: bool) {
        *self.shut.lock() = shut;
        self.changed.notify_all();
    }

    fn syncs(&self) -> usize {
        self.syncs.load(Ordering::SeqCst)
    }

    fn wait_for_syncs(&self, count: usize) {
        let mut shut = self.shut.lock();
        self.changed.wait_while(&mut shut, |_| self.syncs() < count);
    }
}

impl StoreFile for Gate {
    fn read_at(&self, buffer: &mut [u8], offset: StoredOffset) -> io::Result<usize> {
        self.inner.read_at(buffer, offset)
    }

    fn write_at(&self, bytes: &[u8], offset: StoredOffset) -> io::Result<()> {
        self.inner.write_at(bytes, offset)
    }

    fn set_len(&self, len: StoredOffset) -> io::Result<()> {
        self.inner.set_len(len)
    }

    fn punch(&self, offset: StoredOffset, len: u64) -> io::Result<()> {
        self.inner.punch(offset, len)
    }

    fn reserve(&self, offset: StoredOffset, len: u64) -> io::Result<()> {
        self.inner.reserve(offset, len)
    }

    fn seek(&self, offset: StoredOffset, what: Seek) -> io::Result<Option<StoredOffset>> {
        self.inner.seek(offset, what)
    }

    fn sync(&self, data_only: bool) -> io::Result<()> {
        let mut shut = self.shut.lock();
        self.syncs.fetch_add(1, Ordering::SeqCst);
        self.changed.notify_all();
        self.changed.wait_while(&mut shut, |shut| *shut);
        drop(shut);
        self.inner.sync(data_only)
    }

    fn inode(&self) -> &dyn Inode {
        self.inner.inode()
    }
}

fn target(number: u8) -> Target {
    Target { file: FileId([number; 16]), ino: u64::from(number) + 100, path: vec![b'f', number] }
}

fn update(len: usize) -> Update {
    Update {
        stored_len: StoredOffset(8192),
        writes: vec![(StoredOffset(4096), vec![7; len][..].into())],
        voids: vec![],
    }
}

#[test]
fn however_many_wait_they_cost_one_sync() {
    const WAITING: u8 = 40;
    let store = MemStore::default();
    let gates: Vec<_> = [b"a", b"b"]
        .map(|name| {
            let file = store.root().create_file(name, 0o600).unwrap();
            file.set_len(StoredOffset(1 << 20)).unwrap();
            Gate::new(file)
        })
        .to_vec();
    let logs = gates.iter().map(|gate| Log::new(Arc::clone(gate) as Arc<dyn StoreFile>).unwrap()).collect();
    let journal = Journal::of(Inner::of(logs, 0, &log::State { sequence: 1, ..log::State::default() }), 0);
    let commit = |number: u8| {
        let appended = journal.append(&target(number), &update(100)).unwrap();
        journal.sync_appended(&appended).unwrap();
        journal.applied(appended, 0, None);
    };
    gates[0].shut(true);
    std::thread::scope(|scope| {
        scope.spawn(|| commit(0));
        gates[0].wait_for_syncs(1);
        // The disk is busy: whoever comes now shares the next one.
        for number in 1..=WAITING {
            scope.spawn(move || commit(number));
        }
        let all = record::update_len(&target(0), &update(100)) as u64 * (u64::from(WAITING) + 1);
        while journal.inner.lock().appended < all {
            std::thread::yield_now();
        }
        gates[0].shut(false);
    });
    assert_eq!((gates[0].syncs(), gates[1].syncs()), (2, 0));
}

#[test]
fn the_logs_stay_as_long_as_they_were_made_however_much_goes_through_them() {
    const LEN: u64 = 256 << 10;
    let store = MemStore::default();
    for name in [b"journal".as_slice(), b"tree"] {
        store.root().make_dir(name, 0o700).unwrap();
    }
    let [logs, tree] = [b"journal".as_slice(), b"tree"].map(|name| store.root().open_dir(name).unwrap());
    let (journal, _) = recovery::open(&*logs, &*tree, LEN).unwrap();
    let file = tree.create_file(b"f", 0o600).unwrap();
    let mut through = 0;
    for round in 0..3000_usize {
        // Also one that only just fits into a log.
        let len = if round % 500 == 499 { LEN as usize - PAGE - 200 } else { round * 37 % 9000 };
        let update = update(len);
        through += record::update_len(&target(1), &update);
        let appended = journal.append(&target(1), &update).unwrap();
        journal.sync_appended(&appended).unwrap();
        journal.applied(appended, 7, Some(&file));
        for name in [b"log-a", b"log-b"] {
            assert_eq!(logs.stat(name).unwrap().len.0, LEN, "round {round}");
        }
    }
    assert!(through as u64 > 40 * LEN, "{through} bytes only");
    assert!(journal.append(&target(1), &update(LEN as usize)).is_err(), "what fits into no log");
    journal.close().unwrap();
    let names: Vec<_> = logs.list().unwrap().into_iter().map(|entry| entry.name).collect();
    assert_eq!(names, [b"log-a", b"log-b"]);
}
