//! Reading, writing, mapping, cutting, and holes.

use crate::harness::{Mount, Outcome, bytes, content, create, number, python, until};
use rustix::fs::{FallocateFlags, SeekFrom, fallocate, seek};
use rustix::io::Errno;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};

#[test]
fn a_shared_mapping_writes_the_file_and_a_private_one_does_not() -> Outcome {
    let mount = Mount::new();
    fs::write(mount.at("file"), bytes(1, 10_000))?;
    python(
        r"
fd = os.open(argv[0], os.O_RDWR)
shared = mmap.mmap(fd, 10000)
private = mmap.mmap(fd, 10000, flags=mmap.MAP_PRIVATE)
before = os.pread(fd, 10000, 0)
assert shared[:] == before and private[:] == before
private[5000:5004] = b'mine'
assert os.pread(fd, 10000, 0) == before
shared[4090:4094] = b'ours'
assert os.pread(fd, 4, 4090) == b'ours' and private[4090:4094] == b'ours'
os.pwrite(fd, b'file', 9000)
assert shared[9000:9004] == b'file'
shared.flush()
",
        &[&mount.at("file")],
    );
    let mount = mount.again(&[]);
    let mut expected = bytes(1, 10_000);
    expected[4090..4094].copy_from_slice(b"ours");
    expected[9000..9004].copy_from_slice(b"file");
    assert!(fs::read(mount.at("file"))? == expected);
    Ok(())
}

#[test]
fn lines_appended_by_several_processes_are_all_there() -> Outcome {
    let mount = Mount::new();
    fs::write(mount.at("log"), "")?;
    python(
        r"
children = []
for who in range(4):
    pid = os.fork()
    if pid == 0:
        fd = os.open(argv[0], os.O_WRONLY | os.O_APPEND)
        for i in range(500):
            os.write(fd, b'%d %d %s\n' % (who, i, b'x' * (i % 90)))
        os._exit(0)
    children.append(pid)
for pid in children:
    assert os.waitpid(pid, 0)[1] == 0
",
        &[&mount.at("log")],
    );
    let mount = mount.again(&[]);
    let text = fs::read_to_string(mount.at("log"))?;
    let mut seen: Vec<&str> = text.lines().collect();
    assert_eq!(seen.len(), 2000);
    seen.sort_unstable();
    seen.dedup();
    assert_eq!(seen.len(), 2000);
    Ok(())
}

#[test]
fn a_handle_that_only_writes_can_change_parts_of_chunks() -> Outcome {
    let mount = Mount::new();
    fs::write(mount.at("file"), vec![b'a'; 100_000])?;
    let mount = mount.again(&[]);
    let file = OpenOptions::new().write(true).open(mount.at("file"))?;
    file.write_all_at(b"bbb", 50_000)?;
    assert_eq!(number(file.read_at(&mut [0], 0)), libc::EBADF);
    let mut log = OpenOptions::new().append(true).open(mount.at("file"))?;
    log.write_all(b"end")?;
    drop((file, log));
    let mut expected = vec![b'a'; 100_000];
    expected[50_000..50_003].fill(b'b');
    expected.extend(b"end");
    assert!(fs::read(mount.at("file"))? == expected);
    Ok(())
}

#[test]
fn truncating_by_path_or_handle_is_seen_by_everybody_who_has_the_file_open() -> Outcome {
    let mount = Mount::new();
    fs::write(mount.at("file"), bytes(2, 100_000))?;
    let reader = fs::File::open(mount.at("file"))?;
    let writer = OpenOptions::new().write(true).open(mount.at("file"))?;
    let mut expected = bytes(2, 100_000);
    for len in [70_001, 65_536, 4_097, 90_000, 4_096, 1, 0, 8_193] {
        if len % 2 == 0 {
            writer.set_len(len)?;
        } else {
            python("os.truncate(argv[0], int(argv[1]))", &[&mount.at("file"), &len.to_string()]);
        }
        expected.resize(len as usize, 0);
        assert_eq!(reader.metadata()?.len(), len);
        assert!(content(&reader) == expected, "{len}");
    }
    let _truncated = OpenOptions::new().write(true).truncate(true).open(mount.at("file"))?;
    assert_eq!(reader.metadata()?.len(), 0);
    writer.write_all_at(b"x", 5)?;
    assert_eq!(content(&reader), b"\0\0\0\0\0x");
    Ok(())
}

