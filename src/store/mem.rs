//! A store in memory that loses power: it keeps what programs see apart from what is durable. For tests.
//!
//! The model, harsher than ext4 and XFS on purpose, but with their order:
//! - changes of metadata (names, lengths, holes, attributes) become durable in the order in which they were made: a
//!   power cut keeps some prefix of them. Syncing a file or directory makes everything durable up to the last
//!   change of its own, and no more; syncing data only, up to the last change that its data need;
//! - what was written becomes durable by syncing the file. Before that a power cut keeps any part of it, in sectors;
//!   of one sector, a version that it had. A length may be durable without the data, which is then zeros;
//! - what is written into blocks that were freed before goes to new blocks: it is lost if the freeing is.

mod image;

use super::{
    Inode, Kind, RenameMode, Seek, SetTime, SetXattr, Space, Stat, Store, StoreDir, StoreFile, Timestamp, Visit,
};
use crate::units::StoredOffset;
use image::{Attribute, Change, Entry, Id, Image, Node, ROOT};
use parking_lot::Mutex;
use rustix::io::Errno;
use std::any::Any;
use std::collections::{BTreeMap, HashMap};
use std::io;
use std::sync::Arc;

/// A store in memory.
#[derive(Clone)]
pub struct MemStore(Arc<Mutex<State>>);

struct State {
    /// What is durable, but for the durable entries of the log.
    base: Image,
    /// What was done since, in order.
    log: Vec<Entry>,
    /// What programs see.
    live: Image,
    next_id: Id,
    handles: HashMap<Id, usize>,
    counts: BTreeMap<&'static str, u64>,
    recorded: Option<Vec<Snapshot>>,
}

/// A moment in the life of a store.
#[derive(Clone)]
pub struct Snapshot {
    base: Image,
    log: Vec<Entry>,
    live: Image,
    next_id: Id,
    /// The change or the sync after which it was taken.
    pub after: &'static str,
}

impl Snapshot {
    /// The store as it is found when all programs were killed and the machine went on.
    pub fn killed(&self) -> MemStore {
        MemStore::of(image::without_orphans(self.live.clone()), self.next_id)
    }

    /// The store as it may be found after the power failed; the seed chooses among the possibilities.
    pub fn cut(&self, seed: u64) -> MemStore {
        MemStore::of(image::cut(&self.base, &self.log, seed), self.next_id)
    }
}

impl Default for MemStore {
    fn default() -> Self {
        Self::of(HashMap::from([(ROOT, Arc::new(Node::new(Kind::Directory, 2, 0o700)))]), ROOT + 1)
    }
}

impl MemStore {
    fn of(image: Image, next_id: Id) -> Self {
        let live = image.clone();
        let (log, handles, counts) = (Vec::new(), HashMap::new(), BTreeMap::new());
        Self(Arc::new(Mutex::new(State { base: image, log, live, next_id, handles, counts, recorded: None })))
    }

    /// This moment.
    pub fn snapshot(&self) -> Snapshot {
        self.0.lock().snapshot("now")
    }

    /// From now on a snapshot is kept after every change and every sync.
    pub fn record(&self) {
        self.0.lock().recorded.get_or_insert_default();
    }

    /// The snapshots since the last call.
    pub fn recorded(&self) -> Vec<Snapshot> {
        self.0.lock().recorded.as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// How often each operation was called.
    pub fn counts(&self) -> BTreeMap<&'static str, u64> {
        self.0.lock().counts.clone()
    }

    fn handle(&self, id: Id) -> Handle {
        *self.0.lock().handles.entry(id).or_default() += 1;
        Handle { store: self.clone(), id }
    }
}

impl Store for MemStore {
    fn root(&self) -> Arc<dyn StoreDir> {
        Arc::new(self.handle(ROOT))
    }

    fn sync_all(&self) -> io::Result<()> {
        let mut state = self.0.lock();
        state.log.iter_mut().for_each(|entry| entry.durable = true);
        state.synced("sync_all");
        Ok(())
    }

    fn space(&self) -> io::Result<Space> {
        let (blocks, files) = (1 << 30, 1 << 20);
        Ok(Space { fragment: 4096, blocks, free: blocks, available: blocks, files, files_free: files })
    }

    fn keeps_order(&self) -> bool {
        true
    }
}

impl State {
    fn snapshot(&self, after: &'static str) -> Snapshot {
        let Self { base, log, live, next_id, .. } = self;
        Snapshot { base: base.clone(), log: log.clone(), live: live.clone(), next_id: *next_id, after }
    }

