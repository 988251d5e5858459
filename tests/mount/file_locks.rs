//! `flock` and byte-range locks between processes.

use crate::harness::{Mount, Outcome, python};
use std::fs;

#[test]
fn locks_of_one_process_keep_others_out_until_it_ends() -> Outcome {
    let mount = Mount::new();
    fs::write(mount.at("file"), "x".repeat(100))?;
    python(
        r"
path = argv[0]
def child(act):
    pid = os.fork()
    if pid == 0:
        try:
            act(os.open(path, os.O_RDWR))
            os._exit(0)
        except BlockingIOError:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
EX = fcntl.LOCK_EX | fcntl.LOCK_NB
SH = fcntl.LOCK_SH | fcntl.LOCK_NB
for lock, ranges in [(fcntl.flock, False), (fcntl.lockf, True)]:
    fd = os.open(path, os.O_RDWR)
    lock(fd, EX)
    assert child(lambda other: lock(other, EX)) == 1
    assert child(lambda other: lock(other, SH)) == 1
    lock(fd, SH)
    assert child(lambda other: lock(other, SH)) == 0
    lock(fd, fcntl.LOCK_UN)
    assert child(lambda other: lock(other, EX)) == 0
    # The child's lock ended with it.
    lock(fd, EX)
    os.close(fd)
fd = os.open(path, os.O_RDWR)
fcntl.lockf(fd, EX, 10, 20)
assert child(lambda other: fcntl.lockf(other, EX, 10, 0)) == 0
assert child(lambda other: fcntl.lockf(other, EX, 10, 25)) == 1
# Waits until the lock is given up.
reads, writes = os.pipe()
pid = os.fork()
if pid == 0:
    other = os.open(path, os.O_RDWR)
    os.write(writes, b'.')
    fcntl.lockf(other, fcntl.LOCK_EX, 10, 25)
    os._exit(0)
os.read(reads, 1)
fcntl.lockf(fd, fcntl.LOCK_UN)
assert os.waitpid(pid, 0)[1] == 0
",
        &[&mount.at("file")],
    );
    Ok(())
}
