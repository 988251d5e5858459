//! A volume as a directory of the host: its record, who holds it, and making one.

mod holder;
mod keks;

use crate::crypto::derive::VolumeKeys;
use crate::crypto::{Secret32, names, random_id};
use crate::file::Context;
use crate::format::volume::{Kek, KekRole, MAX_LEN, RekeyState, VolumeRecord};
use crate::format::{ChunkSize, Geometry, Malformed};
use crate::journal::Journal;
use crate::kms::{Kms, KmsError, KmsErrorKind};
use crate::store::dir::{AccessTimes, DirStore};
use crate::store::{Store, StoreDir, replace_file};
use crate::units::{Epoch, KekGeneration, StoredOffset, VolumeId};
pub use holder::{Holder, Holding};
pub use keks::Target;
use parking_lot::{Mutex, RwLock};
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

const RECORD: &[u8] = b"volume.kmsfs";
const TREE: &[u8] = b"tree";
const JOURNAL: &[u8] = b"journal";
const AUDIT: &[u8] = b"audit";
/// Symbolic links whose targets are too long for one (format.md, "Symbolic links").
const LINKS: &[u8] = b"links";
/// What a crash left of files that were being written.
const LOST: &[u8] = b"lost";

/// Whether kmsfs itself gives this name to something in a volume's directory.
pub fn is_own_entry(name: &[u8]) -> bool {
    let own = [RECORD, TREE, JOURNAL, AUDIT, LINKS, LOST, holder::NAME.as_bytes(), b"import.state", b"ledger.kmsfs"];
    own.contains(&name) || name.starts_with(b"volume.kmsfs.new-") || name == b"lost+found"
}

/// The default of `--files-per-envelope` (performance.md has the figures).
pub const FILES_PER_ENVELOPE: u32 = 1024;

/// A volume whose record was read.
pub struct Volume {
    path: PathBuf,
    root: Arc<dyn StoreDir>,
    bytes: Vec<u8>,
    record: RwLock<Arc<VolumeRecord>>,
    /// Held while the record is being changed.
    changing: Mutex<()>,
    /// Which of the wraps of every secret is used.
    role: KekRole,
}

/// Why there is no volume.
#[derive(Debug)]
pub enum VolumeError {
    /// The directory does not exist.
    Missing,
    /// The directory holds no volume record.
    NotAVolume,
    /// The record, or something else that every volume has, is damaged.
    Damaged(String),
    /// The directory in which a volume is to be made is not empty, or is a volume.
    NotEmpty {
        /// It is a volume already.
        volume: bool,
    },
    /// The backing directory failed.
    Io(io::Error),
    /// The KMS failed.
    Kms(KmsError),
}

impl fmt::Display for VolumeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing => f.write_str("there is no such directory"),
            Self::NotAVolume => f.write_str("it is not a kmsfs volume: it has no volume.kmsfs"),
            Self::Damaged(what) => write!(f, "the volume is damaged: {what}"),
            Self::NotEmpty { volume: true } => f.write_str("it is a kmsfs volume already"),
            Self::NotEmpty { volume: false } => f.write_str("the directory is not empty"),
            Self::Io(error) => error.fmt(f),
            Self::Kms(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for VolumeError {}

impl From<io::Error> for VolumeError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<KmsError> for VolumeError {
    fn from(error: KmsError) -> Self {
        Self::Kms(error)
    }
}

/// A second KEK for a new volume, and how it is reached.
#[derive(Clone, Copy)]
pub struct RecoveryKek<'a> {
    /// How its owner wrote it.
    pub reference: &'a str,
    /// Where it is asked.
    pub kms: &'a dyn Kms,
}

/// What `init` may choose.
#[derive(Clone, Copy, Debug)]
pub struct InitOptions {
    /// The chunk size of all files.
    pub chunk_size: ChunkSize,
    /// At most this many files share an envelope.
    pub files_per_envelope: u32,
    /// Names are not encrypted.
    pub plain_names: bool,
}

