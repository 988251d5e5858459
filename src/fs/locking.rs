//! Opening and closing the gate. What the kernel has to be told in between is not known here (`daemon`).

use super::*;
use crate::crypto::Secret32;
use crate::fs::keyring::Unlocked;
use crate::lease::BootTime;
use std::time::Duration;

/// How long an unlock waits for operations from before the lock.
const REOPENING: Duration = Duration::from_secs(2);

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
        context.journal.sync_through(&store);
        Ok(Self {
            nodes: Nodes::new(tree),
            volume,
            store,
            context,
            ring: Arc::new(Ring::of_one(Arc::clone(leases.kms()))),
            leases,
            envelopes: Envelopes::default(),
            read_only,
            gate: RwLock::new(Gate::Open(Box::new(Unlocked::from(volume_key)))),
            reason: Mutex::new(LockReason::Operator),
            draining: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            restricted: RwLock::new(None),
            namespace: RwLock::new(()),
            files: Mutex::default(),
            handles: RwLock::default(),
            next_handle: AtomicU64::new(1),
            fresh: Mutex::default(),
            removed: AtomicBool::new(false),
            staged: Mutex::default(),
            opening: std::array::from_fn(|_| Mutex::default()),
            committing: Mutex::default(),
            names: Mutex::default(),
            walking: Mutex::default(),
            moved: Mutex::default(),
            renewing: Mutex::default(),
            on_new_kek: Mutex::default(),
            on_wake: Mutex::default(),
            half_made: AtomicBool::new(false),
            counters: Counters {
                committed_ms: AtomicU64::new(BootTime::now().0.as_millis() as u64),
                ..Counters::default()
            },
        })
    }

    /// The same, whose KEKs are asked through this.
    #[must_use]
    pub fn with_ring(self, ring: Arc<Ring>) -> Self {
        Self { ring, ..self }
    }

    /// From now on only what finishes what applications did before gets through. Waits for what is under way, for
    /// `patience` at most: a disk that hangs must not keep a volume open.
    pub fn begin_drain(&self, reason: LockReason, patience: Duration) {
        *self.reason.lock() = reason;
        // Whoever uses a volume that locks because nobody does is let through until it is closed, and unlocks it then:
        // one who waited would hold in the kernel what has to be forgotten.
        self.draining.store(reason != LockReason::Idle, Ordering::Release);
        // Whoever passed before has left when this is granted.
        drop(self.gate.try_write_for(patience));
    }

    /// Who unlocks a volume that locked because nobody used it. May wait for the KMS.
    pub fn on_wake(&self, wake: Option<Wake>) {
        *self.on_wake.lock() = wake;
    }

    /// Lets everything through again, after a drain that no lock followed.
    pub fn end_drain(&self) {
        self.draining.store(false, Ordering::Release);
    }

    /// Takes something away, or gives it back, without closing the gate.
    pub fn restrict(&self, restriction: Option<OnRevoked>) {
        *self.restricted.write() = restriction;
    }

    /// Closes the gate and wipes every key. Returns how many files have changes that could not be stored; they stay
    /// in memory, sealed, and are stored after the next unlock. An operation that is still under way after `patience`
    /// keeps the keys that it uses until it ends, which [`finish_close`](Self::finish_close) sees to, and gives nothing
    /// that it has read to anybody.
    pub fn close(&self, reason: LockReason, patience: Duration) -> usize {
        *self.reason.lock() = reason;
        self.closed.store(true, Ordering::Release);
        self.leases.lock();
        if let Some(mut gate) = self.gate.try_write_for(patience) {
            *gate = Gate::Closed;
        }
        self.context.tags.clear();
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
        if left > 0 {
            self.counters.lost_bytes.fetch_add(self.dirty_bytes(), Ordering::Relaxed);
        }
        left
    }

    /// Wipes what operations kept that were still under way when the volume locked, once they have ended. Says whether
    /// it did: then what they left behind elsewhere can be wiped, too.
    pub fn finish_close(&self) -> bool {
        if !self.closed.load(Ordering::Acquire) {
            return false;
        }
        let Some(mut gate) = self.gate.try_write() else { return false };
        if let Gate::Closed = &*gate {
            return false;
        }
        *gate = Gate::Closed;
        drop(gate);
        // One may have been opened meanwhile.
        for open in self.files.lock().values() {
            open.file.wipe();
        }
        true
    }

    /// Opens the gate with the volume key.
    ///
    /// # Errors
    /// If it is not this volume's key, in words.
    pub fn reopen(&self, volume_key: Secret32) -> std::result::Result<(), String> {
        self.volume.authenticate(&volume_key).map_err(|error| error.to_string())?;
        self.leases.unlock();
        let mut gate = self.gate.try_write_for(REOPENING).ok_or("operations from before the lock still hang")?;
        *gate = Gate::Open(Box::new(Unlocked::from(volume_key)));
        self.closed.store(false, Ordering::Release);
        self.draining.store(false, Ordering::Release);
        Ok(())
    }

    /// The inodes that the kernel knows, with the names by which it knows them: all that it has to forget. Needs the
    /// keys, so it is asked before [`close`](Self::close). Without names if a change of names takes longer than `patience`.
    pub fn known(&self, patience: Duration) -> Vec<Known> {
        let Ok(keys) = self.enter_draining() else { return Vec::new() };
        let Some(_paths) = self.namespace.try_read_for(patience) else {
            // Without names the kernel forgets attributes and content, and can ask for nothing by the names it knows.
            return self.nodes.all().into_iter().map(|(ino, _)| (ino, Vec::new())).collect();
        };
        self.named(&keys, self.nodes.all())
    }

    /// Whether the kernel may soon know too many inodes.
    pub fn knows_many(&self) -> bool {
        self.nodes.len() > nodes::MOST / 2
    }

    /// Inodes that the kernel should forget because it knows too many, with their names.
    pub fn too_many(&self) -> Vec<Known> {
        if self.nodes.len() <= nodes::MOST {
            return Vec::new();
        }
        let Ok(keys) = self.enter() else { return Vec::new() };
        let _paths = self.namespace.read();
        self.named(&keys, self.nodes.too_many())
    }

    fn named(&self, keys: &Entered<'_>, known: Vec<(u64, Vec<nodes::Place>)>) -> Vec<Known> {
        let name = |place: nodes::Place| {
            let naming = self.naming(place.parent).ok()?;
            let directory = self.nodes.directory(place.parent).ok()?;
            let name = self.shown_name(keys, naming, &*directory, &place.entry, || ())?;
            Some((place.parent, name))
        };
        known.into_iter().map(|(ino, places)| (ino, places.into_iter().filter_map(name).collect())).collect()
    }
}
