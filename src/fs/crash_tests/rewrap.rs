//! Wrapping everything by another KEK: how many calls it takes, what it refuses to give up, and a cut after every change.

use super::cloud::Cloud;
use super::*;
use crate::file::{Found, Unverified};
use crate::format::volume::KekRole;
use crate::fs::rewrap::{Outcome, Plan, Progress, Rewrap, Stopped};
use crate::fs::volume::Target;
use crate::kms::KmsErrorKind;
use crate::store::{RenameMode, StoreDir};
use crate::units::{KekGeneration, StoredOffset};

pub(super) fn rewrap(fs: &Fs, kek: Option<&str>) -> (Result<Outcome, Stopped>, Progress) {
    let (progress, stop) = (Progress::default(), AtomicBool::new(false));
    let plan = Plan { kek: kek.map(str::to_owned), recovery_kek: None };
    let outcome = Rewrap { fs, progress: &progress, stop: &stop, pace: &|_| (), wait: &|_| () }.run(&plan);
    (outcome, progress)
}

pub(super) fn complete(fs: &Fs, kek: Option<&str>) -> (Outcome, Progress) {
    let (outcome, progress) = rewrap(fs, kek);
    let outcome = outcome.unwrap();
    assert_eq!((outcome.left_count, &outcome.left[..]), (0, &[][..]));
    (outcome, progress)
}

/// A directory with files, one of them with two names, one with a long one; all closed.
pub(super) fn put_files(fs: &Fs, count: usize) {
    let directory = done(fs, || fs.make_directory(ROOT, b"directory", creator(0o755))).unwrap().stat.ino;
    for number in 0..count {
        let parent = if number % 2 == 0 { ROOT } else { directory };
        let name = [format!("{number}").into_bytes(), vec![b'x'; (number % 3) * 90]].concat();
        let (entry, handle) = done(fs, || fs.create(parent, &name, creator(0o644))).unwrap();
        fs.write(handle, PlainOffset(0), &content_of(number), false).unwrap();
        fs.flush(handle).unwrap();
        fs.release(handle);
        if number == 1 {
            done(fs, || fs.link(entry.stat.ino, ROOT, b"another name")).unwrap();
        }
    }
}

fn content_of(number: usize) -> Vec<u8> {
    format!("{number}:").repeat(1 + number * 700).into_bytes()
}

pub(super) fn all(fs: &Fs) -> Tree {
    let mut found = Tree::new();
    walk(fs, ROOT, "", &mut found).unwrap();
    found
}

/// The headers of all files, one of each inode.
pub(super) fn headers(store: &MemStore) -> Vec<crate::format::header::Header> {
    fn below(directory: &dyn StoreDir, found: &mut BTreeMap<u64, crate::format::header::Header>) {
        for entry in directory.list().unwrap() {
            match directory.stat(&entry.name).unwrap().kind {
                Kind::Directory => below(&*directory.open_dir(&entry.name).unwrap(), found),
                Kind::File => match Unverified::read(&*directory.open_file(&entry.name, false).unwrap()).unwrap() {
                    Found::Header(header) => drop(found.insert(entry.ino, header.header().clone())),
                    Found::Nothing => panic!("no header"),
                },
                _ => (),
            }
        }
    }
    let mut found = BTreeMap::new();
    below(&*store.root().open_dir(b"tree").unwrap(), &mut found);
    found.into_values().collect()
}

/// A file of a directory that has no other name.
pub(super) fn any_file(directory: &dyn StoreDir) -> Vec<u8> {
    let is_it = |name: &[u8]| directory.stat(name).is_ok_and(|stat| stat.kind == Kind::File && stat.nlink == 1);
    directory.list().unwrap().into_iter().find(|entry| is_it(&entry.name)).unwrap().name
}

pub(super) fn distinct(headers: &[crate::format::header::Header]) -> u64 {
    headers.iter().map(|header| &header.envelope.blob).collect::<HashSet<_>>().len() as u64
}

