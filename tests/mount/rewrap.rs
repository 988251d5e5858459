//! The life of a key: versions, another key, another provider, and the key for emergencies.

use crate::harness::{Ended, Mount, Outcome, Volume, bytes, number, until};
use crate::recovery::kill;
use crate::vault::Vault;
use serde_json::{Value, json};
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

const EKEYREVOKED: i32 = 128;

pub fn mountpoint(mount: &Mount) -> String {
    mount.at("").to_str().expect("UTF-8").to_owned()
}

pub fn place(volume: &Volume) -> String {
    volume.path().to_str().expect("UTF-8").to_owned()
}

pub fn json_of(ended: &Ended, code: i32) -> Value {
    assert_eq!(ended.code, code, "{ended:?}");
    serde_json::from_str(&ended.stdout).expect("JSON")
}

fn rewrap(mount: &Mount, options: &[&str]) -> Value {
    json_of(&mount.volume().run(&[&["rewrap", &mountpoint(mount), "--json"], options].concat()), 0)
}

/// How many files each key has wrapped, the oldest first.
fn counts(volume: &Volume) -> Vec<u64> {
    let info = json_of(&volume.run(&["info", "--count", "--json", &place(volume)]), 0);
    assert_eq!(info["unreadable_files"], 0);
    info["keks"].as_array().expect("keys").iter().map(|kek| kek["files"].as_u64().expect("a count")).collect()
}

/// The newest version of the vault's key.
fn version(vault: &Vault) -> String {
    let key: Value = serde_json::from_str(&vault.run(&["key", "show", "tenant"])).expect("JSON");
    key["kid"].as_str().expect("an id").rsplit('/').next().expect("a version").to_owned()
}

pub fn events(volume: &Volume, event: &str) -> Vec<Value> {
    let shown = volume.ok(&["audit", "show", "--json", &place(volume)]);
    let lines = shown.lines().map(|line| serde_json::from_str::<Value>(line).expect("a line is JSON"));
    lines.filter(|line| line["event"] == event).collect()
}

#[test]
fn three_rotations_keep_every_file_readable_and_a_disabled_version_takes_exactly_its_files() -> Outcome {
    let vault = Vault::start();
    let mut mount = vault.volume_with(&["--files-per-envelope", "4"]).mount(&[]);
    let mut versions = Vec::new();
    for round in 0..4_u64 {
        if round > 0 {
            vault.run(&["key", "rotate", "tenant"]);
            mount = mount.again(&[]);
        }
        versions.push(version(&vault));
        for file in 0..5 {
            fs::write(mount.at(format!("{round}-{file}")), bytes(round * 5 + file, 9000))?;
        }
    }
    let mut mount = mount.again(&[]);
    assert_eq!(counts(mount.volume()), [5, 5, 5, 5]);
    let read_all = |mount: &Mount| -> Vec<(u64, Result<Vec<u8>, i32>)> {
        let file = |n: u64| fs::read(mount.at(format!("{}-{}", n / 5, n % 5)));
        (0..20).map(|n| (n, file(n).map_err(|error| error.raw_os_error().expect("a number")))).collect()
    };
    for disabled in [1, 0] {
        vault.run(&["key", "disable", "tenant", "--version", &versions[disabled]]);
        for (n, content) in read_all(&mount) {
            match content {
                Ok(content) => assert!(n / 5 != disabled as u64 && content == bytes(n, 9000), "{n}"),
                Err(number) => assert_eq!((n / 5, number), (disabled as u64, EKEYREVOKED), "{n}"),
            }
        }
        assert_eq!(mount.status()["state"], "unlocked");
        vault.run(&["key", "enable", "tenant", "--version", &versions[disabled]]);
        assert!(read_all(&mount).into_iter().all(|(n, content)| content == Ok(bytes(n, 9000))));
        mount = mount.again(&[]);
    }
    // A rewrap says which version it needs, and gives nothing up.
    vault.run(&["key", "disable", "tenant", "--version", &versions[1]]);
    let left = json_of(&mount.volume().run(&["rewrap", &mountpoint(&mount), "--json"]), 6);
    assert_eq!((&left["complete"], &left["left"], &left["safe_to_disable"]), (&json!(false), &json!(5), &json!([])));
    assert!(left["left_files"][0]["why"].as_str().expect("why").contains(&versions[1]), "{left:#}");
    vault.run(&["key", "enable", "tenant", "--version", &versions[1]]);
    let report = rewrap(&mount, &[]);
    assert_eq!((&report["complete"], &report["left"]), (&json!(true), &json!(0)), "{report:#}");
    assert_eq!(report["safe_to_disable"].as_array().map(Vec::len), Some(3), "{report:#}");
    assert_eq!(counts(mount.volume()), [20]);
    let status = mount.status();
    assert_eq!(status["rewrap"]["keys"][0]["files"], 20, "{status:#}");
    for version in &versions[..3] {
        vault.run(&["key", "disable", "tenant", "--version", version]);
    }
    let mount = mount.again(&[]);
    assert!(read_all(&mount).into_iter().all(|(n, content)| content == Ok(bytes(n, 9000))));
    let ended = events(&mount.unmount(), "rewrap-ended");
    let last = ended.last().expect("an event");
    assert_eq!((&last["state"], last["retired"].as_array().map(Vec::len)), (&json!("complete"), Some(3)));
    Ok(())
}

