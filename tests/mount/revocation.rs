//! What a revoked key, and a KMS that does not answer, do to those who are at work on a mount.

use crate::harness::{Mount, Outcome, bytes, content, create, number, until};
use crate::vault::Vault;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// The promise: nothing can be read any more so long after `revalidate`.
const BOUND: Duration = Duration::from_secs(5);

fn wait_for(mount: &Mount, state: &str) {
    until(state, || mount.status()["state"] == state);
}

fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970")
}

/// What somebody does again and again.
type Act<'a> = Box<dyn FnMut() -> io::Result<()> + Send + 'a>;

/// Who does it.
struct Worker<'a> {
    name: &'static str,
    act: Act<'a>,
}

impl Worker<'_> {
    /// Works until told to stop; returns when it worked last.
    fn work(mut self, stop: &AtomicBool) -> (&'static str, Option<Duration>) {
        let mut last = None;
        while !stop.load(Ordering::Relaxed) {
            if (self.act)().is_ok() {
                last = Some(now());
            }
        }
        (self.name, last)
    }
}

/// A process that reads a mapping until SIGBUS ends it, and says when it last could.
fn mapping_reader(path: &Path, flags: &str) -> Child {
    let script = format!(
        r"
import mmap, os, sys, time
fd = os.open(sys.argv[1], os.O_RDWR)
mapped = mmap.mmap(fd, os.fstat(fd).st_size, mmap.{flags})
while True:
    mapped[:]
    os.write(1, b'%d\n' % time.time_ns())
"
    );
    let mut command = Command::new("python3");
    command.arg("-c").arg(script).arg(path).stdout(Stdio::piped()).spawn().expect("python3 runs")
}

/// Everything that reads, each on a thread of its own, while the key is disabled.
#[test]
fn under_load_nothing_is_read_any_more_within_revalidate_and_five_seconds() -> Outcome {
    let vault = Vault::start();
    // Each file needs the KMS by itself, so that there are always calls under way.
    let mount = vault.volume_with(&["--files-per-envelope", "1"]).mount(&[]);
    fs::create_dir(mount.at("cold"))?;
    for number in 0..300 {
        fs::write(mount.at(format!("cold/{number}")), bytes(number, 5000))?;
    }
    fs::write(mount.at("file"), bytes(1, 4 << 20))?;
    std::os::unix::fs::symlink("target", mount.at("link"))?;
    rustix::fs::setxattr(mount.at("file"), "user.a", b"1", rustix::fs::XattrFlags::empty())?;
    let revalidate = Duration::from_secs(2);
    let mount = mount.again(&["--kms-rate", "50", "--revalidate", "2s"]);

    let held: Vec<File> = (0..50).map(|_| File::open(mount.at("file"))).collect::<Result<_, _>>()?;
    let direct = OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(mount.at("file"))?;
    let written = create(mount.at("written"));
    let mut turn = 0;
    let (mut next_cold, mut aligned) = (0, vec![0; 16 * 4096]);
    let workers: Vec<Worker<'_>> = [
        (
            "a page of one of many handles",
            Box::new(|| {
                turn += 1;
                held[turn % held.len()].read_exact_at(&mut [0; 4096], (turn as u64 * 4096) % (4 << 20))
            }) as Act<'_>,
        ),
        (
            "pages that have to be read again",
            Box::new(|| {
                rustix::fs::fadvise(&held[0], 0, None, rustix::fs::Advice::DontNeed)?;
                held[0].read_exact_at(&mut vec![0; 1 << 20], 0)
            }),
        ),
        (
            "O_DIRECT",
            Box::new(|| {
                let begin = aligned.as_ptr().align_offset(4096);
                direct.read_exact_at(&mut aligned[begin..][..8 * 4096], 4096)
            }),
        ),
        ("open and read", Box::new(|| File::open(mount.at("file"))?.read_exact(&mut [0; 100]))),
        (
            "files whose keys are not in memory",
            Box::new(|| {
                next_cold += 1;
                fs::read(mount.at(format!("cold/{}", next_cold % 300))).map(drop)
            }),
        ),
        ("attributes", Box::new(|| fs::metadata(mount.at("cold/7")).map(drop))),
        ("names", Box::new(|| fs::read_dir(mount.at("cold"))?.try_for_each(|entry| entry.map(drop)))),
        ("a link", Box::new(|| fs::read_link(mount.at("link")).map(drop))),
        (
            "an attribute",
            Box::new(|| {
                rustix::fs::getxattr(mount.at("file"), "user.a", &mut [0; 9][..]).map(|_| ()).map_err(Into::into)
            }),
        ),
        ("what was just written", Box::new(|| written.write_all_at(&[1; 9999], 0).and_then(|()| written.sync_all()))),
    ]
    .into_iter()
    .map(|(name, act)| Worker { name, act })
    .collect();

    let mut mappings = ["MAP_SHARED", "MAP_PRIVATE"].map(|flags| mapping_reader(&mount.at("file"), flags));
    // They must not wait for somebody to read what they say.
    let outputs = mappings.each_mut().map(|reader| {
        let mut lines = BufReader::new(reader.stdout.take().expect("its output")).lines();
        lines.next().expect("it can read").expect("a line");
        lines
    });
    let stop = AtomicBool::new(false);
    let (refused, locked, lasts, ends) = std::thread::scope(|scope| {
        let ends =
            outputs.map(|output| scope.spawn(move || output.map_while(Result::ok).last().expect("it could read")));
        let working: Vec<_> = workers.into_iter().map(|worker| scope.spawn(|| worker.work(&stop))).collect();
        let unwraps = || vault.calls("unwrapkey");
        let before = unwraps();
        until("files are opened", || unwraps() > before + 20);
        vault.run(&["key", "disable", "tenant"]);
        let refused = now();
        wait_for(&mount, "locked");
        let locked = now();
        // Whoever could still do something would be seen to.
        until("the bound has passed", || now() > refused + revalidate + BOUND);
        stop.store(true, Ordering::Relaxed);
        let lasts: Vec<_> = working.into_iter().map(|thread| thread.join().expect("no panic")).collect();
        (refused, locked, lasts, ends.map(|end| end.join().expect("no panic")))
    });
    println!("locked {:.2} s after the refusal", (locked - refused).as_secs_f64());
    let ends = ends.map(|line| Some(Duration::from_nanos(line.parse().expect("a time"))));
    for (name, last) in lasts.into_iter().chain(["a shared mapping", "a private mapping"].into_iter().zip(ends)) {
        let last = last.unwrap_or_else(|| panic!("{name}: never worked"));
        println!("{name}: the last time {:.2} s after the refusal", last.as_secs_f64() - refused.as_secs_f64());
        assert!(last < refused + revalidate + BOUND, "{name}");
    }
    for mapping in &mut mappings {
        use std::os::unix::process::ExitStatusExt;
        assert_eq!(mapping.wait()?.signal(), Some(libc::SIGBUS));
    }
    vault.run(&["key", "enable", "tenant"]);
    wait_for(&mount, "unlocked");
    assert!(content(&held[7]) == bytes(1, 4 << 20));
    assert!(fs::read(mount.at("cold/299"))? == bytes(299, 5000));
    Ok(())
}

