use super::*;
use crate::audit::{Recorder, verify, writer};
use crate::store::Store;
use crate::store::fault::{Fault, FaultStore, Faults, Plan};
use crate::store::mem::MemStore;
use std::collections::VecDeque;
use std::time::{Duration, Instant};

const VOLUME: VolumeId = VolumeId([7; 16]);
const TINY: Limits = Limits { file_len: 600, keep: Some(3) };

fn key() -> Secret32 {
    Secret32::take(&mut [5; 32])
}

fn event(number: u64) -> Event {
    Event::Damage { what: format!("number {number}") }
}

fn open(store: &MemStore, limits: Limits) -> (Log, Found) {
    Log::open(store.root(), VOLUME, "main", limits).unwrap()
}

fn append(log: &mut Log, number: u64) {
    log.append(SystemTime::now(), &event(number)).unwrap();
}

fn check(store: &MemStore) -> crate::audit::Verdict {
    let mut all = verify(&*store.root(), VOLUME, Some(&key()), None).unwrap();
    assert_eq!(all.len(), 1);
    all.remove(0)
}

/// The numbers of the events that are there, in order.
fn numbers(store: &MemStore) -> Vec<u64> {
    let tail = crate::audit::tail(&*store.root(), &mut crate::audit::Cursor::default()).unwrap();
    let of = |read: Read| read.value["what"].as_str()?.strip_prefix("number ")?.parse().ok();
    tail.into_iter().filter_map(|line| of(line.read.unwrap())).collect()
}

/// A log of one file with three events and a checkpoint.
fn small() -> (MemStore, Head) {
    let store = MemStore::default();
    let (mut log, _) = open(&store, Limits::default());
    (1..=3).for_each(|number| append(&mut log, number));
    assert!(log.checkpoint(SystemTime::now(), || Box::new(Some(key()))).unwrap());
    log.sync().unwrap();
    (store, log.head())
}

fn content(store: &MemStore) -> Vec<u8> {
    read(&*store.root(), "main.00000001.jsonl").unwrap()
}

fn holding(bytes: &[u8]) -> MemStore {
    let store = MemStore::default();
    let file = store.root().create_file(b"main.00000001.jsonl", 0o600).unwrap();
    file.write_at(bytes, StoredOffset(0)).unwrap();
    store
}

#[test]
fn a_log_cut_at_any_byte_goes_on_without_a_break_and_says_what_was_cut() {
    let (store, _) = small();
    let bytes = content(&store);
    for len in 0..bytes.len() {
        let store = holding(&bytes[..len]);
        let whole = bytes[..len].iter().filter(|byte| **byte == b'\n').count() as u64;
        assert!(check(&store).broken.is_none(), "cut to {len} bytes, not opened yet");
        let (mut log, found) = open(&store, Limits::default());
        assert_eq!(log.head().seq, whole, "cut to {len} bytes");
        let torn = len > 0 && bytes[len - 1] != b'\n';
        assert_eq!(matches!(&found.notes[..], [Event::Torn { .. }]), torn, "cut to {len} bytes: {:?}", found.notes);
        for note in &found.notes {
            log.append(SystemTime::now(), note).unwrap();
        }
        append(&mut log, 9);
        let verdict = check(&store);
        assert_eq!((verdict.broken, verdict.torn_bytes), (None, 0), "cut to {len} bytes");
        assert_eq!(verdict.lines, whole + u64::from(torn) + 1);
        assert_eq!(numbers(&store), (1..=whole.min(3)).chain([9]).collect::<Vec<_>>());
    }
}

#[test]
fn a_power_cut_after_any_operation_breaks_no_chain_and_loses_nothing_that_was_durable() {
    let store = MemStore::default();
    store.record();
    let mut snapshots = Vec::new();
    {
        let (mut log, _) = open(&store, TINY);
        let mut durable = 0;
        for number in 1..40 {
            append(&mut log, number);
            snapshots.extend(store.recorded().into_iter().map(|snapshot| (snapshot, durable)));
            if number % 3 == 0 {
                log.sync().unwrap();
                snapshots.extend(store.recorded().into_iter().map(|snapshot| (snapshot, durable)));
                durable = number;
            }
        }
    }
    assert!(snapshots.len() > 60);
    for (position, (snapshot, promised)) in snapshots.into_iter().enumerate() {
        for seed in 0..6 {
            let store = if seed == 0 { snapshot.killed() } else { snapshot.cut(seed) };
            let (mut log, found) = open(&store, TINY);
            let broken = found.notes.iter().any(|note| matches!(note, Event::Broken { .. }));
            assert!(!broken, "snapshot {position} after {}, seed {seed}: {:?}", snapshot.after, found.notes);
            append(&mut log, 1000);
            let verdict = check(&store);
            assert_eq!(verdict.broken, None, "snapshot {position} after {}, seed {seed}", snapshot.after);
            let numbers = numbers(&store);
            assert!(numbers.is_sorted() && numbers.last() == Some(&1000));
            let last = numbers.iter().rev().nth(1).copied().unwrap_or(0);
            assert!(last >= promised, "snapshot {position}, seed {seed}: {last} instead of {promised} is the last");
        }
    }
}

