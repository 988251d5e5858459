//! What has lost its last name while somebody still has it open.

use crate::harness::{Mount, Outcome, bytes, content, create, python, until};
use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};

#[test]
fn an_unlinked_file_works_until_it_is_closed() -> Outcome {
    let mount = Mount::new();
    let file = create(mount.at("file"));
    file.write_all_at(&bytes(1, 100_000), 0)?;
    fs::remove_file(mount.at("file"))?;
    fs::write(mount.at("file"), "another one")?;
    file.write_all_at(b"late", 99_998)?;
    file.sync_all()?;
    file.set_len(100_001)?;
    file.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
    let attributes = file.metadata()?;
    assert_eq!((attributes.nlink(), attributes.len(), attributes.mode() & 0o7777), (0, 100_001, 0o600));
    let mut expected = bytes(1, 99_998);
    expected.extend(b"lat");
    assert!(content(&file) == expected);
    assert_eq!(fs::read(mount.at("file"))?, b"another one");
    Ok(())
}

/// How many files the process of a mount holds open that have no name any more.
fn nameless(mount: &Mount) -> usize {
    let descriptors = fs::read_dir(format!("/proc/{}/fd", mount.status()["pid"])).expect("the process is there");
    let targets = descriptors.filter_map(|descriptor| fs::read_link(descriptor.ok()?.path()).ok());
    targets.filter(|target| target.to_string_lossy().ends_with(" (deleted)")).count()
}

#[test]
fn removed_files_take_no_space_for_long_whatever_had_become_of_them() -> Outcome {
    let mount = Mount::new();
    let before = nameless(&mount);
    for (name, syncs, overwrites) in [("fresh", false, false), ("synced", true, false), ("journaled", true, true)] {
        let file = create(mount.at(name));
        file.write_all_at(&bytes(1, 100_000), 0)?;
        if syncs {
            file.sync_all()?;
        }
        if overwrites {
            file.write_all_at(b"once more", 5000)?;
            file.sync_all()?;
        }
        fs::remove_file(mount.at(name))?;
        drop(file);
        until(name, || nameless(&mount) == before);
    }
    Ok(())
}

#[test]
fn a_replaced_file_works_until_it_is_closed() -> Outcome {
    let mount = Mount::new();
    let old = create(mount.at("old"));
    old.write_all_at(&bytes(2, 10_000), 0)?;
    fs::write(mount.at("new"), "new")?;
    fs::rename(mount.at("new"), mount.at("old"))?;
    assert_eq!(old.metadata()?.nlink(), 0);
    assert!(content(&old) == bytes(2, 10_000));
    assert_eq!(fs::read(mount.at("old"))?, b"new");
    Ok(())
}

#[test]
fn what_was_removed_still_has_attributes_for_whoever_holds_it() -> Outcome {
    let mount = Mount::new();
    python(
        r"
os.chdir(argv[0])
os.mkdir('directory')
open('file', 'w').close()
os.mkfifo('fifo')
os.symlink('target', 'link')
names = ['directory', 'file', 'fifo', 'link']
held = [os.open(name, os.O_PATH | os.O_NOFOLLOW) for name in names]
inside = os.open('directory', os.O_RDONLY)
pipe = os.open('fifo', os.O_RDWR)
before = [os.fstat(fd) for fd in held]
for name in names:
    os.rmdir(name) if name == 'directory' else os.unlink(name)
for fd, was in zip(held + [inside, pipe], before + [before[0], before[2]]):
    now = os.fstat(fd)
    assert now.st_nlink == 0, now
    assert (now.st_ino, now.st_mode, now.st_size) == (was.st_ino, was.st_mode, was.st_size) or stat.S_ISDIR(now.st_mode)
assert os.listdir(inside) == []
os.fchmod(pipe, 0o640)
assert os.fstat(pipe).st_mode & 0o777 == 0o640
os.write(pipe, b'through')
assert os.read(pipe, 100) == b'through'
os.mkdir('here'); os.chdir('here'); os.rmdir('../here')
assert os.stat('.').st_nlink == 0
for gone in [lambda: open('x', 'w'), lambda: os.stat('x'), lambda: os.mkdir('y')]:
    try:
        gone()
        assert False
    except FileNotFoundError:
        pass
",
        &[&mount.at("")],
    );
    Ok(())
}

#[test]
fn what_was_removed_can_be_opened_again_by_whoever_holds_it() -> Outcome {
    let mount = Mount::new();
    fs::write(mount.at("committed"), bytes(1, 50_000))?;
    let mount = mount.again(&[]);
    python(
        r"
os.chdir(argv[0])
for name in ['committed', 'new']:
    fd = os.open(name, os.O_RDWR | os.O_CREAT)
    size = os.fstat(fd).st_size
    os.pwrite(fd, b'more' * 5000, size)
    os.pwrite(fd, b'over', 10)
    expected = os.pread(fd, 100000, 0)
    held = os.open(name, os.O_PATH)
    os.close(fd)
    os.unlink(name)
    for _ in range(2):
        again = os.open('/proc/self/fd/%d' % held, os.O_RDWR)
        assert os.pread(again, 100000, 0) == expected
        os.fsync(again)
        os.close(again)
",
        &[&mount.at("")],
    );
    assert_eq!(mount.status()["damaged"], 0);
    Ok(())
}

#[test]
fn the_space_of_a_removed_file_is_free_at_once() -> Outcome {
    let mount = Mount::new();
    let stored = || -> Outcome<usize> { Ok(fs::read_dir(mount.volume().path().join("tree"))?.count()) };
    let before = stored()?;
    fs::write(mount.at("file"), bytes(3, 1 << 20))?;
    assert_eq!(stored()?, before + 1);
    fs::remove_file(mount.at("file"))?;
    assert_eq!(stored()?, before);
    Ok(())
}

#[test]
fn there_is_no_file_without_a_name_from_the_start() {
    let mount = Mount::new();
    let flags = rustix::fs::OFlags::TMPFILE | rustix::fs::OFlags::RDWR;
    let answer = rustix::fs::open(mount.at(""), flags, rustix::fs::Mode::RUSR);
    assert_eq!(answer.unwrap_err(), rustix::io::Errno::OPNOTSUPP);
}