/// One file to which records are appended, and what was promised of it.
struct Log {
    file: File,
    written: u64,
    synced: AtomicU64,
}

const RECORD: usize = 1000;

impl Log {
    fn record(number: u64) -> Vec<u8> {
        bytes(number, RECORD)
    }

    /// Appends and syncs until something fails; then the records that were not acknowledged may be lost.
    fn fill(&mut self) -> io::Result<()> {
        loop {
            self.file.write_all_at(&Self::record(self.written), self.written * RECORD as u64)?;
            self.written += 1;
            if self.written.is_multiple_of(3) {
                self.file.sync_data()?;
                self.synced.store(self.written, Ordering::Release);
            }
        }
    }

    fn check(&self, path: &Path) {
        let stored = fs::read(path).expect("readable");
        let synced = self.synced.load(Ordering::Acquire);
        assert!(stored.len() as u64 >= synced * RECORD as u64, "{path:?}: {} of {synced} records", stored.len());
        for number in 0..synced {
            let begin = number as usize * RECORD;
            assert!(stored[begin..begin + RECORD] == Self::record(number), "{path:?}: record {number} of {synced}");
        }
    }
}

#[test]
fn what_was_acknowledged_before_a_revocation_is_there_after_it_and_what_was_lost_is_reported() -> Outcome {
    let vault = Vault::start();
    let mount = vault.volume().mount(&["--revalidate", "1s"]);
    let mut logs: Vec<_> = (0..4)
        .map(|index| Log { file: create(mount.at(format!("log-{index}"))), written: 0, synced: AtomicU64::new(0) })
        .collect();
    for round in 1..=3_u64 {
        std::thread::scope(|scope| {
            let filling: Vec<_> = logs.iter_mut().map(|log| scope.spawn(|| log.fill())).collect();
            // At another moment each time.
            let unwraps = vault.calls("unwrapkey");
            until("the lease was renewed", || vault.calls("unwrapkey") >= unwraps + round % 2);
            vault.run(&["key", "disable", "tenant"]);
            for thread in filling {
                // Every writer is told, by its write or its sync.
                let error = thread.join().expect("no panic").expect_err("it fails in the end");
                assert_eq!(error.raw_os_error(), Some(libc::EKEYREVOKED), "{error}");
            }
        });
        wait_for(&mount, "locked");
        vault.run(&["key", "enable", "tenant"]);
        wait_for(&mount, "unlocked");
        for (index, log) in logs.iter_mut().enumerate() {
            log.check(&mount.at(format!("log-{index}")));
            assert!(log.synced.load(Ordering::Acquire) > 0);
            log.written = log.synced.load(Ordering::Acquire);
        }
    }
    let paths: Vec<_> = (0..4).map(|index| format!("log-{index}")).collect();
    let logs: Vec<_> =
        logs.into_iter().map(|log| Log { file: File::open("/dev/null").expect("null"), ..log }).collect();
    let mount = mount.again(&[]);
    for (path, log) in paths.iter().zip(&logs) {
        log.check(&mount.at(path));
    }
    Ok(())
}

