//! Puts what a log holds in place: for each file the last version of each byte (format.md, "Recovery"). Needs no key.

use super::recovery::Recovery;
use super::{Target, Update};
use crate::store::{Kind, SetTime, StoreDir, StoreFile};
use crate::units::{FileId, StoredOffset};
use std::collections::HashMap;
use std::io;
use std::sync::Arc;

/// Where the file id stands in a header page.
const FILE_ID_AT: usize = 16;

/// Brings every file up to date that has updates, oldest first for each.
///
/// # Errors
/// The store's; then it can be done again.
pub fn replay(
    tree: &dyn StoreDir,
    updates: HashMap<FileId, Vec<(Target, Update)>>,
    recovery: &mut Recovery,
) -> io::Result<()> {
    let mut missing = HashMap::new();
    for (file_id, updates) in updates {
        match locate_by_path(tree, &updates)? {
            Some(file) => {
                apply(&*file, &updates)?;
                recovery.files += 1;
            }
            None => {
                let inos: Vec<u64> = updates.iter().map(|(target, _)| target.ino).collect();
                missing.insert(file_id, (inos, updates));
            }
        }
    }
    if !missing.is_empty() {
        // They were renamed since. One walk finds them all, by inode number first so that few need to be opened.
        walk(tree, &mut missing, recovery)?;
        recovery.gone += missing.len() as u64;
    }
    Ok(())
}

/// Puts the last version of each byte in place: from the newest update backwards, skipping what a newer one wrote,
/// cut off or voided.
fn apply(file: &dyn StoreFile, updates: &[(Target, Update)]) -> io::Result<()> {
    let mtime = file.inode().stat()?.mtime;
    let mut covered = Covered::default();
    for (_, update) in updates.iter().rev() {
        for (offset, bytes) in update.writes.iter().rev() {
            covered.for_each_gap(offset.0, bytes.len() as u64, |from, to| {
                file.write_at(&bytes[(from - offset.0) as usize..(to - offset.0) as usize], StoredOffset(from))
            })?;
            covered.add(offset.0, bytes.len() as u64);
        }
        for (offset, len) in &update.voids {
            covered.add(offset.0, *len);
        }
        covered.add(update.stored_len.0, u64::MAX - update.stored_len.0);
    }
    if let Some((_, last)) = updates.last() {
        file.set_len(last.stored_len)?;
    }
    // It is as it was when applications wrote. Whoever may write to a file need not be its owner.
    match file.inode().set_times(SetTime::Keep, SetTime::At(mtime)) {
        Err(error) if error.kind() != io::ErrorKind::PermissionDenied => Err(error),
        _ => file.sync(false),
    }
}

/// A set of ranges, kept disjoint and in order.
#[derive(Default)]
struct Covered(std::collections::BTreeMap<u64, u64>);

impl Covered {
    fn add(&mut self, start: u64, len: u64) {
        let (mut start, mut end) = (start, start.saturating_add(len));
        if start >= end {
            return;
        }
        while let Some((&from, &to)) = self.0.range(..=end).next_back() {
            if to < start {
                break;
            }
            self.0.remove(&from);
            start = start.min(from);
            end = end.max(to);
        }
        self.0.insert(start, end);
    }

    fn for_each_gap(&self, start: u64, len: u64, mut act: impl FnMut(u64, u64) -> io::Result<()>) -> io::Result<()> {
        let end = start + len;
        let mut at = self.0.range(..=start).next_back().map_or(start, |(_, to)| (*to).max(start));
        while at < end {
            let next = self.0.range(at..).next().map(|(from, to)| (*from, *to)).unwrap_or((u64::MAX, u64::MAX));
            if next.0 > at {
                act(at, next.0.min(end))?;
            }
            at = next.1;
        }
        Ok(())
    }
}

fn locate_by_path(tree: &dyn StoreDir, updates: &[(Target, Update)]) -> io::Result<Option<Arc<dyn StoreFile>>> {
    for (target, _) in updates.iter().rev() {
        if let Some(file) = open_path(tree, &target.path)?
            && is_file(&*file, target.file)?
        {
            return Ok(Some(file));
        }
    }
    Ok(None)
}

fn open_path(tree: &dyn StoreDir, path: &[u8]) -> io::Result<Option<Arc<dyn StoreFile>>> {
    let mut components = path.split(|byte| *byte == b'/').collect::<Vec<_>>();
    let Some(name) = components.pop() else { return Ok(None) };
    let mut directory: Option<Arc<dyn StoreDir>> = None;
    for component in components {
        let below = there(directory.as_deref().unwrap_or(tree).open_dir(component))?;
        let Some(below) = below else { return Ok(None) };
        directory = Some(below);
    }
    open_file(directory.as_deref().unwrap_or(tree), name)
}

/// `None` for what is not there, or is something else by now. Any other error is one: what is in the log must not be
/// given up because a disk or a table of open files had a bad moment.
pub fn there<T>(opened: io::Result<T>) -> io::Result<Option<T>> {
    match opened {
        Ok(opened) => Ok(Some(opened)),
        Err(error) => match error.raw_os_error() {
            Some(
                libc::ENOENT | libc::ENOTDIR | libc::EISDIR | libc::ELOOP | libc::ESTALE | libc::EINVAL | libc::ENXIO,
            ) => Ok(None),
            _ => Err(error),
        },
    }
}

/// Opens a file for writing. One that its owner made read-only since is made writable for that moment.
fn open_file(dir: &dyn StoreDir, name: &[u8]) -> io::Result<Option<Arc<dyn StoreFile>>> {
    match there(dir.open_file(name, true)) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            let inode = dir.entry(name)?;
            let permissions = inode.stat()?.permissions;
            inode.set_permissions(permissions | 0o600)?;
            let opened = there(dir.open_file(name, true));
            inode.set_permissions(permissions)?;
            opened
        }
        other => other,
    }
}

/// Whether this is the file with that id: every file that has an update had a header in place when it was made.
fn is_file(file: &dyn StoreFile, id: FileId) -> io::Result<bool> {
    let mut found = [0; 16];
    let len = file.read_at(&mut found, StoredOffset(FILE_ID_AT as u64))?;
    Ok(len == found.len() && found == id.0)
}

type Missing = HashMap<FileId, (Vec<u64>, Vec<(Target, Update)>)>;

fn walk(dir: &dyn StoreDir, missing: &mut Missing, recovery: &mut Recovery) -> io::Result<()> {
    for entry in dir.list()? {
        if missing.is_empty() {
            return Ok(());
        }
        // Not every filesystem tells it with the name.
        let kind = match entry.kind {
            None => there(dir.stat(&entry.name))?.map(|stat| stat.kind),
            known => known,
        };
        match kind {
            Some(Kind::Directory) => match there(dir.open_dir(&entry.name)) {
                Ok(Some(below)) => walk(&*below, missing, recovery)?,
                // Nothing below could be reached while it was like this.
                Ok(None) => (),
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => (),
                Err(error) => return Err(error),
            },
            Some(Kind::File) if missing.values().any(|(inos, _)| inos.contains(&entry.ino)) => {
                let Some(file) = open_file(dir, &entry.name)? else { continue };
                let mut id = [0; 16];
                if file.read_at(&mut id, StoredOffset(FILE_ID_AT as u64))? == id.len()
                    && let Some((_, updates)) = missing.remove(&FileId(id))
                {
                    apply(&*file, &updates)?;
                    recovery.files += 1;
                }
            }
            _ => (),
        }
    }
    Ok(())
}
