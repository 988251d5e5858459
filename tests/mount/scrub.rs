//! Authenticating everything while applications use it: `kmsfs scrub`.

use crate::harness::{Ended, Mount, Outcome, Volume, bytes, run, until};
use kmsfs::format::geometry::{ChunkSize, Geometry};
use kmsfs::units::ChunkIndex;
use rustix::fs::XattrFlags;
use serde_json::{Value, json};
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

fn mountpoint(mount: &Mount) -> String {
    mount.at("").to_str().expect("UTF-8").to_owned()
}

fn scrub(mount: &Mount, options: &[&str]) -> Ended {
    mount.volume().run(&[&["scrub", &mountpoint(mount), "--json"], options].concat())
}

/// The report of a scrub that has to end like this.
fn report(ended: &Ended, code: i32) -> Value {
    assert_eq!(ended.code, code, "{ended:?}");
    serde_json::from_str(&ended.stdout).expect("JSON")
}

/// A scrub that takes its time, and has begun to read.
fn slow(mount: &Mount) -> Child {
    let mut command = mount.volume().command(&["scrub", &mountpoint(mount), "--json", "--rate", "200KiB/s"]);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the program runs");
    until("it reads", || {
        let scrub = &mount.status()["scrub"];
        scrub["state"] == "running" && scrub["bytes"].as_u64() > Some(0)
    });
    child
}

fn end(child: Child) -> Ended {
    Ended::from(child.wait_with_output().expect("it ends"))
}

/// Where the store keeps the file.
fn stored(mount: &Mount, name: &str) -> PathBuf {
    let ino = fs::symlink_metadata(mount.at(name)).expect("attributes").ino();
    let mut directories = vec![mount.volume().path().join("tree")];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).expect("a directory") {
            let path = entry.expect("an entry").path();
            let metadata = fs::symlink_metadata(&path).expect("attributes");
            if metadata.ino() == ino {
                return path;
            }
            if metadata.is_dir() {
                directories.push(path);
            }
        }
    }
    panic!("{name} is not stored")
}

fn flip(path: &Path, at: u64) {
    let file = OpenOptions::new().read(true).write(true).open(path).expect("the stored file");
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).expect("a byte");
    file.write_all_at(&[byte[0] ^ 0x10], at).expect("written");
}

fn events(volume: &Volume, event: &str) -> Vec<Value> {
    let shown = volume.ok(&["audit", "show", "--json", volume.path().to_str().expect("UTF-8")]);
    let lines = shown.lines().map(|line| serde_json::from_str::<Value>(line).expect("a line is JSON"));
    lines.filter(|line| line["event"] == event).collect()
}

/// Files that are made, written, renamed, linked, cut and removed, and each time are what they have to be.
fn change_files(mount: &Mount, thread: u64, done: &AtomicBool, turns: &AtomicU64) {
    let name = |turn: u64| {
        let long = if turn.is_multiple_of(2) { "long".repeat(60) } else { String::new() };
        mount.at(format!("d{}/{thread}-{long}{}", turn % 3, turn % 4))
    };
    let mut turn = 0;
    while !done.load(Relaxed) {
        let (path, other) = (name(turn), name(turn + 1));
        let mut content = bytes(thread << 32 | turn, (turn * 977 % 300_000) as usize);
        fs::write(&path, &content).expect("written");
        let file = OpenOptions::new().read(true).write(true).open(&path).expect("opened");
        let middle = content.len() / 2;
        file.write_all_at(&[7; 5000], middle as u64).expect("overwritten");
        content.resize(content.len().max(middle + 5000), 0);
        content[middle..middle + 5000].fill(7);
        if turn.is_multiple_of(3) {
            file.sync_all().expect("synced");
            file.set_len(content.len() as u64 / 3).expect("cut");
            content.truncate(content.len() / 3);
            content.resize(content.len() + 200_000, 0);
            file.set_len(content.len() as u64).expect("extended");
        }
        fs::rename(&path, &other).expect("renamed");
        if turn.is_multiple_of(5) {
            fs::hard_link(&other, &path).expect("linked");
            fs::remove_file(&path).expect("unlinked");
        }
        assert!(fs::read(&other).expect("read") == content, "{thread} {turn}");
        fs::remove_file(&other).expect("removed");
        assert!(crate::harness::content(&file) == content, "{thread} {turn}, removed");
        turn += 1;
        turns.fetch_add(1, Relaxed);
    }
}

