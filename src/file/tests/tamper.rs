//! The tamper matrix: every part of stored files of every shape, and every kind of change. Whatever was changed, each chunk
//! is an error or what it was, the chunks that nothing happened to are what they were, and nobody can write the damage away.

mod sample;

use super::*;
use crate::file::crash_tests::Draws;
use crate::format::PAGE;
use crate::format::tags::{ENTRIES_PER_HEADER, ENTRY_LEN};
use sample::*;

#[test]
fn a_flipped_byte_anywhere_costs_what_depends_on_it_and_nothing_else() {
    let mut draws = Draws(0x7A3B_19C4_55D1_0E67);
    let mut tried = 0;
    for shape in &shapes() {
        let sample = Sample::new(shape, 1);
        assert_eq!(sample.damaged(shape.what, &sample.now()), Some(vec![]), "{}", shape.what);
        let len = sample.stored.len() as u64;
        // Every byte of the header's fields; of the rest, all that are near an end, and some of the others.
        let mut places: Vec<u64> = (0..ENTRIES_AT).chain((ENTRIES_AT..PAGE as u64).step_by(13)).collect();
        for index in sample.some_chunks() {
            let place = sample.place(index);
            places.extend([place.start, place.start + place.len() / 2, place.end - 1].map(|at| at as u64));
        }
        for block in 0..sample.blocks() {
            let place = sample.block_place(block);
            places.extend(place.clone().step_by(509).map(|at| at as u64));
            places.push(place.end as u64 - 1);
        }
        places.push(len - 1);
        for at in places {
            let flip = 1 << draws.below(8);
            let byte = sample.stored[at as usize] ^ flip;
            let what = format!("{}: bits {flip:#04x} of byte {at}", shape.what);
            sample.try_out(&what, &[(at, vec![byte])], &sample.now(), Some(sample.behind(at)));
            tried += 1;
        }
        assert_eq!(sample.damaged(shape.what, &sample.now()), Some(vec![]), "{}: put back", shape.what);
    }
    println!("{tried} bytes");
}

#[test]
fn a_stored_file_of_any_other_length_is_refused() {
    let mut tried = 0;
    for shape in &shapes() {
        let sample = Sample::new(shape, 1);
        let len = sample.stored.len() as u64;
        let mut lens: Vec<u64> = (0..len.min(3 * PAGE as u64)).step_by(if len < 3 * C { 1 } else { 37 }).collect();
        let ends = sample.some_chunks().into_iter().map(|index| sample.place(index).end as u64);
        let blocks =
            (0..sample.blocks()).flat_map(|block| [sample.block_place(block).start, sample.block_place(block).end]);
        lens.extend(ends.chain(blocks.map(|at| at as u64)).flat_map(|at| [at - 1, at, at + 1]));
        lens.extend([len + 1, len + C - 1, len + C, len + 3 * C + 5, len + (1 << 30)]);
        let store = sample.store();
        for wrong in lens.into_iter().filter(|wrong| *wrong != len) {
            store.set_len(StoredOffset(wrong)).unwrap();
            let what = format!("{}: {wrong} bytes instead of {len}", shape.what);
            assert_eq!(sample.damaged(&what, &sample.now()), None, "{what}");
            if wrong < len {
                store.write_at(&sample.stored[wrong as usize..], StoredOffset(wrong)).unwrap();
            }
            store.set_len(StoredOffset(len)).unwrap();
            tried += 1;
        }
        assert_eq!(sample.damaged(shape.what, &sample.now()), Some(vec![]), "{}: put back", shape.what);
    }
    println!("{tried} lengths");
}

