//! New keys for everything: how many calls it takes, what it refuses to give up, and a cut after every change.

use super::cloud::Cloud;
use super::rewrap::{all, any_file, complete as rewrap_all, distinct, headers, put_files, put_more};
use super::*;
use crate::format::volume::RekeyState;
use crate::fs::create::now;
use crate::fs::rekey::{Outcome, Plan, Progress, Rekey, Stopped};
use crate::store::{RenameMode, StoreDir};
use crate::units::{Epoch, StoredOffset};

fn rekey(fs: &Fs, plan: &Plan) -> (Result<Outcome, Stopped>, Progress) {
    rekey_with(fs, plan, &AtomicBool::new(false), &|_| ())
}

fn rekey_with(fs: &Fs, plan: &Plan, stop: &AtomicBool, pace: &dyn Fn(u64)) -> (Result<Outcome, Stopped>, Progress) {
    let progress = Progress::default();
    let outcome = Rekey { fs, progress: &progress, stop, pace, wait: &|_| () }.run(plan);
    (outcome, progress)
}

fn complete(fs: &Fs) -> Progress {
    let (outcome, progress) = rekey(fs, &Plan::default());
    let outcome = outcome.unwrap();
    assert_eq!((outcome.left_count, &outcome.left[..], outcome.floor_raised), (0, &[][..], true));
    progress
}

fn epochs(store: &MemStore) -> Vec<u32> {
    headers(store).iter().map(|header| header.epoch.0).collect()
}

/// The envelope of a header of the first key.
fn wrapped(fs: &Fs, header: &crate::format::header::Header) -> crate::kms::Wrapped {
    let kek = fs.volume().record().newest().volume_key.kek.clone();
    crate::kms::Wrapped { kek, algorithm: header.envelope.algorithm, blob: header.envelope.blob.clone() }
}

fn at(progress: &AtomicU64) -> u64 {
    progress.load(Ordering::Relaxed)
}

fn put(fs: &Fs, name: &[u8], content: &[u8]) -> u64 {
    let (entry, handle) = done(fs, || fs.create(ROOT, name, creator(0o644))).unwrap();
    fs.write(handle, PlainOffset(0), content, false).unwrap();
    fs.flush(handle).unwrap();
    fs.release(handle);
    entry.stat.ino
}

/// So long that it takes several steps, and has a tag block.
fn long() -> Vec<u8> {
    (0..90 * 4096_u32 + 5).map(|at| (at % 251) as u8).collect()
}

fn contents_only(found: &Tree) -> BTreeMap<&str, &[u8]> {
    found.iter().map(|(path, (content, _))| (&path[..], &content[..])).collect()
}

