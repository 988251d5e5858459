//! The inodes that the kernel knows, by number, and the names by which they were found. A node lives from its first
//! lookup until the kernel has forgotten all of them. The kernel forgets as its own memory becomes scarce, not as ours
//! grows: so it is asked to, above [`MOST`].

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
/// How many inodes the kernel may know for long. One takes about 150 bytes.
pub const MOST: usize = 300_000;
/// How many directories are kept open.
const OPEN_DIRECTORIES: usize = 256;

pub(super) struct Nodes {
    root: Arc<dyn StoreDir>,
    // Boxed: half of a table is empty.
    table: Mutex<HashMap<u64, Box<Node>>>,
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
    lookups: u64,
    /// Distinguishes inodes that had the same number one after the other.
    generation: u32,
    kind: Option<Kind>,
    /// Removed, but not yet forgotten by the kernel.
    dead: bool,
    /// The place that is known for the longest time; a directory has one.
    place: Option<Place>,
    more: Option<Box<More>>,
}

/// What only some have.
#[derive(Default)]
struct More {
    /// The other places that are known.
    places: Vec<Place>,
    /// `Some(None)`: it was looked for and is not there.
    dir_id: Option<Option<DirId>>,
    default_acl: Option<bool>,
    /// What is left of what was removed. Being open keeps its number from being given to another one.
    rest: Option<Arc<dyn Inode>>,
}

impl Node {
    fn places(&self) -> impl Iterator<Item = &Place> {
        self.place.iter().chain(self.more.iter().flat_map(|more| &more.places))
    }

    fn more(&mut self) -> &mut More {
        self.more.get_or_insert_default()
    }

    /// Puts a place before the others.
    fn put_first(&mut self, place: Place) {
        if let Some(other) = self.place.replace(place) {
            self.more().places.insert(0, other);
        }
    }

    fn lose(&mut self, place: &Place) {
        if let Some(more) = &mut self.more {
            more.places.retain(|known| known != place);
        }
        if self.place.as_ref() == Some(place) {
            let others = self.more.as_mut().map(|more| &mut more.places);
            self.place = others.filter(|places| !places.is_empty()).map(|places| places.remove(0));
        }
    }
}

