//! The model: a filesystem in memory, as plain as can be.

use super::system::{Allocation, Look, Name, Path, Result, System};
use kmsfs::store::{Kind, RenameMode, SetXattr};
use parking_lot::{Mutex, MutexGuard};
use std::collections::BTreeMap;

const ROOT: usize = 0;

/// A filesystem in memory.
pub struct Tree(Mutex<Vec<Node>>);

struct Node {
    body: Body,
    nlink: u64,
    permissions: u32,
    mtime: Option<(i64, u32)>,
    xattrs: BTreeMap<String, Vec<u8>>,
}

enum Body {
    File(Vec<u8>),
    Directory(BTreeMap<Name, usize>),
    Symlink(Vec<u8>),
}

impl Node {
    fn new(body: Body, permissions: u32) -> Self {
        let nlink = if matches!(body, Body::Directory(_)) { 2 } else { 1 };
        Self { body, nlink, permissions, mtime: None, xattrs: BTreeMap::new() }
    }

    fn is_directory(&self) -> bool {
        matches!(self.body, Body::Directory(_))
    }

    fn entries(&mut self) -> &mut BTreeMap<Name, usize> {
        match &mut self.body {
            Body::Directory(entries) => entries,
            _ => panic!("not a directory"),
        }
    }

    fn bytes(&mut self) -> &mut Vec<u8> {
        match &mut self.body {
            Body::File(bytes) => bytes,
            _ => panic!("not a file"),
        }
    }

    fn look(&self) -> Look {
        let (kind, len) = match &self.body {
            Body::File(bytes) => (Kind::File, bytes.len()),
            Body::Directory(_) => (Kind::Directory, 0),
            Body::Symlink(target) => (Kind::Symlink, target.len()),
        };
        Look { kind, len: len as u64, nlink: self.nlink, permissions: self.permissions, mtime: self.mtime }
    }
}

impl Default for Tree {
    fn default() -> Self {
        Self(Mutex::new(vec![Node::new(Body::Directory(BTreeMap::new()), 0o700)]))
    }
}

fn entry(nodes: &[Node], at: usize, name: Name) -> Result<usize> {
    match &nodes[at].body {
        Body::Directory(entries) => entries.get(name).copied().ok_or(libc::ENOENT),
        // No target exists.
        Body::Symlink(_) => Err(libc::ENOENT),
        Body::File(_) => Err(libc::ENOTDIR),
    }
}

fn walk(nodes: &[Node], path: &[Name]) -> Result<usize> {
    path.iter().try_fold(ROOT, |at, name| entry(nodes, at, name))
}

/// The directory in which the last component of a path is, or is to be.
fn parent(nodes: &[Node], path: &[Name]) -> Result<(usize, Name)> {
    let (name, above) = path.split_last().expect("not the root");
    let at = walk(nodes, above)?;
    match nodes[at].body {
        Body::Directory(_) => Ok((at, name)),
        Body::Symlink(_) => Err(libc::ENOENT),
        Body::File(_) => Err(libc::ENOTDIR),
    }
}

fn free(nodes: &[Node], path: &[Name]) -> Result<(usize, Name)> {
    let (at, name) = parent(nodes, path)?;
    if entry(nodes, at, name).is_ok() { Err(libc::EEXIST) } else { Ok((at, name)) }
}

/// A name is gone, and what it named too if it was the last one.
fn take(nodes: &mut [Node], at: usize, name: Name) {
    let gone = nodes[at].entries().remove(name).expect("there");
    if nodes[gone].is_directory() {
        nodes[gone].nlink = 0;
        nodes[at].nlink -= 1;
    } else {
        nodes[gone].nlink -= 1;
    }
}

fn put(nodes: &mut [Node], at: usize, name: Name, node: usize) {
    let replaced = nodes[at].entries().insert(name, node);
    assert!(replaced.is_none());
}

fn is_empty(nodes: &mut [Node], at: usize) -> bool {
    nodes[at].entries().is_empty()
}

impl Tree {
    fn nodes(&self) -> MutexGuard<'_, Vec<Node>> {
        self.0.lock()
    }

    /// All paths but the root, and those of all directories.
    pub fn paths(&self) -> (Vec<Path>, Vec<Path>) {
        let nodes = self.nodes();
        let (mut all, mut directories, mut left) = (Vec::new(), Vec::new(), vec![(Path::new(), ROOT)]);
        while let Some((path, at)) = left.pop() {
            if let Body::Directory(entries) = &nodes[at].body {
                left.extend(entries.iter().map(|(name, below)| ([&path[..], &[*name]].concat(), *below)));
                directories.push(path.clone());
            }
            if at != ROOT {
                all.push(path);
            }
        }
        (all, directories)
    }

    fn make(&self, path: &[Name], body: Body, permissions: u32) -> Result<usize> {
        let mut nodes = self.nodes();
        let (at, name) = free(&nodes, path)?;
        let node = nodes.len();
        nodes.push(Node::new(body, permissions));
        if nodes[node].is_directory() {
            nodes[at].nlink += 1;
        }
        put(&mut nodes, at, name, node);
        Ok(node)
    }

    /// Something that has extended attributes, or can be told that it has none.
    fn attributed(
        &self,
        path: &[Name],
        refusal: i32,
        act: impl FnOnce(&mut BTreeMap<String, Vec<u8>>) -> Result,
    ) -> Result {
        let mut nodes = self.nodes();
        let at = walk(&nodes, path)?;
        if matches!(nodes[at].body, Body::Symlink(_)) {
            return Err(refusal);
        }
        act(&mut nodes[at].xattrs)
    }
}

