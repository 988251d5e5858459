//! Between the kernel's types and ours: pure.

use crate::fs::Entry;
use crate::store::{Kind, SetTime, Timestamp};
use fuser::{FileAttr, FileType, INodeNo, TimeOrNow};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The unit in which applications are advised to read and write, in bytes.
const BLOCK_SIZE: u32 = 4096;

pub fn file_type(kind: Kind) -> FileType {
    match kind {
        Kind::File => FileType::RegularFile,
        Kind::Directory => FileType::Directory,
        Kind::Symlink => FileType::Symlink,
        Kind::Fifo => FileType::NamedPipe,
        Kind::Socket => FileType::Socket,
        Kind::CharDevice => FileType::CharDevice,
        Kind::BlockDevice => FileType::BlockDevice,
    }
}

/// What a `mknod` with this mode makes.
pub fn kind_of(mode: u32) -> Option<Kind> {
    match mode & libc::S_IFMT {
        0 | libc::S_IFREG => Some(Kind::File),
        libc::S_IFIFO => Some(Kind::Fifo),
        libc::S_IFSOCK => Some(Kind::Socket),
        libc::S_IFCHR => Some(Kind::CharDevice),
        libc::S_IFBLK => Some(Kind::BlockDevice),
        _ => None,
    }
}

pub fn attr_of(entry: &Entry) -> FileAttr {
    let stat = &entry.stat;
    FileAttr {
        ino: INodeNo(stat.ino),
        size: entry.len.0,
        blocks: stat.blocks,
        atime: system_time(stat.atime),
        mtime: system_time(stat.mtime),
        ctime: system_time(stat.ctime),
        crtime: UNIX_EPOCH,
        kind: file_type(stat.kind),
        perm: stat.permissions as u16,
        nlink: stat.nlink,
        uid: stat.uid,
        gid: stat.gid,
        rdev: u32::try_from(stat.rdev).unwrap_or(0),
        blksize: BLOCK_SIZE,
        flags: 0,
    }
}

/// As much as the kernel takes of the attributes of `.` and `..`.
pub fn attr_of_dot(ino: u64) -> FileAttr {
    FileAttr {
        ino: INodeNo(ino),
        size: 0,
        blocks: 0,
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind: FileType::Directory,
        perm: 0,
        nlink: 1,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: BLOCK_SIZE,
        flags: 0,
    }
}

fn system_time(time: Timestamp) -> SystemTime {
    let seconds = Duration::from_secs(time.seconds.unsigned_abs());
    let whole = if time.seconds < 0 { UNIX_EPOCH - seconds } else { UNIX_EPOCH + seconds };
    whole + Duration::from_nanos(time.nanoseconds.into())
}

pub fn set_time_of(time: TimeOrNow) -> SetTime {
    match time {
        TimeOrNow::Now => SetTime::Now,
        TimeOrNow::SpecificTime(time) => SetTime::At(timestamp(time)),
    }
}

/// What the kernel sent. Before 1970 the library subtracts the nanoseconds which the kernel meant to be added.
fn timestamp(time: SystemTime) -> Timestamp {
    match time.duration_since(UNIX_EPOCH) {
        Ok(since) => Timestamp { seconds: since.as_secs() as i64, nanoseconds: since.subsec_nanos() },
        Err(before) => {
            let before = before.duration();
            Timestamp { seconds: -(before.as_secs() as i64), nanoseconds: before.subsec_nanos() }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_on_both_sides_of_1970_are_those_of_the_kernel() {
        for seconds in [-1_000_000, -1, 0, 1, 4_000_000_000_i64] {
            for nanoseconds in [0, 1, 999_999_999] {
                let length = Duration::new(seconds.unsigned_abs(), nanoseconds);
                let received = if seconds < 0 { UNIX_EPOCH - length } else { UNIX_EPOCH + length };
                assert_eq!(timestamp(received), Timestamp { seconds, nanoseconds });
            }
        }
        let before = system_time(Timestamp { seconds: -2, nanoseconds: 1 });
        assert_eq!(UNIX_EPOCH.duration_since(before).unwrap(), Duration::new(1, 999_999_999));
    }
}
