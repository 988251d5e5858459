use super::*;
use crate::store::Store;
use crate::store::fault::{Fault, FaultStore, Faults, Plan};
use crate::store::mem::MemStore;

const VOLUME: VolumeId = VolumeId([7; 16]);

fn key() -> Secret32 {
    Secret32::take(&mut [3; 32])
}

fn place(store: &dyn Store) -> Place {
    Place { directory: store.root(), name: b"ledger".to_vec() }
}

fn stamp(epoch: u32, generation: u64) -> Stamp {
    Stamp { epoch, generation, mac: [generation as u8; 4] }
}

fn counted(counter: u64) -> Mark {
    Mark { counter, ..Mark::default() }
}

fn id(number: u64) -> FileId {
    FileId(std::array::from_fn(|at| if at < 8 { number.to_le_bytes()[at] } else { 9 }))
}

fn open(store: &dyn Store) -> Result<Ledger, LedgerError> {
    Ledger::open(place(store), VOLUME, &key())
}

#[test]
fn an_older_header_is_old_and_so_is_another_one_with_the_same_number() {
    let store = MemStore::default();
    let ledger = Ledger::create(place(&store), VOLUME, &key(), counted(5)).unwrap();
    assert_eq!(ledger.see(id(1), stamp(0, 8), true), Seen::New);
    ledger.note(id(2), stamp(1, 3));
    ledger.flush(&key(), 6).unwrap();
    for ledger in [ledger, open(&store).unwrap()] {
        assert_eq!(ledger.mark().counter, 6);
        for (file, seen, expected) in [
            (1, stamp(0, 8), Seen::Current),
            (1, stamp(0, 7), Seen::Old),
            (1, Stamp { mac: [1; 4], ..stamp(0, 8) }, Seen::Old),
            (2, stamp(1, 3), Seen::Current),
            (2, stamp(0, 100), Seen::Old),
            (2, stamp(2, 1), Seen::Current),
            (3, stamp(0, 1), Seen::New),
        ] {
            assert_eq!(ledger.see(id(file), seen, false), expected, "file {file}: {seen:?}");
        }
        // What is seen and not durable is not known.
        assert_eq!(ledger.see(id(2), stamp(1, 3), false), Seen::Current);
        assert_eq!(ledger.see(id(3), stamp(0, 0), false), Seen::New);
    }
}

#[test]
fn what_was_removed_is_forgotten_and_a_new_file_is_known_with_its_batch() {
    let store = MemStore::default();
    let ledger = Ledger::create(place(&store), VOLUME, &key(), counted(0)).unwrap();
    ledger.note(id(1), stamp(0, 5));
    ledger.flush(&key(), 1).unwrap();
    for number in 2..5 {
        ledger.expect(id(number), stamp(0, 2), number);
    }
    ledger.expect(id(2), stamp(0, 3), 9);
    ledger.committed(3);
    assert!(ledger.forget(id(1)) && !ledger.forget(id(4)));
    ledger.flush(&key(), 3).unwrap();
    ledger.committed(4);
    let again = open(&store).unwrap();
    assert_eq!((again.files(), again.mark().counter), (1, 3));
    assert_eq!(again.see(id(1), stamp(0, 1), false), Seen::New);
    assert_eq!(again.see(id(3), stamp(0, 1), false), Seen::Old);
    assert_eq!(ledger.see(id(2), stamp(0, 1), false), Seen::New, "its batch is not committed");
    assert_eq!(ledger.see(id(4), stamp(0, 1), false), Seen::New, "it was removed before its batch was");
    ledger.committed(9);
    assert_eq!(ledger.see(id(2), stamp(0, 2), false), Seen::Old);
}

#[test]
fn a_ledger_that_is_written_anew_again_and_again_loses_nothing_and_does_not_grow() {
    let store = MemStore::default();
    let ledger = Ledger::create(place(&store), VOLUME, &key(), counted(0)).unwrap();
    for number in 0..40 {
        ledger.note(id(number), stamp(0, 1));
    }
    for round in 1..3 * SLACK {
        ledger.note(id(round % 40), stamp(0, round + 1));
        ledger.flush(&key(), round).unwrap();
    }
    let len = store.root().open_file(b"ledger", false).unwrap().inode().stat().unwrap().len.0;
    assert!(len <= (SLACK + 10) * BLOCK as u64, "{len}");
    let again = open(&store).unwrap();
    assert_eq!((again.files(), again.mark().counter), (40, 3 * SLACK - 1));
    for number in 0..40 {
        let newest = (1..3 * SLACK).rev().find(|round| round % 40 == number).unwrap() + 1;
        assert_eq!(again.see(id(number), stamp(0, newest), false), Seen::Current, "{number}");
        assert_eq!(again.see(id(number), stamp(0, newest - 1), false), Seen::Old, "{number}");
    }
}

#[test]
fn after_every_cut_it_knows_what_was_flushed_and_nothing_that_was_not_noted() {
    let store = MemStore::default();
    let ledger = Ledger::create(place(&store), VOLUME, &key(), counted(0)).unwrap();
    store.record();
    let mut cuts = 0;
    for round in 1..120_u64 {
        // Often more than a block has room for; now and then it is written as a whole.
        for number in 0..(round * 7) % 31 {
            ledger.note(id(number), stamp(0, round));
        }
        if round % 20 == 0 {
            ledger.writer.lock().file = None;
        }
        let noted: Vec<_> = (0..31).map(|number| ledger.known.lock().files.get(&id(number)).copied()).collect();
        let before = open(&store).unwrap();
        ledger.flush(&key(), round).unwrap();
        for snapshot in store.recorded() {
            for seed in 0..3 {
                cuts += 1;
                let found = open(&snapshot.cut(round * 100 + seed))
                    .unwrap_or_else(|error| panic!("round {round}, after {}: {error}", snapshot.after));
                assert!(found.mark().counter >= before.mark().counter && found.mark().counter <= round);
                for (number, noted) in (0..).zip(&noted) {
                    let (old, new) = (before.known.lock(), found.known.lock());
                    let at = |known: &Known| known.files.get(&id(number)).map_or(0, |stamp| stamp.generation);
                    let newest = noted.map_or(0, |stamp| stamp.generation);
                    assert!(at(&old) <= at(&new) && at(&new) <= newest, "round {round}, file {number}");
                }
                // It goes on from there.
                found.note(id(99), stamp(0, 1));
                found.flush(&key(), round + 1).unwrap();
            }
        }
        let found = open(&store).unwrap();
        assert_eq!(found.known.lock().files, ledger.known.lock().files);
    }
    println!("{cuts} cuts");
}