#[test]
fn each_old_envelope_is_unwrapped_once_and_as_few_new_ones_are_made_as_files_need() {
    let cloud = Cloud::default();
    let store = cloud.make("a", Some("r"), 5);
    let fs = cloud.mount(&store);
    put_files(&fs, 23);
    put(&fs, b"long", &long());
    fs.shut_down().unwrap();
    let expected = all(&fs);
    drop(fs);
    let before = headers(&store);
    let old = distinct(&before);
    assert_eq!((before.len(), old), (24, 5));

    let fs = cloud.mount(&store);
    let (unwraps, wraps) = cloud.calls("a");
    let progress = complete(&fs);
    assert_eq!(cloud.calls("a").0 - unwraps, old, "each of them once, and no new one");
    assert_eq!(at(&progress.unwrapped), old);
    assert_eq!(at(&progress.wrapped), 5);
    assert_eq!(cloud.calls("a").1 - wraps, 5);
    assert_eq!((at(&progress.rekeyed), at(&progress.files)), (24, 25));
    assert_eq!(
        at(&progress.bytes),
        expected.iter().filter(|(path, _)| *path != "/another name").map(|(_, file)| file.0.len() as u64).sum::<u64>()
    );
    assert_eq!(all(&fs), expected);
    for header in &before {
        assert!(fs.leases.cached(&wrapped(&fs, header)).is_none(), "an old secret is in memory");
    }
    let after = headers(&store);
    let blobs = |headers: &[crate::format::header::Header]| -> HashSet<Vec<u8>> {
        headers.iter().map(|header| header.envelope.blob.clone()).collect()
    };
    assert!(blobs(&before).is_disjoint(&blobs(&after)), "a secret that is known is not used again");
    for (before, after) in before.iter().zip(&after) {
        assert!(after.generation > before.generation && after.made >= before.made && after.resealing.is_none());
        assert_eq!((before.epoch, after.epoch, after.len), (Epoch(0), Epoch(1), before.len));
        assert!(after.recovery.is_some());
    }
    put_more(&fs, b"new");
    fs.shut_down().unwrap();
    drop(fs);
    assert!(epochs(&store).iter().all(|epoch| *epoch == 1));
    let fs = cloud.mount(&store);
    let record = fs.volume().record();
    assert_eq!((record.epoch_floor, record.epoch, record.rekey), (Epoch(1), Epoch(1), RekeyState::None));
    assert_eq!(all(&fs).len(), 26);
    assert_eq!(fs.counters.damaged.load(Ordering::Relaxed), 0);
    // The secret of the recovery key is that of the new envelope.
    fs.shut_down().unwrap();
    drop(fs);
    let fs = cloud.mount_by(&store, crate::format::volume::KekRole::Recovery).unwrap();
    assert_eq!(all(&fs).len(), 26);
}

#[test]
fn what_was_there_before_is_refused_afterwards() {
    let cloud = Cloud::default();
    let store = cloud.make("a", None, 5);
    let fs = cloud.mount(&store);
    put(&fs, b"file", &long());
    fs.shut_down().unwrap();
    drop(fs);
    let tree = store.root().open_dir(b"tree").unwrap();
    let entry = any_file(&*tree);
    let mut old = vec![0; 1 << 20];
    let len = tree.open_file(&entry, false).unwrap().read_at(&mut old, StoredOffset(0)).unwrap();
    let fs = cloud.mount(&store);
    complete(&fs);
    fs.shut_down().unwrap();
    // The header alone, and all of it; while it is mounted, and after.
    for len in [4096, len] {
        tree.open_file(&entry, true).unwrap().write_at(&old[..len], StoredOffset(0)).unwrap();
        let asked = cloud.calls("a").0;
        let ino = fs.lookup(ROOT, b"file").unwrap().stat.ino;
        assert!(matches!(read(&fs, ino), Err(Error::Damaged)));
        assert_eq!(cloud.calls("a").0, asked, "the KMS is not asked");
    }
    drop(fs);
    let fs = cloud.mount(&store);
    let ino = fs.lookup(ROOT, b"file").unwrap().stat.ino;
    assert!(matches!(read(&fs, ino), Err(Error::Damaged)));
}

#[test]
fn files_in_use_get_new_keys_while_they_are_used() {
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
    let (_, open) = create(b"nameless");
    write(open, b"open");
    fs.unlink(ROOT, b"nameless").unwrap();
    let (forgotten, handle) = create(b"forgotten");
    write(handle, &long());
    fs.sync(handle, false).unwrap();
    fs.release(handle);
    fs.commit_all().unwrap();
    fs.unlink(ROOT, b"forgotten").unwrap();

    complete(&fs);
    write(fresh, b"still not  ");
    write(dirty, &[3; 8000]);
    fs.commit_all().unwrap();
    // Without keys, and with them again: they come from what the headers say now.
    let key = crate::crypto::Secret32::from_slice(fs.enter().unwrap().volume_key.expose()).unwrap();
    fs.close(LockReason::Operator, std::time::Duration::ZERO);
    fs.reopen(key).unwrap();
    let reads = |handle| {
        let mut out = Vec::new();
        done(&fs, || fs.read(handle, PlainOffset(0), 1 << 20, &mut Vec::new())).unwrap();
        fs.read(handle, PlainOffset(0), 1 << 20, &mut out).unwrap();
        out
    };
    assert_eq!(reads(open), b"open");
    assert_eq!(reads(fresh), b"still not  d");
    assert_eq!(reads(dirty), [&[3; 8000][..], &[2; 1000]].concat());
    assert_eq!(read(&fs, forgotten.stat.ino).unwrap(), long());
    for handle in [fresh, dirty, open] {
        fs.release(handle);
    }
    fs.shut_down().unwrap();
    drop(fs);
    assert_eq!(epochs(&store), [1, 1]);
    assert_eq!(all(&cloud.mount(&store)).len(), 2);
}

