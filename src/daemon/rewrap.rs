//! Wrapping everything by another KEK while the volume is in use, on a thread of its own and as slowly as it is told to.
//! One at a time. A command does the same to a volume that is not mounted.

use super::control::Problem;
use super::job::State;
use super::renewal::{Renewal, Renewals, Run};
use crate::audit::{Event, clean};
use crate::fs::Fs;
use crate::fs::rewrap::{Left, Outcome, Plan, Progress, Rewrap, Stopped};
use serde::{Deserialize, Serialize};
use std::num::NonZeroU64;
use std::sync::atomic::Ordering::Relaxed;

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

/// One rewrap.
pub struct Rewrapping {
    plan: Plan,
    rate: Option<NonZeroU64>,
    progress: Progress,
}

/// The rewraps of one volume.
pub type Rewrapper = Renewals<Rewrapping>;

impl Renewals<Rewrapping> {
    /// Begins one that gives so many files a second a new header at most.
    ///
    /// # Errors
    /// As for [`Renewals::begin`].
    pub fn start(&self, plan: Plan, rate: Option<NonZeroU64>) -> Result<RewrapStatus, Problem> {
        self.begin(Rewrapping { plan, rate, progress: Progress::default() })
    }
}

impl Renewal for Rewrapping {
    const WHAT: &'static str = "rewrap";
    type Outcome = Outcome;
    type Status = RewrapStatus;

    fn begins(run: &Run<Self>, fs: &Fs) {
        let (plan, record) = (&run.renewal.plan, fs.volume().record());
        fs.leases().recorder().record(Event::RewrapStarted {
            keks: record.keks.iter().map(|kek| clean(&kek.volume_key.kek.0)).collect(),
            to: plan.kek.as_deref().map(clean),
            recovery: plan.recovery_kek.as_deref().map(clean),
        });
    }

    fn act(run: &Run<Self>, fs: &Fs) -> Result<Outcome, Stopped> {
        let this = &run.renewal;
        let rewrap = Rewrap {
            fs,
            progress: &this.progress,
            stop: run.job.stop(),
            pace: &|files| run.job.keep(this.rate, files),
            wait: &|time| run.job.pace(time),
        };
        rewrap.run(&this.plan)
    }

    fn ends(run: &Run<Self>, fs: &Fs, state: State, problem: Option<&Problem>) {
        let (outcome, progress) = (run.outcome.lock(), &run.renewal.progress);
        let (rewrapped, wrapped) = (progress.rewrapped.load(Relaxed), progress.wrapped.load(Relaxed));
        tracing::info!("rewrap {} ended ({state:?}): {rewrapped} files, {wrapped} secrets", run.number);
        fs.leases().recorder().record(Event::RewrapEnded {
            state: state.name(),
            why: problem.map(|problem| clean(&problem.message)),
            kek: clean(&fs.volume().record().newest().volume_key.kek.0),
            files: rewrapped,
            unwrapped: progress.unwrapped.load(Relaxed),
            wrapped,
            left: outcome.left_count,
            retired: outcome.retired.iter().map(|kek| clean(&kek.volume_key.kek.0)).collect(),
        });
    }

    fn status(run: &Run<Self>, fs: &Fs) -> RewrapStatus {
        let (state, problem) = run.job.state();
        let (outcome, record) = (run.outcome.lock(), fs.volume().record());
        let Self { rate, progress, .. } = &run.renewal;
        let kek_of = |generation| record.kek(generation).map(|kek| kek.volume_key.kek.to_string());
        // What the newest one wraps, that was given up, is what it had wrapped before as well.
        let is_needed = |id: &String| record.keks.iter().any(|kek| kek.volume_key.kek.0 == *id);
        let mut safe: Vec<_> = outcome.retired.iter().map(|kek| kek.volume_key.kek.to_string()).collect();
        safe.retain(|id| !is_needed(id));
        safe.dedup();
        RewrapStatus {
            number: run.number,
            state,
            problem,
            rate: *rate,
            kek: record.newest().volume_key.kek.to_string(),
            total: progress.total.load(Relaxed),
            files: progress.files.load(Relaxed),
            rewrapped: progress.rewrapped.load(Relaxed),
            unwrapped: progress.unwrapped.load(Relaxed),
            wrapped: progress.wrapped.load(Relaxed),
            left: outcome.left_count,
            safe_to_disable: safe,
            keys: outcome
                .files
                .iter()
                .map(|(kek, files)| KeyCount { generation: kek.0, kek: kek_of(*kek), files: *files })
                .collect(),
            took_s: run.took_s(),
            ended_s: run.ended_s(),
        }
    }

    fn left(outcome: &Outcome) -> &[Left] {
        &outcome.left
    }
}
