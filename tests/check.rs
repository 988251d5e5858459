//! `kmsfs fsck`: it finds what a mount would stumble upon, names it, and finds nothing else.

#![allow(clippy::unwrap_used, reason = "a test ends at the first thing that goes wrong")]

#[path = "format/harness.rs"]
mod harness;
#[path = "check/online.rs"]
mod online;

use harness::*;
use kmsfs::fs::{Fs, ROOT};
use kmsfs::store::RenameMode;
use kmsfs::units::PlainOffset;
use serde_json::{Value, json};
use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const C: u64 = 4096;

fn fsck(volume: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_kmsfs")).arg("fsck").arg(volume).args(arguments).output().unwrap()
}

/// The report of a check that has to end like this.
fn report(volume: &Path, arguments: &[&str], code: i32) -> Value {
    let output = fsck(volume, &[arguments, &["--json"]].concat());
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert_eq!(output.status.code(), Some(code), "{}{}", text(&output.stdout), text(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn findings(report: &Value) -> &Vec<Value> {
    report["findings"].as_array().unwrap()
}

/// A volume with something of every kind.
fn fill(fs: &Fs) {
    let bytes: Vec<u8> = blake3::hash(b"content").as_bytes().iter().copied().cycle().take(330 * C as usize).collect();
    make_file(fs, ROOT, b"empty", &[], 0);
    let three = make_file(fs, ROOT, b"three", &[(0, &bytes[..2 * C as usize + 100])], 2 * C + 100);
    make_file(fs, ROOT, b"sparse", &[(0, b"begin"), (1 << 30, b"middle")], 1 << 40);
    make_file(fs, ROOT, b"hole at the end", &[(0, b"begin")], 70 * C + 5);
    make_file(fs, ROOT, b"blocks", &[(0, &bytes)], bytes.len() as u64);
    make_file(fs, ROOT, &[b'n'; 255], &[(0, b"long name")], 9);
    let directory = fs.make_directory(ROOT, &[b'd'; 200], me(0o755)).unwrap().stat.ino;
    let below = fs.make_directory(directory, b"below", me(0o755)).unwrap().stat.ino;
    make_file(fs, below, b"not UTF-8 \xFF\n", &[(0, b"x")], 1);
    fs.link(three, below, b"another name").unwrap();
    fs.make_symlink(directory, b"link", b"target", me(0o777)).unwrap();
    fs.make_symlink(below, b"long link", &[b't'; 3500], me(0o777)).unwrap();
    fs.make_node(directory, b"fifo", kmsfs::store::Kind::Fifo, 0, me(0o600)).unwrap();
    set_xattr(fs, three, b"user.comment", b"value");
    set_xattr(fs, directory, b"user.comment", b"value");
}

/// A volume with something of every kind that was unmounted.
fn filled(dir: &Path, plain_names: bool) -> (PathBuf, PathBuf) {
    let (volume, key) = make_volume(dir, "4K", plain_names);
    let fs = mount(&volume, &key).unwrap();
    fill(&fs);
    fs.shut_down().unwrap();
    (volume, key)
}

/// What of a volume was written, as the times of its files tell.
fn state(volume: &Path) -> Vec<(PathBuf, i64, i64, u64)> {
    let of = |path: PathBuf| {
        let metadata = std::fs::symlink_metadata(&path).unwrap();
        (path, metadata.ctime(), metadata.ctime_nsec(), metadata.len())
    };
    let directories = [volume.to_owned(), volume.join("tree"), volume.join("links"), volume.join("journal")];
    stored_files(volume).into_iter().chain(directories).chain(logs(volume)).map(of).collect()
}

fn logs(volume: &Path) -> Vec<PathBuf> {
    ["log-a", "log-b"].map(|log| volume.join("journal").join(log)).to_vec()
}

#[test]
fn nothing_is_found_in_whole_volumes_and_nothing_is_written() {
    for plain_names in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let (empty, _) = make_volume(dir.path(), "4K", plain_names);
        for arguments in [&[][..], &["--deep"]] {
            let found = report(&empty, arguments, 0);
            assert_eq!((&found["findings"], &found["totals"]["directories"]), (&json!([]), &json!(1)));
        }
        let dir = tempfile::tempdir().unwrap();
        let (volume, _) = filled(dir.path(), plain_names);
        let before = state(&volume);
        for arguments in [&[][..], &["--deep"], &["--deep", "--threads", "4"]] {
            let found = report(&volume, arguments, 0);
            assert_eq!(found["findings"], json!([]), "{found:#}");
            assert_eq!((&found["complete"], &found["totals"]["files"]), (&json!(true), &json!(7)));
            assert_eq!((&found["totals"]["links"], &found["totals"]["others"]), (&json!(2), &json!(1)));
            assert_eq!(found["files_checked"], 7);
        }
        assert_eq!(state(&volume), before, "a check wrote something");
    }
}

#[test]
fn a_volume_that_was_killed_is_whole_after_recovery_and_not_judged_before() {
    let dir = tempfile::tempdir().unwrap();
    let (volume, key) = filled(dir.path(), false);
    let fs = mount(&volume, &key).unwrap();
    let open = |name: &[u8]| with_keys(&fs, || fs.open(fs.lookup(ROOT, name)?.stat.ino, true, false)).unwrap();
    let three = open(b"three");
    fs.write(three, PlainOffset(100), &[1; 5000], false).unwrap();
    fs.sync(three, true).unwrap();
    // Appended and not committed; and new ones, one of them torn.
    fs.write(open(b"hole at the end"), PlainOffset(80 * C), &[2; 5000], false).unwrap();
    for name in [&b"new"[..], b"torn", b"made"] {
        make_file(&fs, ROOT, name, &[(0, &[3; 20_000])], 20_000);
    }
    let ino = |name: &[u8]| fs.lookup(ROOT, name).unwrap().stat.ino;
    let (torn, made) = (ino(b"torn"), ino(b"made"));
    drop(fs);
    let stored = |ino| stored_files(&volume).into_iter().find(|path| path.metadata().unwrap().ino() == ino).unwrap();
    File::options().write(true).open(stored(torn)).unwrap().write_all_at(&[0; 4096], 8192).unwrap();
    File::create(stored(made)).unwrap();

    let refused = fsck(&volume, &["--deep"]);
    assert_eq!(refused.status.code(), Some(15));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("--recover"));
    let found = report(&volume, &["--recover", "--deep"], 0);
    let mut unfinished: Vec<_> = findings(&found).iter().map(|finding| finding["path"].as_str().unwrap()).collect();
    unfinished.sort_unstable();
    assert_eq!(unfinished, ["made", "torn"], "{found:#}");
    assert!(findings(&found).iter().all(|finding| finding["kind"] == "unfinished" && finding["severity"] == "note"));
    let fs = mount(&volume, &key).unwrap();
    fs.sweep(&false.into()).unwrap();
    fs.shut_down().unwrap();
    // What was torn is empty now, and kept.
    let found = report(&volume, &["--deep"], 0);
    let [kept] = &findings(&found)[..] else { panic!("{found:#}") };
    assert_eq!((&kept["kind"], &kept["severity"]), (&json!("set_aside"), &json!("note")));
    std::fs::remove_file(volume.join(kept["stored"].as_str().unwrap())).unwrap();
    assert_eq!(report(&volume, &["--deep"], 0)["findings"], json!([]));
}

#[test]
fn whatever_byte_is_flipped_is_found_where_the_mount_finds_it_and_nowhere_else() {
    let dir = tempfile::tempdir().unwrap();
    let (volume, key) = make_volume(dir.path(), "4K", false);
    let fs = mount(&volume, &key).unwrap();
    let three = make_file(&fs, ROOT, b"three", &[(0, &[7; 9000])], 9000);
    make_file(&fs, ROOT, b"holes", &[(0, &[1; 10]), (66 * C, &[2; 5000])], 330 * C + 7);
    let directory = fs.make_directory(ROOT, &[b'd'; 200], me(0o755)).unwrap().stat.ino;
    fs.make_symlink(directory, b"long link", &[b't'; 3500], me(0o777)).unwrap();
    set_xattr(&fs, three, b"user.comment", b"value");
    fs.shut_down().unwrap();
    let whole = read_tree(&fs).unwrap();
    drop(fs);
    let path_of = |name: &str| {
        let ino = { mount(&volume, &key).unwrap().lookup(ROOT, name.as_bytes()).unwrap().stat.ino };
        stored_files(&volume).into_iter().find(|path| path.metadata().unwrap().ino() == ino).unwrap()
    };
    let names = [("three", path_of("three")), ("holes", path_of("holes"))];
    recover(&volume);
    let seed = kmsfs::crypto::random_id();
    eprintln!("seed {seed:02x?}");
    let mut random = blake3::Hasher::new().update(&seed).finalize_xof();
    let mut number = move || {
        let mut bytes = [0; 8];
        random.fill(&mut bytes);
        u64::from_le_bytes(bytes)
    };
    let files: Vec<_> = stored_files(&volume).into_iter().filter(|path| path.file_name().unwrap() != "lock").collect();
    let (mut found_some, mut found_none) = (0, 0);
    for round in 0..60 {
        let path = &files[round % files.len()];
        let file = File::options().read(true).write(true).open(path).unwrap();
        let len = file.metadata().unwrap().len();
        // A third of them where it is dense.
        let at = number() % if round % 3 == 0 { len.min(4096 + 2 * C) } else { len };
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ (1 << (number() % 8))], at).unwrap();
        let what = format!("{} at {at}", path.display());
        let output = fsck(&volume, &["--deep", "--json"]);
        let damaged = match mount(&volume, &key) {
            Err(_) => {
                assert!(matches!(output.status.code(), Some(3 | 6 | 11 | 12)), "{what}: {:?}", output.status);
                false
            }
            Ok(fs) => {
                let damaged = read_tree(&fs).ok().is_none_or(|tree| tree != whole);
                fs.shut_down().unwrap();
                assert_eq!(output.status.code(), Some(if damaged { 14 } else { 0 }), "{what}");
                damaged
            }
        };
        file.write_all_at(&byte, at).unwrap();
        if !damaged {
            found_none += 1;
            continue;
        }
        found_some += 1;
        let found: Value = serde_json::from_slice(&output.stdout).unwrap();
        let [finding] = &findings(&found)[..] else { panic!("{what}: {found:#}") };
        match names.iter().find(|(_, stored)| stored == path) {
            None => assert_eq!(finding["kind"], "link_target", "{what}"),
            Some((name, _)) => {
                assert_eq!(finding["path"], *name, "{what}");
                // Where things lie, from format.md.
                let block = 4096 + 64 * C;
                let (kind, chunks) = match at {
                    0..4096 => (None, json!([])),
                    _ if at < block => (Some("chunk"), json!([[(at - 4096) / C, (at - 4096) / C]])),
                    _ if at < block + 12_288 => (Some("tag_block"), json!([])),
                    _ => {
                        let chunk = 64 + (at - block - 12_288) / C;
                        (Some("chunk"), json!([[chunk, chunk]]))
                    }
                };
                assert_eq!(finding["chunks"], chunks, "{what}");
                assert!(kind.is_none_or(|kind| finding["kind"] == kind), "{what}: {finding:#}");
            }
        }
    }
    eprintln!("{found_some} were damage, {found_none} were not read, or kept the volume from being opened");
    assert!(found_some > 10);
    assert_eq!(report(&volume, &["--deep"], 0)["findings"], json!([]));
}

