//! The three requests that AWS KMS gets, and its replies (JSON 1.1). No I/O.
//! Invariant: every wrap and unwrap carries the volume's id in its encryption context, the same in both.

use super::errors;
use crate::crypto::Secret32;
use crate::kms::{AwsKek, AwsResource, Facts, KekId, KmsError, KmsErrorKind, MAX_WRAPPED_LEN};
use crate::units::VolumeId;
use data_encoding::BASE64;
use serde::Deserialize;
use serde_json::{Value, json};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use zeroize::Zeroizing;

/// The name of the volume's id in the encryption context: policies and CloudTrail see it. What is wrapped with it can
/// be unwrapped with nothing else: frozen.
pub(super) const CONTEXT: &str = "kmsfs-volume";

/// `DescribeKey`.
pub(super) fn describe(kek: &str) -> Vec<u8> {
    bytes(&json!({ "KeyId": kek }))
}

/// `Encrypt`.
pub(super) fn encrypt(kek: &str, secret: &[u8; 32], volume: VolumeId) -> Vec<u8> {
    let plaintext = Zeroizing::new(BASE64.encode(secret));
    bytes(&json!({ "KeyId": kek, "Plaintext": *plaintext, "EncryptionContext": { CONTEXT: volume.to_string() } }))
}

/// `Decrypt`, by one key and no other.
pub(super) fn decrypt(kek: &str, blob: &[u8], volume: VolumeId) -> Vec<u8> {
    let blob = BASE64.encode(blob);
    bytes(&json!({ "KeyId": kek, "CiphertextBlob": blob, "EncryptionContext": { CONTEXT: volume.to_string() } }))
}

