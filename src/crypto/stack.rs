//! What functions that have returned left on the stack.

use std::hint::black_box;

/// How far below the caller is wiped, in bytes: deeper than any operation of ours goes, and within the smallest of our
/// threads' stacks.
const DEPTH: usize = 128 * 1024;

/// Overwrites the stack below the caller. Ciphers work on copies of keys there, and do not wipe them when they return:
/// a thread that used keys and then waits does it instead.
#[inline(never)]
pub fn wipe_stack() {
    let mut below = [0_u8; DEPTH];
    // Nobody reads it, which the compiler must not notice.
    black_box(&mut below);
}
