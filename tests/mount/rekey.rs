//! New data keys for a volume that is used, killed, locked and revoked meanwhile.

use crate::harness::{Ended, Mount, Outcome, Volume, bytes, create, number, until};
use crate::recovery::kill;
use crate::rewrap::{check_written, end, events, json_of, mountpoint, place, write};
use crate::vault::Vault;
use serde_json::{Value, json};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

const EKEYREVOKED: i32 = 128;

fn rekey(mount: &Mount, options: &[&str]) -> Value {
    json_of(&mount.volume().run(&[&["rekey", &mountpoint(mount), "--json"], options].concat()), 0)
}

fn info(volume: &Volume) -> Value {
    json_of(&volume.run(&["info", "--count", "--json", &place(volume)]), 0)
}

/// A rekey that takes its time, and has begun.
fn slow(mount: &Mount, options: &[&str]) -> Child {
    let before = mount.status()["rekey"]["number"].as_u64().unwrap_or(0);
    let place = mountpoint(mount);
    let mut command = mount.volume().command(&[&["rekey", &place, "--json"], options].concat());
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the program runs");
    until("it has begun", || {
        let rekey = &mount.status()["rekey"];
        rekey["number"].as_u64() > Some(before) && rekey["state"] == "running" && rekey["bytes"].as_u64() > Some(0)
    });
    child
}

/// The stored files of the tree.
fn stored(volume: &Volume) -> Vec<PathBuf> {
    fn below(directory: PathBuf, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(directory).expect("a directory").map(|entry| entry.expect("an entry").path()) {
            match entry.symlink_metadata().expect("attributes") {
                kind if kind.is_dir() => below(entry, found),
                kind if kind.is_file() => found.push(entry),
                _ => (),
            }
        }
    }
    let mut found = Vec::new();
    below(volume.path().join("tree"), &mut found);
    found
}

fn fsck(volume: &Volume) {
    let checked = json_of(&volume.run(&["fsck", "--deep", "--json", &place(volume)]), 0);
    assert_eq!(checked["findings"], json!([]), "{checked:#}");
}

#[test]
fn each_envelope_is_unwrapped_once_and_the_new_ones_are_as_few_as_they_can_be() -> Outcome {
    const FILES: u64 = 120;
    let vault = Vault::start();
    let mount = vault.volume_with(&["--files-per-envelope", "10"]).mount(&[]);
    for file in 0..FILES {
        fs::write(mount.at(format!("{file}")), bytes(file, 1000))?;
    }
    let mount = mount.again(&["--revalidate", "1h"]);
    let (unwraps, wraps) = (vault.calls("unwrapkey"), vault.calls("wrapkey"));
    let report = rekey(&mount, &[]);
    assert_eq!(
        (&report["complete"], &report["rekeyed"], &report["floor_raised"]),
        (&json!(true), &json!(FILES), &json!(true))
    );
    assert_eq!((&report["unwrapped"], &report["wrapped"]), (&json!(12), &json!(12)), "{report:#}");
    assert_eq!(vault.calls("unwrapkey") - unwraps, 12);
    assert_eq!(vault.calls("wrapkey"), wraps, "an RSA key wraps here");
    for file in 0..FILES {
        assert!(fs::read(mount.at(format!("{file}")))? == bytes(file, 1000));
    }
    let volume = mount.unmount();
    let info = info(&volume);
    assert_eq!((&info["epochs"], &info["epoch"], &info["epoch_floor"]), (&json!({ "1": FILES }), &json!(1), &json!(1)));
    assert_eq!((&info["rekey"], &info["files_between_keys"]), (&Value::Null, &json!(0)), "{info:#}");
    let (begun, ended) = (events(&volume, "rekey-started"), events(&volume, "rekey-ended"));
    assert_eq!((begun.len(), &begun[0]["part"]), (1, &json!(false)));
    assert_eq!(
        (&ended[0]["state"], &ended[0]["files"], &ended[0]["floor_raised"]),
        (&json!("complete"), &json!(FILES), &json!(true))
    );
    fsck(&volume);
    Ok(())
}

const LONG: u64 = 24 << 20;

