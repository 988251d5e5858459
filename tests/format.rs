//! The bytes on disk against the document: what kmsfs writes, a reader opens that was written from
//! `src/manual/format.md` alone.

#![allow(clippy::unwrap_used, reason = "a test ends at the first thing that goes wrong")]

#[path = "format/harness.rs"]
mod harness;

use harness::*;
use kmsfs::crypto::Secret32;
use kmsfs::crypto::derive::VolumeKeys;
use kmsfs::crypto::names::NameCipher;
use kmsfs::format::ChunkSize;
use kmsfs::fs::data::Allocate;
use kmsfs::fs::rewrap::{Plan, Progress, Rewrap};
use kmsfs::fs::volume::{InitOptions, Volume, VolumeError, init};
use kmsfs::fs::{Changes, Fs, ROOT};
use kmsfs::kms::{
    CallIds, ConnectOptions, Facts, KekId, Kms, KmsError, KmsErrorKind, Unwrapped, WrapAlgorithm, Wrapped,
};
use kmsfs::store::{Kind, RenameMode};
use kmsfs::units::{DirId, PlainOffset, VolumeId};
use serde_json::{Map, Value, json};
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

/// What is expected to be found, noted while it is made.
struct Expected(Map<String, Value>);

impl Expected {
    fn node(&mut self, path: &str, node: Value) -> &mut Value {
        let node = self.0.entry(path).or_insert(node);
        node["xattrs"] = json!({});
        node
    }

    fn file(&mut self, path: &str, content: &[u8]) {
        self.node(path, json!({ "type": "file", "size": content.len(), "sha256": sha256(content) }));
    }
}

fn noise(len: usize, seed: u8) -> Vec<u8> {
    let mut bytes = vec![0; len];
    let mut hasher = blake3::Hasher::new();
    hasher.update(&[seed]).finalize_xof().fill(&mut bytes);
    bytes
}

fn overlay(len: usize, pieces: &[(u64, &[u8])]) -> Vec<u8> {
    let mut content = vec![0; len];
    for (offset, bytes) in pieces {
        content[*offset as usize..][..bytes.len()].copy_from_slice(bytes);
    }
    content
}

fn make_directory(fs: &Fs, parent: u64, name: &[u8]) -> u64 {
    fs.make_directory(parent, name, me(0o755)).unwrap().stat.ino
}

