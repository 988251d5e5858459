//! Raw keys from everywhere: files, commands, file descriptors, credentials; one key is the same key from each of them.

#![allow(clippy::unwrap_used, reason = "a test ends at the first thing that goes wrong")]

use crate::harness::{Ended, Volume, number, until};
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::PathBuf;
use std::process::Command;

fn text(path: PathBuf) -> String {
    path.to_str().expect("UTF-8").to_owned()
}

/// Runs kmsfs through a shell that opens what `redirection` says.
fn with_descriptor(volume: &Volume, arguments: &[String], redirection: &str) -> Ended {
    let script = format!("exec \"$0\" \"$@\" {redirection}");
    let mut shell = Command::new("sh");
    shell.args(["-euc", &script, env!("CARGO_BIN_EXE_kmsfs")]).args(arguments).arg("--kek").arg("fd:7");
    Ended::from(shell.env("KEY", volume.file("kek")).output().expect("a shell runs"))
}

fn unmount(volume: &Volume) {
    volume.ok(&["umount", &text(volume.mountpoint())]);
}

fn status(volume: &Volume) -> serde_json::Value {
    serde_json::from_str(&volume.ok(&["status", "--json", &text(volume.mountpoint())])).expect("JSON")
}

fn status_of(volume: &Volume) -> String {
    let status = status(volume);
    let status = status.as_array().map_or(&status, |all| &all[0]);
    status["state"].as_str().expect("a state").to_owned()
}

#[test]
fn a_volume_of_one_place_mounts_with_the_same_key_from_every_other_one() {
    let volume = Volume::new();
    let arguments = |kek: &str| volume.mount_arguments(&["--kek", kek]);
    let file = volume.mountpoint().join("file");
    let mount = volume.mount_arguments(&[]);
    volume.ok(&mount.iter().map(String::as_str).collect::<Vec<_>>());
    fs::write(&file, "content").unwrap();
    unmount(&volume);
    let command = arguments(&format!("cmd:cat {}", text(volume.file("kek"))));
    let credential = arguments("credential:kek");
    let mut made = 0;
    let mut check = |what: &str, ended: Ended| {
        assert_eq!(ended.code, 0, "{what}: {ended:?}");
        assert_eq!(fs::read_to_string(&file).unwrap(), "content", "{what}");
        made += 1;
        // Made under this one, to be read under the next.
        fs::write(volume.mountpoint().join(format!("made {made}")), what).unwrap();
        for number in 1..=made {
            assert!(fs::read(volume.mountpoint().join(format!("made {number}"))).is_ok(), "{what}, file {number}");
        }
        unmount(&volume);
        ended.stderr
    };
    check(
        "command",
        Ended::from(volume.command(&command.iter().map(String::as_str).collect::<Vec<_>>()).output().unwrap()),
    );
    let directory = volume.file("kek").parent().expect("a directory").to_owned();
    let mut service = volume.command(&credential.iter().map(String::as_str).collect::<Vec<_>>());
    check("credential", Ended::from(service.env("CREDENTIALS_DIRECTORY", directory).output().unwrap()));
    let warned = check("open file", with_descriptor(&volume, &mount, "7<\"$KEY\""));
    assert!(warned.contains("warning: ") && warned.contains("does not revoke"), "{warned}");
    let warned = check(
        "pipe",
        Ended::from(
            Command::new("sh")
                .args(["-euc", "cat \"$KEY\" | \"$0\" \"$@\" 7<&0", env!("CARGO_BIN_EXE_kmsfs")])
                .args(&mount)
                .args(["--kek", "fd:7"])
                .env("KEY", volume.file("kek"))
                .output()
                .unwrap(),
        ),
    );
    assert!(warned.contains("kept in memory"), "{warned}");
    check("file", Ended::from(volume.command(&mount.iter().map(String::as_str).collect::<Vec<_>>()).output().unwrap()));
    let without = volume.mount_fails(&["--kek", "credential:kek"], 12);
    assert!(without.contains("CREDENTIALS_DIRECTORY"), "{without}");
    assert!(volume.mount_fails(&["--kek", "fd:7"], 12).contains("not inherited"));
}

#[test]
fn a_command_that_loses_the_key_revokes_and_one_that_hangs_or_says_75_does_not() {
    let volume = Volume::new();
    let script = volume.file("script");
    let write = |body: &str| {
        let new = volume.file("new");
        fs::write(&new, format!("#!/bin/sh\n{body}\n")).unwrap();
        fs::set_permissions(&new, fs::Permissions::from_mode(0o700)).unwrap();
        fs::rename(&new, &script).unwrap();
    };
    let works = format!("cat {}", text(volume.file("kek")));
    write(&works);
    let kek = format!("cmd:{}", text(script.clone()));
    let mount = volume.mount_arguments(&["--kek", &kek, "--revalidate", "1s", "--offline-grace", "1h"]);
    volume.ok(&mount.iter().map(String::as_str).collect::<Vec<_>>());
    let file = volume.mountpoint().join("file");
    fs::write(&file, "content").unwrap();
    let failed = || status(&volume).to_string();
    write("exit 75");
    until("it says 75", || failed().contains("exit code 75"));
    assert_eq!(fs::read_to_string(&file).unwrap(), "content");
    write("sleep 1000");
    until("it hangs", || failed().contains("was killed"));
    assert_eq!(status_of(&volume), "unlocked");
    write("echo no key for you >&2; exit 1");
    until("locked", || status_of(&volume) == "locked");
    assert_eq!(number(fs::read(&file)), libc::EKEYREVOKED);
    assert!(failed().contains("no key for you"));
    write(&works);
    until("unlocked", || status_of(&volume) == "unlocked");
    assert_eq!(fs::read_to_string(&file).unwrap(), "content");
    unmount(&volume);
    let log = volume.ok(&["audit", "show", "--json", &text(volume.path())]);
    assert!(log.contains("\"kek\":\"cmd:"), "{log}");
}

