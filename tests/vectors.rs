//! Volumes that earlier versions made: today's code reads them exactly, and refuses each fault in its own way.

#![allow(clippy::unwrap_used, reason = "a test ends at the first thing that goes wrong")]

#[path = "format/harness.rs"]
mod harness;

use harness::*;
use kmsfs::crypto::Secret32;
use kmsfs::crypto::derive::VolumeKeys;
use kmsfs::crypto::names::NameCipher;
use kmsfs::format::volume::VolumeRecord;
use kmsfs::fs::rekey::{Plan, Stopped};
use kmsfs::fs::volume::{InitOptions, VolumeError, init};
use kmsfs::fs::{Error, ROOT};
use kmsfs::kms::KmsErrorKind;
use kmsfs::units::{DirId, Epoch, KekGeneration, PlainOffset};
use serde_json::Value;
use std::fs::File;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Name, chunk size, plain names.
const VECTORS: [(&str, &str, bool); 3] = [("v1", "4K", false), ("v1-plain-names", "8K", true), (BETWEEN, "4K", false)];
/// One with a file between two keys, and one that has had two.
const BETWEEN: &str = "v1-rekey";
const DIRECTORY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/vectors");
const LONG: [u8; 200] = [b'n'; 200];

fn kept(name: &str, extension: &str) -> PathBuf {
    Path::new(DIRECTORY).join(format!("{name}.{extension}"))
}

fn tar(arguments: &[&str], archive: &Path, directory: &Path, what: &[&str]) {
    let status = Command::new("tar")
        .args(["--xattrs", "--xattrs-include=user.*", "--numeric-owner"])
        .args(arguments)
        .arg("-f")
        .arg(archive)
        .arg("-C")
        .arg(directory)
        .args(what)
        .status()
        .expect("tar runs: these tests need GNU tar");
    assert!(status.success());
}

/// A copy of a vector, to be broken.
struct Vector {
    name: &'static str,
    keep: tempfile::TempDir,
}

impl Vector {
    fn copy(name: &'static str) -> Self {
        let keep = tempfile::tempdir().unwrap();
        tar(&["-x", "-z"], &kept(name, "tar.gz"), keep.path(), &[]);
        std::fs::copy(kept(name, "key"), keep.path().join("key")).unwrap();
        Self { name, keep }
    }

    fn volume(&self) -> PathBuf {
        self.keep.path().join("volume")
    }

    fn key(&self) -> PathBuf {
        self.keep.path().join("key")
    }

    fn expected(&self) -> Value {
        serde_json::from_slice(&std::fs::read(kept(self.name, "json")).unwrap()).unwrap()
    }

    fn volume_key(&self) -> Secret32 {
        let record = self.record();
        kms(&self.key()).unwrap(&record.newest().volume_key, record.id).unwrap().secret
    }

    fn record(&self) -> VolumeRecord {
        VolumeRecord::parse(&std::fs::read(self.volume().join("volume.kmsfs")).unwrap()).unwrap()
    }

    /// Writes a record that is authentic, with a change.
    fn change_record(&self, change: impl FnOnce(&mut VolumeRecord)) {
        let mut record = self.record();
        change(&mut record);
        let bytes = record.encode(&VolumeKeys::from(&self.volume_key()).record_mac);
        std::fs::write(self.volume().join("volume.kmsfs"), bytes).unwrap();
    }

    /// Where something lies in the store.
    fn stored(&self, path: &[&[u8]]) -> PathBuf {
        let names = NameCipher::new(&VolumeKeys::from(&self.volume_key()));
        let mut at = self.volume().join("tree");
        for name in path {
            let id: DirId = std::fs::read_link(at.join(".id")).unwrap().to_str().unwrap().parse().unwrap();
            at.push(std::ffi::OsString::from_vec(names.seal(id, name).entry));
        }
        at
    }

    fn flip(&self, path: &Path, at: u64) {
        let file = File::options().read(true).write(true).open(path).unwrap();
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ 1], at).unwrap();
    }

    fn read(&self, path: &Path, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        File::open(path).unwrap().read_exact_at(&mut bytes, at).unwrap();
        bytes
    }

    fn write(&self, path: &Path, at: u64, bytes: &[u8]) {
        File::options().write(true).open(path).unwrap().write_all_at(bytes, at).unwrap();
    }

    fn set_len(&self, path: &Path, change: impl FnOnce(u64) -> u64) {
        let file = File::options().write(true).open(path).unwrap();
        file.set_len(change(file.metadata().unwrap().len())).unwrap();
    }
}