/// A flipped bit of a stored file.
fn flip(tree: &dyn StoreDir, entry: &[u8], at: u64) {
    let file = tree.open_file(entry, true).unwrap();
    let mut byte = [0];
    file.read_at(&mut byte, StoredOffset(at)).unwrap();
    file.write_at(&[byte[0] ^ 1], StoredOffset(at)).unwrap();
}

#[test]
fn the_floor_stays_until_the_last_damaged_file_is_gone_and_what_is_not_damaged_of_it_can_be_read() {
    let cloud = Cloud::default();
    // In the header; in chunk 67, behind the first tag block.
    for place in [1510, 4096 + 70 * 4096] {
        let store = cloud.make("a", None, 5);
        let fs = cloud.mount(&store);
        put(&fs, b"damaged", &long());
        fs.shut_down().unwrap();
        drop(fs);
        let tree = store.root().open_dir(b"tree").unwrap();
        let entry = any_file(&*tree);
        flip(&*tree, &entry, place);
        let fs = cloud.mount(&store);
        put(&fs, b"fine", &long());
        let (outcome, progress) = rekey(&fs, &Plan::default());
        let outcome = outcome.unwrap();
        assert_eq!((outcome.left_count, outcome.floor_raised), (1, false), "{place}");
        assert_eq!(outcome.left[0].stored, [b"tree/", &entry[..]].concat());
        // Once more: it is where it was.
        let (again, more) = rekey(&fs, &Plan::default());
        assert_eq!((again.unwrap().left, at(&more.rekeyed)), (outcome.left, 0));
        assert_eq!(at(&progress.rekeyed), 1);
        let record = fs.volume().record();
        assert_eq!((record.epoch_floor, record.epoch, record.rekey), (Epoch(0), Epoch(1), RekeyState::All));
        if place > 4096 {
            fs.shut_down().unwrap();
            assert!(headers(&store).iter().any(|header| header.resealing.is_some()), "it is between two keys");
            let ino = fs.lookup(ROOT, b"damaged").unwrap().stat.ino;
            let handle = done(&fs, || fs.open(ino, false, false)).unwrap();
            for chunk in 0..91_u64 {
                let mut out = Vec::new();
                let found = fs.read(handle, PlainOffset(chunk * 4096), 4096, &mut out);
                let right = &long()[chunk as usize * 4096..][..out.len()];
                assert!(if found.is_ok() { out == right && !out.is_empty() } else { chunk == 67 }, "{chunk}");
            }
            fs.release(handle);
        }
        fs.unlink(ROOT, b"damaged").unwrap();
        complete(&fs);
        assert_eq!(fs.volume().record().epoch_floor, Epoch(1));
    }
}

#[test]
fn what_is_refused_in_the_middle_is_left_and_goes_on_when_it_is_granted_again() {
    let cloud = Cloud::default();
    let store = cloud.make("a", None, 2);
    let fs = cloud.mount(&store);
    (0..6_u8).for_each(|number| assert!(put(&fs, &[b'0' + number], &long()) > 0));
    fs.shut_down().unwrap();
    drop(fs);
    let fs = cloud.mount(&store);
    let key = cloud.key("a");
    let (outcome, progress) = rekey_with(&fs, &Plan::default(), &AtomicBool::new(false), &|_| {
        key.refuses.store(true, Ordering::Relaxed);
    });
    let outcome = outcome.unwrap();
    // The two whose secret was in memory are done.
    assert_eq!((outcome.left_count, at(&progress.rekeyed)), (4, 2), "{outcome:?}");
    assert!(outcome.left.iter().all(|left| left.refused && left.why.contains("a#0")), "{outcome:?}");
    key.refuses.store(false, Ordering::Relaxed);
    let progress = complete(&fs);
    assert_eq!((at(&progress.rekeyed), at(&progress.unwrapped)), (4, 2));
    assert!(all(&fs).values().all(|(content, _)| *content == long()));
}