#[test]
fn a_key_that_is_revoked_for_changes_only_can_still_be_read_with() -> Outcome {
    let vault = Vault::start();
    let mount = vault.volume().mount(&["--revalidate", "1s", "--on-revoked", "read-only"]);
    fs::write(mount.at("file"), bytes(1, 100_000))?;
    let held = OpenOptions::new().read(true).write(true).open(mount.at("file"))?;
    held.write_all_at(b"before", 50)?;
    vault.run(&["key", "disable", "tenant"]);
    wait_for(&mount, "read-only");
    assert_eq!(mount.status()["reason"], "revoked");
    assert_eq!(fs::read(mount.at("file"))?[50..56], *b"before");
    assert_eq!(number(File::create(mount.at("new"))), libc::EKEYREVOKED);
    assert_eq!(number(fs::create_dir(mount.at("new"))), libc::EKEYREVOKED);
    assert_eq!(number(fs::remove_file(mount.at("file"))), libc::EKEYREVOKED);
    assert_eq!(number(fs::rename(mount.at("file"), mount.at("other"))), libc::EKEYREVOKED);
    let written = held.write_all_at(b"after", 60).and_then(|()| held.sync_all());
    assert_eq!(number(written), libc::EKEYREVOKED);
    vault.run(&["key", "enable", "tenant"]);
    wait_for(&mount, "unlocked");
    held.write_all_at(b"again", 70)?;
    held.sync_all()?;
    drop(held);
    let mount = mount.again(&[]);
    let stored = fs::read(mount.at("file"))?;
    assert_eq!((&stored[50..56], &stored[70..75]), (&b"before"[..], &b"again"[..]));
    Ok(())
}

#[test]
fn a_key_that_is_revoked_for_new_files_only_lets_open_ones_go_on() -> Outcome {
    let vault = Vault::start();
    let mount = vault.volume().mount(&["--revalidate", "1s", "--on-revoked", "prevent-new"]);
    fs::write(mount.at("other"), b"other")?;
    let held = create(mount.at("held"));
    vault.run(&["key", "disable", "tenant"]);
    wait_for(&mount, "prevent-new");
    held.write_all_at(b"goes on", 0)?;
    held.sync_all()?;
    assert_eq!(content(&held), b"goes on");
    assert_eq!(number(File::open(mount.at("other"))), libc::EKEYREVOKED);
    assert_eq!(number(File::create(mount.at("new"))), libc::EKEYREVOKED);
    assert_eq!(fs::read_dir(mount.at(""))?.count(), 2);
    // Whoever wants more says so by hand.
    mount.volume().ok(&["lock", mount.volume().mountpoint().to_str().expect("UTF-8")]);
    assert_eq!(number(held.read_at(&mut [0; 7], 0)), libc::ENOKEY);
    vault.run(&["key", "enable", "tenant"]);
    mount.volume().ok(&["unlock", mount.volume().mountpoint().to_str().expect("UTF-8")]);
    assert_eq!(fs::read(mount.at("other"))?, b"other");
    Ok(())
}