#[test]
fn a_key_from_a_pipe_is_gone_with_a_lock() {
    let volume = Volume::new();
    let mount = volume.mount_arguments(&["--kek", "fd:7"]);
    let script = "cat \"$KEY\" | \"$0\" \"$@\" 7<&0";
    let mut shell = Command::new("sh");
    shell.args(["-euc", script, env!("CARGO_BIN_EXE_kmsfs")]).args(mount).env("KEY", volume.file("kek"));
    let ended = Ended::from(shell.output().expect("a shell runs"));
    assert_eq!(ended.code, 0, "{ended:?}");
    let file = volume.mountpoint().join("file");
    fs::write(&file, "content").unwrap();
    let mountpoint = text(volume.mountpoint());
    volume.ok(&["lock", &mountpoint]);
    assert_eq!(number(fs::read(&file)), libc::ENOKEY);
    let unlocked = volume.run(&["unlock", &mountpoint]);
    assert!(unlocked.code != 0 && unlocked.stderr.contains("forgotten"), "{unlocked:?}");
    assert_eq!(status_of(&volume), "locked");
    unmount(&volume);
}

#[test]
fn a_volume_never_records_a_command_and_says_that_its_key_has_to_be_given() {
    let volume = Volume::nothing();
    volume.make_key("kek");
    let command = format!("cmd:cat {}", text(volume.file("kek")));
    volume.ok(&["init", &text(volume.path()), "--kek", &command]);
    let info = volume.ok(&["info", "--json", &text(volume.path())]);
    let info: serde_json::Value = serde_json::from_str(&info).expect("JSON");
    assert_eq!(info["keks"][0]["reference"], "raw:");
    assert!(!fs::read(volume.path().join("volume.kmsfs")).unwrap().windows(4).any(|bytes| bytes == b"cmd:"));
    let said = volume.mount_fails(&[], 12);
    assert!(said.contains("has to be given") && said.contains("--kek"), "{said}");
    let mount = volume.mount(&["--kek", &command]);
    fs::write(mount.at("file"), "content").unwrap();
    let volume = mount.unmount();
    let kek = volume.kek("kek");
    let mount = volume.mount(&["--kek", &kek]);
    assert_eq!(fs::read_to_string(mount.at("file")).unwrap(), "content");
}

#[test]
fn a_mount_takes_no_key_from_a_command_or_a_descriptor_and_two_that_are_recorded_nowhere_are_refused() {
    let volume = Volume::new();
    volume.make_key("new");
    let [old, new] = ["kek", "new"].map(|name| format!("cmd:cat {}", text(volume.file(name))));
    let mount = volume.mount(&[]);
    fs::write(mount.at("file"), "content").unwrap();
    let place = text(mount.at(""));
    for options in [["--kek", &new], ["--kek", "fd:7"], ["--recovery-kek", &new]] {
        let said = mount.volume().fails(&[&["rewrap", &place], &options[..]].concat(), 1);
        assert!(said.contains("from a command or a file descriptor") && said.contains("unmount"), "{said}");
    }
    let volume = mount.unmount();
    let place = text(volume.path());
    // The first of them takes the place of the one in a file; a second one could not be told apart from it.
    volume.ok(&["rewrap", &place, "--kek", &new]);
    let said = volume.fails(&["rewrap", &place, "--present-kek", &new, "--kek", &old], 12);
    assert!(said.contains("recorded nowhere"), "{said}");
    let mount = volume.mount(&["--kek", &new]);
    assert_eq!(fs::read_to_string(mount.at("file")).unwrap(), "content");
}

#[test]
fn a_key_on_the_command_line_is_refused_and_not_repeated() {
    let volume = Volume::nothing();
    let key = volume.ok(&["key", "generate"]);
    for given in [key.trim().to_owned(), format!("raw:{}", key.trim())] {
        let said = volume.fails(&["init", &text(volume.path()), "--kek", &given], 12);
        assert!(said.contains("a key itself") && !said.contains(&key[..10]), "{said}");
        let tested = volume.run(&["key", "test", "--json", &given]);
        assert!(tested.code == 12 && !tested.stdout.contains(&key[..10]) && !tested.stderr.contains(&key[..10]));
    }
}

#[test]
fn a_generated_key_is_for_its_owner_only_and_replaces_nothing() {
    let volume = Volume::nothing();
    let file = volume.file("new.key");
    assert_eq!(volume.ok(&["key", "generate", "--output", &text(file.clone())]), "");
    let (key, mode) = (fs::read(&file).unwrap(), fs::metadata(&file).unwrap().mode());
    assert_eq!((key.len(), mode & 0o7777), (45, 0o600));
    volume.fails(&["key", "generate", "--output", &text(file.clone())], 2);
    assert_eq!(fs::read(&file).unwrap(), key);
    let report = volume.ok(&["key", "test", "--json", &volume.kek("new.key")]);
    let report: serde_json::Value = serde_json::from_str(&report).expect("JSON");
    assert_eq!((report["ok"].as_bool(), report["message_bytes"].as_u64() > Some(0)), (Some(true), true));
    assert_eq!(report["warnings"], serde_json::json!([]));
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
    assert!(volume.ok(&["key", "test", &volume.kek("new.key")]).contains("open to group or others (mode 0644)"));
}