fn bytes(document: &Value) -> Vec<u8> {
    serde_json::to_vec(document).unwrap_or_default()
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Encrypted {
    ciphertext_blob: String,
    key_id: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Decrypted {
    plaintext: Zeroizing<String>,
    key_id: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Described {
    key_metadata: Metadata,
}

/// What AWS KMS says about a key, as far as it matters here.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Metadata {
    arn: String,
    #[serde(default)]
    key_state: String,
    #[serde(default)]
    key_usage: String,
    #[serde(default)]
    key_spec: String,
    #[serde(default)]
    origin: String,
    #[serde(default)]
    valid_to: Option<f64>,
}

/// The key that wrapped, and the blob.
pub(super) fn encrypted(body: &[u8]) -> Result<(KekId, Vec<u8>), KmsError> {
    let reply: Encrypted = parse(body)?;
    let blob =
        BASE64.decode(reply.ciphertext_blob.as_bytes()).map_err(|_| errors::not_aws("its blob is not base64"))?;
    if blob.is_empty() || blob.len() > MAX_WRAPPED_LEN {
        return Err(KmsError::new(KmsErrorKind::Misconfigured, format!("a blob of {} bytes has no room", blob.len())));
    }
    Ok((key_id(&reply.key_id)?, blob))
}

/// The secret, of the key that was asked for.
pub(super) fn decrypted(body: &[u8], kek: &AwsKek) -> Result<Secret32, KmsError> {
    let reply: Decrypted = parse(body)?;
    if !AwsKek::parse(&reply.key_id).is_ok_and(|used| used.is_same_key(kek)) {
        return Err(KmsError::new(KmsErrorKind::Damaged, format!("the wrapped secret is not one of {kek}"))
            .hint("name the KEK that wrapped it"));
    }
    let plaintext = BASE64.decode(reply.plaintext.as_bytes()).map(Zeroizing::new);
    let mut plaintext = plaintext.map_err(|_| errors::not_aws("its plaintext is not base64"))?;
    let len = plaintext.len();
    let Ok(secret) = <&mut [u8; 32]>::try_from(plaintext.as_mut_slice()) else {
        return Err(KmsError::new(KmsErrorKind::Damaged, format!("{kek} unwrapped to {len} bytes, not 32")));
    };
    Ok(Secret32::take(secret))
}

impl Metadata {
    /// Reads the reply to `DescribeKey`.
    pub(super) fn parse(body: &[u8]) -> Result<Self, KmsError> {
        let Described { key_metadata } = parse(body)?;
        Ok(key_metadata)
    }

    /// The key, if it can wrap.
    ///
    /// # Errors
    /// [`KmsErrorKind::Refused`] in every state but enabled, [`KmsErrorKind::Misconfigured`] for another kind of key.
    pub(super) fn usable(&self, kek: &AwsKek) -> Result<KekId, KmsError> {
        if !matches!(self.key_usage.as_str(), "" | "ENCRYPT_DECRYPT") || self.key_spec != "SYMMETRIC_DEFAULT" {
            let what = format!("{kek} is a key of kind {} for {}", self.key_spec, self.key_usage);
            return Err(KmsError::new(KmsErrorKind::Misconfigured, what).hint(errors::SYMMETRIC));
        }
        if self.key_state != "Enabled" {
            return Err(errors::disabled(kek, &self.key_state));
        }
        key_id(&self.arn)
    }

    /// For people.
    pub(super) fn facts(&self, service_time: Option<SystemTime>) -> Result<Facts, KmsError> {
        let mut kind = match self.key_spec.as_str() {
            "SYMMETRIC_DEFAULT" => "AES-256".to_owned(),
            other => other.to_owned(),
        };
        // Imported material that ends cannot unwrap any more, unlike a key of other clouds that expires.
        if let Some(end) = self.valid_to.filter(|end| (0.0..1e11).contains(end)) {
            let end = humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_secs_f64(end));
            kind = format!("{kind}, its imported material gone after {end}");
        } else if !matches!(self.origin.as_str(), "" | "AWS_KMS") {
            kind = format!("{kind}, origin {}", self.origin);
        }
        Ok(Facts {
            enabled: Some(self.key_state == "Enabled"),
            operations: Some(vec![self.key_usage.clone()]),
            service_time,
            ..Facts::new(key_id(&self.arn)?, kind)
        })
    }
}

fn parse<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, KmsError> {
    // What the parser says may quote the body.
    serde_json::from_slice(body).map_err(|_| errors::not_aws("something is missing in it"))
}

/// The ARN of a key, which is what is recorded: never that of an alias.
fn key_id(arn: &str) -> Result<KekId, KmsError> {
    match AwsKek::parse(arn) {
        Ok(AwsKek { resource: AwsResource::Key(_), .. }) => Ok(KekId(arn.to_owned())),
        _ => Err(errors::not_aws("it does not name the key by its ARN")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "arn:aws:kms:eu-west-1:123456789012:key/k";
    const VOLUME: VolumeId = VolumeId([0xAB; 16]);

    fn kek() -> AwsKek {
        AwsKek::parse(KEY).unwrap()
    }

    #[test]
    fn the_requests_are_what_they_always_were() {
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        assert_eq!(text(describe(KEY)), format!(r#"{{"KeyId":"{KEY}"}}"#));
        let context = format!(r#""EncryptionContext":{{"kmsfs-volume":"{VOLUME}"}}"#);
        let secret = "KioqKioqKioqKioqKioqKioqKioqKioqKioqKioqKio=";
        assert_eq!(
            text(encrypt(KEY, &[42; 32], VOLUME)),
            format!(r#"{{{context},"KeyId":"{KEY}","Plaintext":"{secret}"}}"#)
        );
        assert_eq!(
            text(decrypt(KEY, b"blob", VOLUME)),
            format!(r#"{{"CiphertextBlob":"YmxvYg==",{context},"KeyId":"{KEY}"}}"#)
        );
    }

    #[test]
    fn a_wrapped_secret_names_the_key_and_never_an_alias() {
        let reply = |key: &str| encrypted(json!({"CiphertextBlob": "YmxvYg==", "KeyId": key}).to_string().as_bytes());
        assert_eq!(reply(KEY).unwrap(), (KekId(KEY.into()), b"blob".to_vec()));
        for other in ["arn:aws:kms:eu-west-1:123456789012:alias/a", "k", ""] {
            assert_eq!(reply(other).unwrap_err().kind, KmsErrorKind::Unreachable, "{other}");
        }
        let long = json!({"CiphertextBlob": BASE64.encode(&[0; MAX_WRAPPED_LEN + 1]), "KeyId": KEY}).to_string();
        assert_eq!(encrypted(long.as_bytes()).unwrap_err().kind, KmsErrorKind::Misconfigured);
    }

    #[test]
    fn a_secret_of_another_key_or_length_is_damage() {
        let reply = |plaintext: &[u8], key: &str| {
            decrypted(json!({"Plaintext": BASE64.encode(plaintext), "KeyId": key}).to_string().as_bytes(), &kek())
        };
        assert_eq!(reply(&[7; 32], KEY).unwrap().expose(), &[7; 32]);
        for (plaintext, key) in
            [(&[7; 31][..], KEY), (&[][..], KEY), (&[7; 32][..], &KEY.replace("key/k", "key/other"))]
        {
            assert_eq!(reply(plaintext, key).unwrap_err().kind, KmsErrorKind::Damaged, "{plaintext:?} {key}");
        }
    }

    #[test]
    fn a_reply_that_is_not_awss_is_no_answer_and_is_not_quoted() {
        for body in ["", "<html>", "{}", r#"{"Plaintext":7}"#, r#"{"Plaintext":"hunter2","KeyId":9}"#] {
            let error = decrypted(body.as_bytes(), &kek()).unwrap_err();
            assert_eq!(error.kind, KmsErrorKind::Unreachable, "{body}");
            assert!(!error.message.contains("hunter2"));
        }
        assert!(Metadata::parse(b"{}").is_err());
    }

    #[test]
    fn only_an_enabled_symmetric_key_can_be_a_kek() {
        let metadata = |state: &str, usage: &str, spec: &str| {
            let body = json!({"KeyMetadata": {"Arn": KEY, "KeyState": state, "KeyUsage": usage, "KeySpec": spec,
                "CustomerMasterKeySpec": spec}});
            Metadata::parse(body.to_string().as_bytes()).unwrap()
        };
        let usable = |state, usage, spec| metadata(state, usage, spec).usable(&kek());
        assert_eq!(usable("Enabled", "ENCRYPT_DECRYPT", "SYMMETRIC_DEFAULT").unwrap(), KekId(KEY.into()));
        let error = usable("Disabled", "ENCRYPT_DECRYPT", "SYMMETRIC_DEFAULT").unwrap_err();
        assert_eq!((error.kind, error.code.as_deref()), (KmsErrorKind::Refused, Some("DisabledException")));
        let error = usable("PendingDeletion", "ENCRYPT_DECRYPT", "SYMMETRIC_DEFAULT").unwrap_err();
        assert_eq!((error.kind, error.code.as_deref()), (KmsErrorKind::Refused, Some("KeyPendingDeletion")));
        for (usage, spec) in [("ENCRYPT_DECRYPT", "RSA_4096"), ("SIGN_VERIFY", "ECC_NIST_P256")] {
            assert_eq!(usable("Enabled", usage, spec).unwrap_err().kind, KmsErrorKind::Misconfigured);
        }
        let facts = metadata("Disabled", "ENCRYPT_DECRYPT", "SYMMETRIC_DEFAULT").facts(None).unwrap();
        assert_eq!((facts.kind.as_str(), facts.enabled), ("AES-256", Some(false)));
    }

    #[test]
    fn material_that_ends_is_said_with_its_end() {
        let body = json!({"KeyMetadata": {"Arn": KEY, "KeySpec": "SYMMETRIC_DEFAULT", "Origin": "EXTERNAL", "ValidTo": 86400.0}});
        let facts = Metadata::parse(body.to_string().as_bytes()).unwrap().facts(None).unwrap();
        assert_eq!(facts.kind, "AES-256, its imported material gone after 1970-01-02T00:00:00Z");
        assert_eq!(facts.expires, None);
    }
}
