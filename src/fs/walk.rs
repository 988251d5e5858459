//! Looking at every file of a mounted tree once, while applications make, move and remove them. Whatever got a name
//! behind the walk's back is looked at where it is then, so at the end no file was overlooked.
//!
//! A new file may be overlooked: whoever walks sees to it that those need not be looked at.

use super::nodes::{Place, ROOT};
use super::*;
use crate::store::StoreDir;
use parking_lot::MutexGuard;

/// What got another place during a walk.
pub(super) struct Moved {
    parent: u64,
    directory: Arc<dyn StoreDir>,
    entry: Vec<u8>,
    /// The directory and those above it, which are kept from being forgotten.
    held: Vec<u64>,
}

/// A regular file that a walk came across: an entry of a directory, whose inode is `parent`.
pub(super) struct Seen<'a> {
    pub directory: &'a dyn StoreDir,
    pub parent: u64,
    pub entry: &'a [u8],
    pub stat: Stat,
}

/// What is to be done with each file.
pub(super) type Look<'a> = &'a mut dyn FnMut(&Seen<'_>) -> Result<()>;

/// When so much was moved, it is looked at before the walk goes on: a slow walk must not remember every rename.
const MOST_MOVED: usize = 1024;

/// One walk.
struct Walk<'a> {
    fs: &'a Fs,
    stop: &'a AtomicBool,
    look: Look<'a>,
    /// What was moved is being looked at.
    catching_up: bool,
}

impl Fs {
    /// Lets `look` look at every file, or at those below a place, and then perhaps at others. One with several names is seen by each of them. One walk at a time: the next one
    /// waits.
    ///
    /// # Errors
    /// The first of `look` or of the store that makes it impossible to say that all files were seen;
    /// [`Error::Draining`] if it was told to stop.
    pub(super) fn walk(&self, below: Option<&Place>, stop: &AtomicBool, look: Look<'_>) -> Result<()> {
        let alone = self.walking.lock();
        self.walk_alone(&alone, below, stop, look)
    }

    /// The same, by whoever has seen to it that it is alone.
    pub(super) fn walk_alone(
        &self,
        _alone: &MutexGuard<'_, ()>,
        below: Option<&Place>,
        stop: &AtomicBool,
        look: Look<'_>,
    ) -> Result<()> {
        *self.moved.lock() = Some(Vec::new());
        let walked = Walk { fs: self, stop, look, catching_up: false }.all(below);
        let left = self.moved.lock().take();
        left.into_iter().flatten().for_each(|moved| self.let_go_of(&moved));
        walked
    }

    /// Notes that something got a name in a directory other than by being made there. To be called while the
    /// namespace is held.
    pub(super) fn note_moved(&self, parent: u64, directory: &Arc<dyn StoreDir>, entry: &[u8]) {
        if let Some(moved) = &mut *self.moved.lock() {
            let (directory, entry, held) = (Arc::clone(directory), entry.to_vec(), self.nodes.hold(parent));
            moved.push(Moved { parent, directory, entry, held });
        }
    }

    fn let_go_of(&self, moved: &Moved) {
        moved.held.iter().for_each(|ino| self.forget(*ino, 1));
    }
}

impl Walk<'_> {
    fn all(&mut self, below: Option<&Place>) -> Result<()> {
        match below {
            None => self.directory(&*self.fs.nodes.directory(ROOT)?, ROOT)?,
            Some(place) => self.entry(&*self.fs.nodes.directory(place.parent)?, place.parent, &place.entry, None)?,
        }
        while self.catch_up()? {}
        Ok(())
    }

    /// Looks at what was moved behind the walk's back, where it is now; says whether there was anything.
    fn catch_up(&mut self) -> Result<bool> {
        // Alone, so that nothing is just on its way.
        let moved = {
            let _alone = self.fs.namespace.write();
            self.fs.moved.lock().as_mut().map(std::mem::take).unwrap_or_default()
        };
        let some = !moved.is_empty();
        self.catching_up = true;
        let mut walked = Ok(());
        for moved in moved {
            walked = walked.and_then(|()| self.entry(&*moved.directory, moved.parent, &moved.entry, None));
            self.fs.let_go_of(&moved);
        }
        self.catching_up = false;
        walked.map(|()| some)
    }

    fn directory(&mut self, directory: &dyn StoreDir, ino: u64) -> Result<()> {
        for entry in directory.list()? {
            self.entry(directory, ino, &entry.name, entry.kind)?;
            if !self.catching_up && self.fs.moved.lock().as_ref().is_some_and(|moved| moved.len() > MOST_MOVED) {
                self.catch_up()?;
            }
        }
        Ok(())
    }

    fn entry(&mut self, directory: &dyn StoreDir, parent: u64, entry: &[u8], kind: Option<Kind>) -> Result<()> {
        if self.stop.load(Ordering::Relaxed) {
            return Err(Error::Draining);
        }
        // Not every filesystem tells it with the name.
        let kind = match kind {
            None => there(directory.stat(entry))?.map(|stat| stat.kind),
            known => known,
        };
        match kind {
            Some(Kind::Directory) => {
                let Some(below) = there(directory.open_dir(entry))? else { return Ok(()) };
                let stat = below.inode().stat()?;
                self.fs.nodes.remember(&stat, Place { parent, entry: entry.into() });
                let walked = self.directory(&*below, stat.ino);
                self.fs.nodes.forget(stat.ino, 1);
                walked
            }
            Some(Kind::File) => match there(directory.stat(entry))? {
                Some(stat) if stat.kind == Kind::File => {
                    self.fs.let_creators_finish(&stat);
                    (self.look)(&Seen { directory, parent, entry, stat })
                }
                _ => Ok(()),
            },
            _ => Ok(()),
        }
    }
}

/// `None` for what is gone meanwhile, or is something else, or what nobody may look at as it is now. Any other error is
/// one: a file must not count as seen because a disk had a bad moment.
pub(super) fn there<T>(found: std::io::Result<T>) -> Result<Option<T>> {
    match found {
        Ok(found) => Ok(Some(found)),
        Err(error) => match error.raw_os_error() {
            Some(libc::ENOENT | libc::ENOTDIR | libc::ELOOP | libc::ESTALE | libc::EACCES) => Ok(None),
            _ => Err(error.into()),
        },
    }
}