/// What becomes of a volume.
#[derive(Debug, PartialEq)]
enum Outcome {
    /// All of it is read as it was written.
    Whole,
    /// It is not opened, and the message has this in it.
    Volume(String),
    /// The KMS does not give the key.
    Kms(KmsErrorKind),
    /// It is opened, and something in it cannot be read.
    Damaged,
    /// It is opened, and so many entries are not there.
    Missing(usize),
}

fn outcome(vector: &Vector) -> Outcome {
    let fs = match mount(&vector.volume(), &vector.key()) {
        Ok(fs) => fs,
        Err(Refused::Volume(VolumeError::Damaged(text))) => return Outcome::Volume(text),
        Err(Refused::Kms(error)) => return Outcome::Kms(error.kind),
        Err(other) => panic!("{other:?}"),
    };
    match read_tree(&fs) {
        Err(Error::Damaged) => Outcome::Damaged,
        Err(other) => panic!("{other:?}"),
        Ok(tree) => {
            let (expected, tree) = (vector.expected(), tree);
            let (expected, tree) = (expected.as_object().unwrap(), tree.as_object().unwrap());
            // What cannot be named is shown under a name that says so, for whoever has to remove it.
            let named = tree.iter().filter(|(path, _)| !path.contains(".kmsfs-unreadable-"));
            let mut count = 0;
            for (path, node) in named {
                assert_eq!(expected.get(path), Some(node), "{path}: read, and not what was written");
                count += 1;
            }
            match expected.len() - count {
                0 => Outcome::Whole,
                missing => Outcome::Missing(missing),
            }
        }
    }
}

#[test]
fn volumes_of_every_format_are_read_exactly_and_can_be_written_to() {
    for (name, ..) in VECTORS {
        let vector = Vector::copy(name);
        let (volume, key) = (vector.volume(), vector.key());
        assert_eq!(python_tree(&volume, &key), vector.expected(), "{name}");
        assert_eq!(outcome(&vector), Outcome::Whole, "{name}");

        let vector = Vector::copy(name);
        let fs = mount(&vector.volume(), &vector.key()).unwrap();
        // The key file lies elsewhere than when the volume was made; it is the same key all the same.
        assert!(!fs.volume().adopt_newest_kek(&*kms(&vector.key()), &vector.volume_key()).unwrap());
        let ino = fs.lookup(ROOT, b"three chunks").unwrap().stat.ino;
        let handle = with_keys(&fs, || fs.open(ino, false, false)).unwrap();
        fs.write(handle, PlainOffset(5), b"changed", false).unwrap();
        fs.sync(handle, false).unwrap();
        make_file(&fs, ROOT, b"new", &[(0, b"new")], 3);
        fs.shut_down().unwrap();
        let found = python_tree(&vector.volume(), &vector.key());
        assert_eq!(found, read_tree(&fs).unwrap());
        assert_eq!(found["new"]["sha256"], sha256(b"new"));
        assert_ne!(found["three chunks"], vector.expected()["three chunks"]);
    }
}

#[test]
fn a_file_between_two_keys_goes_on_to_the_second_and_depends_on_all_that_its_header_says_of_them() {
    let vector = Vector::copy(BETWEEN);
    let fs = mount(&vector.volume(), &vector.key()).unwrap();
    assert!(rekey(&fs, &Plan::default(), false).unwrap().floor_raised);
    assert_eq!(read_tree(&fs).unwrap(), vector.expected());
    fs.shut_down().unwrap();
    assert_eq!(python_tree(&vector.volume(), &vector.key()), vector.expected());
    let record = vector.record();
    assert_eq!((record.epoch, record.epoch_floor), (Epoch(3), Epoch(3)));
    // Feature bit, watermark, made, previous epoch, end, previous DEK, and a byte behind it.
    for at in [10, 52, 116, 1152, 1160, 1168, 1239, 1240] {
        let vector = Vector::copy(BETWEEN);
        vector.flip(&vector.stored(&[b"two keys"]), at);
        assert!(!python(&vector.volume(), &vector.key()).status.success(), "byte {at}");
        assert_eq!(outcome(&vector), Outcome::Damaged, "byte {at}");
    }
}

type Break = Box<dyn Fn(&Vector)>;

