//! Who copies what: tasks that are taken up last in, first out, so that few directories are open at a time, and files
//! that wait until what was written is durable, to be read back then.

use parking_lot::{Condvar, Mutex};
use std::time::{Duration, Instant};

/// Tasks `T`, and what waits to be made durable: `W`.
pub(super) struct Pool<T, W> {
    inner: Mutex<Inner<T, W>>,
    changed: Condvar,
}

struct Inner<T, W> {
    tasks: Vec<T>,
    busy: usize,
    written: Vec<W>,
    closed: bool,
}

impl<T, W> Pool<T, W> {
    pub fn new(first: T) -> Self {
        let inner = Inner { tasks: vec![first], busy: 0, written: Vec::new(), closed: false };
        Self { inner: Mutex::new(inner), changed: Condvar::new() }
    }

    pub fn put(&self, tasks: impl IntoIterator<Item = T>) {
        self.inner.lock().tasks.extend(tasks);
        self.changed.notify_all();
    }

    pub fn written(&self, one: W) {
        self.inner.lock().written.push(one);
        self.changed.notify_all();
    }

    /// Nothing is taken up any more.
    pub fn close(&self) {
        self.inner.lock().closed = true;
        self.changed.notify_all();
    }

    /// Does tasks until the pool is closed.
    pub fn work(&self, act: impl Fn(T)) {
        let mut inner = self.inner.lock();
        while !inner.closed {
            let Some(task) = inner.tasks.pop() else {
                self.changed.wait(&mut inner);
                continue;
            };
            inner.busy += 1;
            drop(inner);
            act(task);
            inner = self.inner.lock();
            inner.busy -= 1;
            self.changed.notify_all();
        }
    }

    /// Waits until there are `enough` that were written, `patience` is over, or nothing else is left to do, and returns
    /// them; `None` when all is done, or the pool is closed.
    pub fn batch(&self, enough: usize, patience: Duration) -> Option<Vec<W>> {
        let until = Instant::now() + patience;
        let mut inner = self.inner.lock();
        loop {
            if inner.closed {
                return None;
            }
            let idle = inner.tasks.is_empty() && inner.busy == 0;
            if inner.written.is_empty() && idle {
                return None;
            }
            if idle || inner.written.len() >= enough || Instant::now() >= until {
                return Some(std::mem::take(&mut inner.written));
            }
            self.changed.wait_until(&mut inner, until);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU64, Ordering};

    #[test]
    fn everything_is_done_once_and_written_once_and_then_it_ends() {
        let pool: Pool<u64, u64> = Pool::new(10_000);
        let (done, written) = (AtomicU64::new(0), Mutex::new(Vec::new()));
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    pool.work(|task| {
                        done.fetch_add(1, Ordering::Relaxed);
                        if task >= 10_000 {
                            pool.put(0..1000);
                        } else if task % 2 == 0 {
                            pool.written(task);
                        }
                    })
                });
            }
            while let Some(batch) = pool.batch(64, Duration::from_secs(60)) {
                written.lock().extend(batch);
            }
            pool.close();
        });
        let mut written = written.into_inner();
        written.sort_unstable();
        assert_eq!(written, (0..1000).filter(|task| task % 2 == 0).collect::<Vec<_>>());
        assert_eq!(done.into_inner(), 1001);
    }
}