#[test]
fn a_byte_that_is_changed_anywhere_is_found() {
    let (store, head) = small();
    let bytes = content(&store);
    let last = bytes[..bytes.len() - 1].iter().rposition(|byte| *byte == b'\n').unwrap() + 1;
    for at in 0..bytes.len() {
        let mut changed = bytes.clone();
        changed[at] ^= 1;
        let store = holding(&changed);
        let noted = verify(&*store.root(), VOLUME, Some(&key()), Some(&head.hash)).unwrap().remove(0);
        if at < last - 1 {
            let broken = noted.broken.unwrap_or_else(|| panic!("byte {at} was changed, and nobody noticed"));
            let line = bytes[..at].iter().filter(|byte| **byte == b'\n').count() as u64 + 1;
            assert!((line..=line + 1).contains(&broken.line), "byte {at} in line {line}: {broken:?}");
        } else {
            // The last line is vouched for by no other one, but it is not the one that was noted.
            assert_eq!(noted.noted_at, None, "byte {at}: the noted head is there");
            assert_ne!(noted.authenticated_to, Some(4), "byte {at}");
        }
    }
}

#[test]
fn what_is_wrong_is_left_as_it_is_and_the_log_goes_on_in_another_file() {
    let (store, _) = small();
    let mut bytes = content(&store);
    bytes[100] ^= 1;
    let store = holding(&bytes);
    let (mut log, found) = open(&store, Limits::default());
    assert!(matches!(&found.notes[..], [Event::Broken { .. }]), "{:?}", found.notes);
    append(&mut log, 4);
    assert_eq!(content(&store), bytes);
    let verdict = check(&store);
    assert_eq!((verdict.files, verdict.last_seq), (2, 5));
    assert_eq!(verdict.broken.unwrap().file, "main.00000001.jsonl");
    // The next opening has nothing new to say.
    drop(log);
    assert!(open(&store, Limits::default()).1.notes.is_empty());
}

#[test]
fn a_chain_that_was_made_anew_has_no_checkpoint_of_this_volume() {
    let (store, _) = small();
    let text = String::from_utf8(content(&store)).unwrap().replace("number 2", "number 8");
    let (mut forged, mut head) = (Vec::new(), Head::default());
    for line in text.lines() {
        let line = line.replace(
            &Read::parse(line.as_bytes()).unwrap().value["prev"].to_string(),
            &format!("\"{}\"", chain::hex(&head.hash)),
        );
        head = Head { seq: head.seq + 1, hash: *blake3::hash(line.as_bytes()).as_bytes() };
        forged.extend_from_slice(line.as_bytes());
        forged.push(b'\n');
    }
    let store = holding(&forged);
    assert!(verify(&*store.root(), VOLUME, None, None).unwrap()[0].broken.is_none());
    let broken = check(&store).broken.unwrap();
    assert_eq!((broken.line, broken.after_seq), (4, 3));
    assert!(broken.what.contains("checkpoint"));
}

#[test]
fn old_files_go_and_the_chain_says_so() {
    let store = MemStore::default();
    let (mut log, _) = open(&store, TINY);
    (1..100).for_each(|number| append(&mut log, number));
    let files = files(&*store.root(), "main").unwrap();
    assert_eq!(files.len(), 3);
    let verdict = check(&store);
    assert_eq!(verdict.broken, None);
    assert!(verdict.first_seq > 50 && verdict.last_seq == log.head().seq);
    // One that is removed by somebody else is missed, whichever it is but the last.
    store.root().unlink(name("main", files[0]).as_bytes()).unwrap();
    assert!(check(&store).broken.unwrap().what.contains("removed to make room"));
    let (mut log, _) = open(&store, Limits { keep: None, ..TINY });
    (1..100).for_each(|number| append(&mut log, number));
    let files = super::files(&*store.root(), "main").unwrap();
    assert!(files.len() > 10);
    store.root().unlink(name("main", files[5]).as_bytes()).unwrap();
    assert!(check(&store).broken.is_some());
}

