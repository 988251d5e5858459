//! The queue between whoever has something to say and the one thread that writes it down.
//! Lock duty: `queue` and `key` are held for moments only, never during I/O; who records never waits for a disk.

use super::chain::Head;
use super::event::Event;
use super::limiter::Limiter;
use super::log::Log;
use super::recent::{Last, Recent};
use crate::crypto::Secret32;
use parking_lot::{Condvar, Mutex};
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

/// So many events wait for the disk; what comes on top is lost, and counted.
const CAPACITY: usize = 4096;
/// What is not grave is durable this long after it happened, and what could not be written is tried again.
const SOON: Duration = Duration::from_secs(1);
/// With nothing to do, how often that is looked at.
const IDLE: Duration = Duration::from_secs(10);
/// So many lines, or so long after the last one: a checkpoint.
const CHECKPOINT_LINES: u64 = 256;
const CHECKPOINT_AFTER: Duration = Duration::from_secs(600);

/// Says what happened. Never blocks, may be cloned, and does nothing if there is no log.
#[derive(Clone, Default)]
pub struct Recorder(Option<Arc<Shared>>);

pub(super) struct Shared {
    queue: Mutex<Queue>,
    changed: Condvar,
    /// Authenticates checkpoints; there while the volume is unlocked.
    key: Mutex<Option<Secret32>>,
    began: Instant,
    series: String,
}

struct Queue {
    waiting: VecDeque<(SystemTime, Event)>,
    limiter: Limiter,
    lost: Option<Lost>,
    lost_ever: u64,
    /// For who looks now.
    recent: Last,
    head: Head,
    /// What stands in the way of writing.
    trouble: Option<String>,
    /// Numbers of requests for a flush, and of the last one that was met.
    asked: u64,
    met: u64,
    checkpoint: bool,
    stop: bool,
    ended: bool,
}

struct Lost {
    count: u64,
    since: SystemTime,
}

/// How a log is doing.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Status {
    /// The series that this process writes.
    pub series: String,
    /// The number of the last line.
    pub seq: u64,
    /// The hash of the last line, in hexadecimal.
    pub head: String,
    /// Events that wait to be written.
    pub waiting: usize,
    /// Events that could not be written, ever.
    pub lost: u64,
    /// Why nothing can be written at the moment.
    pub error: Option<String>,
}

impl Recorder {
    pub(super) fn new(log: &Log) -> (Self, Arc<Shared>) {
        let queue = Queue {
            waiting: VecDeque::new(),
            limiter: Limiter::default(),
            lost: None,
            lost_ever: 0,
            recent: Last::default(),
            head: log.head(),
            trouble: None,
            asked: 0,
            met: 0,
            checkpoint: false,
            stop: false,
            ended: false,
        };
        let shared = Arc::new(Shared {
            queue: Mutex::new(queue),
            changed: Condvar::new(),
            key: Mutex::new(None),
            began: Instant::now(),
            series: log.series().to_owned(),
        });
        (Self(Some(Arc::clone(&shared))), shared)
    }

    /// One that notes nothing.
    pub fn none() -> Self {
        Self(None)
    }

    /// Notes that something happened now.
    pub fn record(&self, event: Event) {
        let Some(shared) = &self.0 else { return };
        let time = SystemTime::now();
        let mut queue = shared.queue.lock();
        queue.recent.note(time, &event);
        for event in queue.limiter.take(shared.began.elapsed(), time, event) {
            queue.push(time, event);
        }
        drop(queue);
        shared.changed.notify_all();
    }

    /// From now on, checkpoints are made, with this key; the first one at once.
    pub fn unlock(&self, key: Secret32) {
        let Some(shared) = &self.0 else { return };
        *shared.key.lock() = Some(key);
        shared.queue.lock().checkpoint = true;
        shared.changed.notify_all();
    }

    /// Makes a last checkpoint, for which it waits for `bound` at most, and wipes the key.
    pub fn lock(&self, bound: Duration) {
        let Some(shared) = &self.0 else { return };
        shared.queue.lock().checkpoint = true;
        self.flush(bound);
        *shared.key.lock() = None;
    }

    /// Waits until everything that was recorded is durable, for `bound` at most; whether it is.
    pub fn flush(&self, bound: Duration) -> bool {
        let Some(shared) = &self.0 else { return true };
        let until = Instant::now() + bound;
        let mut queue = shared.queue.lock();
        queue.asked += 1;
        let mine = queue.asked;
        shared.changed.notify_all();
        while queue.met < mine && !queue.ended {
            if shared.changed.wait_until(&mut queue, until).timed_out() {
                return false;
            }
        }
        queue.met >= mine && queue.trouble.is_none()
    }

    /// The last events, the newest first.
    pub fn recent(&self) -> Vec<Recent> {
        self.0.as_ref().map(|shared| shared.queue.lock().recent.told()).unwrap_or_default()
    }

    /// How the log is doing, `None` if there is none.
    pub fn status(&self) -> Option<Status> {
        let shared = self.0.as_ref()?;
        let queue = shared.queue.lock();
        Some(Status {
            series: shared.series.clone(),
            seq: queue.head.seq,
            head: super::chain::hex(&queue.head.hash),
            waiting: queue.waiting.len(),
            lost: queue.lost_ever,
            error: queue.trouble.clone(),
        })
    }
}