#[test]
fn each_envelope_is_unwrapped_once_and_wrapped_once_and_then_the_old_key_is_not_needed() {
    let cloud = Cloud::default();
    let store = cloud.make("a", None, 5);
    let fs = cloud.mount(&store);
    put_files(&fs, 23);
    fs.shut_down().unwrap();
    drop(fs);
    let (before, old) = (headers(&store), distinct(&headers(&store)));
    assert_eq!((before.len(), old), (23, 5));

    let fs = cloud.mount(&store);
    let (unwraps, _) = cloud.calls("a");
    let (outcome, progress) = complete(&fs, Some("b"));
    // One more to see that the old key still works; of the new one, the volume key twice to see that it does.
    assert_eq!(cloud.calls("a").0 - unwraps, old + 1);
    assert_eq!(cloud.calls("b"), (1, old + 2));
    assert_eq!(progress.unwrapped.load(Ordering::Relaxed), old);
    assert_eq!(progress.wrapped.load(Ordering::Relaxed), old);
    assert_eq!(progress.rewrapped.load(Ordering::Relaxed), 23);
    assert_eq!(outcome.files, BTreeMap::from([(KekGeneration(1), 23)]));
    let retired: Vec<_> = outcome.retired.iter().map(|kek| &kek.volume_key.kek.0[..]).collect();
    assert_eq!(retired, ["a#0"]);
    let after = headers(&store);
    assert_eq!(distinct(&after), old, "what shared a secret shares it still");
    for (before, after) in before.iter().zip(&after) {
        assert_eq!(after.generation, before.generation + 1);
        assert_eq!((after.epoch, after.len, after.root), (before.epoch, before.len, before.root));
    }

    cloud.key("a").refuses.store(true, Ordering::Relaxed);
    assert_eq!(all(&fs).len(), 24);
    put_more(&fs, b"new");
    fs.shut_down().unwrap();
    drop(fs);
    let fs = cloud.mount(&store);
    assert_eq!(fs.volume().record().kek_floor, KekGeneration(1));
    assert_eq!(fs.volume().record().keks.len(), 1);
    assert_eq!(all(&fs).len(), 25);
    // Nothing is left to do, and nothing is asked for.
    let calls = cloud.calls("b");
    let (outcome, progress) = complete(&fs, Some("b"));
    assert_eq!((progress.rewrapped.load(Ordering::Relaxed), outcome.retired.len()), (0, 0));
    assert_eq!(cloud.calls("b").0, calls.0 + 1);
    assert_eq!(fs.counters.damaged.load(Ordering::Relaxed), 0);
}

pub(super) fn put_more(fs: &Fs, name: &[u8]) {
    let (_, handle) = done(fs, || fs.create(ROOT, name, creator(0o644))).unwrap();
    fs.write(handle, PlainOffset(0), b"more", false).unwrap();
    fs.release(handle);
}

#[test]
fn an_old_header_that_is_put_back_is_refused_and_so_is_a_record_of_before() {
    let cloud = Cloud::default();
    let store = cloud.make("a", None, 5);
    let fs = cloud.mount(&store);
    put_files(&fs, 1);
    fs.shut_down().unwrap();
    drop(fs);
    let tree = store.root().open_dir(b"tree").unwrap();
    let entry = any_file(&*tree);
    let mut old = vec![0; 4096];
    tree.open_file(&entry, false).unwrap().read_at(&mut old, StoredOffset(0)).unwrap();

    let fs = cloud.mount(&store);
    complete(&fs, Some("b"));
    fs.shut_down().unwrap();
    // While it is mounted, and after.
    tree.open_file(&entry, true).unwrap().write_at(&old, StoredOffset(0)).unwrap();
    let ino = fs.lookup(ROOT, b"0").unwrap().stat.ino;
    assert!(matches!(read(&fs, ino), Err(Error::Damaged)));
    drop(fs);
    let fs = cloud.mount(&store);
    let ino = fs.lookup(ROOT, b"0").unwrap().stat.ino;
    let asked = cloud.calls("a").0;
    assert!(matches!(read(&fs, ino), Err(Error::Damaged)));
    assert_eq!(cloud.calls("a").0, asked, "the old key is not asked");
}