/// The same names again and again, for new files that are there only for a moment, or replace each other.
fn replace_files(mount: &Mount, done: &AtomicBool, turns: &AtomicU64) {
    let mut turn = 0;
    while !done.load(Relaxed) {
        drop(crate::harness::create(mount.at("d0/moment")));
        fs::remove_file(mount.at("d0/moment")).expect("removed");
        let file = crate::harness::create(mount.at("d0/empty, then not"));
        let content = bytes(turn, 40_000);
        file.write_all_at(&content, 0).expect("written");
        drop(file);
        assert!(fs::read(mount.at("d0/empty, then not")).expect("read") == content);
        fs::rename(mount.at("d0/empty, then not"), mount.at("d1/replaced")).expect("renamed");
        assert!(fs::read(mount.at("d1/replaced")).expect("read") == content);
        turn += 1;
        turns.fetch_add(1, Relaxed);
    }
}

/// Symbolic links, directories and attributes.
fn change_others(mount: &Mount, done: &AtomicBool, turns: &AtomicU64) {
    let long = "n".repeat(240);
    while !done.load(Relaxed) {
        for target in ["short".to_owned(), "t".repeat(3500)] {
            let link = mount.at(format!("d2/{long}-link"));
            symlink(&target, &link).expect("linked");
            symlink(&target, mount.at("d2/other")).expect("linked");
            fs::rename(mount.at("d2/other"), &link).expect("renamed");
            assert_eq!(fs::read_link(&link).expect("read").to_str(), Some(&target[..]));
            fs::remove_file(&link).expect("removed");
        }
        let directory = mount.at(format!("d2/{long}"));
        fs::create_dir(&directory).expect("made");
        fs::write(directory.join(&long), "below").expect("written");
        rustix::fs::setxattr(&directory, "user.a", &[1; 100], XattrFlags::empty()).expect("set");
        rustix::fs::setxattr(directory.join(&long), "user.a", &[1; 100], XattrFlags::empty()).expect("set");
        rustix::fs::removexattr(&directory, "user.a").expect("removed");
        fs::rename(&directory, mount.at("d2/moved")).expect("renamed");
        fs::remove_dir_all(mount.at("d2/moved")).expect("removed");
        turns.fetch_add(1, Relaxed);
    }
}

fn storm(volume: Volume) -> Outcome {
    let mount = volume.mount(&[]);
    for directory in 0..3 {
        fs::create_dir(mount.at(format!("d{directory}")))?;
    }
    for i in 0..40 {
        fs::write(mount.at(format!("d{}/still {i}", i % 3)), bytes(i, 3000 * i as usize))?;
    }
    fs::write(mount.at("large"), bytes(99, 6 << 20))?;
    let (done, scrubs) = (AtomicBool::new(false), 8);
    let turns: [AtomicU64; 4] = Default::default();
    let found = std::thread::scope(|scope| {
        scope.spawn(|| change_files(&mount, 1, &done, &turns[0]));
        scope.spawn(|| change_files(&mount, 2, &done, &turns[1]));
        scope.spawn(|| replace_files(&mount, &done, &turns[2]));
        scope.spawn(|| change_others(&mount, &done, &turns[3]));
        until("everybody is at work", || turns.iter().all(|turns| turns.load(Relaxed) > 0));
        let found: Vec<Ended> = (0..scrubs).map(|_| scrub(&mount, &[])).collect();
        done.store(true, Relaxed);
        found
    });
    for ended in &found {
        let report = report(ended, 0);
        assert_eq!((&report["findings"], &report["complete"]), (&json!([]), &json!(true)), "{report:#}");
        assert!(report["files_checked"].as_u64() >= Some(41) && report["bytes_authenticated"].as_u64() > Some(6 << 20));
    }
    let status = mount.status();
    assert_eq!((&status["damaged"], &status["scrub"]["number"]), (&json!(0), &json!(scrubs)), "{status:#}");
    assert_eq!(status["scrub"]["state"], "complete");
    // What nobody has open is let go of.
    assert_eq!(report(&scrub(&mount, &[]), 0)["files_checked"], 42);
    until("nothing is kept open", || mount.status()["open_files"] == 0);
    let volume = mount.unmount();
    let checks = events(&volume, "check");
    assert_eq!((checks.len(), &checks[0]["what"], &checks[0]["complete"]), (scrubs + 1, &json!("scrub"), &json!(true)));
    let checked = volume.ok(&["fsck", "--deep", "--json", volume.path().to_str().expect("UTF-8")]);
    let checked: Value = serde_json::from_str(&checked)?;
    assert_eq!(checked["findings"], json!([]), "{checked:#}");
    Ok(())
}

