//! What waits to be looked at, and up to where everything has been.

use parking_lot::{Condvar, Mutex};
use std::collections::VecDeque;

/// A queue with room for so many; what is put first goes before all others, and has always room.
pub(super) struct Queue<T> {
    inner: Mutex<Inner<T>>,
    changed: Condvar,
    room: usize,
}

struct Inner<T> {
    tasks: VecDeque<T>,
    closed: bool,
    busy: usize,
}

impl<T> Queue<T> {
    pub fn new(room: usize) -> Self {
        let inner = Inner { tasks: VecDeque::new(), closed: false, busy: 0 };
        Self { inner: Mutex::new(inner), changed: Condvar::new(), room }
    }

    /// Waits for room.
    pub fn put(&self, task: T) {
        let mut inner = self.inner.lock();
        while inner.tasks.len() >= self.room {
            self.changed.wait(&mut inner);
        }
        inner.tasks.push_back(task);
        drop(inner);
        self.changed.notify_all();
    }

    pub fn put_first(&self, tasks: impl DoubleEndedIterator<Item = T>) {
        let mut inner = self.inner.lock();
        tasks.rev().for_each(|task| inner.tasks.push_front(task));
        drop(inner);
        self.changed.notify_all();
    }

    /// The next one, to be reported as done; `None` when nothing comes any more.
    pub fn take(&self) -> Option<T> {
        let mut inner = self.inner.lock();
        loop {
            if let Some(task) = inner.tasks.pop_front() {
                inner.busy += 1;
                drop(inner);
                self.changed.notify_all();
                return Some(task);
            }
            // Whoever is busy may still put something first.
            if inner.closed && inner.busy == 0 {
                return None;
            }
            self.changed.wait(&mut inner);
        }
    }

    pub fn done(&self) {
        self.inner.lock().busy -= 1;
        self.changed.notify_all();
    }

    pub fn close(&self) {
        self.inner.lock().closed = true;
        self.changed.notify_all();
    }
}

/// Which places were begun, in order, and up to which one all are finished.
pub struct Order {
    begin: Option<Vec<u8>>,
    inner: Mutex<Open>,
}

#[derive(Default)]
struct Open {
    first: u64,
    places: VecDeque<(Vec<u8>, bool)>,
    passed: Option<Vec<u8>>,
}

impl Order {
    /// Everything up to `begin`, if given, was finished before.
    pub fn new(begin: Option<Vec<u8>>) -> Self {
        let inner = Mutex::new(Open { passed: begin.clone(), ..Open::default() });
        Self { begin, inner }
    }

    /// Whether there is a place that it was begun at, and it is like this.
    pub(super) fn is_passed(&self, test: impl FnOnce(&[u8]) -> bool) -> bool {
        self.begin.as_deref().is_some_and(test)
    }

    pub(super) fn begin(&self, place: &[u8]) -> u64 {
        let mut open = self.inner.lock();
        open.places.push_back((place.to_vec(), false));
        open.first + open.places.len() as u64 - 1
    }

    pub(super) fn finish(&self, number: u64) {
        let mut open = self.inner.lock();
        let at = (number - open.first) as usize;
        if let Some(place) = open.places.get_mut(at) {
            place.1 = true;
        }
        while open.places.front().is_some_and(|(_, finished)| *finished) {
            open.passed = open.places.pop_front().map(|(place, _)| place);
            open.first += 1;
        }
    }

    /// The last place such that it and all before it are finished.
    pub fn passed(&self) -> Option<Vec<u8>> {
        self.inner.lock().passed.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_finished_without_a_gap_is_passed() {
        let order = Order::new(Some(b"0".to_vec()));
        let [a, b, c] = [b"a", b"b", b"c"].map(|place| order.begin(place));
        assert_eq!(order.passed(), Some(b"0".to_vec()));
        order.finish(b);
        assert_eq!(order.passed(), Some(b"0".to_vec()));
        order.finish(a);
        assert_eq!(order.passed(), Some(b"b".to_vec()));
        let d = order.begin(b"d");
        order.finish(d);
        order.finish(c);
        assert_eq!(order.passed(), Some(b"d".to_vec()));
    }

    #[test]
    fn every_task_is_taken_once_and_the_queue_ends() {
        let queue = Queue::new(2);
        let sum = Mutex::new(0);
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    while let Some(task) = queue.take() {
                        if task >= 100 {
                            queue.put_first([task - 100, 1].into_iter());
                        }
                        *sum.lock() += task;
                        queue.done();
                    }
                });
            }
            (0..200).for_each(|task| queue.put(task));
            queue.close();
        });
        assert_eq!(*sum.lock(), (0..200).sum::<i32>() + (0..100).sum::<i32>() + 100);
    }
}
