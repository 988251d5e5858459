//! The audit log of real mounts: what is in it, and that nothing breaks it.

use crate::harness::{Ended, Mount, Volume, bytes, number, until};
use crate::vault::Vault;
use serde_json::Value;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

fn text(path: PathBuf) -> String {
    path.to_str().expect("UTF-8").to_owned()
}

/// The lines of a volume's log, in order.
fn lines(volume: &Volume) -> Vec<Value> {
    let out = volume.ok(&["audit", "show", "--json", &text(volume.path())]);
    out.lines().map(|line| serde_json::from_str(line).expect("a line is JSON")).collect()
}

fn names(volume: &Volume) -> Vec<String> {
    lines(volume).iter().map(|line| line["event"].as_str().expect("a name").to_owned()).collect()
}

/// The first line of this event.
fn first(volume: &Volume, event: &str) -> Value {
    let all = lines(volume);
    all.iter().find(|line| line["event"] == event).unwrap_or_else(|| panic!("no {event} in {all:#?}")).clone()
}

fn verify(volume: &Volume, options: &[&str]) -> Ended {
    volume.run(&[&["audit", "verify", "--json", &text(volume.path())], options].concat())
}

fn verified(volume: &Volume) -> Value {
    let ended = verify(volume, &["--deep"]);
    assert_eq!(ended.code, 0, "{ended:?}");
    serde_json::from_str(&ended.stdout).expect("JSON")
}

fn log_file(volume: &Volume) -> PathBuf {
    volume.path().join("audit/main.00000001.jsonl")
}

#[test]
fn the_life_of_a_volume_is_in_its_log_and_nothing_of_it_can_be_changed_unnoticed() {
    let mount = Volume::new().mount(&["--revalidate", "1s", "--audit-keep", "7"]);
    fs::write(mount.at("a file with a name"), b"content").unwrap();
    let (key, away) = (mount.volume().file("kek"), mount.volume().file("away"));
    fs::rename(&key, &away).unwrap();
    until("locked", || mount.status()["state"] == "locked");
    fs::rename(&away, &key).unwrap();
    until("unlocked", || mount.status()["state"] == "unlocked");
    assert_eq!(fs::read(mount.at("a file with a name")).unwrap(), b"content");
    let head = mount.status()["audit"]["head"].as_str().expect("a head").to_owned();
    let volume = mount.unmount();
    let names = names(&volume);
    let order = ["init", "mount", "lease-denied", "drain", "lock", "unlock", "unmount", "checkpoint"];
    let mut rest = names.iter();
    for event in order {
        assert!(rest.any(|name| name == event), "{event} is not in its place in {names:?}");
    }
    let settings = &first(&volume, "mount")["settings"];
    assert_eq!((&settings["revalidate"], &settings["audit_keep"]), (&"1s".into(), &"7".into()));
    assert_eq!(
        (&first(&volume, "lock")["reason"], &first(&volume, "lock")["drained"]),
        (&"revoked".into(), &true.into())
    );
    assert_eq!(first(&volume, "lease-denied")["code"], "KeyNotFound");
    let report = verified(&volume);
    assert_eq!(report["series"][0]["authenticated_to"], report["series"][0]["last_seq"], "{report:#}");
    assert!(!fs::read_to_string(log_file(&volume)).unwrap().contains("a file with a name"));

    let shown = volume.ok(&["audit", "show", &text(volume.path()), "--since", "1h"]);
    assert!(shown.contains("lease-denied") && shown.contains("reason=revoked"), "{shown}");
    assert_eq!(volume.ok(&["audit", "show", &text(volume.path()), "--since", "2100-01-01T00:00:00Z"]), "");

    // The tail can be cut where nobody noted a head, and only there.
    let whole = fs::read(log_file(&volume)).unwrap();
    assert_eq!(verify(&volume, &["--head", &head]).code, 0);
    let cut = whole.split_inclusive(|byte| *byte == b'\n').next().unwrap().len();
    fs::write(log_file(&volume), &whole[..cut]).unwrap();
    assert_eq!(verify(&volume, &[]).code, 0);
    let ended = verify(&volume, &["--head", &head]);
    assert!(ended.code == 3 && ended.stderr.contains("the noted head is not in the audit log"), "{ended:?}");
    let mut changed = whole.clone();
    changed[cut + 40] ^= 1;
    fs::write(log_file(&volume), &changed).unwrap();
    let ended = verify(&volume, &[]);
    assert!(ended.code == 3 && ended.stderr.contains("main.00000001.jsonl, line 3"), "{ended:?}");
    fs::write(log_file(&volume), &whole).unwrap();
}

