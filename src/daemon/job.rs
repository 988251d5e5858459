//! What a mount does on a thread of its own when it is told to: how it is paced, told to stop, and waited for.

use super::control::Problem;
use crate::fs::rewrap::Stopped;
use crate::fs::volume::VolumeError;
use parking_lot::{Condvar, Mutex};
use serde::{Deserialize, Serialize};
use std::num::NonZeroU64;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

/// Whether a job runs, or why it does not any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// It runs.
    Running,
    /// It came to its end.
    Complete,
    /// Somebody cancelled it.
    Cancelled,
    /// The volume locked.
    Locked,
    /// The volume was unmounted.
    Unmounted,
    /// Something else was in the way.
    Failed,
}

impl State {
    /// The name that scripts see.
    pub fn name(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Complete => "complete",
            Self::Cancelled => "cancelled",
            Self::Locked => "locked",
            Self::Unmounted => "unmounted",
            Self::Failed => "failed",
        }
    }
}

/// One job, as those see it who wait for it or stop it.
pub struct Job {
    stop: AtomicBool,
    /// Until when it has to wait for what it has done to fit its rate.
    due: Mutex<Instant>,
    hurry: Condvar,
    outcome: Mutex<Outcome>,
    ended: Condvar,
}

#[derive(Default)]
struct Outcome {
    /// Why it was told to stop, while it runs.
    told: Option<State>,
    ended: Option<(State, Option<Problem>)>,
}

impl Job {
    /// One that runs.
    pub fn new() -> Self {
        Self {
            stop: AtomicBool::new(false),
            due: Mutex::new(Instant::now()),
            hurry: Condvar::new(),
            outcome: Mutex::default(),
            ended: Condvar::new(),
        }
    }

    /// Set when it has to stop.
    pub fn stop(&self) -> &AtomicBool {
        &self.stop
    }

    /// Waits until something that takes so long by the rate fits it.
    pub fn pace(&self, takes: Duration) {
        let mut due = self.due.lock();
        *due = (*due).max(Instant::now()) + takes;
        let until = *due;
        self.hurry.wait_while_until(&mut due, |_| !self.stop.load(Relaxed), until);
    }

    /// Waits until so much more fits a rate a second, if there is one.
    pub fn keep(&self, rate: Option<NonZeroU64>, amount: u64) {
        if let Some(rate) = rate {
            self.pace(Duration::from_secs_f64(amount as f64 / rate.get() as f64));
        }
    }

    /// Tells it to stop; returns whether it was running.
    pub fn tell(&self, why: State) -> bool {
        let mut outcome = self.outcome.lock();
        if outcome.ended.is_some() {
            return false;
        }
        outcome.told.get_or_insert(why);
        self.stop.store(true, Relaxed);
        // Whoever has seen that it was not set waits by now.
        drop(self.due.lock());
        self.hurry.notify_all();
        true
    }

    /// Why it was told to stop.
    pub fn told(&self) -> State {
        self.outcome.lock().told.unwrap_or(State::Cancelled)
    }

    /// What a job of all files came to, if not to its end.
    pub fn ended_as<T>(&self, result: std::thread::Result<Result<T, Stopped>>) -> Result<T, (State, Option<Problem>)> {
        let failed = |problem| (State::Failed, Some(problem));
        Err(match result {
            Ok(Ok(outcome)) => return Ok(outcome),
            Ok(Err(Stopped::Asked)) => (self.told(), None),
            Ok(Err(Stopped::Locked)) => (State::Locked, None),
            Ok(Err(Stopped::Kms(error))) => failed(error.into()),
            Ok(Err(Stopped::Volume(VolumeError::Io(error)))) => failed(Problem::new("store", error.to_string())),
            Ok(Err(Stopped::Volume(error))) => failed(Problem::new("other", error.to_string())),
            Err(_) => failed(Problem::new("other", "its thread panicked")),
        })
    }

    /// It has ended. `last` is done before anybody sees that.
    pub fn end(&self, state: State, problem: Option<Problem>, last: impl FnOnce()) {
        let mut outcome = self.outcome.lock();
        last();
        outcome.ended = Some((state, problem));
        self.ended.notify_all();
    }

    pub fn is_running(&self) -> bool {
        self.outcome.lock().ended.is_none()
    }

    /// Waits for the end, for so long; returns whether it has come.
    pub fn wait(&self, patience: Duration) -> bool {
        let mut outcome = self.outcome.lock();
        self.ended.wait_while_for(&mut outcome, |outcome| outcome.ended.is_none(), patience);
        outcome.ended.is_some()
    }

    pub fn state(&self) -> (State, Option<Problem>) {
        self.outcome.lock().ended.clone().unwrap_or((State::Running, None))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_is_kept_and_a_stop_does_not_wait_for_it() {
        let job = Job::new();
        let begin = Instant::now();
        (0..10).for_each(|_| job.pace(Duration::from_millis(10)));
        assert!(begin.elapsed() >= Duration::from_millis(90), "{:?}", begin.elapsed());
        std::thread::scope(|scope| {
            let paced = scope.spawn(|| job.pace(Duration::from_secs(1 << 20)));
            assert!(job.tell(State::Cancelled));
            paced.join().unwrap();
        });
        assert!(begin.elapsed() < Duration::from_secs(60));
        assert!(job.is_running() && job.told() == State::Cancelled);
        job.end(State::Cancelled, None, || ());
        assert!(job.wait(Duration::ZERO) && !job.tell(State::Locked));
    }
}