#[test]
fn one_that_was_stopped_goes_on_unless_it_is_to_begin_anew() {
    let cloud = Cloud::default();
    let store = cloud.make("a", None, 50);
    let mut fs = cloud.mount(&store);
    (0..4_u8).for_each(|number| assert!(put(&fs, &[b'0' + number], &long()) > 0));
    let steps = |most: u64, plan: &Plan, fs: &Fs| {
        let (stop, taken) = (AtomicBool::new(false), AtomicU64::new(0));
        let (outcome, progress) = rekey_with(fs, plan, &stop, &|_| {
            stop.store(taken.fetch_add(1, Ordering::Relaxed) + 1 >= most, Ordering::Relaxed);
        });
        assert!(matches!(outcome, Err(Stopped::Asked)));
        at(&progress.rekeyed)
    };
    // In the middle of the second file, and of the one after what was done.
    let first = steps(13, &Plan::default(), &fs);
    fs.shut_down().unwrap();
    drop(fs);
    fs = cloud.mount(&store);
    assert_eq!(headers(&store).iter().filter(|header| header.resealing.is_some()).count(), 1);
    let second = steps(9, &Plan::default(), &fs);
    assert_eq!(fs.volume().record().epoch, Epoch(1));
    // Files that are between two keys get a third one, when they are through with the second.
    let anew = Plan { anew: true, ..Plan::default() };
    steps(3, &anew, &fs);
    assert_eq!(fs.volume().record().epoch, Epoch(2));
    let progress = complete(&fs);
    assert!(first >= 1 && second >= 1 && at(&progress.rekeyed) >= 3, "{first} {second} {progress:?}");
    fs.shut_down().unwrap();
    assert_eq!(epochs(&store), [2; 4]);
    assert_eq!(fs.volume().record().epoch_floor, Epoch(2));
    // And everything once more.
    complete(&fs);
    assert_eq!(fs.volume().record().epoch_floor, Epoch(3));
    assert!(all(&fs).values().all(|(content, _)| *content == long()));
}

#[test]
fn what_was_done_in_memory_when_it_was_stopped_is_stored_by_the_next_one() {
    let cloud = Cloud::default();
    let store = cloud.make("a", None, 50);
    let fs = cloud.mount(&store);
    (0..5_u8).for_each(|number| assert!(put(&fs, &[b'0' + number], b"small") > 0));
    fs.commit_all().unwrap();
    let (stop, taken) = (AtomicBool::new(false), AtomicU64::new(0));
    let pace = |_| stop.store(taken.fetch_add(1, Ordering::Relaxed) == 2, Ordering::Relaxed);
    let (outcome, progress) = rekey_with(&fs, &Plan::default(), &stop, &pace);
    assert!(matches!(outcome, Err(Stopped::Asked)) && at(&progress.rekeyed) == 3);
    assert_eq!(epochs(&store), [0; 5], "nothing is committed yet");
    assert_eq!(at(&complete(&fs).rekeyed), 2);
    assert_eq!(epochs(&store), [1; 5]);
}

