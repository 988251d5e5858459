//! A check of a volume in which names and files come and go as fast as they can.

use super::{C, make_file, make_volume, me, mount, with_keys};
use kmsfs::check::{Deep, Findings, Order, Progress};
use kmsfs::fs::examine::Named;
use kmsfs::fs::{Fs, ROOT};
use kmsfs::store::{DirEntry, Inode, Kind, RenameMode, Stat, StoreDir, StoreFile, Visit};
use kmsfs::units::PlainOffset;
use parking_lot::Mutex;
use std::any::Any;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// Creates, writes, reads by another handle, overwrites, replaces and removes, with the same few names.
fn churn(fs: &Fs, thread: u8, done: &AtomicBool) -> u64 {
    let directory = fs.make_directory(ROOT, &[b'd', thread], me(0o755)).unwrap().stat.ino;
    let (name, other) = ([&[b'n'; 240][..], &[thread]].concat(), [b'o', thread]);
    let mut turn = 0_u64;
    while !done.load(Relaxed) {
        let content = blake3::hash(&turn.to_le_bytes()).as_bytes().repeat(500);
        let (entry, handle) = with_keys(fs, || fs.create(directory, &name, me(0o644))).unwrap();
        with_keys(fs, || fs.write(handle, PlainOffset(0), &content, false)).unwrap();
        let second = with_keys(fs, || fs.open(entry.stat.ino, true, false)).unwrap();
        let mut read = Vec::new();
        with_keys(fs, || fs.read(second, PlainOffset(0), content.len(), &mut read)).unwrap();
        assert!(read == content, "{thread} {turn}: two handles of one file show different content");
        if turn.is_multiple_of(64) {
            fs.sync(handle, false).unwrap();
        }
        // Of what is committed, this is in memory only.
        with_keys(fs, || fs.write(second, PlainOffset(C), &[7; 5000], false)).unwrap();
        for handle in [handle, second] {
            fs.flush(handle).unwrap();
            fs.release(handle);
        }
        fs.make_symlink(directory, &other, &vec![b't'; if turn.is_multiple_of(3) { 3500 } else { 10 }], me(0o777))
            .unwrap();
        let link = fs.lookup(directory, &other).unwrap().stat.ino;
        assert!(!fs.read_symlink(link).unwrap().is_empty());
        if turn.is_multiple_of(5) {
            fs.rename(directory, &name, directory, &other, RenameMode::Exchange).unwrap();
        }
        for name in [&name[..], &other] {
            fs.unlink(directory, name).unwrap();
        }
        fs.forget(entry.stat.ino, 1);
        fs.forget(link, 2);
        turn += 1;
    }
    turn
}

#[test]
fn whatever_comes_and_goes_during_a_check_is_not_taken_for_damage() {
    let dir = tempfile::tempdir().unwrap();
    let (volume, key) = make_volume(dir.path(), "4K", false);
    let fs = mount(&volume, &key).unwrap();
    for name in [b"a", b"b", b"c"] {
        make_file(&fs, ROOT, name, &[(0, &[1; 100_000])], 100_000);
    }
    let (done, stop, findings) = (AtomicBool::new(false), AtomicBool::new(false), Mutex::new(Findings::default()));
    let progress = Progress::default();
    let (turns, checks) = std::thread::scope(|scope| {
        let threads = [b'1', b'2', b'3'].map(|thread| {
            let (fs, done) = (&fs, &done);
            scope.spawn(move || churn(fs, thread, done))
        });
        let tree = fs.volume().tree().unwrap();
        let begin = Instant::now();
        let mut checks = 0;
        while begin.elapsed() < Duration::from_secs(3) && !threads.iter().any(|thread| thread.is_finished()) {
            // As slow as a rate makes it: files stay open for longer than a look at them takes.
            let pace = &|_: u64| std::thread::sleep(Duration::from_millis(1));
            let check =
                Deep { fs: &fs, online: true, threads: 2, findings: &findings, progress: &progress, stop: &stop, pace };
            check.run(&tree, &Order::new(None)).unwrap();
            checks += 1;
            if checks % 50 == 0 {
                fs.commit_all().unwrap();
            }
        }
        done.store(true, Relaxed);
        (threads.map(|thread| thread.join().unwrap()), checks)
    });
    eprintln!("{checks} checks, {turns:?} turns, {} files", progress.files.load(Relaxed));
    let found: Vec<_> = findings.lock().iter().map(|finding| finding.to_json()).collect();
    assert!(found.is_empty(), "{found:#?}");
    assert_eq!(fs.counters.damaged.load(Relaxed), 0);
    assert!(checks > 1 && turns.iter().all(|turns| *turns > 1));
    fs.end_examinations();
    fs.commit_all().unwrap();
    assert_eq!(fs.open_files(), 0);
    fs.shut_down().unwrap();
}

