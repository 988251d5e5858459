//! Reading all of a file, hole by hole, and what it hashes to. Holes and zeros hash alike, so that two filesystems that
//! keep holes in other places agree, and a file of terabytes that are not there costs nothing.

use crate::crypto::Secret32;
use crate::store::{Seek, StoreFile};
use crate::units::StoredOffset;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use zeroize::Zeroizing;

/// What is left out of a hash if it is all zero, in bytes.
const BLOCK: usize = 4096;
/// How much is read at a time: a multiple of [`BLOCK`].
pub const PIECE: usize = 1 << 20;

/// BLAKE3, keyed, over each block of 4096 bytes that is not all zero, after its number, and over the length at the end.
pub type Hash = [u8; 32];

/// Reads the data of a file of this length, gives each piece of it to `take` with its offset, and returns the hash.
/// The offsets are those of the file as applications see it, whatever the tree.
///
/// # Errors
/// The store's, and those of `take`; `Interrupted` if it is told to stop; `UnexpectedEof` if the file is shorter now.
pub fn read(
    file: &dyn StoreFile,
    len: u64,
    key: &Secret32,
    stop: &AtomicBool,
    mut take: impl FnMut(&[u8], StoredOffset) -> io::Result<()>,
) -> io::Result<Hash> {
    let mut hasher = Zeroizing::new(blake3::Hasher::new_keyed(key.expose()));
    let mut buffer = Zeroizing::new(vec![0; PIECE.min(usize::try_from(len).unwrap_or(PIECE))]);
    let block = |offset: u64| offset - offset % BLOCK as u64;
    let mut at = 0;
    while at < len {
        let Some(begin) = file.seek(StoredOffset(at), Seek::Data)? else { break };
        let hole = file.seek(begin, Seek::Hole)?.map_or(len, |hole| hole.0);
        let end = block(hole.saturating_add(BLOCK as u64 - 1)).min(len);
        at = block(begin.0).max(at);
        while at < end {
            if stop.load(Ordering::Relaxed) {
                return Err(io::ErrorKind::Interrupted.into());
            }
            let piece = buffer.len().min(usize::try_from(end - at).unwrap_or(PIECE));
            let piece = &mut buffer[..piece];
            if file.read_at(piece, StoredOffset(at))? < piece.len() {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            for (number, block) in piece.chunks(BLOCK).enumerate() {
                if block.iter().any(|byte| *byte != 0) {
                    hasher.update(&(at / BLOCK as u64 + number as u64).to_le_bytes()).update(block);
                }
            }
            take(piece, StoredOffset(at))?;
            at += piece.len() as u64;
        }
    }
    hasher.update(&len.to_le_bytes());
    Ok(*hasher.finalize().as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Store;
    use crate::store::dir::DirStore;
    use std::os::unix::fs::FileExt;

    fn hash(name: &str, dir: &tempfile::TempDir) -> Hash {
        let file = DirStore::open(dir.path()).unwrap().root().open_file(name.as_bytes(), false).unwrap();
        let len = file.inode().stat().unwrap().len.0;
        read(&*file, len, &Secret32::take(&mut [1; 32]), &AtomicBool::new(false), |_, _| Ok(())).unwrap()
    }

    #[test]
    fn holes_and_zeros_hash_alike_and_nothing_else_does() {
        let dir = tempfile::tempdir().unwrap();
        let make = |name: &str, len: u64, writes: &[(u64, &[u8])]| {
            let file = std::fs::File::create(dir.path().join(name)).unwrap();
            file.set_len(len).unwrap();
            writes.iter().for_each(|(at, bytes)| file.write_all_at(bytes, *at).unwrap());
            hash(name, &dir)
        };
        let hole = make("hole", 3_000_000, &[(2_000_000, b"x")]);
        assert_eq!(hole, make("zeros", 3_000_000, &[(0, &vec![0; 3_000_000]), (2_000_000, b"x")]));
        let all = [
            hole,
            make("longer", 3_000_001, &[(2_000_000, b"x")]),
            make("moved", 3_000_000, &[(2_004_096, b"x")]),
            make("other", 3_000_000, &[(2_000_000, b"y")]),
            make("empty", 0, &[]),
            make("nothing but zeros", 5, &[]),
        ];
        assert_eq!(all.iter().collect::<std::collections::HashSet<_>>().len(), all.len());
    }
}
