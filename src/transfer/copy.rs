//! One tree copied to another, with all processors, so that it can be interrupted at any moment and go on. For a file:
//! 1. its content is copied and hashed, and its attributes are set (a crash: it is not in the state, and is copied anew);
//! 2. with many others it is made durable (a crash: the same);
//! 3. it is read back, from the disk as far as the system lets us, and hashed again;
//! 4. it is noted in the state (a crash before: it is copied anew; after: it is complete).
//!
//! A directory gets its times when everything in it has come so far.

use super::file::{Links, Written, begin, follow};
use super::inode::{copy_attributes, copy_times};
use super::plain::{Damaged, KeyGone};
use super::pool::Pool;
use super::state::State;
use crate::fs::maintain::INTERVAL;
use crate::store::{DirEntry, Inode, Kind, Stat, StoreDir};
use parking_lot::Mutex;
use serde::Serialize;
use std::collections::HashSet;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};

/// So many files are made durable together, at most.
const BATCH: usize = 512;
/// What the name of an entry begins with whose own cannot be read.
const UNREADABLE: &[u8] = b".kmsfs-unreadable-";

/// A copy that is to be made.
pub struct Copy<'a> {
    /// The root of what is copied.
    pub source: Arc<dyn StoreDir>,
    /// The root of the copy.
    pub target: Arc<dyn StoreDir>,
    /// Makes durable what was written to the copy.
    pub commit: &'a (dyn Fn() -> io::Result<()> + Sync),
    /// What was copied before, and is from now on.
    pub state: &'a State,
    /// An entry of the copy's root that is none of the tree.
    pub reserved: Option<&'a [u8]>,
    /// How many threads copy.
    pub threads: usize,
    /// How far it is.
    pub progress: &'a Progress,
    /// Ends it.
    pub stop: &'a AtomicBool,
}

/// How far a copy is.
#[derive(Debug, Default)]
pub struct Progress {
    /// Bytes of files that were copied, holes included, or found to be there.
    pub bytes: AtomicU64,
    /// Files that are complete.
    pub files: AtomicU64,
}

/// How much was copied.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Totals {
    /// Regular files that are complete; one with several names counts once.
    pub files: u64,
    /// Of these, those that were complete before.
    pub kept: u64,
    /// Bytes of all of them, holes included.
    pub bytes: u64,
    /// Further names of files.
    pub hard_links: u64,
    /// Directories, without the root.
    pub directories: u64,
    /// Symbolic links.
    pub symlinks: u64,
    /// FIFOs, sockets, device nodes.
    pub others: u64,
}

/// What is wrong with one entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Note {
    /// Where, below the root.
    #[serde(serialize_with = "text")]
    pub path: Vec<u8>,
    /// What kind of thing it is.
    pub kind: NoteKind,
    /// In words.
    pub detail: String,
}

fn text<S: serde::Serializer>(path: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&crate::check::printable(path))
}

/// What kind of thing is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum NoteKind {
    /// It is damaged in the volume, and was not copied.
    Damaged,
    /// What was read back is not what was written.
    Different,
    /// It changed while it was copied.
    Changed,
    /// It could not be read or written.
    Io,
    /// It was copied, but for an attribute.
    Attribute,
    /// It is in the copy, and not in the source any more.
    Extra,
    /// Another filesystem is mounted there, which is none of the tree.
    Elsewhere,
}

/// How a copy ended.
#[derive(Debug)]
pub struct Ended {
    /// What was copied.
    pub totals: Totals,
    /// What is wrong, by path.
    pub notes: Vec<Note>,
    /// It came to its end, whatever is noted.
    pub complete: bool,
    /// Why it did not, if it was not told to stop.
    pub failed: Option<io::Error>,
}

/// A directory that is being copied.
pub(super) struct Place {
    pub source: Arc<dyn StoreDir>,
    pub target: Arc<dyn StoreDir>,
    pub path: Vec<u8>,
    above: Option<Arc<Place>>,
    /// What in it, itself among that, is not complete yet.
    left: AtomicUsize,
}

impl Place {
    pub fn path_of(&self, name: &[u8]) -> Vec<u8> {
        if self.path.is_empty() { name.to_vec() } else { [&self.path[..], b"/", name].concat() }
    }
}

pub(super) enum Task {
    Root(Arc<Place>),
    /// Opened when it is its turn: few are open at a time.
    Directory {
        above: Arc<Place>,
        name: Vec<u8>,
    },
    File {
        place: Arc<Place>,
        name: Vec<u8>,
        stat: Stat,
    },
    Verify(Written),
}