/// A directory in which the first symbolic link that is read is what somebody else had just made of it.
struct Meddled {
    inner: Arc<dyn StoreDir>,
    first: Mutex<Option<io::Result<Vec<u8>>>>,
}

impl StoreDir for Meddled {
    fn inode(&self) -> &dyn Inode {
        self.inner.inode()
    }

    fn stat(&self, name: &[u8]) -> io::Result<Stat> {
        self.inner.stat(name)
    }

    fn entry(&self, name: &[u8]) -> io::Result<Box<dyn Inode>> {
        self.inner.entry(name)
    }

    fn open_file(&self, name: &[u8], writable: bool) -> io::Result<Arc<dyn StoreFile>> {
        self.inner.open_file(name, writable)
    }

    fn create_file(&self, name: &[u8], permissions: u32) -> io::Result<Arc<dyn StoreFile>> {
        self.inner.create_file(name, permissions)
    }

    fn open_dir(&self, name: &[u8]) -> io::Result<Arc<dyn StoreDir>> {
        self.inner.open_dir(name)
    }

    fn make_dir(&self, name: &[u8], permissions: u32) -> io::Result<()> {
        self.inner.make_dir(name, permissions)
    }

    fn make_node(&self, name: &[u8], kind: Kind, permissions: u32, rdev: u64) -> io::Result<()> {
        self.inner.make_node(name, kind, permissions, rdev)
    }

    fn make_symlink(&self, name: &[u8], target: &[u8]) -> io::Result<()> {
        self.inner.make_symlink(name, target)
    }

    fn read_symlink(&self, name: &[u8]) -> io::Result<Vec<u8>> {
        let first = if name == b".id" { None } else { self.first.lock().take() };
        first.unwrap_or_else(|| self.inner.read_symlink(name))
    }

    fn link(&self, name: &[u8], to: &dyn StoreDir, to_name: &[u8]) -> io::Result<()> {
        self.inner.link(name, to, to_name)
    }

    fn rename(&self, name: &[u8], to: &dyn StoreDir, to_name: &[u8], mode: RenameMode) -> io::Result<()> {
        self.inner.rename(name, to, to_name, mode)
    }

    fn unlink(&self, name: &[u8]) -> io::Result<()> {
        self.inner.unlink(name)
    }

    fn remove_dir(&self, name: &[u8]) -> io::Result<()> {
        self.inner.remove_dir(name)
    }

    fn each(&self, act: &mut Visit<'_>) -> io::Result<()> {
        self.inner.each(act)
    }

    fn sync(&self) -> io::Result<()> {
        self.inner.sync()
    }

    fn as_any(&self) -> &dyn Any {
        self.inner.as_any()
    }
}

#[test]
fn what_is_removed_and_made_again_while_it_is_looked_at_is_not_taken_for_damage() {
    let dir = tempfile::tempdir().unwrap();
    let (volume, key) = make_volume(dir.path(), "4K", false);
    let fs = mount(&volume, &key).unwrap();
    let name = [b'n'; 255];
    fs.make_symlink(ROOT, &name, &[b't'; 3500], me(0o777)).unwrap();
    let tree = fs.volume().tree().unwrap();
    let is_long = |entry: &DirEntry| fs.examine_name(&*tree, &entry.name).unwrap() == Named::Name(name.to_vec());
    let entry = tree.list().unwrap().into_iter().find(is_long).unwrap().name;
    let meddled = |first| Meddled { inner: Arc::clone(&tree), first: Mutex::new(Some(first)) };
    // The other half of the name was gone for a moment.
    let gone = meddled(Err(io::ErrorKind::NotFound.into()));
    assert_eq!(fs.examine_name(&gone, &entry).unwrap(), Named::Name(name.to_vec()));
    assert!(gone.first.lock().is_none());
    // The link was read whose target went with it.
    let old = meddled(Ok([b".", &[b'0'; 32][..]].concat()));
    assert!(fs.examine_link(&old, &entry).unwrap());
    assert!(old.first.lock().is_none());
    // What stays so is damage.
    let stored = tree.read_symlink(&entry).unwrap();
    fs.volume().links().unwrap().unlink(&stored[1..]).unwrap();
    assert!(!fs.examine_link(&*tree, &entry).unwrap());
    for entry in tree.list().unwrap().iter().filter(|other| other.name != entry && other.name != b".id") {
        tree.unlink(&entry.name).unwrap();
    }
    assert!(matches!(fs.examine_name(&*tree, &entry).unwrap(), Named::Unreadable(_)));
}
