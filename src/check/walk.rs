//! The order in which everything is looked at, and what a place is called.

use crate::format::geometry::Geometry;
use crate::store::{DirEntry, Kind, StoreDir};
use std::cmp;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

/// The entries of a directory in the order of their stored names.
pub(super) fn entries(directory: &dyn StoreDir) -> io::Result<Vec<DirEntry>> {
    let mut entries = directory.list()?;
    entries.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(entries)
}

/// The plaintext of all files below a directory, in bytes, as far as it can be told: what a check of them will have
/// come to at its end. A file with several names counts for each.
pub fn size(geometry: Geometry, directory: &dyn StoreDir, stop: &AtomicBool) -> u64 {
    let of = |entry: DirEntry| {
        let stat = directory.stat(&entry.name).ok().filter(|_| !stop.load(Ordering::Relaxed))?;
        match stat.kind {
            Kind::File => geometry.plain_len(stat.len).map(|len| len.0),
            Kind::Directory => Some(size(geometry, &*directory.open_dir(&entry.name).ok()?, stop)),
            _ => None,
        }
    };
    directory.list().unwrap_or_default().into_iter().filter_map(of).sum()
}

/// The path of an entry in a directory.
pub(super) fn join(directory: &[u8], name: &[u8]) -> Vec<u8> {
    if directory.is_empty() { name.to_vec() } else { [directory, b"/", name].concat() }
}

/// Which of two paths comes first when everything is visited in order: a directory before what is in it.
pub(super) fn order(a: &[u8], b: &[u8]) -> cmp::Ordering {
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
