//! What a mount does unasked: every few seconds it commits what changed; it makes the next envelope before somebody has
//! to wait for it, looks at the files that a crash may have left unfinished, wipes what was written too late, and has the
//! kernel forget inodes when it knows too many, and gives back memory when it is idle. From time to time it asks whether the key has a newer version, on another
//! thread: a KMS that hangs must hold up no commit.

use super::gatekeeper::Parts;
use super::resident::Resident;
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

/// When the key is asked after.
struct Rotation {
    every: Option<Duration>,
    asked: Instant,
    asking: Option<std::thread::JoinHandle<()>>,
}

impl Rotation {
    fn new(every: Option<Duration>) -> Self {
        Self { every, asked: Instant::now(), asking: None }
    }

    /// Asks, if it is time.
    fn ask(&mut self, parts: &Arc<Parts>) {
        let is_due = self.every.is_some_and(|every| self.asked.elapsed() >= every);
        let is_asking = self.asking.as_ref().is_some_and(|asking| !asking.is_finished());
        if !is_due || is_asking || !parts.fs.is_open() {
            return;
        }
        self.asked = Instant::now();
        let parts = Arc::clone(parts);
        let asking = std::thread::Builder::new().name("kmsfs-rotation".into()).spawn(move || {
            if let Err(error) = parts.fs.check_rotation() {
                tracing::warn!("whether the key was rotated could not be found out: {error}");
            }
            wipe_stack();
        });
        self.asking = asking.ok();
    }
}

impl Drop for Rotation {
    /// What it may change of the volume has to be over before somebody else has the volume.
    fn drop(&mut self) {
        if let Some(asking) = self.asking.take() {
            // One that panicked has said so.
            let _ = asking.join();
        }
    }
}

impl Maintenance {
    /// Starts it. Without a thread nothing is committed unasked, and the log says so.
    pub fn start(parts: Arc<Parts>, check_rotation: Option<Duration>) -> Self {
        let stop = Arc::new((Mutex::new(false), Condvar::new()));
        let stopped = Arc::new(AtomicBool::new(false));
        let (shared, flag) = (Arc::clone(&stop), Arc::clone(&stopped));
        let thread = std::thread::Builder::new()
            .name("kmsfs-maintain".into())
            .spawn(move || Self::run(&parts, &shared, &flag, Rotation::new(check_rotation)))
            .inspect_err(|error| tracing::error!("nothing is committed by itself: {error}"))
            .ok();
        Self { stop, stopped, thread }
    }

    fn run(parts: &Arc<Parts>, shared: &(Mutex<bool>, Condvar), stopped: &AtomicBool, mut rotation: Rotation) {
        let fs = &parts.fs;
        let mut swept = !fs.wants_sweep();
        let mut resident = Resident::new();
        loop {
            let pause = if swept { INTERVAL } else { Duration::from_secs(1) };
            let pause = rotation.every.unwrap_or(pause).clamp(Duration::from_secs(1), pause);
            let next = Instant::now() + pause;
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
            rotation.ask(parts);
            resident.round(&parts.buffers);
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