impl System for Tree {
    type Handle = usize;

    fn create(&self, path: &[Name]) -> Result<usize> {
        self.make(path, Body::File(Vec::new()), 0o644)
    }

    fn open(&self, path: &[Name], truncate: bool) -> Result<usize> {
        let mut nodes = self.nodes();
        let at = walk(&nodes, path)?;
        match &mut nodes[at].body {
            Body::Directory(_) => Err(libc::EISDIR),
            Body::Symlink(_) => Err(libc::ELOOP),
            Body::File(bytes) => {
                if truncate {
                    bytes.clear();
                    nodes[at].mtime = None;
                }
                Ok(at)
            }
        }
    }

    fn close(&self, _file: usize) {}

    fn write(&self, file: &usize, at: u64, bytes: &[u8]) -> Result {
        let node = &mut self.nodes()[*file];
        node.mtime = None;
        let (content, end) = (node.bytes(), at as usize + bytes.len());
        content.resize(content.len().max(end), 0);
        content[at as usize..end].copy_from_slice(bytes);
        Ok(())
    }

    fn read(&self, file: &usize, at: u64, len: usize) -> Result<Vec<u8>> {
        Ok(self.nodes()[*file].bytes().iter().skip(at as usize).take(len).copied().collect())
    }

    fn set_len(&self, file: &usize, len: u64) -> Result {
        let node = &mut self.nodes()[*file];
        node.mtime = None;
        node.bytes().resize(len as usize, 0);
        Ok(())
    }

    fn allocate(&self, file: &usize, how: Allocation, at: u64, len: u64) -> Result {
        let node = &mut self.nodes()[*file];
        node.mtime = None;
        let (content, at, end) = (node.bytes(), at as usize, (at + len) as usize);
        if matches!(how, Allocation::Extend | Allocation::Zero) {
            content.resize(content.len().max(end), 0);
        }
        if !matches!(how, Allocation::Extend | Allocation::Keep) {
            let len = content.len();
            content[at.min(len)..end.min(len)].fill(0);
        }
        Ok(())
    }

    fn seek(&self, _file: &usize, _at: u64, _data: bool) -> Result<u64> {
        unreachable!("holes are not the same everywhere")
    }

    fn copy(&self, from: &usize, at: u64, to: &usize, to_at: u64, len: u64) -> Result {
        let bytes = self.read(from, at, len as usize)?;
        let len = bytes.len() as u64;
        if from == to && to_at + len > at && to_at < at + len {
            return Err(libc::EINVAL);
        }
        if bytes.is_empty() { Ok(()) } else { self.write(to, to_at, &bytes) }
    }

    fn look_open(&self, file: &usize) -> Result<Look> {
        Ok(self.nodes()[*file].look())
    }

    fn sync(&self, _file: &usize, _data_only: bool) -> Result {
        Ok(())
    }

    fn make_directory(&self, path: &[Name]) -> Result {
        self.make(path, Body::Directory(BTreeMap::new()), 0o755).map(drop)
    }

    fn make_symlink(&self, path: &[Name], target: &[u8]) -> Result {
        self.make(path, Body::Symlink(target.to_vec()), 0o777).map(drop)
    }

    fn read_symlink(&self, path: &[Name]) -> Result<Vec<u8>> {
        let nodes = self.nodes();
        match &nodes[walk(&nodes, path)?].body {
            Body::Symlink(target) => Ok(target.clone()),
            _ => Err(libc::EINVAL),
        }
    }

    fn remove_directory(&self, path: &[Name]) -> Result {
        let mut nodes = self.nodes();
        let (at, name) = parent(&nodes, path)?;
        let node = entry(&nodes, at, name)?;
        if !nodes[node].is_directory() {
            return Err(libc::ENOTDIR);
        }
        if !is_empty(&mut nodes, node) {
            return Err(libc::ENOTEMPTY);
        }
        take(&mut nodes, at, name);
        Ok(())
    }

    fn unlink(&self, path: &[Name]) -> Result {
        let mut nodes = self.nodes();
        let (at, name) = parent(&nodes, path)?;
        if nodes[entry(&nodes, at, name)?].is_directory() {
            return Err(libc::EISDIR);
        }
        take(&mut nodes, at, name);
        Ok(())
    }