/// One of everything, with the chunk size C.
fn fill(fs: &Fs, c: u64) -> Expected {
    let mut expected = Expected(Map::new());
    for (number, len) in [0, 1, c, c + 1, 64 * c, 64 * c + 1, 320 * c, 320 * c + 7].into_iter().enumerate() {
        let (name, content) = (format!("size-{len}"), noise(len as usize, number as u8));
        make_file(fs, ROOT, name.as_bytes(), &[(0, &content)], len);
        expected.file(&name, &content);
    }
    let piece = noise(10_000, 77);
    for (name, len, pieces) in [
        ("holes", 3 << 20, vec![(5, &piece[..]), (1 << 20, &piece), ((2 << 20) + 100, &piece[..1])]),
        ("only a hole", 100 * c + 3, vec![]),
        // Tag blocks in three levels; most of them do not exist.
        (
            "deep",
            (64 + 256 * 71) * c,
            vec![(0, &piece[..1]), ((64 + 256 * 70) * c, &piece), ((64 + 256 * 3) * c, &piece)],
        ),
    ] {
        make_file(fs, ROOT, name.as_bytes(), &pieces, len);
        expected.file(name, &overlay(len as usize, &pieces));
    }

    let directory = make_directory(fs, ROOT, b"directory");
    expected.node("directory", json!({ "type": "directory" }));
    let below = make_directory(fs, directory, &[0xFF, 0xFE, b' ', 0x80]);
    expected.node(&latin1(b"directory/\xFF\xFE \x80"), json!({ "type": "directory" }));
    for (number, len) in [1, 2, 174, 175, 176, 177, 200, 254, 255].into_iter().enumerate() {
        let mut name = noise(len, number as u8);
        name.iter_mut().filter(|byte| matches!(**byte, 0 | b'/' | b'.')).for_each(|byte| *byte = b'_');
        make_file(fs, below, &name, &[(0, b"x")], 1);
        expected.file(&latin1(&[b"directory/\xFF\xFE \x80/", &name[..]].concat()), b"x");
    }
    let long = [b'd'; 255];
    let in_long = make_directory(fs, ROOT, &long);
    expected.node(&latin1(&long), json!({ "type": "directory" }));
    make_file(fs, in_long, b".hidden", &[(0, b"h")], 1);
    expected.file(&latin1(&[&long[..], b"/.hidden"].concat()), b"h");
    fs.make_node(ROOT, b"fifo", Kind::Fifo, 0, me(0o600)).unwrap();
    expected.node("fifo", json!({ "type": "node" }));

    for len in [1, 100, 3031, 3032, 4000, 4095] {
        let (name, target) = (format!("link-{len}"), noise(len, 5).into_iter().map(|b| b | 1).collect::<Vec<_>>());
        fs.make_symlink(directory, name.as_bytes(), &target, me(0o777)).unwrap();
        let node = json!({ "type": "symlink", "size": len, "target": latin1(&target) });
        expected.node(&format!("directory/{name}"), node);
    }

    let with = make_file(fs, directory, b"attributes", &[(0, b"a")], 1);
    expected.file("directory/attributes", b"a");
    let binary: Vec<u8> = (0..=255).collect();
    let long_name = [&b"user."[..], &[b'n'; 162]].concat();
    for (ino, path, name, value) in [
        (with, "directory/attributes", &b"user.comment"[..], &b"text"[..]),
        (with, "directory/attributes", b"user.binary", &binary),
        (with, "directory/attributes", b"user.empty", b""),
        (with, "directory/attributes", b"security.other", b"s"),
        (with, "directory/attributes", &long_name, b"l"),
        (directory, "directory", b"user.of a directory", b"d"),
    ] {
        set_xattr(fs, ino, name, value);
        expected.0[path]["xattrs"][latin1(name)] = latin1(value).into();
    }
    expected
}

