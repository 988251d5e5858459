//! A disk that is full to its last block, while programs go on: nothing that was readable is lost, and when there is room
//! again everything goes on.

use crate::harness::{Mount, Outcome, Volume, bytes, number, run};
use crate::load::Draws;
use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use tempfile::TempDir;

const PAGE: usize = 4096;
/// How much room is left to begin with.
const ROOM: u64 = 6 << 20;

/// A small filesystem in a file.
struct Small {
    directory: TempDir,
}

impl Small {
    fn new(kind: &str, mib: u64, options: &[&str]) -> Outcome<Self> {
        let directory = TempDir::with_prefix("kmsfs-full-")?;
        let image = directory.path().join("image");
        File::create(&image)?.set_len(mib << 20)?;
        let arguments: Vec<&dyn AsRef<std::ffi::OsStr>> = options.iter().map(|option| option as _).collect();
        run(&format!("mkfs.{kind}"), &[&[&"-q" as &dyn AsRef<std::ffi::OsStr>], &arguments[..], &[&image]].concat());
        fs::create_dir(directory.path().join("store"))?;
        let small = Self { directory };
        run("mount", &[&"-t", &kind, &"-o", &"loop", &image, &small.path()]);
        Ok(small)
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("store")
    }

    fn free(&self) -> u64 {
        let space = rustix::fs::statvfs(self.path()).expect("space");
        space.f_bavail * space.f_frsize
    }

    /// Takes all of the room but so much, and then, if that is 0, all that there really is.
    fn fill(&self, room: u64) -> io::Result<PathBuf> {
        let path = self.path().join("filler");
        let file = OpenOptions::new().create(true).append(true).open(&path)?;
        let (mut step, piece) = (1 << 20, bytes(1, 1 << 20));
        while step >= PAGE && self.free() > room {
            let most = step.min(((self.free() - room) as usize).next_multiple_of(PAGE));
            match io::Write::write(&mut &file, &piece[..most]) {
                Ok(written) if written == most => (),
                _ => step /= 2,
            }
        }
        // What is written later must not find that there was room.
        let _ = file.sync_all();
        Ok(path)
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(self.path(), rustix::mount::UnmountFlags::DETACH);
    }
}

/// A file, and what may be in it: all that was tried since somebody was told that it is there.
#[derive(Default)]
struct Known {
    versions: Vec<Vec<u8>>,
    /// Something failed: from here on nobody writes to it.
    failed: bool,
}

impl Known {
    fn allows(&self, found: &[u8]) -> bool {
        let lens = || self.versions.iter().map(Vec::len);
        let known_len = lens().any(|len| len == found.len())
            || (self.failed && (lens().min() <= Some(found.len()) && Some(found.len()) <= lens().max()));
        let byte = |version: &Vec<u8>, at: usize| version.get(at).copied().unwrap_or(0);
        known_len
            && found
                .iter()
                .enumerate()
                .all(|(at, found)| self.versions.iter().any(|version| byte(version, at) == *found))
    }
}

struct Work {
    mount: Mount,
    files: BTreeMap<String, Known>,
    draws: Draws,
    made: usize,
    done: usize,
    /// Errors by the call that told them.
    errors: BTreeMap<&'static str, usize>,
}

impl Work {
    fn any(&mut self) -> Option<String> {
        let whole: Vec<&String> = self.files.iter().filter(|(_, known)| !known.failed).map(|(name, _)| name).collect();
        let at = self.draws.below(whole.len().max(1) as u64) as usize;
        whole.get(at).map(|name| (*name).clone())
    }

    /// Notes how a call ended; only a disk that is full may have made it fail.
    fn note<T>(&mut self, call: &'static str, result: io::Result<T>) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(error) => {
                let full = [libc::ENOSPC, libc::EDQUOT].contains(&error.raw_os_error().unwrap_or(0));
                assert!(full, "{call}: {error}");
                *self.errors.entry(call).or_default() += 1;
                None
            }
        }
    }

    /// Changes a file, and waits until that is durable.
    fn change(&mut self, name: &str, file: &File, act: impl FnOnce(&File) -> io::Result<()>, next: Vec<u8>) {
        self.files.get_mut(name).expect("a file").versions.push(next.clone());
        let changed = self.note("write", act(file)).is_some();
        let synced = self.note("fsync", file.sync_all()).is_some();
        let known = self.files.get_mut(name).expect("a file");
        if changed && synced {
            self.done += 1;
            known.versions = vec![next];
        } else {
            known.failed = true;
        }
    }

    fn act(&mut self) -> Outcome {
        let seed = self.draws.below(u64::MAX);
        let most = [200, PAGE as u64, 100_000][self.draws.below(3) as usize];
        let piece = bytes(seed, 1 + self.draws.below(most) as usize);
        let (what, existing) = (self.draws.below(10), self.any());
        let open = |name: &String| OpenOptions::new().write(true).open(self.mount.at(name));
        match (what, existing) {
            (0..=3, _) | (_, None) => {
                self.made += 1;
                let name = format!("new {}", self.made);
                let created = OpenOptions::new().write(true).create_new(true).open(self.mount.at(&name));
                if let Some(file) = self.note("create", created) {
                    self.files.insert(name.clone(), Known { versions: vec![vec![]], failed: false });
                    self.change(&name, &file, |file| file.write_all_at(&piece, 0), piece.clone());
                }
            }
            (4, Some(name)) => {
                let to = self.any().expect("there is one");
                if to != name && self.note("rename", fs::rename(self.mount.at(&name), self.mount.at(&to))).is_some() {
                    let known = self.files.remove(&name).expect("a file");
                    self.files.insert(to, known);
                    self.done += 1;
                }
            }
            (5, Some(name)) => {
                let file = open(&name)?;
                let mut next = self.files[&name].versions[0].clone();
                let len = self.draws.below(2 * next.len() as u64 + 1);
                next.resize(len as usize, 0);
                self.change(&name, &file, |file| file.set_len(len), next);
            }
            (6, Some(name)) => {
                let file = open(&name)?;
                let mut next = self.files[&name].versions[0].clone();
                let at = next.len();
                next.extend_from_slice(&piece);
                self.change(&name, &file, |file| file.write_all_at(&piece, at as u64), next);
            }
            (_, Some(name)) => {
                let file = open(&name)?;
                let mut next = self.files[&name].versions[0].clone();
                let at = self.draws.below(next.len() as u64 + 1) as usize;
                next.resize(next.len().max(at + piece.len()), 0);
                next[at..at + piece.len()].copy_from_slice(&piece);
                self.change(&name, &file, |file| file.write_all_at(&piece, at as u64), next);
            }
        }
        Ok(())
    }

    /// Mounts again. Whoever had something open has closed it.
    fn again(self) -> Self {
        Self { mount: self.mount.again(&[]), ..self }
    }

    fn check(&self, when: &str) -> Outcome {
        for (name, known) in &self.files {
            let found = fs::read(self.mount.at(name)).map_err(|error| format!("{when}: {name}: {error}"))?;
            assert!(known.allows(&found), "{when}: {name} has {} bytes that nobody wrote", found.len());
        }
        Ok(())
    }
}

