//! One parser under libFuzzer: the program's own name says which.

#![no_main]

mod targets;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let (_, parser, _) =
        targets::PARSERS.iter().find(|(name, ..)| *name == env!("CARGO_BIN_NAME")).expect("a parser of this name");
    parser(data);
});
