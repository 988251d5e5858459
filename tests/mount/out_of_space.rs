//! A disk that is full.

use crate::harness::{FOR_ALL, Mount, Outcome, Volume, bytes, create, run, until};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use tempfile::TempDir;

/// A small ext4, in a file; taken away when it goes out of scope.
struct Small {
    directory: TempDir,
}

impl Small {
    fn new() -> Outcome<Self> {
        let directory = TempDir::with_prefix("kmsfs-small-")?;
        let image = directory.path().join("image");
        File::create(&image)?.set_len(160 << 20)?;
        run("mkfs.ext4", &[&"-q", &"-m", &"0", &image]);
        fs::create_dir(directory.path().join("disk"))?;
        let small = Self { directory };
        run("mount", &[&"-o", &"loop", &image, &small.path()]);
        Ok(small)
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("disk")
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("--lazy").arg(self.path()).status();
    }
}

/// Writes files until the disk is full; returns those that were durable before, and what the last one got.
fn fill(mount: &Mount) -> (Vec<u64>, io::Error) {
    let mut whole = Vec::new();
    for i in 0.. {
        let file = create(mount.at(format!("filler{i}")));
        // Sooner or later: what the kernel holds back is refused when it is synced.
        match file.write_all_at(&bytes(100 + i, 3_000_000), 0).and_then(|()| file.sync_all()) {
            Ok(()) => whole.push(i),
            Err(error) => return (whole, error),
        }
    }
    unreachable!("a disk without an end");
}

fn available(path: PathBuf) -> u64 {
    let space = rustix::fs::statvfs(path).expect("the space");
    space.f_bavail * space.f_frsize
}

#[test]
fn a_full_disk_costs_nothing_that_could_be_read_and_is_not_full_any_more_when_something_is_removed() -> Outcome {
    let small = Small::new()?;
    let mut mount = Volume::at(&small.path().join("volume")).mount(FOR_ALL);
    let mut expected = bytes(1, 2_000_000);
    let kept = create(mount.at("kept"));
    kept.write_all_at(&expected, 0)?;
    kept.sync_all()?;
    let mut whole = Vec::new();
    for round in 0..2 {
        remove(&mount, round);
        let error;
        (whole, error) = fill(&mount);
        assert_eq!(error.raw_os_error(), Some(libc::ENOSPC), "round {round}");
        assert!(whole.len() > 5, "round {round}: {whole:?}");
        assert_eq!(available(mount.at("")), available(small.path()), "round {round}");
        for i in &whole {
            assert!(fs::read(mount.at(format!("filler{i}")))? == bytes(100 + i, 3_000_000), "round {round}: {i}");
        }
        // What overwrites needs no more space than is there; in the middle of chunks, too.
        for at in [0, 4096, 1_234_567, 1_999_000] {
            let changed = bytes(at + round, 900);
            kept.write_all_at(&changed, at)?;
            kept.sync_all()?;
            expected[at as usize..at as usize + 900].copy_from_slice(&changed);
        }
        assert!(fs::read(mount.at("kept"))? == expected, "round {round}");
    }
    // A mount of a full disk.
    drop(kept);
    mount = mount.again(FOR_ALL);
    assert!(fs::read(mount.at("kept"))? == expected, "another mount");
    for i in &whole {
        assert!(fs::read(mount.at(format!("filler{i}")))? == bytes(100 + i, 3_000_000), "another mount: {i}");
    }
    // New keys need no more than that, either; but the volume's record needs a block of its own.
    let rekey = || mount.volume().run(&["rekey", mount.at("").to_str().expect("UTF-8")]);
    let full = rekey();
    assert!(full.code == 0 || (full.code == 13 && full.stderr.contains("No space left")), "{full:?}");
    assert!(fs::read(mount.at("kept"))? == expected, "with other keys");
    remove(&mount, 2);
    assert_eq!(rekey().code, 0);
    fs::write(mount.at("new"), bytes(9, 4_000_000))?;
    File::open(mount.at("new"))?.sync_all()?;
    assert!(fs::read(mount.at("new"))? == bytes(9, 4_000_000));
    assert!(fs::read(mount.at("kept"))? == expected);
    assert_eq!(mount.status()["damaged"], 0);
    mount.unmount();
    Ok(())
}

/// Removes what filled the disk, if it was.
fn remove(mount: &Mount, round: u64) {
    let before = available(mount.at(""));
    for entry in fs::read_dir(mount.at("")).expect("the fillers").flatten() {
        if entry.file_name().to_string_lossy().starts_with("filler") {
            fs::remove_file(entry.path()).expect("what fills the disk can be removed");
        }
    }
    until("there is space again", || round == 0 || available(mount.at("")) > before + (15 << 20));
}
