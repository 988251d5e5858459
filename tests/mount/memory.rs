//! What is left in the memory of a mount's process when it is locked: all of it is read.

use crate::harness::{Mount, Outcome, create, until};
use kmsfs::crypto::Secret32;
use kmsfs::crypto::derive::{Dek, FileKeys, VolumeKeys};
use kmsfs::format::PAGE;
use kmsfs::format::header::Header;
use kmsfs::format::volume::VolumeRecord;
use kmsfs::kms::{ConnectOptions, Wrapped};
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

/// In everything that is written.
const MARKER: &[u8] = b"plaintext that nobody must find";
/// At least as much as anything that is looked for, in bytes.
const OVERLAP: usize = 64;

/// Bytes that hold the marker in every 64.
fn marked(len: usize) -> Vec<u8> {
    let mut line = MARKER.to_vec();
    line.resize(64, b'.');
    line.repeat(len / 64)
}

/// Which of these are in the memory of a process, and where.
fn found<'a>(pid: u64, needles: &[(&'a str, &[u8])]) -> Vec<(&'a str, String)> {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).expect("the process is there");
    let memory = File::open(format!("/proc/{pid}/mem")).expect("root may read it");
    let mut places = Vec::new();
    for line in maps.lines() {
        let range = line.split(' ').next().expect("a range");
        let (start, end) = range.split_once('-').expect("two ends");
        let [start, end] = [start, end].map(|end| u64::from_str_radix(end, 16).expect("an address"));
        let mut bytes = vec![0; 1 << 20];
        let mut at = start;
        while at < end {
            let want = bytes.len().min((end - at) as usize);
            // What cannot be read ([vvar]) holds nothing of ours.
            let Ok(len @ 1..) = memory.read_at(&mut bytes[..want], at) else { break };
            for (what, needle) in needles {
                if memchr::memmem::find(&bytes[..len], needle).is_some() {
                    places.push((*what, line.to_owned()));
                }
            }
            // A needle may lie across.
            let overlap = if len == want && at + (len as u64) < end { OVERLAP } else { 0 };
            at += (len - overlap) as u64;
        }
    }
    places
}

fn first_file(directory: &Path) -> Option<std::path::PathBuf> {
    let entries = fs::read_dir(directory).expect("the store");
    let mut paths: Vec<_> = entries.map(|entry| entry.expect("an entry").path()).collect();
    paths.sort();
    paths.iter().find(|path| path.symlink_metadata().is_ok_and(|metadata| metadata.is_file())).cloned()
}

/// Every secret of the volume and of its first file.
fn secrets(mount: &Mount) -> Outcome<Vec<(&'static str, Secret32)>> {
    let record =
        VolumeRecord::parse(&fs::read(mount.volume().path().join("volume.kmsfs"))?).map_err(|e| e.to_string())?;
    let kms = kmsfs::kms::connect(&mount.volume().kek("kek"), &ConnectOptions::from_variables(|_| None))?;
    let volume_key = kms.unwrap(&record.newest().volume_key, record.id)?.secret;
    let stored = fs::read(first_file(&mount.volume().path().join("tree")).ok_or("a stored file")?)?;
    let header = Header::parse(stored[..PAGE].try_into()?).map_err(|error| error.to_string())?;
    let (algorithm, blob) = (header.envelope.algorithm, header.envelope.blob.clone());
    let wrapped = Wrapped { kek: record.newest().volume_key.kek.clone(), algorithm, blob };
    let envelope = kms.unwrap(&wrapped, record.id)?.secret;
    let dek = Dek::derive(&envelope, &volume_key, record.id, header.file, header.epoch);
    let FileKeys { chunks, header_mac, tags_mac, .. } = FileKeys::from(&dek);
    let dek = Secret32::from_slice(dek.expose()).ok_or("32 bytes")?;
    let VolumeKeys { record_mac, names: [names, names_2], symlinks, xattr_values, .. } = VolumeKeys::from(&volume_key);
    Ok(vec![
        ("the volume key", volume_key),
        ("the envelope's secret", envelope),
        ("the DEK", dek),
        ("the key of the chunks", chunks),
        ("the key of the header", header_mac),
        ("the key of the tags", tags_mac),
        ("the key of the volume record", record_mac),
        ("the key of names", names),
        ("the other key of names", names_2),
        ("the key of symbolic links", symlinks),
        ("the key of attributes", xattr_values),
    ])
}

