//! Mounts that nobody uses: they lock, or go, and come back for whoever uses them.

use crate::harness::{Mount, Outcome, Volume, number, until};
use kmsfs::daemon::control::{self, Command, Reply};
use std::fs;
use std::io::{Read, Seek, Write};
use std::os::unix::fs::FileExt;

/// Why it is locked, once it is.
fn reason(mount: &Mount) -> String {
    let status = mount.status();
    let reason = status["reason"].as_str().filter(|_| status["state"] == "locked");
    reason.unwrap_or_default().to_owned()
}

fn is_mounted(volume: &Volume) -> bool {
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("the mounts");
    mounts.contains(&format!(" {} ", volume.mountpoint().display()))
}

#[test]
fn a_mount_that_nobody_uses_locks_and_is_unlocked_for_whoever_does() -> Outcome {
    let mount = Volume::new().mount(&["--idle-lock", "1s"]);
    fs::write(mount.at("file"), "content")?;
    fs::create_dir(mount.at("directory"))?;
    let mut file = fs::File::options().read(true).write(true).open(mount.at("file"))?;
    until("it locks", || reason(&mount) == "idle");
    // By name, with everything that names something.
    assert_eq!(fs::read(mount.at("file"))?, b"content");
    assert_eq!(mount.status()["state"], "unlocked");
    let names = ["list", "make", "link", "attributes", "rename", "remove", "sync", "truncate"];
    for how in names {
        until("it locks", || reason(&mount) == "idle");
        match how {
            "list" => assert!(fs::read_dir(mount.at(""))?.count() >= 2),
            "make" => fs::create_dir(mount.at("new"))?,
            "link" => std::os::unix::fs::symlink("x", mount.at("link"))?,
            "attributes" => assert_eq!(fs::metadata(mount.at("directory/../file"))?.len(), 7),
            "rename" => fs::rename(mount.at("new"), mount.at("newer"))?,
            "remove" => fs::remove_dir(mount.at("newer"))?,
            // What was open before goes on.
            "sync" => {
                file.seek(std::io::SeekFrom::Start(0))?;
                file.write_all(b"CON")?;
                file.sync_all()?;
            }
            _ => {
                file.set_len(5)?;
                let mut text = String::new();
                file.seek(std::io::SeekFrom::Start(0))?;
                file.read_to_string(&mut text)?;
                assert_eq!(text, "CONte");
            }
        }
        assert_eq!(mount.status()["state"], "unlocked", "{how}");
    }
    until("it locks", || reason(&mount) == "idle");
    // Who only looks whether it is there wakes nobody.
    fs::metadata(mount.at(""))?;
    rustix::fs::statfs(mount.at(""))?;
    // Nor does a probe, for which it is ready.
    let (reply, _) = control::ask(&mount.volume().mountpoint(), Command::Ready)?;
    assert!(matches!(&reply, Reply::Ready(readiness) if readiness.ready), "{reply:?}");
    assert_eq!(reason(&mount), "idle");
    drop(file);
    until("it locks", || reason(&mount) == "idle");
    let mount = mount.again(&[]);
    assert_eq!(fs::read(mount.at("file"))?, b"CONte");
    let log = mount.volume().ok(&["audit", "show", mount.volume().path().to_str().expect("UTF-8")]);
    assert!(log.contains("reason=idle"), "{log}");
    assert!(!log.contains("after_crash=true"), "{log}");
    Ok(())
}

#[test]
fn whoever_uses_an_idle_mount_whose_key_is_gone_is_told_so() -> Outcome {
    let mount = Volume::new().mount(&["--idle-lock", "1s"]);
    fs::write(mount.at("file"), "content")?;
    let file = fs::File::open(mount.at("file"))?;
    until("it locks", || reason(&mount) == "idle");
    let kek = mount.volume().file("kek");
    fs::rename(&kek, kek.with_extension("away"))?;
    assert_eq!(number(file.read_at(&mut [0], 0)), libc::EKEYREVOKED);
    until("it is revoked", || reason(&mount) == "revoked");
    fs::rename(kek.with_extension("away"), &kek)?;
    until("it unlocks", || mount.status()["state"] == "unlocked");
    assert_eq!(fs::read(mount.at("file"))?, b"content");
    // A lock by hand is nobody's to end by using the mount.
    until("it locks", || reason(&mount) == "idle");
    mount.volume().ok(&["lock", mount.at("").to_str().expect("UTF-8")]);
    assert_eq!(number(fs::read(mount.at("file"))), libc::ENOKEY);
    assert_eq!(reason(&mount), "operator");
    Ok(())
}

#[test]
fn a_mount_that_nobody_uses_goes_unless_something_of_it_is_open() -> Outcome {
    let mount = Volume::new().mount(&["--idle-unmount", "1s"]);
    fs::write(mount.at("file"), "content")?;
    let file = fs::File::open(mount.at("file"))?;
    let log = |mount: &Mount| mount.volume().log();
    let status = mount.status();
    let began = std::time::Instant::now();
    // As long as it is open, for several times of what is idle.
    until("it had the time", || began.elapsed() > std::time::Duration::from_secs(3));
    assert!(is_mounted(mount.volume()), "{}", log(&mount));
    assert_eq!(mount.status()["pid"], status["pid"]);
    // The one begins before the other ends.
    let mut child =
        std::process::Command::new("cat").current_dir(mount.at("")).stdin(std::process::Stdio::piped()).spawn()?;
    drop(file);
    let began = std::time::Instant::now();
    until("it had the time", || began.elapsed() > std::time::Duration::from_secs(3));
    assert!(is_mounted(mount.volume()), "{}", log(&mount));
    drop(child.stdin.take());
    child.wait()?;
    until("it goes", || !is_mounted(mount.volume()));
    let mount = mount.into_dead().mount(&[]);
    assert_eq!(fs::read(mount.at("file"))?, b"content");
    Ok(())
}
