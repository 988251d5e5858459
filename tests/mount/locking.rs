//! Locking by the operator's hand, and by whoever owns the key in a vault.

use crate::harness::{Mount, Outcome, bytes, number, until};
use crate::vault::Vault;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::FileExt;
use std::process::{Child, Command, Stdio};

/// A process that has a file open and mapped, and reads it when told to.
struct Reader {
    child: Child,
    answers: BufReader<std::process::ChildStdout>,
}

impl Reader {
    fn new(path: &std::path::Path) -> Self {
        let script = r"
import mmap, os, sys
fd = os.open(sys.argv[1], os.O_RDONLY)
size = os.fstat(fd).st_size
mapped = mmap.mmap(fd, size, prot=mmap.PROT_READ)
assert mapped[:] == os.pread(fd, size, 0)
print('mapped', flush=True)
for line in sys.stdin:
    pid = os.fork()
    if pid == 0:
        # A forked child has the mapping too; SIGBUS ends it alone.
        os._exit(0 if mapped[:] == mapped[:] else 1)
    print(os.waitpid(pid, 0)[1], flush=True)
";
        let mut child = Command::new("python3")
            .args(["-c", script])
            .arg(path)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("python3 runs");
        let answers = BufReader::new(child.stdout.take().expect("its output"));
        let mut reader = Self { child, answers };
        assert_eq!(reader.line(), "mapped");
        reader
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.answers.read_line(&mut line).expect("an answer");
        line.trim().to_owned()
    }

