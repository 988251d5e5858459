//! Everything in a volume's directory, looked at as somebody without a key would: is there anything that is not
//! ciphertext? Structure first ([`crate::check`]), then the bytes. Nothing is written.

use super::merkle;
use super::randomness::Tested;
use crate::check::{self, Findings, Severity, printable};
use crate::crypto::names;
use crate::format::header::Header;
use crate::format::{Geometry, PAGE};
use crate::fs::volume::Volume;
use crate::journal::recovery;
use crate::kms::WrapAlgorithm;
use crate::store::{Kind, Seek, StoreDir, StoreFile};
use crate::units::{ChunkIndex, KekGeneration, StoredOffset};
use parking_lot::Mutex;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

/// How many findings a certificate has in full.
const LISTED: usize = 1000;
/// How many different envelopes of each KEK are tried.
const SAMPLE: usize = 4;
/// How many files are looked at together.
const AT_A_TIME: usize = 512;
/// How much is read at a time.
const PIECE: usize = 1 << 20;
/// What an extended attribute of a stored file may be called, or begin with.
const ATTRIBUTES: [&[u8]; 4] = [b"user.kmsfs.", b"system.posix_acl_", b"security.selinux", b"security.ima"];

/// Something that is not ciphertext, or that kmsfs does not know.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Foreign {
    /// Where, below the volume's directory, without what steers a terminal.
    pub path: String,
    /// What is wrong with it.
    pub what: String,
}

/// What headers say of the KEKs that wrapped their envelopes.
#[derive(Clone, Debug, Default)]
pub struct Envelopes {
    /// Files, by the number of the KEK.
    pub files: BTreeMap<u32, u64>,
    /// Files with an envelope for recovery, by the number of the KEK.
    pub recovery: BTreeMap<u32, u64>,
    /// Some of the different envelopes of each KEK.
    pub sample: BTreeMap<u32, BTreeSet<(u8, Vec<u8>)>>,
}

impl Envelopes {
    fn note(&mut self, header: &Header) {
        for (envelope, files) in
            [(Some(&header.envelope), &mut self.files), (header.recovery.as_ref(), &mut self.recovery)]
        {
            let Some(envelope) = envelope else { continue };
            *files.entry(envelope.kek.0).or_default() += 1;
            let sample = self.sample.entry(envelope.kek.0).or_default();
            if sample.len() < SAMPLE {
                sample.insert((envelope.algorithm as u8, envelope.blob.clone()));
            }
        }
    }

    /// The sample of a KEK.
    pub fn sample_of(&self, kek: KekGeneration) -> impl Iterator<Item = (WrapAlgorithm, &Vec<u8>)> {
        let sample = self.sample.get(&kek.0).into_iter().flatten();
        sample.filter_map(|(code, blob)| Some((WrapAlgorithm::from_code(*code)?, blob)))
    }
}

/// What was found.
#[derive(Debug)]
pub struct Scan {
    /// Names of regular files in `tree`, `links` and `lost`.
    pub files: u64,
    /// Directories in `tree`.
    pub directories: u64,
    /// Symbolic links in `tree`.
    pub symlinks: u64,
    /// FIFOs, sockets and device nodes in `tree`.
    pub others: u64,
    /// Bytes of those files on the disk.
    pub bytes: u64,
    /// The envelopes.
    pub envelopes: Envelopes,
    /// What is not ciphertext, by path; not more than a certificate holds.
    pub foreign: Vec<Foreign>,
    /// How many there are.
    pub foreign_count: u64,
    pub(super) tested: Tested,
    pub(super) root: merkle::Hash,
    pub(super) leaves: u64,
}

struct Run<'a> {
    geometry: Geometry,
    plain_names: bool,
    stop: &'a AtomicBool,
    progress: &'a AtomicU64,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    directories: u64,
    symlinks: u64,
    others: u64,
    bytes: u64,
    envelopes: Envelopes,
    foreign: BTreeSet<Foreign>,
    foreign_count: u64,
    tested: Tested,
    leaves: BTreeMap<Vec<u8>, merkle::Hash>,
}

/// A file that is to be looked at: its directory, its name, its path below the volume, and whether it has a header.
type Item = (Arc<dyn StoreDir>, Vec<u8>, Vec<u8>, bool);
/// What is done with some of them.
type Act<'a> = &'a mut dyn FnMut(&[Item]) -> io::Result<()>;