#[test]
fn a_changed_cut_or_foreign_ledger_is_refused() {
    let store = MemStore::default();
    let ledger = Ledger::create(place(&store), VOLUME, &key(), counted(0)).unwrap();
    for round in 1..6 {
        ledger.note(id(round), stamp(0, 1));
        ledger.flush(&key(), round).unwrap();
    }
    assert!(matches!(Ledger::open(place(&store), VolumeId([8; 16]), &key()), Err(LedgerError::OtherVolume(VOLUME))));
    let other_key = Secret32::take(&mut [4; 32]);
    assert!(matches!(Ledger::open(place(&store), VOLUME, &other_key), Err(LedgerError::Damaged(_))));
    assert_eq!(Ledger::peek(&place(&store), VOLUME).unwrap(), (counted(5), 5));
    let file = store.root().open_file(b"ledger", true).unwrap();
    let mut whole = vec![0; 7 * BLOCK];
    assert_eq!(file.read_at(&mut whole, StoredOffset(0)).unwrap(), whole.len());
    for number in 0..6 {
        let at = number * BLOCK + 100;
        file.write_at(&[whole[at] ^ 1], StoredOffset(at as u64)).unwrap();
        assert!(matches!(open(&store), Err(LedgerError::Damaged(_))), "block {number}");
        file.write_at(&whole[at..=at], StoredOffset(at as u64)).unwrap();
    }
    // The last one may be what a crash has left of it; of what was there before, nothing may be missing.
    file.write_at(&[whole[6 * BLOCK] ^ 1], StoredOffset(6 * BLOCK as u64)).unwrap();
    assert_eq!(open(&store).unwrap().mark().counter, 4);
    for len in [0, 100, BLOCK as u64] {
        file.set_len(StoredOffset(len)).unwrap();
        assert!(matches!(open(&store), Err(LedgerError::Damaged(_))), "{len} bytes");
    }
    store.root().unlink(b"ledger").unwrap();
    assert!(matches!(open(&store), Err(LedgerError::Missing)));
}

#[test]
fn what_a_full_disk_did_not_take_is_written_when_there_is_room() {
    for fault in [Fault::Errno(libc::ENOSPC), Fault::Half(libc::EIO)] {
        for at in 0..4 {
            let (store, faults) = (MemStore::default(), Faults::default());
            let faulty = FaultStore::new(Arc::new(store.clone()), faults.clone());
            let ledger = Ledger::create(place(&faulty), VOLUME, &key(), counted(0)).unwrap();
            ledger.note(id(1), stamp(0, 1));
            faults.plan(Some(Plan { at, lasting: true, only_changes: true, fault }));
            let first = ledger.flush(&key(), 1);
            assert_eq!((first.is_err(), ledger.error().is_some()), (at < 2, at < 2), "{at}");
            assert_eq!(ledger.durable_counter(), if at < 2 { 0 } else { 1 }, "what the KMS may be told");
            ledger.note(id(2), stamp(0, 1));
            let second = ledger.flush(&key(), 2);
            faults.plan(None);
            assert_eq!(second.is_err(), at < 4, "{at}");
            assert!(open(&store).unwrap().mark().counter <= 2);
            ledger.flush(&key(), 2).unwrap();
            assert_eq!(ledger.error(), None);
            let again = open(&store).unwrap();
            assert_eq!((again.files(), again.mark().counter), (2, 2));
        }
    }
}

#[test]
fn one_that_is_read_only_compares_and_writes_nothing() {
    let store = MemStore::default();
    let ledger = Ledger::create(place(&store), VOLUME, &key(), counted(4)).unwrap();
    ledger.note(id(1), stamp(0, 5));
    ledger.flush(&key(), 4).unwrap();
    store.record();
    let ledger = open(&store).unwrap().read_only();
    assert_eq!(ledger.see(id(1), stamp(0, 4), true), Seen::Old);
    assert_eq!(ledger.see(id(2), stamp(0, 4), true), Seen::New);
    assert_eq!(ledger.see(id(2), stamp(0, 3), true), Seen::New);
    ledger.flush(&key(), 9).unwrap();
    assert!(store.recorded().is_empty());
}

#[test]
fn a_rollback_that_was_seen_is_remembered() {
    let store = MemStore::default();
    let ledger = Ledger::create(place(&store), VOLUME, &key(), counted(4)).unwrap();
    ledger.suspect();
    ledger.note_record(3);
    ledger.note_record(2);
    ledger.flush(&key(), 4).unwrap();
    let again = open(&store).unwrap();
    assert_eq!(again.mark(), Mark { counter: 4, record: 3, suspect: true });
    again.flush(&key(), 9).unwrap();
    assert!(open(&store).unwrap().mark().suspect);
    drop(Ledger::create(place(&store), VOLUME, &key(), counted(9)).unwrap());
    assert!(!open(&store).unwrap().mark().suspect);
}
