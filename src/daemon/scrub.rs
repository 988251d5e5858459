//! Authenticating everything in a volume while it is mounted, on a thread of its own and as slowly as it is told to.
//! One at a time; how the last few ended is kept for whoever asked for them.

use super::control::Problem;
use super::job::{self, State};
use crate::audit::Event;
use crate::check::{self, Deep, Finding, Findings, Order, Progress, Severity, Stopped};
use crate::crypto::wipe_stack;
use crate::format::PAGE;
use crate::format::geometry::Geometry;
use crate::fs::Fs;
use crate::kms::KmsError;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::num::NonZeroU64;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::thread::JoinHandle;
use std::time::Duration;

/// How many that have ended are kept.
const KEPT: usize = 4;
/// For how long whoever asks for the progress waits for the end.
const ASKED: Duration = Duration::from_millis(200);

/// How far a scrub is, as `kmsfs status --json` prints it. Stable: scripts depend on the names.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ScrubStatus {
    /// Its number on this mount, from 1.
    pub number: u64,
    /// `running`, or how it ended: `complete`, `cancelled`, `locked`, `unmounted` or `failed`.
    pub state: State,
    /// Why it failed.
    pub problem: Option<Problem>,
    /// Bytes a second, at most.
    pub rate: Option<NonZeroU64>,
    /// Files that were looked at.
    pub files: u64,
    /// Bytes that were authenticated.
    pub bytes: u64,
    /// How far it is in the plaintext of all files, holes included.
    pub position: u64,
    /// The plaintext of all files when it began, in bytes; 0 until they are counted.
    pub total: u64,
    /// Findings that are damage.
    pub damaged: usize,
    /// Findings of what could not be checked.
    pub unchecked: usize,
    /// All findings.
    pub findings: usize,
}

/// The scrubs of one mount.
pub struct Scrubber {
    fs: Arc<Fs>,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    jobs: VecDeque<Arc<Scrub>>,
    begun: u64,
    thread: Option<JoinHandle<()>>,
    /// The mount ends.
    closed: bool,
}

/// One scrub.
struct Scrub {
    number: u64,
    rate: Option<NonZeroU64>,
    progress: Progress,
    total: AtomicU64,
    findings: Mutex<Findings>,
    job: job::Job,
}

impl Scrubber {
    /// Nothing runs yet.
    pub fn new(fs: Arc<Fs>) -> Self {
        Self { fs, inner: Mutex::default() }
    }

    /// Begins one that reads `rate` bytes a second at most.
    ///
    /// # Errors
    /// `busy` if one runs already, `locked` if the volume is; `other` at the end of the mount, or without a thread.
    pub fn start(&self, rate: Option<NonZeroU64>) -> Result<ScrubStatus, Problem> {
        let mut inner = self.inner.lock();
        if inner.closed {
            return Err(Problem::new("other", "the volume is being unmounted"));
        }
        if let Some(job) = inner.jobs.back().filter(|scrub| scrub.job.is_running()) {
            let message = format!("scrub {} runs on this mount already", job.number);
            return Err(Problem::new("busy", message).hint("kmsfs status shows how far it is; scrub --cancel ends it"));
        }
        if !self.fs.is_open() {
            return Err(Problem::new("locked", "the volume is locked").hint("unlock it first"));
        }
        if let Some(before) = inner.thread.take() {
            // It has said that it ended.
            let _ = before.join();
        }
        inner.begun += 1;
        let job = Arc::new(Scrub::new(inner.begun, rate));
        let (fs, run) = (Arc::clone(&self.fs), Arc::clone(&job));
        let thread = std::thread::Builder::new().name("kmsfs-scrub".into()).spawn(move || run.run(&fs));
        inner.thread = Some(thread.map_err(|error| Problem::new("other", format!("no thread for it: {error}")))?);
        if inner.jobs.len() >= KEPT {
            inner.jobs.pop_front();
        }
        inner.jobs.push_back(Arc::clone(&job));
        Ok(job.status())
    }

    /// How far one is, after a moment unless it has ended; with what it found, if it has.
    ///
    /// # Errors
    /// `other` if it is not known, or not any more.
    pub fn progress(&self, number: u64) -> Result<(ScrubStatus, Vec<Finding>), Problem> {
        let job = self.inner.lock().jobs.iter().find(|job| job.number == number).cloned();
        let Some(job) = job else { return Err(Problem::new("other", format!("scrub {number} is not known any more"))) };
        let ended = job.job.wait(ASKED);
        let findings = if ended { job.findings.lock().iter().cloned().collect() } else { Vec::new() };
        Ok((job.status(), findings))
    }

