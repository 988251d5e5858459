//! What a store holds at one moment, the changes that lead from one moment to the next, and which of them a power
//! cut keeps. Pure: a seed decides, so that every cut can be had again.

use crate::store::{Kind, Seek, Stat, Timestamp};
use crate::units::StoredOffset;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// An inode for its whole life; its number may be given again.
pub type Id = u64;
/// All inodes.
pub type Image = HashMap<Id, Arc<Node>>;
type Name = Box<[u8]>;

/// The root directory.
pub const ROOT: Id = 1;
const BLOCK: u64 = 4096;
const SECTOR: u64 = 512;

#[derive(Clone)]
pub struct Node {
    pub ino: u64,
    pub kind: Kind,
    pub permissions: u32,
    pub nlink: u32,
    pub owner: (u32, u32),
    pub rdev: u64,
    pub len: u64,
    pub times: (Timestamp, Timestamp),
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    pub entries: BTreeMap<Name, Id>,
    pub target: Box<[u8]>,
    pub blocks: BTreeMap<u64, Arc<[u8; BLOCK as usize]>>,
}

/// A change of the store.
#[derive(Clone)]
pub enum Change {
    Make {
        dir: Id,
        name: Name,
        id: Id,
        node: Arc<Node>,
    },
    Link {
        dir: Id,
        name: Name,
        id: Id,
    },
    Unlink {
        dir: Id,
        name: Name,
        id: Id,
    },
    Rename {
        from: Id,
        name: Name,
        id: Id,
        to: Id,
        to_name: Name,
        other: Option<Id>,
        exchange: bool,
    },
    Attribute {
        id: Id,
        attribute: Attribute,
    },
    /// By a write behind the end.
    Extend {
        id: Id,
        len: u64,
    },
    Resize {
        id: Id,
        len: u64,
    },
    Punch {
        id: Id,
        offset: u64,
        len: u64,
    },
    Write {
        id: Id,
        offset: u64,
        bytes: Arc<[u8]>,
    },
}

#[derive(Clone)]
pub enum Attribute {
    Permissions(u32),
    Owner(Option<u32>, Option<u32>),
    Times(Option<Timestamp>, Option<Timestamp>),
    Xattr(Vec<u8>, Option<Vec<u8>>),
}

/// A change, and whether a cut must keep it.
#[derive(Clone)]
pub struct Entry {
    pub change: Change,
    pub durable: bool,
}

impl Change {
    pub fn is_metadata(&self) -> bool {
        !matches!(self, Self::Write { .. })
    }

    /// Whether a sync of this inode has to make the change durable; with `data_only`, of its data.
    pub fn concerns(&self, inode: Id, data_only: bool) -> bool {
        match self {
            Self::Make { id, dir, .. } => *id == inode || *dir == inode,
            Self::Extend { id, .. } | Self::Resize { id, .. } | Self::Punch { id, .. } | Self::Write { id, .. } => {
                *id == inode
            }
            _ if data_only => false,
            Self::Attribute { id, .. } => *id == inode,
            Self::Link { dir, id, .. } | Self::Unlink { dir, id, .. } => [dir, id].contains(&&inode),
            Self::Rename { from, id, to, other, .. } => [from, id, to].contains(&&inode) || *other == Some(inode),
        }
    }
}

impl Node {
    pub fn new(kind: Kind, nlink: u32, permissions: u32) -> Self {
        Self {
            ino: 1,
            kind,
            permissions,
            nlink,
            owner: (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw()),
            rdev: 0,
            len: 0,
            times: Default::default(),
            xattrs: BTreeMap::new(),
            entries: BTreeMap::new(),
            target: Box::default(),
            blocks: BTreeMap::new(),
        }
    }

    pub fn stat(&self) -> Stat {
        Stat {
            ino: self.ino,
            kind: self.kind,
            permissions: self.permissions,
            nlink: self.nlink,
            uid: self.owner.0,
            gid: self.owner.1,
            rdev: self.rdev,
            len: StoredOffset(self.len),
            blocks: self.blocks.len() as u64 * (BLOCK / SECTOR),
            atime: self.times.0,
            mtime: self.times.1,
            ctime: self.times.1,
        }
    }

    pub fn read(&self, buffer: &mut [u8], offset: u64) -> usize {
        let end = self.len.min(offset + buffer.len() as u64);
        let mut at = offset;
        while at < end {
            let to = end.min((at / BLOCK + 1) * BLOCK);
            let part = &mut buffer[(at - offset) as usize..(to - offset) as usize];
            match self.blocks.get(&(at / BLOCK)) {
                Some(block) => part.copy_from_slice(&block[(at % BLOCK) as usize..][..(to - at) as usize]),
                None => part.fill(0),
            }
            at = to;
        }
        end.saturating_sub(offset) as usize
    }

