//! A disk that can lose power. It is a file of a small FUSE filesystem, of which a loop device is made: so it sees
//! each write and each flush of whatever filesystem is on it, and knows at any time what a real disk, with a cache of
//! its own, would still have after a power cut. A write before the last flush is kept; each page that was written since
//! is kept or lost.

use crate::harness::{Outcome, run, until};
use crate::load::Draws;
use fuser::{
    Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, LockOwner, OpenFlags,
    ReplyAttr, ReplyData, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyWrite, Request, WriteFlags,
};
use std::collections::HashMap;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};
use tempfile::TempDir;

/// What the disk writes at once, in bytes.
const PAGE: usize = 4096;
const ROOT: INodeNo = INodeNo(1);
const FILE: INodeNo = INodeNo(2);
const TTL: Duration = Duration::from_secs(3600);
/// For how long a power cut waits for a moment at which it can do harm.
const SOON: Duration = Duration::from_millis(50);

/// How often the end of a disk waits that long for its last user.
const TRIES: usize = 200;

type Page = Arc<[u8; PAGE]>;
/// Pages that are not all zero, by number.
type Image = HashMap<u64, Page>;

#[derive(Default)]
struct State {
    /// What was there at the last flush.
    durable: Image,
    /// What was written since, in this order.
    since: Vec<(u64, Page)>,
    /// What whoever reads sees.
    live: Image,
}

/// What is left after a power cut.
pub struct Left {
    image: Image,
    /// How many pages were kept of those that had not been flushed, and how many lost.
    pub kept: (usize, usize),
}

/// The disk.
pub struct Disk {
    state: Arc<Mutex<State>>,
    written: Arc<Condvar>,
    kind: &'static str,
    directory: TempDir,
    device: Option<String>,
    session: Option<fuser::BackgroundSession>,
}