#[test]
fn a_part_of_the_tree_or_what_is_old_gets_new_keys_and_the_rest_keeps_its_own() {
    let cloud = Cloud::default();
    let store = cloud.make("a", None, 5);
    let fs = cloud.mount(&store);
    let directory = done(&fs, || fs.make_directory(ROOT, b"directory", creator(0o755))).unwrap().stat.ino;
    for (parent, name) in [(ROOT, b"outside"), (directory, b"inside.")] {
        let (_, handle) = done(&fs, || fs.create(parent, name, creator(0o644))).unwrap();
        fs.write(handle, PlainOffset(0), b"content", false).unwrap();
        fs.release(handle);
    }
    fs.commit_all().unwrap();
    let path =
        |names: &[&[u8]]| Plan { path: Some(names.iter().map(|name| name.to_vec()).collect()), ..Plan::default() };
    let sorted = |store: &MemStore| {
        let mut epochs = epochs(store);
        epochs.sort_unstable();
        epochs
    };
    let run = |plan: &Plan| {
        let (outcome, progress) = rekey(&fs, plan);
        let outcome = outcome.unwrap();
        assert_eq!((outcome.left_count, outcome.floor_raised), (0, false));
        fs.commit_all().unwrap();
        at(&progress.rekeyed)
    };
    assert_eq!((run(&path(&[b"directory"])), sorted(&store)), (1, vec![0, 1]));
    assert_eq!((run(&path(&[b"directory", b"inside."])), sorted(&store)), (1, vec![0, 2]));
    assert_eq!((run(&path(&[b"outside"])), sorted(&store)), (1, vec![2, 3]));
    let known = fs.known_inodes();
    assert!(matches!(rekey(&fs, &path(&[b"directory", b"no such"])).0, Err(Stopped::Volume(_))));
    assert_eq!(fs.known_inodes(), known);
    let record = fs.volume().record();
    assert_eq!((record.epoch_floor, record.epoch, record.rekey), (Epoch(0), Epoch(3), RekeyState::None));
    // By age: all are new, and then all are older than the next second.
    let before = |moment: u64| Plan { made_before: Some(moment), ..Plan::default() };
    assert_eq!(run(&before(now() - 1000)), 0);
    assert_eq!((run(&before(now() + 1000)), sorted(&store)), (2, vec![5, 5]));
    assert!(headers(&store).iter().all(|header| header.made > now() - 1000));
    // A file of the highest epoch gets a new one if everything does.
    complete(&fs);
    fs.commit_all().unwrap();
    assert_eq!((sorted(&store), fs.volume().record().epoch_floor), (vec![6, 6], Epoch(6)));
}

#[test]
fn a_rewrap_of_files_between_two_keys_leaves_them_there() {
    let cloud = Cloud::default();
    let store = cloud.make("a", None, 5);
    let fs = cloud.mount(&store);
    put(&fs, b"file", &long());
    let (stop, taken) = (AtomicBool::new(false), AtomicU64::new(0));
    let pace = |_| stop.store(taken.fetch_add(1, Ordering::Relaxed) == 2, Ordering::Relaxed);
    assert!(matches!(rekey_with(&fs, &Plan::default(), &stop, &pace).0, Err(Stopped::Asked)));
    let asked = cloud.calls("a").0;
    rewrap_all(&fs, Some("b"));
    // The volume key, and the one secret of the file, which is in memory.
    assert_eq!(cloud.calls("a").0, asked + 1);
    cloud.key("a").refuses.store(true, Ordering::Relaxed);
    fs.shut_down().unwrap();
    drop(fs);
    assert!(headers(&store).iter().all(|header| header.resealing.is_some()));
    let fs = cloud.mount(&store);
    assert!(all(&fs).values().all(|(content, _)| *content == long()));
    complete(&fs);
    assert!(all(&fs).values().all(|(content, _)| *content == long()));
}

#[test]
fn what_is_moved_and_made_during_a_rekey_is_not_overlooked() {
    let cloud = Cloud::default();
    let store = cloud.make("a", None, 7);
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
    let ended = AtomicBool::new(false);
    std::thread::scope(|scope| {
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
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| complete(&fs)));
        ended.store(true, Ordering::Relaxed);
        result.unwrap();
    });
    fs.commit_all().unwrap();
    assert!(epochs(&store).iter().all(|epoch| *epoch == 1));
    fs.shut_down().unwrap();
    drop(fs);
    assert_eq!(all(&cloud.mount(&store)).len(), 400);
}

