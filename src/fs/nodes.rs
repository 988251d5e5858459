//! The inodes that the kernel knows, by number, and the names by which they were found. A node lives from its first
//! lookup until the kernel has forgotten all of them, so memory is bounded by what the kernel keeps.

use super::error::{Error, Result};
use crate::store::{Inode, Kind, Stat, StoreDir};
use crate::units::DirId;
use lru::LruCache;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::sync::Arc;

/// The number by which the kernel calls the root directory.
pub const ROOT: u64 = 1;
/// How many directories are kept open.
const OPEN_DIRECTORIES: usize = 256;

pub(super) struct Nodes {
    root: Arc<dyn StoreDir>,
    table: Mutex<HashMap<u64, Node>>,
    open: Mutex<LruCache<u64, Arc<dyn StoreDir>>>,
}

/// Where an inode was found: an entry of a directory of the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub parent: u64,
    pub entry: Box<[u8]>,
}

#[derive(Default)]
struct Node {
    /// Distinguishes inodes that had the same number one after the other.
    generation: u64,
    kind: Option<Kind>,
    lookups: u64,
    /// All places that are known; a directory has one.
    places: Vec<Place>,
    /// `Some(None)`: it was looked for and is not there.
    dir_id: Option<Option<DirId>>,
    default_acl: Option<bool>,
    /// Removed, but not yet forgotten by the kernel.
    dead: bool,
    /// What is left of it then. Being open keeps its number from being given to another one.
    rest: Option<Arc<dyn Inode>>,
}

impl Nodes {
    pub fn new(root: Arc<dyn StoreDir>) -> Self {
        let node = Node { kind: Some(Kind::Directory), lookups: 1, ..Node::default() };
        #[expect(clippy::expect_used, reason = "a constant")]
        let capacity = NonZeroUsize::new(OPEN_DIRECTORIES).expect("not zero");
        Self { root, table: Mutex::new(HashMap::from([(ROOT, node)])), open: Mutex::new(LruCache::new(capacity)) }
    }

    pub fn len(&self) -> usize {
        self.table.lock().len()
    }

    /// Notes that the kernel was told of an inode at a place; returns its generation.
    pub fn remember(&self, stat: &Stat, place: Place) -> u64 {
        let mut table = self.table.lock();
        let node = table.entry(stat.ino).or_default();
        if node.dead || (node.lookups > 0 && node.kind != Some(stat.kind)) {
            // The number was given to another inode before the kernel forgot the old one. Its forgets cannot be
            // told apart, so the counts are added.
            *node = Node { generation: node.generation + 1, lookups: node.lookups, ..Node::default() };
            self.open.lock().pop(&stat.ino);
        }
        node.kind = Some(stat.kind);
        node.lookups += 1;
        if stat.kind == Kind::Directory || stat.nlink <= 1 {
            if node.places.first() != Some(&place) {
                node.places = vec![place];
            }
        } else if !node.places.contains(&place) {
            node.places.push(place);
        }
        node.generation
    }

    /// The kernel forgot `count` lookups. Returns whether that was the end of an inode that had been removed.
    pub fn forget(&self, ino: u64, count: u64) -> bool {
        if ino == ROOT {
            return false;
        }
        let mut table = self.table.lock();
        let Some(node) = table.get_mut(&ino) else { return false };
        node.lookups = node.lookups.saturating_sub(count);
        if node.lookups > 0 {
            return false;
        }
        let node = table.remove(&ino);
        drop(table);
        self.open.lock().pop(&ino);
        node.is_some_and(|node| node.dead)
    }

    /// The directories that lead to an inode, and itself if it is one, the outermost first.
    pub fn above(&self, ino: u64) -> Vec<u64> {
        let table = self.table.lock();
        let mut above = Vec::new();
        let mut waiting = vec![ino];
        while let Some(at) = waiting.pop() {
            if above.contains(&at) {
                continue;
            }
            let Some(node) = table.get(&at) else { continue };
            if node.kind == Some(Kind::Directory) {
                above.push(at);
            }
            waiting.extend(node.places.iter().map(|place| place.parent));
        }
        above.reverse();
        above
    }

    /// Keeps a directory, and those above it, from being forgotten; returns them, each to be forgotten once.
    pub fn hold(&self, ino: u64) -> Vec<u64> {
        let mut table = self.table.lock();
        let mut held = Vec::new();
        let mut at = ino;
        while at != ROOT
            && !held.contains(&at)
            && let Some(node) = table.get_mut(&at)
        {
            node.lookups += 1;
            held.push(at);
            let Some(place) = node.places.first() else { break };
            at = place.parent;
        }
        held
    }

    /// Whether the kernel knows an inode.
    pub fn knows(&self, ino: u64) -> bool {
        self.table.lock().contains_key(&ino)
    }

