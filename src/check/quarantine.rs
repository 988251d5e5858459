//! Taking damaged files out of a volume, one by one:
//! 1. a line in the report says what is to be moved, and under which name it will be found (a crash: the line names
//!    something that is still where it was);
//! 2. the file is renamed into the quarantine, or, on another filesystem, copied under another name, made durable,
//!    given its name and only then removed (a crash: it is in one place, or in both);
//! 3. what else names it is removed: other hard links, and the other half of a long name (a crash: something is left
//!    that a next check finds).

use super::finding::{Finding, Findings, printable};
use super::walk::{entries, join};
use crate::crypto::names::{self, classify};
use crate::fs::volume::Volume;
use crate::store::dir::DirStore;
use crate::store::{Kind, RenameMode, Seek, SetTime, SetXattr, Stat, Store, StoreDir, StoreFile};
use crate::units::StoredOffset;
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The name of the report in a quarantine.
const REPORT: &str = "report.jsonl";

/// Why not everything could be moved.
#[derive(Debug)]
pub struct QuarantineError {
    /// What was being moved, or the quarantine itself.
    pub place: PathBuf,
    /// Why it could not be.
    pub error: io::Error,
}

/// Moves every regular file and symbolic link whose content is damaged out of the tree; returns a line of the report for
/// each. The caller holds the volume alone.
///
/// # Errors
/// The first; what was moved before is in the report.
pub fn quarantine(volume: &Volume, findings: &Findings, into: &Path) -> Result<Vec<Value>, QuarantineError> {
    let failed = |place: &Path, error| QuarantineError { place: place.to_owned(), error };
    let open = || -> io::Result<_> {
        if !into.is_dir() {
            std::os::unix::fs::DirBuilderExt::mode(&mut std::fs::DirBuilder::new(), 0o700).create(into)?;
        }
        let report = File::options().append(true).create(true).open(into.join(REPORT))?;
        let quarantine = Quarantine {
            root: DirStore::open(into)?.root(),
            report,
            next: 1,
            plain_names: volume.record().plain_names,
        };
        Ok((quarantine, volume.tree()?))
    };
    let (mut quarantine, tree) = open().map_err(|error| failed(into, error))?;
    let mut damaged: BTreeMap<&[u8], Vec<&Finding>> = BTreeMap::new();
    for finding in findings.iter().filter(|finding| finding.kind.is_lost_content()) {
        if let Some(path) = finding.stored.strip_prefix(b"tree/") {
            damaged.entry(path).or_default().push(finding);
        }
    }
    let mut shared = HashMap::new();
    let mut moved = Vec::new();
    for (path, findings) in damaged {
        let place = || Path::new("tree").join(printable(path));
        let line = quarantine.take(&tree, path, &findings, &mut shared).map_err(|error| failed(&place(), error))?;
        moved.extend(line);
    }
    Ok(moved)
}

struct Quarantine {
    root: Arc<dyn StoreDir>,
    report: File,
    next: u32,
    plain_names: bool,
}

impl Quarantine {
    fn take(
        &mut self,
        tree: &Arc<dyn StoreDir>,
        path: &[u8],
        findings: &[&Finding],
        shared: &mut HashMap<u64, Vec<Vec<u8>>>,
    ) -> io::Result<Option<Value>> {
        let (parent, name) = locate(tree, path)?;
        let stat = match parent.stat(&name) {
            // Another name of it was met before.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other?,
        };
        if !matches!(stat.kind, Kind::File | Kind::Symlink) {
            return Ok(None);
        }
        if stat.nlink > 1 && shared.is_empty() {
            names_of_shared(&**tree, b"", shared)?;
        }
        let mut others = shared.get(&stat.ino).cloned().unwrap_or_default();
        others.retain(|other| other != path);
        let to = loop {
            let to = format!("{:06}", self.next);
            self.next += 1;
            if self.root.stat(to.as_bytes()).is_err() {
                break to;
            }
        };
        let line = json!({
            "file": to,
            "path": findings.iter().find_map(|finding| finding.path.as_deref()).map(printable),
            "stored": printable(&findings[0].stored),
            "other_names": others.iter().map(|other| printable(&join(b"tree", other))).collect::<Vec<_>>(),
            "findings": findings.iter().map(|finding| finding.to_json()).collect::<Vec<_>>(),
        });
        writeln!(self.report, "{line}")?;
        self.report.sync_all()?;
        self.carry(&*parent, &name, to.as_bytes(), &stat)?;
        self.remove_side(&*parent, &name)?;
        parent.sync()?;
        for other in &others {
            let (parent, name) = locate(tree, other)?;
            parent.unlink(&name)?;
            self.remove_side(&*parent, &name)?;
            parent.sync()?;
        }
        Ok(Some(line))
    }