#[test]
fn files_in_use_are_rewrapped_as_they_are_in_memory() {
    let cloud = Cloud::default();
    let store = cloud.make("a", None, 2);
    let fs = cloud.mount(&store);
    let create = |name: &[u8]| done(&fs, || fs.create(ROOT, name, creator(0o644))).unwrap();
    let write = |handle, bytes: &[u8]| fs.write(handle, PlainOffset(0), bytes, false).unwrap();
    let (_, fresh) = create(b"fresh");
    write(fresh, b"never closed");
    let (_, dirty) = create(b"dirty");
    write(dirty, &[1; 9000]);
    fs.sync(dirty, false).unwrap();
    write(dirty, &[2; 9000]);
    let (nameless, open) = create(b"nameless");
    write(open, b"open");
    fs.unlink(ROOT, b"nameless").unwrap();
    // Nobody has it open, but somebody may still open it again.
    let (forgotten, handle) = create(b"forgotten");
    write(handle, b"known");
    fs.sync(handle, false).unwrap();
    fs.release(handle);
    fs.commit_all().unwrap();
    fs.unlink(ROOT, b"forgotten").unwrap();

    complete(&fs, Some("b"));
    write(fresh, b"still not  ");
    write(dirty, &[3; 8000]);
    fs.commit_all().unwrap();
    cloud.key("a").refuses.store(true, Ordering::Relaxed);
    // Without keys, and with them again: they come from what the headers say now.
    let key = crate::crypto::Secret32::from_slice(fs.enter().unwrap().volume_key.expose()).unwrap();
    fs.close(LockReason::Operator, std::time::Duration::ZERO);
    fs.reopen(key).unwrap();
    let mut out = Vec::new();
    let reads = |handle, out: &mut Vec<u8>| {
        out.clear();
        done(&fs, || fs.read(handle, PlainOffset(0), 1 << 20, &mut Vec::new())).unwrap();
        fs.read(handle, PlainOffset(0), 1 << 20, out).unwrap();
    };
    reads(open, &mut out);
    assert_eq!(out, b"open");
    reads(fresh, &mut out);
    assert_eq!(out, b"still not  d");
    reads(dirty, &mut out);
    assert_eq!(out, [&[3; 8000][..], &[2; 1000]].concat());
    assert_eq!(read(&fs, forgotten.stat.ino).unwrap(), b"known");
    let _ = nameless;
    for handle in [fresh, dirty, open] {
        fs.release(handle);
    }
    fs.shut_down().unwrap();
    drop(fs);
    assert_eq!(all(&cloud.mount(&store)).len(), 2);
}

#[test]
fn the_old_key_stays_until_the_last_damaged_file_is_gone() {
    let cloud = Cloud::default();
    let store = cloud.make("a", None, 5);
    let fs = cloud.mount(&store);
    put_files(&fs, 4);
    fs.shut_down().unwrap();
    drop(fs);
    let tree = store.root().open_dir(b"tree").unwrap();
    let entry = any_file(&*tree);
    let file = tree.open_file(&entry, true).unwrap();
    let mut byte = [0];
    file.read_at(&mut byte, StoredOffset(1510)).unwrap();
    file.write_at(&[byte[0] ^ 1], StoredOffset(1510)).unwrap();
    let fs = cloud.mount(&store);
    let (outcome, _) = rewrap(&fs, Some("b"));
    let outcome = outcome.unwrap();
    assert_eq!((outcome.left_count, outcome.retired.len()), (1, 0));
    assert_eq!(outcome.left[0].stored, [b"tree/", &entry[..]].concat());
    assert!(outcome.left[0].why.contains("header") && !outcome.left[0].refused, "{outcome:?}");
    let record = fs.volume().record();
    assert_eq!((record.kek_floor, record.keks.len()), (KekGeneration(0), 2));
    drop(fs);
    tree.unlink(&entry).unwrap();
    let fs = cloud.mount(&store);
    assert_eq!(complete(&fs, Some("b")).0.retired.len(), 1);
    assert_eq!(fs.volume().record().keks.len(), 1);
}

