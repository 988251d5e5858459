//! The tree in our own types: inodes, names, handles, and what each operation of a filesystem does. No FUSE in here,
//! and no call to a KMS: an operation that needs a key which is not in memory says so ([`Error::NeedKey`]), and is
//! called again when it is. Depends on `file`, `lease` and below.
//! Invariant: while the volume is locked no operation gets past [`Fs::enter`], but those that reveal nothing.

mod aside;
mod attributes;
#[cfg(test)]
mod crash_tests;
mod create;
pub mod data;
mod directory;
mod durable;
mod envelopes;
mod error;
pub mod examine;
mod keyring;
mod locking;
pub mod maintain;
mod naming;
mod nodes;
pub mod rekey;
mod remove;
mod rename;
mod renewal;
pub mod rewrap;
mod rotation;
mod sweep;
pub mod volume;
mod walk;
mod xattrs;

use crate::file::{Context, File};
use crate::kms::Ring;
use crate::lease::{Leases, LockReason, OnRevoked};
use crate::metrics::{Histogram, Meter};
use crate::store::{Kind, Stat, Store, StoreDir, StoreFile};
use crate::units::PlainOffset;
pub use attributes::{Changes, Entry, Keeps};
pub use create::Creator;
pub use directory::Listed;
pub use envelopes::Envelopes;
pub use error::{Error, Need, Result};
use keyring::Unlocked;
pub use locking::Known;
pub use naming::read_dir_id;
use nodes::Nodes;
pub use nodes::ROOT;
use parking_lot::{Mutex, RwLock, RwLockReadGuard};
pub use renewal::Claim;
pub use rotation::Tell;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use volume::Volume;

/// The target of what the log says of files by name; off, unless somebody asks for it.
pub const NAMES: &str = "kmsfs::names";
/// How many files can be read from the store at the same time.
const OPENING: usize = 64;

/// A mounted volume.
pub struct Fs {
    volume: Volume,
    store: Arc<dyn Store>,
    context: Arc<Context>,
    leases: Arc<Leases>,
    /// Where the volume's KEKs are asked.
    ring: Arc<Ring>,
    envelopes: Envelopes,
    read_only: bool,
    gate: RwLock<Gate>,
    /// Why the volume drains or is locked; meaningful then only.
    reason: Mutex<LockReason>,
    draining: AtomicBool,
    /// The volume is locked, though operations that began before may still be under way.
    closed: AtomicBool,
    /// What a revocation took away, where the owner chose that it does not lock.
    restricted: RwLock<Option<OnRevoked>>,
    nodes: Nodes,
    /// Held shared by whatever uses a path, and alone by whatever changes where paths lead.
    namespace: RwLock<()>,
    files: Mutex<HashMap<u64, OpenFile>>,
    handles: RwLock<HashMap<u64, Handle>>,
    next_handle: AtomicU64,
    fresh: Mutex<FreshFiles>,
    /// Files were removed since it was last looked whether the journal holds on to them.
    removed: AtomicBool,
    /// Names of what is in the making right now.
    staged: Mutex<HashSet<Vec<u8>>>,
    /// By inode number: held while a file is read from the store.
    opening: [Mutex<()>; OPENING],
    /// Held while everything is committed: batches end one after the other.
    committing: Mutex<()>,
    /// Directories in which something was made that names need, and that may not be durable.
    names: Mutex<durable::Names>,
    /// Held while every file is looked at.
    walking: Mutex<()>,
    /// While that goes on: what was moved meanwhile, perhaps from where it has not been to where it has.
    moved: Mutex<Option<Vec<walk::Moved>>>,
    /// Who gives every file something new.
    renewing: Mutex<Option<&'static str>>,
    /// A new file could neither be given its header nor be removed. What has no header may be such a file.
    half_made: AtomicBool,
    /// Whom to tell that the volume has a new KEK.
    on_new_kek: Mutex<Option<rotation::Tell>>,
    /// Has a volume unlocked that nobody used.
    on_wake: Mutex<Option<Wake>>,
    /// Numbers of what happened, for `status`.
    pub counters: Counters,
}

/// Has the volume unlocked, and says whether it is.
pub type Wake = Arc<dyn Fn() -> Result<()> + Send + Sync>;

/// What happened on a mount so far.
#[derive(Debug, Default)]
pub struct Counters {
    /// Damage that was found.
    pub damaged: AtomicU64,
    /// Files that were opened, or created.
    pub opened: AtomicU64,
    /// Bytes that were read.
    pub read: AtomicU64,
    /// Bytes that were written.
    pub written: AtomicU64,
    /// Commits of many files.
    pub batches: AtomicU64,
    /// Files whose last changes could not be stored before the volume locked.
    pub lost: AtomicU64,
    /// Files that a crash had left unfinished, of which a copy was kept.
    pub set_aside: AtomicU64,
    /// Requests of applications that are more than looking at the root directory.
    pub requests: AtomicU64,
    /// Chunks that did not authenticate.
    pub failed_chunks: AtomicU64,
    /// Of `written`, what the last commit of everything took along.
    pub written_then: AtomicU64,
    /// Bytes at most that could not be stored before the volume locked.
    pub lost_bytes: AtomicU64,
    /// When everything was last committed, or was found to be, in milliseconds since the machine was started.
    pub committed_ms: AtomicU64,
    /// How long locks took, from the decision until everything was wiped.
    pub locks: Histogram,
    /// What the kernel asked for.
    pub meter: Arc<Meter>,
}

