//! New keys for the files of a volume while it is in use, on a thread of its own and as slowly as it is told to. One at a
//! time, and not beside a rewrap. A command does the same to a volume that is not mounted.

use super::control::Problem;
use super::job::{Job, State};
use super::rewrap::LeftFile;
use crate::audit::{Event, clean};
use crate::crypto::wipe_stack;
use crate::fs::rekey::{Outcome, Plan, Progress, Rekey};
use crate::fs::{Claim, Fs};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::num::NonZeroU64;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// For how long whoever asks for the progress waits for the end.
const ASKED: Duration = Duration::from_millis(200);

/// How far a rekey is, as `kmsfs status --json` prints it. Stable: scripts depend on the names.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RekeyStatus {
    /// Its number on this mount, from 1.
    pub number: u64,
    /// `running`, or how it ended: `complete`, `cancelled`, `locked`, `unmounted` or `failed`.
    pub state: State,
    /// Why it failed.
    pub problem: Option<Problem>,
    /// Bytes a second, at most.
    pub rate: Option<NonZeroU64>,
    /// Only a part of the files was asked for.
    pub part: bool,
    /// The epoch of new keys.
    pub epoch: u32,
    /// Names of files that are to be looked at; 0 until they are counted.
    pub total: u64,
    /// Their bytes, without holes.
    pub total_bytes: u64,
    /// How many of them were looked at.
    pub files: u64,
    /// How far it is in their bytes.
    pub position: u64,
    /// Files that got a new key.
    pub rekeyed: u64,
    /// Bytes that were sealed again.
    pub bytes: u64,
    /// Secrets that the KMS unwrapped.
    pub unwrapped: u64,
    /// New envelopes that were wrapped for them.
    pub wrapped: u64,
    /// Files that still have their old key, because they are damaged, or their KEK is refused.
    pub left: u64,
    /// Files with an older key are refused from now on.
    pub floor_raised: bool,
    /// For how long it has run, or ran, in seconds.
    pub took_s: f64,
    /// How long ago it ended, in seconds.
    pub ended_s: Option<f64>,
}

/// What is to be done.
#[derive(Clone, Debug, Default)]
pub struct RekeyOrder {
    /// Only what is at or below this path: names, from the root on.
    pub path: Option<Vec<Vec<u8>>>,
    /// Only files whose key is older than so many seconds.
    pub older_than_s: Option<u64>,
    /// Begin anew, and do not go on with one that did not come to its end.
    pub anew: bool,
    /// Bytes a second, at most.
    pub rate: Option<NonZeroU64>,
}

/// The rekeys of one volume.
pub struct Rekeyer {
    fs: Arc<Fs>,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    last: Option<Arc<Run>>,
    begun: u64,
    thread: Option<JoinHandle<()>>,
    /// The mount ends.
    closed: bool,
}

/// One rekey.
struct Run {
    number: u64,
    plan: Plan,
    order: RekeyOrder,
    progress: Progress,
    begun: Instant,
    ended: Mutex<Option<Instant>>,
    outcome: Mutex<Outcome>,
    job: Job,
}

impl Rekeyer {
    /// Nothing runs yet.
    pub fn new(fs: Arc<Fs>) -> Self {
        Self { fs, inner: Mutex::default() }
    }