/// `in_place`: the filesystem overwrites without taking space. If not, even the journal can need some, and goes on only
/// after the next mount (semantics.md).
fn full_to_the_last_block(kind: &str, mib: u64, options: &[&str], in_place: bool) -> Outcome {
    let small = Small::new(kind, mib, options)?;
    let mount = Volume::at(&small.path().join("volume")).mount(&[]);
    let mut files = BTreeMap::new();
    for number in 0..25 {
        let content = bytes(number, 1 + number as usize * 4321);
        let file = File::create(mount.at(format!("old {number}")))?;
        file.write_all_at(&content, 0)?;
        file.sync_all()?;
        files.insert(format!("old {number}"), Known { versions: vec![content], failed: false });
    }
    let open = OpenOptions::new().read(true).write(true).open(mount.at("old 20"))?;
    let filler = small.fill(ROOM)?;
    let seed = u64::from(std::process::id());
    println!("seed {seed}");
    let mut work = Work { mount, files, draws: Draws(seed), made: 0, done: 0, errors: BTreeMap::new() };
    while work.errors.values().sum::<usize>() < 10 {
        work.act()?;
    }
    // To the very last block, and on.
    small.fill(0)?;
    let before = work.done;
    for _ in 0..60 {
        work.act()?;
    }
    println!(
        "{kind}: {} changes, {} of them when it was full, errors {:?}",
        work.done,
        work.done - before,
        work.errors
    );
    work.check("while it is full")?;

    // An error is told once.
    let piece = bytes(9, 3 << 20);
    let long = File::create(work.mount.at("too long"));
    if let Ok(long) = &long {
        let written = long.write_all_at(&piece, 0).and_then(|()| long.sync_all());
        assert_eq!(number(written), libc::ENOSPC);
    }
    // What exists can be removed, and that makes room.
    for _ in 0..2 {
        let (name, _) = work.files.pop_first().expect("there are some");
        fs::remove_file(work.mount.at(name))?;
    }
    fs::remove_file(filler)?;
    rustix::fs::syncfs(File::open(small.path())?)?;
    if in_place {
        // They may have to tell what went wrong before, and that once.
        let _ = open.sync_all();
        open.sync_all()?;
        if let Ok(long) = long {
            let _ = long.sync_all();
            long.sync_all()?;
            long.write_all_at(&piece, 0)?;
            long.sync_all()?;
            work.files.insert("too long".into(), Known { versions: vec![piece], failed: false });
        }
        drop(open);
    } else {
        drop((open, long));
        work = work.again();
        work.check("mounted again with some room")?;
    }
    let errors = work.errors.clone();
    for _ in 0..60 {
        work.act()?;
        assert_eq!(work.errors, errors, "there is room again");
    }
    work.check("when there was room again")?;
    work = work.again();
    work.check("mounted again")?;
    assert_eq!(work.mount.status()["damaged"], 0);
    let volume = work.mount.unmount();
    let report = volume.ok(&["fsck", "--deep", "--json", volume.path().to_str().expect("UTF-8")]);
    assert_eq!(serde_json::from_str::<serde_json::Value>(&report)?["findings"], serde_json::json!([]));
    Ok(())
}

#[test]
fn on_a_full_ext4_nothing_is_lost() -> Outcome {
    full_to_the_last_block("ext4", 64, &["-m", "0", "-b", "4096"], true)
}

#[test]
fn on_a_full_ext4_with_blocks_smaller_than_a_page_nothing_is_lost() -> Outcome {
    full_to_the_last_block("ext4", 64, &["-m", "0", "-b", "1024"], true)
}

#[test]
fn on_a_full_xfs_nothing_is_lost() -> Outcome {
    full_to_the_last_block("xfs", 320, &[], true)
}

#[test]
fn on_a_full_btrfs_nothing_is_lost() -> Outcome {
    full_to_the_last_block("btrfs", 160, &[], false)
}