/// One fault each, and what must come of it.
fn faults() -> Vec<(&'static str, Outcome, Break)> {
    fn on(path: &'static [&'static [u8]], act: impl Fn(&Vector, &Path) + 'static) -> Break {
        Box::new(move |vector| act(vector, &vector.stored(path)))
    }
    fn record(act: impl Fn(&Vector, &Path) + 'static) -> Break {
        Box::new(move |vector| act(vector, &vector.volume().join("volume.kmsfs")))
    }
    let volume = |text: &str| Outcome::Volume(text.to_owned());
    let mac = "volume.kmsfs: its MAC does not match: it was changed, or belongs to another key";
    let three: &'static [&'static [u8]] = &[b"three chunks"];
    let block: &'static [&'static [u8]] = &[b"a tag block"];
    vec![
        ("header: length", Outcome::Damaged, on(three, |v, p| v.flip(p, 60))),
        ("header: file id", Outcome::Damaged, on(three, |v, p| v.flip(p, 16))),
        ("header: epoch", Outcome::Damaged, on(three, |v, p| v.flip(p, 32))),
        ("header: wrapped envelope", Outcome::Damaged, on(three, |v, p| v.flip(p, 150))),
        ("header: a KEK that the volume does not have", Outcome::Damaged, on(three, |v, p| v.flip(p, 36))),
        ("header: MAC", Outcome::Damaged, on(three, |v, p| v.flip(p, 1504))),
        ("header: a reserved byte", Outcome::Damaged, on(three, |v, p| v.flip(p, 1300))),
        ("header: version", Outcome::Damaged, on(three, |v, p| v.write(p, 8, &[2]))),
        ("header: zeros", Outcome::Damaged, on(three, |v, p| v.write(p, 0, &[0; 4096]))),
        (
            "header: another file's",
            Outcome::Damaged,
            on(three, |v, p| {
                v.write(p, 0, &v.read(&v.stored(&[b"other three chunks"]), 0, 4096));
            }),
        ),
        ("tag entry: a hole that nobody made", Outcome::Damaged, on(three, |v, p| v.write(p, 1536 + 40, &[0; 40]))),
        ("chunk: a byte", Outcome::Damaged, on(three, |v, p| v.flip(p, 4096 + 5000))),
        ("chunk: zeros", Outcome::Damaged, on(three, |v, p| v.write(p, 8192, &[0; 4096]))),
        (
            "chunk: two exchanged",
            Outcome::Damaged,
            on(three, |v, p| {
                let chunks = v.read(p, 4096, 8192);
                v.write(p, 4096, &[&chunks[4096..], &chunks[..4096]].concat());
            }),
        ),
        (
            "chunk: another file's",
            Outcome::Damaged,
            on(three, |v, p| {
                v.write(p, 4096, &v.read(&v.stored(&[b"other three chunks"]), 4096, 4096));
            }),
        ),
        ("length: one byte less", Outcome::Damaged, on(three, |v, p| v.set_len(p, |len| len - 1))),
        ("length: a chunk less", Outcome::Damaged, on(three, |v, p| v.set_len(p, |len| len - 4096))),
        ("length: one byte more", Outcome::Damaged, on(three, |v, p| v.set_len(p, |len| len + 1))),
        ("length: nothing left", Outcome::Damaged, on(three, |v, p| v.set_len(p, |_| 0))),
        ("tag block: an entry", Outcome::Damaged, on(block, |v, p| v.flip(p, 266_240))),
        ("tag block: a child", Outcome::Damaged, on(block, |v, p| v.flip(p, 266_240 + 10_240))),
        ("tag block: zeros", Outcome::Damaged, on(block, |v, p| v.write(p, 266_240, &[0; 12_288]))),
        (
            "link: target",
            Outcome::Damaged,
            on(&[b"link"], |_, p| {
                let target = std::fs::read_link(p).unwrap();
                let mut target = target.as_os_str().as_bytes().to_vec();
                target[40] = if target[40] == b'A' { b'B' } else { b'A' };
                std::fs::remove_file(p).unwrap();
                std::os::unix::fs::symlink(std::ffi::OsStr::from_bytes(&target), p).unwrap();
            }),
        ),
        (
            "link: long target",
            Outcome::Damaged,
            Box::new(|v| {
                let only = std::fs::read_dir(v.volume().join("links")).unwrap().next().unwrap().unwrap().path();
                v.flip(&only, 100);
            }),
        ),
        (
            "xattr: value",
            Outcome::Damaged,
            on(&[b"attributes"], |_, p| {
                let mut names = vec![0; 1000];
                let len = rustix::fs::listxattr(p, &mut names[..]).unwrap();
                let name = names[..len].split(|byte| *byte == 0).find(|name| name.starts_with(b"user.kmsfs.")).unwrap();
                let mut value = vec![0; 1000];
                let len = rustix::fs::getxattr(p, name, &mut value[..]).unwrap();
                value[30] ^= 1;
                rustix::fs::setxattr(p, name, &value[..len], rustix::fs::XattrFlags::REPLACE).unwrap();
            }),
        ),
        (
            "name: changed",
            Outcome::Missing(1),
            on(three, |_, p| {
                let mut name = p.file_name().unwrap().as_bytes().to_vec();
                name[3] = if name[3] == b'A' { b'B' } else { b'A' };
                std::fs::rename(p, p.with_file_name(std::ffi::OsStr::from_bytes(&name))).unwrap();
            }),
        ),
        (
            "name: moved to another directory",
            Outcome::Missing(1),
            on(three, |v, p| {
                std::fs::rename(p, v.stored(&[b"directory"]).join(p.file_name().unwrap())).unwrap();
            }),
        ),
        (
            "name: a long one without its side entry",
            Outcome::Missing(1),
            on(&[b"directory", &LONG], |_, p| {
                let name = p.file_name().unwrap().to_str().unwrap().replacen(".L", ".N", 1);
                std::fs::remove_file(p.with_file_name(name)).unwrap();
            }),
        ),
        (
            "directory: another id",
            Outcome::Missing(3),
            on(&[b"directory"], |_, p| {
                std::fs::remove_file(p.join(".id")).unwrap();
                std::os::unix::fs::symlink("00112233445566778899aabbccddeeff", p.join(".id")).unwrap();
            }),
        ),
        (
            // Its entries are shown under names that say that they cannot be read, so that it can be removed.
            "directory: an id that is none",
            Outcome::Missing(3),
            on(&[b"directory"], |_, p| {
                std::fs::remove_file(p.join(".id")).unwrap();
                std::os::unix::fs::symlink("00112233445566778899aabbccddeef", p.join(".id")).unwrap();
            }),
        ),
        ("record: KEK floor", volume(mac), record(|v, p| v.flip(p, 36))),
        ("record: volume id", Outcome::Kms(KmsErrorKind::Damaged), record(|v, p| v.flip(p, 16))),
        ("record: wrapped volume key", Outcome::Kms(KmsErrorKind::Damaged), record(|v, p| v.flip_before_end(p, 40))),
        ("record: MAC", volume(mac), record(|v, p| v.flip_before_end(p, 1))),
        (
            "record: a feature of tomorrow",
            volume("volume.kmsfs: it uses features that this kmsfs does not know (bits 0x80)"),
            record(|v, p| v.write(p, 12, &[0x80])),
        ),
        (
            "record: a version of tomorrow",
            volume("volume.kmsfs: it has format version 2, which this kmsfs does not know"),
            record(|v, p| v.write(p, 8, &[2])),
        ),
        ("record: cut", volume("volume.kmsfs: it has the wrong length"), record(|v, p| v.set_len(p, |len| len - 60))),
        ("record: empty", volume("volume.kmsfs: it has the wrong length"), record(|v, p| v.set_len(p, |_| 0))),
        (
            "the KEK floor was raised",
            Outcome::Damaged,
            Box::new(|v| v.change_record(|r| r.kek_floor = KekGeneration(1))),
        ),
        (
            "the epoch floor was raised",
            Outcome::Damaged,
            Box::new(|v| v.change_record(|r| (r.epoch_floor, r.epoch) = (Epoch(1), Epoch(1)))),
        ),
        (
            "another key in the key file",
            Outcome::Kms(KmsErrorKind::Refused),
            Box::new(|v| {
                std::fs::write(v.key(), "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=").unwrap();
            }),
        ),
        ("no key file", Outcome::Kms(KmsErrorKind::Refused), Box::new(|v| std::fs::remove_file(v.key()).unwrap())),
    ]
}