    /// Ends the one that runs, if there is one; returns whether there was.
    pub fn cancel(&self) -> bool {
        self.last().is_some_and(|scrub| scrub.job.tell(State::Cancelled))
    }

    /// The last one.
    pub fn status(&self) -> Option<ScrubStatus> {
        self.last().map(|job| job.status())
    }

    /// The volume locks: the one that runs is told to end.
    pub fn lock(&self) {
        if let Some(job) = self.last() {
            job.job.tell(State::Locked);
        }
    }

    /// The volume is locked: waits for the one that runs for so long, and forgets every plain name that was found.
    pub fn forget_names(&self, patience: Duration) {
        let jobs = self.inner.lock().jobs.clone();
        for job in jobs {
            job.job.wait(patience);
            job.findings.lock().forget_names();
        }
    }

    /// Ends the one that runs and lets no other begin. Returns when its thread has ended.
    pub fn close(&self) {
        let mut inner = self.inner.lock();
        inner.closed = true;
        if let Some(job) = inner.jobs.back() {
            job.job.tell(State::Unmounted);
        }
        if let Some(thread) = inner.thread.take() {
            drop(inner);
            // One that panicked has said so.
            let _ = thread.join();
        }
    }

    fn last(&self) -> Option<Arc<Scrub>> {
        self.inner.lock().jobs.back().cloned()
    }
}

impl Scrub {
    fn new(number: u64, rate: Option<NonZeroU64>) -> Self {
        Self {
            number,
            rate,
            progress: Progress::default(),
            total: AtomicU64::new(0),
            findings: Mutex::default(),
            job: job::Job::new(),
        }
    }

    fn run(&self, fs: &Fs) {
        tracing::info!("scrub {} begins", self.number);
        // A panic must not leave it running for ever.
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.check(fs)));
        fs.end_examinations();
        wipe_stack();
        let (state, problem) = match result {
            Ok(Ok(())) => (State::Complete, None),
            Ok(Err(Stopped::Asked)) => (self.job.told(), None),
            Ok(Err(Stopped::Locked)) => (State::Locked, None),
            Ok(Err(Stopped::Kms(error))) => (State::Failed, Some(error.into())),
            Ok(Err(Stopped::Io(error))) => (State::Failed, Some(Problem::new("store", error.to_string()))),
            Err(_) => (State::Failed, Some(Problem::new("other", "its thread panicked"))),
        };
        self.job.end(state, problem, || {
            let mut findings = self.findings.lock();
            if state == State::Locked || !fs.is_open() {
                findings.forget_names();
            }
            let damaged = findings.count(Severity::Damage) as u64;
            let (complete, files) = (state == State::Complete, self.progress.files.load(Relaxed));
            fs.leases().recorder().record(Event::Check { what: "scrub", complete, files, damaged });
            tracing::info!("scrub {} ended ({state:?}): {files} files, {damaged} damaged", self.number);
        });
    }

    fn check(&self, fs: &Fs) -> Result<(), Stopped> {
        let tree = fs.volume().tree().map_err(Stopped::Io)?;
        let geometry = Geometry::new(fs.volume().record().chunk_size);
        self.total.store(check::size(geometry, &*tree, self.job.stop()), Relaxed);
        let deep = Deep {
            fs,
            online: true,
            threads: 1,
            findings: &self.findings,
            progress: &self.progress,
            stop: self.job.stop(),
            pace: &|bytes| self.pace(bytes),
        };
        deep.run(&tree, &Order::new(None))
    }

    /// Waits until so many bytes more fit the rate. Every piece of a file costs a page at least.
    fn pace(&self, bytes: u64) {
        self.job.keep(self.rate, bytes.max(PAGE as u64));
    }

    fn status(&self) -> ScrubStatus {
        let (state, problem) = self.job.state();
        let findings = self.findings.lock();
        ScrubStatus {
            number: self.number,
            state,
            problem,
            rate: self.rate,
            files: self.progress.files.load(Relaxed),
            bytes: self.progress.bytes.load(Relaxed),
            position: self.progress.position.load(Relaxed),
            total: self.total.load(Relaxed),
            damaged: findings.count(Severity::Damage),
            unchecked: findings.count(Severity::Unchecked),
            findings: findings.len(),
        }
    }
}

impl From<KmsError> for Problem {
    fn from(error: KmsError) -> Self {
        let problem = Self::new(error.kind.name(), error.to_string());
        Self { hint: error.hint, ..problem }
    }
}