/// Whether the volume's keys are there.
enum Gate {
    Open(Box<Unlocked>),
    Closed,
}

struct OpenFile {
    file: Arc<File>,
    handles: usize,
    /// How many of them can write, so that the kernel may hold back writes.
    writers: usize,
}

impl OpenFile {
    fn of(file: &Arc<File>) -> Self {
        Self { file: Arc::clone(file), handles: 0, writers: 0 }
    }
}

#[derive(Clone)]
enum Handle {
    File { ino: u64, file: Arc<File>, writes: bool },
    Directory { ino: u64, listing: Arc<Mutex<Option<directory::Listing>>> },
}

/// Files that were created since the last batch was committed.
#[derive(Default)]
struct FreshFiles {
    inos: HashSet<u64>,
    /// The stored files of all of these, unless there are many.
    stores: HashMap<u64, Arc<dyn StoreFile>>,
    /// There were more than are worth syncing one by one.
    many: bool,
}

impl FreshFiles {
    fn is_empty(&self) -> bool {
        self.inos.is_empty() && self.stores.is_empty()
    }

    /// A file was made durable.
    fn forget(&mut self, ino: u64) {
        self.inos.remove(&ino);
        self.stores.remove(&ino);
    }
}

/// Proof that the volume is unlocked, and its keys, for the length of one operation.
struct Entered<'a>(RwLockReadGuard<'a, Gate>);

impl std::ops::Deref for Entered<'_> {
    type Target = Unlocked;

    fn deref(&self) -> &Unlocked {
        match &*self.0 {
            Gate::Open(unlocked) => unlocked,
            Gate::Closed => unreachable!("only made of an open gate"),
        }
    }
}

impl Fs {
    /// Passes the gate for an operation that applications start.
    fn enter(&self) -> Result<Entered<'_>> {
        if self.draining.load(Ordering::Acquire) {
            return Err(self.locked());
        }
        self.enter_draining()
    }

    /// Passes the gate for what finishes what applications did before, also while the volume drains.
    fn enter_draining(&self) -> Result<Entered<'_>> {
        if self.is_open() {
            let gate = self.gate.read();
            // It may have closed while this waited.
            if matches!(&*gate, Gate::Open(_)) && self.is_open() {
                return Ok(Entered(gate));
            }
        }
        Err(self.locked())
    }

    /// What whoever comes while the volume is locked, or drains, is told: one that nobody used is unlocked for them.
    pub fn locked(&self) -> Error {
        match self.reason() {
            LockReason::Idle => Error::NeedKey(error::Need::Wake),
            reason => Error::Locked(reason),
        }
    }

    /// Why the volume is locked or drains, or was last.
    pub fn reason(&self) -> LockReason {
        *self.reason.lock()
    }

    /// Whether the volume's keys are there.
    pub fn is_open(&self) -> bool {
        !self.closed.load(Ordering::Acquire)
    }

    /// For whatever changes something.
    fn writable(&self) -> Result<()> {
        if self.read_only {
            return Err(Error::errno(libc::EROFS));
        }
        self.unless_restricted(OnRevoked::ReadOnly)
    }

    /// For whatever makes something.
    fn can_make(&self) -> Result<()> {
        self.writable()?;
        self.unless_restricted(OnRevoked::PreventNew)
    }

    fn unless_restricted(&self, restriction: OnRevoked) -> Result<()> {
        match *self.restricted.read() {
            Some(restricted) if restricted == restriction => Err(Error::Locked(LockReason::Revoked)),
            _ => Ok(()),
        }
    }

    /// The volume that is mounted.
    pub fn volume(&self) -> &Volume {
        &self.volume
    }

    /// The unwrapped keys.
    pub fn leases(&self) -> &Arc<Leases> {
        &self.leases
    }

    /// Whether nothing can be changed.
    pub fn is_read_only(&self) -> bool {
        self.read_only
    }

    /// How many inodes the kernel knows.
    pub fn known_inodes(&self) -> usize {
        self.nodes.len()
    }

    /// How many files are open, or wait to be committed.
    pub fn open_files(&self) -> usize {
        self.files.lock().len()
    }

    /// How many files have changes that are not committed.
    pub fn waiting_files(&self) -> u64 {
        self.files.lock().values().filter(|open| open.file.waits_for_commit()).count() as u64
    }

    /// Unwraps what an operation needed, on a thread that serves nobody.
    ///
    /// # Errors
    /// What the KMS said, or that the volume is locked.
    pub fn fetch(&self, need: &error::Need) -> Result<()> {
        match need {
            error::Need::Unwrap(wrapped) => self.leases.fetch(wrapped).map(drop).map_err(Error::from),
            error::Need::Envelope => self.refill(),
            error::Need::Wake => {
                let wake = self.on_wake.lock().clone();
                wake.map_or(Err(Error::Locked(self.reason())), |wake| wake())
            }
        }
    }
}
