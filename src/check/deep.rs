//! Authenticating everything in a tree: one thread walks, others open files, and a file that is long is opened by
//! several at once. The same serves for a volume that is not mounted (`fsck --deep`) and for one that is (`scrub`).

use super::finding::{Findings, Kind};
use super::queue::{Order, Queue};
use super::walk::{entries, join, order};
use crate::crypto::wipe_stack;
use crate::file::Damage;
use crate::fs::examine::{Examination, Examined, Named};
use crate::fs::{Error, Fs, Need};
use crate::kms::{KmsError, KmsErrorKind, Wrapped};
use crate::lease::LeaseError;
use crate::store::{self, Stat, StoreDir};
use crate::units::PlainOffset;
use parking_lot::Mutex;
use std::collections::{HashMap, HashSet};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

/// A file is opened in parts of at least this length.
const PART: u64 = 64 << 20;

/// Why a check did not come to its end.
#[derive(Debug)]
pub enum Stopped {
    /// It was told to.
    Asked,
    /// The volume locked.
    Locked,
    /// The KMS does not answer.
    Kms(KmsError),
    /// The tree cannot be read.
    Io(io::Error),
}

/// How far a check is; may be looked at while it runs.
#[derive(Debug, Default)]
pub struct Progress {
    /// Files that were looked at.
    pub files: AtomicU64,
    /// Bytes that were authenticated.
    pub bytes: AtomicU64,
    /// How far it is in the plaintext of all files, holes included.
    pub position: AtomicU64,
}

/// One check.
pub struct Deep<'a> {
    /// The tree.
    pub fs: &'a Fs,
    /// It is mounted: damage is counted and logged as it is found.
    pub online: bool,
    /// How many threads open files.
    pub threads: usize,
    /// What was found.
    pub findings: &'a Mutex<Findings>,
    /// How far it is.
    pub progress: &'a Progress,
    /// Set to end it.
    pub stop: &'a AtomicBool,
    /// Called with each number of bytes that were authenticated; may take its time.
    pub pace: &'a (dyn Fn(u64) + Sync),
}

/// An entry to look at.
struct Item {
    number: u64,
    directory: Arc<dyn StoreDir>,
    entry: Vec<u8>,
    /// Below the volume's directory.
    stored: Vec<u8>,
    path: Vec<u8>,
    stat: Stat,
}

enum Task {
    Item(Item),
    Part(Arc<Parts>, PlainOffset, PlainOffset),
}

/// A file that is opened in parts.
struct Parts {
    item: Item,
    examination: Examination,
    left: AtomicUsize,
}

/// Shared by the threads of one check.
struct Run<'a> {
    deep: &'a Deep<'a>,
    queue: Queue<Task>,
    order: &'a Order,
    /// Envelopes that the KMS did not unwrap, so that it is not asked again for each of their files.
    refused: Mutex<HashMap<Wrapped, KmsError>>,
    failed: Mutex<Option<Stopped>>,
}

impl Deep<'_> {
    /// Looks at everything behind the place that `order` was begun at.
    ///
    /// # Errors
    /// [`Stopped`]; what was found before stays.
    pub fn run(&self, tree: &Arc<dyn StoreDir>, order: &Order) -> Result<(), Stopped> {
        let run = Run {
            deep: self,
            queue: Queue::new(self.threads * 16),
            order,
            refused: Mutex::default(),
            failed: Mutex::default(),
        };
        std::thread::scope(|scope| {
            for _ in 0..self.threads {
                scope.spawn(|| {
                    while let Some(task) = run.queue.take() {
                        run.work(task);
                        run.queue.done();
                    }
                    wipe_stack();
                });
            }
            let mut seen = HashSet::new();
            if let Err(error) = run.directory(tree, b"tree", b"", &mut seen) {
                run.fail(Stopped::Io(error));
            }
            run.queue.close();
        });
        match run.failed.into_inner() {
            Some(failed) => Err(failed),
            None if self.stop.load(Ordering::Relaxed) => Err(Stopped::Asked),
            None => Ok(()),
        }
    }
}

