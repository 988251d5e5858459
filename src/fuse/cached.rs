//! Which files the kernel may have pages of. A write with `O_DIRECT` that a program does not wait for (AIO, `io_uring`)
//! leaves old pages in the kernel's cache: they are taken out here, before the write counts as done, where there are any.

use super::*;
use crate::units::PlainOffset;
use fuser::{OpenFlags, ReplyWrite};
use parking_lot::RwLock;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};

/// Inodes of whose content the page cache may have something.
#[derive(Default)]
pub struct Cached(RwLock<HashMap<u64, Noted>>);

struct Noted {
    /// How often content went through the page cache.
    count: AtomicU64,
    /// The same when something was last written past it.
    at_write: AtomicU64,
}

/// What there is to be done about a write past the page cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stale {
    count: u64,
    /// Nothing went through the page cache since the last such write: when all of it was taken out, nothing is left.
    quiet: bool,
}

/// Whether a handle with these flags passes by the page cache.
pub fn is_direct(flags: OpenFlags) -> bool {
    flags.0 & libc::O_DIRECT != 0
}

impl Cached {
    /// Content of an inode is in the page cache, or is about to be.
    pub fn note(&self, ino: u64) {
        if let Some(noted) = self.0.read().get(&ino) {
            noted.count.fetch_add(1, Ordering::AcqRel);
            return;
        }
        let new = || Noted { count: AtomicU64::new(0), at_write: AtomicU64::new(0) };
        self.0.write().entry(ino).or_insert_with(new).count.fetch_add(1, Ordering::AcqRel);
    }

    /// Asked before something is written past the page cache: `None` if nothing of the inode is in it.
    pub fn stale(&self, ino: u64) -> Option<Stale> {
        let noted = self.0.read();
        let noted = noted.get(&ino)?;
        let count = noted.count.load(Ordering::Acquire);
        Some(Stale { count, quiet: noted.at_write.swap(count, Ordering::AcqRel) == count })
    }

    /// All pages of an inode were taken out. Those that came since are noted still.
    fn taken_out(&self, ino: u64, stale: Stale) {
        let mut noted = self.0.write();
        if noted.get(&ino).is_some_and(|noted| noted.count.load(Ordering::Acquire) == stale.count) {
            noted.remove(&ino);
        }
    }

    /// The kernel forgot an inode, unless it `knows` it still or again.
    pub fn forget(&self, ino: u64, knows: impl FnOnce() -> bool) {
        if self.0.read().contains_key(&ino) {
            // Asked while nobody can note it: what is noted after this stays.
            let mut noted = self.0.write();
            if !knows() {
                noted.remove(&ino);
            }
        }
    }
}

impl Kernel {
    /// Writes what the page cache may have old pages of, and has them forgotten before the write counts as done. Elsewhere:
    /// the kernel waits for pages that are being read, which somebody here has to answer.
    pub(super) fn write_past_cache(
        &self,
        (ino, handle): (u64, u64),
        offset: PlainOffset,
        data: &[u8],
        stale: Stale,
        (timed, reply): (Timed, ReplyWrite),
    ) {
        let (forgetter, cached, wash) = (self.forgetter.get().cloned(), Arc::clone(&self.cached), self.wash());
        let len = data.len();
        let data = Arc::new(zeroize::Zeroizing::new(data.to_vec()));
        let act = move |fs: &Fs| fs.write(handle, offset, &data, false);
        self.workers.run(act.clone(), act, move |fs, result| {
            let _timed = timed;
            if let Some(forgetter) = forgetter {
                if stale.quiet {
                    forgetter.write_out(ino);
                    cached.taken_out(ino, stale);
                } else {
                    forgetter.forget_pages(ino, offset.0, len as u64);
                }
            }
            match result {
                Ok(()) => reply.written(len as u32),
                Err(error) => {
                    if matches!(error, Error::Locked(_) | Error::Draining) {
                        wash.soil();
                    }
                    reply.error(number_of(fs, &error));
                }
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_noted_stays_until_all_of_it_is_taken_out_or_the_kernel_knows_it_no_more() {
        let cached = Cached::default();
        assert_eq!(cached.stale(7), None);
        cached.note(7);
        assert!(!cached.stale(7).unwrap().quiet);
        cached.note(7);
        assert!(!cached.stale(7).unwrap().quiet, "a page came since");
        let stale = cached.stale(7).unwrap();
        assert!(stale.quiet);
        cached.note(7);
        cached.taken_out(7, stale);
        assert!(!cached.stale(7).unwrap().quiet, "a page came while they were taken out");
        let stale = cached.stale(7).unwrap();
        cached.taken_out(7, stale);
        assert_eq!(cached.stale(7), None);
        cached.note(8);
        cached.forget(8, || true);
        assert!(cached.stale(8).is_some());
        cached.forget(8, || false);
        assert_eq!(cached.stale(8), None);
        assert!(is_direct(OpenFlags(libc::O_RDWR | libc::O_DIRECT)) && !is_direct(OpenFlags(libc::O_RDWR)));
    }
}