#[test]
fn the_settings_of_the_last_mount_are_found_also_in_an_older_file() {
    let store = MemStore::default();
    let (mut log, _) = open(&store, TINY);
    let values = [("revalidate".to_owned(), "30s".to_owned())].into();
    let mount = Event::Mount {
        volume: String::new(),
        kek: String::new(),
        mountpoint: String::new(),
        host: String::new(),
        pid: 1,
        version: String::new(),
        after_crash: false,
        with_recovery_kek: false,
        settings: Settings { values },
        call: crate::audit::Call::default(),
    };
    log.append(SystemTime::now(), &mount).unwrap();
    (1..5).for_each(|number| append(&mut log, number));
    assert!(files(&*store.root(), "main").unwrap().len() > 1);
    let (_, found) = open(&store, TINY);
    assert_eq!(found.settings.unwrap().values["revalidate"], "30s");
    assert_eq!(found.last_event.as_deref(), Some("damage"));
}

/// A recorder whose thread writes to this store.
fn recorder(store: &dyn Store) -> (Recorder, std::thread::JoinHandle<()>, Arc<writer::Shared>) {
    let (log, _) = Log::open(store.root(), VOLUME, "main", Limits::default()).unwrap();
    let (recorder, shared) = Recorder::new(&log);
    let thread = writer::Writer::new(Arc::clone(&shared), log);
    (recorder, std::thread::spawn(move || thread.run()), shared)
}

#[test]
fn a_full_disk_holds_nobody_up_and_what_was_lost_is_said_when_there_is_room() {
    let store = MemStore::default();
    let faults = Faults::default();
    let (recorder, thread, shared) = recorder(&FaultStore::new(Arc::new(store.clone()), faults.clone()));
    recorder.unlock(key());
    recorder.record(Event::Unlock);
    assert!(recorder.flush(Duration::from_secs(20)));
    let full = Plan { at: 0, lasting: true, only_changes: true, fault: Fault::Half(libc::ENOSPC) };
    faults.plan(Some(full));
    let begin = Instant::now();
    for _ in 0..20_000 {
        recorder.record(Event::KekVersion { kek: "k".into() });
    }
    assert!(begin.elapsed() < Duration::from_secs(5), "it took {:?} to record", begin.elapsed());
    assert!(!recorder.flush(Duration::from_secs(20)));
    assert!(recorder.status().unwrap().error.is_some());
    faults.plan(None);
    assert!((0..20).any(|_| recorder.flush(Duration::from_secs(20))));
    recorder.lock(Duration::from_secs(20));
    let status = recorder.status().unwrap();
    assert!(status.lost > 0 && status.error.is_none(), "{status:?}");
    shared.stop();
    thread.join().unwrap();
    let verdict = check(&store);
    assert_eq!((verdict.broken, verdict.torn_bytes), (None, 0));
    assert_eq!(verdict.authenticated_to, Some(verdict.last_seq));
    let lines = crate::audit::tail(&*store.root(), &mut crate::audit::Cursor::default()).unwrap();
    let values: VecDeque<_> = lines.into_iter().map(|line| line.read.unwrap().value).collect();
    let lost: u64 =
        values.iter().filter(|value| value["event"] == "lost").map(|value| value["count"].as_u64().unwrap()).sum();
    let kept = values.iter().filter(|value| value["event"] == "kek-version").count() as u64;
    assert_eq!((lost, lost + kept), (status.lost, 20_000));
}

#[test]
fn while_it_is_locked_no_checkpoint_is_made_and_the_next_one_covers_what_happened() {
    let store = MemStore::default();
    let (recorder, thread, shared) = recorder(&store);
    recorder.unlock(key());
    recorder.record(Event::Unlock);
    recorder.lock(Duration::from_secs(20));
    let before = check(&store);
    assert_eq!(before.authenticated_to, Some(before.last_seq));
    recorder.record(Event::Unlock);
    assert!(recorder.flush(Duration::from_secs(20)));
    assert_eq!(check(&store).checkpoints, before.checkpoints);
    recorder.unlock(key());
    assert!(recorder.flush(Duration::from_secs(20)));
    let after = check(&store);
    assert_eq!((after.authenticated_to, after.checkpoints), (Some(after.last_seq), before.checkpoints + 1));
    shared.stop();
    thread.join().unwrap();
}
