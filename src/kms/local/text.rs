//! What a raw key looks like as text: 32 bytes in canonical base64, and at most one newline. No I/O.
//! Invariant: a text is either exactly one key or refused; nothing is stretched or cut, and no message repeats any of it.

use crate::crypto::Secret32;
use crate::kms::{KmsError, KmsErrorKind};
use data_encoding::{BASE64, BASE64_NOPAD, BASE64URL_NOPAD, DecodeKind, HEXLOWER_PERMISSIVE};
use zeroize::Zeroizing;

/// 32 bytes in base64, its one `=` included.
pub(super) const TEXT_LEN: usize = 44;
/// As much of a text as has to be read to know that it is too long.
pub(super) const ENOUGH: usize = TEXT_LEN + 2;
const SECRET_LEN: usize = 32;

pub(super) const HOW_TO_MAKE: &str = "make one with 'kmsfs key generate' or 'openssl rand -base64 32'";

/// What is wrong with the text that `place` gave.
pub(super) fn malformed(place: &str, what: &str) -> KmsError {
    KmsError::new(KmsErrorKind::Misconfigured, format!("{place} {what}"))
        .hint(format!("a raw key is one line of {TEXT_LEN} characters, 32 random bytes in base64; {HOW_TO_MAKE}"))
}

/// The one key in a text that `place` gave.
pub(super) fn parse(place: &str, text: &[u8]) -> Result<Secret32, KmsError> {
    let bad = |what: &str| malformed(place, what);
    let line = match text {
        [line @ .., b'\n'] => line,
        line => line,
    };
    if line.len() != TEXT_LEN {
        return Err(bad(&format!("holds {} characters", line.len())));
    }
    // The decoder takes several encodings one after the other for one.
    if line.iter().skip_while(|byte| **byte != b'=').any(|byte| *byte != b'=') {
        return Err(bad("is not standard base64"));
    }
    // The decoder wants room for 44 characters without padding: 33 bytes.
    let mut bytes = Zeroizing::new([0; TEXT_LEN / 4 * 3]);
    let decoded = BASE64.decode_mut(line, &mut bytes[..]).map_err(|partial| match partial.error.kind {
        DecodeKind::Trailing => bad("is not canonical base64: its last character has bits that mean nothing"),
        _ => bad("is not standard base64"),
    })?;
    if decoded != SECRET_LEN {
        return Err(bad(&format!("holds {decoded} bytes")));
    }
    if bytes.iter().all(|byte| *byte == 0) {
        return Err(bad("holds only zeros, which is not a key"));
    }
    Secret32::from_slice(&bytes[..SECRET_LEN]).ok_or_else(|| bad("holds no key"))
}

/// Whether a text may well be a raw key that somebody wrote where the name of one belongs: 32 bytes in some spelling of
/// base64 or in hexadecimal.
pub(in crate::kms) fn looks_like_a_key(text: &str) -> bool {
    let text = text.trim().trim_end_matches('=');
    let is_key = |decoded: Result<Vec<u8>, data_encoding::DecodeError>| {
        decoded.map(Zeroizing::new).is_ok_and(|bytes| bytes.len() == SECRET_LEN)
    };
    is_key(BASE64_NOPAD.decode(text.as_bytes()))
        || is_key(BASE64URL_NOPAD.decode(text.as_bytes()))
        || is_key(HEXLOWER_PERMISSIVE.decode(text.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_raw_key_is_known_in_every_spelling_and_a_name_is_not_taken_for_one() {
        for key in [
            "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=",
            "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8",
            "-_ECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=\n",
            "000102030405060708090a0b0c0d0e0f101112131415161718191A1B1C1D1E1F",
        ] {
            assert!(looks_like_a_key(key), "{key}");
        }
        for name in ["", "file:/etc/kmsfs/key", "https://v.vault.azure.net/keys/k", "/srv/keys/tenant-a/production.key"]
        {
            assert!(!looks_like_a_key(name), "{name}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic_or_take_another_key(text in proptest::collection::vec(any::<u8>(), 0..60)) {
            if let Ok(key) = parse("it", &text) {
                let spelled = BASE64.encode(key.expose());
                prop_assert_eq!(text.strip_suffix(b"\n").unwrap_or(&text), spelled.as_bytes());
            }
        }
    }
}
