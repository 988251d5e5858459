//! What Google Cloud KMS is asked (REST, version 1), and its replies. No I/O.
//! Invariant: every field that is wrapped or unwrapped travels with its CRC32C, both ways, and what does not fit its
//! checksum is used for nothing. The volume and the version that wraps are the additional authenticated data: Google would
//! find the version of a blob by itself, also where another one is recorded.

use super::errors;
use crate::crypto::Secret32;
use crate::kms::{Facts, GcpKek, KekId, KmsError, KmsErrorKind, MAX_WRAPPED_LEN};
use crate::units::VolumeId;
use data_encoding::BASE64;
use serde::{Deserialize, Deserializer};
use serde_json::{Value, json};
use zeroize::Zeroizing;

/// The additional authenticated data. What is wrapped with it can be unwrapped with nothing else: frozen.
fn context(kek: &GcpKek, volume: VolumeId) -> String {
    match kek.version {
        Some(version) => format!("kmsfs-volume:{volume},version:{version}"),
        None => format!("kmsfs-volume:{volume}"),
    }
}

/// The body of `encrypt`, by this version, or by the primary one.
pub(super) fn encrypt(kek: &GcpKek, secret: &[u8; 32], volume: VolumeId) -> Value {
    let aad = context(kek, volume);
    json!({
        "plaintext": BASE64.encode(secret),
        "plaintextCrc32c": crc(secret).to_string(),
        "additionalAuthenticatedData": BASE64.encode(aad.as_bytes()),
        "additionalAuthenticatedDataCrc32c": crc(aad.as_bytes()).to_string(),
    })
}

/// The body of `decrypt`, of what this version wrapped.
pub(super) fn decrypt(kek: &GcpKek, blob: &[u8], volume: VolumeId) -> Value {
    let aad = context(kek, volume);
    json!({
        "ciphertext": BASE64.encode(blob),
        "ciphertextCrc32c": crc(blob).to_string(),
        "additionalAuthenticatedData": BASE64.encode(aad.as_bytes()),
        "additionalAuthenticatedDataCrc32c": crc(aad.as_bytes()).to_string(),
    })
}

fn crc(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes)
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Encrypted {
    name: String,
    ciphertext: String,
    #[serde(default, deserialize_with = "number")]
    ciphertext_crc32c: Option<u32>,
    #[serde(default)]
    verified_plaintext_crc32c: bool,
    #[serde(default)]
    verified_additional_authenticated_data_crc32c: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Decrypted {
    #[serde(default)]
    plaintext: Zeroizing<String>,
    #[serde(default, deserialize_with = "number")]
    plaintext_crc32c: Option<u32>,
}

/// What Google says about a key, as far as it matters here.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Key {
    #[serde(default)]
    purpose: String,
    primary: Option<Version>,
}

/// A version of a key.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Version {
    name: String,
    #[serde(default)]
    state: String,
    #[serde(default)]
    algorithm: String,
    #[serde(default)]
    protection_level: String,
}

/// A 64-bit number is text in Google's JSON; some servers write it as a number.
fn number<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u32>, D::Error> {
    Ok(match Value::deserialize(from)? {
        Value::String(text) => text.parse().ok(),
        Value::Number(number) => number.as_u64().and_then(|number| number.try_into().ok()),
        _ => None,
    })
}

/// The version that wrapped, and the blob.
///
/// # Errors
/// [`KmsErrorKind::Unreachable`] if the reply is not whole, or not about this key.
pub(super) fn encrypted(body: &[u8], kek: &GcpKek) -> Result<(KekId, Vec<u8>), KmsError> {
    let reply: Encrypted = parse(body)?;
    // What Google wrapped may not be what was sent: then nobody would ever get the secret back.
    if !reply.verified_plaintext_crc32c || !reply.verified_additional_authenticated_data_crc32c {
        return Err(errors::garbled("what was to be wrapped"));
    }
    let blob = BASE64.decode(reply.ciphertext.as_bytes()).map_err(|_| errors::not_google("its blob is not base64"))?;
    if reply.ciphertext_crc32c != Some(crc(&blob)) {
        return Err(errors::garbled("the wrapped secret"));
    }
    if blob.is_empty() || blob.len() > MAX_WRAPPED_LEN {
        let message = format!("{kek} wraps to {} bytes, of 1 to {MAX_WRAPPED_LEN} that there is room for", blob.len());
        return Err(KmsError::new(KmsErrorKind::Misconfigured, message));
    }
    Ok((version_id(&reply.name, kek)?, blob))
}

