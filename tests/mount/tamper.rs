//! What was changed in the backing directory, as programs meet it: an error, one event for each, and everything else as it
//! was. All places and all kinds of changes are in `src/file/tests/tamper.rs`; these are some of each.

use crate::harness::{Mount, Outcome, Volume, bytes, number, run};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

const C: u64 = 4096;
const LEN: u64 = 330 * C + 9;
/// Where things lie, from format.md.
const BLOCK: u64 = C + 64 * C;
const CHUNK_100: u64 = BLOCK + 12_288 + (100 - 64) * C;
const STORED: u64 = BLOCK + 2 * 12_288 + (330 - 64) * C + 9;

/// A kind of change: what it is called, where a program meets it, and how it is done to a stored file, with another one
/// and an older version at hand.
type Change = (&'static str, u64, fn(&File, &File, &[u8]));

const CHANGES: &[Change] = &[
    ("a byte of the header", 0, |file, _, _| flip(file, 62)),
    ("a byte of an entry in the header", 0, |file, _, _| flip(file, 1536 + 5 * 40)),
    ("a byte of a chunk", 5 * C, |file, _, _| flip(file, C + 5 * C + 77)),
    ("a byte of the last chunk", 330 * C, |file, _, _| flip(file, STORED - 1)),
    ("a byte of a tag block", 100 * C, |file, _, _| flip(file, BLOCK + 200 * 40)),
    ("zeros for a chunk", 100 * C, |file, _, _| write(file, CHUNK_100, &[0; C as usize])),
    ("zeros for an entry", 100 * C, |file, _, _| write(file, BLOCK + (100 - 64) * 40, &[0; 40])),
    ("zeros for a tag block", 64 * C, |file, _, _| write(file, BLOCK, &[0; 12_288])),
    ("zeros for the header", 0, |file, _, _| write(file, 0, &[0; C as usize])),
    ("a hole for a chunk", 100 * C, |file, _, _| {
        let flags = rustix::fs::FallocateFlags::PUNCH_HOLE | rustix::fs::FallocateFlags::KEEP_SIZE;
        rustix::fs::fallocate(file, flags, CHUNK_100, C).expect("punched");
    }),
    ("two chunks swapped", 6 * C, |file, _, _| {
        let (five, six) = (read(file, C + 5 * C, C), read(file, C + 6 * C, C));
        write(file, C + 5 * C, &six);
        write(file, C + 6 * C, &five);
    }),
    ("another file's chunk", 100 * C, |file, other, _| write(file, CHUNK_100, &read(other, CHUNK_100, C))),
    ("another file's tag block", 64 * C, |file, other, _| write(file, BLOCK, &read(other, BLOCK, 12_288))),
    ("an old chunk", 100 * C, |file, _, old| write(file, CHUNK_100, &old[CHUNK_100 as usize..][..C as usize])),
    ("an old tag block", 64 * C, |file, _, old| write(file, BLOCK, &old[BLOCK as usize..][..12_288])),
    ("an old tag block with its chunks", 64 * C, |file, _, old| write(file, BLOCK, &old[BLOCK as usize..])),
    ("an old header", 100 * C, |file, _, old| write(file, 0, &old[..C as usize])),
    ("a byte less", 0, |file, _, _| file.set_len(STORED - 1).expect("cut")),
    ("a chunk less", 0, |file, _, _| file.set_len(STORED - 9).expect("cut")),
    ("nothing but the header", 0, |file, _, _| file.set_len(C).expect("cut")),
    ("half of the header", 0, |file, _, _| file.set_len(C / 2).expect("cut")),
    ("nothing", 0, |file, _, _| file.set_len(0).expect("cut")),
    ("a byte more", 0, |file, _, _| file.set_len(STORED + 1).expect("longer")),
    ("a chunk more", 0, |file, _, _| file.set_len(STORED + C).expect("longer")),
];

fn flip(file: &File, at: u64) {
    let byte = read(file, at, 1)[0];
    write(file, at, &[byte ^ 0x10]);
}

fn read(file: &File, at: u64, len: u64) -> Vec<u8> {
    let mut bytes = vec![0; len as usize];
    file.read_exact_at(&mut bytes, at).expect("stored bytes");
    bytes
}

fn write(file: &File, at: u64, bytes: &[u8]) {
    file.write_all_at(bytes, at).expect("changed");
}

fn open(path: &Path) -> File {
    OpenOptions::new().read(true).write(true).open(path).expect("a stored file")
}

/// The stored files, by inode number.
fn stored(volume: &Volume) -> BTreeMap<u64, PathBuf> {
    let found = run("find", &[&volume.path().join("tree"), &"-type", &"f", &"-printf", &"%i %p\n"]);
    let line = |line: &str| line.split_once(' ').map(|(ino, path)| (ino.parse().expect("a number"), path.into()));
    found.lines().filter_map(line).collect()
}

/// How often damage was noted in the audit log.
fn noted(volume: &Volume) -> usize {
    let out = volume.ok(&["audit", "show", "--json", volume.path().to_str().expect("UTF-8")]);
    let event = |line: &str| serde_json::from_str::<Value>(line).expect("a line is JSON")["event"].clone();
    out.lines().map(event).filter(|event| *event == "failed-decryption" || *event == "damage").count()
}

fn content(number: usize) -> Vec<u8> {
    bytes(number as u64, LEN as usize)
}

#[test]
fn whatever_was_changed_is_one_error_and_one_event_and_everything_else_is_as_it_was() -> Outcome {
    let mount = Mount::new();
    let name = |number: usize| format!("{number} {}", CHANGES.get(number).map_or("other", |change| change.0));
    for number in 0..=CHANGES.len() {
        fs::write(mount.at(name(number)), bytes(1000 + number as u64, LEN as usize))?;
    }
    let inode = |mount: &Mount, number: usize| fs::metadata(mount.at(name(number))).expect("attributes").ino();
    let inodes: Vec<u64> = (0..=CHANGES.len()).map(|number| inode(&mount, number)).collect();
    let volume = mount.unmount();
    let paths = stored(&volume);
    let old: Vec<Vec<u8>> = inodes.iter().map(|ino| fs::read(&paths[ino])).collect::<Result<_, _>>()?;
    let mount = volume.mount(&[]);
    for number in 0..=CHANGES.len() {
        open(&mount.at(name(number))).write_all_at(&content(number), 0)?;
    }
    let volume = mount.unmount();
    let other = open(&paths[&inodes[CHANGES.len()]]);
    for (number, (_, _, change)) in CHANGES.iter().enumerate() {
        let file = open(&paths[&inodes[number]]);
        assert_eq!(file.metadata()?.len(), STORED);
        change(&file, &other, &old[number]);
    }
    // Each read of a program is one request then.
    let mount = volume.mount(&["-o", "direct_io"]);
    for (number, (what, at, _)) in CHANGES.iter().enumerate() {
        let path = mount.at(name(number));
        let len = fs::metadata(&path)?.len();
        assert!(len == LEN || STORED != fs::metadata(&paths[&inodes[number]])?.len(), "{what}: length {len}");
        let before = mount.status()["damaged"].as_u64();
        let result = File::open(&path).and_then(|file| file.read_at(&mut [0; 100], *at));
        assert_eq!(crate::harness::number(result), libc::EIO, "{what}");
        assert_eq!(mount.status()["damaged"].as_u64(), before.map(|before| before + 1), "{what}");
        // Chunk by chunk it is an error or what it was, and never anything else.
        let expected = content(number);
        let Ok(file) = File::open(&path) else { continue };
        for (chunk, expected) in expected.chunks(C as usize).enumerate() {
            let mut buffer = [0; C as usize];
            match file.read_at(&mut buffer[..expected.len()], chunk as u64 * C) {
                Ok(len) => assert!(buffer[..len] == *expected && len == expected.len(), "{what}: chunk {chunk}"),
                Err(error) => assert_eq!(error.raw_os_error(), Some(libc::EIO), "{what}: chunk {chunk}"),
            }
        }
    }
    assert!(fs::read(mount.at(name(CHANGES.len())))? == content(CHANGES.len()));
    for number in 0..CHANGES.len() {
        fs::remove_file(mount.at(name(number)))?;
    }
    assert_eq!(fs::read_dir(mount.at(""))?.count(), 1);
    let volume = mount.unmount();
    assert!(volume.run(&["audit", "verify", volume.path().to_str().expect("UTF-8")]).code == 0);
    assert_eq!(stored(&volume).len(), 1);
    volume.ok(&["fsck", "--deep", volume.path().to_str().expect("UTF-8")]);
    Ok(())
}

#[test]
fn what_is_changed_while_it_is_mounted_is_met_when_the_kernel_has_dropped_its_pages() -> Outcome {
    let mount = Mount::new();
    let expected = content(1);
    fs::write(mount.at("file"), &expected)?;
    let file = File::open(mount.at("file"))?;
    rustix::fs::syncfs(&file)?;
    let stored = open(&stored(mount.volume())[&file.metadata()?.ino()]);
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::Random)?;
    let read = || {
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)?;
        let mut buffer = vec![0; C as usize];
        file.read_exact_at(&mut buffer, 100 * C).map(|()| buffer)
    };
    let right = &expected[100 * C as usize..101 * C as usize];
    assert!(read()? == right);
    let noted_before = noted(mount.volume());
    flip(&stored, CHUNK_100 + 5);
    assert_eq!(number(read()), libc::EIO);
    let damaged = mount.status()["damaged"].as_u64().expect("a number");
    assert!(damaged >= 1);
    // What is right again can be read again.
    flip(&stored, CHUNK_100 + 5);
    assert!(read()? == right);
    assert_eq!(mount.status()["damaged"].as_u64(), Some(damaged));
    drop(file);
    let volume = mount.unmount();
    assert_eq!(noted(&volume) - noted_before, damaged as usize);
    Ok(())
}