#[test]
fn zeros_and_holes_that_nobody_made_are_not_read() {
    let mut tried = 0;
    for shape in &shapes() {
        let sample = Sample::new(shape, 1);
        let data = |index: u64| sample.entry(index) != [0; ENTRY_LEN];
        let mut attacks: Vec<(String, std::ops::Range<usize>, Option<Vec<u64>>)> = vec![
            ("the header".into(), 0..PAGE, None),
            ("the header's first sector".into(), 0..512, None),
            ("the entries of the header".into(), ENTRIES_AT as usize..PAGE, None),
        ];
        if sample.chunks() == 0 || (0..sample.chunks().min(ENTRIES_PER_HEADER as u64)).all(|index| !data(index)) {
            // They are zeros.
            attacks.pop();
        }
        for index in sample.some_chunks().into_iter().filter(|index| data(*index)) {
            let at = sample.entry_at(index) as usize;
            attacks.push((format!("chunk {index}"), sample.place(index), Some(vec![index])));
            attacks.push((format!("entry {index}"), at..at + ENTRY_LEN, sample.behind(at as u64)));
            attacks.push((format!("nonce {index}"), at..at + 24, sample.behind(at as u64)));
            attacks.push((format!("tag {index}"), at + 24..at + ENTRY_LEN, sample.behind(at as u64)));
        }
        for block in (0..sample.blocks()).filter(|block| sample.exists(*block)) {
            let place = sample.block_place(block);
            attacks.push((format!("tag block {block}"), place.clone(), sample.behind(place.start as u64)));
        }
        for (part, range, expected) in attacks {
            if sample.stored[range.clone()].iter().all(|byte| *byte == 0) {
                // A single byte of ciphertext may be zero.
                continue;
            }
            let what = format!("{}: zeros for {part}", shape.what);
            let expected = Some(expected);
            sample.try_out(&what, &[(range.start as u64, vec![0; range.len()])], &sample.now(), expected.clone());
            // The same by taking the space away.
            let store = sample.store();
            store.punch(StoredOffset(range.start as u64), range.len() as u64).unwrap();
            sample.try_out(&format!("{what}, punched"), &[], &sample.now(), expected);
            store.write_at(&sample.stored[range.clone()], StoredOffset(range.start as u64)).unwrap();
            tried += 2;
        }
        // A chunk and its entry at once: a hole, if it were not for the MAC above.
        for index in sample.some_chunks().into_iter().filter(|index| data(*index)) {
            let (place, at) = (sample.place(index), sample.entry_at(index));
            let changes = [(place.start as u64, vec![0; place.len()]), (at, vec![0; ENTRY_LEN])];
            sample.try_out(
                &format!("{}: a hole for {index}", shape.what),
                &changes,
                &sample.now(),
                Some(sample.behind(at).map(|mut all| {
                    all.sort_unstable();
                    all
                })),
            );
            tried += 1;
        }
    }
    println!("{tried} zeros");
}

#[test]
fn parts_that_are_swapped_within_a_file_are_not_read_where_they_do_not_belong() {
    let mut tried = 0;
    for shape in &shapes() {
        let sample = Sample::new(shape, 1);
        let some = sample.some_chunks();
        let whole = |index: &u64| sample.place(*index).len() as u64 == sample.geometry().chunk_len();
        let data: Vec<u64> =
            some.into_iter().filter(|index| sample.entry(*index) != [0; ENTRY_LEN]).filter(whole).collect();
        for (one, other) in data.iter().zip(data.iter().skip(1)).chain(data.first().into_iter().zip(data.last())) {
            if one == other {
                continue;
            }
            let bytes = |index: &u64| sample.stored[sample.place(*index)].to_vec();
            let swap =
                [(sample.place(*one).start as u64, bytes(other)), (sample.place(*other).start as u64, bytes(one))];
            let what = format!("{}: chunks {one} and {other}", shape.what);
            let mut both = vec![*one, *other];
            both.sort_unstable();
            sample.try_out(&what, &swap, &sample.now(), Some(Some(both)));
            sample.try_out(&format!("{what}, copied"), &swap[..1], &sample.now(), Some(Some(vec![*one])));
            // Their entries too: then what authenticates these is wrong.
            let entries = [
                (sample.entry_at(*one), sample.entry(*other).to_vec()),
                (sample.entry_at(*other), sample.entry(*one).to_vec()),
            ];
            let changes = [&swap[..], &entries].concat();
            sample.try_out(&format!("{what}, with entries"), &changes, &sample.now(), None);
            assert!(sample_is_damaged(&sample, &changes), "{what}, with entries: not noticed");
            tried += 4;
        }
        for block in 1..sample.blocks() {
            let [first, this] = [0, block].map(|block| sample.stored[sample.block_place(block)].to_vec());
            if first == this {
                continue;
            }
            let places = [0, block].map(|block| sample.block_place(block).start as u64);
            let changes = [(places[0], this), (places[1], first)];
            sample.try_out(&format!("{}: tag blocks 0 and {block}", shape.what), &changes, &sample.now(), None);
            assert!(sample_is_damaged(&sample, &changes), "{}: tag block {block}", shape.what);
            tried += 2;
        }
    }
    println!("{tried} swaps");
}