    fn count(&mut self, what: &'static str) {
        *self.counts.entry(what).or_default() += 1;
    }

    fn note(&mut self, what: &'static str) {
        self.count(what);
        if self.recorded.is_some() {
            let snapshot = self.snapshot(what);
            self.recorded.get_or_insert_default().push(snapshot);
        }
    }

    fn change(&mut self, what: &'static str, change: Change) {
        image::apply(&mut self.live, &change);
        self.log.push(Entry { change, durable: false });
        self.note(what);
    }

    /// Forgets what need not be remembered: what is durable, and nothing before it is not.
    fn synced(&mut self, what: &'static str) {
        let durable = self.log.iter().take_while(|entry| entry.durable).count();
        for entry in self.log.drain(..durable) {
            image::apply(&mut self.base, &entry.change);
        }
        self.note(what);
    }

    fn sync(&mut self, id: Id, data_only: bool) {
        let needed = |entry: &Entry| entry.change.is_metadata() && entry.change.concerns(id, data_only);
        let last = self.log.iter().rposition(needed);
        for (position, entry) in self.log.iter_mut().enumerate() {
            entry.durable |= match &entry.change {
                Change::Write { id: written, .. } => *written == id,
                _ => last.is_some_and(|last| position <= last),
            };
        }
        self.synced(if data_only { "sync data" } else { "sync" });
    }

    fn node(&self, id: Id) -> io::Result<&Node> {
        self.live.get(&id).map(|node| &**node).ok_or_else(|| Errno::STALE.into())
    }

    fn find(&self, dir: Id, name: &[u8]) -> io::Result<Id> {
        if name.is_empty() || name == b"." || name == b".." || name.contains(&b'/') {
            return Err(Errno::INVAL.into());
        }
        if name.len() > 255 {
            return Err(Errno::NAMETOOLONG.into());
        }
        self.node(dir)?.entries.get(name).copied().ok_or_else(|| Errno::NOENT.into())
    }

    /// Sees to it that a name can be given in a directory that still exists.
    fn free(&self, dir: Id, name: &[u8]) -> io::Result<()> {
        match self.find(dir, name) {
            Ok(_) => Err(Errno::EXIST.into()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => self.alive(dir),
            Err(error) => Err(error),
        }
    }

    fn alive(&self, dir: Id) -> io::Result<()> {
        if self.node(dir)?.nlink == 0 { Err(Errno::NOENT.into()) } else { Ok(()) }
    }

    fn make(&mut self, what: &'static str, dir: Id, name: &[u8], node: Node) -> io::Result<Id> {
        self.free(dir, name)?;
        let id = self.next_id;
        self.next_id += 1;
        // Numbers are given again as soon as they are free, as some filesystems do.
        let taken = self.live.values().map(|node| node.ino).collect::<std::collections::HashSet<_>>();
        let ino = (2..).find(|ino| !taken.contains(ino)).unwrap_or(0);
        let node = Arc::new(Node { ino, ..node });
        self.change(what, Change::Make { dir, name: name.into(), id, node });
        Ok(id)
    }

    fn remove(&mut self, what: &'static str, dir: Id, name: &[u8]) -> io::Result<()> {
        let id = self.find(dir, name)?;
        self.change(what, Change::Unlink { dir, name: name.into(), id });
        self.bury(id);
        Ok(())
    }

    /// Lets go of an inode without a name that nobody has open.
    fn bury(&mut self, id: Id) {
        if !self.handles.contains_key(&id) && self.live.get(&id).is_some_and(|node| node.nlink == 0) {
            self.live.remove(&id);
        }
    }
}

/// An open inode of any kind.
struct Handle {
    store: MemStore,
    id: Id,
}

impl Drop for Handle {
    fn drop(&mut self) {
        let mut state = self.store.0.lock();
        if let Some(count) = state.handles.get_mut(&self.id) {
            *count -= 1;
            if *count == 0 {
                state.handles.remove(&self.id);
                state.bury(self.id);
            }
        }
    }
}

impl Handle {
    fn other(dir: &dyn StoreDir) -> io::Result<Id> {
        dir.as_any().downcast_ref::<Self>().map(|dir| dir.id).ok_or_else(|| Errno::XDEV.into())
    }

