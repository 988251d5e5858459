//! After a crash, every file is looked at once: lengths that were not committed are cut off, and new files of which
//! not everything reached the disk are made empty. Until that is done, lengths are read from headers. Opening a file
//! does the same for that one, so nobody has to wait for the sweep.

use super::nodes::Place;
use super::walk::Seen;
use super::*;
use std::sync::atomic::AtomicBool;

impl Fs {
    /// Whether a sweep is due.
    pub fn wants_sweep(&self) -> bool {
        !self.read_only && !self.context.journal.crashed().is_empty()
    }

    /// Looks at every file once. Blocks on the KMS: not for a thread that serves the kernel.
    ///
    /// # Errors
    /// `EBUSY` if somebody else looks at every file: a rewrap, which takes its time, and which sweeps first. The first that
    /// makes it impossible to say that all files were seen. It is tried again later.
    pub fn sweep(&self, stop: &AtomicBool) -> Result<()> {
        let Some(alone) = self.walking.try_lock() else { return Err(Error::errno(libc::EBUSY)) };
        if !self.wants_sweep() {
            return Ok(());
        }
        self.walk_alone(&alone, None, stop, &mut |seen| self.sweep_file(seen))?;
        self.commit_all()?;
        Ok(self.context.journal.forgive_crashed_batches()?)
    }

    fn sweep_file(&self, found: &Seen<'_>) -> Result<()> {
        let ino = found.stat.ino;
        self.nodes.remember(&found.stat, Place { parent: found.parent, entry: found.entry.into() });
        let seen = loop {
            let seen = {
                let keys = self.enter()?;
                let _paths = self.namespace.read();
                self.obtain_file(&keys, ino).and_then(|file| Ok(file.confirm()?))
            };
            match seen {
                Err(Error::NeedKey(need)) => self.fetch(&need)?,
                other => break other,
            }
        };
        self.nodes.forget(ino, 1);
        self.drop_unused();
        match seen {
            // Damage that has nothing to do with the crash is reported when it is met; gone is gone.
            Ok(()) | Err(Error::Damaged | Error::Stale) => Ok(()),
            Err(Error::Errno(libc::ENOENT | libc::EACCES)) => Ok(()),
            Err(error) => Err(error),
        }
    }
}
