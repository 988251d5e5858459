//! After a crash, every file is looked at once: lengths that were not committed are cut off, and new files of which
//! not everything reached the disk are made empty. Until that is done, lengths are read from headers. Opening a file
//! does the same for that one, so nobody has to wait for the sweep.

use super::nodes::{Place, ROOT};
use super::*;
use crate::store::StoreDir;
use std::sync::atomic::AtomicBool;

/// What got another place during a sweep.
pub(super) struct Moved {
    parent: u64,
    directory: Arc<dyn StoreDir>,
    entry: Vec<u8>,
    /// The directory and those above it, which are kept from being forgotten.
    held: Vec<u64>,
}

impl Fs {
    /// Whether a sweep is due.
    pub fn wants_sweep(&self) -> bool {
        !self.read_only && !self.context.journal.crashed().is_empty()
    }

    /// Looks at every file once. Blocks on the KMS: not for a thread that serves the kernel.
    ///
    /// # Errors
    /// The first that makes it impossible to say that all files were seen; it is tried again later.
    pub fn sweep(&self, stop: &AtomicBool) -> Result<()> {
        *self.moved.lock() = Some(Vec::new());
        let swept = self.sweep_all(stop);
        let left = self.moved.lock().take();
        left.into_iter().flatten().for_each(|moved| self.let_go_of(&moved));
        swept?;
        self.commit_all()?;
        Ok(self.context.journal.forgive_crashed_batches()?)
    }

    fn sweep_all(&self, stop: &AtomicBool) -> Result<()> {
        let root = self.nodes.directory(ROOT)?;
        self.sweep_directory(&*root, ROOT, stop)?;
        loop {
            // What was moved behind the sweep's back is looked at where it is now. Alone, so that nothing is just on its way.
            let moved = {
                let _alone = self.namespace.write();
                self.moved.lock().as_mut().map(std::mem::take).unwrap_or_default()
            };
            if moved.is_empty() {
                return Ok(());
            }
            let mut swept = Ok(());
            for moved in moved {
                swept =
                    swept.and_then(|()| self.sweep_entry(&*moved.directory, moved.parent, &moved.entry, None, stop));
                self.let_go_of(&moved);
            }
            swept?;
        }
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

    fn sweep_directory(&self, directory: &dyn StoreDir, ino: u64, stop: &AtomicBool) -> Result<()> {
        directory.list()?.iter().try_for_each(|entry| self.sweep_entry(directory, ino, &entry.name, entry.kind, stop))
    }

    fn sweep_entry(
        &self,
        directory: &dyn StoreDir,
        parent: u64,
        entry: &[u8],
        kind: Option<Kind>,
        stop: &AtomicBool,
    ) -> Result<()> {
        if stop.load(Ordering::Relaxed) {
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
                self.nodes.remember(&stat, Place { parent, entry: entry.into() });
                let swept = self.sweep_directory(&*below, stat.ino, stop);
                self.nodes.forget(stat.ino, 1);
                swept
            }
            Some(Kind::File) => self.sweep_file(directory, parent, entry),
            _ => Ok(()),
        }
    }

    fn sweep_file(&self, directory: &dyn StoreDir, parent: u64, entry: &[u8]) -> Result<()> {
        let Some(stat) = there(directory.stat(entry))? else { return Ok(()) };
        if stat.kind != Kind::File {
            return Ok(());
        }
        self.let_creators_finish(&stat);
        self.nodes.remember(&stat, Place { parent, entry: entry.into() });
        let seen = loop {
            let seen = {
                let keys = self.enter()?;
                let _paths = self.namespace.read();
                self.obtain_file(&keys, stat.ino).and_then(|file| Ok(file.confirm()?))
            };
            match seen {
                Err(Error::NeedKey(need)) => self.fetch(&need)?,
                other => break other,
            }
        };
        self.nodes.forget(stat.ino, 1);
        self.drop_unused();
        match seen {
            // Damage that has nothing to do with the crash is reported when it is met; gone is gone.
            Ok(()) | Err(Error::Damaged | Error::Stale) => Ok(()),
            Err(Error::Errno(libc::ENOENT | libc::EACCES)) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

/// `None` for what is gone meanwhile, or is something else, or what nobody may look at as it is now. Any other error is
/// one: a file must not count as seen because a disk had a bad moment.
fn there<T>(found: std::io::Result<T>) -> Result<Option<T>> {
    match found {
        Ok(found) => Ok(Some(found)),
        Err(error) => match error.raw_os_error() {
            Some(libc::ENOENT | libc::ENOTDIR | libc::ELOOP | libc::ESTALE | libc::EACCES) => Ok(None),
            _ => Err(error.into()),
        },
    }
}
