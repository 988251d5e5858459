//! One parser under libFuzzer: the one whose name is in `KMSFS_FUZZ_PARSER`. Built and run by `scripts/fuzz`.

#![no_main]

mod targets;

use std::sync::LazyLock;

static PARSER: LazyLock<fn(&[u8])> = LazyLock::new(|| {
    let wanted = std::env::var("KMSFS_FUZZ_PARSER").expect("KMSFS_FUZZ_PARSER names a parser");
    let found = targets::PARSERS.iter().find(|(name, ..)| *name == wanted);
    found.unwrap_or_else(|| panic!("there is no parser {wanted}")).1
});

libfuzzer_sys::fuzz_target!(|data: &[u8]| PARSER(data));