#[test]
fn nothing_is_found_in_a_whole_volume_whatever_happens_in_it() -> Outcome {
    storm(Volume::new())?;
    storm(Volume::with(&["--plain-names"]))
}

#[test]
fn a_flipped_bit_is_found_named_counted_and_logged() -> Outcome {
    let mount = Mount::new();
    let chunk_size = ChunkSize::DEFAULT;
    let geometry = Geometry::new(chunk_size);
    fs::create_dir(mount.at("a directory"))?;
    for name in ["whole", "damaged", "open"] {
        fs::write(mount.at(format!("a directory/{name}")), bytes(1, 10 * chunk_size.bytes() as usize))?;
    }
    let open = File::open(mount.at("a directory/open"))?;
    open.sync_all()?;
    let before = report(&scrub(&mount, &[]), 0);
    assert_eq!((&before["files_checked"], &before["findings"]), (&json!(3), &json!([])));
    for (name, chunk) in [("damaged", 3), ("damaged", 4), ("damaged", 8), ("open", 5)] {
        let place = stored(&mount, &format!("a directory/{name}"));
        flip(&place, geometry.stored_chunk(ChunkIndex(chunk)).0 + 17);
    }
    let found = report(&scrub(&mount, &[]), 14);
    assert_eq!((&found["complete"], &found["damaged"], &found["files_checked"]), (&json!(true), &json!(2), &json!(3)));
    let mut findings = found["findings"].as_array().expect("findings").clone();
    findings.sort_by_key(|finding| finding["path"].as_str().map(str::to_owned));
    for (finding, (name, chunks)) in
        findings.iter().zip([("damaged", json!([[3, 4], [8, 8]])), ("open", json!([[5, 5]]))])
    {
        let path = format!("a directory/{name}");
        assert_eq!((&finding["kind"], &finding["path"]), (&json!("chunk"), &json!(path)), "{found:#}");
        assert_eq!(finding["chunks"], chunks, "{found:#}");
        let place = stored(&mount, &path);
        assert_eq!(Path::new(finding["stored"].as_str().expect("a path")), place.strip_prefix(mount.volume().path())?);
    }
    let ended = mount.volume().run(&["scrub", &mountpoint(&mount)]);
    assert!(ended.code == 14 && ended.stdout.contains("chunk: a directory/damaged"), "{ended:?}");
    assert!(ended.stderr.contains("hint: "), "{ended:?}");
    // Each of the two scrubs met all four.
    assert_eq!(mount.status()["damaged"], 8);
    assert_eq!(mount.status()["scrub"]["damaged"], 2);
    drop(open);
    for name in ["damaged", "open"] {
        fs::remove_file(mount.at(format!("a directory/{name}")))?;
    }
    report(&scrub(&mount, &[]), 0);
    let volume = mount.unmount();
    let chunks = |lines: &[Value]| lines.iter().map(|line| line["chunk"].as_u64().unwrap_or(0)).collect::<Vec<_>>();
    let mut logged = chunks(&events(&volume, "failed-decryption"));
    logged.sort_unstable();
    assert_eq!(logged, [3, 3, 4, 4, 5, 5, 8, 8]);
    let damaged: Vec<_> = events(&volume, "check").iter().map(|check| check["damaged"].clone()).collect();
    assert_eq!(damaged, [0, 2, 2, 0]);
    Ok(())
}