#[test]
fn holes_are_found_right_after_writing_beside_them() -> Outcome {
    const M: u64 = 1 << 20;
    let mount = Mount::new();
    let file = create(mount.at("sparse"));
    file.set_len(16 * M)?;
    file.write_all_at(&[1; 4096], M)?;
    file.write_all_at(&[1; 4096], 8 * M)?;
    for _synced in [false, true] {
        assert_eq!(seek(&file, SeekFrom::Hole(0))?, 0);
        let data = seek(&file, SeekFrom::Data(0))?;
        assert!(data > 0 && data <= M, "{data}");
        let hole = seek(&file, SeekFrom::Hole(data))?;
        assert!((M + 4096..8 * M).contains(&hole), "{hole}");
        let data = seek(&file, SeekFrom::Data(hole))?;
        assert!(data > hole && data <= 8 * M, "{data}");
        assert!(seek(&file, SeekFrom::Hole(data))? < 16 * M);
        assert_eq!(seek(&file, SeekFrom::Data(15 * M)), Err(Errno::NXIO));
        assert_eq!(seek(&file, SeekFrom::Data(16 * M)), Err(Errno::NXIO));
        assert_eq!(seek(&file, SeekFrom::Hole(15 * M))?, 15 * M);
        assert!(file.metadata()?.blocks() * 512 < M);
        file.sync_all()?;
    }
    Ok(())
}

#[test]
fn a_direct_write_that_nobody_waits_for_leaves_no_old_pages() -> Outcome {
    let mount = Mount::new();
    fs::write(mount.at("file"), vec![0; 1 << 20])?;
    // A reader keeps bringing pages into the cache, while writes go past it one after the other.
    python(
        r"
import platform, threading
setup, submit, getevents = {'x86_64': (206, 209, 208), 'aarch64': (0, 2, 4)}[platform.machine()]
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
def call(number, *arguments):
    result = libc.syscall(ctypes.c_long(number), *arguments)
    assert result >= 0, os.strerror(ctypes.get_errno())
    return result
class Iocb(ctypes.Structure):
    _fields_ = [('data', ctypes.c_uint64), ('key', ctypes.c_uint32), ('rw', ctypes.c_uint32), ('op', ctypes.c_uint16),
                ('prio', ctypes.c_int16), ('fd', ctypes.c_uint32), ('buf', ctypes.c_uint64), ('len', ctypes.c_uint64),
                ('off', ctypes.c_int64), ('more', ctypes.c_uint64), ('flags', ctypes.c_uint32), ('res', ctypes.c_uint32)]
LEN = 1 << 20
context = ctypes.c_ulong(0)
call(setup, ctypes.c_uint(8), ctypes.byref(context))
direct = os.open(argv[0], os.O_RDWR | os.O_DIRECT)
buffered = os.open(argv[0], os.O_RDONLY)
done = False
def read():
    while not done:
        os.pread(buffered, LEN, 0)
readers = [threading.Thread(target=read) for _ in range(2)]
for reader in readers:
    reader.start()
memory = mmap.mmap(-1, LEN)
try:
    for number in range(1, 151):
        memory[:] = bytes([number]) * LEN
        at = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        block = Iocb(op=1, fd=direct, buf=at, len=LEN, off=0)
        blocks = (ctypes.c_void_p * 1)(ctypes.addressof(block))
        call(submit, context, ctypes.c_long(1), blocks)
        event = (ctypes.c_int64 * 4)()
        assert call(getevents, context, ctypes.c_long(1), ctypes.c_long(1), event, None) == 1
        assert event[2] == LEN, event[2]
        seen = os.pread(buffered, LEN, 0)
        assert seen == bytes([number]) * LEN, (number, set(seen))
finally:
    done = True
for reader in readers:
    reader.join()
",
        &[&mount.at("file")],
    );
    Ok(())
}

