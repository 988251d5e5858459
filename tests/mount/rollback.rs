//! Old versions of a volume, or of a file, that are put back: what a guard makes of them.

use crate::harness::{Ended, Mount, Outcome, Volume, bytes, number, run, until};
use crate::recovery::kill;
use crate::vault::Vault;
use serde_json::Value;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

fn text(path: impl AsRef<Path>) -> String {
    path.as_ref().to_str().expect("UTF-8").to_owned()
}

/// The options that guard with this file.
fn guard(volume: &Volume) -> Vec<String> {
    vec!["--rollback-guard".to_owned(), text(volume.file("guard"))]
}

fn strs(options: &[String]) -> Vec<&str> {
    options.iter().map(String::as_str).collect()
}

fn mount(volume: Volume, more: &[&str]) -> Mount {
    let options = guard(&volume);
    volume.mount(&[&strs(&options)[..], more].concat())
}

/// Tries to mount, which may go either way.
fn try_mount(volume: &Volume, options: &[&str]) -> Ended {
    let arguments = volume.mount_arguments(options);
    volume.run(&strs(&arguments))
}

fn refused(volume: &Volume, code: i32) -> String {
    volume.mount_fails(&strs(&guard(volume)), code)
}

/// A copy of the volume as it is, beside it.
fn back_up(volume: &Volume, name: &str) {
    run("cp", &[&"-a", &volume.path(), &volume.file(name)]);
}

/// Puts a copy in the place of the volume.
fn restore(volume: &Volume, name: &str) {
    fs::remove_dir_all(volume.path()).expect("the volume is removed");
    run("cp", &[&"-a", &volume.file(name), &volume.path()]);
}

