//! Wrapping everything by another KEK while the volume is in use, on a thread of its own and as slowly as it is told to.
//! One at a time. A command does the same to a volume that is not mounted.

use super::control::Problem;
use super::job::{Job, State};
use crate::audit::{Event, clean};
use crate::crypto::wipe_stack;
use crate::fs::rewrap::{Left, Outcome, Plan, Progress, Rewrap};
use crate::fs::{Claim, Fs};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::num::NonZeroU64;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// For how long whoever asks for the progress waits for the end.
const ASKED: Duration = Duration::from_millis(200);

/// How far a rewrap is, as `kmsfs status --json` prints it. Stable: scripts depend on the names.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RewrapStatus {
    /// Its number on this mount, from 1.
    pub number: u64,
    /// `running`, or how it ended: `complete`, `cancelled`, `locked`, `unmounted` or `failed`.
    pub state: State,
    /// Why it failed.
    pub problem: Option<Problem>,
    /// Files a second, at most.
    pub rate: Option<NonZeroU64>,
    /// The KEK, with its version, by which everything is wrapped then.
    pub kek: String,
    /// Names of files; 0 until they are counted.
    pub total: u64,
    /// How many of them were looked at; twice as many as there are when it is complete.
    pub files: u64,
    /// Files that got a new header.
    pub rewrapped: u64,
    /// Secrets that the KMS unwrapped.
    pub unwrapped: u64,
    /// Secrets that were wrapped anew.
    pub wrapped: u64,
    /// Files that are still wrapped by an older KEK, because they cannot be unwrapped or written.
    pub left: u64,
    /// KEKs, with their versions, that nothing in the volume needs any more.
    pub safe_to_disable: Vec<String>,
    /// How many files each KEK has wrapped, as it was counted at the end.
    pub keys: Vec<KeyCount>,
    /// For how long it has run, or ran, in seconds.
    pub took_s: f64,
    /// How long ago it ended, in seconds.
    pub ended_s: Option<f64>,
}

/// How many files a KEK has wrapped.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyCount {
    /// Its number in the volume.
    pub generation: u32,
    /// The KEK with its version, if it is one of the volume's.
    pub kek: Option<String>,
    /// How many files.
    pub files: u64,
}

/// A file that keeps an older KEK from being given up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeftFile {
    /// Where it is stored, below the volume's directory.
    pub stored: String,
    /// What is the matter with it.
    pub why: String,
    /// The KMS refuses the older KEK.
    pub refused: bool,
}

/// The rewraps of one volume.
pub struct Rewrapper {
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

/// One rewrap.
struct Run {
    number: u64,
    plan: Plan,
    rate: Option<NonZeroU64>,
    progress: Progress,
    begun: Instant,
    ended: Mutex<Option<Instant>>,
    outcome: Mutex<Outcome>,
    job: Job,
}

impl Rewrapper {
    /// Nothing runs yet.
    pub fn new(fs: Arc<Fs>) -> Self {
        Self { fs, inner: Mutex::default() }
    }

    /// Begins one that gives so many files a second a new header at most.
    ///
    /// # Errors
    /// `busy` if one runs already, or a rekey; `locked` if the volume is; `other` if nothing may be changed, or at the end of the mount.
    pub fn start(&self, plan: Plan, rate: Option<NonZeroU64>) -> Result<RewrapStatus, Problem> {
        let mut inner = self.inner.lock();
        if inner.closed {
            return Err(Problem::new("other", "the volume is being unmounted"));
        }
        let claim = super::job::claim(&self.fs, "rewrap")?;
        if let Some(before) = inner.thread.take() {
            // It has said that it ended.
            let _ = before.join();
        }
        inner.begun += 1;
        let run = Arc::new(Run {
            number: inner.begun,
            plan,
            rate,
            progress: Progress::default(),
            begun: Instant::now(),
            ended: Mutex::default(),
            outcome: Mutex::default(),
            job: Job::new(),
        });
        let (fs, this) = (Arc::clone(&self.fs), Arc::clone(&run));
        let thread = std::thread::Builder::new().name("kmsfs-rewrap".into()).spawn(move || this.run(&fs, claim));
        inner.thread = Some(thread.map_err(|error| Problem::new("other", format!("no thread for it: {error}")))?);
        inner.last = Some(Arc::clone(&run));
        Ok(run.status(&self.fs))
    }

