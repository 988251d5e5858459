//! The order in which everything is looked at, and what a place is called.

use crate::store::{DirEntry, StoreDir};
use std::cmp::Ordering;
use std::io;

/// The entries of a directory in the order of their stored names.
pub(super) fn entries(directory: &dyn StoreDir) -> io::Result<Vec<DirEntry>> {
    let mut entries = directory.list()?;
    entries.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(entries)
}

/// The path of an entry in a directory.
pub(super) fn join(directory: &[u8], name: &[u8]) -> Vec<u8> {
    if directory.is_empty() { name.to_vec() } else { [directory, b"/", name].concat() }
}

/// Which of two paths comes first when everything is visited in order: a directory before what is in it.
pub(super) fn order(a: &[u8], b: &[u8]) -> Ordering {
    a.split(|byte| *byte == b'/').cmp(b.split(|byte| *byte == b'/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_in_the_order_of_the_walk() {
        let walk: [&[u8]; 6] = [b"a", b"a/x", b"a/x/y", b"a/y", b"a-", b"b"];
        for (i, a) in walk.iter().enumerate() {
            for (j, b) in walk.iter().enumerate() {
                assert_eq!(order(a, b), i.cmp(&j));
            }
        }
    }
}