/// Changes of files that are committed by then: through the journal.
fn change(fs: &Fs, c: u64, expected: &mut Expected) {
    let find = |name: &[u8]| fs.lookup(ROOT, name).unwrap().stat.ino;
    let content = |name: &str, len: u64, seed: u8| (name.to_owned(), noise(len as usize, seed));
    let open = |ino| with_keys(fs, || fs.open(ino, false, false)).unwrap();

    // Overwrite in the middle, and append over the border of a tag block.
    let (name, mut bytes) = content(&format!("size-{}", 64 * c + 1), 64 * c + 1, 5);
    let handle = open(find(name.as_bytes()));
    let patch = noise(2 * c as usize, 50);
    for at in [c / 2, 63 * c + 9] {
        fs.write(handle, PlainOffset(at), &patch, false).unwrap();
        let end = at as usize + patch.len();
        bytes.resize(bytes.len().max(end), 0);
        bytes[at as usize..end].copy_from_slice(&patch);
    }
    fs.sync(handle, true).unwrap();
    fs.release(handle);
    expected.file(&name, &bytes);
    expected.0[&name] = json!({ "type": "file", "size": bytes.len(), "sha256": sha256(&bytes), "xattrs": {} });

    // Cut within a chunk, extend with a hole, punch.
    let (name, mut bytes) = content(&format!("size-{}", 320 * c + 7), 320 * c + 7, 7);
    let ino = find(name.as_bytes());
    let handle = open(ino);
    for len in [310 * c + 3, 330 * c] {
        fs.change(ino, &Changes { len: Some(PlainOffset(len)), ..Changes::default() }).unwrap();
        bytes.resize(len as usize, 0);
    }
    fs.allocate(handle, PlainOffset(10 * c + 1), 60 * c, Allocate::Punch).unwrap();
    bytes[10 * c as usize + 1..][..60 * c as usize].fill(0);
    fs.sync(handle, false).unwrap();
    fs.release(handle);
    expected.0[&name] = json!({ "type": "file", "size": bytes.len(), "sha256": sha256(&bytes), "xattrs": {} });

    // All but the header goes.
    let name = format!("size-{}", 320 * c);
    fs.change(find(name.as_bytes()), &Changes { len: Some(PlainOffset(1)), ..Changes::default() }).unwrap();
    expected.0[&name] = json!({ "type": "file", "size": 1, "sha256": sha256(&noise(1, 6)), "xattrs": {} });

    // Long names that move, and one inode with two names.
    let long = [b'd'; 255];
    let to = [b'e'; 200];
    fs.rename(ROOT, &long, find(b"directory"), &to, RenameMode::NoReplace).unwrap();
    let moved: Vec<String> = expected.0.keys().filter(|path| path.starts_with("ddd")).cloned().collect();
    for path in moved {
        let node = expected.0.remove(&path).unwrap();
        expected.0.insert(format!("directory/{}{}", latin1(&to), &path[255..]), node);
    }
    fs.link(find(b"size-1"), find(b"directory"), &[b'l'; 180]).unwrap();
    let node = expected.0["size-1"].clone();
    expected.0.insert(format!("directory/{}", latin1(&[b'l'; 180])), node);
}

fn both_read_what_was_written(chunk: &str, c: u64, plain_names: bool) {
    let dir = tempfile::tempdir().unwrap();
    let (volume, key) = make_volume(dir.path(), chunk, plain_names);
    let fs = mount(&volume, &key).unwrap();
    let mut expected = fill(&fs, c);
    fs.shut_down().unwrap();
    drop(fs);
    compare(&python_tree(&volume, &key), &expected);

    let fs = mount(&volume, &key).unwrap();
    change(&fs, c, &mut expected);
    fs.shut_down().unwrap();
    drop(fs);
    compare(&python_tree(&volume, &key), &expected);
    let fs = mount(&volume, &key).unwrap();
    compare(&read_tree(&fs).unwrap(), &expected);
}

fn compare(found: &Value, expected: &Expected) {
    let found = found.as_object().unwrap();
    for path in found.keys() {
        assert!(expected.0.contains_key(path), "{path:?} should not be there");
    }
    for (path, node) in &expected.0 {
        assert_eq!(found.get(path), Some(node), "{path:?}");
    }
}

#[test]
fn a_reader_made_from_the_document_reads_everything_that_was_written() {
    both_read_what_was_written("4K", 4096, false);
}

#[test]
fn it_does_so_with_larger_chunks_and_plain_names() {
    both_read_what_was_written("16K", 16_384, true);
}

#[test]
fn a_volume_that_was_rewrapped_is_the_same_under_its_new_key_and_needs_its_old_one_no_more() {
    let dir = tempfile::tempdir().unwrap();
    let (volume, key) = make_volume(dir.path(), "4K", false);
    let fs = mount(&volume, &key).unwrap();
    for (number, len) in [0, 1, 4096, 70 * 4096, 400 * 4096].into_iter().enumerate() {
        let content = noise(len, number as u8);
        make_file(&fs, ROOT, format!("{number}").as_bytes(), &[(0, &content)], len as u64);
    }
    fs.shut_down().unwrap();
    drop(fs);
    let before = python_tree(&volume, &key);
    let new = dir.path().join("new");
    std::fs::write(&new, data_encoding::BASE64.encode(Secret32::random().expose())).unwrap();
    let fs = mount(&volume, &key).unwrap();
    let ring = fs.volume().ring(ConnectOptions::from_variables(|_| None), None);
    let fs = fs.with_ring(ring);
    let (progress, stop) = (Progress::default(), AtomicBool::new(false));
    let plan = Plan { kek: Some(format!("file:{}", new.display())), recovery_kek: None };
    let outcome =
        Rewrap { fs: &fs, progress: &progress, stop: &stop, pace: &|_| (), wait: &|_| () }.run(&plan).unwrap();
    assert_eq!((outcome.left_count, outcome.retired.len()), (0, 1));
    assert_eq!(progress.rewrapped.into_inner(), 5);
    fs.shut_down().unwrap();
    drop(fs);
    std::fs::remove_file(&key).unwrap();
    assert_eq!(python_tree(&volume, &new), before);
    let fs = mount(&volume, &new).unwrap();
    assert_eq!(fs.volume().record().keks.len(), 1);
}