    fn link(&self, path: &[Name], to: &[Name]) -> Result {
        let mut nodes = self.nodes();
        let node = walk(&nodes, path)?;
        let (at, name) = free(&nodes, to)?;
        if nodes[node].is_directory() {
            return Err(libc::EPERM);
        }
        nodes[node].nlink += 1;
        put(&mut nodes, at, name, node);
        Ok(())
    }

    fn rename(&self, path: &[Name], to: &[Name], mode: RenameMode) -> Result {
        let mut nodes = self.nodes();
        let ((from_at, from_name), (to_at, to_name)) = (parent(&nodes, path)?, parent(&nodes, to)?);
        let node = entry(&nodes, from_at, from_name)?;
        let target = entry(&nodes, to_at, to_name).ok();
        match (mode, target) {
            (RenameMode::NoReplace, Some(_)) => return Err(libc::EEXIST),
            (RenameMode::Exchange, None) => return Err(libc::ENOENT),
            _ if to.starts_with(path) && to.len() > path.len() => return Err(libc::EINVAL),
            _ if path.starts_with(to) && path.len() > to.len() => {
                return Err(if mode == RenameMode::Exchange { libc::EINVAL } else { libc::ENOTEMPTY });
            }
            _ if target == Some(node) => return Ok(()),
            _ => (),
        }
        let directory = nodes[node].is_directory();
        if let Some(target) = target {
            let target_directory = nodes[target].is_directory();
            if mode == RenameMode::Exchange {
                nodes[from_at].nlink = nodes[from_at].nlink + u64::from(target_directory) - u64::from(directory);
                nodes[to_at].nlink = nodes[to_at].nlink + u64::from(directory) - u64::from(target_directory);
                nodes[from_at].entries().insert(from_name, target);
                nodes[to_at].entries().insert(to_name, node);
                return Ok(());
            }
            match (directory, target_directory) {
                (true, false) => return Err(libc::ENOTDIR),
                (false, true) => return Err(libc::EISDIR),
                (true, true) if !is_empty(&mut nodes, target) => return Err(libc::ENOTEMPTY),
                _ => take(&mut nodes, to_at, to_name),
            }
        }
        nodes[from_at].entries().remove(from_name);
        nodes[from_at].nlink -= u64::from(directory);
        nodes[to_at].nlink += u64::from(directory);
        put(&mut nodes, to_at, to_name, node);
        Ok(())
    }

    fn xattrs(&self, path: &[Name]) -> Result<BTreeMap<String, Vec<u8>>> {
        let nodes = self.nodes();
        Ok(nodes[walk(&nodes, path)?].xattrs.clone())
    }

    fn set_xattr(&self, path: &[Name], name: &str, value: &[u8], how: SetXattr) -> Result {
        self.attributed(path, libc::EPERM, |xattrs| match (how, xattrs.contains_key(name)) {
            (SetXattr::Create, true) => Err(libc::EEXIST),
            (SetXattr::Replace, false) => Err(libc::ENODATA),
            _ => {
                xattrs.insert(name.to_owned(), value.to_vec());
                Ok(())
            }
        })
    }

    fn remove_xattr(&self, path: &[Name], name: &str) -> Result {
        self.attributed(path, libc::EPERM, |xattrs| xattrs.remove(name).map(drop).ok_or(libc::ENODATA))
    }

    fn set_permissions(&self, path: &[Name], permissions: u32) -> Result {
        let mut nodes = self.nodes();
        let at = walk(&nodes, path)?;
        if matches!(nodes[at].body, Body::Symlink(_)) {
            return Err(libc::ENOENT);
        }
        nodes[at].permissions = permissions;
        Ok(())
    }

    fn set_mtime(&self, path: &[Name], mtime: (i64, u32)) -> Result {
        let mut nodes = self.nodes();
        let at = walk(&nodes, path)?;
        // That of a directory changes with its entries.
        if matches!(nodes[at].body, Body::File(_)) {
            nodes[at].mtime = Some(mtime);
        }
        Ok(())
    }

    fn look(&self, path: &[Name]) -> Result<Look> {
        let nodes = self.nodes();
        Ok(nodes[walk(&nodes, path)?].look())
    }

    fn list(&self, path: &[Name]) -> Result<BTreeMap<String, Kind>> {
        let nodes = self.nodes();
        match &nodes[walk(&nodes, path)?].body {
            Body::Directory(entries) => {
                Ok(entries.iter().map(|(name, node)| ((*name).to_owned(), nodes[*node].look().kind)).collect())
            }
            Body::Symlink(_) => Err(libc::ENOENT),
            Body::File(_) => Err(libc::ENOTDIR),
        }
    }

    fn sync_all(&self) -> Result {
        Ok(())
    }

    fn rekey(&self, _steps: u8) -> Result {
        Ok(())
    }

    fn again(self) -> Self {
        self
    }

    fn killed(self, _sweep: bool) -> Self {
        self
    }

    fn damaged(&self) -> u64 {
        0
    }
}