    fn open(&self, name: &[u8], kind: Kind, wrong: Errno) -> io::Result<Self> {
        let id = {
            let mut state = self.store.0.lock();
            state.count("open");
            let id = state.find(self.id, name)?;
            if state.node(id)?.kind != kind {
                return Err(wrong.into());
            }
            id
        };
        Ok(self.store.handle(id))
    }

    fn attribute(&self, what: &'static str, attribute: Attribute) -> io::Result<()> {
        let mut state = self.store.0.lock();
        state.node(self.id)?;
        state.change(what, Change::Attribute { id: self.id, attribute });
        Ok(())
    }
}

impl StoreFile for Handle {
    fn read_at(&self, buffer: &mut [u8], offset: StoredOffset) -> io::Result<usize> {
        let mut state = self.store.0.lock();
        state.count("read");
        Ok(state.node(self.id)?.read(buffer, offset.0))
    }

    fn write_at(&self, bytes: &[u8], offset: StoredOffset) -> io::Result<()> {
        let mut state = self.store.0.lock();
        let end = offset.0 + bytes.len() as u64;
        if end > state.node(self.id)?.len {
            state.change("extend", Change::Extend { id: self.id, len: end });
        }
        state.change("write", Change::Write { id: self.id, offset: offset.0, bytes: bytes.into() });
        Ok(())
    }

    fn set_len(&self, len: StoredOffset) -> io::Result<()> {
        let mut state = self.store.0.lock();
        state.node(self.id)?;
        state.change("set_len", Change::Resize { id: self.id, len: len.0 });
        Ok(())
    }

    fn punch(&self, offset: StoredOffset, len: u64) -> io::Result<()> {
        let mut state = self.store.0.lock();
        state.node(self.id)?;
        state.change("punch", Change::Punch { id: self.id, offset: offset.0, len });
        Ok(())
    }

    fn reserve(&self, _offset: StoredOffset, _len: u64) -> io::Result<()> {
        Ok(())
    }

    fn seek(&self, offset: StoredOffset, what: Seek) -> io::Result<Option<StoredOffset>> {
        let state = self.store.0.lock();
        Ok(state.node(self.id)?.seek(offset.0, what).map(StoredOffset))
    }

    fn sync(&self, data_only: bool) -> io::Result<()> {
        self.store.0.lock().sync(self.id, data_only);
        Ok(())
    }

    fn inode(&self) -> &dyn Inode {
        self
    }
}

impl Inode for Handle {
    fn stat(&self) -> io::Result<Stat> {
        let mut state = self.store.0.lock();
        state.count("stat");
        Ok(state.node(self.id)?.stat())
    }

    fn open_file(&self, _writable: bool) -> io::Result<Arc<dyn StoreFile>> {
        Ok(Arc::new(self.store.handle(self.id)))
    }

    fn set_permissions(&self, permissions: u32) -> io::Result<()> {
        self.attribute("chmod", Attribute::Permissions(permissions))
    }

    fn set_owner(&self, uid: Option<u32>, gid: Option<u32>) -> io::Result<()> {
        self.attribute("chown", Attribute::Owner(uid, gid))
    }

    fn set_times(&self, atime: SetTime, mtime: SetTime) -> io::Result<()> {
        let moment = |time| match time {
            SetTime::Keep => None,
            SetTime::Now => Some(Timestamp::default()),
            SetTime::At(moment) => Some(moment),
        };
        self.attribute("utimens", Attribute::Times(moment(atime), moment(mtime)))
    }

    fn xattr(&self, name: &[u8]) -> io::Result<Option<Vec<u8>>> {
        Ok(self.store.0.lock().node(self.id)?.xattrs.get(name).cloned())
    }

    fn xattr_names(&self) -> io::Result<Vec<Vec<u8>>> {
        Ok(self.store.0.lock().node(self.id)?.xattrs.keys().cloned().collect())
    }

    fn set_xattr(&self, name: &[u8], value: &[u8], how: SetXattr) -> io::Result<()> {
        match (how, self.xattr(name)?) {
            (SetXattr::Create, Some(_)) => Err(Errno::EXIST.into()),
            (SetXattr::Replace, None) => Err(Errno::NODATA.into()),
            _ => self.attribute("setxattr", Attribute::Xattr(name.into(), Some(value.into()))),
        }
    }

    fn remove_xattr(&self, name: &[u8]) -> io::Result<()> {
        self.xattr(name)?.ok_or(Errno::NODATA)?;
        self.attribute("removexattr", Attribute::Xattr(name.into(), None))
    }
}

impl StoreDir for Handle {
    fn inode(&self) -> &dyn Inode {
        self
    }