    /// Begins one.
    ///
    /// # Errors
    /// `busy` if one runs already, or a rewrap; `locked` if the volume is; `other` if nothing may be changed, or at the end of
    /// the mount.
    pub fn start(&self, order: RekeyOrder) -> Result<RekeyStatus, Problem> {
        let mut inner = self.inner.lock();
        if inner.closed {
            return Err(Problem::new("other", "the volume is being unmounted"));
        }
        let claim = super::job::claim(&self.fs, "rekey")?;
        if let Some(before) = inner.thread.take() {
            // It has said that it ended.
            let _ = before.join();
        }
        inner.begun += 1;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs());
        let made_before = order.older_than_s.map(|age| now.saturating_sub(age));
        let run = Arc::new(Run {
            number: inner.begun,
            plan: Plan { path: order.path.clone(), made_before, anew: order.anew },
            order,
            progress: Progress::default(),
            begun: Instant::now(),
            ended: Mutex::default(),
            outcome: Mutex::default(),
            job: Job::new(),
        });
        let (fs, this) = (Arc::clone(&self.fs), Arc::clone(&run));
        let thread = std::thread::Builder::new().name("kmsfs-rekey".into()).spawn(move || this.run(&fs, claim));
        inner.thread = Some(thread.map_err(|error| Problem::new("other", format!("no thread for it: {error}")))?);
        inner.last = Some(Arc::clone(&run));
        Ok(run.status(&self.fs))
    }

    /// How far one is, after a moment unless it has ended; with the files that are left, if it has.
    ///
    /// # Errors
    /// `other` if it is not known, or not any more.
    pub fn progress(&self, number: u64) -> Result<(RekeyStatus, Vec<LeftFile>), Problem> {
        let run = self.last().filter(|run| run.number == number);
        let Some(run) = run else {
            return Err(Problem::new("other", format!("rekey {number} is not known any more")));
        };
        let ended = run.job.wait(ASKED);
        let left = if ended { run.outcome.lock().left.iter().map(LeftFile::from).collect() } else { Vec::new() };
        Ok((run.status(&self.fs), left))
    }

    /// Ends the one that runs, if there is one; returns whether there was.
    pub fn cancel(&self) -> bool {
        self.last().is_some_and(|run| run.job.tell(State::Cancelled))
    }

    /// The last one.
    pub fn status(&self) -> Option<RekeyStatus> {
        self.last().map(|run| run.status(&self.fs))
    }

    /// The volume locks: the one that runs is told to end.
    pub fn lock(&self) {
        if let Some(run) = self.last() {
            run.job.tell(State::Locked);
        }
    }

    /// Ends the one that runs and lets no other begin. Returns when its thread has ended.
    pub fn close(&self) {
        let mut inner = self.inner.lock();
        inner.closed = true;
        if let Some(run) = &inner.last {
            run.job.tell(State::Unmounted);
        }
        if let Some(thread) = inner.thread.take() {
            drop(inner);
            // One that panicked has said so.
            let _ = thread.join();
        }
    }

    fn last(&self) -> Option<Arc<Run>> {
        self.inner.lock().last.clone()
    }
}

impl Run {
    fn run(&self, fs: &Fs, claim: Claim) {
        tracing::info!("rekey {} begins", self.number);
        let part = self.order.path.is_some() || self.order.older_than_s.is_some();
        fs.leases().recorder().record(Event::RekeyStarted {
            part,
            older_than_s: self.order.older_than_s,
            epoch: fs.volume().record().epoch.0,
        });
        // A panic must not leave it running for ever.
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let rekey = Rekey {
                fs,
                progress: &self.progress,
                stop: self.job.stop(),
                pace: &|bytes| {
                    if let Some(rate) = self.order.rate {
                        self.job.pace(Duration::from_secs_f64(bytes as f64 / rate.get() as f64));
                    }
                },
                wait: &|time| self.job.pace(time),
            };
            rekey.run(&self.plan)
        }));
        wipe_stack();
        let (state, problem) = match self.job.ended_as(result) {
            Ok(outcome) => {
                *self.outcome.lock() = outcome;
                (State::Complete, None)
            }
            Err(ended) => ended,
        };
        // Whoever sees that it has ended can begin another.
        drop(claim);
        self.job.end(state, problem.clone(), || {
            *self.ended.lock() = Some(Instant::now());
            let outcome = self.outcome.lock();
            let (files, bytes) = (self.progress.rekeyed.load(Relaxed), self.progress.bytes.load(Relaxed));
            tracing::info!("rekey {} ended ({state:?}): {files} files, {bytes} bytes", self.number);
            fs.leases().recorder().record(Event::RekeyEnded {
                state: state.name(),
                why: problem.as_ref().map(|problem| clean(&problem.message)),
                epoch: fs.volume().record().epoch.0,
                files,
                bytes,
                unwrapped: self.progress.unwrapped.load(Relaxed),
                wrapped: self.progress.wrapped.load(Relaxed),
                left: outcome.left_count,
                floor_raised: outcome.floor_raised,
            });
        });
    }

    fn status(&self, fs: &Fs) -> RekeyStatus {
        let (state, problem) = self.job.state();
        let outcome = self.outcome.lock();
        let ended = *self.ended.lock();
        let of = |number: &std::sync::atomic::AtomicU64| number.load(Relaxed);
        RekeyStatus {
            number: self.number,
            state,
            problem,
            rate: self.order.rate,
            part: self.order.path.is_some() || self.order.older_than_s.is_some(),
            epoch: fs.volume().record().epoch.0,
            total: of(&self.progress.total),
            total_bytes: of(&self.progress.total_bytes),
            files: of(&self.progress.files),
            position: of(&self.progress.position),
            rekeyed: of(&self.progress.rekeyed),
            bytes: of(&self.progress.bytes),
            unwrapped: of(&self.progress.unwrapped),
            wrapped: of(&self.progress.wrapped),
            left: outcome.left_count,
            floor_raised: outcome.floor_raised,
            took_s: ended.unwrap_or_else(Instant::now).duration_since(self.begun).as_secs_f64(),
            ended_s: ended.map(|ended| ended.elapsed().as_secs_f64()),
        }
    }
}