/// Lets plaintext pass on every way that there is.
fn use_every_path(mount: &Mount) -> Outcome<File> {
    let held = create(mount.at("held"));
    held.write_all_at(&marked(3 << 20), 0)?;
    held.sync_all()?;
    let mut appended = OpenOptions::new().append(true).create(true).open(mount.at("appended"))?;
    for _ in 0..10 {
        appended.write_all(&marked(640))?;
        appended.sync_data()?;
    }
    // Partly overwritten, beside and across chunks.
    held.write_all_at(&marked(6400), 12_345)?;
    held.sync_data()?;
    let direct = OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(mount.at("held"))?;
    let mut aligned = vec![0; (1 << 20) + PAGE];
    let begin = aligned.as_ptr().align_offset(PAGE);
    assert_eq!(direct.read_at(&mut aligned[begin..][..1 << 20], 0)?, 1 << 20);
    fs::write("/proc/sys/vm/drop_caches", "3")?;
    assert!(fs::read(mount.at("held"))?.len() == 3 << 20);
    let marker = std::str::from_utf8(MARKER)?;
    fs::create_dir(mount.at(marker))?;
    std::os::unix::fs::symlink(marker, mount.at("link"))?;
    fs::read_link(mount.at("link"))?;
    rustix::fs::setxattr(mount.at("held"), "user.a", MARKER, rustix::fs::XattrFlags::empty())?;
    let mut value = [0; 100];
    rustix::fs::getxattr(mount.at("held"), "user.a", &mut value[..])?;
    assert_eq!(fs::read_dir(mount.at(""))?.count(), 4);
    // The last thing that goes to the buffers of the threads which serve the kernel: not synced, drained by the lock.
    held.write_all_at(&marked(2 << 20), 1 << 20)?;
    Ok(held)
}

#[test]
fn a_locked_mount_remembers_neither_what_passed_through_it_nor_any_key() -> Outcome {
    let mount = Mount::new();
    let pid = mount.status()["pid"].as_u64().expect("a number");
    let held = use_every_path(&mount)?;
    let secrets = secrets(&mount)?;
    let mut needles: Vec<_> = secrets.iter().map(|(what, key)| (*what, &key.expose()[..])).collect();
    needles.push(("plaintext", MARKER));
    let unlocked = found(pid, &needles);
    for what in ["plaintext", "the volume key", "the envelope's secret"] {
        assert!(unlocked.iter().any(|(found, _)| *found == what), "{what} is there and is not found");
    }
    let mountpoint = mount.volume().mountpoint();
    mount.volume().ok(&["lock", mountpoint.to_str().expect("UTF-8")]);
    assert_eq!(found(pid, &needles), []);
    // What comes too late is refused, and not kept either.
    let _ = held.write_all_at(&marked(1 << 20), 0);
    assert!(held.sync_all().is_err(), "what was written while locked is said to be lost");
    until("what was refused is wiped", || found(pid, &needles).is_empty());
    mount.volume().ok(&["unlock", mountpoint.to_str().expect("UTF-8")]);
    assert!(fs::read(mount.at("held"))?[1 << 20..] == marked(2 << 20)[..]);
    Ok(())
}

/// Bytes that a process has resident.
fn resident(pid: u64) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("the process is there");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a line");
    let kib: u64 = line.trim_end_matches("kB").trim().parse().expect("a number");
    kib * 1024
}

#[test]
fn an_idle_mount_gives_memory_back_and_goes_on() -> Outcome {
    const IDLE: u64 = 12 << 20;
    let mount = Mount::new();
    let pid = mount.status()["pid"].as_u64().expect("a number");
    let content = marked(64 << 10);
    for _ in 0..2 {
        fs::write(mount.at("file"), &content)?;
        assert!(fs::read(mount.at("file"))? == content);
        until("the mount is small", || resident(pid) < IDLE);
        fs::write("/proc/sys/vm/drop_caches", "3")?;
        assert!(fs::read(mount.at("file"))? == content);
    }
    Ok(())
}

#[test]
fn a_rekey_leaves_no_key_of_before_in_memory_though_the_files_are_open_and_the_volume_is_unlocked() -> Outcome {
    let mount = Mount::new();
    let pid = mount.status()["pid"].as_u64().expect("a number");
    let held = create(mount.at("held"));
    held.write_all_at(&marked(3 << 20), 0)?;
    held.sync_all()?;
    let before = secrets(&mount)?;
    let needles: Vec<_> = before.iter().map(|(what, key)| (*what, &key.expose()[..])).collect();
    let (of_file, of_volume): (Vec<_>, Vec<_>) = needles.into_iter().partition(|(what, _)| {
        // What MACs are made with may lie on the stack of a thread that serves the kernel; it goes with a lock.
        ["the envelope's secret", "the DEK", "the key of the chunks"].contains(what)
    });
    for what in ["the envelope's secret", "the DEK"] {
        assert!(found(pid, &of_file).iter().any(|(found, _)| *found == what), "{what} is there and is not found");
    }
    mount.volume().ok(&["rekey", mount.volume().mountpoint().to_str().expect("UTF-8")]);
    held.write_all_at(&marked(640), 0)?;
    held.sync_all()?;
    until("what was before is wiped", || found(pid, &of_file).is_empty());
    assert!(found(pid, &of_volume).iter().any(|(found, _)| *found == "the volume key"), "it is unlocked");
    assert!(crate::harness::content(&held) == marked(3 << 20));
    Ok(())
}