/// The secret.
///
/// # Errors
/// [`KmsErrorKind::Unreachable`] if the reply is not whole, [`KmsErrorKind::Damaged`] for another length than 32.
pub(super) fn decrypted(body: &[u8], kek: &GcpKek) -> Result<Secret32, KmsError> {
    let reply: Decrypted = parse(body)?;
    let plaintext = BASE64.decode(reply.plaintext.as_bytes()).map(Zeroizing::new);
    let mut plaintext = plaintext.map_err(|_| errors::not_google("its plaintext is not base64"))?;
    if reply.plaintext_crc32c != Some(crc(&plaintext)) {
        return Err(errors::garbled("the unwrapped secret"));
    }
    let len = plaintext.len();
    let Ok(secret) = <&mut [u8; 32]>::try_from(plaintext.as_mut_slice()) else {
        return Err(KmsError::new(KmsErrorKind::Damaged, format!("{kek} unwrapped to {len} bytes, not 32")));
    };
    Ok(Secret32::take(secret))
}

/// What is said about a key or, where one is pinned, its version: for people.
///
/// # Errors
/// [`KmsErrorKind::Misconfigured`] for another kind of key, [`KmsErrorKind::Refused`] for one without a version.
pub(super) fn described(body: &[u8], kek: &GcpKek) -> Result<Facts, KmsError> {
    if kek.version.is_some() {
        return parse::<Version>(body)?.facts(kek);
    }
    let key: Key = parse(body)?;
    if key.purpose != "ENCRYPT_DECRYPT" {
        let message = format!("{kek} is a key for {}", key.purpose);
        return Err(KmsError::new(KmsErrorKind::Misconfigured, message).hint(errors::SYMMETRIC));
    }
    match key.primary {
        Some(primary) => primary.facts(kek),
        None => {
            let message = format!("{kek} has no primary version");
            let error = KmsError::new(KmsErrorKind::Refused, message);
            Err(error.hint(format!("choose one: gcloud kms keys update {} --primary-version N", errors::named(kek))))
        }
    }
}

impl Version {
    fn facts(&self, kek: &GcpKek) -> Result<Facts, KmsError> {
        let kind = match self.algorithm.as_str() {
            "GOOGLE_SYMMETRIC_ENCRYPTION" => "AES-256",
            other => other,
        };
        let enabled = Some(self.state == "ENABLED");
        let kind = format!("{kind}, {}", self.protection_level);
        Ok(Facts { enabled, ..Facts::new(version_id(&self.name, kek)?, kind) })
    }
}

fn parse<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, KmsError> {
    // What the parser says may quote the body.
    serde_json::from_slice(body).map_err(|_| errors::not_google("something is missing in it"))
}