/// Overwrites parts of a long file, each with bytes that say of which turn they are, until told to stop.
fn scribble(mount: &Mount, stop: &AtomicBool, content: &mut [u8]) {
    let Ok(file) = OpenOptions::new().write(true).open(mount.at("long")) else { return };
    let mut turn = 1_u64;
    while !stop.load(Relaxed) {
        let at = blake3::hash(&turn.to_le_bytes()).as_bytes()[..4].try_into().map(u32::from_le_bytes).expect("4 bytes");
        let at = u64::from(at) % (LONG - 20_000);
        let new = bytes(turn, 20_000);
        // The mount may have been killed.
        if file.write_all_at(&new, at).and_then(|()| file.sync_data()).is_err() {
            return;
        }
        content[at as usize..][..new.len()].copy_from_slice(&new);
        turn += 1;
    }
}

#[test]
fn everything_gets_a_new_key_under_load_though_its_process_is_killed_and_what_was_before_is_refused() -> Outcome {
    const FILES: u64 = 300;
    let volume = Volume::with(&["--files-per-envelope", "50"]);
    let mut mount = volume.mount(&[]);
    for directory in 0..2 {
        fs::create_dir(mount.at(format!("d{directory}")))?;
    }
    for file in 0..FILES {
        fs::write(mount.at(format!("d{}/still {file}", file % 2)), bytes(file, 100 + 40 * file as usize))?;
    }
    fs::hard_link(mount.at("d0/still 0"), mount.at("linked"))?;
    let mut long = bytes(1000, LONG as usize);
    create(mount.at("long")).write_all_at(&long, 0)?;
    let hole = create(mount.at("hole"));
    hole.set_len(3 << 30)?;
    hole.write_all_at(b"behind the hole", (3 << 30) - 15)?;
    hole.sync_all()?;
    rustix::fs::syncfs(File::open(mount.at(""))?)?;
    let before = mount.volume().file("before");
    crate::harness::run("cp", &[&"-a", &mount.volume().path().join("tree"), &before]);
    let synced: [Vec<AtomicU64>; 2] = std::array::from_fn(|_| (0..8).map(|_| AtomicU64::new(0)).collect());
    let still = |mount: &Mount| {
        for file in 0..FILES {
            let content = fs::read(mount.at(format!("d{}/still {file}", file % 2))).expect("readable");
            assert!(content == bytes(file, 100 + 40 * file as usize), "{file}");
        }
        let mut end = [0; 15];
        let hole = File::open(mount.at("hole")).expect("it opens");
        hole.read_exact_at(&mut end, (3 << 30) - 15).expect("the end");
        assert_eq!(&end, b"behind the hole");
        assert!(hole.metadata().expect("attributes").blocks() < 1000, "the hole is one");
    };
    let load = |mount: &Mount, long: &mut Vec<u8>, act: &dyn Fn() -> Ended| {
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for (thread, synced) in synced.iter().enumerate() {
                let stop = &stop;
                scope.spawn(move || write(mount, thread as u64, stop, synced));
            }
            scope.spawn(|| scribble(mount, &stop, long));
            let ended = act();
            stop.store(true, Relaxed);
            ended
        })
    };
    let check_long = |mount: &Mount, long: &mut Vec<u8>| {
        let found = fs::read(mount.at("long")).expect("readable");
        // What was being written when it was killed is there or not, chunk by chunk.
        let differ = found.iter().zip(&*long).filter(|(a, b)| a != b).count();
        assert!(found.len() == long.len() && differ <= 20_000, "{differ} bytes differ");
        *long = found;
    };
    // Killed in the middle, and again.
    for round in 0..2 {
        let ended = load(&mount, &mut long, &|| {
            let child = slow(&mount, &["--rate", "8MiB/s"]);
            until("some is done", || mount.status()["rekey"]["bytes"].as_u64() > Some(6 << 20));
            kill(&mount);
            end(child)
        });
        assert!(ended.code == 4 && ended.stderr.contains("the same command goes on"), "{ended:?}");
        mount = mount.into_dead().mount(&[]);
        synced.iter().enumerate().for_each(|(thread, synced)| check_written(&mount, thread as u64, synced));
        still(&mount);
        check_long(&mount, &mut long);
        let info = info(mount.volume());
        assert_eq!(
            (&info["rekey"], &info["epoch"], &info["epoch_floor"]),
            (&json!("all"), &json!(1), &json!(0)),
            "{round}"
        );
    }
    let held = File::open(mount.at("d1/still 1"))?;
    let ended = load(&mount, &mut long, &|| mount.volume().run(&["rekey", &mountpoint(&mount), "--json"]));
    let report = json_of(&ended, 0);
    assert_eq!((&report["complete"], &report["floor_raised"]), (&json!(true), &json!(true)), "{report:#}");
    still(&mount);
    check_long(&mount, &mut long);
    assert!(crate::harness::content(&held) == bytes(1, 140));
    drop(held);
    assert_eq!(mount.status()["damaged"], 0);
    let volume = mount.unmount();
    fsck(&volume);
    let epochs = &info(&volume)["epochs"];
    assert!(epochs.as_object().is_some_and(|epochs| epochs.keys().eq(["1"])), "{epochs}");
    // One of the files as it was: the header alone, and all of it.
    let name = |path: &PathBuf| fs::metadata(path).expect("attributes").len();
    let old = stored(&volume).into_iter().map(|path| {
        let relative = path.strip_prefix(volume.path().join("tree")).expect("below").to_owned();
        (before.join(relative), path)
    });
    let (old, now) = old.filter(|(old, _)| old.exists()).max_by_key(|(old, _)| name(old)).expect("a file");
    let header = fs::read(&old)?[..4096].to_vec();
    OpenOptions::new().write(true).open(&now)?.write_all_at(&header, 0)?;
    let mount = volume.mount(&[]);
    let read = |mount: &Mount| {
        ["hole", "long"].map(|name| File::open(mount.at(name)).map(drop).map_err(|error| error.raw_os_error()))
    };
    assert!(read(&mount).contains(&Err(Some(libc::EIO))), "a header of before");
    let volume = mount.unmount();
    fs::copy(&old, &now)?;
    let mount = volume.mount(&[]);
    assert!(read(&mount).contains(&Err(Some(libc::EIO))), "a file of before");
    Ok(())
}

