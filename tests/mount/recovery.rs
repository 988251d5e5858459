//! The mount's process dies at once.

use crate::harness::{Mount, Outcome, Volume, bytes, number, until};
use std::fs;
use std::os::unix::fs::FileExt;

/// Kills the program that serves a mount.
pub fn kill(mount: &Mount) {
    let holder = fs::read_to_string(mount.volume().path().join("lock")).expect("a holder");
    let holder: serde_json::Value = serde_json::from_str(&holder).expect("JSON");
    let pid = rustix::process::Pid::from_raw(holder["pid"].as_i64().expect("a pid") as i32).expect("a pid");
    let process = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).expect("the process");
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("killed");
    // The kernel ends the connection before it lets go of the lock on the volume.
    let mut ends = [rustix::event::PollFd::new(&process, rustix::event::PollFlags::IN)];
    rustix::event::poll(&mut ends, None).expect("the process ends");
    until("the mount is dead", || {
        rustix::fs::statfs(mount.at("")).is_err_and(|error| error == rustix::io::Errno::NOTCONN)
    });
}

#[test]
fn after_a_kill_what_was_synced_is_there_and_everything_is_readable() -> Outcome {
    let mut mount = Mount::new();
    for round in 0..3_u64 {
        let directory = mount.at(format!("round{round}"));
        fs::create_dir(&directory)?;
        for i in 0..200 {
            let file = fs::File::create(directory.join(i.to_string()))?;
            std::io::Write::write_all(&mut &file, &bytes(round << 32 | i, (i * 501) as usize))?;
            if i % 20 == 0 {
                file.sync_all()?;
            }
        }
        let synced = fs::OpenOptions::new().write(true).create(true).truncate(false).open(mount.at("synced"))?;
        synced.write_all_at(&bytes(round, 200_000), 0)?;
        synced.sync_data()?;
        fs::write(mount.at("overwritten"), bytes(round, 200_000))?;
        drop(synced);
        kill(&mount);
        mount = mount.into_dead().mount(&[]);
        for (before, i) in (0..=round).flat_map(|round| (0..200).map(move |i| (round, i))) {
            let content = fs::read(mount.at(format!("round{before}/{i}")))?;
            let expected = bytes(before << 32 | i, (i * 501) as usize);
            // One that was not synced may have been caught before all of it was written.
            assert!(expected.starts_with(&content), "{before} {i}");
            assert!(i % 20 != 0 || content.len() == expected.len(), "{before} {i}");
        }
        assert!(fs::read(mount.at("synced"))? == bytes(round, 200_000));
        let content = fs::read(mount.at("overwritten"))?;
        assert!((0..=round).any(|round| bytes(round, 200_000).starts_with(&content)));
    }
    Ok(())
}

#[test]
fn a_dead_mount_is_replaced_by_the_next_one() -> Outcome {
    let mount = Mount::new();
    fs::write(mount.at("file"), "x")?;
    kill(&mount);
    assert_eq!(number(fs::read(mount.at("file"))), libc::ENOTCONN);
    let volume: Volume = mount.into_dead();
    let mount = volume.mount(&[]);
    assert_eq!(fs::read(mount.at("file"))?, b"x");
    Ok(())
}

#[test]
fn a_damaged_middle_of_the_journal_is_told_in_the_log_the_audit_log_and_by_a_check() -> Outcome {
    for check in [false, true] {
        let mount = Mount::new();
        let file = fs::File::create(mount.at("file"))?;
        file.write_all_at(&bytes(1, 100_000), 0)?;
        file.sync_all()?;
        for round in 0..5 {
            file.write_all_at(&bytes(round, 4096), round * 8192)?;
            file.sync_data()?;
        }
        kill(&mount);
        drop(file);
        let volume = mount.into_dead();
        let begins = |log: &&str| {
            let log = fs::File::open(volume.path().join("journal").join(log)).expect("a log");
            let mut bytes = [0; 4];
            log.read_exact_at(&mut bytes, 4096).is_ok() && bytes == *b"kJr1"
        };
        let logs: Vec<_> = ["log-a", "log-b"].into_iter().filter(begins).collect();
        let [log] = logs[..] else { panic!("one log is in use: {logs:?}") };
        let log = fs::OpenOptions::new().read(true).write(true).open(volume.path().join("journal").join(log))?;
        let mut byte = [0];
        log.read_exact_at(&mut byte, 4096 + 100)?;
        log.write_all_at(&[byte[0] ^ 1], 4096 + 100)?;
        let path = volume.path().to_str().expect("UTF-8").to_owned();
        if check {
            let ended = volume.run(&["fsck", "--recover", "--json", &path]);
            let report: serde_json::Value = serde_json::from_str(&ended.stdout)?;
            assert_eq!((ended.code, &report["findings"][0]["kind"]), (14, &"journal".into()), "{report:#}");
            continue;
        }
        let mount = volume.mount(&[]);
        assert!(mount.volume().log().contains("the journal is damaged at 4096"), "{}", mount.volume().log());
        let shown = mount.volume().ok(&["audit", "show", "--json", &path]);
        let recovery = shown.lines().find(|line| line.contains(r#""event":"recovery""#)).expect("a recovery");
        let recovery: serde_json::Value = serde_json::from_str(recovery)?;
        assert_eq!(recovery["damaged_at"], serde_json::json!(["4096"]), "{recovery}");
    }
    Ok(())
}
