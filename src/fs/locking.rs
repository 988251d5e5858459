//! Opening and closing the gate. What the kernel has to be told in between is not known here (`daemon`).

use super::*;
use crate::crypto::Secret32;
use crate::fs::keyring::Unlocked;

/// An inode, and the directories and names by which the kernel knows it.
pub type Known = (u64, Vec<(u64, Vec<u8>)>);

impl Fs {
    /// A mount of a volume with its key. Nothing is read yet.
    ///
    /// # Errors
    /// The store's, or damage of the root directory.
    pub fn new(
        volume: Volume,
        store: Arc<dyn Store>,
        context: Arc<Context>,
        leases: Arc<Leases>,
        volume_key: Secret32,
        read_only: bool,
    ) -> Result<Self> {
        let tree = volume.tree()?;
        Ok(Self {
            nodes: Nodes::new(tree),
            volume,
            store,
            context,
            leases,
            envelopes: Envelopes::default(),
            read_only,
            gate: RwLock::new(Gate::Open(Box::new(Unlocked::from(volume_key)))),
            reason: Mutex::new(LockReason::Operator),
            draining: AtomicBool::new(false),
            restricted: RwLock::new(None),
            namespace: RwLock::new(()),
            files: Mutex::default(),
            handles: RwLock::default(),
            next_handle: AtomicU64::new(1),
            fresh: Mutex::default(),
            staged: Mutex::default(),
            opening: std::array::from_fn(|_| Mutex::default()),
            committing: Mutex::default(),
            counters: Counters::default(),
        })
    }

    /// From now on only what finishes what applications did before gets through. Waits for what is under way.
    pub fn begin_drain(&self, reason: LockReason) {
        *self.reason.lock() = reason;
        self.draining.store(true, Ordering::Release);
        // Whoever passed before has left when this is granted.
        drop(self.gate.write());
    }

    /// Takes something away, or gives it back, without closing the gate.
    pub fn restrict(&self, restriction: Option<OnRevoked>) {
        *self.restricted.write() = restriction;
    }

    /// Closes the gate and wipes every key. Returns how many files have changes that could not be stored; they stay
    /// in memory, sealed, and are stored after the next unlock.
    pub fn close(&self, reason: LockReason) -> usize {
        *self.reason.lock() = reason;
        let mut gate = self.gate.write();
        *gate = Gate::Closed(reason);
        self.leases.lock();
        let files = self.files.lock();
        let mut left = 0;
        for open in files.values() {
            left += usize::from(open.file.waits_for_commit());
            open.file.wipe();
        }
        // Handles of files that were removed are not in the table by inode any more.
        for handle in self.handles.read().values() {
            if let Handle::File { file, .. } = handle {
                file.wipe();
            }
        }
        self.counters.lost.fetch_add(left as u64, Ordering::Relaxed);
        left
    }

    /// Opens the gate with the volume key.
    ///
    /// # Errors
    /// If it is not this volume's key, in words.
    pub fn reopen(&self, volume_key: Secret32) -> std::result::Result<(), String> {
        self.volume.authenticate(&volume_key).map_err(|error| error.to_string())?;
        self.leases.unlock();
        let mut gate = self.gate.write();
        *gate = Gate::Open(Box::new(Unlocked::from(volume_key)));
        self.draining.store(false, Ordering::Release);
        Ok(())
    }

    /// The inodes that the kernel knows, with the names by which it knows them: all that it has to forget. Needs the
    /// keys, so it is asked before [`close`](Self::close).
    pub fn known(&self) -> Vec<Known> {
        let Ok(keys) = self.enter_draining() else { return Vec::new() };
        let name = |place: nodes::Place| {
            let naming = self.naming(place.parent).ok()?;
            let directory = self.nodes.directory(place.parent).ok()?;
            let name = self.shown_name(&keys, naming, &*directory, &place.entry, || ())?;
            Some((place.parent, name))
        };
        let _paths = self.namespace.read();
        self.nodes.all().into_iter().map(|(ino, places)| (ino, places.into_iter().filter_map(name).collect())).collect()
    }
}