#[test]
fn what_cannot_be_unwrapped_is_left_and_goes_on_when_it_can() {
    let cloud = Cloud::default();
    let store = cloud.make("a", None, 2);
    let fs = cloud.mount(&store);
    put_files(&fs, 6);
    fs.shut_down().unwrap();
    drop(fs);
    // The old key is refused before anything has begun: nothing changes.
    let fs = cloud.mount(&store);
    cloud.key("a").refuses.store(true, Ordering::Relaxed);
    assert!(matches!(rewrap(&fs, Some("b")).0, Err(Stopped::Kms(error)) if error.kind == KmsErrorKind::Refused));
    assert_eq!(fs.volume().record().keks.len(), 1);
    cloud.key("a").refuses.store(false, Ordering::Relaxed);
    // And a new key that cannot unwrap is none.
    cloud.key("b").refuses.store(true, Ordering::Relaxed);
    assert!(matches!(rewrap(&fs, Some("b")).0, Err(Stopped::Kms(error)) if error.kind == KmsErrorKind::Refused));
    assert_eq!(fs.volume().record().keks.len(), 1);
    cloud.key("b").refuses.store(false, Ordering::Relaxed);
    // It is refused after the first file: those that share its secret, which is in memory, are done, and no others. A
    // file with a large change is committed by itself.
    let mut found = Tree::new();
    walk(&fs, ROOT, "", &mut found).unwrap();
    let handles: Vec<_> =
        fs.nodes.all().into_iter().filter(|(ino, _)| fs.nodes.kind(*ino) == Some(Kind::File)).collect();
    assert_eq!(handles.len(), 6);
    for (ino, _) in handles {
        let handle = done(&fs, || fs.open(ino, true, false)).unwrap();
        fs.write(handle, PlainOffset(0), &[7; 20_000], false).unwrap();
        fs.sync(handle, false).unwrap();
        fs.write(handle, PlainOffset(0), &[8; 20_000], false).unwrap();
    }
    fs.leases.wipe();
    let (progress, stop) = (Progress::default(), AtomicBool::new(false));
    let key = cloud.key("a");
    let pace = |_| key.refuses.store(true, Ordering::Relaxed);
    let run = Rewrap { fs: &fs, progress: &progress, stop: &stop, pace: &pace, wait: &|_| () };
    let outcome = run.run(&Plan { kek: Some("b".into()), recovery_kek: None }).unwrap();
    assert_eq!((outcome.left_count, outcome.retired.len()), (4, 0), "{outcome:?}");
    assert!(outcome.left.iter().all(|left| left.refused && left.why.contains("a#0")), "{outcome:?}");
    key.refuses.store(false, Ordering::Relaxed);
    let (_, progress) = complete(&fs, Some("b"));
    assert_eq!((progress.rewrapped.load(Ordering::Relaxed), progress.wrapped.load(Ordering::Relaxed)), (4, 2));
    assert!(all(&fs).values().all(|(content, _)| content.starts_with(&[8; 20_000])));
}

#[test]
fn three_rotations_later_every_file_is_readable_and_one_rewrap_leaves_one_version() {
    let cloud = Cloud::default();
    let store = cloud.make("a", None, 3);
    let key = cloud.key("a");
    let fs = cloud.mount(&store);
    for version in 0..4_u32 {
        key.version.store(version, Ordering::Relaxed);
        assert_eq!(fs.check_rotation().unwrap(), version > 0);
        assert!(!fs.check_rotation().unwrap());
        put_more(&fs, format!("of version {version}").as_bytes());
        assert_eq!(fs.volume().record().newest().volume_key.kek.0, format!("a#{version}"));
    }
    fs.commit_all().unwrap();
    let of: Vec<_> = headers(&store).iter().map(|header| header.envelope.kek.0).collect();
    assert_eq!(of.iter().collect::<HashSet<_>>().len(), 4, "{of:?}");
    fs.shut_down().unwrap();
    drop(fs);
    let fs = cloud.mount(&store);
    assert_eq!(all(&fs).len(), 4);
    let (outcome, _) = complete(&fs, None);
    assert_eq!(outcome.retired.len(), 3);
    assert_eq!(outcome.files, BTreeMap::from([(KekGeneration(3), 4)]));
    assert_eq!(all(&fs).len(), 4);
    // And on to another key, and back: the way back gives it another number.
    complete(&fs, Some("b"));
    complete(&fs, Some("a"));
    let record = fs.volume().record();
    assert_eq!((record.keks.len(), record.newest().generation, record.kek_floor.0), (1, KekGeneration(5), 5));
    assert_eq!(all(&fs).len(), 4);
}