/// Brings a volume to rest that a mount was dropped of.
fn recover(volume: &Path) {
    report(volume, &["--recover"], 0);
}

#[test]
fn everything_that_does_not_belong_is_named_without_a_key() {
    let dir = tempfile::tempdir().unwrap();
    let (volume, key) = filled(dir.path(), false);
    std::fs::remove_file(key).unwrap();
    let tree = volume.join("tree");
    let entry = |start: &str| {
        let mut entries = std::fs::read_dir(&tree).unwrap().map(|entry| entry.unwrap());
        entries.find(|entry| entry.file_name().to_str().unwrap().starts_with(start)).unwrap().path()
    };
    let long = std::fs::read_dir(&tree).unwrap().map(|entry| entry.unwrap());
    let long = long.filter(|entry| entry.file_name().to_str().unwrap().starts_with(".L"));
    let long: Vec<_> = long.map(|entry| entry.path()).collect();
    let (file, directory): (Vec<_>, Vec<_>) = long.into_iter().partition(|path| path.is_file());
    let side = |path: &Path| path.with_file_name(path.file_name().unwrap().to_str().unwrap().replacen(".L", ".N", 1));
    let plain = std::fs::read_dir(&tree).unwrap().map(|entry| entry.unwrap().path());
    let largest = plain.filter(|path| path.is_file()).max_by_key(|path| path.metadata().unwrap().blocks()).unwrap();
    let expected =
        |path: &Path, kind: &str| (format!("tree/{}", path.strip_prefix(&tree).unwrap().display()), kind.to_owned());
    let mut should = Vec::new();

    std::fs::remove_file(side(&file[0])).unwrap();
    should.push(expected(&file[0], "long_name"));
    std::fs::write(tree.join("what is this"), "foreign").unwrap();
    should.push(expected(&tree.join("what is this"), "foreign"));
    std::fs::write(tree.join(".t00112233445566778899aabbccddeeff"), "").unwrap();
    should.push(expected(&entry(".t"), "leftover"));
    let orphan = side(&directory[0]).with_file_name(format!(".N{}", "A".repeat(43)));
    std::os::unix::fs::symlink("x", &orphan).unwrap();
    should.push(expected(&orphan, "orphan_side"));
    std::fs::write(volume.join("links/00112233445566778899aabbccddeeff"), [0; 100]).unwrap();
    should.push(("links/00112233445566778899aabbccddeeff".into(), "orphan_target".into()));
    let id = "00112233445566778899aabbccddeeff";
    std::fs::create_dir(volume.join("lost")).unwrap();
    for (name, kind) in [(id, "set_aside"), (&format!("{id}.new-{id}"), "leftover"), (&format!("{id}0"), "foreign")] {
        std::fs::write(volume.join("lost").join(name), "x").unwrap();
        should.push((format!("lost/{name}"), kind.into()));
    }
    std::fs::create_dir(volume.join("lost/directory")).unwrap();
    should.push(("lost/directory".into(), "foreign".into()));
    let bare = tree.join("B".repeat(32));
    std::fs::create_dir(&bare).unwrap();
    should.push(expected(&bare, "unfinished"));
    std::fs::hard_link(&largest, dir.path().join("outside")).unwrap();
    should.push(expected(&largest, "link_count"));
    let copy = largest.with_file_name("A".repeat(30));
    std::fs::copy(&largest, &copy).unwrap();
    // One of the two, whichever comes second.
    should.push(expected(&copy.clone().max(largest.clone()), "file_id_repeated"));
    std::fs::remove_file(directory[0].join(".id")).unwrap();
    should.push(expected(&directory[0], "directory_id"));
    let below = std::fs::read_dir(&directory[0]).unwrap().map(|entry| entry.unwrap().path());
    let below = below.into_iter().find(|path| path.is_dir()).unwrap();
    let id = std::fs::read_link(tree.join(".id")).unwrap();
    std::fs::remove_file(below.join(".id")).unwrap();
    std::os::unix::fs::symlink(id, below.join(".id")).unwrap();
    should.push(expected(&below, "directory_id_repeated"));
    for path in std::fs::read_dir(&below).unwrap().map(|entry| entry.unwrap().path()) {
        if path.is_symlink() && path.file_name().unwrap() != ".id" {
            let target = std::fs::read_link(&path).unwrap();
            std::fs::remove_file(volume.join("links").join(&target.to_str().unwrap()[1..])).unwrap();
            should.push(expected(&path, "link_target"));
        }
    }

    let found = report(&volume, &[], 14);
    let mut found: Vec<_> = findings(&found)
        .iter()
        .map(|finding| (finding["stored"].as_str().unwrap().to_owned(), finding["kind"].as_str().unwrap().to_owned()))
        .collect();
    found.sort();
    should.sort();
    assert_eq!(found, should);
}