impl Vector {
    /// Flips the byte that lies so far before the end.
    fn flip_before_end(&self, path: &Path, before_end: u64) {
        self.flip(path, std::fs::metadata(path).unwrap().len() - before_end);
    }
}

#[test]
fn every_fault_is_refused_in_its_own_way_here_and_by_the_independent_reader() {
    for (what, expected, act) in faults() {
        let vector = Vector::copy("v1");
        act(&vector);
        let output = python(&vector.volume(), &vector.key());
        assert!(!output.status.success(), "{what}: the independent reader does not notice");
        assert!(output.stderr.starts_with(b"error: "), "{what}: {}", String::from_utf8_lossy(&output.stderr));
        check(what, &vector, &expected);
        assert_eq!(outcome(&vector), expected, "{what}");
        if matches!(expected, Outcome::Damaged | Outcome::Missing(_)) {
            let vector = Vector::copy("v1");
            act(&vector);
            everything_can_be_removed(what, &vector);
        }
    }
}

/// What `fsck --deep` calls each fault, and where it sees it.
fn found(what: &str) -> (&'static str, &'static str) {
    match what {
        "header: length" => ("length", "three chunks"),
        "header: wrapped envelope" => ("envelope", "three chunks"),
        "header: a KEK that the volume does not have" => ("kek", "three chunks"),
        "header: zeros" | "length: nothing left" => ("empty", "three chunks"),
        "header: another file's" => ("file_id_repeated", "three chunks"),
        "link: target" => ("link_target", "link"),
        "link: long target" => ("link_target", "long link"),
        "xattr: value" => ("xattr", "attributes"),
        "name: changed" => ("name", ".kmsfs-unreadable-"),
        "name: moved to another directory" => ("name", "directory/.kmsfs-unreadable-"),
        "name: a long one without its side entry" => ("long_name", "directory/.kmsfs-unreadable-"),
        "directory: another id" => ("name", "directory/.kmsfs-unreadable-"),
        "directory: an id that is none" => ("directory_id", "directory"),
        "the KEK floor was raised" | "the epoch floor was raised" => ("outdated", ""),
        _ if what.starts_with("tag block: ") => ("tag_block", "a tag block"),
        // The header holds the entry.
        _ if what.starts_with("header: ") || what.starts_with("tag entry: ") => ("header", "three chunks"),
        _ if what.starts_with("chunk: ") => ("chunk", "three chunks"),
        _ if what.starts_with("length: ") => ("length", "three chunks"),
        _ => panic!("{what}: what is it called?"),
    }
}