#[test]
fn a_key_that_takes_the_place_of_another_is_no_version_of_it() {
    let cloud = Cloud::default();
    let store = cloud.make("a", None, 3);
    let fs = cloud.mount(&store);
    let key = cloud.key("a");
    key.version.store(1, Ordering::Relaxed);
    key.refuses.store(true, Ordering::Relaxed);
    assert!(fs.check_rotation().is_err());
    assert_eq!(fs.volume().record().keks.len(), 1);
}

#[test]
fn what_is_moved_and_made_during_a_rewrap_is_not_overlooked() {
    let cloud = Cloud::default();
    let store = cloud.make("a", None, 1);
    let fs = cloud.mount(&store);
    for name in [b"x", b"y"] {
        let ino = done(&fs, || fs.make_directory(ROOT, name, creator(0o755))).unwrap().stat.ino;
        for number in 0..200 {
            let name = format!("{number}").into_bytes();
            let (_, handle) = done(&fs, || fs.create(ino, &name, creator(0o644))).unwrap();
            fs.write(handle, PlainOffset(0), &name, false).unwrap();
            fs.release(handle);
        }
    }
    fs.commit_all().unwrap();
    let ino = |name: &[u8]| fs.lookup(ROOT, name).unwrap().stat.ino;
    let (x, y) = (ino(b"x"), ino(b"y"));
    let (progress, stop) = (Progress::default(), AtomicBool::new(false));
    let ended = AtomicBool::new(false);
    let outcome = std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut turn = 0_u64;
            while !ended.load(Ordering::Relaxed) {
                let name = format!("{}", turn % 200).into_bytes();
                let (from, to) = if (turn / 200).is_multiple_of(2) { (x, y) } else { (y, x) };
                let _ = fs.rename(from, &name, to, &[b"m", &name[..]].concat(), RenameMode::Replace);
                let _ = fs.rename(to, &[b"m", &name[..]].concat(), from, &name, RenameMode::Replace);
                put_more(&fs, format!("made {turn}").as_bytes());
                let _ = fs.unlink(ROOT, format!("made {turn}").as_bytes());
                turn += 1;
            }
        });
        let rewrap = Rewrap { fs: &fs, progress: &progress, stop: &stop, pace: &|_| (), wait: &|_| () };
        let outcome = rewrap.run(&Plan { kek: Some("b".into()), recovery_kek: None });
        ended.store(true, Ordering::Relaxed);
        outcome.unwrap()
    });
    assert!(outcome.left.is_empty(), "{outcome:?}");
    assert_eq!(outcome.retired.len(), 1);
    fs.commit_all().unwrap();
    let target = Target::newest(&fs.volume().record());
    assert!(headers(&store).iter().all(|header| target.is_met_by(header)));
    cloud.key("a").refuses.store(true, Ordering::Relaxed);
    fs.shut_down().unwrap();
    drop(fs);
    assert_eq!(all(&cloud.mount(&store)).len(), 400);
}