/// Whether anything of a file with these changes is an error.
fn sample_is_damaged(sample: &Sample, changes: &[(u64, Vec<u8>)]) -> bool {
    let store = sample.store();
    for (at, bytes) in changes {
        store.write_at(bytes, StoredOffset(*at)).unwrap();
    }
    let damaged = sample.damaged("changed", &sample.now()) != Some(vec![]);
    store.write_at(&sample.stored, StoredOffset(0)).unwrap();
    damaged
}

#[test]
#[allow(clippy::single_range_in_vec_init, reason = "it is a list of places, which may have one")]
fn parts_of_an_older_version_or_of_another_file_are_not_read() {
    let mut tried = 0;
    for shape in shapes().iter().filter(|shape| shape.len > 0) {
        let sample = Sample::new(shape, 1);
        let other = Sample::new(shape, 2);
        for (whose, from, plain) in
            [("older", &sample.old_stored, &sample.old_plain), ("another's", &other.stored, &other.plain)]
        {
            assert_eq!(from.len(), sample.stored.len());
            let mut attacks = Vec::new();
            for index in sample.some_chunks().into_iter().filter(|index| sample.entry(*index) != [0; ENTRY_LEN]) {
                let (place, at) = (sample.place(index), sample.entry_at(index) as usize);
                let entry = at..at + ENTRY_LEN;
                attacks.push((format!("chunk {index}"), vec![place.clone()], Some(vec![index])));
                attacks.push((
                    format!("chunk {index} and its entry"),
                    vec![place, entry.clone()],
                    sample.behind(at as u64),
                ));
                attacks.push((format!("entry {index}"), vec![entry], sample.behind(at as u64)));
            }
            for block in (0..sample.blocks()).filter(|block| sample.exists(*block)) {
                let place = sample.block_place(block);
                let behind = sample.behind(place.start as u64);
                attacks.push((format!("tag block {block}"), vec![place.clone()], behind.clone()));
                let end = sample.stored.len().min(sample.block_place(block + 1).start);
                attacks.push((format!("tag block {block} and its chunks"), vec![place.start..end], behind));
            }
            let fields = vec![0..ENTRIES_AT as usize];
            let entries = ENTRIES_AT as usize..PAGE;
            // If not, the fields are all of the header.
            if sample.stored[entries.clone()] != from[entries.clone()] {
                attacks.push(("the header's fields".into(), fields, None));
                attacks.push(("the header's entries".into(), vec![entries], None));
            }
            let changes = |ranges: &[std::ops::Range<usize>]| {
                ranges.iter().map(|range| (range.start as u64, from[range.clone()].to_vec())).collect::<Vec<_>>()
            };
            for (part, ranges, expected) in attacks {
                let changes = changes(&ranges);
                let is_same =
                    changes.iter().all(|(at, bytes)| sample.stored[*at as usize..][..bytes.len()] == bytes[..]);
                let what = format!("{}: {whose} {part}", shape.what);
                sample.try_out(&what, &changes, &sample.now(), (!is_same).then_some(expected));
                tried += 1;
            }
            // The header says which version of which file it is. Of that nothing but what it authenticates can be read.
            let header = changes(&[0..PAGE]);
            sample.try_out(&format!("{}: {whose} header", shape.what), &header, &[plain], None);
            // All of it: what nobody can tell from the file itself.
            let all = changes(&[0..from.len()]);
            sample.try_out(&format!("{}: all of {whose}", shape.what), &all, &[plain], Some(Some(vec![])));
            tried += 2;
        }
        // Of another volume, with another volume key.
        let mut foreign = sample.stored.clone();
        let page: Page = Box::new(foreign[..PAGE].try_into().unwrap());
        let header = Header::parse(&page).unwrap();
        let secret = |byte| Secret32::take(&mut [byte; 32]);
        let theirs = Keys::new(Dek::derive(&secret(1), &secret(9), VolumeId([4; 16]), sample.id, Epoch(0)), Epoch(0));
        let mut made = VerifiedPage::new(header);
        foreign[..PAGE].copy_from_slice(&made.seal(&theirs.header_mac)[..]);
        sample.try_out(&format!("{}: a planted header", shape.what), &[(0, foreign)], &sample.now(), Some(None));
    }
    println!("{tried} replacements");
}