#[test]
fn one_at_a_time_cancelled_locked_and_gone_on_with_where_it_is_not_mounted() -> Outcome {
    let volume = Volume::new();
    volume.make_key("new");
    let mount = volume.mount(&[]);
    for file in 0..3_u64 {
        fs::write(mount.at(format!("{file}")), bytes(file, 5 << 20))?;
    }
    let child = slow(&mount, &["--rate", "2MiB/s"]);
    let kek = mount.volume().kek("new");
    for other in [&["rekey"][..], &["rewrap", "--kek", &kek]] {
        let second = mount.volume().run(&[other, &[&mountpoint(&mount)]].concat());
        assert!(second.code == 10 && second.stderr.contains("a rekey runs on this mount already"), "{second:?}");
    }
    // A scrub may look at what is between two keys.
    let scrubbed = json_of(&mount.volume().run(&["scrub", "--json", &mountpoint(&mount)]), 0);
    assert_eq!(scrubbed["findings"], json!([]), "{scrubbed:#}");
    mount.volume().ok(&["rekey", "--cancel", &mountpoint(&mount)]);
    let cancelled = end(child);
    assert_eq!(json_of(&cancelled, 130)["state"], "cancelled");
    assert!(cancelled.stderr.contains("the same command goes on"), "{cancelled:?}");
    let child = slow(&mount, &["--rate", "2MiB/s"]);
    mount.volume().ok(&["lock", &mountpoint(&mount)]);
    assert_eq!(json_of(&end(child), 1)["state"], "locked");
    mount.volume().ok(&["unlock", &mountpoint(&mount)]);
    for file in 0..3_u64 {
        assert!(fs::read(mount.at(format!("{file}")))? == bytes(file, 5 << 20));
    }
    let volume = mount.unmount();
    let now = info(&volume);
    assert_eq!((&now["files_between_keys"], &now["epoch"]), (&json!(1), &json!(1)), "{now:#}");
    fsck(&volume);
    volume.ok(&["info", "--count", &place(&volume)]);
    // Exported as it is.
    volume.ok(&["export", &place(&volume), volume.file("out").to_str().expect("UTF-8")]);
    for file in 0..3_u64 {
        assert!(fs::read(volume.file("out").join(format!("{file}")))? == bytes(file, 5 << 20));
    }
    let done = json_of(&volume.run(&["rekey", &place(&volume), "--json"]), 0);
    assert_eq!(
        (&done["complete"], &done["floor_raised"], &done["epoch"]),
        (&json!(true), &json!(true), &json!(1)),
        "{done:#}"
    );
    fsck(&volume);
    let mount = volume.mount(&["-o", "ro"]);
    let refused = mount.volume().run(&["rekey", &mountpoint(&mount)]);
    assert!(refused.code == 1 && refused.stderr.contains("nothing can be changed"), "{refused:?}");
    for file in 0..3_u64 {
        assert!(fs::read(mount.at(format!("{file}")))? == bytes(file, 5 << 20));
    }
    Ok(())
}

