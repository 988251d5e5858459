//! Every parser with a great many inputs: valid ones, what becomes of them by random changes, and what libFuzzer found
//! (`fuzz/found`). The same properties as under libFuzzer (`scripts/fuzz`), with the same inputs each time.

#[path = "fuzz/targets.rs"]
mod targets;

use targets::PARSERS;

struct Draws(u64);

impl Draws {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % end.max(1)
    }
}

/// A few random changes of the kinds that find most.
fn change(bytes: &mut Vec<u8>, draws: &mut Draws) {
    for _ in 0..=draws.below(4) {
        let at = draws.below(bytes.len());
        // The beginning of a structure holds its lengths and counts.
        let at = if draws.below(2) == 0 { at % 192 } else { at }.min(bytes.len().saturating_sub(1));
        match draws.below(7) {
            0 if !bytes.is_empty() => bytes[at] ^= 1 << draws.below(8),
            1 if !bytes.is_empty() => bytes[at] = [0, 1, 0x7F, 0x80, 0xFF, b'/', b'#', b'%'][draws.below(8)],
            2 => bytes.truncate(at),
            3 => bytes.insert(at, draws.below(256) as u8),
            4 if !bytes.is_empty() => _ = bytes.remove(at),
            5 => {
                let end = (at + draws.below(64)).min(bytes.len());
                let piece = bytes[at.min(end)..end].to_vec();
                let to = draws.below(bytes.len());
                bytes.splice(to..to, piece);
            }
            _ => {
                let value = [0, 1, u64::MAX, u64::MAX / 2, 1 << 32, 4096][draws.below(6)].to_le_bytes();
                for (byte, new) in bytes.iter_mut().skip(at).zip(&value[..[1, 2, 4, 8][draws.below(4)]]) {
                    *byte = *new;
                }
            }
        }
    }
}

#[test]
fn no_bytes_make_a_parser_panic_and_what_it_accepts_has_one_form() {
    for (name, parser, seeds) in PARSERS {
        let seeds = seeds();
        seeds.iter().for_each(|seed| parser(seed));
        parser(b"");
        // Some read files.
        let rounds =
            if ["key_file", "audit_log", "journal_logs", "saved_check"].contains(name) { 2000 } else { 20_000 };
        for round in 0..rounds {
            let mut draws = Draws(round as u64 * 0x9E37_79B9 + 0x1234_5678_9ABC_DEF1);
            let mut bytes = seeds[draws.below(seeds.len())].clone();
            change(&mut bytes, &mut draws);
            let tried = std::panic::catch_unwind(|| parser(&bytes));
            assert!(tried.is_ok(), "{name}, round {round}: {bytes:?}");
        }
    }
}

#[test]
fn what_the_fuzzer_found_is_found_no_more() {
    let found = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/found");
    for directory in std::fs::read_dir(found).expect("a directory").map(|entry| entry.expect("an entry")) {
        let parser = PARSERS.iter().find(|(name, ..)| directory.file_name() == *name).expect("a parser of this name").1;
        for input in std::fs::read_dir(directory.path()).expect("a directory") {
            parser(&std::fs::read(input.expect("an entry").path()).expect("an input"));
        }
    }
}

/// Not a test by itself: `scripts/fuzz` begins with these.
#[test]
fn valid_inputs_are_written_where_the_fuzzer_wants_them() {
    let Some(directory) = std::env::var_os("KMSFS_FUZZ_CORPUS") else { return };
    for (name, _, seeds) in PARSERS {
        let directory = std::path::Path::new(&directory).join(name);
        std::fs::create_dir_all(&directory).expect("a directory");
        for (number, seed) in seeds().into_iter().enumerate() {
            std::fs::write(directory.join(format!("valid-{number}")), seed).expect("written");
        }
    }
}