#[test]
fn a_journal_that_cannot_be_read_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let (volume, _) = filled(dir.path(), false);
    for log in logs(&volume) {
        File::options().write(true).open(log).unwrap().write_all_at(b"damage", 50).unwrap();
    }
    let found = report(&volume, &[], 14);
    assert_eq!((&findings(&found)[0]["kind"], findings(&found).len()), (&json!("journal"), 1));
}

#[test]
fn a_mounted_volume_is_left_alone() {
    use kmsfs::fs::volume::{Holder, Holding};
    let dir = tempfile::tempdir().unwrap();
    let (volume, _) = filled(dir.path(), false);
    let holder = Holder { pid: 7, mountpoint: "/mnt".into(), host: "here".into(), answers: false };
    let held = Holding::take(&volume, &holder, false).unwrap().unwrap();
    let refused = fsck(&volume, &[]);
    assert_eq!(refused.status.code(), Some(9));
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(said.contains("/mnt") && said.contains("kmsfs scrub"), "{said}");
    held.share().unwrap();
    // By somebody who only reads: so does a check, unless it is to change something.
    report(&volume, &["--deep"], 0);
    assert_eq!(fsck(&volume, &["--recover"]).status.code(), Some(9));
}

#[test]
fn damaged_files_are_moved_away_with_all_their_names_and_the_rest_is_whole() {
    for other_filesystem in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let elsewhere = if other_filesystem { tempfile::tempdir_in("/dev/shm") } else { tempfile::tempdir() }.unwrap();
        let (volume, key) = filled(dir.path(), false);
        let fs = mount(&volume, &key).unwrap();
        let ino = |parent, name: &[u8]| fs.lookup(parent, name).unwrap().stat.ino;
        let directory = ino(ROOT, &[b'd'; 200]);
        let below = ino(directory, b"below");
        let damaged = [ino(ROOT, b"three"), ino(ROOT, &[b'n'; 255])];
        fs.rename(below, b"another name", below, &[b'm'; 220], RenameMode::NoReplace).unwrap();
        fs.shut_down().unwrap();
        drop(fs);
        let names = |ino| stored_files(&volume).into_iter().filter(move |path| path.metadata().unwrap().ino() == ino);
        for (ino, at) in [(damaged[0], 5000), (damaged[1], 1504)] {
            let path = names(ino).next().unwrap();
            File::options().write(true).open(path).unwrap().write_all_at(b"damage", at).unwrap();
        }
        let original = std::fs::read(names(damaged[0]).next().unwrap()).unwrap();
        // Not told to, it moves nothing.
        report(&volume, &["--deep"], 14);
        assert_eq!(damaged.map(|ino| names(ino).count()), [2, 1]);
        let into = elsewhere.path().join("quarantine");
        let found = report(&volume, &["--deep", "--quarantine", into.to_str().unwrap()], 14);
        assert_eq!(damaged.map(|ino| names(ino).count()), [0, 0]);
        let moved = found["quarantined"].as_array().unwrap();
        assert_eq!(moved.len(), 2);
        let three = moved.iter().find(|line| line["other_names"] != json!([])).unwrap();
        assert_eq!(three["findings"][0]["chunks"], json!([[0, 0]]), "{three:#}");
        assert_eq!(std::fs::read(into.join(three["file"].as_str().unwrap())).unwrap(), original);
        let lines = std::fs::read_to_string(into.join("report.jsonl")).unwrap();
        assert_eq!(lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect::<Vec<Value>>(), *moved);
        // Nothing is left of them, and nothing else is missing.
        let found = report(&volume, &["--deep"], 0);
        assert_eq!((&found["findings"], &found["totals"]["files"]), (&json!([]), &json!(5)), "{found:#}");
        let fs = mount(&volume, &key).unwrap();
        assert!(fs.lookup(ROOT, b"three").is_err() && fs.lookup(ROOT, b"blocks").is_ok());
    }
}