#[test]
fn a_rotation_is_noticed_while_the_volume_is_mounted() -> Outcome {
    let vault = Vault::start();
    let mount = vault.volume_with(&["--files-per-envelope", "2"]).mount(&["--check-rotation", "1s"]);
    for file in 0..3 {
        fs::write(mount.at(format!("old {file}")), "old")?;
    }
    let before = mount.status()["kek"].clone();
    vault.run(&["key", "rotate", "tenant"]);
    until("it is noticed", || mount.status()["kek"] != before);
    assert!(mount.status()["kek"].as_str().expect("a key").ends_with(&version(&vault)));
    for file in 0..3 {
        fs::write(mount.at(format!("new {file}")), "new")?;
    }
    let volume = mount.unmount();
    assert_eq!(counts(&volume), [3, 3]);
    assert_eq!(events(&volume, "kek-version").len(), 1);
    Ok(())
}

/// A rewrap that takes its time, and has begun.
fn slow(mount: &Mount, kek: &str) -> Child {
    let before = mount.status()["rewrap"]["number"].as_u64().unwrap_or(0);
    let mut command = mount.volume().command(&["rewrap", &mountpoint(mount), "--json", "--kek", kek, "--rate", "150"]);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the program runs");
    until("it has begun", || {
        let rewrap = &mount.status()["rewrap"];
        rewrap["number"].as_u64() > Some(before)
            && rewrap["state"] == "running"
            && rewrap["rewrapped"].as_u64() > Some(0)
    });
    child
}

pub fn end(child: Child) -> Ended {
    Ended::from(child.wait_with_output().expect("it ends"))
}

/// Files that are overwritten, synced, renamed and made anew, until told to stop. What was synced is noted.
pub fn write(mount: &Mount, thread: u64, stop: &AtomicBool, synced: &[AtomicU64]) {
    let mut turn = 1;
    while !stop.load(Relaxed) {
        let slot = (turn % synced.len() as u64) as usize;
        let path = mount.at(format!("d{}/slot {thread} {slot}", turn % 2));
        let other = mount.at(format!("d{}/slot {thread} {slot}", (turn + 1) % 2));
        let written = (|| -> std::io::Result<()> {
            let file = OpenOptions::new().write(true).create(true).truncate(false).open(&other)?;
            file.write_all_at(&turn.to_le_bytes(), 0)?;
            file.write_all_at(&bytes(turn, 6000), 8)?;
            file.sync_all()?;
            fs::rename(&other, &path)
        })();
        // The mount may have been killed.
        if written.is_err() {
            return;
        }
        synced[slot].store(turn, Relaxed);
        turn += 1;
    }
}

pub fn check_written(mount: &Mount, thread: u64, synced: &[AtomicU64]) {
    for (slot, least) in synced.iter().enumerate() {
        let least = least.load(Relaxed);
        let contents = (0..2).filter_map(|d| fs::read(mount.at(format!("d{d}/slot {thread} {slot}"))).ok());
        // One that was new when the mount was killed may have nothing in it.
        let contents = contents.filter(|content| !content.is_empty());
        let turns: Vec<u64> = contents
            .map(|content| {
                let turn = u64::from_le_bytes(content[..8].try_into().expect("a number"));
                assert!(content[8..] == bytes(turn, 6000)[..], "{thread} {slot}");
                turn
            })
            .collect();
        assert!(least == 0 || turns.iter().any(|turn| *turn >= least), "{thread} {slot}: {turns:?}, synced {least}");
    }
}