fn check(what: &str, vector: &Vector, expected: &Outcome) {
    let kek = format!("file:{}", vector.key().display());
    let output = Command::new(env!("CARGO_BIN_EXE_kmsfs"))
        .arg("fsck")
        .arg(vector.volume())
        .args(["--deep", "--json", "--kek", &kek])
        .output()
        .unwrap();
    let code = match expected {
        Outcome::Whole => 0,
        Outcome::Volume(_) => 3,
        Outcome::Kms(KmsErrorKind::Damaged) => 11,
        Outcome::Kms(_) if vector.key().exists() => 11,
        Outcome::Kms(_) => 6,
        Outcome::Damaged | Outcome::Missing(_) => 14,
    };
    assert_eq!(output.status.code(), Some(code), "{what}: {output:?}");
    if code != 14 {
        return;
    }
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let (kind, path) = found(what);
    let findings = report["findings"].as_array().unwrap();
    assert!(findings.iter().any(|finding| finding["kind"] == kind), "{what}: {report:#}");
    for finding in findings {
        // Of two files with one id, nobody can tell which is the copy.
        let is_there = finding["path"].as_str().is_some_and(|found| found.starts_with(path));
        assert!(is_there || finding["kind"] == "file_id_repeated", "{what}: {report:#}");
    }
}

/// Whatever is damaged, and all the rest, can be removed through the tree.
fn everything_can_be_removed(what: &str, vector: &Vector) {
    let fs = mount(&vector.volume(), &vector.key()).unwrap();
    remove_all(&fs, ROOT).unwrap_or_else(|error| panic!("{what}: {error:?}"));
    fs.shut_down().unwrap();
    assert_eq!(stored_files(&vector.volume().join("tree")), Vec::<PathBuf>::new(), "{what}");
}

