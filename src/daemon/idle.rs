//! What a mount does when nobody uses it: it locks, or goes. Reading from the page cache is no use that is seen here: it
//! needs nothing of what is given up, and a mount with an open file, a working directory or a mapping does not go.

use super::mountpoint;
use crate::fs::Fs;
use crate::lease::{Keeper, State};
use std::path::PathBuf;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

/// After how long without a request what happens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Idle {
    /// The keys are wiped. Whoever comes next has the volume unlocked.
    pub lock: Option<Duration>,
    /// The mount is taken away, unless somebody has something of it open.
    pub unmount: Option<Duration>,
}

impl Idle {
    /// Watches a mount until it has ended.
    ///
    /// # Errors
    /// If the system has no thread to give.
    pub fn watch(self, fs: &Arc<Fs>, keeper: &Arc<Keeper>, mountpoint: PathBuf) -> std::io::Result<()> {
        let Some(first) = [self.lock, self.unmount].into_iter().flatten().min() else { return Ok(()) };
        let (fs, keeper) = (Arc::downgrade(fs), Arc::downgrade(keeper));
        std::thread::Builder::new().name("kmsfs-idle".into()).spawn(move || {
            // Often enough to be late by little.
            let look = (first / 10).clamp(Duration::from_millis(10), Duration::from_secs(10));
            let (mut seen, mut since, mut unlocked) = (0, Instant::now(), Instant::now());
            while let (Some(requests), Some(keeper)) = (requests(&fs), keeper.upgrade()) {
                if requests != seen {
                    (seen, since) = (requests, Instant::now());
                }
                let is_unlocked = keeper.status().state == State::Unlocked;
                if !is_unlocked {
                    // Whoever waited for it has as long as after a request.
                    unlocked = Instant::now();
                }
                let is_due =
                    |begin: Instant, after: Option<Duration>| after.is_some_and(|after| begin.elapsed() >= after);
                if is_due(since, self.unmount) {
                    match mountpoint::unmount(&mountpoint) {
                        Ok(()) => return tracing::info!("unmounted: nobody has used it for {:?}", since.elapsed()),
                        // Somebody has something open. It counts from anew.
                        Err(_) => since = Instant::now(),
                    }
                } else if is_unlocked && is_due(since.max(unlocked), self.lock) {
                    keeper.lock_idle();
                    // Somebody may have come meanwhile, and unlocked it.
                    since = Instant::now();
                }
                drop(keeper);
                std::thread::sleep(look);
            }
        })?;
        Ok(())
    }
}

fn requests(fs: &Weak<Fs>) -> Option<u64> {
    Some(fs.upgrade()?.counters.requests.load(Relaxed))
}