/// Makes a volume in a directory that is empty or does not exist:
/// 1. wrap a new volume key, and unwrap it again: a key that cannot do both is found now (a crash: nothing is there);
/// 2. make the directories and sync them (a crash: a directory without a record, which is no volume);
/// 3. write the record (a crash: a volume, or none).
///
/// # Errors
/// [`VolumeError`]; what was made is removed again.
pub fn init(path: &Path, reference: &str, kms: &dyn Kms, options: InitOptions) -> Result<VolumeRecord, VolumeError> {
    init_with_recovery(path, reference, kms, options, None)
}

/// The same, with a second KEK by which every secret is wrapped too.
///
/// # Errors
/// As for [`init`].
pub fn init_with_recovery(
    path: &Path,
    reference: &str,
    kms: &dyn Kms,
    options: InitOptions,
    recovery: Option<RecoveryKek<'_>>,
) -> Result<VolumeRecord, VolumeError> {
    let made = match std::fs::create_dir(path) {
        Ok(()) => true,
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => false,
        Err(error) => return Err(error.into()),
    };
    let result = DirStore::open(path)
        .map_err(VolumeError::from)
        .and_then(|store| fill(&*store.root(), reference, kms, options, recovery));
    if let Err(error) = &result
        && !matches!(error, VolumeError::NotEmpty { .. })
    {
        for name in [TREE, JOURNAL, AUDIT, LINKS] {
            // As much as there is of it; it was empty before.
            let _ = std::fs::remove_dir_all(path.join(std::ffi::OsStr::new(std::str::from_utf8(name).unwrap_or("-"))));
        }
        if made {
            let _ = std::fs::remove_dir(path);
        }
    }
    result
}

/// Makes a volume in a directory of a store.
pub(super) fn fill(
    root: &dyn StoreDir,
    reference: &str,
    kms: &dyn Kms,
    options: InitOptions,
    recovery: Option<RecoveryKek<'_>>,
) -> Result<VolumeRecord, VolumeError> {
    let entries = root.list()?;
    // What every freshly made ext4 has.
    if entries.iter().any(|entry| entry.name != b"lost+found") {
        return Err(VolumeError::NotEmpty { volume: entries.iter().any(|entry| entry.name == RECORD) });
    }
    let id = VolumeId(random_id());
    let volume_key = Secret32::random();
    let wrapped = keks::wrap_and_test(kms, KekRole::Primary, &volume_key, id)?;
    let second = match recovery {
        Some(recovery) => Some(keks::wrap_and_test(recovery.kms, KekRole::Recovery, &volume_key, id)?),
        None => None,
    };
    for name in [TREE, JOURNAL, AUDIT, LINKS] {
        root.make_dir(name, 0o700)?;
    }
    let tree = root.open_dir(TREE)?;
    // The root directory of the mount: the modes of the others keep it from being reached directly.
    tree.inode().set_permissions(0o755)?;
    if !options.plain_names {
        tree.make_symlink(names::DIR_ID_ENTRY, data_encoding::HEXLOWER.encode(&random_id()).as_bytes())?;
    }
    tree.sync()?;
    let kek = |generation, role, reference: &str, volume_key| Kek {
        generation: KekGeneration(generation),
        role,
        reference: reference.to_owned(),
        volume_key,
    };
    let mut keks = vec![kek(0, KekRole::Primary, reference, wrapped)];
    keks.extend(recovery.zip(second).map(|(of, wrapped)| kek(1, KekRole::Recovery, of.reference, wrapped)));
    let record = VolumeRecord {
        id,
        plain_names: options.plain_names,
        chunk_size: options.chunk_size,
        files_per_envelope: options.files_per_envelope,
        kek_floor: KekGeneration(0),
        epoch_floor: Epoch(0),
        epoch: Epoch(0),
        rekey: RekeyState::None,
        generation: 0,
        keks,
    };
    let bytes = record.encode(&VolumeKeys::from(&volume_key).record_mac);
    if VolumeRecord::parse(&bytes).as_ref() != Ok(&record) {
        return Err(KmsError::new(KmsErrorKind::Misconfigured, "the key's name is too long").into());
    }
    replace_file(root, RECORD, &bytes, 0o600)?;
    Ok(record)
}

impl Volume {
    /// Reads the record of the volume in a directory. Needs no key, so nothing is authenticated yet.
    ///
    /// # Errors
    /// [`VolumeError`] if there is no volume that this kmsfs knows how to read.
    pub fn open(path: &Path) -> Result<Self, VolumeError> {
        Self::open_with(path, AccessTimes::Kept)
    }