impl std::fmt::Debug for Recorder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Recorder").field(&self.status()).finish()
    }
}

impl Queue {
    fn push(&mut self, time: SystemTime, event: Event) {
        if self.waiting.len() < CAPACITY {
            self.waiting.push_back((time, event));
            return;
        }
        self.lost_ever += 1;
        self.lost.get_or_insert(Lost { count: 0, since: time }).count += 1;
    }
}

impl Shared {
    pub(super) fn stop(&self) {
        let mut queue = self.queue.lock();
        (queue.stop, queue.checkpoint) = (true, true);
        drop(queue);
        self.changed.notify_all();
    }

    /// Waits until the thread has ended, for `bound` at most; whether it has.
    pub(super) fn ended(&self, bound: Duration) -> bool {
        let until = Instant::now() + bound;
        let mut queue = self.queue.lock();
        while !queue.ended {
            if self.changed.wait_until(&mut queue, until).timed_out() {
                return false;
            }
        }
        true
    }

    pub(super) fn wipe(&self) {
        *self.key.lock() = None;
    }
}

/// The thread.
pub(super) struct Writer {
    shared: Arc<Shared>,
    log: Log,
    /// Taken from the queue, and not written yet.
    backlog: VecDeque<(SystemTime, Event)>,
    /// Lines since the last checkpoint, and when that was.
    lines: u64,
    checked: Instant,
    synced: Instant,
}

/// What there is to do.
struct Turn {
    asked: u64,
    checkpoint: bool,
    stop: bool,
    urgent: bool,
}

impl Writer {
    pub(super) fn new(shared: Arc<Shared>, log: Log) -> Self {
        let now = Instant::now();
        // What is in the log already may lack a checkpoint.
        let lines = u64::from(log.head().seq > 0);
        Self { shared, log, backlog: VecDeque::new(), lines, checked: now, synced: now }
    }

    pub(super) fn run(mut self) {
        loop {
            let turn = self.wait();
            let mut result = self.write(turn.checkpoint);
            if turn.urgent || self.synced.elapsed() >= SOON {
                result = result.and_then(|()| self.log.sync());
                self.synced = Instant::now();
            }
            self.publish(&turn, result);
            if turn.stop {
                return;
            }
        }
    }

    /// Waits for something to do, or for the time to do something.
    fn wait(&mut self) -> Turn {
        let shared = Arc::clone(&self.shared);
        let mut queue = shared.queue.lock();
        let idle = queue.waiting.is_empty() && queue.asked == queue.met && !queue.stop && !queue.checkpoint;
        if idle || queue.trouble.is_some() {
            let soon = queue.trouble.is_some() || self.log.is_unsynced();
            shared.changed.wait_for(&mut queue, if soon { SOON } else { IDLE });
        }
        let (stop, time) = (queue.stop, SystemTime::now());
        let all = stop || queue.asked > queue.met;
        for event in queue.limiter.expired(shared.began.elapsed(), all) {
            queue.push(time, event);
        }
        let room = CAPACITY.saturating_sub(self.backlog.len()).min(queue.waiting.len());
        self.backlog.extend(queue.waiting.drain(..room));
        if queue.waiting.is_empty()
            && let Some(Lost { count, since }) = queue.lost.take()
        {
            self.backlog.push_back((time, Event::Lost { count, since: super::chain::stamp(since) }));
        }
        let checkpoint = std::mem::take(&mut queue.checkpoint)
            || self.lines >= CHECKPOINT_LINES
            || self.lines > 0 && self.checked.elapsed() >= CHECKPOINT_AFTER;
        let urgent = all || checkpoint || self.backlog.iter().any(|(_, event)| event.is_grave());
        Turn { asked: queue.asked, checkpoint, stop, urgent }
    }

    fn write(&mut self, checkpoint: bool) -> std::io::Result<()> {
        while let Some((time, event)) = self.backlog.front() {
            self.log.append(*time, event)?;
            self.backlog.pop_front();
            self.lines += 1;
        }
        // The key may be wiped at any moment, so it is held for a MAC and no longer.
        let shared = &self.shared;
        if checkpoint && self.lines > 0 && self.log.checkpoint(SystemTime::now(), || shared.key.lock())? {
            (self.lines, self.checked) = (0, Instant::now());
            crate::crypto::wipe_stack();
        }
        Ok(())
    }

    fn publish(&self, turn: &Turn, result: std::io::Result<()>) {
        let trouble = result.err().map(|error| error.to_string());
        let mut queue = self.shared.queue.lock();
        if let Some(what) = trouble.as_ref().filter(|_| queue.trouble.is_none()) {
            tracing::error!("the audit log cannot be written, and is tried again: {what}");
        }
        if turn.stop && !self.backlog.is_empty() {
            tracing::error!("{} events could not be written to the audit log", self.backlog.len());
        }
        queue.head = self.log.head();
        queue.trouble = trouble;
        queue.met = turn.asked;
        queue.ended = turn.stop;
        drop(queue);
        self.shared.changed.notify_all();
    }
}

impl Drop for Writer {
    /// Nobody waits for a thread that panicked.
    fn drop(&mut self) {
        self.shared.queue.lock().ended = true;
        self.shared.changed.notify_all();
    }
}
