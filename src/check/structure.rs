//! What can be seen of a volume without any key: names and their other halves, directory ids, the targets of links,
//! headers, lengths. The tree is walked once, in the order of the stored names.

use super::finding::{Findings, Kind};
use super::walk::{entries, join};
use crate::crypto::cipher::VALUE_OVERHEAD;
use crate::crypto::names::{self, DIR_ID_ENTRY, DIRECT_MAX, NAME_MAX, STAGING_PREFIX};
use crate::file::{Context, Damage, Error, Found, Unverified};
use crate::format::volume::VolumeRecord;
use crate::fs::read_dir_id;
use crate::store::{self, DirEntry, Stat, StoreDir};
use crate::units::{DirId, FileId};
use data_encoding::BASE64URL_NOPAD;
use std::collections::{HashMap, HashSet};
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

/// Bytes by which a sealed name is longer than the name.
const NAME_OVERHEAD: usize = 16;
/// Hexadecimal digits of an id.
const ID_DIGITS: usize = 32;

/// How much there is in a volume.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Totals {
    /// Regular files; one with several names counts once.
    pub files: u64,
    /// Directories, the root among them.
    pub directories: u64,
    /// Symbolic links.
    pub links: u64,
    /// Anything else.
    pub others: u64,
    /// Bytes of all files, holes included.
    pub bytes: u64,
}

pub(super) struct Structure<'a> {
    record: &'a VolumeRecord,
    context: &'a Context,
    links: &'a dyn StoreDir,
    stop: &'a AtomicBool,
    findings: &'a mut Findings,
    totals: Totals,
    directories: HashMap<DirId, Vec<u8>>,
    files: HashMap<FileId, (u64, Vec<u8>)>,
    /// Regular files with several names: how many there should be, how many were seen, and one of them.
    shared: HashMap<u64, (u32, u32, Vec<u8>)>,
    targets: HashSet<Vec<u8>>,
}

/// Looks at everything; returns how much there is, `None` if it was told to stop.
///
/// # Errors
/// The store's, if the tree itself cannot be read.
pub(super) fn check(
    record: &VolumeRecord,
    context: &Context,
    tree: &dyn StoreDir,
    links: &dyn StoreDir,
    findings: &mut Findings,
    stop: &AtomicBool,
) -> io::Result<Option<Totals>> {
    let mut structure = Structure {
        record,
        context,
        links,
        stop,
        findings,
        totals: Totals::default(),
        directories: HashMap::new(),
        files: HashMap::new(),
        shared: HashMap::new(),
        targets: HashSet::new(),
    };
    structure.directory(tree, b"tree")?;
    structure.at_the_end()?;
    let stopped = stop.load(Ordering::Relaxed);
    Ok((!stopped).then_some(structure.totals))
}

/// Names what crashes left of files that were being written.
///
/// # Errors
/// The store's.
pub(super) fn lost(lost: &dyn StoreDir, findings: &mut Findings) -> io::Result<()> {
    for entry in entries(lost)? {
        let file = lost.stat(&entry.name).map(|stat| stat.kind == store::Kind::File);
        let (id, rest) = entry.name.split_at(entry.name.len().min(ID_DIGITS));
        let (kind, detail) = match rest.strip_prefix(b".new-") {
            _ if !file? || !is_id(id) => (Kind::Foreign, "kmsfs keeps only what a crash left of files here"),
            None if rest.is_empty() => {
                (Kind::SetAside, "the file with this id was being written when the machine went down")
            }
            Some(random) if is_id(random) => (Kind::Leftover, "a copy in the making when the program ended"),
            _ => (Kind::Foreign, "kmsfs keeps only what a crash left of files here"),
        };
        findings.add(kind, &join(b"lost", &entry.name), None, detail);
    }
    Ok(())
}

fn is_id(text: &[u8]) -> bool {
    text.len() == ID_DIGITS && text.iter().all(u8::is_ascii_hexdigit)
}