#[test]
fn a_check_that_was_interrupted_goes_on_where_it_was_and_forgets_nothing() {
    use kmsfs::check::{Deep, Findings, Order, Progress, Stopped};
    let dir = tempfile::tempdir().unwrap();
    let (volume, key) = make_volume(dir.path(), "4K", false);
    let fs = mount(&volume, &key).unwrap();
    for number in 0..40_u32 {
        make_file(&fs, ROOT, number.to_string().as_bytes(), &[(0, &[1; 5000])], 5000);
    }
    fs.shut_down().unwrap();
    drop(fs);
    let first = stored_files(&volume).into_iter().find(|path| path.parent().unwrap().ends_with("tree")).unwrap();
    File::options().write(true).open(first).unwrap().write_all_at(b"damage", 5000).unwrap();
    let fs = mount(&volume, &key).unwrap();
    let tree = fs.volume().tree().unwrap();
    let findings = parking_lot::Mutex::new(Findings::default());
    let progress = Progress::default();
    let mut order = Order::new(None);
    let mut rounds = 0;
    loop {
        // Stopped again and again, after one file at the earliest.
        let stop = std::sync::atomic::AtomicBool::new(false);
        let pace = |_| stop.store(true, std::sync::atomic::Ordering::Relaxed);
        let check = Deep {
            fs: &fs,
            online: false,
            threads: 1,
            findings: &findings,
            progress: &progress,
            stop: &stop,
            pace: if rounds < 5 { &pace } else { &|_| () },
        };
        rounds += 1;
        match check.run(&tree, &order) {
            Ok(()) => break,
            Err(Stopped::Asked) => order = Order::new(order.passed()),
            Err(other) => panic!("{other:?}"),
        }
    }
    let files = progress.files.load(std::sync::atomic::Ordering::Relaxed);
    assert_eq!(rounds, 6);
    assert!((40..46).contains(&files), "{files} files were looked at: those that were cut short twice");
    assert_eq!(findings.lock().len(), 1);

    // The program itself: a state that says that all was seen, and that something was found.
    fs.shut_down().unwrap();
    drop(fs);
    let state = dir.path().join("state");
    let state_name = state.to_str().unwrap();
    let whole = report(&volume, &["--deep", "--state", state_name], 14);
    assert!(!state.exists(), "nothing is left of a check that came to its end");
    let sequence =
        kmsfs::journal::recovery::inspect(&*kmsfs::fs::volume::Volume::open(&volume).unwrap().journal().unwrap());
    let mut saved = kmsfs::check::Saved::new(whole["volume_id"].as_str().unwrap().into(), sequence.unwrap().sequence);
    saved.findings = findings.lock().iter().cloned().collect();
    saved.passed = Some(b"tree/~".to_vec());
    saved.write(&state).unwrap();
    let rest = report(&volume, &["--deep", "--state", state_name], 14);
    assert_eq!((&rest["findings"], &rest["files_checked"]), (&whole["findings"], &json!(0)));
    std::fs::write(&state, "something else").unwrap();
    assert_eq!(fsck(&volume, &["--deep", "--state", state_name]).status.code(), Some(2));
}