pub(super) struct Run<'a> {
    pub copy: &'a Copy<'a>,
    pub pool: Pool<Task, Written>,
    pub links: Links,
    pub totals: Mutex<Totals>,
    notes: Mutex<Vec<Note>>,
    failed: Mutex<Option<io::Error>>,
    device: u64,
}

impl Copy<'_> {
    /// Makes it.
    ///
    /// # Errors
    /// The system's, if it cannot begin.
    pub fn run(&self) -> io::Result<Ended> {
        let device = self.source.inode().device()?;
        let root = Arc::new(Place {
            source: Arc::clone(&self.source),
            target: Arc::clone(&self.target),
            path: Vec::new(),
            above: None,
            left: AtomicUsize::new(1),
        });
        let run = Run {
            copy: self,
            pool: Pool::new(Task::Root(root)),
            links: Links::default(),
            totals: Mutex::default(),
            notes: Mutex::default(),
            failed: Mutex::default(),
            device,
        };
        std::thread::scope(|scope| {
            for _ in 0..self.threads.max(1) {
                scope.spawn(|| run.pool.work(|task| run.act(task)));
            }
            while let Some(batch) = run.pool.batch(BATCH, INTERVAL) {
                // One large file may take long: what is written of it must not pile up either.
                if let Err(error) = (self.commit)().and_then(|()| self.state.sync()) {
                    run.fail(error);
                }
                if self.stop.load(Relaxed) {
                    break;
                }
                run.pool.put(batch.into_iter().map(Task::Verify));
            }
            run.pool.close();
        });
        let mut failed = run.failed.into_inner();
        if let Err(error) = (self.commit)().and_then(|()| self.state.sync()) {
            failed = failed.or(Some(error));
        }
        let mut notes = run.notes.into_inner();
        notes.sort_by(|a, b| (&a.path, a.kind).cmp(&(&b.path, b.kind)));
        let complete = failed.is_none() && !self.stop.load(Relaxed);
        Ok(Ended { totals: run.totals.into_inner(), notes, complete, failed })
    }
}