/// Looks at everything, with so many threads. `progress` counts bytes. `None` if it was told to stop.
///
/// # Errors
/// The store's, if what every volume has cannot be read.
pub fn scan(
    volume: &Volume,
    root: &Arc<dyn StoreDir>,
    threads: usize,
    progress: &AtomicU64,
    stop: &AtomicBool,
) -> io::Result<Option<Scan>> {
    let record = volume.record();
    let geometry = Geometry::new(record.chunk_size);
    let run = Run { geometry, plain_names: record.plain_names, stop, progress, inner: Mutex::new(Inner::default()) };
    run.structure(volume)?;
    run.around(&**root)?;
    run.everything(volume, &mut |items| {
        let next = AtomicU64::new(0);
        std::thread::scope(|scope| {
            for _ in 0..threads.max(1) {
                scope.spawn(|| {
                    let next = || items.get(next.fetch_add(1, Relaxed) as usize).filter(|_| !stop.load(Relaxed));
                    while let Some(item) = next() {
                        run.item(item);
                    }
                });
            }
        });
        Ok(())
    })?;
    if stop.load(Relaxed) {
        return Ok(None);
    }
    let Inner { directories, symlinks, others, bytes, envelopes, foreign, foreign_count, tested, leaves } =
        run.inner.into_inner();
    Ok(Some(Scan {
        files: leaves.len() as u64,
        directories,
        symlinks,
        others,
        bytes,
        envelopes,
        foreign: foreign.into_iter().take(LISTED).collect(),
        foreign_count,
        tested,
        leaves: leaves.len() as u64,
        root: merkle::root(leaves.into_values()),
    }))
}

/// The root over the headers as they are now, without anything else.
///
/// # Errors
/// The store's.
pub fn root_now(volume: &Volume) -> io::Result<String> {
    let record = volume.record();
    let (stop, progress) = (AtomicBool::new(false), AtomicU64::new(0));
    let geometry = Geometry::new(record.chunk_size);
    let inner = Mutex::new(Inner::default());
    let run = Run { geometry, plain_names: record.plain_names, stop: &stop, progress: &progress, inner };
    let mut leaves = BTreeMap::new();
    run.everything(volume, &mut |items| {
        for (directory, name, path, _) in items {
            leaves.insert(path.clone(), merkle::leaf(path, &first_page(&*directory.open_file(name, false)?)?));
        }
        Ok(())
    })?;
    Ok(data_encoding::HEXLOWER.encode(&merkle::root(leaves.into_values())))
}

fn is_of_journal(name: &[u8]) -> bool {
    name == b"log-a" || name == b"log-b"
}

fn is_of_audit(name: &[u8]) -> bool {
    name.ends_with(b".jsonl") || name.ends_with(b".lock")
}

fn first_page(file: &dyn StoreFile) -> io::Result<Vec<u8>> {
    let mut page = vec![0; PAGE];
    let len = file.read_at(&mut page, StoredOffset(0))?;
    page.truncate(len);
    Ok(page)
}