    fn stat(&self, name: &[u8]) -> io::Result<Stat> {
        let mut state = self.store.0.lock();
        state.count("stat");
        let id = state.find(self.id, name)?;
        Ok(state.node(id)?.stat())
    }

    fn entry(&self, name: &[u8]) -> io::Result<Box<dyn Inode>> {
        let id = self.store.0.lock().find(self.id, name)?;
        Ok(Box::new(self.store.handle(id)))
    }

    fn open_file(&self, name: &[u8], _writable: bool) -> io::Result<Arc<dyn StoreFile>> {
        Ok(Arc::new(self.open(name, Kind::File, Errno::ISDIR)?))
    }

    fn create_file(&self, name: &[u8], permissions: u32) -> io::Result<Arc<dyn StoreFile>> {
        let node = Node::new(Kind::File, 1, permissions);
        let id = self.store.0.lock().make("create", self.id, name, node)?;
        Ok(Arc::new(self.store.handle(id)))
    }

    fn open_dir(&self, name: &[u8]) -> io::Result<Arc<dyn StoreDir>> {
        Ok(Arc::new(self.open(name, Kind::Directory, Errno::NOTDIR)?))
    }

    fn make_dir(&self, name: &[u8], permissions: u32) -> io::Result<()> {
        let node = Node::new(Kind::Directory, 2, permissions);
        self.store.0.lock().make("mkdir", self.id, name, node).map(drop)
    }

    fn make_node(&self, name: &[u8], kind: Kind, permissions: u32, rdev: u64) -> io::Result<()> {
        let node = Node { rdev, ..Node::new(kind, 1, permissions) };
        self.store.0.lock().make("mknod", self.id, name, node).map(drop)
    }

    fn make_symlink(&self, name: &[u8], target: &[u8]) -> io::Result<()> {
        let node = Node { target: target.into(), len: target.len() as u64, ..Node::new(Kind::Symlink, 1, 0o777) };
        self.store.0.lock().make("symlink", self.id, name, node).map(drop)
    }

    fn read_symlink(&self, name: &[u8]) -> io::Result<Vec<u8>> {
        let state = self.store.0.lock();
        let node = state.node(state.find(self.id, name)?)?;
        if node.kind == Kind::Symlink { Ok(node.target.to_vec()) } else { Err(Errno::INVAL.into()) }
    }

    fn link(&self, name: &[u8], to: &dyn StoreDir, to_name: &[u8]) -> io::Result<()> {
        let dir = Self::other(to)?;
        let mut state = self.store.0.lock();
        let id = state.find(self.id, name)?;
        state.free(dir, to_name)?;
        state.change("link", Change::Link { dir, name: to_name.into(), id });
        Ok(())
    }