    /// How far one is, after a moment unless it has ended; with the files that are left, if it has.
    ///
    /// # Errors
    /// `other` if it is not known, or not any more.
    pub fn progress(&self, number: u64) -> Result<(RewrapStatus, Vec<LeftFile>), Problem> {
        let run = self.last().filter(|run| run.number == number);
        let Some(run) = run else {
            return Err(Problem::new("other", format!("rewrap {number} is not known any more")));
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
    pub fn status(&self) -> Option<RewrapStatus> {
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
        let keks = || fs.volume().record().keks.iter().map(|kek| clean(&kek.volume_key.kek.0)).collect::<Vec<_>>();
        let to = self.plan.kek.as_deref().map(clean);
        tracing::info!("rewrap {} begins", self.number);
        fs.leases().recorder().record(Event::RewrapStarted {
            keks: keks(),
            to,
            recovery: self.plan.recovery_kek.as_deref().map(clean),
        });
        // A panic must not leave it running for ever.
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let rewrap = Rewrap {
                fs,
                progress: &self.progress,
                stop: self.job.stop(),
                pace: &|files| {
                    if let Some(rate) = self.rate {
                        self.job.pace(Duration::from_secs_f64(files as f64 / rate.get() as f64));
                    }
                },
                wait: &|time| self.job.pace(time),
            };
            rewrap.run(&self.plan)
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
            let (rewrapped, wrapped) = (self.progress.rewrapped.load(Relaxed), self.progress.wrapped.load(Relaxed));
            tracing::info!("rewrap {} ended ({state:?}): {rewrapped} files, {wrapped} secrets", self.number);
            fs.leases().recorder().record(Event::RewrapEnded {
                state: state.name(),
                why: problem.as_ref().map(|problem| clean(&problem.message)),
                kek: clean(&fs.volume().record().newest().volume_key.kek.0),
                files: rewrapped,
                unwrapped: self.progress.unwrapped.load(Relaxed),
                wrapped,
                left: outcome.left_count,
                retired: outcome.retired.iter().map(|kek| clean(&kek.volume_key.kek.0)).collect(),
            });
        });
    }

    fn status(&self, fs: &Fs) -> RewrapStatus {
        let (state, problem) = self.job.state();
        let (outcome, record) = (self.outcome.lock(), fs.volume().record());
        let kek_of = |generation| record.kek(generation).map(|kek| kek.volume_key.kek.to_string());
        let ended = *self.ended.lock();
        // What the newest one wraps, that was given up, is what it had wrapped before as well.
        let is_needed = |id: &String| record.keks.iter().any(|kek| kek.volume_key.kek.0 == *id);
        let mut safe: Vec<_> = outcome.retired.iter().map(|kek| kek.volume_key.kek.to_string()).collect();
        safe.retain(|id| !is_needed(id));
        safe.dedup();
        RewrapStatus {
            number: self.number,
            state,
            problem,
            rate: self.rate,
            kek: record.newest().volume_key.kek.to_string(),
            total: self.progress.total.load(Relaxed),
            files: self.progress.files.load(Relaxed),
            rewrapped: self.progress.rewrapped.load(Relaxed),
            unwrapped: self.progress.unwrapped.load(Relaxed),
            wrapped: self.progress.wrapped.load(Relaxed),
            left: outcome.left_count,
            safe_to_disable: safe,
            keys: outcome
                .files
                .iter()
                .map(|(kek, files)| KeyCount { generation: kek.0, kek: kek_of(*kek), files: *files })
                .collect(),
            took_s: ended.unwrap_or_else(Instant::now).duration_since(self.begun).as_secs_f64(),
            ended_s: ended.map(|ended| ended.elapsed().as_secs_f64()),
        }
    }
}

impl From<&Left> for LeftFile {
    fn from(left: &Left) -> Self {
        let (stored, why) = (String::from_utf8_lossy(&left.stored).into_owned(), left.why.clone());
        Self { stored, why, refused: left.refused }
    }
}
