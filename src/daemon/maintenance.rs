//! What a mount does unasked: every few seconds it commits what changed; it makes the next envelope before somebody has
//! to wait for it, looks at the files that a crash may have left unfinished, wipes what was written too late, and has the
//! kernel forget inodes when it knows too many.

use super::gatekeeper::Parts;
use crate::crypto::wipe_stack;
use crate::fs::maintain::INTERVAL;
use parking_lot::{Condvar, Mutex};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// How often it is looked whether there are too many inodes, once there are many.
const ROUND: Duration = Duration::from_millis(500);

/// The thread.
pub struct Maintenance {
    stop: Arc<(Mutex<bool>, Condvar)>,
    stopped: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Maintenance {
    /// Starts it. Without a thread nothing is committed unasked, and the log says so.
    pub fn start(parts: Arc<Parts>) -> Self {
        let stop = Arc::new((Mutex::new(false), Condvar::new()));
        let stopped = Arc::new(AtomicBool::new(false));
        let (shared, flag) = (Arc::clone(&stop), Arc::clone(&stopped));
        let thread = std::thread::Builder::new()
            .name("kmsfs-maintain".into())
            .spawn(move || Self::run(&parts, &shared, &flag))
            .inspect_err(|error| tracing::error!("nothing is committed by itself: {error}"))
            .ok();
        Self { stop, stopped, thread }
    }

    fn run(parts: &Parts, shared: &(Mutex<bool>, Condvar), stopped: &AtomicBool) {
        let fs = &parts.fs;
        let mut swept = !fs.wants_sweep();
        loop {
            let next = Instant::now() + if swept { INTERVAL } else { Duration::from_secs(1) };
            if fs.wants_envelope()
                && let Err(error) = fs.fetch(&crate::fs::Need::Envelope)
            {
                tracing::warn!("no new envelope: {error:?}");
            }
            if !swept && fs.is_open() {
                match fs.sweep(stopped) {
                    Ok(()) => swept = true,
                    Err(error) => tracing::info!("not all files could be looked at yet: {error:?}"),
                }
            }
            wipe_stack();
            while Instant::now() < next {
                let round = if fs.knows_many() { next.min(Instant::now() + ROUND) } else { next };
                let mut stop = shared.0.lock();
                if !*stop {
                    shared.1.wait_until(&mut stop, round);
                }
                if *stop {
                    return;
                }
                drop(stop);
                parts.forgetter.forget_names(&fs.too_many());
            }
            parts.tidy();
            let changed = fs.told_otherwise();
            let result = if fs.is_open() { fs.commit_all() } else { Ok(()) };
            changed.into_iter().chain(parts.synced.due()).for_each(|ino| parts.forgetter.forget_attributes(ino));
            if let Err(error) = result {
                if let crate::fs::Error::NeedKey(need) = &error
                    && fs.fetch(need).is_ok()
                {
                    continue;
                }
                tracing::error!("what changed could not be committed and is tried again: {error:?}");
            }
        }
    }

    /// Stops it, when it has finished what it is doing.
    pub fn stop(mut self) {
        self.stopped.store(true, Ordering::Relaxed);
        *self.stop.0.lock() = true;
        self.stop.1.notify_all();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