fn events(volume: &Volume) -> Vec<Value> {
    let out = volume.ok(&["audit", "show", "--json", &text(volume.path())]);
    out.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

fn event(volume: &Volume, name: &str) -> Value {
    let all = events(volume);
    all.iter().rfind(|line| line["event"] == name).unwrap_or_else(|| panic!("no {name} in {all:#?}")).clone()
}

fn info(volume: &Volume) -> Value {
    let options = guard(volume);
    let path = text(volume.path());
    let arguments = [&["info", "--json", &path], &strs(&options)[..]].concat();
    serde_json::from_str(&volume.ok(&arguments)).expect("JSON")
}

fn accept(volume: &Volume, more: &[&str]) -> String {
    let options = guard(volume);
    volume.ok(&[&["rollback", "accept", &text(volume.path())], &strs(&options)[..], more].concat())
}

/// The stored files of the tree.
fn stored(volume: &Volume) -> Vec<PathBuf> {
    let entries = fs::read_dir(volume.path().join("tree")).expect("the tree");
    let paths = entries.map(|entry| entry.expect("an entry").path());
    paths.filter(|path| path.symlink_metadata().is_ok_and(|found| found.is_file())).collect()
}

#[test]
fn a_volume_that_is_put_back_is_refused_until_it_is_accepted_and_that_is_in_its_log() -> Outcome {
    let volume = Volume::with(&["--plain-names"]);
    let options = guard(&volume);
    let first = try_mount(&volume, &strs(&options));
    assert_eq!(first.code, 0, "{first:?}");
    assert!(first.stderr.contains("warning: the rollback guard") && first.stderr.contains("trusted"), "{first:?}");
    fs::write(volume.mountpoint().join("file"), b"first")?;
    volume.ok(&["umount", &text(volume.mountpoint())]);
    back_up(&volume, "backup");
    let old_guard = fs::read(volume.file("guard"))?;
    let mounted = mount(volume, &[]);
    fs::write(mounted.at("file"), b"second")?;
    fs::write(mounted.at("later"), b"later")?;
    let volume = mounted.unmount();
    back_up(&volume, "newest");
    let known = info(&volume);
    assert_eq!(known["rollback_guard"]["counter"], known["counter"], "{known}");
    assert_eq!(known["rollback_guard"]["files"], 2, "{known}");

    restore(&volume, "backup");
    // However often it is tried: a refused mount changes nothing that would make the volume look newer.
    for _ in 0..6 {
        let said = refused(&volume, 16);
        assert!(said.contains("was seen at") && said.contains("kmsfs rollback accept"), "{said}");
    }
    assert_eq!(event(&volume, "rollback")["refused"], true);
    // The newest one is taken, and the backup is refused after it still.
    restore(&volume, "newest");
    let mounted = mount(volume, &[]);
    assert_eq!(fs::read(mounted.at("file"))?, b"second");
    let volume = mounted.unmount();
    restore(&volume, "backup");
    refused(&volume, 16);

    let said = accept(&volume, &[]);
    assert!(said.contains("accepted at"), "{said}");
    let noted = event(&volume, "rollback-accepted");
    assert_eq!(noted["before"][1], 2, "{noted}");
    assert!(noted["before"][0].as_u64() > noted["now"].as_u64(), "{noted}");
    volume.ok(&["audit", "verify", "--deep", &text(volume.path())]);
    let mounted = mount(volume, &[]);
    assert_eq!(fs::read(mounted.at("file"))?, b"first");
    fs::write(mounted.at("file"), b"third")?;
    let status = mounted.status();
    assert_eq!(status["rollback_guard"]["suspect"], false, "{status}");
    let volume = mounted.unmount();
    // What went on from the backup is guarded as before.
    restore(&volume, "backup");
    refused(&volume, 16);
    // A guard from before knows less, and is no reason to refuse what is newer.
    restore(&volume, "newest");
    fs::write(volume.file("guard"), old_guard)?;
    drop(mount(volume, &[]));
    Ok(())
}

#[test]
fn a_snapshot_of_a_mounted_volume_is_refused_however_often_it_is_tried() -> Outcome {
    let mounted = mount(Volume::new(), &[]);
    fs::write(mounted.at("file"), b"first")?;
    fs::File::open(mounted.at("file"))?.sync_all()?;
    // What a snapshot would hold: a volume that was not unmounted.
    back_up(mounted.volume(), "snapshot");
    fs::write(mounted.at("file"), b"second")?;
    let volume = mounted.unmount();
    restore(&volume, "snapshot");
    for _ in 0..8 {
        refused(&volume, 16);
    }
    // To be looked at, without a promise, and without anything being noted.
    let options = guard(&volume);
    let look = try_mount(&volume, &[&strs(&options)[..], &["-o", "ro", "--on-rollback", "warn"]].concat());
    assert!(look.code == 0 && look.stderr.contains("was seen at"), "{look:?}");
    assert_eq!(fs::read(volume.mountpoint().join("file"))?, b"first");
    volume.ok(&["umount", &text(volume.mountpoint())]);
    refused(&volume, 16);
    accept(&volume, &[]);
    let mounted = mount(volume, &[]);
    assert_eq!(fs::read(mounted.at("file"))?, b"first");
    Ok(())
}

#[test]
fn a_mount_that_only_warns_does_not_make_the_old_volume_the_right_one() -> Outcome {
    let mounted = mount(Volume::new(), &[]);
    fs::write(mounted.at("file"), b"first")?;
    let volume = mounted.unmount();
    back_up(&volume, "backup");
    let mounted = mount(volume, &[]);
    fs::write(mounted.at("file"), b"second")?;
    let volume = mounted.unmount();
    restore(&volume, "backup");
    let seen = info(&volume)["rollback_guard"]["counter"].as_u64();
    let mut mounted = mount(volume, &["--on-rollback", "warn"]);
    assert_eq!(event(mounted.volume(), "rollback")["refused"], false);
    assert_eq!(fs::read(mounted.at("file"))?, b"first");
    // Far beyond where it was seen.
    for round in 0..4 {
        fs::write(mounted.at(format!("file{round}")), b"more")?;
        assert_eq!(mounted.status()["rollback_guard"]["suspect"], true);
        let volume = mounted.unmount();
        mounted = mount(volume, &["--on-rollback", "warn"]);
    }
    let volume = mounted.unmount();
    assert!(info(&volume)["counter"].as_u64() > seen);
    let said = refused(&volume, 16);
    assert!(said.contains("a rollback was seen before"), "{said}");
    accept(&volume, &[]);
    drop(mount(volume, &[]));
    Ok(())
}

#[test]
fn a_file_that_is_put_back_cannot_be_read_and_the_others_can() -> Outcome {
    let mounted = mount(Volume::with(&["--plain-names"]), &[]);
    for name in ["a", "b"] {
        fs::write(mounted.at(name), bytes(1, 300_000))?;
    }
    let volume = mounted.unmount();
    let place = volume.path().join("tree/a");
    fs::copy(&place, volume.file("old"))?;
    let mounted = mount(volume, &[]);
    fs::write(mounted.at("a"), bytes(2, 300_000))?;
    let volume = mounted.unmount();
    // The volume's own counter is as it should be: only what is known of the file tells.
    fs::copy(volume.file("old"), &place)?;
    let mounted = mount(volume, &[]);
    assert_eq!(number(fs::read(mounted.at("a"))), libc::EIO);
    assert_eq!(fs::read(mounted.at("b"))?, bytes(1, 300_000));
    assert_eq!(mounted.status()["damaged"].as_u64().map(|damaged| damaged > 0), Some(true));
    let scrub = mounted.volume().run(&["scrub", "--json", &text(mounted.at(""))]);
    assert_eq!(scrub.code, 14, "{scrub:?}");
    let found: Value = serde_json::from_str(&scrub.stdout)?;
    let kinds: Vec<_> = found["findings"].as_array().unwrap().iter().map(|finding| &finding["kind"]).collect();
    assert_eq!(kinds, ["rolled_back"], "{found}");
    let volume = mounted.unmount();
    let options = guard(&volume);
    let check = |options: &[&str]| volume.run(&[&["fsck", "--deep", &text(volume.path())], options].concat());
    assert_eq!(check(&strs(&options)).code, 14);
    assert_eq!(check(&[]).code, 0, "without a guard nobody can tell");
    // Only that one is accepted.
    assert_eq!(accept(&volume, &["--file", "tree/a"]).trim(), "accepted");
    assert!(event(&volume, "rollback-accepted")["file"].is_string());
    assert_eq!(info(&volume)["rollback_guard"]["files"], 1);
    let mounted = mount(volume, &[]);
    assert_eq!(fs::read(mounted.at("a"))?, bytes(1, 300_000));
    let volume = mounted.unmount();
    assert_eq!(info(&volume)["rollback_guard"]["files"], 2);
    // A lenient mount reads it, and says so.
    fs::copy(&place, volume.file("old"))?;
    let mounted = mount(volume, &[]);
    fs::write(mounted.at("a"), b"newer")?;
    let volume = mounted.unmount();
    fs::copy(volume.file("old"), &place)?;
    let mounted = mount(volume, &["--on-rollback", "warn"]);
    assert_eq!(fs::read(mounted.at("a"))?, bytes(1, 300_000));
    let volume = mounted.unmount();
    assert!(event(&volume, "rollback")["what"].as_str().is_some_and(|what| what.starts_with("file ")));
    refused(&volume, 16);
    Ok(())
}

#[test]
fn a_kill_at_any_moment_is_no_rollback() -> Outcome {
    let mut mounted = mount(Volume::new(), &[]);
    for round in 0..8_u64 {
        for file in 0..30 {
            let name = mounted.at(format!("file{}", (round * 7 + file) % 40));
            fs::write(&name, bytes(round, 10_000))?;
            if file % 3 == 0 {
                fs::File::open(&name)?.sync_all()?;
            }
        }
        let _ = fs::remove_file(mounted.at(format!("file{round}")));
        if round % 3 == 0 {
            // A batch comes in between, and is known.
            let before = mounted.status()["rollback_guard"]["counter"].clone();
            until("a batch", || mounted.status()["rollback_guard"]["counter"] != before);
            fs::write(mounted.at(format!("file{}", 20 + round)), bytes(round, 100))?;
        }
        kill(&mounted);
        let volume = mounted.into_dead();
        let _ = volume.run(&["umount", "--lazy", &text(volume.mountpoint())]);
        mounted = mount(volume, &[]);
        for entry in fs::read_dir(mounted.at(""))? {
            let path = entry?.path();
            fs::read(&path).map_err(|error| io::Error::other(format!("round {round}, {}: {error}", path.display())))?;
        }
        assert_eq!(mounted.status()["damaged"], 0, "round {round}");
    }
    Ok(())
}

#[test]
fn a_guard_that_is_lost_is_new_and_one_that_is_damaged_or_of_another_volume_is_refused() -> Outcome {
    let mounted = mount(Volume::new(), &[]);
    fs::write(mounted.at("file"), b"content")?;
    let volume = mounted.unmount();
    let whole = fs::read(volume.file("guard"))?;
    let mut damaged = whole.clone();
    damaged[600] ^= 1;
    for bad in [damaged, whole[..100].to_vec(), b"something else".to_vec(), Vec::new()] {
        fs::write(volume.file("guard"), bad)?;
        assert!(refused(&volume, 16).contains("damaged"));
    }
    assert!(volume.run(&["info", &text(volume.path()), "--rollback-guard", &text(volume.file("guard"))]).code == 0);
    accept(&volume, &[]);
    assert!(event(&volume, "rollback-accepted")["before"].is_null());
    let volume = mount(volume, &[]).unmount();

    let other = Volume::new();
    fs::copy(volume.file("guard"), other.file("guard"))?;
    assert!(refused(&other, 11).contains("is of the volume"));

    fs::remove_file(volume.file("guard"))?;
    // A read-only mount compares if it can, and begins nothing.
    let options = guard(&volume);
    let read_only = try_mount(&volume, &[&strs(&options)[..], &["-o", "ro"]].concat());
    assert!(read_only.code == 0 && read_only.stderr.contains("notes nothing"), "{read_only:?}");
    volume.ok(&["umount", &text(volume.mountpoint())]);
    assert!(!volume.file("guard").exists());
    let first = try_mount(&volume, &strs(&options));
    assert!(first.code == 0 && first.stderr.contains("is new"), "{first:?}");
    assert_eq!(event(&volume, "rollback-guard")["first_use"], true);
    volume.ok(&["umount", &text(volume.mountpoint())]);

    // In a directory each volume has its own.
    fs::create_dir(volume.file("guards"))?;
    let place = text(volume.file("guards"));
    let volume = volume.mount(&["--rollback-guard", &place]).unmount();
    let id = info(&volume)["volume_id"].as_str().expect("an id").to_owned();
    assert!(volume.file("guards").join(format!("{id}.ledger")).exists());
    Ok(())
}

#[test]
fn a_guard_in_the_wrong_place_is_refused_and_one_that_cannot_be_written_is_said_to_be() -> Outcome {
    let volume = Volume::new();
    let inside = text(volume.path().join("guard"));
    assert!(volume.mount_fails(&["--rollback-guard", &inside], 2).contains("lies in the volume"));
    let nowhere = text(volume.file("nowhere/guard"));
    volume.mount_fails(&["--rollback-guard", &nowhere], 13);
    // A raw key in a file keeps no counter.
    assert!(volume.mount_fails(&["--rollback-guard", "kms"], 12).contains("keeps no counter"));
    assert_eq!(try_mount(&volume, &["--on-rollback", "warn"]).code, 2);
    Ok(())
}

/// A tiny filesystem, unmounted when it goes out of scope.
struct Tiny(PathBuf);

impl Drop for Tiny {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::DETACH);
    }
}