#[test]
fn a_volume_goes_to_another_provider_and_back_under_load_though_its_process_is_killed() -> Outcome {
    const FILES: u64 = 900;
    let vault = Vault::start();
    let volume = vault.volume_with(&["--files-per-envelope", "50"]);
    volume.make_key("own");
    let own = volume.kek("own");
    let mut mount = volume.mount(&["--kms-rate", "1000"]);
    for directory in 0..2 {
        fs::create_dir(mount.at(format!("d{directory}")))?;
    }
    for file in 0..FILES {
        fs::write(mount.at(format!("d{}/still {file}", file % 2)), bytes(file, 100 + file as usize))?;
    }
    fs::hard_link(mount.at("d0/still 0"), mount.at("linked"))?;
    File::open(mount.at(""))?.sync_all()?;
    rustix::fs::syncfs(File::open(mount.at(""))?)?;
    let synced: [Vec<AtomicU64>; 2] = std::array::from_fn(|_| (0..8).map(|_| AtomicU64::new(0)).collect());
    let still = |mount: &Mount| {
        for file in 0..FILES {
            let content = fs::read(mount.at(format!("d{}/still {file}", file % 2))).expect("readable");
            assert!(content == bytes(file, 100 + file as usize), "{file}");
        }
    };
    // Killed in the middle, and again.
    for _ in 0..2 {
        let stop = AtomicBool::new(false);
        let ended = std::thread::scope(|scope| {
            for (thread, synced) in synced.iter().enumerate() {
                let (mount, stop) = (&mount, &stop);
                scope.spawn(move || write(mount, thread as u64, stop, synced));
            }
            let child = slow(&mount, &own);
            kill(&mount);
            stop.store(true, Relaxed);
            end(child)
        });
        assert!(ended.code == 4 && ended.stderr.contains("both keys are needed"), "{ended:?}");
        mount = mount.into_dead().mount(&["--kms-rate", "1000"]);
        synced.iter().enumerate().for_each(|(thread, synced)| check_written(&mount, thread as u64, synced));
        still(&mount);
    }
    let held = File::open(mount.at("d1/still 1"))?;
    let stop = AtomicBool::new(false);
    let report = std::thread::scope(|scope| {
        for (thread, synced) in synced.iter().enumerate() {
            let (mount, stop) = (&mount, &stop);
            scope.spawn(move || write(mount, thread as u64, stop, synced));
        }
        let report = rewrap(&mount, &["--kek", &own]);
        stop.store(true, Relaxed);
        report
    });
    assert_eq!((&report["complete"], &report["left"]), (&json!(true), &json!(0)), "{report:#}");
    let safe = report["safe_to_disable"][0].as_str().expect("a key");
    assert!(safe.ends_with(&version(&vault)), "{report:#}");
    // From here on the old key may be destroyed: open files, files of every age, and the next mount do without it.
    vault.run(&["key", "delete", "tenant"]);
    still(&mount);
    assert!(crate::harness::content(&held) == bytes(1, 101));
    assert_eq!(mount.status()["state"], "unlocked");
    drop(held);
    let mount = mount.again(&[]);
    still(&mount);
    synced.iter().enumerate().for_each(|(thread, synced)| check_written(&mount, thread as u64, synced));
    // And back: a new version of the key, through the volume's directory.
    vault.run(&["key", "recover", "tenant"]);
    let kek = format!("{}/keys/tenant", vault.environment()["KMSFS_DEV_VAULT_URL"]);
    let wraps = vault.calls("wrapkey");
    let volume = mount.volume();
    let report = json_of(&volume.run(&["rewrap", &place(volume), "--kek", &kek, "--json"]), 0);
    assert_eq!(report["complete"], true, "{report:#}");
    assert_eq!(vault.calls("wrapkey"), wraps, "an RSA key wraps here");
    fs::remove_file(volume.file("own"))?;
    let volume = mount.again(&[]).unmount();
    let checked = json_of(&volume.run(&["fsck", "--deep", "--json", &place(&volume)]), 0);
    assert_eq!(checked["findings"], json!([]), "{checked:#}");
    assert_eq!(counts(&volume).len(), 1);
    Ok(())
}

