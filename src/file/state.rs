//! What is known in memory of an open file, and what of it is not yet committed.

use crate::format::header::VerifiedPage;
use crate::format::tags::TagBlock;
use crate::store::Timestamp;
use crate::units::{PlainOffset, StoredOffset};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

/// Whether anything of the file was ever promised to be durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    /// No: it may be written in place.
    Fresh,
    /// Yes: what is committed is changed through the journal only.
    Committed,
}

/// A sealed chunk that is not in place yet.
pub(super) type Sealed = Arc<[u8]>;

/// The shortest that a file was since its last commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cut {
    /// The first chunk that was cut off.
    pub chunk: u64,
    /// The length of the stored file then.
    pub stored: StoredOffset,
}

/// Changes of tags, at the grain at which the journal records them.
#[derive(Clone, Debug, Default)]
pub(super) struct Dirty {
    /// Chunks whose entry changed.
    pub entries: BTreeSet<u64>,
    /// Blocks of which an entry or a child's MAC changed.
    pub blocks: BTreeSet<u64>,
    /// Blocks that went, of which the parent, which stays, forgot the MAC.
    pub cleared_children: BTreeSet<u64>,
    /// Blocks that did not exist at the last commit: what lies in their place is unknown.
    pub new_blocks: BTreeSet<u64>,
    /// The wrapped secrets, or the DEK before, in the header page.
    pub envelope: bool,
}

pub(super) struct State {
    /// The header and the first tag entries, as they are now.
    pub page: VerifiedPage,
    pub mode: Mode,
    /// A snapshot is on its way: what is in place may be older, or newer in part.
    pub underway: bool,
    /// The page, or a block, differs from what was last written or appended to the journal.
    pub changed: bool,
    /// Tag blocks in memory.
    pub blocks: HashMap<u64, TagBlock>,
    /// What of the tags differs from what was last written or appended.
    pub dirty: Dirty,
    /// Which blocks are in the journal and not yet in place: they cannot be read back.
    pub blocks_in_flight: HashSet<u64>,
    /// Of a committed file, chunks that changed since the last commit, and whether the place of each in the stored
    /// file holds bytes that a crash could bring back. For other chunks their entry tells.
    pub occupied: HashMap<u64, bool>,
    /// The file was cut since the last commit: the places of all chunks from this one on count as occupied.
    pub cut: Option<Cut>,
    /// The same of the commit that is on its way.
    pub cut_in_flight: Option<Cut>,
    /// Chunks that overwrite committed ones and wait for the journal, or could not be written in place when they should
    /// have been.
    pub pending: BTreeMap<u64, Sealed>,
    pub pending_bytes: usize,
    /// Chunks that are in the journal (or on the way to it) and not yet in place.
    pub in_flight: HashMap<u64, Sealed>,
    /// Ranges of the stored file that were given up since the last commit.
    pub voids: Vec<(StoredOffset, u64)>,
    /// Something was written in place that the next commit relies on and that may not be durable.
    pub unsynced: bool,
    /// The modification time as applications know it, to be kept when the file is put in place later.
    pub mtime: Option<Timestamp>,
}

impl State {
    pub fn new(page: VerifiedPage, mode: Mode) -> Self {
        Self {
            page,
            mode,
            underway: false,
            changed: mode == Mode::Fresh,
            blocks: HashMap::new(),
            dirty: Dirty::default(),
            blocks_in_flight: HashSet::new(),
            occupied: HashMap::new(),
            cut: None,
            cut_in_flight: None,
            pending: BTreeMap::new(),
            pending_bytes: 0,
            in_flight: HashMap::new(),
            voids: Vec::new(),
            unsynced: false,
            mtime: None,
        }
    }

    pub fn len(&self) -> PlainOffset {
        self.page.header().len
    }

    pub fn is_dirty(&self) -> bool {
        self.changed || !self.pending.is_empty()
    }

    /// A sealed chunk that is not in place, the newest version first.
    pub fn waiting(&self, chunk: u64) -> Option<&Sealed> {
        self.pending.get(&chunk).or_else(|| self.in_flight.get(&chunk))
    }

    pub fn put_pending(&mut self, chunk: u64, sealed: Sealed) {
        self.pending_bytes += sealed.len();
        if let Some(old) = self.pending.insert(chunk, sealed) {
            self.pending_bytes -= old.len();
        }
    }

    pub fn take_pending(&mut self, chunk: u64) {
        if let Some(old) = self.pending.remove(&chunk) {
            self.pending_bytes -= old.len();
        }
    }
}