    /// A place of an inode.
    pub fn place(&self, ino: u64) -> Result<Place> {
        self.table.lock().get(&ino).and_then(|node| node.places.first().cloned()).ok_or(Error::Stale)
    }

    /// Lets `act` use a place of an inode. If that place is there no more, its path has to be looked up again.
    pub fn at_place<T>(&self, ino: u64, act: impl FnOnce(&dyn StoreDir, &[u8]) -> Result<T>) -> Result<T> {
        let place = self.place(ino)?;
        match act(&*self.directory(place.parent)?, &place.entry) {
            Err(Error::Errno(libc::ENOENT)) => Err(Error::Stale),
            other => other,
        }
    }

    /// What is left of an inode that lost its last name.
    pub fn rest(&self, ino: u64) -> Option<Arc<dyn Inode>> {
        self.table.lock().get(&ino).and_then(|node| node.rest.clone())
    }

    /// The regular files without a name that the kernel still knows.
    pub fn rests(&self) -> Vec<(u64, Arc<dyn Inode>)> {
        let rest =
            |(ino, node): (&u64, &Node)| Some((*ino, node.rest.clone().filter(|_| node.kind == Some(Kind::File))?));
        self.table.lock().iter().filter_map(rest).collect()
    }

    pub fn kind(&self, ino: u64) -> Option<Kind> {
        self.table.lock().get(&ino).and_then(|node| node.kind)
    }

    /// An inode lost a name; if it was the `last` one, `rest` serves whoever still holds it.
    pub fn removed(&self, ino: u64, place: &Place, last: bool, rest: Option<Box<dyn Inode>>) {
        let mut table = self.table.lock();
        if let Some(node) = table.get_mut(&ino) {
            node.places.retain(|known| known != place);
            node.dead |= last;
            if node.places.is_empty() {
                node.rest = rest.map(Arc::from);
            }
        }
        if last {
            drop(table);
            self.open.lock().pop(&ino);
        }
    }

    /// An inode changed its name.
    pub fn moved(&self, ino: u64, from: &Place, to: Place) {
        let mut table = self.table.lock();
        if let Some(node) = table.get_mut(&ino) {
            node.places.retain(|known| known != from && *known != to);
            node.places.insert(0, to);
        }
    }

    /// A directory, open.
    ///
    /// # Errors
    /// `ENOENT` if it was removed: nothing can be in it.
    pub fn directory(&self, ino: u64) -> Result<Arc<dyn StoreDir>> {
        if ino == ROOT {
            return Ok(Arc::clone(&self.root));
        }
        if let Some(open) = self.open.lock().get(&ino) {
            return Ok(Arc::clone(open));
        }
        if self.rest(ino).is_some() {
            return Err(Error::errno(libc::ENOENT));
        }
        let directory = self.at_place(ino, |above, entry| Ok(above.open_dir(entry)?))?;
        if directory.inode().stat()?.ino != ino {
            return Err(Error::Stale);
        }
        self.open.lock().put(ino, Arc::clone(&directory));
        Ok(directory)
    }

    /// A directory's id, read from the store the first time.
    pub fn dir_id(&self, ino: u64, read: impl FnOnce(&dyn StoreDir) -> Result<Option<DirId>>) -> Result<Option<DirId>> {
        if let Some(id) = self.table.lock().get(&ino).and_then(|node| node.dir_id) {
            return Ok(id);
        }
        let id = read(&*self.directory(ino)?)?;
        if let Some(node) = self.table.lock().get_mut(&ino) {
            node.dir_id = Some(id);
        }
        Ok(id)
    }

    /// Whether a directory has a default ACL, asked of the store the first time.
    pub fn default_acl(&self, ino: u64, read: impl FnOnce(&dyn StoreDir) -> Result<bool>) -> Result<bool> {
        if let Some(known) = self.table.lock().get(&ino).and_then(|node| node.default_acl) {
            return Ok(known);
        }
        let known = read(&*self.directory(ino)?)?;
        self.set_default_acl(ino, Some(known));
        Ok(known)
    }

    pub fn set_default_acl(&self, ino: u64, known: Option<bool>) {
        if let Some(node) = self.table.lock().get_mut(&ino) {
            node.default_acl = known;
        }
    }

    /// The path of an inode in the store, for the journal's use.
    pub fn path(&self, ino: u64) -> Vec<u8> {
        let mut components = Vec::new();
        let mut at = ino;
        while let Ok(place) = self.place(at) {
            at = place.parent;
            components.push(place.entry);
        }
        components.reverse();
        components.join(&b'/')
    }

    /// All numbers and places, for making the kernel forget them.
    pub fn all(&self) -> Vec<(u64, Vec<Place>)> {
        self.table.lock().iter().map(|(ino, node)| (*ino, node.places.clone())).collect()
    }
}
