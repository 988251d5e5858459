//! What happens when a volume locks and unlocks: the tree's part (`fs`) and the kernel's, in the right order.
//!
//! 1. nothing new is let in; what is under way ends;
//! 2. the kernel is made to send what applications wrote (`syncfs`), within the bound;
//! 3. what it sent is committed;
//! 4. the kernel is made to forget every page, name and attribute: its last dirty pages still come through;
//! 5. those are committed, the gate is closed and every key wiped;
//! 6. the kernel is made to forget once more what slipped in between.

use crate::crypto::Secret32;
use crate::fs::Fs;
use crate::fuse::Buffers;
use crate::fuse::forget::Forgetter;
use crate::lease::{self, LockReason};

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::{Duration, Instant};


/// Locks and unlocks one mount.
pub struct Gatekeeper {
    pub fs: Arc<Fs>,
    pub buffers: Arc<Buffers>,
    pub forgetter: Forgetter,
    pub mountpoint: PathBuf,
}

impl Gatekeeper {
    /// Makes the kernel send its dirty pages; waits for `bound` at most.
    fn flush_kernel(&self, bound: Duration) -> bool {
        let (done, finished) = mpsc::channel();
        let mountpoint = self.mountpoint.clone();
        // A thread of its own: if the kernel does not come back, nor does it, and the lock goes on.
        let spawned = std::thread::Builder::new().name("kmsfs-drain".into()).spawn(move || {
            let synced = std::fs::File::open(&mountpoint).and_then(|root| Ok(rustix::fs::syncfs(&root)?));
            let _ = done.send(synced.is_ok());
        });
        spawned.is_ok() && finished.recv_timeout(bound).unwrap_or(false)
    }

    fn commit(&self) {
        if let Err(error) = self.fs.commit_all() {
            tracing::warn!("what was written could not be committed before the lock: {error:?}");
        }
    }
}

impl lease::Volume for Gatekeeper {
    fn drain_and_lock(&self, reason: LockReason, drain: Duration) {
        if !self.fs.is_open() {
            self.fs.close(reason);
            return;
        }
        let begin = Instant::now();
        self.fs.begin_drain(reason);
        if !self.flush_kernel(drain) {
            tracing::warn!("the kernel did not send all that was written within {drain:?}");
        }
        self.commit();
        let known = self.fs.known();
        self.forgetter.forget(&known);
        self.commit();
        let left = self.fs.close(reason);
        self.forgetter.forget(&known);
        self.buffers.wipe();
        tracing::info!("locked ({reason:?}) within {:?}; {left} files could not be committed", begin.elapsed());
    }

    fn unlock(&self, volume_key: Secret32) -> Result<(), String> {
        self.fs.reopen(volume_key)
    }
}
