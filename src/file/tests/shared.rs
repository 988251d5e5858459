//! One large file used by several threads at once: with more tag blocks than are kept in memory, so that each is read,
//! changed, committed and dropped again while others look for it.

use super::*;
use crate::file::crash_tests::Draws;
use std::collections::HashMap;
use std::thread;

const BLOCKS: u64 = 1500;
const THREADS: u64 = 4;

/// A chunk of this thread's: in every block, between those of the others.
fn place(draws: &mut Draws, thread: u64) -> PlainOffset {
    PlainOffset((64 + draws.below(BLOCKS) * 256 + draws.below(4) * THREADS + thread) * 4096)
}

fn look(file: &File, at: PlainOffset, expected: Option<&u8>) {
    let mut out = Vec::new();
    file.read(at, 4096, &mut out).unwrap();
    let byte = *expected.unwrap_or(&0);
    assert!(out.iter().all(|found| *found == byte), "at {at:?}: {} and not {byte}", out.first().unwrap_or(&0));
}

/// Writes, reads and commits; what it wrote last, by place.
fn use_it(file: &File, thread: u64) -> HashMap<u64, u8> {
    let (mut draws, mut written) = (Draws(thread + 1), HashMap::new());
    for step in 0..2500_u64 {
        let at = place(&mut draws, thread);
        if draws.below(2) == 0 {
            let byte = 1 + draws.below(255) as u8;
            file.write(at, &[byte; 4096]).unwrap();
            written.insert(at.0, byte);
        }
        look(file, at, written.get(&at.0));
        if step % 100 == 99 {
            file.commit().unwrap();
        }
    }
    written
}

#[test]
fn threads_that_are_all_over_a_large_file_see_what_they_wrote_last() {
    let volume = Volume::new(12);
    let file = volume.create();
    file.set_len(PlainOffset((64 + BLOCKS * 256) * 4096)).unwrap();
    file.commit().unwrap();
    let written: HashMap<u64, u8> = thread::scope(|scope| {
        let file = &file;
        let running: Vec<_> = (0..THREADS).map(|thread| scope.spawn(move || use_it(file, thread))).collect();
        running.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    file.commit().unwrap();
    drop(file);
    let file = volume.reopen().unwrap();
    for (at, byte) in &written {
        look(&file, PlainOffset(*at), Some(byte));
    }
    file.check_all().unwrap();
}

#[test]
fn readers_of_a_file_that_is_cut_and_grows_again_see_no_older_version() {
    let volume = Volume::new(12);
    let file = volume.create();
    let end = PlainOffset((64 + BLOCKS * 256) * 4096);
    file.set_len(end).unwrap();
    file.commit().unwrap();
    let at = |block: u64| PlainOffset((64 + block * 256) * 4096);
    let round = std::sync::atomic::AtomicU8::new(0);
    let done = std::sync::atomic::AtomicBool::new(false);
    use std::sync::atomic::Ordering::SeqCst;
    thread::scope(|scope| {
        for seed in 1..THREADS {
            let (file, round, done) = (&file, &round, &done);
            scope.spawn(move || {
                let mut draws = Draws(seed);
                while !done.load(SeqCst) {
                    let before = round.load(SeqCst);
                    let mut out = Vec::new();
                    file.read(at(draws.below(BLOCKS)), 1, &mut out).unwrap();
                    // Nothing behind the end, a hole, this round's or the next one's.
                    let found = out.first().copied().unwrap_or(0);
                    assert!(found == 0 || found >= before, "{found} of a round before {before}");
                }
            });
        }
        for number in 1..=20_u8 {
            file.set_len(PlainOffset(4096 * u64::from(number))).unwrap();
            round.store(number, SeqCst);
            file.set_len(end).unwrap();
            for block in (0..BLOCKS).step_by(2) {
                file.write(at(block), &[number; 100]).unwrap();
            }
            file.commit().unwrap();
        }
        done.store(true, SeqCst);
    });
    drop(file);
    let file = volume.reopen().unwrap();
    for block in 0..BLOCKS {
        let mut out = Vec::new();
        file.read(at(block), 1, &mut out).unwrap();
        assert_eq!(out, [if block % 2 == 0 { 20 } else { 0 }], "block {block}");
    }
}
