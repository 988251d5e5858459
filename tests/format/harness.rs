//! A volume without FUSE: opened as a mount opens it, read into the same JSON that `read_volume.py` prints.

#![allow(dead_code, reason = "two test programs share it, and each uses a part")]

use kmsfs::crypto::Secret32;
use kmsfs::file::Context;
use kmsfs::format::{ChunkSize, Geometry};
use kmsfs::fs::rekey::{Outcome, Plan, Progress, Rekey, Stopped};
use kmsfs::fs::volume::{InitOptions, Volume, VolumeError, init};
use kmsfs::fs::{Creator, Error, Fs, ROOT};
use kmsfs::journal::recovery;
use kmsfs::kms::{ConnectOptions, Kms, KmsError, connect};
use kmsfs::lease::Leases;
use kmsfs::store::dir::DirStore;
use kmsfs::store::{Kind, SetXattr};
use kmsfs::units::PlainOffset;
use serde_json::{Map, Value, json};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Small, so that making the logs takes no time.
pub const LOG_LEN: u64 = 4 << 20;

/// Why a volume could not be opened.
#[derive(Debug)]
pub enum Refused {
    Volume(VolumeError),
    Kms(KmsError),
    Fs(Error),
}

impl From<VolumeError> for Refused {
    fn from(error: VolumeError) -> Self {
        Self::Volume(error)
    }
}

impl From<KmsError> for Refused {
    fn from(error: KmsError) -> Self {
        Self::Kms(error)
    }
}

impl From<Error> for Refused {
    fn from(error: Error) -> Self {
        Self::Fs(error)
    }
}

pub fn kms(key: &Path) -> Arc<dyn Kms> {
    let reference = format!("file:{}", key.display());
    connect(&reference, &ConnectOptions::from_variables(|_| None)).unwrap()
}

/// A new key file and a new volume in `dir`; their paths.
pub fn make_volume(dir: &Path, chunk: &str, plain_names: bool) -> (PathBuf, PathBuf) {
    let (path, key) = (dir.join("volume"), dir.join("key"));
    let secret = Secret32::random();
    std::fs::write(&key, data_encoding::BASE64.encode(secret.expose()) + "\n").unwrap();
    let options = InitOptions { chunk_size: chunk.parse::<ChunkSize>().unwrap(), files_per_envelope: 3, plain_names };
    init(&path, &format!("file:{}", key.display()), &*kms(&key), options).unwrap();
    (path, key)
}

/// Does what a mount does.
pub fn mount(path: &Path, key: &Path) -> Result<Fs, Refused> {
    mount_with(path, key, LOG_LEN)
}

/// The same, with logs of this length if there are none.
pub fn mount_with(path: &Path, key: &Path, log_len: u64) -> Result<Fs, Refused> {
    let volume = Volume::open(path)?;
    let kms = kms(key);
    let record = volume.record();
    let volume_key = kms.unwrap(&record.newest().volume_key, record.id)?.secret;
    volume.authenticate(&volume_key)?;
    let (journal, _) = recovery::open(&*volume.journal().unwrap(), &*volume.tree().unwrap(), log_len).unwrap();
    let context = Context {
        volume: record.id,
        geometry: Geometry::new(record.chunk_size),
        kek_floor: record.kek_floor,
        epoch_floor: record.epoch_floor,
        journal: Arc::new(journal),
        ledger: std::sync::OnceLock::new(),
        tags: kmsfs::file::TagCache::default(),
    };
    let leases = Leases::new(kms, record.id, NonZeroUsize::new(64).unwrap());
    let store = Arc::new(DirStore::open(path).unwrap());
    Ok(Fs::new(volume, store, Arc::new(context), Arc::new(leases), volume_key, false)?)
}

/// Gives files new keys; stops after the first step if told to.
pub fn rekey(fs: &Fs, plan: &Plan, stops: bool) -> Result<Outcome, Stopped> {
    let stop = AtomicBool::new(false);
    let progress = Progress::default();
    Rekey { fs, progress: &progress, stop: &stop, pace: &|_| stop.store(stops, Ordering::Relaxed), wait: &|_| () }
        .run(plan)
}

/// Calls until no key is missing any more, as the layer above does.
pub fn with_keys<T>(fs: &Fs, mut act: impl FnMut() -> Result<T, Error>) -> Result<T, Error> {
    loop {
        match act() {
            Err(Error::NeedKey(need)) => fs.fetch(&need)?,
            other => return other,
        }
    }
}

pub fn me(permissions: u32) -> Creator {
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    Creator { uid, gid, permissions, umask: 0o022 }
}

