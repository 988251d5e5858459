//! One encrypted file: what its bytes mean, and the one place that orders its writes. Depends on `format`, `crypto`,
//! `store` and `journal`. Knows no names and no kernel. Invariant: nothing that did not authenticate is returned,
//! and what is committed is only ever changed through the journal.
//!
//! A file is *fresh* until it was made durable for the first time: it may then be written in place, because nobody
//! was promised anything of it (`manual/format.md`, "New files"). After that it is *committed*: chunks that exist
//! are overwritten through the journal; new ones are still written in place, where the committed tags see a hole.

mod cache;
mod commit;
mod cut;
mod examine;
mod keys;
mod map;
mod read;
mod rekey;
mod rewrap;
mod state;
mod write;

use crate::format::header::{Header, Page, VerifiedPage};
use crate::format::{Geometry, Malformed, PAGE};
use crate::journal::{Journal, Target};
use crate::ledger::{Ledger, Seen, Stamp};
use crate::store::{StoreFile, Timestamp};
use crate::units::{ChunkIndex, Epoch, FileId, KekGeneration, PlainOffset, StoredOffset, VolumeId};
use cache::Opened;
pub use cache::TagCache;
pub use commit::{Batched, Prepared};
pub use keys::Keys;
use parking_lot::{Mutex, RwLock};
pub use rekey::{NewKey, Stepped};
pub use rewrap::rewrapped_page;
use state::{Mode, State};
use std::fmt;
use std::io;
use std::sync::{Arc, OnceLock};

/// What a disk writes at once, in bytes.
const SECTOR: usize = 512;

/// What all files of a volume share.
pub struct Context {
    /// The volume.
    pub volume: VolumeId,
    /// The geometry of its files.
    pub geometry: Geometry,
    /// Headers wrapped by an older KEK are refused.
    pub kek_floor: KekGeneration,
    /// Headers of an earlier epoch are refused.
    pub epoch_floor: Epoch,
    /// Its log.
    pub journal: Arc<Journal>,
    /// What is known of its files from before, if anybody keeps it: set before the first file is opened.
    pub ledger: OnceLock<Arc<Ledger>>,
    /// Tag blocks of its files that were used last.
    pub tags: TagCache,
}

/// Why an operation on a file failed.
#[derive(Debug)]
pub enum Error {
    /// The stored bytes are not what was written: damage or tampering.
    Damaged(Damage),
    /// The file's key is not in memory: the volume is locked, or was and the file was not opened anew.
    Locked,
    /// The file would become longer than a file can be.
    TooLong,
    /// The backing directory failed.
    Io(io::Error),
}