#[test]
fn a_mount_waits_for_its_key_if_told_to() -> Outcome {
    let vault = Vault::start();
    let volume = vault.volume();
    vault.run(&["key", "disable", "tenant"]);
    let arguments = volume.mount_arguments(&["--wait=100ms"]);
    let ended = volume.run(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
    assert!(ended.code == 6 && ended.stderr.contains("error: "), "{ended:?}");
    let arguments = volume.mount_arguments(&["--wait"]);
    let mut command = volume.command(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
    let mut waiting = command.stderr(Stdio::piped()).spawn()?;
    let mut line = String::new();
    let mut errors = BufReader::new(waiting.stderr.take().ok_or("its errors")?);
    errors.read_line(&mut line)?;
    assert!(line.starts_with("waiting for the key: "), "{line}");
    assert!(waiting.try_wait()?.is_none(), "it waits");
    vault.run(&["key", "enable", "tenant"]);
    let status = waiting.wait()?;
    errors.read_to_string(&mut line)?;
    assert!(status.success(), "{line}");
    fs::write(volume.mountpoint().join("file"), b"mounted")?;
    Ok(())
}

#[test]
fn a_vault_is_asked_once_for_each_envelope_and_never_to_create() -> Outcome {
    const FILES: u64 = 10_000;
    const PER_ENVELOPE: u64 = 1000;
    let vault = Vault::start();
    let seldom = ["--revalidate", "1h"];
    let mount = vault.volume_with(&["--files-per-envelope", &PER_ENVELOPE.to_string()]).mount(&seldom);
    let before = vault.calls("unwrapkey");
    for number in 0..FILES {
        fs::write(mount.at(number.to_string()), number.to_string())?;
    }
    assert_eq!(vault.calls("unwrapkey"), before, "creating asks for nothing");
    let mount = mount.again(&seldom);
    let mounted = vault.calls("unwrapkey");
    assert_eq!(mounted - before, 1, "mounting asks for the volume key");
    for number in 0..FILES {
        assert_eq!(fs::read_to_string(mount.at(number.to_string()))?, number.to_string());
    }
    let envelopes = FILES / PER_ENVELOPE;
    let scanned = vault.calls("unwrapkey") - mounted;
    // The first envelope may have been begun by the mount that made the volume.
    assert!((envelopes..=envelopes + 1).contains(&scanned), "{scanned} for {envelopes} envelopes");
    assert_eq!(mount.status()["kms"]["calls"], scanned);
    let mount = mount.again(&seldom);
    let mounted = vault.calls("unwrapkey");
    std::thread::scope(|scope| {
        let mount = &mount;
        let readers: Vec<_> =
            (0..100).map(|number| scope.spawn(move || fs::read(mount.at((number + 100).to_string())))).collect();
        for reader in readers {
            reader.join().expect("no panic").expect("it is read");
        }
    });
    assert_eq!(vault.calls("unwrapkey") - mounted, 1, "a hundred readers at once ask once");
    Ok(())
}

#[test]
fn a_vault_that_hangs_holds_up_only_those_who_need_it() -> Outcome {
    let vault = Vault::start();
    let mount = vault.volume_with(&["--files-per-envelope", "1"]).mount(&[]);
    fs::write(mount.at("leased"), bytes(1, 300_000))?;
    fs::write(mount.at("cold"), bytes(2, 300_000))?;
    let mount = mount.again(&["--revalidate", "1s"]);
    let leased = File::open(mount.at("leased"))?;
    vault.run(&["fault", "hang"]);
    let began = AtomicBool::new(false);
    std::thread::scope(|scope| -> Outcome {
        let cold = scope.spawn(|| {
            began.store(true, Ordering::Release);
            fs::read(mount.at("cold"))
        });
        until("the cold read began", || began.load(Ordering::Acquire));
        let mut read = 0;
        // All of them while that one waits.
        while !cold.is_finished() {
            rustix::fs::fadvise(&leased, 0, None, rustix::fs::Advice::DontNeed)?;
            assert!(content(&leased) == bytes(1, 300_000));
            read += 1;
        }
        let error = cold.join().expect("no panic").expect_err("the vault hangs");
        assert_eq!(error.raw_os_error(), Some(libc::EKEYEXPIRED));
        assert!(read > 10, "{read} reads");
        Ok(())
    })?;
    assert_eq!(mount.status()["state"], "unlocked");
    vault.run(&["fault", "none"]);
    let begin = Instant::now();
    until("the vault is asked again", || fs::read(mount.at("cold")).is_ok());
    println!("served again after {:?}", begin.elapsed());
    Ok(())
}
