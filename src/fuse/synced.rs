//! Files that were synced, and so may take another space than the kernel knows: with the writeback cache it does not see
//! that by itself. Asked after each sync, it would also ask anew, at each write, whether there are file capabilities to
//! take away, which makes a database's commit two requests longer. So it is told at once only now and then.

use parking_lot::Mutex;
use std::collections::HashMap;
use std::time::{Duration, Instant};

/// How often the kernel is told at once, for one file.
const OFTEN: Duration = Duration::from_secs(1);

/// The files of one mount.
#[derive(Default)]
pub struct Synced(Mutex<HashMap<u64, Told>>);

struct Told {
    at: Instant,
    /// It was synced again since.
    again: bool,
}

impl Synced {
    /// Notes that a file was synced; says whether the kernel is to be told now.
    pub fn note(&self, ino: u64, now: Instant) -> bool {
        let mut files = self.0.lock();
        let known = files.get_mut(&ino);
        if let Some(told) = known
            && now.duration_since(told.at) < OFTEN
        {
            told.again = true;
            return false;
        }
        files.insert(ino, Told { at: now, again: false });
        true
    }

    /// The files of which the kernel has to be told still; asked every few seconds, it keeps the memory bounded too.
    pub fn due(&self) -> Vec<u64> {
        let files = std::mem::take(&mut *self.0.lock());
        files.into_iter().filter(|(_, told)| told.again).map(|(ino, _)| ino).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_synced_often_is_told_of_now_and_then_and_in_the_end() {
        let (synced, start) = (Synced::default(), Instant::now());
        assert!(synced.note(7, start));
        assert!(!synced.note(7, start + OFTEN / 2));
        assert!(synced.note(8, start + OFTEN / 2), "another file");
        assert!(synced.note(7, start + OFTEN));
        assert!(!synced.note(7, start + OFTEN));
        assert_eq!(synced.due(), [7]);
        assert!(synced.due().is_empty());
        assert!(synced.note(7, start + OFTEN), "it was told of everything");
    }
}