#[test]
fn damage_cannot_be_written_away_but_by_writing_all_of_it_anew() {
    let shape = shape("several", 12, 400 * C + 50);
    let sample = Sample::new(&shape, 1);
    let store = sample.store();
    let flip = |at: u64| store.write_at(&[sample.stored[at as usize] ^ 1], StoredOffset(at)).unwrap();
    for index in [0, 63, 64, 399, 400] {
        flip(sample.place(index).start as u64);
        let file = sample.open().unwrap();
        let at = sample.geometry().chunk_start(ChunkIndex(index));
        let damaged =
            |result: Result<(), Error>| matches!(result, Err(Error::Damaged(Damage::Chunk(chunk))) if chunk.0 == index);
        assert!(damaged(file.write(PlainOffset(at.0 + 3), b"part")), "chunk {index}");
        assert!(damaged(file.punch(PlainOffset(at.0 + 3), PlainOffset(at.0 + 9))), "chunk {index}");
        assert!(damaged(file.set_len(PlainOffset(at.0 + 20))), "chunk {index}");
        assert_eq!(file.len().0, shape.len, "chunk {index}");
        if index > 0 {
            file.write(PlainOffset(at.0 - 5), b"12345").unwrap();
        }
        let mut out = Vec::new();
        assert!(damaged(file.read(at, 1, &mut out)) && out.is_empty());
        let new = noise(77, sample.chunk(&sample.plain, index).len());
        file.write(at, &new).unwrap();
        file.read(at, new.len(), &mut out).unwrap();
        assert_eq!(out, new);
        file.commit().unwrap();
        drop(file);
        out.clear();
        sample.open().unwrap().read(at, new.len(), &mut out).unwrap();
        assert!(out == new, "chunk {index}, opened again");
        sample.open().unwrap().check_all().unwrap();
        // Back to what the next round expects.
        store.write_at(&sample.stored, StoredOffset(0)).unwrap();
    }
    flip(sample.block_place(0).start as u64 + 30 * ENTRY_LEN as u64);
    let file = sample.open().unwrap();
    let at = sample.geometry().chunk_start(ChunkIndex(70));
    let block = |result: Result<(), Error>| matches!(result, Err(Error::Damaged(Damage::TagBlock(0))));
    assert!(block(file.write(at, &noise(78, C as usize))), "a chunk whose tags cannot be trusted");
    assert!(block(file.set_len(PlainOffset(100 * C))));
    // With all that depends on the block, it goes.
    file.set_len(PlainOffset(64 * C)).unwrap();
    file.commit().unwrap();
    drop(file);
    assert!(contents(&sample.open().unwrap()) == sample.plain[..64 * C as usize]);
}