    pub fn seek(&self, offset: u64, what: Seek) -> Option<u64> {
        if offset >= self.len {
            return None;
        }
        let is = |block: &u64| self.blocks.contains_key(block) == (what == Seek::Data);
        let found = (offset / BLOCK..self.len.div_ceil(BLOCK)).find(is).map(|block| offset.max(block * BLOCK));
        found.or((what == Seek::Hole).then_some(self.len))
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) {
        let end = offset + bytes.len() as u64;
        let mut at = offset;
        while at < end {
            let to = end.min((at / BLOCK + 1) * BLOCK);
            let block = self.blocks.entry(at / BLOCK).or_insert_with(|| Arc::new([0; BLOCK as usize]));
            let part = &bytes[(at - offset) as usize..(to - offset) as usize];
            Arc::make_mut(block)[(at % BLOCK) as usize..][..part.len()].copy_from_slice(part);
            at = to;
        }
    }

    fn resize(&mut self, len: u64) {
        self.len = len;
        self.forget_behind_end();
    }

    fn forget_behind_end(&mut self) {
        let len = self.len;
        self.blocks.retain(|block, _| block * BLOCK < len);
        if let Some(last) = self.blocks.get_mut(&(len / BLOCK)) {
            Arc::make_mut(last)[(len % BLOCK) as usize..].fill(0);
        }
    }

    fn punch(&mut self, offset: u64, len: u64) {
        let end = offset + len;
        let whole = offset.div_ceil(BLOCK)..end / BLOCK;
        self.blocks.retain(|block, _| !whole.contains(block));
        for (block, bytes) in &mut self.blocks {
            let (from, to) = (offset.max(block * BLOCK), end.min((block + 1) * BLOCK));
            if from < to {
                Arc::make_mut(bytes)[(from - block * BLOCK) as usize..(to - block * BLOCK) as usize].fill(0);
            }
        }
    }
}

/// Makes a change. What concerns an inode that is not there does nothing.
pub fn apply(image: &mut Image, change: &Change) {
    match change {
        Change::Make { dir, name, id, node } => {
            image.insert(*id, Arc::clone(node));
            edit(image, *dir, |dir| _ = dir.entries.insert(name.clone(), *id));
        }
        Change::Link { dir, name, id } => {
            edit(image, *dir, |dir| _ = dir.entries.insert(name.clone(), *id));
            edit(image, *id, |node| node.nlink += 1);
        }
        Change::Unlink { dir, name, id } => {
            edit(image, *dir, |dir| _ = dir.entries.remove(name));
            edit(image, *id, lose_name);
        }
        Change::Rename { from, name, id, to, to_name, other, exchange } => {
            edit(image, *from, |dir| _ = dir.entries.remove(name));
            edit(image, *to, |dir| _ = dir.entries.insert(to_name.clone(), *id));
            match other {
                Some(other) if *exchange => edit(image, *from, |dir| _ = dir.entries.insert(name.clone(), *other)),
                Some(other) => edit(image, *other, lose_name),
                None => (),
            }
        }
        Change::Attribute { id, attribute } => edit(image, *id, |node| set(node, attribute)),
        Change::Extend { id, len } => edit(image, *id, |node| node.len = node.len.max(*len)),
        Change::Resize { id, len } => edit(image, *id, |node| node.resize(*len)),
        Change::Punch { id, offset, len } => edit(image, *id, |node| node.punch(*offset, *len)),
        Change::Write { id, offset, bytes } => edit(image, *id, |node| node.write(*offset, bytes)),
    }
}

fn edit(image: &mut Image, id: Id, act: impl FnOnce(&mut Node)) {
    if let Some(node) = image.get_mut(&id) {
        act(Arc::make_mut(node));
    }
}

fn lose_name(node: &mut Node) {
    node.nlink = if node.kind == Kind::Directory { 0 } else { node.nlink - 1 };
}

fn set(node: &mut Node, attribute: &Attribute) {
    match attribute {
        Attribute::Permissions(permissions) => node.permissions = *permissions,
        Attribute::Owner(uid, gid) => node.owner = (uid.unwrap_or(node.owner.0), gid.unwrap_or(node.owner.1)),
        Attribute::Times(atime, mtime) => {
            node.times = (atime.unwrap_or(node.times.0), mtime.unwrap_or(node.times.1));
        }
        Attribute::Xattr(name, Some(value)) => _ = node.xattrs.insert(name.clone(), value.clone()),
        Attribute::Xattr(name, None) => _ = node.xattrs.remove(name),
    }
}

