//! Wiping what the FUSE library keeps: each thread that serves the kernel has one buffer for requests, which after a
//! lock still holds the last thing that an application wrote. The library gives no way to reach it, but the next
//! request overwrites it. So zeros are written to files of the mount that exist for this only, as much as a request can hold, one for
//! each thread, and no thread answers before all have one. Each wipes its stack, too.
//!
//! The files have names that nobody can guess, and are there only while they are used. Other requests that come
//! meanwhile wait for milliseconds.

use super::MAX_REQUEST;
use crate::crypto::wipe_stack;
use fuser::{FileAttr, FileType};
use parking_lot::{Condvar, Mutex};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, UNIX_EPOCH};

/// How long the threads wait for each other: one may be busy with a slow disk.
const PATIENCE: Duration = Duration::from_millis(500);
/// What the kernel wants the memory of direct requests to be aligned to, in bytes.
const ALIGNMENT: usize = 4096;
/// Inode numbers from here on are those of the files: no filesystem has so many.
const FIRST_INO: u64 = u64::MAX - 1024;

/// The files of one mount.
pub struct Wash {
    threads: usize,
    name: String,
    active: AtomicBool,
    /// Something was written, and refused, since the last time.
    soiled: AtomicBool,
    washing: Mutex<()>,
    basin: Mutex<Basin>,
    changed: Condvar,
}

#[derive(Default)]
struct Basin {
    /// How many threads hold a request.
    arrived: usize,
    /// How often all of them did.
    rounds: usize,
}

impl Wash {
    /// For a session with so many threads.
    pub fn new(threads: usize) -> Self {
        Self {
            threads,
            name: format!(".kmsfs-wash-{}-", data_encoding::HEXLOWER.encode(&crate::crypto::random_id())),
            active: AtomicBool::new(false),
            soiled: AtomicBool::new(false),
            washing: Mutex::default(),
            basin: Mutex::default(),
            changed: Condvar::new(),
        }
    }

    /// Overwrites the buffers of all threads that serve the mount, and says whether it could. `write` has to write
    /// [`MAX_REQUEST`] zeros to each of the files with these names in the root directory, all at the same time, and must
    /// not do so from this process.
    pub fn wash(&self, write: impl FnOnce(&[String]) -> bool) -> bool {
        let _one_at_a_time = self.washing.lock();
        self.soiled.store(false, Ordering::Release);
        self.active.store(true, Ordering::Release);
        let rounds = self.basin.lock().rounds;
        let names: Vec<_> = (0..self.threads).map(|index| format!("{}{index}", self.name)).collect();
        let washed = write(&names) && self.basin.lock().rounds > rounds;
        self.active.store(false, Ordering::Release);
        washed
    }

    /// Something that was written came too late: it lies in a buffer.
    pub fn soil(&self) {
        self.soiled.store(true, Ordering::Release);
    }

    /// Whether something came too late since the last time.
    pub fn is_soiled(&self) -> bool {
        self.soiled.load(Ordering::Acquire)
    }

    /// The inode of the file with this name in the root directory, if it is one of ours and wanted now.
    pub(super) fn lookup(&self, name: &[u8]) -> Option<u64> {
        if !self.active.load(Ordering::Acquire) {
            return None;
        }
        let index = std::str::from_utf8(name).ok()?.strip_prefix(&self.name)?.parse::<u64>().ok()?;
        (index < self.threads as u64).then_some(FIRST_INO + index)
    }

    /// Whether an inode, or a handle, which has the same number, is one of ours.
    pub(super) fn owns(number: u64) -> bool {
        number >= FIRST_INO
    }

    /// What there is to know of one of the files.
    pub(super) fn attributes(ino: u64) -> FileAttr {
        FileAttr {
            ino: fuser::INodeNo(ino),
            size: u64::from(MAX_REQUEST),
            blocks: 0,
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH,
            ctime: UNIX_EPOCH,
            crtime: UNIX_EPOCH,
            kind: FileType::RegularFile,
            perm: 0o600,
            nlink: 1,
            uid: rustix::process::geteuid().as_raw(),
            gid: rustix::process::getegid().as_raw(),
            rdev: 0,
            blksize: MAX_REQUEST,
            flags: 0,
        }
    }

    /// Called by each thread with its request: comes back when all threads have one, or when that takes too long.
    pub(super) fn meet(&self) {
        wipe_stack();
        let until = Instant::now() + PATIENCE;
        let mut basin = self.basin.lock();
        basin.arrived += 1;
        let round = basin.rounds;
        if basin.arrived == self.threads {
            basin.rounds += 1;
            self.changed.notify_all();
        }
        while basin.rounds == round && !self.changed.wait_until(&mut basin, until).timed_out() {}
        basin.arrived -= 1;
    }
}

/// Writes zeros to all of these files, at the same time, past the page cache.
///
/// # Errors
/// The system's.
pub fn write_zeros(files: &[OwnedFd]) -> io::Result<()> {
    let zeros = vec![0; MAX_REQUEST as usize + ALIGNMENT];
    let begin = zeros.as_ptr().align_offset(ALIGNMENT).min(ALIGNMENT);
    let zeros = &zeros[begin..][..MAX_REQUEST as usize];
    std::thread::scope(|scope| {
        let writers: Vec<_> =
            files.iter().map(|file| scope.spawn(move || rustix::io::pwrite(file, zeros, 0))).collect();
        for writer in writers {
            let written = writer.join().map_err(|_| io::Error::other("a thread panicked"))??;
            if written != zeros.len() {
                return Err(io::ErrorKind::WriteZero.into());
            }
        }
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn threads_wait_until_each_has_a_request() {
        let wash = Arc::new(Wash::new(3));
        let others: Vec<_> = (0..2)
            .map(|_| {
                let wash = Arc::clone(&wash);
                std::thread::spawn(move || wash.meet())
            })
            .collect();
        wash.meet();
        for other in others {
            other.join().unwrap();
        }
        let basin = wash.basin.lock();
        assert_eq!((basin.rounds, basin.arrived), (1, 0));
    }

    #[test]
    fn names_are_known_only_while_they_are_wanted() {
        let wash = Wash::new(2);
        let name = format!("{}1", wash.name);
        assert_eq!(wash.lookup(name.as_bytes()), None);
        wash.active.store(true, Ordering::Release);
        assert_eq!(wash.lookup(name.as_bytes()), Some(FIRST_INO + 1));
        assert_eq!(wash.lookup(format!("{}2", wash.name).as_bytes()), None);
        assert_eq!(wash.lookup(b".kmsfs-wash-0"), None);
        assert!(Wash::owns(FIRST_INO) && !Wash::owns(1));
    }
}
