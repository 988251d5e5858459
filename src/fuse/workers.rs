//! Threads that may wait for the KMS, so that those which serve the kernel never have to. There is one for each
//! operation that waits, up to a limit; they end when there has been nothing to do for a while.

use crate::fs::{Error, Fs, Result};
use parking_lot::{Condvar, Mutex};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

const MAX_THREADS: usize = 64;
const IDLE: Duration = Duration::from_secs(10);
const STACK: usize = 256 * 1024;
/// How often one operation may find that another key is missing, or that it was dropped again meanwhile.
const ATTEMPTS: usize = 8;

type Job = Box<dyn FnOnce(&Fs) + Send>;

pub struct Workers {
    fs: Arc<Fs>,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    wake: Condvar,
}

#[derive(Default)]
struct State {
    jobs: VecDeque<Job>,
    threads: usize,
    idle: usize,
}

impl Workers {
    pub fn new(fs: Arc<Fs>) -> Self {
        Self { fs, shared: Arc::default() }
    }

    /// Calls `first`; then fetches what was missing and calls `again`, as often as something is still missing. Gives
    /// the result to `done`.
    pub fn run<T>(
        &self,
        first: impl FnOnce(&Fs) -> Result<T> + Send + 'static,
        again: impl Fn(&Fs) -> Result<T> + Send + 'static,
        done: impl FnOnce(&Fs, Result<T>) + Send + 'static,
    ) {
        self.submit(Box::new(move |fs| {
            let mut result = first(fs);
            for _ in 0..ATTEMPTS {
                let Err(Error::NeedKey(need)) = &result else { break };
                result = fs.fetch(need).and_then(|()| again(fs));
            }
            done(fs, result);
        }));
    }

    fn submit(&self, job: Job) {
        let mut state = self.shared.state.lock();
        state.jobs.push_back(job);
        if state.idle >= state.jobs.len() {
            self.shared.wake.notify_one();
        } else if state.threads < MAX_THREADS {
            let (shared, fs) = (Arc::clone(&self.shared), Arc::clone(&self.fs));
            let spawned = std::thread::Builder::new()
                .name("kmsfs-worker".into())
                .stack_size(STACK)
                .spawn(move || shared.run(&fs));
            // Without a thread of its own the job waits for one of the others.
            state.threads += usize::from(spawned.is_ok());
        }
    }
}

impl Shared {
    fn run(&self, fs: &Fs) {
        let mut state = self.state.lock();
        loop {
            if let Some(job) = state.jobs.pop_front() {
                parking_lot::MutexGuard::unlocked(&mut state, || {
                    job(fs);
                    crate::crypto::wipe_stack();
                });
                continue;
            }
            state.idle += 1;
            let timed_out = self.wake.wait_for(&mut state, IDLE).timed_out();
            state.idle -= 1;
            if timed_out && state.jobs.is_empty() {
                state.threads -= 1;
                return;
            }
        }
    }
}