#[test]
fn a_full_disk_below_the_guard_stops_nothing_and_is_made_up_for() -> Outcome {
    let volume = Volume::new();
    let small = volume.file("small");
    fs::create_dir(&small)?;
    run("mount", &[&"-t", &"tmpfs", &"-o", &"size=8k", &"tmpfs", &small]);
    let small = Tiny(small);
    let place = text(small.0.join("guard"));
    let mounted = volume.mount(&["--rollback-guard", &place]);
    for number in 0..400 {
        fs::write(mounted.at(format!("file{number}")), b"content")?;
    }
    until("the guard cannot be written", || mounted.status()["rollback_guard"]["error"].is_string());
    assert_eq!(fs::read(mounted.at("file7"))?, b"content");
    run("mount", &[&"-o", &"remount,size=1m", &small.0]);
    until("the guard is written", || {
        let status = mounted.status();
        status["rollback_guard"]["error"].is_null() && status["rollback_guard"]["files"] == 400
    });
    let volume = mounted.unmount();
    let known = volume.ok(&["info", "--json", &text(volume.path()), "--rollback-guard", &place]);
    let known: Value = serde_json::from_str(&known)?;
    assert_eq!(known["rollback_guard"]["files"], 400, "{known}");
    Ok(())
}

#[test]
fn the_kms_remembers_where_a_volume_was_and_what_lies_in_the_volume_cannot_be_put_back() -> Outcome {
    let vault = Vault::start();
    let options = ["--rollback-guard", "kms"];
    let mounted = vault.volume_with(&["--plain-names"]).mount(&options);
    fs::write(mounted.at("file"), b"first")?;
    let volume = mounted.unmount();
    back_up(&volume, "backup");
    let old = fs::read(volume.path().join("tree/file"))?;
    let updates = vault.calls("update");
    let mounted = volume.mount(&options);
    fs::write(mounted.at("file"), b"second")?;
    let volume = mounted.unmount();
    assert!(vault.calls("update") > updates && vault.calls("update") <= updates + 2, "coarse: at mount and unmount");
    back_up(&volume, "newest");
    let fails = |code| volume.mount_fails(&options, code);

    // All of it, with the ledger.
    restore(&volume, "backup");
    assert!(fails(16).contains("the KMS remembers"));
    // All of it, and the newest ledger: the volume's own counter tells.
    fs::copy(volume.file("newest").join("ledger.kmsfs"), volume.path().join("ledger.kmsfs"))?;
    assert!(fails(16).contains("was seen at"));
    // No ledger.
    fs::remove_file(volume.path().join("ledger.kmsfs"))?;
    assert!(fails(16).contains("its ledger is gone"));
    // The newest of all, but for one file.
    restore(&volume, "newest");
    fs::write(volume.path().join("tree/file"), old)?;
    let mounted = volume.mount(&options);
    assert_eq!(number(fs::read(mounted.at("file"))), libc::EIO);
    let volume = mounted.unmount();

    // A rotation changes nothing: the new version takes over.
    vault.run(&["key", "rotate", "tenant"]);
    let volume = volume.mount(&options).unmount();
    restore(&volume, "backup");
    assert!(volume.mount_fails(&options, 16).contains("the KMS remembers"));
    volume.ok(&["rollback", "accept", &text(volume.path()), "--rollback-guard", "kms"]);
    let mounted = volume.mount(&options);
    assert_eq!(fs::read(mounted.at("file"))?, b"first");
    let volume = mounted.unmount();
    assert_eq!(stored(&volume).len(), 1);

    // A KMS that cannot be asked is no reason to trust the volume.
    vault.run(&["fault", "forbid-role"]);
    volume.mount_fails(&options, 6);
    vault.run(&["fault", "none"]);
    drop(volume.mount(&options));
    Ok(())
}

