//! New keys for the files of a volume while it is in use, on a thread of its own and as slowly as it is told to. One at a
//! time, and not beside a rewrap. A command does the same to a volume that is not mounted.

use super::control::Problem;
use super::job::State;
use super::renewal::{Renewal, Renewals, Run};
use crate::audit::{Event, clean};
use crate::fs::Fs;
use crate::fs::rekey::{Outcome, Plan, Progress, Rekey};
use crate::fs::rewrap::{Left, Stopped};
use serde::{Deserialize, Serialize};
use std::num::NonZeroU64;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{SystemTime, UNIX_EPOCH};

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

/// One rekey.
pub struct Rekeying {
    plan: Plan,
    order: RekeyOrder,
    progress: Progress,
}

/// The rekeys of one volume.
pub type Rekeyer = Renewals<Rekeying>;

impl RekeyOrder {
    /// Only a part of the files is asked for.
    fn is_part(&self) -> bool {
        self.path.is_some() || self.older_than_s.is_some()
    }
}

impl Renewals<Rekeying> {
    /// Begins one.
    ///
    /// # Errors
    /// As for [`Renewals::begin`].
    pub fn start(&self, order: RekeyOrder) -> Result<RekeyStatus, Problem> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs());
        let made_before = order.older_than_s.map(|age| now.saturating_sub(age));
        let plan = Plan { path: order.path.clone(), made_before, anew: order.anew };
        self.begin(Rekeying { plan, order, progress: Progress::default() })
    }
}

impl Renewal for Rekeying {
    const WHAT: &'static str = "rekey";
    type Outcome = Outcome;
    type Status = RekeyStatus;

    fn begins(run: &Run<Self>, fs: &Fs) {
        let order = &run.renewal.order;
        fs.leases().recorder().record(Event::RekeyStarted {
            part: order.is_part(),
            older_than_s: order.older_than_s,
            epoch: fs.volume().record().epoch.0,
        });
    }

    fn act(run: &Run<Self>, fs: &Fs) -> Result<Outcome, Stopped> {
        let this = &run.renewal;
        let rekey = Rekey {
            fs,
            progress: &this.progress,
            stop: run.job.stop(),
            pace: &|bytes| run.job.keep(this.order.rate, bytes),
            wait: &|time| run.job.pace(time),
        };
        rekey.run(&this.plan)
    }

    fn ends(run: &Run<Self>, fs: &Fs, state: State, problem: Option<&Problem>) {
        let (outcome, progress) = (run.outcome.lock(), &run.renewal.progress);
        let (files, bytes) = (progress.rekeyed.load(Relaxed), progress.bytes.load(Relaxed));
        tracing::info!("rekey {} ended ({state:?}): {files} files, {bytes} bytes", run.number);
        fs.leases().recorder().record(Event::RekeyEnded {
            state: state.name(),
            why: problem.map(|problem| clean(&problem.message)),
            epoch: fs.volume().record().epoch.0,
            files,
            bytes,
            unwrapped: progress.unwrapped.load(Relaxed),
            wrapped: progress.wrapped.load(Relaxed),
            left: outcome.left_count,
            floor_raised: outcome.floor_raised,
        });
    }

    fn status(run: &Run<Self>, fs: &Fs) -> RekeyStatus {
        let (state, problem) = run.job.state();
        let outcome = run.outcome.lock();
        let Self { order, progress, .. } = &run.renewal;
        RekeyStatus {
            number: run.number,
            state,
            problem,
            rate: order.rate,
            part: order.is_part(),
            epoch: fs.volume().record().epoch.0,
            total: progress.total.load(Relaxed),
            total_bytes: progress.total_bytes.load(Relaxed),
            files: progress.files.load(Relaxed),
            position: progress.position.load(Relaxed),
            rekeyed: progress.rekeyed.load(Relaxed),
            bytes: progress.bytes.load(Relaxed),
            unwrapped: progress.unwrapped.load(Relaxed),
            wrapped: progress.wrapped.load(Relaxed),
            left: outcome.left_count,
            floor_raised: outcome.floor_raised,
            took_s: run.took_s(),
            ended_s: run.ended_s(),
        }
    }

    fn left(outcome: &Outcome) -> &[Left] {
        &outcome.left
    }
}