#[test]
fn a_part_of_the_tree_or_what_is_old_gets_new_keys() -> Outcome {
    let mount = Volume::new().mount(&[]);
    fs::create_dir(mount.at("directory"))?;
    for file in ["directory/a", "directory/b", "c"] {
        fs::write(mount.at(file), file)?;
    }
    let all_are_readable = |mount: &Mount| {
        ["directory/a", "directory/b", "c"]
            .iter()
            .all(|file| fs::read(mount.at(file)).is_ok_and(|read| read == file.as_bytes()))
    };
    let below = mount.at("directory");
    let report = rekey(&mount, &["--path", below.to_str().expect("UTF-8")]);
    assert_eq!(
        (&report["rekeyed"], &report["total"], &report["floor_raised"]),
        (&json!(2), &json!(2), &json!(false)),
        "{report:#}"
    );
    let report = rekey(&mount, &["--path", "directory/b"]);
    assert_eq!((&report["rekeyed"], &report["epoch"]), (&json!(1), &json!(2)), "{report:#}");
    assert!(all_are_readable(&mount));
    let failed = mount.volume().run(&["rekey", &mountpoint(&mount), "--path", "no such"]);
    assert!(failed.code == 13 && failed.stderr.contains("no such"), "{failed:?}");
    for path in ["/elsewhere", "directory/../c"] {
        assert_eq!(mount.volume().run(&["rekey", &mountpoint(&mount), "--path", path]).code, 2);
    }
    // Nothing is older than a day; everything is older than nothing.
    assert_eq!(rekey(&mount, &["--older-than", "1d"])["rekeyed"], 0);
    let before = rekey(&mount, &["--older-than", "1d", "--path", "directory"]);
    assert_eq!((&before["rekeyed"], &before["total"]), (&json!(0), &json!(2)));
    until("a second has passed", || rekey(&mount, &["--older-than", "0s"])["rekeyed"] == 3);
    assert!(all_are_readable(&mount));
    let volume = mount.unmount();
    let done = json_of(&volume.run(&["rekey", &place(&volume), "--json", "--path", "/directory/a"]), 0);
    assert_eq!(done["rekeyed"], 1);
    let info = info(&volume);
    assert_eq!((&info["epoch_floor"], &info["rekey"]), (&json!(0), &Value::Null), "{info:#}");
    fsck(&volume);
    Ok(())
}

#[test]
fn a_revocation_in_the_middle_locks_and_the_same_command_goes_on_when_the_key_is_back() -> Outcome {
    let vault = Vault::start();
    let mount = vault.volume().mount(&["--revalidate", "1s"]);
    fs::write(mount.at("file"), bytes(1, 12 << 20))?;
    File::open(mount.at("file"))?.sync_all()?;
    let held = File::open(mount.at("file"))?;
    let child = slow(&mount, &["--rate", "2MiB/s"]);
    vault.run(&["key", "disable", "tenant"]);
    until("it locks", || mount.status()["state"] == "locked");
    assert_eq!(json_of(&end(child), 1)["state"], "locked");
    assert_eq!(
        held.read_at(&mut [0; 10], 8 << 20).map_err(|error: io::Error| error.raw_os_error()),
        Err(Some(EKEYREVOKED))
    );
    let refused = mount.volume().run(&["rekey", &mountpoint(&mount)]);
    assert!(refused.code == 1 && refused.stderr.contains("locked"), "{refused:?}");
    vault.run(&["key", "enable", "tenant"]);
    until("it unlocks", || mount.status()["state"] == "unlocked");
    assert!(crate::harness::content(&held) == bytes(1, 12 << 20));
    let report = rekey(&mount, &[]);
    assert_eq!((&report["floor_raised"], &report["epoch"]), (&json!(true), &json!(1)), "{report:#}");
    assert!(crate::harness::content(&held) == bytes(1, 12 << 20));
    drop(held);
    fsck(&mount.unmount());
    Ok(())
}