#[test]
fn a_name_and_a_link_that_do_not_authenticate_are_found() -> Outcome {
    let mount = Mount::new();
    fs::write(mount.at("file"), "content")?;
    symlink("target", mount.at("link"))?;
    let tree = mount.volume().path().join("tree");
    fs::rename(stored(&mount, "file"), tree.join("moved"))?;
    let link = stored(&mount, "link");
    fs::remove_file(&link)?;
    symlink("forged", &link)?;
    let found = report(&scrub(&mount, &[]), 14);
    let mut kinds: Vec<_> = found["findings"].as_array().expect("findings").iter().map(|f| f["kind"].clone()).collect();
    kinds.sort_by_key(ToString::to_string);
    assert_eq!(kinds, ["link_target", "name"], "{found:#}");
    assert_eq!(mount.status()["damaged"], 2);
    Ok(())
}

#[test]
fn a_scrub_is_slow_if_told_to_alone_and_ends_when_it_is_cancelled() -> Outcome {
    let mount = Mount::new();
    fs::write(mount.at("file"), bytes(1, 20 << 20))?;
    let begin = Instant::now();
    let child = slow(&mount);
    let second = scrub(&mount, &[]);
    assert_eq!(second.code, 10, "{second:?}");
    assert!(second.stderr.contains("scrub 1 runs on this mount already") && second.stderr.contains("\nhint: "));
    run("kill", &[&"-INT", &child.id().to_string()]);
    let ended = end(child);
    let cancelled = report(&ended, 130);
    assert_eq!((&cancelled["state"], &cancelled["complete"]), (&json!("cancelled"), &json!(false)));
    assert!(ended.stderr.contains("not everything was looked at"), "{ended:?}");
    let child = slow(&mount);
    mount.volume().ok(&["scrub", "--cancel", &mountpoint(&mount)]);
    report(&end(child), 130);
    let nothing = mount.volume().run(&["scrub", "--cancel", &mountpoint(&mount)]);
    assert!(nothing.code == 1 && nothing.stderr.contains("no scrub runs"), "{nothing:?}");
    // 20 MiB at that rate take longer than a minute and a half.
    assert!(begin.elapsed() < Duration::from_secs(60));
    report(&scrub(&mount, &["--rate", "1GiB/s"]), 0);
    let child = slow(&mount);
    let volume = mount.unmount();
    let ended = end(child);
    assert_eq!(ended.code, 4, "{ended:?}");
    assert!(ended.stderr.contains("not everything was looked at"), "{ended:?}");
    assert_eq!(events(&volume, "check").iter().filter(|check| check["complete"] == true).count(), 1);
    Ok(())
}

#[test]
fn a_lock_ends_a_scrub_and_takes_the_names_that_it_found_along() -> Outcome {
    let mount = Mount::new();
    fs::write(mount.at("file"), bytes(1, 20 << 20))?;
    File::open(mount.at("file"))?.sync_all()?;
    let geometry = Geometry::new(ChunkSize::DEFAULT);
    flip(&stored(&mount, "file"), geometry.stored_chunk(ChunkIndex(0)).0 + 17);
    let child = slow(&mount);
    until("it is found", || mount.status()["scrub"]["damaged"] == 1);
    mount.volume().ok(&["lock", &mountpoint(&mount)]);
    let ended = end(child);
    let locked = report(&ended, 1);
    assert_eq!((&locked["state"], &locked["damaged"]), (&json!("locked"), &json!(1)));
    assert_eq!(locked["findings"][0]["path"], Value::Null, "{locked:#}");
    assert!(ended.stderr.contains("the volume locked: not everything was looked at"), "{ended:?}");
    let refused = mount.volume().run(&["scrub", &mountpoint(&mount)]);
    assert!(refused.code == 1 && refused.stderr.contains("the volume is locked"), "{refused:?}");
    mount.volume().ok(&["unlock", &mountpoint(&mount)]);
    assert_eq!(report(&scrub(&mount, &[]), 14)["findings"][0]["path"], "file");
    Ok(())
}