#[test]
fn other_settings_than_last_time_and_a_refused_mount_are_in_the_log() {
    let volume = Volume::new().mount(&["--revalidate", "1s"]).unmount();
    assert!(!names(&volume).contains(&"configuration-change".to_owned()));
    let volume = volume.mount(&["--revalidate", "2s", "-o", "direct_io"]).unmount();
    let change = first(&volume, "configuration-change");
    assert_eq!((&change["before"]["revalidate"], &change["now"]["revalidate"]), (&"1s".into(), &"2s".into()));
    assert_eq!((&change["before"]["options"], &change["now"]["options"]), (&"".into(), &"direct_io".into()));
    fs::rename(volume.file("kek"), volume.file("away")).unwrap();
    volume.mount_fails(&[], 6);
    fs::rename(volume.file("away"), volume.file("kek")).unwrap();
    assert_eq!(first(&volume, "lease-denied")["what"], "volume-key at mount");
    verified(&volume);
}

#[test]
fn damage_is_noted_by_file_id_and_a_thousand_times_of_it_is_a_count() {
    let mount = Mount::new();
    fs::write(mount.at("file"), bytes(1, 100_000)).unwrap();
    let mount = mount.again(&["-o", "direct_io"]);
    let stored = fs::read_dir(mount.volume().path().join("tree"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .find(|path| path.is_file() && !path.is_symlink())
        .expect("the stored file");
    let stored = fs::File::options().read(true).write(true).open(stored).unwrap();
    let mut byte = [0];
    let file = fs::File::open(mount.at("file")).unwrap();
    file.read_exact_at(&mut byte, 0).unwrap();
    stored.read_exact_at(&mut byte, 50_000).unwrap();
    stored.write_all_at(&[byte[0] ^ 1], 50_000).unwrap();
    let mut failures = 0;
    for _ in 0..1000 {
        let mut buffer = [0; 100_000];
        failures += u32::from(number(file.read_exact_at(&mut buffer, 0)) == libc::EIO);
    }
    assert_eq!(failures, 1000);
    drop(file);
    let volume = mount.unmount();
    let all = lines(&volume);
    let found: Vec<_> = all.iter().filter(|line| line["event"] == "failed-decryption").collect();
    assert!((1..=20).contains(&found.len()), "{} lines", found.len());
    assert_eq!(found[0]["file"].as_str().unwrap().len(), 32);
    let repeated = all.iter().find(|line| line["of"] == "failed-decryption").expect("the others are counted");
    assert!(repeated["count"].as_u64().unwrap() >= 980, "{repeated}");
    verified(&volume);
}

#[test]
fn mounts_that_share_a_volume_have_a_series_each() {
    let volume = Mount::new().unmount();
    let first = volume.mount(&["-o", "ro"]);
    let second = first.volume().file("second");
    fs::create_dir(&second).unwrap();
    let volume_path = text(first.volume().path());
    first.volume().ok(&["mount", &volume_path, &text(second.clone()), "-o", "ro"]);
    first.volume().ok(&["umount", &text(second)]);
    let volume = first.unmount();
    let report = verified(&volume);
    let series: Vec<_> = report["series"].as_array().unwrap().iter().map(|series| series["series"].clone()).collect();
    assert_eq!(series, ["main", "shared-1", "shared-2"]);
    let names = names(&volume);
    assert_eq!(names.iter().filter(|name| *name == "mount").count(), 3);
    assert_eq!(names.iter().filter(|name| *name == "unmount").count(), 3);
}

#[test]
fn a_daemon_that_is_killed_at_any_moment_leaves_a_chain_that_goes_on() {
    let mut volume = Volume::new();
    let mut kept = Vec::new();
    for round in 0..6_u64 {
        let mount = volume.mount(&["--revalidate", "1s"]);
        let pid = mount.status()["pid"].as_u64().unwrap();
        // Something to write at the moment of death.
        fs::write(mount.at(format!("file{round}")), bytes(round, 5000)).unwrap();
        let (key, away) = (mount.volume().file("kek"), mount.volume().file("away"));
        fs::rename(&key, &away).unwrap();
        let lines = round * 2;
        let begun = mount.status()["audit"]["seq"].as_u64().unwrap();
        until("enough lines", || mount.status()["audit"]["seq"].as_u64().unwrap() >= begun + lines.min(4));
        let head = mount.status()["audit"]["head"].as_str().unwrap().to_owned();
        let pid = rustix::process::Pid::from_raw(pid as i32).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
        until("dead", || rustix::process::test_kill_process(pid).is_err());
        fs::rename(&away, &key).unwrap();
        volume = mount.into_dead();
        let _ = volume.run(&["umount", "--lazy", &text(volume.mountpoint())]);
        kept.push(head);
        let ended = verify(&volume, &[]);
        assert_eq!(ended.code, 0, "round {round}: {ended:?}");
    }
    let volume = volume.mount(&[]).unmount();
    verified(&volume);
    // What the process had said was written is there still.
    for head in kept {
        let ended = verify(&volume, &["--head", &head]);
        assert_eq!(ended.code, 0, "{head}: {ended:?}");
    }
    assert_eq!(names(&volume).iter().filter(|name| *name == "recovery").count(), 6);
}

#[test]
fn an_unwrap_in_the_log_is_the_one_in_the_vaults_own_log() {
    let vault = Vault::start();
    let mount = vault.volume().mount(&["--revalidate", "2s"]);
    for n in 0..5 {
        fs::write(mount.at(format!("file{n}")), b"content").unwrap();
    }
    // Envelopes that were made here are in memory: only after a mount are they unwrapped.
    let mount = mount.again(&["--revalidate", "2s"]);
    for n in 0..5 {
        fs::read(mount.at(format!("file{n}"))).unwrap();
    }
    vault.run(&["key", "disable", "tenant"]);
    until("locked", || mount.status()["state"] == "locked");
    vault.run(&["key", "enable", "tenant"]);
    until("unlocked", || mount.status()["state"] == "unlocked");
    let volume = mount.unmount();
    let status: Value = serde_json::from_str(&vault.run(&["status", "--json"])).expect("JSON");
    let theirs = status["calls"]["log"].as_array().expect("the vault's log").clone();
    let all = lines(&volume);
    for event in ["mount", "unwrap", "probe", "lease-denied"] {
        let ours = all.iter().find(|line| line["event"] == event).unwrap_or_else(|| panic!("no {event} in {all:#?}"));
        let same = |theirs: &&Value| {
            theirs["client_request_id"] == ours["client_request_id"] && theirs["request_id"] == ours["request_id"]
        };
        let found = theirs.iter().find(same).unwrap_or_else(|| panic!("{ours} is not in the vault's log"));
        let expected = if event == "lease-denied" { 403 } else { 200 };
        assert_eq!((&found["operation"], &found["status"]), (&"unwrapkey".into(), &expected.into()), "{ours}");
        let id = volume.ok(&["info", "--json", &text(volume.path())]);
        let id: Value = serde_json::from_str(&id).unwrap();
        assert!(found["client"].as_str().unwrap().contains(id["volume_id"].as_str().unwrap()), "{found}");
    }
    let unwrap = all.iter().find(|line| line["event"] == "unwrap").unwrap();
    let served: u64 = all
        .iter()
        .filter(|line| line["event"] == "leases-ended")
        .flat_map(|line| line["served"].as_array().unwrap())
        .filter(|served| served[0] == unwrap["envelope"])
        .map(|served| served[1].as_u64().unwrap())
        .sum();
    assert!(served >= 5, "5 files were opened with it, and the log says {served}");
    verified(&volume);
}

#[test]
fn a_test_of_a_volumes_key_is_in_the_log_whether_it_is_mounted_or_not() {
    let mount = Mount::new();
    let volume = text(mount.volume().path());
    mount.volume().ok(&["key", "test", "--volume", &volume]);
    let unmounted = mount.unmount();
    let report: Value =
        serde_json::from_str(&unmounted.ok(&["key", "test", "--json", "--volume", &volume])).expect("JSON");
    assert_eq!(report["ok"], true, "{report}");
    fs::rename(unmounted.file("kek"), unmounted.file("away")).unwrap();
    assert_eq!(unmounted.run(&["key", "test", "--volume", &volume]).code, 6);
    fs::rename(unmounted.file("away"), unmounted.file("kek")).unwrap();
    let tests: Vec<_> = lines(&unmounted).into_iter().filter(|line| line["event"] == "key-test").collect();
    let outcomes: Vec<_> = tests.iter().map(|line| line["ok"].as_bool().unwrap()).collect();
    assert_eq!(outcomes, [true, true, false]);
    let report = verified(&unmounted);
    let series: Vec<_> = report["series"].as_array().unwrap().iter().map(|series| series["series"].clone()).collect();
    assert_eq!(series, ["main", "shared-1"]);
}