#[test]
fn one_at_a_time_cancelled_locked_and_gone_on_with_where_it_is_not_mounted() -> Outcome {
    let volume = Volume::new();
    volume.make_key("new");
    let (old, new) = (volume.kek("kek"), volume.kek("new"));
    let mount = volume.mount(&[]);
    for file in 0..700_u64 {
        fs::write(mount.at(format!("{file}")), bytes(file, 50))?;
    }
    let child = slow(&mount, &new);
    let second = mount.volume().run(&["rewrap", &mountpoint(&mount)]);
    assert!(second.code == 10 && second.stderr.contains("a rewrap runs on this mount already"), "{second:?}");
    mount.volume().ok(&["rewrap", "--cancel", &mountpoint(&mount)]);
    let cancelled = end(child);
    assert_eq!(json_of(&cancelled, 130)["state"], "cancelled");
    assert!(cancelled.stderr.contains("the old key and the new one are needed"), "{cancelled:?}");
    let child = slow(&mount, &new);
    mount.volume().ok(&["lock", &mountpoint(&mount)]);
    assert_eq!(json_of(&end(child), 1)["state"], "locked");
    mount.volume().ok(&["unlock", &mountpoint(&mount)]);
    assert_eq!(number(fs::read(mount.at("no such file"))), 2);
    // The new key opens the volume by now, and the old one the rest.
    let volume = mount.unmount();
    assert!(counts(&volume).iter().all(|files| *files > 0), "{:?}", counts(&volume));
    let kek = fs::read(volume.file("kek"))?;
    fs::remove_file(volume.file("kek"))?;
    let refused = volume.run(&["rewrap", &place(&volume), "--json"]);
    assert!(json_of(&refused, 6)["left"].as_u64() > Some(0), "{refused:?}");
    assert!(refused.stderr.contains("do not disable it"), "{refused:?}");
    fs::write(volume.file("kek"), kek)?;
    let done = json_of(&volume.run(&["rewrap", &place(&volume), "--kek", &new, "--json"]), 0);
    assert_eq!(done["safe_to_disable"].as_array().map(Vec::len), Some(1), "{done:#}");
    assert!(done["safe_to_disable"][0].as_str().expect("a key").starts_with(&old), "{done:#}");
    fs::remove_file(volume.file("kek"))?;
    let mount = volume.mount(&["-o", "ro"]);
    let refused = mount.volume().run(&["rewrap", &mountpoint(&mount)]);
    assert!(refused.code == 1 && refused.stderr.contains("nothing can be changed"), "{refused:?}");
    for file in 0..700_u64 {
        assert!(fs::read(mount.at(format!("{file}")))? == bytes(file, 50));
    }
    Ok(())
}

#[test]
fn a_lost_key_is_named_and_the_recovery_key_opens_the_volume_and_leads_to_another_one() -> Outcome {
    let volume = Volume::nothing();
    ["lost", "escrow", "new"].iter().for_each(|name| volume.make_key(name));
    let [lost, escrow, new] = ["lost", "escrow", "new"].map(|name| volume.kek(name));
    let twice = volume.run(&["init", &place(&volume), "--kek", &lost, "--recovery-kek", &lost]);
    assert!(twice.code == 2 && twice.stderr.contains("hint: "), "{twice:?}");
    volume.ok(&["init", &place(&volume), "--kek", &lost, "--recovery-kek", &escrow]);
    let mount = volume.mount(&[]);
    for file in 0..50_u64 {
        fs::write(mount.at(format!("{file}")), bytes(file, 5000))?;
    }
    let volume = mount.unmount();
    let info = json_of(&volume.run(&["info", "--count", "--json", &place(&volume)]), 0);
    assert_eq!((&info["keks"][1]["role"], &info["keks"][1]["files"]), (&json!("recovery"), &json!(50)), "{info:#}");
    fs::remove_file(volume.file("lost"))?;
    let said = volume.mount_fails(&[], 6);
    assert!(said.contains(&lost) && said.contains("--with-recovery-kek"), "{said}");
    volume.mount_fails(&["--with-recovery-kek"], 2);
    let mount = volume.mount(&["-o", "ro", "--with-recovery-kek"]);
    for file in 0..50_u64 {
        assert!(fs::read(mount.at(format!("{file}")))? == bytes(file, 5000));
    }
    let status = mount.status();
    assert_eq!(status["with_recovery_kek"], true);
    assert!(status["kek"].as_str().expect("a key").starts_with(&escrow));
    assert_eq!(number(fs::write(mount.at("new"), "new")), libc::EROFS);
    let volume = mount.unmount();
    assert!(events(&volume, "mount").iter().any(|mount| mount["with_recovery_kek"] == true));
    let arguments = ["rewrap", &place(&volume), "--with-recovery-kek", "--kek", &new, "--json"];
    let done = json_of(&volume.run(&arguments), 0);
    assert_eq!((&done["complete"], &done["rewrapped"]), (&json!(true), &json!(50)), "{done:#}");
    let mount = volume.mount(&[]);
    fs::write(mount.at("new"), "new")?;
    let volume = mount.unmount();
    for options in [&[][..], &["--with-recovery-kek"]] {
        let checked = json_of(&volume.run(&[&["fsck", "--deep", "--json", &place(&volume)], options].concat()), 0);
        assert_eq!((&checked["findings"], &checked["files_checked"]), (&json!([]), &json!(51)), "{checked:#}");
    }
    Ok(())
}