#[test]
fn a_damaged_file_is_left_and_named_and_the_floor_waits_for_it() -> Outcome {
    let mount = Volume::new().mount(&[]);
    fs::write(mount.at("damaged"), bytes(1, 3 << 20))?;
    fs::write(mount.at("fine"), bytes(2, 100))?;
    let volume = mount.unmount();
    let place_of = stored(&volume).into_iter().max_by_key(|path| fs::metadata(path).expect("attributes").len());
    let place_of = place_of.expect("a file");
    let file = OpenOptions::new().read(true).write(true).open(&place_of)?;
    let mut byte = [0];
    file.read_exact_at(&mut byte, 2 << 20)?;
    file.write_all_at(&[byte[0] ^ 1], 2 << 20)?;
    let mount = volume.mount(&[]);
    let left = mount.volume().run(&["rekey", &mountpoint(&mount), "--json"]);
    let report = json_of(&left, 14);
    assert_eq!(
        (&report["complete"], &report["left"], &report["rekeyed"]),
        (&json!(false), &json!(1), &json!(1)),
        "{report:#}"
    );
    let name = place_of.strip_prefix(mount.volume().path())?.to_str().expect("UTF-8").to_owned();
    assert_eq!(report["left_files"][0]["stored"], json!(name));
    assert!(left.stderr.contains("1 files still have their old key"), "{left:?}");
    // Some of it is between two keys, and the rest can be read as before.
    let damaged = File::open(mount.at("damaged"))?;
    let (mut first, mut last) = (vec![0; 1 << 19], vec![0; 1 << 19]);
    damaged.read_exact_at(&mut first, 0)?;
    damaged.read_exact_at(&mut last, 5 << 19)?;
    assert!(first == bytes(1, 3 << 20)[..1 << 19] && last == bytes(1, 3 << 20)[5 << 19..]);
    assert_eq!(number(damaged.read_exact_at(&mut first, (2 << 20) - (1 << 18))), libc::EIO);
    drop(damaged);
    fs::remove_file(mount.at("damaged"))?;
    assert_eq!(rekey(&mount, &[])["floor_raised"], true);
    assert!(fs::read(mount.at("fine"))? == bytes(2, 100));
    Ok(())
}

#[test]
fn a_header_of_before_is_refused_by_a_rollback_guard_though_the_floor_is_not_raised() -> Outcome {
    let volume = Volume::new();
    let guard = volume.file("guard").to_str().expect("UTF-8").to_owned();
    let options = ["--rollback-guard", &guard];
    let mount = volume.mount(&options);
    fs::write(mount.at("file"), "content")?;
    let volume = mount.unmount();
    let path = stored(&volume).remove(0);
    let before = fs::read(&path)?;
    let mount = volume.mount(&options);
    assert_eq!(rekey(&mount, &["--path", "file"])["rekeyed"], 1);
    let volume = mount.unmount();
    let done =
        json_of(&volume.run(&[&["rekey", &place(&volume), "--json", "--path", "file"], &options[..]].concat()), 0);
    assert_eq!(done["rekeyed"], 1);
    let mount = volume.mount(&options);
    assert_eq!(fs::read(mount.at("file"))?, b"content");
    let volume = mount.unmount();
    fs::write(&path, before)?;
    let mount = volume.mount(&options);
    assert_eq!(number(fs::read(mount.at("file"))), libc::EIO);
    Ok(())
}