    fn rename(&self, name: &[u8], to: &dyn StoreDir, to_name: &[u8], mode: RenameMode) -> io::Result<()> {
        let to = Self::other(to)?;
        let mut state = self.store.0.lock();
        let id = state.find(self.id, name)?;
        let other = match state.find(to, to_name) {
            Ok(other) => Some(other),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        match (mode, other) {
            (RenameMode::NoReplace, Some(_)) => return Err(Errno::EXIST.into()),
            (RenameMode::Exchange, None) => return Err(Errno::NOENT.into()),
            (RenameMode::Replace, Some(other)) if other == id => return Ok(()),
            (RenameMode::Replace, Some(other)) => match (state.node(id)?.kind, state.node(other)?) {
                (Kind::Directory, node) if node.kind != Kind::Directory => return Err(Errno::NOTDIR.into()),
                (Kind::Directory, node) if !node.entries.is_empty() => return Err(Errno::NOTEMPTY.into()),
                (kind, node) if kind != Kind::Directory && node.kind == Kind::Directory => {
                    return Err(Errno::ISDIR.into());
                }
                _ => (),
            },
            _ => (),
        }
        state.alive(to)?;
        let exchange = mode == RenameMode::Exchange;
        let (name, to_name) = (name.into(), to_name.into());
        state.change("rename", Change::Rename { from: self.id, name, id, to, to_name, other, exchange });
        if let Some(other) = other {
            state.bury(other);
        }
        Ok(())
    }

    fn unlink(&self, name: &[u8]) -> io::Result<()> {
        let mut state = self.store.0.lock();
        if state.node(state.find(self.id, name)?)?.kind == Kind::Directory {
            return Err(Errno::ISDIR.into());
        }
        state.remove("unlink", self.id, name)
    }

    fn remove_dir(&self, name: &[u8]) -> io::Result<()> {
        let mut state = self.store.0.lock();
        let node = state.node(state.find(self.id, name)?)?;
        match (node.kind, node.entries.is_empty()) {
            (Kind::Directory, true) => state.remove("rmdir", self.id, name),
            (Kind::Directory, false) => Err(Errno::NOTEMPTY.into()),
            _ => Err(Errno::NOTDIR.into()),
        }
    }

    fn each(&self, act: &mut Visit<'_>) -> io::Result<()> {
        let mut state = self.store.0.lock();
        state.count("list");
        for (name, id) in &state.node(self.id)?.entries {
            let node = state.node(*id)?;
            act(name, node.ino, Some(node.kind));
        }
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        self.store.0.lock().sync(self.id, false);
        Ok(())
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn content(store: &MemStore, name: &[u8]) -> Option<Vec<u8>> {
        let file = store.root().open_file(name, false).ok()?;
        let mut bytes = vec![0; 1 << 16];
        let len = file.read_at(&mut bytes, StoredOffset(0)).unwrap();
        bytes.truncate(len);
        Some(bytes)
    }

    #[test]
    fn what_was_synced_is_there_after_every_cut_and_what_was_not_may_be_in_part() {
        let store = MemStore::default();
        let file = store.root().create_file(b"f", 0o600).unwrap();
        file.write_at(&[1; 2048], StoredOffset(0)).unwrap();
        file.sync(false).unwrap();
        file.write_at(&[2; 2048], StoredOffset(1024)).unwrap();
        let mut lengths = std::collections::HashSet::new();
        let mut mixed = false;
        for seed in 0..200 {
            let bytes = content(&store.snapshot().cut(seed), b"f").unwrap();
            assert_eq!(bytes[..1024], [1; 1024]);
            lengths.insert(bytes.len());
            mixed |= bytes[1024..2048].contains(&1) && bytes[1024..2048].contains(&2);
        }
        assert_eq!(lengths, [2048, 3072].into());
        assert!(mixed, "no write was ever torn");
        assert_eq!(content(&store.snapshot().killed(), b"f").unwrap()[1024..], [2; 2048]);
    }

    #[test]
    fn metadata_survive_in_order_and_a_sync_takes_along_what_came_before() {
        let store = MemStore::default();
        let root = store.root();
        for name in [b"a", b"b", b"c"] {
            root.create_file(name, 0o600).unwrap();
        }
        root.open_file(b"b", true).unwrap().sync(true).unwrap();
        for seed in 0..50 {
            let cut = store.snapshot().cut(seed);
            assert!(content(&cut, b"a").is_some() && content(&cut, b"b").is_some());
        }
        assert!((0..50).any(|seed| content(&store.snapshot().cut(seed), b"c").is_none()));
        assert!((0..50).any(|seed| content(&store.snapshot().cut(seed), b"c").is_some()));
    }

    #[test]
    fn what_was_cut_off_or_punched_is_back_whole_unless_that_is_durable() {
        let store = MemStore::default();
        let file = store.root().create_file(b"f", 0o600).unwrap();
        file.write_at(&[1; 12_288], StoredOffset(0)).unwrap();
        file.sync(false).unwrap();
        file.set_len(StoredOffset(4096)).unwrap();
        file.write_at(&[2; 8192], StoredOffset(4096)).unwrap();
        for seed in 0..100 {
            let bytes = content(&store.snapshot().cut(seed), b"f").unwrap();
            assert!(!bytes.contains(&2) || !bytes[4096..].contains(&1), "new blocks among the old ones");
            assert!(bytes.len() < 12_288 || bytes[4096..] == [1; 8192] || !bytes[4096..].contains(&1));
        }
    }

    #[test]
    fn numbers_of_inodes_are_given_again_when_nobody_has_the_old_one_open() {
        let store = MemStore::default();
        let root = store.root();
        let first = root.create_file(b"f", 0o600).unwrap();
        root.unlink(b"f").unwrap();
        let ino = |name: &[u8]| root.stat(name).unwrap().ino;
        root.create_file(b"g", 0o600).unwrap();
        assert_ne!(ino(b"g"), first.inode().stat().unwrap().ino);
        let free = first.inode().stat().unwrap().ino;
        drop(first);
        root.create_file(b"h", 0o600).unwrap();
        assert_eq!(ino(b"h"), free);
    }
}