/// A cut after each change that a rekey makes, with a file that is written to meanwhile: then everything is there, and the
/// same command comes to the same end.
#[test]
fn after_every_cut_everything_is_readable_and_the_same_command_goes_on() {
    let (mut cuts, mut between) = (0, 0);
    for (seed, recovery) in [(1_u64, None), (2, Some("r"))] {
        let cloud = Cloud::default();
        let store = cloud.make("a", recovery, 4);
        let fs = cloud.mount(&store);
        put_files(&fs, 6);
        put(&fs, b"long", &long());
        fs.shut_down().unwrap();
        let expected = all(&fs);
        drop(fs);
        let fs = cloud.mount(&store);
        let handle = done(&fs, || fs.open(fs.lookup(ROOT, b"long")?.stat.ino, true, false)).unwrap();
        store.record();
        let turn = AtomicU64::new(0);
        let write = |_: u64| {
            // The same bytes, so that every version is the same: before the watermark and behind it.
            let at = turn.fetch_add(1, Ordering::Relaxed) * 40_000 % 350_000;
            fs.write(handle, PlainOffset(at), &long()[at as usize..][..5000], false).unwrap();
            fs.sync(handle, true).unwrap();
        };
        let outcome = rekey_with(&fs, &Plan::default(), &AtomicBool::new(false), &write).0.unwrap();
        assert!(outcome.floor_raised, "{outcome:?}");
        write(0);
        let snapshots = store.recorded();
        assert!(snapshots.len() > 40, "{}", snapshots.len());
        for (position, snapshot) in snapshots.into_iter().enumerate() {
            let cut = seed << 20 | position as u64;
            let found = if cut.is_multiple_of(5) { snapshot.killed() } else { snapshot.cut(cut) };
            let what = format!("work {seed}, cut {position} after {}", snapshot.after);
            let fs = cloud.mount(&found);
            between += headers(&found).iter().filter(|header| header.resealing.is_some()).count();
            assert!(all(&fs) == expected, "{what}: {:?}", contents_only(&all(&fs)).keys());
            let outcome = rekey(&fs, &Plan::default()).0.unwrap_or_else(|stopped| panic!("{what}: {stopped:?}"));
            assert!(outcome.left.is_empty() && outcome.floor_raised, "{what}: {outcome:?}");
            let record = fs.volume().record();
            assert!((1..3).contains(&record.epoch_floor.0) && record.rekey == RekeyState::None, "{what}: {record:?}");
            assert_eq!(fs.counters.damaged.load(Ordering::Relaxed), 0, "{what}");
            fs.shut_down().unwrap();
            drop(fs);
            assert!(epochs(&found).iter().all(|epoch| *epoch == record.epoch_floor.0), "{what}");
            assert!(all(&cloud.mount(&found)) == expected, "{what}, at the end");
            cuts += 1;
        }
    }
    println!("{cuts} cuts, {between} files between two keys");
    assert!(between > 0);
}

#[test]
fn what_crashes_left_keeps_the_floor_until_somebody_has_looked_at_it() {
    let cloud = Cloud::default();
    let store = cloud.make("a", None, 5);
    let fs = cloud.mount(&store);
    put_files(&fs, 3);
    fs.commit_all().unwrap();
    let tree = store.root().open_dir(b"tree").unwrap();
    let mut bytes = vec![0; 1 << 20];
    let len = tree.open_file(&any_file(&*tree), false).unwrap().read_at(&mut bytes, StoredOffset(0)).unwrap();
    let lost = fs.volume().lost().unwrap();
    lost.create_file(&[b'0'; 32], 0o600).unwrap().write_at(&bytes[..len], StoredOffset(0)).unwrap();
    let outcome = rekey(&fs, &Plan::default()).0.unwrap();
    assert_eq!((outcome.left_count, outcome.floor_raised), (1, false));
    assert_eq!(outcome.left[0].stored, [&b"lost/"[..], &[b'0'; 32]].concat());
    lost.unlink(&[b'0'; 32]).unwrap();
    complete(&fs);
}