#[test]
fn it_refuses_a_volume_in_which_any_used_byte_was_flipped() {
    let dir = tempfile::tempdir().unwrap();
    let (volume, key) = make_volume(dir.path(), "4K", false);
    let fs = mount(&volume, &key).unwrap();
    make_file(&fs, ROOT, &[b'n'; 200], &[(0, &noise(65 * 4096 + 9, 1))], 65 * 4096 + 9);
    fs.make_symlink(ROOT, b"link", &noise(3500, 2).into_iter().map(|b| b | 1).collect::<Vec<_>>(), me(0o777)).unwrap();
    fs.shut_down().unwrap();
    drop(fs);
    python_tree(&volume, &key);
    for path in stored_files(&volume) {
        let file = std::fs::File::options().read(true).write(true).open(&path).unwrap();
        let len = file.metadata().unwrap().len();
        let within = [0, 9, 20, 40, 70, 90, 500, 1510, 1600, 4000, 5000, 266_240, 266_240 + 11_000, 266_240 + 12_300];
        for at in within.into_iter().filter(|at| *at < len).chain([len - 1]) {
            let mut byte = [0];
            file.read_exact_at(&mut byte, at).unwrap();
            file.write_all_at(&[byte[0] ^ 0x20], at).unwrap();
            let output = python(&volume, &key);
            file.write_all_at(&byte, at).unwrap();
            assert!(
                !output.status.success(),
                "{} at {at}: {}",
                path.display(),
                String::from_utf8_lossy(&output.stdout)
            );
            assert!(output.stderr.starts_with(b"error: "), "{}", String::from_utf8_lossy(&output.stderr));
        }
    }
    python_tree(&volume, &key);
}

#[test]
fn a_volume_whose_program_was_killed_is_whole_again_after_the_sweep() {
    let c = 4096;
    let dir = tempfile::tempdir().unwrap();
    let (volume, key) = make_volume(dir.path(), "4K", false);
    let fs = mount(&volume, &key).unwrap();
    let mut expected = fill(&fs, c);
    fs.commit_all().unwrap();
    change(&fs, c, &mut expected);
    fs.commit_all().unwrap();
    // New, closed, and never committed: the program alone is gone, so all of it is there.
    let content = noise(200 * 4096 + 5, 9);
    make_file(&fs, ROOT, b"new", &[(0, &content)], content.len() as u64);
    expected.file("new", &content);
    make_file(&fs, ROOT, b"torn", &[(0, &content)], content.len() as u64);
    // Appended to a committed file, and not committed: the old length counts.
    let handle = with_keys(&fs, || fs.open(fs.lookup(ROOT, b"holes")?.stat.ino, false, false)).unwrap();
    fs.write(handle, PlainOffset(3 << 20), &content, false).unwrap();
    drop(fs);
    // As a machine leaves it that went down a moment later: an entry without content, and a file without one of its
    // chunks. Both count as just made.
    std::fs::write(stored_in_root(&volume, &key, b"made"), b"").unwrap();
    expected.file("made", b"");
    let torn = std::fs::File::options().write(true).open(stored_in_root(&volume, &key, b"torn")).unwrap();
    torn.write_all_at(&[0; 4096], 8192).unwrap();
    expected.file("torn", b"");
    assert!(!python(&volume, &key).status.success(), "it does not replay the journal, and has to say so");

    for sweep in [false, true] {
        let fs = mount(&volume, &key).unwrap();
        assert!(fs.wants_sweep());
        if sweep {
            fs.sweep(&false.into()).unwrap();
            assert!(!fs.wants_sweep());
        }
        // Until it is opened for the first time, its length is what the header says.
        let handle = with_keys(&fs, || fs.open(fs.lookup(ROOT, b"torn")?.stat.ino, false, false)).unwrap();
        fs.release(handle);
        compare(&read_tree(&fs).unwrap(), &expected);
        if sweep {
            fs.shut_down().unwrap();
        }
    }
    compare(&python_tree(&volume, &key), &expected);
    let fs = mount(&volume, &key).unwrap();
    assert!(!fs.wants_sweep());
    compare(&read_tree(&fs).unwrap(), &expected);
}