#[test]
fn the_space_of_a_file_that_stays_open_is_told_without_syncing_it() -> Outcome {
    let mount = Mount::new();
    let file = create(mount.at("file"));
    file.write_all_at(&bytes(5, 1 << 20), 0)?;
    // The kernel hands over what it held back. Of the filesystem, not of the file.
    rustix::fs::syncfs(fs::File::open(mount.at(""))?)?;
    until("the space is told", || file.metadata().expect("attributes").blocks() * 512 >= 1 << 20);
    file.set_len(100_000)?;
    assert!(file.metadata()?.blocks() * 512 < 150_000, "{}", file.metadata()?.blocks());
    Ok(())
}

#[test]
fn space_is_reserved_punched_and_zeroed() -> Outcome {
    let mount = Mount::new();
    let file = create(mount.at("file"));
    let mut expected = bytes(3, 200_000);
    file.write_all_at(&expected, 0)?;
    let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    fallocate(&file, punch, 10_000, 100_000)?;
    expected[10_000..110_000].fill(0);
    assert!(content(&file) == expected, "punched");
    fallocate(&file, FallocateFlags::ZERO_RANGE, 150_001, 99_999)?;
    expected[150_001..].fill(0);
    expected.resize(250_000, 0);
    assert!(content(&file) == expected, "zeroed");
    fallocate(&file, FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE, 249_000, 10_000)?;
    fallocate(&file, FallocateFlags::KEEP_SIZE, 0, 1 << 20)?;
    assert!(content(&file) == expected, "reserved behind the end");
    assert!(file.metadata()?.blocks() * 512 >= 1 << 20);
    fallocate(&file, FallocateFlags::empty(), 240_000, 20_000)?;
    expected.resize(260_000, 0);
    assert!(content(&file) == expected, "extended");
    for other in [FallocateFlags::COLLAPSE_RANGE, FallocateFlags::INSERT_RANGE, FallocateFlags::UNSHARE_RANGE] {
        assert_eq!(fallocate(&file, other, 4096, 4096), Err(Errno::OPNOTSUPP));
    }
    drop(file);
    let mount = mount.again(&[]);
    assert!(fs::read(mount.at("file"))? == expected, "mounted again");
    Ok(())
}

#[test]
fn a_copied_range_has_what_was_just_written() -> Outcome {
    let mount = Mount::new();
    let (from, to) = (create(mount.at("from")), create(mount.at("to")));
    from.write_all_at(&bytes(4, 300_000), 0)?;
    let (mut at, mut end) = (100, 0);
    while end < 250_000 {
        end += rustix::fs::copy_file_range(&from, Some(&mut at), &to, None, 250_000 - end as usize)? as u64;
    }
    assert!(content(&to) == bytes(4, 300_000)[100..250_100]);
    Ok(())
}

#[test]
fn direct_and_synchronous_writes_mix_with_cached_ones() -> Outcome {
    let mount = Mount::new();
    python(
        r"
fd = os.open(argv[0], os.O_RDWR | os.O_CREAT | os.O_DIRECT)
cached = os.open(argv[0], os.O_RDWR)
block = mmap.mmap(-1, 65536)
block[:] = b'd' * 65536
assert os.pwritev(fd, [block], 4096) == 65536
assert os.pread(cached, 10, 4090) == b'\0' * 6 + b'd' * 4
os.pwrite(cached, b'cached', 5000)
assert os.preadv(fd, [block], 4096) == 65536
assert block[904:910] == b'cached', block[900:912]
",
        &[&mount.at("file")],
    );
    let mut file = OpenOptions::new().write(true).custom_flags(libc::O_SYNC).open(mount.at("file"))?;
    file.write_all(b"sync")?;
    assert_eq!(fs::read(mount.at("file"))?[..4], *b"sync");
    Ok(())
}

#[test]
fn a_file_cannot_be_longer_than_the_format_allows() -> Outcome {
    let mount = Mount::new();
    let file = create(mount.at("file"));
    assert_eq!(number(file.set_len(i64::MAX as u64)), libc::EFBIG);
    file.set_len(1 << 40)?;
    file.write_all_at(b"far", (1 << 40) - 3)?;
    file.sync_all()?;
    let mut end = [0; 6];
    file.read_exact_at(&mut end, (1 << 40) - 6)?;
    assert_eq!(&end, b"\0\0\0far");
    Ok(())
}