/// What is damaged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Damage {
    /// The header page.
    Header(Malformed),
    /// There is no header at all.
    NoHeader,
    /// The header is older than what the volume still accepts.
    Outdated,
    /// The header names a KEK that is none of the volume's.
    UnknownKek,
    /// The KMS finds that the envelope is nothing that its key wrapped.
    Envelope,
    /// The stored file is shorter or longer than its header says.
    Length,
    /// This tag block.
    TagBlock(u64),
    /// This chunk.
    Chunk(ChunkIndex),
    /// All of it is what was written once, but not what was written last.
    RolledBack,
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Header(malformed) => write!(f, "header: {malformed}"),
            Self::NoHeader => f.write_str("it has no header"),
            Self::UnknownKek => f.write_str("header: its KEK is none of the volume's"),
            Self::Envelope => f.write_str("header: its envelope is nothing that its KEK wrapped"),
            Self::Outdated => f.write_str("header: older than the volume accepts since its key was changed"),
            Self::Length => f.write_str("the stored file does not have the length that its header says"),
            Self::TagBlock(block) => write!(f, "tag block {block} does not authenticate"),
            Self::Chunk(chunk) => write!(f, "chunk {} does not authenticate", chunk.0),
            Self::RolledBack => f.write_str("header: older than the one that the rollback guard has seen"),
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Damaged(damage) => damage.fmt(f),
            Self::Locked => f.write_str("the volume is locked"),
            Self::TooLong => f.write_str("the file would be too long"),
            Self::Io(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for Error {}

impl From<io::Error> for Error {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<Damage> for Error {
    fn from(damage: Damage) -> Self {
        Self::Damaged(damage)
    }
}

/// An open file. Its methods may be called from several threads.
pub struct File {
    context: Arc<Context>,
    store: Arc<dyn StoreFile>,
    target: Target,
    /// Changed with the state's lock held, but for being wiped: so they go with the header.
    keys: RwLock<Option<Arc<Keys>>>,
    state: RwLock<State>,
    /// Held for the length of a commit: one at a time, without stopping readers and writers.
    committing: Mutex<()>,
    /// The stored file once more, open for writing, where `store` may not be.
    writer: Mutex<Option<Arc<dyn StoreFile>>>,
    /// What the cache of tag blocks knows it by.
    opened: Opened,
}

/// A header page that was read but not yet verified: it says which envelope has to be unwrapped first.
pub struct Unverified {
    header: Header,
    page: Page,
    stored_len: StoredOffset,
}

/// The id in the header of a stored file, not authenticated; `None` if it is too short for one.
///
/// # Errors
/// The store's.
pub fn file_id(store: &dyn StoreFile) -> io::Result<Option<FileId>> {
    let mut id = [0; 16];
    let read = store.read_at(&mut id, StoredOffset(16))?;
    Ok((read == id.len()).then_some(FileId(id)))
}

/// What the beginning of a stored file looks like.
pub enum Found {
    /// A header.
    Header(Box<Unverified>),
    /// Nothing yet: the file was created, and the machine went down before more of it was durable.
    Nothing,
}

impl Unverified {
    /// Reads the header page of a stored file.
    ///
    /// # Errors
    /// [`Error::Damaged`] if there is something that is no header.
    pub fn read(store: &dyn StoreFile) -> Result<Found, Error> {
        let mut page: Page = Box::new([0; PAGE]);
        let stored_len = store.inode().stat()?.len;
        let read = store.read_at(&mut page[..], StoredOffset(0))?;
        // The first header of a file may be torn: without its end, or its first sector, it is not there.
        if read < PAGE || page[..SECTOR].iter().all(|byte| *byte == 0) {
            return Ok(Found::Nothing);
        }
        let header = Header::parse(&page).map_err(Damage::Header)?;
        Ok(Found::Header(Box::new(Self { header, page, stored_len })))
    }

    /// The header's fields; they are not authenticated.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// What can be seen to be wrong without a key. After a crash a stored file may be longer than its header says.
    ///
    /// # Errors
    /// The damage.
    pub fn check(&self, context: &Context) -> Result<(), Damage> {
        if self.header.chunk_size != context.geometry.chunk_size() {
            return Err(Damage::Header(Malformed::Field("chunk size")));
        }
        if self.header.envelope.kek < context.kek_floor || self.header.epoch < context.epoch_floor {
            return Err(Damage::Outdated);
        }
        let expected = context.geometry.stored_len(self.header.len);
        let crashed = !context.journal.crashed().is_empty();
        if self.stored_len < expected || (self.stored_len > expected && !crashed) {
            return Err(Damage::Length);
        }
        Ok(())
    }
}

impl File {
    /// Makes the first header of a new file, whose stored file is empty, and writes it in place.
    ///
    /// # Errors
    /// The store's; then nothing was written that counts.
    pub fn create(
        context: Arc<Context>,
        store: Arc<dyn StoreFile>,
        target: Target,
        header: Header,
        keys: Arc<Keys>,
    ) -> Result<Self, Error> {
        let file = Self::of(context, store, target, keys, State::new(VerifiedPage::new(header), Mode::Fresh));
        file.settle()?;
        Ok(file)
    }

    fn of(context: Arc<Context>, store: Arc<dyn StoreFile>, target: Target, keys: Arc<Keys>, state: State) -> Self {
        Self {
            state: RwLock::new(state),
            committing: Mutex::new(()),
            writer: Mutex::default(),
            opened: context.tags.open(),
            keys: RwLock::new(Some(keys)),
            context,
            store,
            target,
        }
    }

    /// An empty file in the place of one of which a crash left nothing; nothing is written.
    pub fn of_nothing(
        context: Arc<Context>,
        store: Arc<dyn StoreFile>,
        target: Target,
        header: Header,
        keys: Arc<Keys>,
    ) -> Self {
        Self::of(context, store, target, keys, State::new(VerifiedPage::new(header), Mode::Committed))
    }

    /// Opens a file whose header was read before, with the keys that belong to its envelope.
    ///
    /// # Errors
    /// [`Error::Damaged`] if the header does not authenticate, is outdated, or contradicts the stored length.
    pub fn open(
        context: Arc<Context>,
        store: Arc<dyn StoreFile>,
        target: Target,
        found: Unverified,
        keys: Arc<Keys>,
    ) -> Result<Self, Error> {
        let plausible = found.check(&context);
        if let Err(damage) = &plausible
            && *damage != Damage::Length
        {
            return Err(damage.clone().into());
        }
        let Unverified { header, page, stored_len } = found;
        let page = header.verify(&keys.header_mac, page).map_err(Damage::Header)?;
        plausible?;
        if page.header().resealing.is_some() && keys.previous.is_none() {
            return Err(Damage::Header(Malformed::Mac).into());
        }
        let crashed = context.journal.crashed();
        let expected = context.geometry.stored_len(page.header().len);
        let batch = page.header().batch;
        let mut state = State::new(page, Mode::Committed);
        // Not yet known to be durable in place: the first commit has to see to it.
        state.unsynced = batch != 0 && !context.journal.is_committed(batch);
        let file = Self::of(context, store, target, keys, state);
        if batch != 0 && crashed.contains(batch) {
            file.check_all()?;
        }
        if stored_len > expected {
            // A crash cut the commit of what was appended: the header is what counts. Durable at once: when the crash is
            // forgotten, a file that is too long is a damaged one.
            match file.store.set_len(expected).and_then(|()| file.store.sync(true)) {
                // Not open for writing: it is read as it is.
                Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EBADF)) => (),
                other => other?,
            }
        }
        Ok(file)
    }

    /// The stored file below.
    pub fn store(&self) -> &Arc<dyn StoreFile> {
        &self.store
    }

    /// Its identity.
    pub fn target(&self) -> &Target {
        &self.target
    }

    /// The length of the plaintext now.
    pub fn len(&self) -> PlainOffset {
        self.state.read().len()
    }

    /// Whether the plaintext is empty.
    pub fn is_empty(&self) -> bool {
        self.len().0 == 0
    }

    /// Sets the modification time that writes in place, which happen later, must not disturb.
    pub fn set_mtime(&self, mtime: Timestamp) {
        self.state.write().mtime = Some(mtime);
    }

    /// The modification time as applications know it.
    pub fn mtime(&self) -> Option<Timestamp> {
        self.state.read().mtime
    }

    /// Whether the key is there.
    pub fn has_keys(&self) -> bool {
        self.keys.read().is_some()
    }

    /// Forgets the key. What is sealed already can still be committed only after [`restore`](Self::restore).
    pub fn wipe(&self) {
        *self.keys.write() = None;
    }

    /// Takes the key again after the volume was unlocked, unless the file has got another one meanwhile.
    pub fn restore(&self, keys: Arc<Keys>) {
        let state = self.state.read();
        if keys.now.epoch == state.page.header().epoch {
            *self.keys.write() = Some(keys);
        }
    }

    /// Compares the header, as it is stored, with what the volume's ledger knows of it. What is durable is known to the
    /// ledger from then on.
    pub fn see(&self) -> Seen {
        let Some(ledger) = self.context.ledger.get() else { return Seen::New };
        let state = self.state.read();
        let header = state.page.header();
        // A file of a batch that is not committed may go with the power, whatever is read of it now.
        let durable = header.batch == 0 || self.context.journal.is_committed(header.batch);
        ledger.see(header.file, stamp(&state), durable)
    }

    /// Tells the ledger of the header that was made durable. To be called while no other commit can begin.
    fn note_durable(&self) {
        if let Some(ledger) = self.context.ledger.get() {
            let state = self.state.read();
            ledger.note(state.page.header().file, stamp(&state));
        }
    }

    /// The envelope that has to be unwrapped for the key, with the file's id and epoch.
    pub fn header(&self) -> Header {
        self.state.read().page.header().clone()
    }

    /// Whether there is anything that a commit would have to do and that would be lost with this value.
    /// Says so, too, while somebody changes the file: nobody waits here for a disk.
    pub fn waits_for_commit(&self) -> bool {
        self.state.try_read().is_none_or(|state| state.is_dirty() || state.underway)
    }

    /// Whether a batch has to take the file along.
    pub fn wants_commit(&self) -> bool {
        let state = self.state.read();
        state.is_dirty() || state.mode == Mode::Fresh
    }

    /// Whether the file is new, and nobody was promised anything of it.
    pub fn is_fresh(&self) -> bool {
        self.state.read().mode == Mode::Fresh
    }

    /// As much of the space that the store counts, in units of 512 bytes, as is left when what was cut off is freed, which
    /// the next commit does.
    pub fn blocks(&self, stored: u64) -> u64 {
        let state = self.state.read();
        match state.cut.or(state.cut_in_flight) {
            Some(_) => stored.min(self.context.geometry.stored_len(state.len()).0.div_ceil(4096) * 8),
            None => stored,
        }
    }

    /// Reserves space in the store for a range of the plaintext, without changing the length.
    ///
    /// # Errors
    /// The store's.
    pub fn reserve(&self, start: PlainOffset, end: PlainOffset) -> Result<(), Error> {
        if start < end {
            let geometry = self.context.geometry;
            let from = geometry.stored_chunk(geometry.chunk_of(start));
            let last = geometry.chunk_of(PlainOffset(end.0 - 1));
            let to = geometry.stored_chunk(last).0 + geometry.len_of_chunk(last, end);
            self.store.reserve(from, to - from.0)?;
        }
        Ok(())
    }

    fn keys(&self) -> Result<Arc<Keys>, Error> {
        self.keys.read().as_ref().map(Arc::clone).ok_or(Error::Locked)
    }
}

/// Which version of the header it is that was sealed last.
fn stamp(state: &State) -> Stamp {
    let header = state.page.header();
    Stamp { epoch: header.epoch.0, generation: header.generation, mac: state.page.sealed_mac() }
}

#[cfg(test)]
pub(crate) mod crash_tests;
#[cfg(test)]
mod tests;
