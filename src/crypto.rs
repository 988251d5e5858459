//! Keys, derivations, ciphers and names. Depends on `units` only; does no I/O except asking the operating
//! system for random bytes. Invariant: nothing in here returns bytes that were not authenticated.

pub mod aad;
pub mod cipher;
pub mod derive;
pub mod names;
pub mod secret;
mod stack;
pub mod xaes;

pub use secret::Secret32;
pub use stack::wipe_stack;

/// Bytes that did not authenticate: changed, moved, or sealed under another key. Carries nothing else, so that
/// nothing of them can leak into a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotAuthentic;

/// Fills a buffer from the operating system's generator, which neither a fork, a snapshot of the machine nor a
/// crash can make repeat itself.
///
/// # Panics
/// If the operating system has no randomness to give: there is nothing safe to do then.
pub fn random_bytes(buffer: &mut [u8]) {
    #[expect(clippy::expect_used, reason = "without randomness there is no nonce and no key")]
    getrandom::fill(buffer).expect("the operating system gives random bytes");
}

/// 16 random bytes, for an identifier.
pub fn random_id() -> [u8; 16] {
    let mut id = [0; 16];
    random_bytes(&mut id);
    id
}
