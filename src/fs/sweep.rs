//! After a crash, every file is looked at once: lengths that were not committed are cut off, and new files of which
//! not everything reached the disk are made empty. Until that is done, lengths are read from headers. Opening a file
//! does the same for that one, so nobody has to wait for the sweep.

use super::nodes::{Place, ROOT};
use super::*;
use crate::store::StoreDir;
use std::sync::atomic::AtomicBool;

impl Fs {
    /// Whether a sweep is due.
    pub fn wants_sweep(&self) -> bool {
        !self.read_only && !self.context.journal.crashed_batches().is_empty()
    }

    /// Looks at every file once. Blocks on the KMS: not for a thread that serves the kernel.
    ///
    /// # Errors
    /// The first that makes it impossible to say that all files were seen; it is tried again later.
    pub fn sweep(&self, stop: &AtomicBool) -> Result<()> {
        let root = self.nodes.directory(ROOT)?;
        self.sweep_directory(&*root, ROOT, stop)?;
        self.commit_all()?;
        Ok(self.context.journal.forgive_crashed_batches()?)
    }

    fn sweep_directory(&self, directory: &dyn StoreDir, ino: u64, stop: &AtomicBool) -> Result<()> {
        for entry in directory.list()? {
            if stop.load(Ordering::Relaxed) {
                return Err(Error::Draining);
            }
            // Not every filesystem tells it with the name.
            match entry.kind.or_else(|| directory.stat(&entry.name).ok().map(|stat| stat.kind)) {
                Some(Kind::Directory) => {
                    // One that is removed meanwhile has no files that would have to be seen.
                    let Ok(below) = directory.open_dir(&entry.name) else { continue };
                    let place = Place { parent: ino, entry: entry.name.as_slice().into() };
                    let Ok(stat) = below.inode().stat() else { continue };
                    self.nodes.remember(&stat, place);
                    let swept = self.sweep_directory(&*below, stat.ino, stop);
                    self.nodes.forget(stat.ino, 1);
                    swept?;
                }
                Some(Kind::File) => self.sweep_file(directory, ino, &entry.name)?,
                _ => (),
            }
        }
        Ok(())
    }

    fn sweep_file(&self, directory: &dyn StoreDir, parent: u64, entry: &[u8]) -> Result<()> {
        let Ok(stat) = directory.stat(entry) else { return Ok(()) };
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
            Err(Error::Errno(libc::ENOENT)) => Ok(()),
            Err(error) => Err(error),
        }
    }
}