    /// What became of a process that read the mapping: 0, or the number of the signal that ended it.
    fn read_mapping(&mut self) -> i32 {
        writeln!(self.child.stdin.as_mut().expect("its input"), "read").expect("asked");
        self.line().parse::<i32>().expect("a number") & 0x7f
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}

/// Everything that has to fail with one number while the volume is locked, and what has not to.
fn assert_locked(mount: &Mount, held: &fs::File, reader: &mut Reader, expected: i32) {
    let mut buffer = [0; 100];
    assert_eq!(number(held.read_at(&mut buffer, 0)), expected);
    assert_eq!(number(held.read_at(&mut buffer, 100_000)), expected);
    assert_eq!(number(fs::File::open(mount.at("d/file"))), expected);
    assert_eq!(number(fs::File::create(mount.at("d/new"))), expected);
    assert_eq!(number(fs::metadata(mount.at("d/file"))), expected);
    assert_eq!(number(fs::metadata(mount.at("d/nothing"))), expected);
    assert_eq!(number(fs::create_dir(mount.at("d2"))), expected);
    assert_eq!(number(fs::remove_file(mount.at("d/file"))), expected);
    assert_eq!(number(fs::read_link(mount.at("link"))), expected);
    let listed = fs::read_dir(mount.at("")).and_then(|mut entries| entries.next().transpose());
    assert_eq!(number(listed), expected);
    let listed = fs::read_dir(mount.at("d")).and_then(|mut entries| entries.next().transpose());
    assert_eq!(number(listed), expected);
    assert_eq!(
        number(rustix::fs::getxattr(mount.at("d/file"), "user.a", &mut buffer[..]).map_err(Into::into)),
        expected
    );
    assert_eq!(number(held.write_at(b"x", 1)), expected);
    assert_eq!(reader.read_mapping(), libc::SIGBUS);
    rustix::fs::statvfs(mount.at("")).expect("the space is shown");
    fs::metadata(mount.at("")).expect("the mountpoint is there");
}

fn fill(mount: &Mount) -> Outcome<(fs::File, Reader)> {
    fs::create_dir(mount.at("d"))?;
    fs::write(mount.at("d/file"), bytes(1, 500_000))?;
    std::os::unix::fs::symlink("target", mount.at("link"))?;
    rustix::fs::setxattr(mount.at("d/file"), "user.a", b"1", rustix::fs::XattrFlags::empty())?;
    let reader = Reader::new(&mount.at("d/file"));
    let held = fs::OpenOptions::new().read(true).write(true).open(mount.at("d/file"))?;
    // All of it is in the page cache.
    assert!(crate::harness::content(&held) == bytes(1, 500_000));
    assert_eq!(fs::read_dir(mount.at("d"))?.count(), 1);
    Ok((held, reader))
}

#[test]
fn a_volume_that_the_operator_locks_is_unreadable_until_it_is_unlocked() -> Outcome {
    let mount = Mount::new();
    let (held, mut reader) = fill(&mount)?;
    let mountpoint = mount.volume().mountpoint();
    let mountpoint = mountpoint.to_str().expect("UTF-8");
    for round in 0..3_u8 {
        // Not synced: the lock has to store it.
        held.write_all_at(&[round; 10_000], 20_000)?;
        mount.volume().ok(&["lock", mountpoint]);
        assert_eq!(mount.status()["state"], "locked");
        assert_eq!(mount.status()["reason"], "operator");
        assert_locked(&mount, &held, &mut reader, libc::ENOKEY);
        mount.volume().ok(&["unlock", mountpoint]);
        let mut expected = bytes(1, 500_000);
        expected[20_000..30_000].fill(round);
        assert!(crate::harness::content(&held) == expected);
        assert!(fs::read(mount.at("d/file"))? == expected);
        assert_eq!(reader.read_mapping(), 0);
        assert_eq!(fs::read_dir(mount.at("d"))?.count(), 1);
    }
    drop((held, reader));
    let mount = mount.again(&[]);
    assert!(fs::read(mount.at("d/file"))?[20_000..30_000] == [2; 10_000]);
    Ok(())
}

#[test]
fn a_locked_volume_can_be_unmounted_and_nothing_is_lost() -> Outcome {
    let mount = Mount::new();
    fs::write(mount.at("file"), bytes(2, 100_000))?;
    mount.volume().ok(&["lock", mount.volume().mountpoint().to_str().expect("UTF-8")]);
    let mount = mount.again(&[]);
    assert!(fs::read(mount.at("file"))? == bytes(2, 100_000));
    Ok(())
}

#[test]
fn a_disabled_key_makes_everything_unreadable_and_an_enabled_one_readable_again() -> Outcome {
    let vault = Vault::start();
    let mount = vault.volume().mount(&["--revalidate", "1s"]);
    let (held, mut reader) = fill(&mount)?;
    fs::write(mount.at("written-before"), bytes(3, 300_000))?;
    held.write_all_at(&[7; 5000], 0)?;
    vault.run(&["key", "disable", "tenant"]);
    until("the volume is locked", || mount.status()["state"] == "locked");
    assert_eq!(mount.status()["reason"], "revoked");
    assert_locked(&mount, &held, &mut reader, libc::EKEYREVOKED);
    vault.run(&["key", "enable", "tenant"]);
    until("the volume is unlocked", || mount.status()["state"] == "unlocked");
    let mut expected = bytes(1, 500_000);
    expected[..5000].fill(7);
    assert!(crate::harness::content(&held) == expected);
    assert_eq!(reader.read_mapping(), 0);
    assert!(fs::read(mount.at("written-before"))? == bytes(3, 300_000));
    held.write_all_at(b"after", 100)?;
    drop((held, reader));
    let mount = mount.again(&[]);
    assert_eq!(fs::read(mount.at("d/file"))?[100..105], *b"after");
    assert!(fs::read(mount.at("written-before"))? == bytes(3, 300_000));
    Ok(())
}

#[test]
fn a_vault_that_is_away_is_told_apart_from_one_that_refuses() -> Outcome {
    let vault = Vault::start();
    let mount = vault.volume().mount(&["--revalidate", "1s", "--offline-grace", "0s"]);
    let (held, mut reader) = fill(&mount)?;
    vault.run(&["fault", "error"]);
    until("the volume is locked", || mount.status()["state"] == "locked");
    assert_eq!(mount.status()["reason"], "unreachable");
    assert_locked(&mount, &held, &mut reader, libc::EKEYEXPIRED);
    vault.run(&["fault", "none"]);
    until("the volume is unlocked", || mount.status()["state"] == "unlocked");
    assert_eq!(crate::harness::content(&held), bytes(1, 500_000));
    Ok(())
}

#[test]
fn a_mount_fails_by_what_the_vault_says() -> Outcome {
    let vault = Vault::start();
    let volume = vault.volume();
    vault.run(&["key", "disable", "tenant"]);
    volume.mount_fails(&[], 6);
    vault.run(&["key", "enable", "tenant"]);
    vault.run(&["fault", "forbid-role"]);
    volume.mount_fails(&[], 6);
    vault.run(&["fault", "none"]);
    vault.run(&["stop"]);
    volume.mount_fails(&[], 7);
    Ok(())
}