#[test]
fn the_kms_remembers_where_a_volume_was_when_another_of_its_keys_has_taken_over() -> Outcome {
    let vault = Vault::start();
    vault.run(&["key", "create", "other"]);
    let other = format!("{}/keys/other", vault.environment()["KMSFS_DEV_VAULT_URL"]);
    let options = ["--rollback-guard", "kms"];
    let mounted = vault.volume_with(&["--plain-names"]).mount(&options);
    fs::write(mounted.at("file"), b"first")?;
    let volume = mounted.unmount();
    back_up(&volume, "before");
    let mounted = volume.mount(&options);
    let noted = mounted.status()["rollback_guard"]["counter"].as_u64();
    fs::write(mounted.at("file"), b"second")?;
    until("the guard is written", || mounted.status()["rollback_guard"]["counter"].as_u64() > noted);
    // The old key is told of it while it can still be.
    mounted.volume().ok(&["rewrap", &text(mounted.at("")), "--kek", &other]);
    let volume = mounted.unmount();
    back_up(&volume, "newest");
    // Under the old key, and under the new one with what was known before.
    restore(&volume, "before");
    assert!(volume.mount_fails(&options, 16).contains("the KMS remembers"));
    restore(&volume, "newest");
    fs::copy(volume.file("before").join("ledger.kmsfs"), volume.path().join("ledger.kmsfs"))?;
    volume.mount_fails(&options, 16);
    restore(&volume, "newest");
    vault.run(&["key", "delete", "tenant"]);
    let mounted = volume.mount(&options);
    assert_eq!(fs::read(mounted.at("file"))?, b"second");
    // And a rekey is known to it as well.
    mounted.volume().ok(&["rekey", &text(mounted.at(""))]);
    let volume = mounted.unmount();
    restore(&volume, "newest");
    assert!(volume.mount_fails(&options, 16).contains("the KMS remembers"));
    Ok(())
}

