//! Numbers of what a mount does: how often, how long, how it failed. Relaxed atomics, a clock read at each end of an
//! operation and nothing else: whoever serves the kernel is not to notice. What is made of them is for the daemon.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

/// The upper bounds of a histogram's buckets, in microseconds: two for each power of ten. One bucket more has the rest.
pub const BOUNDS_US: [u64; 13] =
    [10, 30, 100, 300, 1_000, 3_000, 10_000, 30_000, 100_000, 300_000, 1_000_000, 3_000_000, 10_000_000];
/// Numbers of errors that Linux has; a larger one counts as the last.
const ERRORS: usize = 134;

/// How long something took, each time.
#[derive(Debug, Default)]
// On lines of its own: two operations that run at once do not slow each other down.
#[repr(align(128))]
pub struct Histogram {
    buckets: [AtomicU64; BOUNDS_US.len() + 1],
    nanoseconds: AtomicU64,
}

impl Histogram {
    /// Once more.
    pub fn note(&self, took: Duration) {
        let nanoseconds = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        let bucket = BOUNDS_US.partition_point(|bound| bound * 1000 < nanoseconds);
        self.buckets[bucket].fetch_add(1, Relaxed);
        self.nanoseconds.fetch_add(nanoseconds, Relaxed);
    }

    /// What was noted so far.
    pub fn counts(&self) -> Counts {
        Counts {
            buckets: self.buckets.iter().map(|bucket| bucket.load(Relaxed)).collect(),
            sum_s: Duration::from_nanos(self.nanoseconds.load(Relaxed)).as_secs_f64(),
        }
    }
}

/// What a histogram has at one moment.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Counts {
    /// How many there are in each bucket, in the order of [`BOUNDS_US`], then those that took longer.
    pub buckets: Vec<u64>,
    /// How long all of them took together, in seconds.
    pub sum_s: f64,
}

impl Counts {
    /// How many there are.
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }
}

macro_rules! operations {
    ($($variant:ident $name:literal,)*) => {
        /// What the kernel asks of a volume.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[expect(missing_docs, reason = "the kernel's own words")]
        pub enum Operation { $($variant,)* }

        impl Operation {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// The name in metrics.
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }
        }
    };
}

operations! {
    Lookup "lookup", Getattr "getattr", Setattr "setattr", Readlink "readlink", Mknod "mknod", Mkdir "mkdir",
    Unlink "unlink", Rmdir "rmdir", Symlink "symlink", Rename "rename", Link "link", Open "open", Create "create",
    Read "read", Write "write", Flush "flush", Release "release", Fsync "fsync", Opendir "opendir", Readdir "readdir",
    Releasedir "releasedir", Fsyncdir "fsyncdir", Statfs "statfs", Setxattr "setxattr", Getxattr "getxattr",
    Listxattr "listxattr", Removexattr "removexattr", Fallocate "fallocate", Lseek "lseek",
}

/// What the kernel asked of one volume, and what came of it.
#[derive(Debug)]
pub struct Meter {
    operations: Box<[Histogram]>,
    errors: Box<[AtomicU64]>,
}

impl Default for Meter {
    fn default() -> Self {
        Self {
            operations: Operation::ALL.iter().map(|_| Histogram::default()).collect(),
            errors: (0..ERRORS).map(|_| AtomicU64::new(0)).collect(),
        }
    }
}

impl Meter {
    /// An operation begins. It ends when what is returned is dropped.
    pub fn begin(self: &Arc<Self>, operation: Operation) -> Timed {
        Timed { meter: Arc::clone(self), operation, began: Instant::now() }
    }

    /// An operation failed with this number.
    pub fn failed(&self, number: i32) {
        let number = usize::try_from(number).unwrap_or_default().min(ERRORS - 1);
        self.errors[number].fetch_add(1, Relaxed);
    }

    /// How long the operations took of which there were any, by name.
    pub fn operations(&self) -> BTreeMap<String, Counts> {
        let counts = |operation: &Operation| self.operations[*operation as usize].counts();
        let named = Operation::ALL.iter().map(|operation| (operation.name().to_owned(), counts(operation)));
        named.filter(|(_, counts)| counts.count() > 0).collect()
    }

    /// How often operations failed, by the number of the error.
    pub fn errors(&self) -> BTreeMap<i32, u64> {
        let counts = self.errors.iter().enumerate().map(|(number, count)| (number as i32, count.load(Relaxed)));
        counts.filter(|(_, count)| *count > 0).collect()
    }
}

/// An operation under way.
#[derive(Debug)]
#[must_use = "it ends when it is dropped"]
pub struct Timed {
    meter: Arc<Meter>,
    operation: Operation,
    began: Instant,
}

impl Drop for Timed {
    fn drop(&mut self) {
        self.meter.operations[self.operation as usize].note(self.began.elapsed());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bound_belongs_to_the_bucket_that_it_ends() {
        let histogram = Histogram::default();
        for us in [0, 10, 11, 30, 10_000_000, 10_000_001] {
            histogram.note(Duration::from_micros(us));
        }
        let counts = histogram.counts();
        assert_eq!((counts.buckets[0], counts.buckets[1], counts.buckets[12], counts.buckets[13]), (2, 2, 1, 1));
        assert_eq!(counts.count(), 6);
        assert!((counts.sum_s - 20.000_052).abs() < 1e-9, "{}", counts.sum_s);
    }

    #[test]
    fn what_never_happened_is_not_shown_and_what_did_is_counted_when_it_ends() {
        let meter = Arc::new(Meter::default());
        let timed = meter.begin(Operation::Lookup);
        assert!(meter.operations().is_empty() && meter.errors().is_empty());
        drop(timed);
        meter.failed(libc::ENOENT);
        meter.failed(4096);
        assert_eq!(meter.operations().keys().collect::<Vec<_>>(), ["lookup"]);
        assert_eq!(meter.errors(), [(libc::ENOENT, 1), (ERRORS as i32 - 1, 1)].into());
    }
}