    /// Removes the other half of a long name that is gone.
    fn remove_side(&self, directory: &dyn StoreDir, name: &[u8]) -> io::Result<()> {
        let names::Entry::Long(side) = classify(name) else { return Ok(()) };
        if self.plain_names {
            return Ok(());
        }
        match directory.unlink(&side) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }

    fn carry(&self, parent: &dyn StoreDir, name: &[u8], to: &[u8], stat: &Stat) -> io::Result<()> {
        match parent.rename(name, &*self.root, to, RenameMode::NoReplace) {
            Err(error) if error.kind() == io::ErrorKind::CrossesDevices => (),
            other => return other.and_then(|()| self.root.sync()),
        }
        if stat.kind == Kind::Symlink {
            self.root.make_symlink(to, &parent.read_symlink(name)?)?;
        } else {
            let making = [to, b".new"].concat();
            let copy = self.root.create_file(&making, 0o600)?;
            copy_file(&*parent.open_file(name, false)?, &*copy, stat)?;
            self.root.rename(&making, &*self.root, to, RenameMode::NoReplace)?;
        }
        self.root.sync()?;
        parent.unlink(name)
    }
}

/// Copies content, with its holes, and attributes; durable when it returns.
fn copy_file(from: &dyn StoreFile, to: &dyn StoreFile, stat: &Stat) -> io::Result<()> {
    let mut buffer = vec![0; 1 << 20];
    let mut at = StoredOffset(0);
    while let Some(data) = from.seek(at, Seek::Data)? {
        let hole = from.seek(data, Seek::Hole)?.unwrap_or(stat.len);
        at = data;
        while at < hole {
            let most = ((hole.0 - at.0) as usize).min(buffer.len());
            let read = from.read_at(&mut buffer[..most], at)?;
            if read == 0 {
                break;
            }
            to.write_at(&buffer[..read], at)?;
            at.0 += read as u64;
        }
        at = hole;
    }
    to.set_len(stat.len)?;
    for name in from.inode().xattr_names()? {
        if let Some(value) = from.inode().xattr(&name)? {
            to.inode().set_xattr(&name, &value, SetXattr::Any)?;
        }
    }
    to.inode().set_owner(Some(stat.uid), Some(stat.gid))?;
    to.inode().set_permissions(stat.permissions)?;
    to.inode().set_times(SetTime::At(stat.atime), SetTime::At(stat.mtime))?;
    to.sync(false)
}

/// The directory and the name of a path below the tree.
fn locate(tree: &Arc<dyn StoreDir>, path: &[u8]) -> io::Result<(Arc<dyn StoreDir>, Vec<u8>)> {
    let mut components: Vec<&[u8]> = path.split(|byte| *byte == b'/').collect();
    let name = components.pop().unwrap_or_default().to_vec();
    let mut directory = Arc::clone(tree);
    for component in components {
        directory = directory.open_dir(component)?;
    }
    Ok((directory, name))
}

/// The names of all files that have several, by inode number.
fn names_of_shared(directory: &dyn StoreDir, path: &[u8], found: &mut HashMap<u64, Vec<Vec<u8>>>) -> io::Result<()> {
    for entry in entries(directory)? {
        let stat = directory.stat(&entry.name)?;
        let path = join(path, &entry.name);
        if stat.kind == Kind::Directory {
            names_of_shared(&*directory.open_dir(&entry.name)?, &path, found)?;
        } else if stat.nlink > 1 {
            found.entry(stat.ino).or_default().push(path);
        }
    }
    Ok(())
}