fn set(image: &mut Image, number: u64, page: &Page) {
    if page.iter().all(|byte| *byte == 0) {
        image.remove(&number);
    } else {
        image.insert(number, Arc::clone(page));
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Disk {
    /// A disk with a filesystem of this kind, mounted.
    pub fn new(kind: &'static str) -> Outcome<Self> {
        let len = match kind {
            "xfs" => 320 << 20,
            "btrfs" => 256 << 20,
            _ => 192 << 20,
        };
        let directory = TempDir::with_prefix("kmsfs-disk-")?;
        std::fs::create_dir(directory.path().join("below"))?;
        std::fs::create_dir(directory.path().join("store"))?;
        let state = Arc::<Mutex<State>>::default();
        let written = Arc::<Condvar>::default();
        let device = Device { state: Arc::clone(&state), written: Arc::clone(&written), len };
        let session = fuser::spawn_mount(device, directory.path().join("below"), &fuser::Config::default())?;
        let mut disk = Self { state, written, kind, directory, device: None, session: Some(session) };
        disk.attach();
        let device = disk.device.clone().unwrap_or_default();
        let options: &[&str] = match kind {
            "ext4" => &["-q", "-E", "nodiscard,lazy_itable_init=0,lazy_journal_init=0"],
            _ => &["-q", "-K"],
        };
        let arguments: Vec<&dyn AsRef<OsStr>> = options.iter().map(|option| option as &dyn AsRef<OsStr>).collect();
        run(&format!("mkfs.{kind}"), &[&arguments[..], &[&device]].concat());
        disk.mount();
        Ok(disk)
    }

    /// The root of the filesystem on it.
    pub fn path(&self) -> PathBuf {
        self.directory.path().join("store")
    }

    fn attach(&mut self) {
        let file = self.directory.path().join("below/disk");
        let device = run("losetup", &[&"--find", &"--show", &"--sector-size", &"4096", &file]);
        self.device = Some(device.trim().to_owned());
    }

    fn detach(&mut self) {
        if let Some(device) = self.device.take() {
            run("losetup", &[&"--detach", &device]);
        }
    }

    fn mount(&self) {
        run("mount", &[&"-t", &self.kind, &self.device.as_deref().unwrap_or_default(), &self.path()]);
    }

    fn unmount(&self) {
        let path = self.path();
        // Whoever had files open on it has just been killed.
        until("the filesystem is unmounted", || {
            rustix::mount::unmount(&path, rustix::mount::UnmountFlags::empty()).is_ok()
        });
    }

    /// What would be left if the power failed now, or as soon as something is written that is not flushed.
    pub fn cut(&self, seed: u64) -> Left {
        let mut draws = Draws(seed);
        let idle = |state: &mut State| state.since.is_empty();
        let state = self.written.wait_timeout_while(lock(&self.state), SOON, idle);
        let state = state.unwrap_or_else(PoisonError::into_inner).0;
        let mut image = state.durable.clone();
        let count = state.since.len();
        let how = draws.below(4);
        let upto = draws.below(count as u64 + 1) as usize;
        let mut kept = 0;
        for (at, (number, page)) in state.since.iter().enumerate() {
            let keep = match how {
                0 => false,
                1 => true,
                2 => at < upto,
                _ => draws.below(2) == 0,
            };
            if keep {
                set(&mut image, *number, page);
                kept += 1;
            }
        }
        Left { image, kept: (kept, count - kept) }
    }

    /// The power is back after a cut. Whoever still uses the filesystem must be gone.
    pub fn restart(&mut self, left: Left) {
        self.unmount();
        self.detach();
        {
            let mut state = lock(&self.state);
            *state = State { durable: left.image.clone(), since: Vec::new(), live: left.image };
        }
        self.attach();
        self.mount();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Whatever a test that failed has left open.
        let _ = rustix::mount::unmount(self.path(), rustix::mount::UnmountFlags::DETACH);
        if let Some(device) = self.device.take() {
            let _ = std::process::Command::new("losetup").args(["--detach", &device]).status();
        }
        // The device goes when the last that has its filesystem open does, and has the file below open until then.
        let below = self.directory.path().join("below");
        let gone = (0..TRIES).any(|_| {
            let unmounted = rustix::mount::unmount(&below, rustix::mount::UnmountFlags::empty()).is_ok();
            if !unmounted {
                std::thread::sleep(SOON);
            }
            unmounted
        });
        if !gone {
            let _ = rustix::mount::unmount(&below, rustix::mount::UnmountFlags::DETACH);
        }
        if let Some(session) = self.session.take() {
            let _ = session.umount_and_join();
        }
    }
}

struct Device {
    state: Arc<Mutex<State>>,
    written: Arc<Condvar>,
    len: u64,
}

impl Device {
    fn attr(&self, ino: INodeNo) -> FileAttr {
        let (kind, perm, size) =
            if ino == ROOT { (FileType::Directory, 0o700, 0) } else { (FileType::RegularFile, 0o600, self.len) };
        let now = SystemTime::UNIX_EPOCH;
        FileAttr {
            ino,
            size,
            blocks: size / 512,
            atime: now,
            mtime: now,
            ctime: now,
            crtime: now,
            kind,
            perm,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: PAGE as u32,
            flags: 0,
        }
    }
}

impl Filesystem for Device {
    fn lookup(&self, _: &Request, _: INodeNo, name: &OsStr, reply: ReplyEntry) {
        if Path::new(name) == Path::new("disk") {
            reply.entry(&TTL, &self.attr(FILE), Generation(0));
        } else {
            reply.error(Errno::ENOENT);
        }
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&TTL, &self.attr(ino));
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        // Nothing in between that would hold anything back.
        reply.opened(FileHandle(0), FopenFlags::FOPEN_DIRECT_IO);
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let state = lock(&self.state);
        let end = self.len.min(offset + u64::from(size));
        let mut bytes = vec![0; end.saturating_sub(offset) as usize];
        let mut at = offset;
        while at < end {
            let (number, within) = (at / PAGE as u64, at as usize % PAGE);
            let len = (PAGE - within).min((end - at) as usize);
            if let Some(page) = state.live.get(&number) {
                bytes[(at - offset) as usize..][..len].copy_from_slice(&page[within..within + len]);
            }
            at += len as u64;
        }
        drop(state);
        reply.data(&bytes);
    }

    fn write(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        if !offset.is_multiple_of(PAGE as u64) || !data.len().is_multiple_of(PAGE) {
            reply.error(Errno::EINVAL);
            return;
        }
        let mut state = lock(&self.state);
        for (number, bytes) in (offset / PAGE as u64..).zip(data.chunks_exact(PAGE)) {
            let page: Page = Arc::new(bytes.try_into().expect("a page"));
            set(&mut state.live, number, &page);
            state.since.push((number, page));
        }
        drop(state);
        self.written.notify_all();
        reply.written(data.len() as u32);
    }

    fn fsync(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        let mut state = lock(&self.state);
        let state = &mut *state;
        for (number, page) in state.since.drain(..) {
            set(&mut state.durable, number, &page);
        }
        reply.ok();
    }
}
