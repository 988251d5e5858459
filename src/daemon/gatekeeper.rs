//! What happens when a volume locks and unlocks: the tree's part (`fs`) and the kernel's, in the right order.
//!
//! 1. nothing new is let in; what is under way ends;
//! 2. the kernel is made to send what applications wrote (`syncfs`), within the bound;
//! 3. what it sent is committed;
//! 4. the kernel is made to forget every page, name and attribute: its last dirty pages still come through;
//! 5. those are committed, the gate is closed and every key wiped, and the names that a scrub found;
//! 6. the kernel is made to forget once more what slipped in between;
//! 7. buffers that held plaintext are wiped, ours and those of the FUSE library;
//! 8. the audit log gets its last checkpoint, and the key for those is wiped too.

use super::errand::Errand;
use super::rekey::Rekeyer;
use super::rewrap::Rewrapper;
use super::scrub::Scrubber;
use super::status::reason_name;
use crate::audit::{Event, Recorder};
use crate::crypto::derive::VolumeKeys;
use crate::crypto::{Secret32, wipe_stack};
use crate::fs::{Fs, Known};
use crate::fuse::forget::Forgetter;
use crate::fuse::synced::Synced;
use crate::fuse::{Buffers, Wash};
use crate::lease::{self, LockReason, OnRevoked};

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// What a last commit gets at least.
const SHORTEST: Duration = Duration::from_millis(250);
/// For how long a lock waits for the audit log's checkpoint.
const CHECKPOINT: Duration = Duration::from_millis(250);

/// For how long an end by force waits for what was written to be stored, and at first for what is under way.
const LAST_DRAIN: Duration = Duration::from_secs(60);
const LAST_OPERATIONS: Duration = Duration::from_secs(1);
/// The kernel forgets an inode within this, unless a disk holds it up.
const STUCK: Duration = Duration::from_millis(50);
/// So many inodes may be held up by a disk before the others are.
const MOST_THREADS: usize = 64;

/// Locks and unlocks one mount.
pub struct Gatekeeper(pub Arc<Parts>);

/// What a mount consists of, as far as locking is concerned.
pub struct Parts {
    pub fs: Arc<Fs>,
    pub buffers: Arc<Buffers>,
    pub wash: Arc<Wash>,
    pub forgetter: Forgetter,
    pub synced: Arc<Synced>,
    pub mountpoint: PathBuf,
    pub recorder: Recorder,
    pub scrubber: Arc<Scrubber>,
    pub rewrapper: Arc<Rewrapper>,
    pub rekeyer: Arc<Rekeyer>,
}

impl Parts {
    /// Makes the kernel send its dirty pages.
    fn flush_kernel(&self) -> bool {
        let flushed = Errand::flush(&self.mountpoint).run();
        flushed.inspect_err(|error| tracing::warn!("the kernel does not send what was written: {error}")).is_ok()
    }

    /// Overwrites what applications wrote last, in the buffers of the threads that serve the kernel.
    fn wash(&self) {
        let write = |names: &[String]| {
            let washed = Errand::wash(&self.mountpoint, names).run();
            washed.inspect_err(|error| tracing::warn!("buffers cannot be washed: {error}")).is_ok()
        };
        if !self.wash.wash(write) {
            tracing::warn!("what was written last may still be in memory; it is tried again");
            self.wash.soil();
        }
    }

    /// What a lock could not do at once: wipes what operations kept that a disk held up, and what was written, and
    /// refused, since.
    pub fn tidy(&self) {
        if !self.fs.is_open() && (self.fs.finish_close() || self.wash.is_soiled()) {
            self.wash();
        }
    }

    fn note_lock(&self, reason: LockReason, took: Duration, drained: bool) {
        self.recorder.record(Event::Lock {
            reason: reason_name(reason),
            took_ms: u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
            drained,
            files_waiting: self.fs.waiting_files(),
        });
    }

    /// Makes the kernel forget these inodes, and says whether it has within `bound`. For each it writes out first, so
    /// one that waits for the disk must not keep the others waiting: when nothing moves, another thread goes on with the
    /// next one.
    fn forget(&self, known: &Arc<Vec<Known>>, bound: Duration) -> bool {
        let begin = Instant::now();
        let next = Arc::new(AtomicUsize::new(0));
        let (done, finished) = mpsc::channel();
        let (mut threads, mut forgotten) = (0, 0);
        while forgotten < known.len() {
            if threads == 0 || finished.recv_timeout(STUCK).map(|()| forgotten += 1).is_err() {
                if threads == MOST_THREADS || begin.elapsed() >= bound {
                    return false;
                }
                let (known, next, done) = (Arc::clone(known), Arc::clone(&next), done.clone());
                let forgetter = self.forgetter.clone();
                let spawned = std::thread::Builder::new().name("kmsfs-forget".into()).spawn(move || {
                    while let Some(inode) = known.get(next.fetch_add(1, Ordering::Relaxed)) {
                        forgetter.forget(std::slice::from_ref(inode));
                        // Nobody may be waiting any more.
                        let _ = done.send(());
                    }
                });
                if spawned.is_err() {
                    return false;
                }
                threads += 1;
            }
        }
        true
    }