impl Structure<'_> {
    fn directory(&mut self, directory: &dyn StoreDir, path: &[u8]) -> io::Result<()> {
        self.totals.directories += 1;
        if !self.record.plain_names {
            self.id(directory, path)?;
        }
        let entries = entries(directory)?;
        let names: HashSet<&[u8]> = entries.iter().map(|entry| &entry.name[..]).collect();
        for entry in &entries {
            if self.stop.load(Ordering::Relaxed) {
                return Ok(());
            }
            let stored = join(path, &entry.name);
            if !self.is_an_entry(directory, &names, entry, &stored)? {
                continue;
            }
            if let Err(error) = self.entry(directory, &entry.name, &stored) {
                self.findings.add(Kind::Io, &stored, None, error.to_string());
            }
        }
        Ok(())
    }

    fn id(&mut self, directory: &dyn StoreDir, path: &[u8]) -> io::Result<()> {
        match read_dir_id(directory)? {
            None if directory.list()?.is_empty() => {
                // Some filesystems bring a new directory back without what was in it.
                self.findings.add(Kind::Unfinished, path, None, "an empty directory that has no id yet");
            }
            None => {
                self.findings.add(Kind::DirectoryId, path, None, "the directory has no id, or one that is none");
            }
            Some(id) => {
                if let Some(other) = self.directories.insert(id, path.to_vec()) {
                    let detail = format!("the directory has the id of {}", super::printable(&other));
                    self.findings.add(Kind::DirectoryIdRepeated, path, None, detail);
                }
            }
        }
        Ok(())
    }

    /// Whether there is anything behind an entry's name, which is checked here.
    fn is_an_entry(
        &mut self,
        directory: &dyn StoreDir,
        names: &HashSet<&[u8]>,
        entry: &DirEntry,
        stored: &[u8],
    ) -> io::Result<bool> {
        let name = &entry.name[..];
        let is_staged = || name.strip_prefix(STAGING_PREFIX).is_some_and(is_id);
        let leftover = "in the making, or being removed, when the program ended";
        if self.record.plain_names {
            if is_staged() {
                self.findings.add(Kind::Leftover, stored, None, leftover);
            }
            return Ok(true);
        }
        let sealed = |text: &[u8], lengths: std::ops::RangeInclusive<usize>| {
            BASE64URL_NOPAD.decode(text).is_ok_and(|sealed| lengths.contains(&sealed.len()))
        };
        match names::classify(name) {
            names::Entry::Direct(full) if sealed(full, NAME_OVERHEAD + 1..=NAME_OVERHEAD + DIRECT_MAX) => Ok(true),
            names::Entry::Long(side) if sealed(&name[2..], 32..=32) => {
                let whole = match directory.read_symlink(&side) {
                    Ok(full) => sealed(&full, NAME_OVERHEAD + DIRECT_MAX + 1..=NAME_OVERHEAD + NAME_MAX),
                    Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::InvalidInput) => {
                        false
                    }
                    Err(error) => return Err(error),
                };
                if !whole {
                    let detail = "the entry that holds the whole of the long name is missing or damaged";
                    self.findings.add(Kind::LongName, stored, None, detail);
                }
                Ok(true)
            }
            names::Entry::Internal if name == DIR_ID_ENTRY => Ok(false),
            names::Entry::Internal if is_staged() => {
                self.findings.add(Kind::Leftover, stored, None, leftover);
                Ok(false)
            }
            names::Entry::Internal if sealed(&name[2..], 32..=32) => {
                if !names.contains(&[b".L", &name[2..]].concat()[..]) {
                    self.findings.add(Kind::OrphanSide, stored, None, "the long name that it belongs to is gone");
                }
                Ok(false)
            }
            _ => {
                self.findings.add(Kind::Foreign, stored, None, "not a name that kmsfs gives");
                Ok(false)
            }
        }
    }

    fn entry(&mut self, directory: &dyn StoreDir, name: &[u8], stored: &[u8]) -> io::Result<()> {
        let stat = directory.stat(name)?;
        match stat.kind {
            store::Kind::Directory => self.directory(&*directory.open_dir(name)?, stored),
            store::Kind::File => self.file(directory, name, stored, &stat),
            store::Kind::Symlink => {
                self.totals.links += 1;
                self.link(&directory.read_symlink(name)?, stored)
            }
            _ => {
                self.totals.others += 1;
                Ok(())
            }
        }
    }

    fn file(&mut self, directory: &dyn StoreDir, name: &[u8], stored: &[u8], stat: &Stat) -> io::Result<()> {
        if stat.nlink > 1 {
            let shared = self.shared.entry(stat.ino).or_insert_with(|| (stat.nlink, 0, stored.to_vec()));
            shared.1 += 1;
            if shared.1 > 1 {
                return Ok(());
            }
        }
        self.totals.files += 1;
        self.totals.bytes += self.context.geometry.plain_len(stat.len).unwrap_or_default().0;
        let store = directory.open_file(name, false)?;
        match self.header(&*store) {
            Ok(Some(file)) => {
                if let Some((ino, other)) = self.files.insert(file, (stat.ino, stored.to_vec()))
                    && ino != stat.ino
                {
                    let detail = format!("it has the file id of {}", super::printable(&other));
                    self.findings.add(Kind::FileIdRepeated, stored, None, detail);
                }
            }
            Ok(None) => {
                let detail = "created just before the machine went down";
                self.findings.add(Kind::Unfinished, stored, None, detail);
            }
            Err(Error::Damaged(damage)) => self.findings.add_damage(&damage, stored, None),
            Err(Error::Io(error)) => return Err(error),
            Err(other) => return Err(io::Error::other(other)),
        }
        Ok(())
    }

    /// The file id of a header in which nothing is wrong that could be seen; `None` if there is none yet.
    fn header(&self, store: &dyn store::StoreFile) -> Result<Option<FileId>, Error> {
        let crashed = !self.context.journal.crashed().is_empty();
        match Unverified::read(store)? {
            Found::Nothing if crashed => Ok(None),
            Found::Nothing => Err(Damage::NoHeader.into()),
            Found::Header(found) if self.record.kek(found.header().envelope.kek).is_none() => {
                Err(Damage::UnknownKek.into())
            }
            Found::Header(found) => {
                let finished = !self.context.journal.crashed().contains(found.header().batch);
                match found.check(self.context) {
                    Err(damage) if finished => Err(damage.into()),
                    Err(_) => Ok(None),
                    Ok(()) => Ok(Some(found.header().file)),
                }
            }
        }
    }

    fn link(&mut self, target: &[u8], stored: &[u8]) -> io::Result<()> {
        let wrong = match target.strip_prefix(b".") {
            None => {
                let sealed = BASE64URL_NOPAD.decode(target);
                (!sealed.is_ok_and(|sealed| sealed.len() > VALUE_OVERHEAD)).then_some("its target is malformed")
            }
            Some(id) if !is_id(id) => Some("its target is malformed"),
            Some(id) => {
                self.targets.insert(id.to_vec());
                match self.links.stat(id) {
                    Err(error) if error.kind() == io::ErrorKind::NotFound => Some("its long target is missing"),
                    Err(error) => return Err(error),
                    Ok(stat) if stat.kind != store::Kind::File => Some("its long target is no file"),
                    Ok(stat) if stat.len.0 <= VALUE_OVERHEAD as u64 => Some("its long target is too short"),
                    Ok(_) => None,
                }
            }
        };
        if let Some(detail) = wrong {
            self.findings.add(Kind::LinkTarget, stored, None, detail);
        }
        Ok(())
    }

    /// What can be said only when everything was seen.
    fn at_the_end(&mut self) -> io::Result<()> {
        if self.stop.load(Ordering::Relaxed) {
            return Ok(());
        }
        for (expected, seen, stored) in self.shared.values() {
            if seen < expected {
                let detail = format!("it has {expected} names, and {seen} of them are in the tree");
                self.findings.add(Kind::LinkCount, stored, None, detail);
            }
        }
        for entry in entries(self.links)? {
            if !self.targets.contains(&entry.name) {
                let detail = "the symbolic link that it belongs to is gone";
                self.findings.add(Kind::OrphanTarget, &join(b"links", &entry.name), None, detail);
            }
        }
        Ok(())
    }
}