impl Run<'_> {
    fn stopped(&self) -> bool {
        self.deep.stop.load(Ordering::Relaxed)
    }

    fn fail(&self, why: Stopped) {
        self.failed.lock().get_or_insert(why);
        self.deep.stop.store(true, Ordering::Relaxed);
    }

    fn directory(
        &self,
        directory: &Arc<dyn StoreDir>,
        stored: &[u8],
        path: &[u8],
        seen: &mut HashSet<u64>,
    ) -> io::Result<()> {
        for entry in entries(&**directory)? {
            if self.stopped() {
                return Ok(());
            }
            let stored = join(stored, &entry.name);
            if let Err(error) = self.entry(directory, entry.name, &stored, path, seen) {
                // Removed or exchanged meanwhile is no matter of the disk.
                if !self.is_gone(&error) {
                    self.deep.findings.lock().add(Kind::Io, &stored, None, error.to_string());
                }
            }
        }
        Ok(())
    }

    /// Whether an error says no more than that somebody removed or exchanged what was looked at.
    fn is_gone(&self, error: &io::Error) -> bool {
        let number = error.raw_os_error();
        self.deep.online && matches!(number, Some(libc::ENOENT | libc::ENOTDIR | libc::ELOOP | libc::ESTALE))
    }

    fn entry(
        &self,
        directory: &Arc<dyn StoreDir>,
        entry: Vec<u8>,
        stored: &[u8],
        path: &[u8],
        seen: &mut HashSet<u64>,
    ) -> io::Result<()> {
        let Some(name) = self.name(directory, &entry, stored, path)? else { return Ok(()) };
        let path = join(path, &name);
        self.deep.findings.lock().name(stored, &path);
        let stat = directory.stat(&entry)?;
        let passed = self.order.is_passed(|begin| order(stored, begin) != std::cmp::Ordering::Greater);
        if !passed && (stat.kind != store::Kind::File || stat.nlink == 1 || seen.insert(stat.ino)) {
            let number = self.order.begin(stored);
            let (directory, stored, path) = (Arc::clone(directory), stored.to_vec(), path.clone());
            self.queue.put(Task::Item(Item { number, directory, entry: entry.clone(), stored, path, stat }));
        }
        let goes_on_in_it = |begin: &[u8]| begin == stored || begin.starts_with(&join(stored, b""));
        let is_all_passed = || passed && !self.order.is_passed(goes_on_in_it);
        if stat.kind == store::Kind::Directory && !is_all_passed() {
            self.directory(&directory.open_dir(&entry)?, stored, &path, seen)?;
        }
        Ok(())
    }

    /// The name under which an entry is shown; `None` for what is not kmsfs's, or only for its own use.
    fn name(
        &self,
        directory: &Arc<dyn StoreDir>,
        entry: &[u8],
        stored: &[u8],
        path: &[u8],
    ) -> io::Result<Option<Vec<u8>>> {
        match self.deep.fs.examine_name(&**directory, entry) {
            Ok(Named::Name(name)) => Ok(Some(name)),
            Ok(Named::Internal) => Ok(None),
            Ok(Named::Unreadable(shown)) => {
                let path = join(path, &shown);
                let mut findings = self.deep.findings.lock();
                let parent = stored.len() - entry.len() - 1;
                if findings.add_path(stored, &path, &[Kind::Foreign]) {
                    return Ok(None);
                }
                let is_said = findings.add_path(stored, &path, &[Kind::LongName])
                    || findings.add_path(&stored[..parent], &[], &[Kind::DirectoryId]);
                if !is_said {
                    let detail = "a name that does not authenticate in its directory";
                    findings.add(Kind::Name, stored, Some(&path), detail);
                    drop(findings);
                    if self.deep.online {
                        let ino = directory.stat(entry).map_or(0, |stat| stat.ino);
                        self.deep.fs.note_damage(&format!("inode {ino}: {detail}"));
                    }
                }
                Ok(Some(shown))
            }
            Err(Error::Errno(number)) => Err(io::Error::from_raw_os_error(number)),
            Err(_) => {
                self.fail(Stopped::Locked);
                Ok(None)
            }
        }
    }

    fn work(&self, task: Task) {
        match task {
            _ if self.stopped() => {
                if let Task::Part(parts, ..) = task {
                    self.end_part(parts);
                }
            }
            Task::Part(parts, from, to) => {
                self.examine(&parts.item, &parts.examination, from, to);
                self.end_part(parts);
            }
            Task::Item(item) => self.item(item),
        }
    }

    fn item(&self, item: Item) {
        let fs = self.deep.fs;
        // Only these can have any of their own.
        if matches!(item.stat.kind, store::Kind::File | store::Kind::Directory)
            && let Some(count @ 1..) = self.outcome(&item, fs.examine_xattrs(&*item.directory, &item.entry))
        {
            let detail = format!("{count} extended attributes that do not authenticate");
            self.report(Kind::Xattr, &item, &detail);
        }
        match item.stat.kind {
            store::Kind::File => return self.file(item),
            store::Kind::Symlink
                if self.outcome(&item, fs.examine_link(&*item.directory, &item.entry)) == Some(false) =>
            {
                self.report(Kind::LinkTarget, &item, "its target does not authenticate");
            }
            _ => (),
        }
        self.finish(&item);
    }

    fn file(&self, item: Item) {
        let tree_path = item.stored.strip_prefix(b"tree/").unwrap_or(&item.stored);
        let examined = loop {
            match self.deep.fs.begin_examination(&*item.directory, &item.entry, tree_path) {
                Err(Error::NeedKey(need)) => {
                    if let Err(done) = self.fetch(&item, &need) {
                        break done;
                    }
                }
                other => break self.outcome(&item, other),
            }
        };
        self.deep.progress.files.fetch_add(1, Ordering::Relaxed);
        match examined {
            Some(Examined::File(examination)) => {
                let len = examination.len().0;
                let part = (len / (self.deep.threads as u64 * 8)).max(PART).next_multiple_of(PART);
                // A sparse one is done at once, however long it is.
                if self.deep.threads > 1 && len > part && item.stat.blocks * 512 > part {
                    let starts: Vec<u64> = (0..len).step_by(part as usize).collect();
                    let parts = Arc::new(Parts { item, examination, left: AtomicUsize::new(starts.len()) });
                    let task = |from: u64| Task::Part(Arc::clone(&parts), PlainOffset(from), PlainOffset(from + part));
                    self.queue.put_first(starts.into_iter().map(task));
                    return;
                }
                self.examine(&item, &examination, PlainOffset(0), PlainOffset(u64::MAX));
                self.deep.fs.end_examination(examination);
            }
            Some(Examined::Unfinished) => {
                self.report(Kind::Unfinished, &item, "being written when the machine went down");
            }
            Some(Examined::Damaged(damage)) => self.damage(&item, &damage),
            Some(Examined::Gone) | None => (),
        }
        self.finish(&item);
    }

    fn end_part(&self, parts: Arc<Parts>) {
        let was_last = parts.left.fetch_sub(1, Ordering::AcqRel) == 1;
        if !self.stopped() && was_last {
            self.finish(&parts.item);
        }
        if let Some(Parts { examination, .. }) = Arc::into_inner(parts) {
            self.deep.fs.end_examination(examination);
        }
    }

    fn examine(&self, item: &Item, examination: &Examination, from: PlainOffset, to: PlainOffset) {
        let mut at = from;
        while !self.stopped() {
            let mut found = Vec::new();
            let step = self.deep.fs.examine(examination, at, to, &mut |damage| found.push(damage));
            found.iter().for_each(|damage| self.damage(item, damage));
            let Some((bytes, next)) = self.outcome(item, step) else { return };
            let end = PlainOffset(examination.len().0.min(to.0).max(at.0));
            self.deep.progress.bytes.fetch_add(bytes, Ordering::Relaxed);
            self.deep.progress.position.fetch_add(next.unwrap_or(end).0.saturating_sub(at.0), Ordering::Relaxed);
            (self.deep.pace)(bytes);
            match next {
                Some(next) => at = next,
                None => return,
            }
        }
    }

    /// Has an envelope unwrapped. `Err`: it cannot be, and what that says of the file.
    fn fetch(&self, item: &Item, need: &Need) -> Result<(), Option<Examined>> {
        let Need::Unwrap(wrapped) = need else { return Err(None) };
        let known = self.refused.lock().get(&**wrapped).cloned();
        let error = match known {
            Some(error) => error,
            None => match self.deep.fs.leases().fetch(wrapped) {
                Ok(_) => return Ok(()),
                Err(LeaseError::Locked) => {
                    self.fail(Stopped::Locked);
                    return Err(None);
                }
                Err(LeaseError::Kms(error)) => error,
            },
        };
        match error.kind {
            KmsErrorKind::Damaged => {
                self.refused.lock().insert((**wrapped).clone(), error);
                Err(Some(Examined::Damaged(Damage::Envelope)))
            }
            KmsErrorKind::Refused => {
                self.report(Kind::Refused, item, &error.to_string());
                self.refused.lock().insert((**wrapped).clone(), error);
                Err(None)
            }
            _ => {
                self.fail(Stopped::Kms(error));
                Err(None)
            }
        }
    }

    /// What there is to go on with; what keeps it from going on is noted.
    fn outcome<T>(&self, item: &Item, result: Result<T, Error>) -> Option<T> {
        match result {
            Ok(value) => return Some(value),
            Err(Error::Errno(number)) => {
                let error = io::Error::from_raw_os_error(number);
                if !self.is_gone(&error) {
                    self.report(Kind::Io, item, &error.to_string());
                }
            }
            // Gone while it was looked at.
            Err(Error::Stale) => (),
            Err(_) => self.fail(Stopped::Locked),
        }
        None
    }

    fn damage(&self, item: &Item, damage: &Damage) {
        if self.deep.online {
            self.deep.fs.note_damaged_file(item.stat.ino, damage);
        }
        self.deep.findings.lock().add_damage(damage, &item.stored, Some(&item.path));
    }

    fn report(&self, kind: Kind, item: &Item, detail: &str) {
        if self.deep.online && kind.severity() == super::Severity::Damage {
            self.deep.fs.note_damage(&format!("inode {}: {detail}", item.stat.ino));
        }
        self.deep.findings.lock().add(kind, &item.stored, Some(&item.path), detail);
    }

    fn finish(&self, item: &Item) {
        if !self.stopped() {
            self.order.finish(item.number);
        }
    }
}