/// The name of a version of this key, or of the one that was asked for: what is recorded.
fn version_id(name: &str, kek: &GcpKek) -> Result<KekId, KmsError> {
    match GcpKek::parse(name) {
        Ok(version)
            if version.is_same_key(kek)
                && version.version.is_some()
                && (kek.version.is_none() || kek.version == version.version) =>
        {
            Ok(KekId(name.to_owned()))
        }
        _ => Err(errors::not_google("it names no version of the key")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "projects/p/locations/l/keyRings/r/cryptoKeys/k";
    const VOLUME: VolumeId = VolumeId([0xAB; 16]);

    fn kek() -> GcpKek {
        GcpKek::parse(KEY).unwrap()
    }

    #[test]
    fn the_checksum_is_castagnolis() {
        // RFC 3720, appendix B.4, and the check value of the catalogue of parametrised CRC algorithms.
        assert_eq!(crc(&[0; 32]), 0x8A91_36AA);
        assert_eq!(crc(&[0xFF; 32]), 0x62A8_AB43);
        assert_eq!(crc(&std::array::from_fn::<u8, 32, _>(|i| i as u8)), 0x46DD_794E);
        assert_eq!(crc(b"123456789"), 0xE306_9283);
        assert_eq!(crc(b""), 0);
    }

    #[test]
    fn the_requests_are_what_they_always_were() {
        let aad = json!(BASE64.encode(b"kmsfs-volume:abababababababababababababababab,version:3"));
        let version = GcpKek { version: Some(3), ..kek() };
        let body = encrypt(&version, &[0; 32], VOLUME);
        assert_eq!(body["plaintext"], "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=");
        assert_eq!(body["plaintextCrc32c"], "2324772522");
        assert_eq!((&body["additionalAuthenticatedData"], body.as_object().unwrap().len()), (&aad, 4));
        let body = decrypt(&version, b"123456789", VOLUME);
        assert_eq!((&body["ciphertext"], &body["ciphertextCrc32c"]), (&json!("MTIzNDU2Nzg5"), &json!("3808858755")));
        assert_eq!((&body["additionalAuthenticatedData"], body.as_object().unwrap().len()), (&aad, 4));
    }

    fn wrapped() -> Value {
        json!({
            "name": format!("{KEY}/cryptoKeyVersions/3"), "ciphertext": "MTIzNDU2Nzg5", "ciphertextCrc32c": "3808858755",
            "verifiedPlaintextCrc32c": true, "verifiedAdditionalAuthenticatedDataCrc32c": true,
        })
    }

    #[test]
    fn a_wrapped_secret_names_the_version() {
        let reply = encrypted(wrapped().to_string().as_bytes(), &kek()).unwrap();
        assert_eq!(reply, (KekId(format!("{KEY}/cryptoKeyVersions/3")), b"123456789".to_vec()));
        let mut as_number = wrapped();
        as_number["ciphertextCrc32c"] = json!(3_808_858_755_u32);
        assert!(encrypted(as_number.to_string().as_bytes(), &kek()).is_ok());
        let other_version = GcpKek { version: Some(2), ..kek() };
        assert!(encrypted(wrapped().to_string().as_bytes(), &other_version).is_err());
        for name in [KEY.to_owned(), format!("{KEY}2/cryptoKeyVersions/3"), String::new()] {
            let mut other = wrapped();
            other["name"] = json!(name);
            let error = encrypted(other.to_string().as_bytes(), &kek()).unwrap_err();
            assert_eq!((error.kind, error.code), (KmsErrorKind::Unreachable, None), "{name}");
        }
    }

    #[test]
    fn what_does_not_fit_its_checksum_is_no_answer() {
        let garbled = |error: KmsError, what: &str| {
            assert_eq!(
                (error.kind, error.code.as_deref()),
                (KmsErrorKind::Unreachable, Some(errors::CHECKSUM)),
                "{what}"
            );
        };
        for (field, value) in [
            ("ciphertextCrc32c", json!("3808858756")),
            ("ciphertextCrc32c", json!(null)),
            ("ciphertextCrc32c", json!("-1")),
            ("ciphertext", json!("MTIzNDU2Nzg4")),
            ("verifiedPlaintextCrc32c", json!(false)),
            ("verifiedAdditionalAuthenticatedDataCrc32c", json!(false)),
        ] {
            let mut reply = wrapped();
            reply[field] = value;
            garbled(encrypted(reply.to_string().as_bytes(), &kek()).unwrap_err(), field);
        }
        let mut absent = wrapped();
        absent.as_object_mut().unwrap().remove("verifiedPlaintextCrc32c");
        garbled(encrypted(absent.to_string().as_bytes(), &kek()).unwrap_err(), "absent");

        let unwrap = |plaintext: &[u8], crc: Value| {
            let body = json!({"plaintext": BASE64.encode(plaintext), "plaintextCrc32c": crc}).to_string();
            decrypted(body.as_bytes(), &kek())
        };
        assert_eq!(unwrap(&[0; 32], json!("2324772522")).unwrap().expose(), &[0; 32]);
        for crc in [json!("0"), json!(null), json!("2324772523")] {
            garbled(unwrap(&[0; 32], crc).unwrap_err(), "plaintext");
        }
        assert_eq!(unwrap(b"123456789", json!("3808858755")).unwrap_err().kind, KmsErrorKind::Damaged);
    }

    #[test]
    fn a_reply_that_is_not_googles_is_no_answer_and_is_not_quoted() {
        for body in ["", "<html>", r#"{"plaintext":7}"#, r#"{"plaintext":"hunter2","plaintextCrc32c":"0"}"#] {
            let error = decrypted(body.as_bytes(), &kek()).unwrap_err();
            assert_eq!(error.kind, KmsErrorKind::Unreachable, "{body}");
            assert!(!error.message.contains("hunter2"));
        }
    }

    #[test]
    fn the_facts_are_those_of_the_primary_version_or_of_the_pinned_one() {
        let version = json!({"name": format!("{KEY}/cryptoKeyVersions/1"), "state": "DISABLED",
            "algorithm": "GOOGLE_SYMMETRIC_ENCRYPTION", "protectionLevel": "HSM"});
        let key = |purpose: &str| json!({"purpose": purpose, "primary": version}).to_string();
        let facts = described(key("ENCRYPT_DECRYPT").as_bytes(), &kek()).unwrap();
        assert_eq!((facts.kind.as_str(), facts.enabled), ("AES-256, HSM", Some(false)));
        let pinned = GcpKek { version: Some(1), ..kek() };
        assert_eq!(described(version.to_string().as_bytes(), &pinned).unwrap(), facts);
        let error = described(key("ASYMMETRIC_SIGN").as_bytes(), &kek()).unwrap_err();
        assert_eq!(error.kind, KmsErrorKind::Misconfigured);
        let error = described(br#"{"purpose":"ENCRYPT_DECRYPT"}"#, &kek()).unwrap_err();
        assert_eq!(error.kind, KmsErrorKind::Refused);
    }
}
