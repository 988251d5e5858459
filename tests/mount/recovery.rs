//! The mount's process dies at once.

use crate::harness::{Mount, Outcome, Volume, bytes, number, until};
use std::fs;
use std::os::unix::fs::FileExt;

/// Kills the program that serves a mount.
pub fn kill(mount: &Mount) {
    let holder = fs::read_to_string(mount.volume().path().join("lock")).expect("a holder");
    let holder: serde_json::Value = serde_json::from_str(&holder).expect("JSON");
    let pid = rustix::process::Pid::from_raw(holder["pid"].as_i64().expect("a pid") as i32).expect("a pid");
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("killed");
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