    fn commit(fs: &Fs) -> bool {
        fs.commit_all().inspect_err(|error| tracing::warn!("not everything could be committed: {error:?}")).is_ok()
    }

    /// Does something that may not come back, and waits for `bound` at most: a lock goes on without it.
    fn within(bound: Duration, act: impl FnOnce() -> bool + Send + 'static) -> bool {
        let (done, finished) = mpsc::channel();
        let spawned = std::thread::Builder::new().name("kmsfs-drain".into()).spawn(move || {
            let acted = act();
            wipe_stack();
            // Nobody may be waiting any more.
            let _ = done.send(acted);
        });
        spawned.is_ok() && finished.recv_timeout(bound).unwrap_or(false)
    }
}

impl std::ops::Deref for Gatekeeper {
    type Target = Parts;

    fn deref(&self) -> &Parts {
        &self.0
    }
}

impl Gatekeeper {
    /// Stores what applications have written, within `bound`; says whether it could.
    fn drain(&self, bound: Duration) -> bool {
        let this = Arc::clone(&self.0);
        let drained = Parts::within(bound, move || this.flush_kernel() && Parts::commit(&this.fs));
        if !drained {
            tracing::warn!("not everything that was written could be stored within {bound:?}");
        }
        drained
    }
}

impl Gatekeeper {
    /// Ends the mount although somebody may use it.
    ///
    /// 1. Nothing new is taken, so that nothing is written that is not stored; whoever asks is told `ENOKEY`.
    /// 2. What the kernel has is sent and committed.
    /// 3. The mount is taken away and its connection to the kernel ended: whoever uses it is told `ENOTCONN`, and the
    ///    process ends as after every unmount. A crash before this is one like any other.
    ///
    /// # Errors
    /// If the mount cannot be taken away; it serves as before then.
    pub fn stop(&self) -> std::io::Result<()> {
        self.last_drain();
        super::mountpoint::bury(&self.mountpoint).inspect_err(|_| self.fs.end_drain())
    }

    /// Takes nothing new any more, and stores what there is.
    pub fn last_drain(&self) {
        if self.fs.is_open() {
            self.fs.begin_drain(LockReason::Operator, LAST_OPERATIONS);
            self.drain(LAST_DRAIN);
        }
    }
}

impl lease::Volume for Gatekeeper {
    fn drain_and_lock(&self, reason: LockReason, drain: Duration) {
        if !self.fs.is_open() {
            self.fs.close(reason, SHORTEST);
            self.note_lock(reason, Duration::ZERO, true);
            return;
        }
        let begin = Instant::now();
        self.scrubber.lock();
        self.rewrapper.lock();
        self.rekeyer.lock();
        let left = |bound: Duration| bound.saturating_sub(begin.elapsed()).max(SHORTEST);
        let bound_ms = u64::try_from(drain.as_millis()).unwrap_or(u64::MAX);
        self.recorder.record(Event::Drain { reason: reason_name(reason), bound_ms });
        self.fs.begin_drain(reason, drain / 3);
        let drained = self.drain(left(drain));
        let known = Arc::new(self.fs.known(SHORTEST));
        self.forget(&known, left(drain));
        let this = Arc::clone(&self.0);
        // What came with that is little.
        Parts::within(left(drain), move || Parts::commit(&this.fs));
        let uncommitted = self.fs.close(reason, SHORTEST);
        self.scrubber.forget_names(SHORTEST);
        if !self.forget(&known, SHORTEST) {
            tracing::warn!("a disk that hangs keeps the kernel from forgetting some files at once");
        }
        self.buffers.wipe();
        self.wash();
        self.fs.counters.locks.note(begin.elapsed());
        self.note_lock(reason, begin.elapsed(), drained);
        self.recorder.lock(CHECKPOINT);
        tracing::info!("locked ({reason:?}) within {:?}; {uncommitted} files could not be committed", begin.elapsed());
    }

    fn restrict(&self, on_revoked: OnRevoked, drain: Duration) {
        if on_revoked == OnRevoked::ReadOnly {
            self.drain(drain);
        }
        self.fs.restrict(Some(on_revoked));
    }

    fn release(&self) {
        self.fs.restrict(None);
    }

    fn unlock(&self, volume_key: Secret32) -> Result<(), String> {
        let key = VolumeKeys::from(&volume_key).audit_mac;
        self.fs.restrict(None);
        self.fs.reopen(volume_key)?;
        self.recorder.record(Event::Unlock);
        self.recorder.unlock(key);
        Ok(())
    }
}
