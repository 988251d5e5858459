//! The batches in which the machine or the program went down: a few ranges of numbers, however often that happened.

/// How many ranges are kept apart: what the header of a log has room for.
pub const MAX_RANGES: usize = 251;

/// Numbers of batches that went down, as disjoint ranges in ascending order, both ends included.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Crashed(Vec<(u64, u64)>);

impl Crashed {
    /// The ranges that a log's header lists; `None` if they overlap, touch or descend, or are too many.
    pub fn from_ranges(ranges: Vec<(u64, u64)>) -> Option<Self> {
        let ascend = ranges.windows(2).all(|pair| pair[0].1.checked_add(1).is_some_and(|next| next < pair[1].0));
        let whole = ranges.iter().all(|(first, last)| first <= last);
        (ascend && whole && ranges.len() <= MAX_RANGES).then_some(Self(ranges))
    }

    /// The ranges.
    pub fn ranges(&self) -> &[(u64, u64)] {
        &self.0
    }

    /// Whether nothing went down since all files were checked the last time.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether this batch went down.
    pub fn contains(&self, batch: u64) -> bool {
        self.0.iter().any(|(first, last)| (*first..=*last).contains(&batch))
    }

    /// Adds a range above all others. No batch is ever left out: where there are too many ranges, the two that are
    /// nearest to each other become one, so that the files of the batches between are checked without need.
    pub fn add(&mut self, first: u64, last: u64) {
        match self.0.last_mut() {
            Some(before) if before.1 + 1 >= first => before.1 = before.1.max(last),
            _ => self.0.push((first, last)),
        }
        if self.0.len() > MAX_RANGES {
            let gap = |at: &usize| self.0[at + 1].0 - self.0[*at].1;
            let nearest = (0..self.0.len() - 1).min_by_key(gap).unwrap_or(0);
            let (_, last) = self.0.remove(nearest + 1);
            self.0[nearest].1 = last;
        }
    }

    /// Forgets all of them.
    pub fn clear(&mut self) {
        self.0.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn however_often_it_crashes_no_batch_is_forgotten() {
        let mut crashed = Crashed::default();
        let mut all = Vec::new();
        // Crashes with gaps of different lengths between them, and some that follow at once.
        let mut next = 1;
        for number in 0..2000_u64 {
            next += [0, 1, 7, 300][number as usize % 4];
            all.push(next);
            crashed.add(next, next + 1);
            next += 2;
            assert!(crashed.ranges().len() <= MAX_RANGES);
            assert_eq!(Crashed::from_ranges(crashed.ranges().to_vec()).as_ref(), Some(&crashed));
        }
        assert!(all.iter().all(|batch| crashed.contains(*batch) && crashed.contains(batch + 1)));
        assert!(!crashed.contains(0) && !crashed.contains(next), "neither before the first nor behind the last");
        crashed.clear();
        assert!(crashed.is_empty());
    }

    #[test]
    fn ranges_that_nobody_can_have_written_are_refused() {
        for ranges in [vec![(5, 4)], vec![(1, 2), (3, 4)], vec![(5, 6), (1, 2)], vec![(1, u64::MAX), (0, 0)]] {
            assert_eq!(Crashed::from_ranges(ranges), None);
        }
        assert_eq!(Crashed::from_ranges((0..=MAX_RANGES as u64).map(|n| (n * 3, n * 3)).collect()), None);
    }
}