fn stored_in_root(volume: &Path, key: &Path, name: &[u8]) -> PathBuf {
    let record = Volume::open(volume).unwrap().record();
    let volume_key = kms(key).unwrap(&record.newest().volume_key, record.id).unwrap().secret;
    let tree = volume.join("tree");
    let id: DirId = std::fs::read_link(tree.join(".id")).unwrap().to_str().unwrap().parse().unwrap();
    tree.join(OsString::from_vec(NameCipher::new(&VolumeKeys::from(&volume_key)).seal(id, name).entry))
}

/// A KMS whose key is rotated before each wrap.
struct Rotating(std::sync::atomic::AtomicU32);

impl Kms for Rotating {
    fn wrap(&self, secret: &Secret32, _: VolumeId) -> Result<Wrapped, KmsError> {
        let version = self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let kek = KekId(format!("file:/k#{version:016x}"));
        Ok(Wrapped { kek, algorithm: WrapAlgorithm::LocalAes256Gcm, blob: secret.expose().to_vec() })
    }

    fn unwrap(&self, wrapped: &Wrapped, _: VolumeId) -> Result<Unwrapped, KmsError> {
        Ok(Unwrapped { secret: Secret32::from_slice(&wrapped.blob).unwrap(), ids: CallIds::default() })
    }

    fn current(&self) -> Result<KekId, KmsError> {
        Err(KmsError::new(KmsErrorKind::Unreachable, "nobody asks"))
    }

    fn facts(&self) -> Result<Facts, KmsError> {
        Err(KmsError::new(KmsErrorKind::Unreachable, "nobody asks"))
    }

    fn deadline(&self) -> std::time::Duration {
        std::time::Duration::from_secs(1)
    }
}

#[test]
fn a_key_that_is_rotated_more_often_than_a_record_can_say_leaves_the_volume_readable() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("volume");
    let kms = Rotating(0.into());
    let options = InitOptions { chunk_size: ChunkSize::DEFAULT, files_per_envelope: 1, plain_names: false };
    init(&path, "file:/k", &kms, options).unwrap();
    for _ in 1..64 {
        let volume = Volume::open(&path).unwrap();
        let key = kms.unwrap(&volume.record().newest().volume_key, volume.record().id).unwrap().secret;
        assert!(volume.adopt_newest_kek(&kms, &key).unwrap());
    }
    let volume = Volume::open(&path).unwrap();
    let key = kms.unwrap(&volume.record().newest().volume_key, volume.record().id).unwrap().secret;
    assert!(matches!(volume.adopt_newest_kek(&kms, &key), Err(VolumeError::Kms(_))));
    assert_eq!(Volume::open(&path).unwrap().record().keks.len(), 64);
}
