//! The mount's process dies at once.

use crate::harness::{Mount, Outcome, Volume, bytes, number, until};
use std::fs;

fn kill(mount: &Mount) {
    let holder = fs::read_to_string(mount.volume().path().join("lock")).expect("a holder");
    let holder: serde_json::Value = serde_json::from_str(&holder).expect("JSON");
    let pid = rustix::process::Pid::from_raw(holder["pid"].as_i64().expect("a pid") as i32).expect("a pid");
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("killed");
    until("the mount is dead", || {
        rustix::fs::statfs(mount.at("")).is_err_and(|error| error == rustix::io::Errno::NOTCONN)
    });
}

#[test]
fn after_a_kill_everything_that_was_closed_is_readable() -> Outcome {
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
        fs::write(mount.at("overwritten"), bytes(round, 200_000))?;
        kill(&mount);
        let volume = mount.into_dead();
        mount = volume.mount(&[]);
        for round in 0..=round {
            for i in 0..200 {
                let content = fs::read(mount.at(format!("round{round}/{i}")))?;
                let expected = bytes(round << 32 | i, (i * 501) as usize);
                assert_eq!(content.len(), expected.len(), "{round} {i}");
                assert!(content == expected, "{round} {i}");
            }
        }
        assert!(fs::read(mount.at("overwritten"))? == bytes(round, 200_000));
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
