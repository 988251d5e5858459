//! Secret bytes in memory: boxed (so that a move leaves no copy behind), wiped on drop, never cloned, never
//! printed.

use std::fmt;
use zeroize::{Zeroize, Zeroizing};

/// 32 secret bytes: a volume key, an envelope secret, a DEK or a key derived from one.
pub struct Secret32(Box<[u8; 32]>);

impl Secret32 {
    /// Takes the bytes over and wipes the caller's copy.
    pub fn take(bytes: &mut [u8; 32]) -> Self {
        let mut boxed = Box::new([0; 32]);
        boxed.copy_from_slice(bytes);
        bytes.zeroize();
        Self(boxed)
    }

    /// 32 fresh bytes from the operating system's generator.
    ///
    /// # Panics
    /// If the operating system has no randomness to give: there is nothing safe to do then.
    pub fn random() -> Self {
        let mut boxed = Box::new([0; 32]);
        #[expect(clippy::expect_used, reason = "without randomness there is no key")]
        getrandom::fill(&mut boxed[..]).expect("the operating system gives random bytes");
        Self(boxed)
    }

    /// A secret from a slice of exactly 32 bytes, `None` for any other length. The slice stays the caller's
    /// to wipe.
    pub fn from_slice(bytes: &[u8]) -> Option<Self> {
        let bytes: Zeroizing<[u8; 32]> = Zeroizing::new(bytes.try_into().ok()?);
        let mut boxed = Box::new([0; 32]);
        boxed.copy_from_slice(&bytes[..]);
        Some(Self(boxed))
    }

    /// The bytes themselves: the one accessor, so that every use of a secret can be searched for.
    pub fn expose(&self) -> &[u8; 32] {
        &self.0
    }
}

impl Drop for Secret32 {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl fmt::Debug for Secret32 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret32(redacted)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_output_holds_no_byte_of_the_secret() {
        let secret = Secret32::take(&mut [0xAB; 32]);
        assert_eq!(format!("{secret:?}"), "Secret32(redacted)");
    }

    #[test]
    fn taking_a_secret_wipes_the_callers_copy() {
        let mut bytes = [7; 32];
        let secret = Secret32::take(&mut bytes);
        assert_eq!(bytes, [0; 32]);
        assert_eq!(secret.expose(), &[7; 32]);
    }
}
