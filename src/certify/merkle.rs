//! One hash over the headers of all files, as a tree (the shape is that of RFC 9162, section 2.1, with BLAKE3):
//!
//! ```text
//! leaf     = BLAKE3(0x00 ‖ length of path, 8 bytes little-endian ‖ path ‖ the first 4096 bytes of the file, or fewer)
//! node     = BLAKE3(0x01 ‖ left ‖ right), where the left part has the largest power of two of leaves below all of them
//! nothing  = BLAKE3 of no bytes
//! ```
//!
//! The leaves are in the order of the bytes of their paths, which are those below the volume's directory.

/// A hash of the tree.
pub(super) type Hash = [u8; 32];

/// What the certificate says of the tree.
pub(super) const RULE: &str = "BLAKE3; leaf = H(0x00, length of path as 8 bytes little-endian, path, first 4096 bytes of \
the file); node = H(0x01, left, right); split as in RFC 9162; leaves by path";

pub(super) fn leaf(path: &[u8], page: &[u8]) -> Hash {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&[0]).update(&(path.len() as u64).to_le_bytes()).update(path).update(page);
    *hasher.finalize().as_bytes()
}

fn node(left: &Hash, right: &Hash) -> Hash {
    *blake3::Hasher::new().update(&[1]).update(left).update(right).finalize().as_bytes()
}

/// The root over these leaves.
pub(super) fn root(leaves: impl IntoIterator<Item = Hash>) -> Hash {
    // Complete trees, each with fewer leaves than the one before.
    let mut trees: Vec<(u32, Hash)> = Vec::new();
    for leaf in leaves {
        let (mut height, mut hash) = (0, leaf);
        while let Some((_, left)) = trees.pop_if(|(other, _)| *other == height) {
            (height, hash) = (height + 1, node(&left, &hash));
        }
        trees.push((height, hash));
    }
    let folded = trees.into_iter().rev().map(|(_, hash)| hash).reduce(|right, left| node(&left, &right));
    folded.unwrap_or_else(|| *blake3::hash(b"").as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As RFC 9162 defines it.
    fn by_definition(leaves: &[Hash]) -> Hash {
        match leaves {
            [] => *blake3::hash(b"").as_bytes(),
            [one] => *one,
            _ => {
                let half = leaves.len().next_power_of_two() / 2;
                node(&by_definition(&leaves[..half]), &by_definition(&leaves[half..]))
            }
        }
    }

    #[test]
    fn the_root_is_the_one_of_the_definition() {
        let leaves: Vec<Hash> = (0..40_u8).map(|i| leaf(&[i], &[i; 10])).collect();
        for count in 0..=leaves.len() {
            assert_eq!(root(leaves[..count].iter().copied()), by_definition(&leaves[..count]), "{count} leaves");
        }
    }

    #[test]
    fn path_page_and_order_all_count() {
        let of = |leaves: &[Hash]| root(leaves.iter().copied());
        let (a, b) = (leaf(b"a", b"1"), leaf(b"b", b"1"));
        let all = [of(&[a, b]), of(&[b, a]), of(&[a]), of(&[leaf(b"a", b"2"), b]), of(&[leaf(b"a1", b""), b])];
        assert_eq!(all.iter().collect::<std::collections::HashSet<_>>().len(), all.len());
    }
}