impl Run<'_> {
    fn act(&self, task: Task) {
        if self.copy.stop.load(Relaxed) {
            return self.pool.close();
        }
        match task {
            Task::Root(place) => self.directory(&place),
            Task::Directory { above, name } => match self.below(&above, &name) {
                Ok(Some(place)) => self.directory(&place),
                Ok(None) => self.done(&above),
                Err(error) => {
                    self.failed_at(&above.path_of(&name), error);
                    self.done(&above);
                }
            },
            Task::File { place, name, stat } => self.file(&place, &name, stat),
            Task::Verify(written) => self.verify(written),
        }
    }

    /// Everything ends.
    pub fn fail(&self, error: io::Error) {
        self.failed.lock().get_or_insert(error);
        self.copy.stop.store(true, Relaxed);
        self.pool.close();
    }

    pub fn note(&self, path: &[u8], kind: NoteKind, detail: impl Into<String>) {
        self.notes.lock().push(Note { path: path.to_vec(), kind, detail: detail.into() });
    }

    /// Something could not be copied: noted, unless nothing else could be either.
    pub fn failed_at(&self, path: &[u8], error: io::Error) {
        let source = error.get_ref();
        if source.is_some_and(|source| source.is::<KeyGone>())
            || matches!(
                error.kind(),
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::ReadOnlyFilesystem
            )
        {
            return self.fail(error);
        }
        if error.kind() == io::ErrorKind::Interrupted {
            return;
        }
        let damaged = source.is_some_and(|source| source.is::<Damaged>());
        let gone = matches!(
            error.kind(),
            io::ErrorKind::NotFound | io::ErrorKind::UnexpectedEof | io::ErrorKind::StaleNetworkFileHandle
        );
        let kind = match () {
            () if damaged => NoteKind::Damaged,
            () if gone => NoteKind::Changed,
            () => NoteKind::Io,
        };
        self.note(path, kind, error.to_string());
    }

    /// Something in a directory is complete, or given up. When everything is, the directory gets its attributes.
    pub fn done(&self, place: &Arc<Place>) {
        let mut place = Arc::clone(place);
        while place.left.fetch_sub(1, Relaxed) == 1 {
            self.finish(&place);
            match &place.above {
                Some(above) => place = Arc::clone(above),
                None => return,
            }
        }
    }

    fn finish(&self, place: &Place) {
        if self.copy.stop.load(Relaxed) {
            return;
        }
        let (from, to) = (place.source.inode(), place.target.inode());
        let set = from.stat().and_then(|stat| {
            self.attributes(&place.path, from, to, &stat);
            copy_times(to, &stat)
        });
        if let Err(error) = set {
            self.note(&place.path, NoteKind::Attribute, format!("its times cannot be kept: {error}"));
        }
    }

    pub fn attributes(&self, path: &[u8], from: &dyn Inode, to: &dyn Inode, stat: &Stat) {
        copy_attributes(from, to, stat, &mut |what, error| match error
            .get_ref()
            .is_some_and(|source| source.is::<KeyGone>())
        {
            true => self.fail(error),
            false => self.note(path, NoteKind::Attribute, format!("{what} cannot be kept: {error}")),
        });
    }

    fn directory(&self, place: &Arc<Place>) {
        if let Err(error) = self.entries(place) {
            self.failed_at(&place.path, error);
        }
        self.done(place);
    }

    fn entries(&self, place: &Arc<Place>) -> io::Result<()> {
        let mut entries = place.source.list()?;
        // Taken up in the order of their names, though the last one put comes first.
        entries.sort_by(|a, b| b.name.cmp(&a.name));
        let is_root = place.above.is_none();
        entries.retain(|entry| !(is_root && Some(&entry.name[..]) == self.copy.reserved));
        if self.copy.state.is_resumed() {
            self.look_for_extra(place, &entries)?;
        }
        let mut tasks = Vec::with_capacity(entries.len());
        for DirEntry { name, .. } in entries {
            if self.copy.stop.load(Relaxed) {
                break;
            }
            let path = place.path_of(&name);
            if name.starts_with(UNREADABLE) {
                self.note(&path, NoteKind::Damaged, "its own name cannot be read; it is copied under this one");
            }
            let task = place.source.stat(&name).and_then(|stat| match stat.kind {
                Kind::Directory => Ok(Some(Task::Directory { above: Arc::clone(place), name })),
                Kind::File => Ok(Some(Task::File { place: Arc::clone(place), name, stat })),
                _ => self.special(place, &name, &path, &stat).map(|()| None),
            });
            match task {
                Ok(Some(task)) => {
                    place.left.fetch_add(1, Relaxed);
                    tasks.push(task);
                }
                Ok(None) => (),
                Err(error) => self.failed_at(&path, error),
            }
        }
        self.pool.put(tasks);
        Ok(())
    }

    fn look_for_extra(&self, place: &Place, entries: &[DirEntry]) -> io::Result<()> {
        let names: HashSet<&[u8]> = entries.iter().map(|entry| &entry.name[..]).collect();
        for entry in place.target.list()? {
            let is_reserved = place.above.is_none() && Some(&entry.name[..]) == self.copy.reserved;
            if !is_reserved && !names.contains(&entry.name[..]) {
                let detail = "it was copied before and is not in the source any more; it is left";
                self.note(&place.path_of(&entry.name), NoteKind::Extra, detail);
            }
        }
        Ok(())
    }

    /// Opens a directory, and makes the one that it is copied to. `None` for one that is none of the tree.
    fn below(&self, above: &Arc<Place>, name: &[u8]) -> io::Result<Option<Arc<Place>>> {
        let (source, path) = (above.source.open_dir(name)?, above.path_of(name));
        if source.inode().device()? != self.device {
            self.note(&path, NoteKind::Elsewhere, "another filesystem is mounted there: copy it by itself");
            return Ok(None);
        }
        match above.target.make_dir(name, 0o700) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => (),
            other => other?,
        }
        self.totals.lock().directories += 1;
        let (target, above) = (above.target.open_dir(name)?, Some(Arc::clone(above)));
        Ok(Some(Arc::new(Place { source, target, path, above, left: AtomicUsize::new(1) })))
    }

    /// A symbolic link, FIFO, socket or device node; one that is there and like it stays.
    fn special(&self, place: &Arc<Place>, name: &[u8], path: &[u8], stat: &Stat) -> io::Result<()> {
        let from = place.source.entry(name)?;
        let mut links = (stat.nlink > 1).then(|| self.links.lock());
        if let Some(links) = &mut links
            && follow(links, stat.ino, place, name)?
        {
            self.totals.lock().hard_links += 1;
            return Ok(());
        }
        remove_other(&*place.target, name)?;
        if stat.kind == Kind::Symlink {
            place.target.make_symlink(name, &place.source.read_symlink(name)?)?;
            self.totals.lock().symlinks += 1;
        } else {
            place.target.make_node(name, stat.kind, 0o600, stat.rdev)?;
            self.totals.lock().others += 1;
        }
        let to = place.target.entry(name)?;
        self.attributes(path, &*from, &*to, stat);
        if let Some(mut links) = links {
            begin(&mut links, stat.ino, place, name);
        }
        copy_times(&*to, stat)
    }
}

/// Removes what is in the way of something that is copied anew. Nothing but this copy has put anything there.
pub(super) fn remove_other(target: &dyn StoreDir, name: &[u8]) -> io::Result<()> {
    match target.unlink(name) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