/// What is left when nobody has anything open.
pub fn without_orphans(mut image: Image) -> Image {
    image.retain(|_, node| node.nlink > 0);
    image
}

/// What a power cut leaves: everything durable, a prefix of the other changes of metadata, and any part of what was
/// written.
pub fn cut(base: &Image, log: &[Entry], seed: u64) -> Image {
    let mut image = base.clone();
    let metadata = |entry: &Entry| entry.change.is_metadata();
    let least = log.iter().rposition(|entry| entry.durable && metadata(entry)).map_or(0, |last| last + 1);
    let kept = least..log.len();
    let stop = match mix(seed, 1) % 4 {
        0 => kept.start,
        1 => kept.end,
        _ => kept.start + (mix(seed, 2) % (kept.len() as u64 + 1)) as usize,
    };
    let survival = Survival::new(seed, log.len());
    // Blocks whose freeing was lost: what was written to the new ones went with it.
    let mut remapped: Vec<(Id, std::ops::Range<u64>)> = Vec::new();
    for (position, entry) in log.iter().enumerate() {
        match &entry.change {
            Change::Write { id, offset, bytes } => {
                let lost = |block| remapped.iter().any(|(of, blocks)| of == id && blocks.contains(&block));
                write_sectors(&mut image, *id, *offset, bytes, |number, sector| {
                    entry.durable || (!lost(sector / (BLOCK / SECTOR)) && survival.keeps(position, *id, sector, number))
                });
            }
            change if position < stop => apply(&mut image, change),
            Change::Resize { id, len } => {
                remapped.push((*id, len.div_ceil(BLOCK)..u64::MAX));
                // The rest of the last block is cleared like any data.
                let rest = vec![0; (len.next_multiple_of(BLOCK) - len) as usize];
                write_sectors(&mut image, *id, *len, &rest, |number, sector| {
                    survival.keeps(position, *id, sector, number)
                });
            }
            Change::Punch { id, offset, len } => {
                remapped.push((*id, offset.div_ceil(BLOCK)..(offset + len) / BLOCK));
            }
            _ => (),
        }
    }
    let mut image = without_orphans(image);
    for node in image.values_mut().filter(|node| node.kind == Kind::File) {
        Arc::make_mut(node).forget_behind_end();
    }
    image
}

/// Writes those sectors of a write that `keep` says, which is given their number in the write and in the file.
fn write_sectors(image: &mut Image, id: Id, offset: u64, bytes: &[u8], keep: impl Fn(u64, u64) -> bool) {
    let end = offset + bytes.len() as u64;
    edit(image, id, |node| {
        let mut at = offset;
        while at < end {
            let sector = at / SECTOR;
            let to = end.min((sector + 1) * SECTOR);
            if keep(sector - offset / SECTOR, sector) {
                node.write(at, &bytes[(at - offset) as usize..(to - offset) as usize]);
            }
            at = to;
        }
    });
}

/// How much of what was written survives: up to some point in time, which is another one for every …
struct Survival {
    seed: u64,
    len: u64,
    grain: Grain,
}

enum Grain {
    /// … store, with the last write torn.
    Store,
    File,
    Block,
    Sector,
}

impl Survival {
    fn new(seed: u64, len: usize) -> Self {
        let grain = match mix(seed, 3) % 4 {
            0 => Grain::Store,
            1 => Grain::File,
            2 => Grain::Block,
            _ => Grain::Sector,
        };
        Self { seed, len: len as u64, grain }
    }

    fn keeps(&self, position: usize, id: Id, sector: u64, number: u64) -> bool {
        let place = match self.grain {
            Grain::Store => 4,
            Grain::File => mix(id, 5),
            Grain::Block => mix(id, 6 + sector / (BLOCK / SECTOR)),
            Grain::Sector => mix(id, 7 + sector),
        };
        let draw = mix(self.seed, place);
        let last = match draw % 4 {
            0 => return false,
            1 => return true,
            _ => (draw >> 8) % (self.len + 1),
        };
        let torn = matches!(self.grain, Grain::Store) && position as u64 == last && number < (draw >> 40) % 16;
        (position as u64) < last || torn
    }
}

/// A number that depends on both in no simple way (SplitMix64).
fn mix(a: u64, b: u64) -> u64 {
    let mut z = a.wrapping_mul(0x9E37_79B9_7F4A_7C15).wrapping_add(b.wrapping_mul(0xD1B5_4A32_D192_ED03));
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}
