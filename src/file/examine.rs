//! Authenticating a file without anybody reading it: all that is damaged, not only the first of it.

use super::{Damage, Error, File};
use crate::store::Seek;
use crate::units::{ChunkIndex, PlainOffset};

/// How much is opened at once, in bytes.
pub const STEP: u64 = 1 << 20;

impl File {
    /// Authenticates about 1 MiB at or after `from`, which begins a chunk, and calls `found` for each damage.
    /// Holes cost next to nothing. Returns how many bytes were opened, and where to go on; `None` at the end of the
    /// file, or if that lies at or behind `to`.
    ///
    /// # Errors
    /// Those that are no damage: [`Error::Locked`], the store's.
    pub fn examine(
        &self,
        from: PlainOffset,
        to: PlainOffset,
        found: &mut dyn FnMut(Damage),
    ) -> Result<(u64, Option<PlainOffset>), Error> {
        let geometry = self.context.geometry;
        let from = match self.seek(from, Seek::Data) {
            Ok(Some(data)) if data < to => data,
            Ok(_) => return Ok((0, None)),
            // Met again below, where it is known which chunks it takes along.
            Err(Error::Damaged(_)) => from,
            Err(other) => return Err(other),
        };
        let mut plain = zeroize::Zeroizing::new(Vec::new());
        let step = STEP.max(geometry.chunk_len());
        match self.read(from, step as usize, &mut plain) {
            Err(Error::Damaged(_)) => (),
            Err(other) => return Err(other),
            Ok(()) => {
                let next = PlainOffset(from.0 + step);
                return Ok((plain.len() as u64, (next < self.len().min(to)).then_some(next)));
            }
        }
        let mut opened = 0;
        let behind = geometry.chunk_of(PlainOffset(from.0 + step)).0;
        let mut chunk = geometry.chunk_of(from).0;
        while chunk < behind && chunk < geometry.chunk_count(self.len()) {
            plain.clear();
            let index = ChunkIndex(chunk);
            match self.read(geometry.chunk_start(index), geometry.chunk_len() as usize, &mut plain) {
                Ok(()) => chunk += 1,
                Err(Error::Damaged(damage)) => {
                    let last = match damage {
                        // Without it nothing can be opened whose tags it authenticates.
                        Damage::TagBlock(block) => self.last_without(block, index),
                        _ => index,
                    };
                    chunk = last.0.saturating_add(1);
                    found(damage);
                }
                Err(other) => return Err(other),
            }
            opened += plain.len() as u64;
        }
        let next = geometry.chunk_start(ChunkIndex(chunk.min(geometry.chunk_count(self.len()))));
        Ok((opened, (next < self.len().min(to)).then_some(next)))
    }
}