/// A cut after each change that a rewrap makes, with files that are written to meanwhile: then everything is there, and
/// the same command comes to the same end.
#[test]
fn after_every_cut_everything_is_readable_and_the_same_command_goes_on() {
    let mut cuts = 0;
    for (seed, recovery) in [(1_u64, None), (2, Some("r"))] {
        let cloud = Cloud::default();
        let store = cloud.make("a", recovery, 4);
        let fs = cloud.mount(&store);
        put_files(&fs, 11);
        fs.shut_down().unwrap();
        let expected = all(&fs);
        drop(fs);
        let fs = cloud.mount(&store);
        let handle = done(&fs, || fs.open(fs.lookup(ROOT, b"0")?.stat.ino, true, false)).unwrap();
        store.record();
        let (progress, stop) = (Progress::default(), AtomicBool::new(false));
        let turn = AtomicU64::new(0);
        let write = |_: u64| {
            // The same bytes, so that every version is the same.
            let at = turn.fetch_add(1, Ordering::Relaxed) % 2;
            fs.write(handle, PlainOffset(at), &content_of(0)[at as usize..], false).unwrap();
            fs.sync(handle, true).unwrap();
        };
        let run = Rewrap { fs: &fs, progress: &progress, stop: &stop, pace: &write, wait: &|_| () };
        assert_eq!(run.run(&Plan { kek: Some("b".into()), recovery_kek: None }).unwrap().retired.len(), 1);
        write(0);
        let snapshots = store.recorded();
        assert!(snapshots.len() > 20, "{}", snapshots.len());
        for (position, snapshot) in snapshots.into_iter().enumerate() {
            let cut = seed << 20 | position as u64;
            let found = if cut.is_multiple_of(5) { snapshot.killed() } else { snapshot.cut(cut) };
            let what = format!("work {seed}, cut {position} after {}", snapshot.after);
            let fs = cloud.mount(&found);
            assert!(all(&fs) == expected, "{what}");
            let (outcome, _) = rewrap(&fs, Some("b"));
            let outcome = outcome.unwrap_or_else(|stopped| panic!("{what}: {stopped:?}"));
            assert!(outcome.left.is_empty(), "{what}: {outcome:?}");
            let record = fs.volume().record();
            let primary = record.keks.iter().filter(|kek| kek.role == KekRole::Primary).count();
            assert_eq!((primary, record.kek_floor), (1, record.newest().generation), "{what}");
            assert_eq!(fs.counters.damaged.load(Ordering::Relaxed), 0, "{what}");
            fs.shut_down().unwrap();
            drop(fs);
            cloud.key("a").refuses.store(true, Ordering::Relaxed);
            assert!(all(&cloud.mount(&found)) == expected, "{what}, without the old key");
            cloud.key("a").refuses.store(false, Ordering::Relaxed);
            cuts += 1;
        }
    }
    println!("{cuts} cuts");
}

#[test]
fn what_crashes_left_is_rewrapped_too_and_keeps_the_old_key_if_it_cannot_be() {
    let cloud = Cloud::default();
    let store = cloud.make("a", None, 5);
    let fs = cloud.mount(&store);
    put_files(&fs, 5);
    fs.commit_all().unwrap();
    let tree = store.root().open_dir(b"tree").unwrap();
    let mut bytes = vec![0; 1 << 20];
    let len = tree.open_file(&any_file(&*tree), false).unwrap().read_at(&mut bytes, StoredOffset(0)).unwrap();
    bytes.truncate(len);
    let lost = fs.volume().lost().unwrap();
    for (name, at) in [([b'0'; 32], None), ([b'1'; 32], Some(1510))] {
        let mut bytes = bytes.clone();
        at.into_iter().for_each(|at: usize| bytes[at] ^= 1);
        lost.create_file(&name, 0o600).unwrap().write_at(&bytes, StoredOffset(0)).unwrap();
    }
    let outcome = rewrap(&fs, Some("b")).0.unwrap();
    assert_eq!((outcome.left_count, outcome.retired.len()), (1, 0));
    assert_eq!(outcome.left[0].stored, [&b"lost/"[..], &[b'1'; 32]].concat());
    lost.unlink(&[b'1'; 32]).unwrap();
    assert_eq!(complete(&fs, Some("b")).0.retired.len(), 1);
    let kept = lost.open_file(&[b'0'; 32], false).unwrap();
    let Ok(Found::Header(found)) = Unverified::read(&*kept) else { panic!() };
    assert!(Target::newest(&fs.volume().record()).is_met_by(found.header()));
    let mut now = vec![0; bytes.len() + 1];
    assert_eq!(kept.read_at(&mut now, StoredOffset(0)).unwrap(), bytes.len());
    assert!(now[4096..bytes.len()] == bytes[4096..]);
    assert_eq!(lost.list().unwrap().len(), 1);
}
