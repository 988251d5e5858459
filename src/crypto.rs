//! Keys, derivations, ciphers and names. Depends on `units` only; does no I/O except asking the operating
//! system for random bytes. Invariant: nothing in here returns bytes that were not authenticated.

pub mod secret;

pub use secret::Secret32;