impl Nodes {
    pub fn new(root: Arc<dyn StoreDir>) -> Self {
        let node = Box::new(Node { kind: Some(Kind::Directory), lookups: 1, ..Node::default() });
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
            **node = Node { generation: node.generation.wrapping_add(1), lookups: node.lookups, ..Node::default() };
            self.open.lock().pop(&stat.ino);
        }
        node.kind = Some(stat.kind);
        node.lookups += 1;
        if let Some(more) = &mut node.more {
            // It has another name, which nobody had asked for when it lost one.
            more.rest = None;
        }
        if stat.kind == Kind::Directory || stat.nlink <= 1 {
            if node.place.as_ref() != Some(&place) {
                node.place = Some(place);
            }
            if let Some(more) = &mut node.more {
                more.places = Vec::new();
            }
        } else if node.place.is_none() {
            node.place = Some(place);
        } else if !node.places().any(|known| *known == place) {
            node.more().places.push(place);
        }
        node.generation.into()
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
            waiting.extend(node.places().map(|place| place.parent));
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
            let Some(place) = &node.place else { break };
            at = place.parent;
        }
        held
    }

    /// Whether the kernel knows an inode.
    pub fn knows(&self, ino: u64) -> bool {
        self.table.lock().contains_key(&ino)
    }

    /// A place of an inode. Of several, one whose directory can be reached: the kernel may have forgotten a directory, and
    /// know what is in it by a name in another one.
    pub fn place(&self, ino: u64) -> Result<Place> {
        let places: Vec<Place> = {
            let table = self.table.lock();
            let node = table.get(&ino).ok_or(Error::Stale)?;
            if let (Some(only), None) = (&node.place, &node.more) {
                return Ok(only.clone());
            }
            node.places().cloned().collect()
        };
        let mut reachable = places.iter().filter(|place| places.len() == 1 || self.directory(place.parent).is_ok());
        reachable.next().or(places.first()).cloned().ok_or(Error::Stale)
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
        self.table.lock().get(&ino).and_then(|node| node.more.as_ref()?.rest.clone())
    }

    /// The regular files without a name that the kernel still knows.
    pub fn rests(&self) -> Vec<(u64, Arc<dyn Inode>)> {
        let table = self.table.lock();
        let files = table.iter().filter(|(_, node)| node.kind == Some(Kind::File));
        files.filter_map(|(ino, node)| Some((*ino, node.more.as_ref()?.rest.clone()?))).collect()
    }

    pub fn kind(&self, ino: u64) -> Option<Kind> {
        self.table.lock().get(&ino).and_then(|node| node.kind)
    }

    /// An inode lost a name; if it was the `last` one, `rest` serves whoever still holds it.
    pub fn removed(&self, ino: u64, place: &Place, last: bool, rest: Option<Box<dyn Inode>>) {
        let mut table = self.table.lock();
        if let Some(node) = table.get_mut(&ino) {
            node.lose(place);
            node.dead |= last;
            if node.place.is_none() {
                node.more().rest = rest.map(Arc::from);
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
            node.lose(from);
            node.lose(&to);
            node.put_first(to);
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
        if let Some(id) = self.table.lock().get(&ino).and_then(|node| node.more.as_ref()?.dir_id) {
            return Ok(id);
        }
        let id = read(&*self.directory(ino)?)?;
        if let Some(node) = self.table.lock().get_mut(&ino) {
            node.more().dir_id = Some(id);
        }
        Ok(id)
    }

    /// Whether a directory has a default ACL, asked of the store the first time.
    pub fn default_acl(&self, ino: u64, read: impl FnOnce(&dyn StoreDir) -> Result<bool>) -> Result<bool> {
        if let Some(known) = self.table.lock().get(&ino).and_then(|node| node.more.as_ref()?.default_acl) {
            return Ok(known);
        }
        let known = read(&*self.directory(ino)?)?;
        self.set_default_acl(ino, Some(known));
        Ok(known)
    }

    pub fn set_default_acl(&self, ino: u64, known: Option<bool>) {
        if let Some(node) = self.table.lock().get_mut(&ino) {
            node.more().default_acl = known;
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
        self.table.lock().iter().map(|(ino, node)| (*ino, node.places().cloned().collect())).collect()
    }

    /// Some that are not directories, with their places, if there are more than [`MOST`]: as many as make it a good deal
    /// less. Without a directory the kernel would have to forget all that is below it.
    pub fn too_many(&self) -> Vec<(u64, Vec<Place>)> {
        let table = self.table.lock();
        if table.len() <= MOST {
            return Vec::new();
        }
        let files = table.iter().filter(|(_, node)| !node.dead && node.kind != Some(Kind::Directory));
        let some = files.take(table.len() - MOST / 4 * 3);
        some.map(|(ino, node)| (*ino, node.places().cloned().collect())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Store;
    use crate::store::mem::MemStore;

    fn place(parent: u64, entry: &[u8]) -> Place {
        Place { parent, entry: entry.into() }
    }

    fn stat(store: &MemStore, ino: u64, nlink: u32) -> Stat {
        Stat { ino, nlink, kind: Kind::File, ..store.root().inode().stat().unwrap() }
    }

    #[test]
    fn places_come_and_go_and_the_last_one_moved_to_is_the_first() {
        let store = MemStore::default();
        let nodes = Nodes::new(store.root());
        let [a, b, c] = [b"a", b"b", b"c"].map(|entry| place(ROOT, entry));
        for place in [&a, &b, &b] {
            nodes.remember(&stat(&store, 7, 2), place.clone());
        }
        assert_eq!(nodes.all().into_iter().find(|(ino, _)| *ino == 7).unwrap().1, [a.clone(), b.clone()]);
        nodes.moved(7, &b, c.clone());
        assert_eq!(nodes.place(7).unwrap(), c);
        nodes.removed(7, &c, false, None);
        assert_eq!(nodes.place(7).unwrap(), a);
        nodes.remember(&stat(&store, 7, 1), b.clone());
        assert_eq!(nodes.all().into_iter().find(|(ino, _)| *ino == 7).unwrap().1, std::slice::from_ref(&b));
        store.root().create_file(b"b", 0o600).unwrap();
        nodes.removed(7, &b, true, store.root().entry(b"b").ok());
        assert!(nodes.place(7).is_err() && nodes.rest(7).is_some());
        assert!(nodes.forget(7, 4), "that was the end of what had been removed");
        assert!(!nodes.knows(7));
    }

    #[test]
    fn the_kernel_is_asked_to_forget_files_when_it_knows_too_many() {
        let store = MemStore::default();
        let nodes = Nodes::new(store.root());
        let directory = Stat { kind: Kind::Directory, ..stat(&store, 2, 2) };
        nodes.remember(&directory, place(ROOT, b"d"));
        for ino in 3..MOST as u64 + 1 {
            nodes.remember(&stat(&store, ino, 1), place(2, &ino.to_le_bytes()));
        }
        assert_eq!(nodes.len(), MOST);
        assert!(nodes.too_many().is_empty());
        nodes.remember(&stat(&store, MOST as u64 + 1, 1), place(2, b"one more"));
        let some = nodes.too_many();
        assert_eq!(some.len(), MOST + 1 - MOST / 4 * 3);
        assert!(some.iter().all(|(ino, places)| *ino > 2 && places[0].parent == 2));
    }
}
