//! What giving every file other wraps (`rewrap`) and giving every file another key (`rekey`) have in common for a mount:
//! each runs on a thread of its own, as slowly as it is told to, and one at a time.

use super::control::Problem;
use super::job::{Job, State};
use crate::crypto::wipe_stack;
use crate::fs::rewrap::{Left, Stopped};
use crate::fs::{Claim, Fs};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// For how long whoever asks for the progress waits for the end.
const ASKED: Duration = Duration::from_millis(200);

/// A file that could not be done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeftFile {
    /// Where it is stored, below the volume's directory.
    pub stored: String,
    /// What is the matter with it.
    pub why: String,
    /// The KMS refuses the KEK that it needs.
    pub refused: bool,
}

impl From<&Left> for LeftFile {
    fn from(left: &Left) -> Self {
        let (stored, why) = (String::from_utf8_lossy(&left.stored).into_owned(), left.why.clone());
        Self { stored, why, refused: left.refused }
    }
}

/// What is done to every file.
pub trait Renewal: Send + Sync + Sized + 'static {
    /// Its command.
    const WHAT: &'static str;
    /// What comes of it.
    type Outcome: Default + Send;
    /// How far it is, for whoever asks.
    type Status;

    /// Notes that it begins.
    fn begins(run: &Run<Self>, fs: &Fs);
    /// Does it.
    ///
    /// # Errors
    /// Why it did not come to its end.
    fn act(run: &Run<Self>, fs: &Fs) -> Result<Self::Outcome, Stopped>;
    /// Notes that it has ended.
    fn ends(run: &Run<Self>, fs: &Fs, state: State, problem: Option<&Problem>);
    /// How far it is.
    fn status(run: &Run<Self>, fs: &Fs) -> Self::Status;
    /// The first of the files that are left.
    fn left(outcome: &Self::Outcome) -> &[Left];
}

/// One renewal of all files.
pub struct Run<R: Renewal> {
    /// Its number on this mount, from 1.
    pub(super) number: u64,
    pub(super) renewal: R,
    pub(super) job: Job,
    /// Nothing before it has come to its end.
    pub(super) outcome: Mutex<R::Outcome>,
    begun: Instant,
    ended: Mutex<Option<Instant>>,
}

/// The renewals of one kind of a volume.
pub struct Renewals<R: Renewal> {
    fs: Arc<Fs>,
    inner: Mutex<Inner<R>>,
}

struct Inner<R: Renewal> {
    last: Option<Arc<Run<R>>>,
    begun: u64,
    thread: Option<JoinHandle<()>>,
    /// The mount ends.
    closed: bool,
}

impl<R: Renewal> Renewals<R> {
    /// Nothing runs yet.
    pub fn new(fs: Arc<Fs>) -> Self {
        Self { fs, inner: Mutex::new(Inner { last: None, begun: 0, thread: None, closed: false }) }
    }

    /// Begins one.
    ///
    /// # Errors
    /// `busy` if one runs already, of any kind; `locked` if the volume is; `other` if nothing may be changed, or at the end
    /// of the mount.
    pub fn begin(&self, renewal: R) -> Result<R::Status, Problem> {
        let mut inner = self.inner.lock();
        if inner.closed {
            return Err(Problem::new("other", "the volume is being unmounted"));
        }
        let claim = claim(&self.fs, R::WHAT)?;
        if let Some(before) = inner.thread.take() {
            // It has said that it ended.
            let _ = before.join();
        }
        inner.begun += 1;
        let run = Arc::new(Run {
            number: inner.begun,
            renewal,
            job: Job::new(),
            outcome: Mutex::default(),
            begun: Instant::now(),
            ended: Mutex::default(),
        });
        let (fs, this) = (Arc::clone(&self.fs), Arc::clone(&run));
        let thread = std::thread::Builder::new().name(format!("kmsfs-{}", R::WHAT)).spawn(move || this.run(&fs, claim));
        inner.thread = Some(thread.map_err(|error| Problem::new("other", format!("no thread for it: {error}")))?);
        inner.last = Some(Arc::clone(&run));
        Ok(R::status(&run, &self.fs))
    }

    /// How far one is, after a moment unless it has ended; with the files that are left, if it has.
    ///
    /// # Errors
    /// `other` if it is not known, or not any more.
    pub fn progress(&self, number: u64) -> Result<(R::Status, Vec<LeftFile>), Problem> {
        let run = self.last().filter(|run| run.number == number);
        let Some(run) = run else {
            return Err(Problem::new("other", format!("{} {number} is not known any more", R::WHAT)));
        };
        let ended = run.job.wait(ASKED);
        let left = if ended { R::left(&run.outcome.lock()).iter().map(LeftFile::from).collect() } else { Vec::new() };
        Ok((R::status(&run, &self.fs), left))
    }

    /// Ends the one that runs, if there is one; returns whether there was.
    pub fn cancel(&self) -> bool {
        self.last().is_some_and(|run| run.job.tell(State::Cancelled))
    }

    /// The last one.
    pub fn status(&self) -> Option<R::Status> {
        self.last().map(|run| R::status(&run, &self.fs))
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

    fn last(&self) -> Option<Arc<Run<R>>> {
        self.inner.lock().last.clone()
    }
}

impl<R: Renewal> Run<R> {
    fn run(&self, fs: &Fs, claim: Claim) {
        tracing::info!("{} {} begins", R::WHAT, self.number);
        R::begins(self, fs);
        // A panic must not leave it running for ever.
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| R::act(self, fs)));
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
            R::ends(self, fs, state, problem.as_ref());
        });
    }

    /// For how long it has run, or ran, in seconds.
    pub(super) fn took_s(&self) -> f64 {
        self.ended.lock().unwrap_or_else(Instant::now).duration_since(self.begun).as_secs_f64()
    }

    /// How long ago it ended, in seconds.
    pub(super) fn ended_s(&self) -> Option<f64> {
        self.ended.lock().map(|ended| ended.elapsed().as_secs_f64())
    }
}

/// All files, for what gives each of them something new.
///
/// # Errors
/// `busy` if something does so already, `locked` if the volume is; `other` if nothing may be changed.
fn claim(fs: &Arc<Fs>, what: &'static str) -> Result<Claim, Problem> {
    if fs.is_read_only() {
        let problem = Problem::new("other", "the volume is mounted so that nothing can be changed");
        let hint = format!("mount it without -o ro, or unmount it: {what} does it to the volume's directory");
        return Err(problem.hint(&hint));
    }
    if !fs.is_open() {
        return Err(Problem::new("locked", "the volume is locked").hint("unlock it first"));
    }
    fs.claim(what).map_err(|other| {
        let hint = format!("kmsfs status shows how far it is; {other} --cancel ends it");
        Problem::new("busy", format!("a {other} runs on this mount already")).hint(&hint)
    })
}