#[test]
fn a_rewrap_is_no_rollback_and_the_volume_from_before_it_is_one() -> Outcome {
    let mounted = mount(Volume::with(&["--plain-names"]), &[]);
    fs::write(mounted.at("file"), b"content")?;
    let volume = mounted.unmount();
    back_up(&volume, "before");
    let keys = ["second", "third"].map(|name| {
        volume.ok(&["key", "generate", "--output", &text(volume.file(name))]);
        format!("file:{}", text(volume.file(name)))
    });
    // Mounted: the guard knows of it when the mount is killed, too.
    let mounted = mount(volume, &[]);
    mounted.volume().ok(&["rewrap", &text(mounted.at("")), "--kek", &keys[0]]);
    let noted = mounted.status()["rollback_guard"]["counter"].as_u64();
    fs::write(mounted.at("more"), b"more")?;
    until("the guard is written", || mounted.status()["rollback_guard"]["counter"].as_u64() > noted);
    kill(&mounted);
    let volume = mounted.into_dead();
    back_up(&volume, "mounted");
    restore(&volume, "before");
    assert!(refused(&volume, 16).contains("was seen"));
    restore(&volume, "mounted");
    // Not mounted, and the guard is told.
    let options = guard(&volume);
    let path = text(volume.path());
    let told = volume.run(&[&["rewrap", &path, "--kek", &keys[1]], &strs(&options)[..]].concat());
    assert!(told.code == 0 && !told.stderr.contains("warning: "), "{told:?}");
    back_up(&volume, "newest");
    restore(&volume, "mounted");
    assert!(refused(&volume, 16).contains("was seen"));
    let again = volume.run(&[&["rewrap", &path], &strs(&options)[..]].concat());
    assert_eq!(again.code, 16, "a rewrap does not make the old volume the newest: {again:?}");
    // Not mounted, and the guard is not told: what is newer is no rollback.
    restore(&volume, "newest");
    let untold = volume.run(&["rewrap", &path, "--kek", &keys[0]]);
    assert!(
        untold.code == 0 && untold.stderr.contains("warning: the volume's mounts have had a rollback"),
        "{untold:?}"
    );
    let mounted = mount(volume, &[]);
    assert_eq!(fs::read(mounted.at("file"))?, b"content");
    Ok(())
}