/// Makes a file of these pieces and this length; its inode number.
pub fn make_file(fs: &Fs, parent: u64, name: &[u8], pieces: &[(u64, &[u8])], len: u64) -> u64 {
    let (entry, handle) = with_keys(fs, || fs.create(parent, name, me(0o644))).unwrap();
    for (offset, bytes) in pieces {
        with_keys(fs, || fs.write(handle, PlainOffset(*offset), bytes, false)).unwrap();
    }
    let change = kmsfs::fs::Changes { len: Some(PlainOffset(len)), ..Default::default() };
    fs.change(entry.stat.ino, &change).unwrap();
    fs.flush(handle).unwrap();
    fs.release(handle);
    entry.stat.ino
}

pub fn set_xattr(fs: &Fs, ino: u64, name: &[u8], value: &[u8]) {
    fs.set_xattr(ino, name, value, SetXattr::Any).unwrap();
}

/// One character for each byte.
pub fn latin1(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| char::from(*byte)).collect()
}

pub fn sha256(bytes: &[u8]) -> String {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes);
    data_encoding::HEXLOWER.encode(digest.as_ref())
}

/// Everything in the volume, read through kmsfs.
pub fn read_tree(fs: &Fs) -> Result<Value, Error> {
    let mut found = Map::new();
    read_directory(fs, ROOT, "", &mut found)?;
    Ok(Value::Object(found))
}

fn read_directory(fs: &Fs, ino: u64, above: &str, found: &mut Map<String, Value>) -> Result<(), Error> {
    let handle = fs.open_directory(ino)?;
    let mut entries = Vec::new();
    let mut from = 0;
    loop {
        let asked = from;
        with_keys(fs, || {
            fs.list(handle, from, true, |listed| {
                from = listed.next;
                if let Some(entry) = listed.entry {
                    entries.push((latin1(&listed.name), listed.kind, entry));
                }
                true
            })
        })?;
        if from == asked {
            break;
        }
    }
    fs.release_directory(handle);
    for (name, kind, entry) in entries {
        let (ino, path) = (entry.stat.ino, format!("{above}{name}"));
        let mut node = match kind {
            Kind::Directory => {
                read_directory(fs, ino, &format!("{path}/"), found)?;
                json!({ "type": "directory" })
            }
            Kind::Symlink => {
                let target = fs.read_symlink(ino)?;
                assert_eq!(entry.len.0, target.len() as u64, "{path}: the length that is shown");
                json!({ "type": "symlink", "size": target.len(), "target": latin1(&target) })
            }
            Kind::File => {
                let handle = with_keys(fs, || fs.open(ino, false, false))?;
                let mut content = Vec::new();
                let read = with_keys(fs, || fs.read(handle, PlainOffset(0), 1 << 30, &mut content));
                fs.release(handle);
                read?;
                assert_eq!(entry.len.0, content.len() as u64, "{path}: the length that is shown");
                json!({ "type": "file", "size": content.len(), "sha256": sha256(&content) })
            }
            _ => json!({ "type": "node" }),
        };
        let mut xattrs = Map::new();
        for name in fs.xattr_names(ino)? {
            let value = fs.xattr(ino, &name)?.unwrap_or_default();
            xattrs.insert(latin1(&name), latin1(&value).into());
        }
        node["xattrs"] = xattrs.into();
        found.insert(path, node);
    }
    Ok(())
}

/// What the independent reader says of a volume.
pub fn python(volume: &Path, key: &Path) -> Output {
    let python = std::env::var_os("KMSFS_TEST_PYTHON").unwrap_or_else(|| {
        panic!("KMSFS_TEST_PYTHON is not set: run scripts/test, or export KMSFS_TEST_PYTHON=\"$(scripts/python-env)\"")
    });
    Command::new(python)
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/format/read_volume.py"))
        .args([volume, key])
        .output()
        .expect("the interpreter runs")
}

/// The same, of a volume that it must accept.
pub fn python_tree(volume: &Path, key: &Path) -> Value {
    let output = python(volume, key);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Every file of a directory of the host, below `tree/` and beside it, but those of the journal.
pub fn stored_files(volume: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut directories = vec![volume.to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(directory).unwrap() {
            let entry = entry.unwrap();
            let kind = entry.file_type().unwrap();
            if kind.is_dir() && entry.file_name() != "journal" {
                directories.push(entry.path());
            } else if kind.is_file() {
                found.push(entry.path());
            }
        }
    }
    found.sort();
    found
}