fn remove_all(fs: &kmsfs::fs::Fs, directory: u64) -> Result<(), Error> {
    let handle = fs.open_directory(directory)?;
    let mut entries = Vec::new();
    fs.list(handle, 2, true, |listed| {
        entries.extend(listed.entry.map(|entry| (listed.name.clone(), entry.stat)));
        true
    })?;
    fs.release_directory(handle);
    for (name, stat) in entries {
        if stat.kind == kmsfs::store::Kind::Directory {
            remove_all(fs, stat.ino)?;
            fs.remove_directory(directory, &name)?;
        } else {
            fs.unlink(directory, &name)?;
        }
    }
    Ok(())
}

#[test]
#[ignore = "makes what is kept for ever"]
fn make_the_vectors_that_are_missing() {
    for (name, chunk, plain_names) in VECTORS {
        if kept(name, "tar.gz").exists() {
            continue;
        }
        let keep = tempfile::tempdir().unwrap();
        let (path, key) = (keep.path().join("volume"), kept(name, "key"));
        std::fs::write(&key, data_encoding::BASE64.encode(Secret32::random().expose()) + "\n").unwrap();
        let options = InitOptions { chunk_size: chunk.parse().unwrap(), files_per_envelope: 3, plain_names };
        init(&path, "file:/etc/kmsfs/vector.key", &*kms(&key), options).unwrap();
        // In steps of two chunks.
        let fs = mount_with(&path, &key, 128 << 10).unwrap();
        let c = options.chunk_size.bytes();
        let mut noise = vec![0; 3 * c as usize];
        kmsfs::crypto::random_bytes(&mut noise);
        make_file(&fs, ROOT, b"empty", &[], 0);
        make_file(&fs, ROOT, b"one byte", &[(0, b"1")], 1);
        make_file(&fs, ROOT, b"a chunk and a byte", &[(0, &noise[..c as usize + 1])], c + 1);
        for name in [&b"three chunks"[..], b"other three chunks"] {
            make_file(&fs, ROOT, name, &[(0, &noise[..2 * c as usize + 100])], 2 * c + 100);
        }
        make_file(&fs, ROOT, b"a hole", &[(0, &noise[..10]), (5 * c, &noise[..20])], 9 * c + 1);
        make_file(&fs, ROOT, b"a tag block", &[(0, &noise[..1]), (64 * c, &noise[..100])], 64 * c + 100);
        let attributes = make_file(&fs, ROOT, b"attributes", &[], 0);
        set_xattr(&fs, attributes, b"user.comment", b"\x00\xFF bytes");
        let directory = fs.make_directory(ROOT, b"directory", me(0o755)).unwrap().stat.ino;
        make_file(&fs, directory, &LONG, &[(0, b"long")], 4);
        make_file(&fs, directory, b"not UTF-8: \xFF\xFE", &[(0, b"bytes")], 5);
        let one = fs.lookup(ROOT, b"one byte").unwrap().stat.ino;
        fs.link(one, directory, b"another name").unwrap();
        fs.make_symlink(ROOT, b"link", b"directory/another name", me(0o777)).unwrap();
        fs.make_symlink(ROOT, b"long link", &[b't'; 3500], me(0o777)).unwrap();
        // One that went through the journal.
        fs.commit_all().unwrap();
        let handle = with_keys(&fs, || fs.open(one, false, false)).unwrap();
        fs.write(handle, PlainOffset(0), b"2", false).unwrap();
        fs.release(handle);
        if name == BETWEEN {
            make_file(&fs, ROOT, b"two keys", &[(c, &noise), (63 * c, &noise), (400 * c, &noise[..5])], 400 * c + 5);
            let plan = |name: &[u8]| Plan { path: Some(vec![name.to_vec()]), ..Plan::default() };
            rekey(&fs, &plan(b"a tag block"), false).unwrap();
            assert!(matches!(rekey(&fs, &plan(b"two keys"), true), Err(Stopped::Asked)));
        }
        fs.shut_down().unwrap();
        let tree = read_tree(&fs).unwrap();
        drop(fs);
        std::fs::write(kept(name, "json"), serde_json::to_string_pretty(&tree).unwrap() + "\n").unwrap();
        for log in ["log-a", "log-b"] {
            std::fs::remove_file(path.join("journal").join(log)).unwrap();
        }
        let making = kept(name, "tar.gz.new");
        tar(&["-c", "-z", "--sparse", "--owner=0", "--group=0"], &making, keep.path(), &["volume"]);
        std::fs::rename(making, kept(name, "tar.gz")).unwrap();
    }
}