impl Run<'_> {
    fn foreign(&self, path: &[u8], what: impl Into<String>) {
        let mut inner = self.inner.lock();
        inner.foreign_count += 1;
        if inner.foreign.len() < LISTED {
            inner.foreign.insert(Foreign { path: printable(path), what: what.into() });
        }
    }

    /// What `fsck` finds without a key: names, links, headers and lengths that are not those of kmsfs.
    fn structure(&self, volume: &Volume) -> io::Result<()> {
        let journal = recovery::read_only(&*volume.journal()?)?.0;
        let mut findings = Findings::default();
        check::structure(volume, &volume.context(journal), &mut findings, self.stop)?;
        for finding in findings.iter().filter(|finding| finding.kind.severity() != Severity::Note) {
            self.foreign(&finding.stored, format!("{}: {}", finding.kind.name(), finding.detail));
        }
        Ok(())
    }

    /// What is beside the tree.
    fn around(&self, root: &dyn StoreDir) -> io::Result<()> {
        for entry in root.list()? {
            if !crate::fs::volume::is_own_entry(&entry.name) {
                self.foreign(&entry.name, "not a file of kmsfs, in the volume's directory");
            }
        }
        for (directory, is_known) in [("journal", is_of_journal as fn(&[u8]) -> bool), ("audit", is_of_audit)] {
            for entry in root.open_dir(directory.as_bytes())?.list()? {
                if !is_known(&entry.name) {
                    let path = [directory.as_bytes(), b"/", &entry.name].concat();
                    self.foreign(&path, "not a file of kmsfs");
                }
            }
        }
        Ok(())
    }

    /// Gives out all files, some at a time: each holds its directory open.
    fn everything(&self, volume: &Volume, act: Act<'_>) -> io::Result<()> {
        let mut items = Vec::new();
        self.walk(&volume.tree()?, b"tree", &mut items, act)?;
        let lost = volume.lost_if_any()?.map(|lost| (lost, "lost", true));
        for (directory, path, has_header) in [Some((volume.links()?, "links", false)), lost].into_iter().flatten() {
            for entry in directory.list()? {
                if directory.stat(&entry.name)?.kind == Kind::File {
                    let below = [path.as_bytes(), b"/", &entry.name].concat();
                    self.give(&mut items, (Arc::clone(&directory), entry.name, below, has_header), act)?;
                }
            }
        }
        act(&items)
    }

    fn give(&self, items: &mut Vec<Item>, item: Item, act: Act<'_>) -> io::Result<()> {
        items.push(item);
        if items.len() < AT_A_TIME {
            return Ok(());
        }
        act(&std::mem::take(items))
    }

    fn walk(&self, directory: &Arc<dyn StoreDir>, path: &[u8], items: &mut Vec<Item>, act: Act<'_>) -> io::Result<()> {
        self.inner.lock().directories += 1;
        self.attributes(directory.inode().xattr_names(), path);
        for entry in directory.list()? {
            if self.stop.load(Relaxed) {
                return Ok(());
            }
            let below = [path, b"/", &entry.name].concat();
            match directory.stat(&entry.name)?.kind {
                Kind::Directory => self.walk(&directory.open_dir(&entry.name)?, &below, items, act)?,
                Kind::File => self.give(items, (Arc::clone(directory), entry.name, below, true), act)?,
                Kind::Symlink => {
                    // Directory ids and long names are links too, and none of the tree's.
                    let own = !self.plain_names && names::classify(&entry.name) == names::Entry::Internal;
                    self.inner.lock().symlinks += u64::from(!own);
                }
                _ => self.inner.lock().others += 1,
            }
        }
        Ok(())
    }

    fn attributes(&self, names: io::Result<Vec<Vec<u8>>>, path: &[u8]) {
        let own = |name: &[u8]| ATTRIBUTES.iter().any(|known| name.starts_with(known));
        for name in names.unwrap_or_default().iter().filter(|name| !own(name)) {
            self.foreign(path, format!("an extended attribute that kmsfs does not set: {}", printable(name)));
        }
    }

    fn item(&self, (directory, name, path, has_header): &Item) {
        let looked = directory.open_file(name, false).and_then(|file| {
            self.attributes(file.inode().xattr_names(), path);
            self.file(&*file, path, *has_header)
        });
        if let Err(error) = looked {
            self.foreign(path, format!("it could not be read: {error}"));
        }
    }

    fn file(&self, file: &dyn StoreFile, path: &[u8], has_header: bool) -> io::Result<()> {
        let page = first_page(file)?;
        let leaf = merkle::leaf(path, &page);
        let len = file.inode().stat()?.len.0;
        let mut tested = Tested::default();
        let header = <&[u8; PAGE]>::try_from(&page[..]).ok().and_then(|page| Header::parse(page).ok());
        match (&header, has_header) {
            // What it is was noted with the structure; the bytes are looked at all the same.
            (None, true) | (_, false) => self.test(file, 0, len, &mut tested)?,
            (Some(header), true) => {
                let count = self.geometry.chunk_count(header.len);
                let mut chunk = 0;
                while chunk < count && !self.stop.load(Relaxed) {
                    // Where a hole is on the disk, nothing is read.
                    let at = self.geometry.stored_chunk(ChunkIndex(chunk));
                    let Some(data) = file.seek(at, Seek::Data)? else { break };
                    if data > at {
                        // The last chunk that begins before the data; those before it are holes.
                        let (mut low, mut high) = (chunk, count);
                        while high - low > 1 {
                            let middle = low + (high - low) / 2;
                            if self.geometry.stored_chunk(ChunkIndex(middle)) <= data {
                                low = middle
                            } else {
                                high = middle
                            }
                        }
                        tested.zeros += (low - chunk) * self.geometry.chunk_len();
                        chunk = low;
                    }
                    let at = self.geometry.stored_chunk(ChunkIndex(chunk));
                    let part = self.geometry.len_of_chunk(ChunkIndex(chunk), header.len);
                    self.test(file, at.0, part, &mut tested)?;
                    chunk += 1;
                }
            }
        }
        let mut inner = self.inner.lock();
        if let Some(header) = header.filter(|_| has_header) {
            inner.envelopes.note(&header);
        }
        inner.bytes += len;
        inner.tested.add(tested);
        inner.leaves.insert(path.to_vec(), leaf);
        drop(inner);
        if tested.suspicious > 0 {
            let what = format!(
                "{} of {} windows of 4096 bytes do not look like ciphertext",
                tested.suspicious, tested.windows
            );
            self.foreign(path, what);
        }
        Ok(())
    }

    fn test(&self, file: &dyn StoreFile, begin: u64, len: u64, tested: &mut Tested) -> io::Result<()> {
        let mut buffer = vec![0; PIECE.min(usize::try_from(len).unwrap_or(PIECE))];
        let mut done = 0;
        while done < len && !self.stop.load(Relaxed) {
            let want = buffer.len().min(usize::try_from(len - done).unwrap_or(PIECE));
            let read = file.read_at(&mut buffer[..want], StoredOffset(begin + done))?;
            tested.test(&buffer[..read]);
            self.progress.fetch_add(read as u64, Relaxed);
            done += read as u64;
            if read < want {
                break;
            }
        }
        Ok(())
    }
}