    /// The same, with or without access times of what is read in it.
    ///
    /// # Errors
    /// As for [`open`](Self::open).
    pub fn open_with(path: &Path, access_times: AccessTimes) -> Result<Self, VolumeError> {
        let root = match DirStore::open_with(path, access_times) {
            Ok(store) => store.root(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(VolumeError::Missing),
            Err(error) if error.kind() == io::ErrorKind::NotADirectory => return Err(VolumeError::NotAVolume),
            Err(error) => return Err(error.into()),
        };
        Self::read(root, path)
    }

    /// Reads the record of the volume in a directory of a store, which lies at `path`.
    pub(super) fn read(root: Arc<dyn StoreDir>, path: &Path) -> Result<Self, VolumeError> {
        let file = match root.open_file(RECORD, false) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(VolumeError::NotAVolume),
            Err(error) => return Err(error.into()),
        };
        let mut bytes = vec![0; MAX_LEN + 1];
        let len = file.read_at(&mut bytes, StoredOffset(0))?;
        bytes.truncate(len);
        let record = VolumeRecord::parse(&bytes).map_err(|malformed| damaged_record(&malformed))?;
        for name in [TREE, JOURNAL] {
            root.open_dir(name).map_err(|_| {
                VolumeError::Damaged(format!("its directory {} is missing", String::from_utf8_lossy(name)))
            })?;
        }
        let record = RwLock::new(Arc::new(record));
        Ok(Self { path: path.to_owned(), root, bytes, record, changing: Mutex::default(), role: KekRole::Primary })
    }

    /// Checks with the volume key that the record was not changed.
    ///
    /// # Errors
    /// [`VolumeError::Damaged`] if it was.
    pub fn authenticate(&self, volume_key: &Secret32) -> Result<(), VolumeError> {
        VolumeRecord::verify(&self.bytes, &VolumeKeys::from(volume_key).record_mac)
            .map_err(|malformed| damaged_record(&malformed))
    }

    /// The directory on the host.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The record.
    pub fn record(&self) -> Arc<VolumeRecord> {
        Arc::clone(&self.record.read())
    }

    /// The encrypted tree.
    ///
    /// # Errors
    /// The store's.
    pub fn tree(&self) -> io::Result<Arc<dyn StoreDir>> {
        self.root.open_dir(TREE)
    }

    /// The volume's directory itself.
    pub fn root(&self) -> &Arc<dyn StoreDir> {
        &self.root
    }

    /// The directory of the journal.
    ///
    /// # Errors
    /// The store's.
    pub fn journal(&self) -> io::Result<Arc<dyn StoreDir>> {
        self.root.open_dir(JOURNAL)
    }

    /// The directory of the targets that are too long for a symbolic link.
    ///
    /// # Errors
    /// The store's.
    pub fn links(&self) -> io::Result<Arc<dyn StoreDir>> {
        self.root.open_dir(LINKS)
    }

    /// What its files share, with its journal.
    pub fn context(&self, journal: Journal) -> Arc<Context> {
        let record = self.record();
        Arc::new(Context {
            volume: record.id,
            geometry: Geometry::new(record.chunk_size),
            kek_floor: record.kek_floor,
            epoch_floor: record.epoch_floor,
            journal: Arc::new(journal),
            ledger: std::sync::OnceLock::new(),
            tags: crate::file::TagCache::default(),
        })
    }

    /// The directory of what crashes left of files that were being written, `None` if it was never needed.
    ///
    /// # Errors
    /// The store's.
    pub fn lost_if_any(&self) -> io::Result<Option<Arc<dyn StoreDir>>> {
        match self.root.open_dir(LOST) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            other => other.map(Some),
        }
    }

    /// The same; made when it is needed for the first time.
    pub(super) fn lost(&self) -> io::Result<Arc<dyn StoreDir>> {
        if let Some(lost) = self.lost_if_any()? {
            return Ok(lost);
        }
        self.root.make_dir(LOST, 0o700)?;
        self.root.sync()?;
        self.root.open_dir(LOST)
    }
}

fn damaged_record(malformed: &Malformed) -> VolumeError {
    VolumeError::Damaged(format!("volume.kmsfs: {malformed}"))
}
