//! The keys of one open file, expanded for use: of its DEK, and of the one before while some chunks are still sealed by
//! that. Which one holds for what follows from the header, so whoever uses them holds the state's lock all the time.

use crate::crypto::Secret32;
use crate::crypto::cipher::{Batch, ChunkCipher, NonceAndTag, ValueCipher};
use crate::crypto::derive::{Dek, FileKeys};
use crate::crypto::{NotAuthentic, aad};
use crate::format::header::{Header, SEALED_DEK_LEN};
use crate::format::tags::{ENTRIES_PER_BLOCK, ENTRIES_PER_HEADER};
use crate::units::{ChunkIndex, Epoch, FileId, VolumeId};
use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use zeroize::Zeroizing;

/// What a file's DEK is used for, ready to be used.
pub struct Keys {
    dek: Dek,
    /// Seals the DEK before.
    sealing: ValueCipher,
    pub(super) header_mac: Secret32,
    pub(super) now: Arc<Layer>,
    pub(super) previous: Option<Arc<Layer>>,
}

/// What is sealed in one epoch.
pub(super) struct Layer {
    pub epoch: Epoch,
    chunks: ChunkCipher,
    pub tags_mac: Secret32,
}

impl Keys {
    /// The keys of a file all of which is sealed by this DEK.
    pub fn new(dek: Dek, epoch: Epoch) -> Self {
        let FileKeys { chunks, header_mac, tags_mac, previous } = FileKeys::from(&dek);
        let now = Arc::new(Layer { epoch, chunks: ChunkCipher::new(&chunks), tags_mac });
        Self { sealing: ValueCipher::new(&previous), dek, header_mac, now, previous: None }
    }

    /// The keys of the file with this header, whose DEK is given. A DEK before that cannot be unsealed is not there: the
    /// header does not authenticate then.
    pub fn of(dek: Dek, volume: VolumeId, header: &Header) -> Self {
        let keys = Self::new(dek, header.epoch);
        let previous = header.resealing.as_ref().and_then(|resealing| {
            let aad = aad::previous_dek(volume, header.file, resealing.epoch, header.epoch);
            let bytes = Zeroizing::new(keys.sealing.open(&aad, &resealing.sealed).ok()?);
            Some(Self::new(Dek::from_slice(&bytes)?, resealing.epoch).now)
        });
        Self { previous, ..keys }
    }

    /// The keys of a file that is going from another DEK to this one, and the other one sealed by this one.
    ///
    /// # Errors
    /// Never: a sealed DEK has one length.
    pub(super) fn after(
        before: &Self,
        dek: Dek,
        epoch: Epoch,
        (volume, file): (VolumeId, FileId),
    ) -> Result<(Self, [u8; SEALED_DEK_LEN]), NotAuthentic> {
        let keys = Self { previous: Some(Arc::clone(&before.now)), ..Self::new(dek, epoch) };
        let aad = aad::previous_dek(volume, file, before.now.epoch, epoch);
        let sealed = keys.sealing.seal(&aad, before.dek.expose()).try_into().map_err(|_| NotAuthentic)?;
        Ok((keys, sealed))
    }

    /// The same keys without those of the DEK before.
    ///
    /// # Errors
    /// Never: a DEK has one length.
    pub(super) fn alone(&self) -> Result<Self, NotAuthentic> {
        let dek = Dek::from_slice(self.dek.expose()).ok_or(NotAuthentic)?;
        Ok(Self { now: Arc::clone(&self.now), ..Self::new(dek, self.now.epoch) })
    }

    /// What holds for a chunk.
    pub(super) fn of_chunk(&self, header: &Header, chunk: ChunkIndex) -> &Layer {
        match (&header.resealing, &self.previous) {
            (Some(resealing), Some(previous)) if resealing.holds(chunk.0) => previous,
            _ => &self.now,
        }
    }

    /// What authenticates a tag block: that which holds for its first chunk.
    pub(super) fn of_block(&self, header: &Header, block: u64) -> &Layer {
        let first = (ENTRIES_PER_HEADER as u64).saturating_add(block.saturating_mul(ENTRIES_PER_BLOCK as u64));
        self.of_chunk(header, ChunkIndex(first))
    }

    /// For sealing `count` chunks from `first` on.
    pub(super) fn sealer(&self, volume: VolumeId, header: &Header, first: ChunkIndex, count: u64) -> Sealer<'_> {
        let held = header.resealing.as_ref().map_or(0..0, |resealing| resealing.from..resealing.to);
        let previous = self
            .previous
            .as_deref()
            .filter(|_| held.start < first.0 + count && first.0 < held.end)
            .map(|layer| (layer, layer.chunks.batch(count as usize)));
        let now = (&*self.now, self.now.chunks.batch(count as usize));
        Sealer { volume, file: header.file, first, held, now, previous }
    }
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Keys(redacted)")
    }
}

impl Layer {
    /// Opens one chunk into `plain`, which must be as long as `sealed`.
    pub fn open(
        &self,
        (volume, file): (VolumeId, FileId),
        chunk: ChunkIndex,
        entry: &NonceAndTag,
        sealed: &[u8],
        plain: &mut [u8],
    ) -> Result<(), NotAuthentic> {
        self.chunks.open(entry, &aad::chunk(volume, file, self.epoch, chunk), sealed, plain)
    }
}

/// Nonces and keys for sealing some chunks, each by what holds for it.
pub(super) struct Sealer<'a> {
    volume: VolumeId,
    file: FileId,
    first: ChunkIndex,
    /// Where the DEK before holds.
    held: Range<u64>,
    now: (&'a Layer, Batch),
    previous: Option<(&'a Layer, Batch)>,
}

impl Sealer<'_> {
    /// Seals one of the chunks, into as many bytes.
    pub fn seal(&self, chunk: ChunkIndex, plain: &[u8], sealed: &mut [u8]) -> NonceAndTag {
        let (layer, batch) = match &self.previous {
            Some(previous) if self.held.contains(&chunk.0) => previous,
            _ => &self.now,
        };
        let aad = aad::chunk(self.volume, self.file, layer.epoch, chunk);
        batch.seal((chunk.0 - self.first.0) as usize, &aad, plain, sealed)
    }
}
