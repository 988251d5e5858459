//! What the vault says about a key: its JSON document, its public half, its validity. No I/O.
//! Invariant: nothing is wrapped with a key that could not unwrap it again: not RSA, disabled, expired, or without
//! `unwrapKey` among its operations.

use super::errors;
use crate::crypto::Secret32;
use crate::kms::{
    AzureKek, Facts, KEY_EXPIRED, KEY_NOT_YET_VALID, KekId, KeyState, KmsError, KmsErrorKind, MAX_WRAPPED_LEN,
};
use aws_lc_rs::rsa::{OAEP_SHA256_MGF1SHA256, OaepPublicEncryptingKey, PublicEncryptingKey, PublicKeyComponents};
use data_encoding::BASE64URL_NOPAD;
use serde::Deserialize;
use std::collections::HashMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

/// The type of a Managed HSM's AES keys.
const AES: &str = "oct-HSM";
/// 32 bytes under AES key wrap (RFC 3394).
const AES_WRAPPED_LEN: usize = 40;

/// The reply to GET /keys/NAME.
#[derive(Deserialize)]
pub(super) struct VaultKey {
    key: Jwk,
    #[serde(default)]
    attributes: Attributes,
    /// What people and programs have noted of it.
    #[serde(default)]
    pub(super) tags: HashMap<String, String>,
    /// The vault's clock when it answered, as far as it says.
    #[serde(skip)]
    asked: Option<SystemTime>,
}

#[derive(Deserialize)]
struct Jwk {
    kid: String,
    kty: String,
    #[serde(default)]
    n: String,
    #[serde(default)]
    e: String,
    /// Absent means everything.
    key_ops: Option<Vec<String>>,
}

#[derive(Default, Deserialize)]
struct Attributes {
    enabled: Option<bool>,
    nbf: Option<u64>,
    exp: Option<u64>,
    #[serde(rename = "recoveryLevel")]
    recovery_level: Option<String>,
}

/// The reply to GET /deletedkeys/NAME.
#[derive(Deserialize)]
pub(super) struct DeletedKey {
    #[serde(rename = "scheduledPurgeDate")]
    scheduled: Option<u64>,
    #[serde(default)]
    attributes: Attributes,
}

impl DeletedKey {
    pub(super) fn parse(body: &[u8]) -> Result<Self, KmsError> {
        serde_json::from_slice(body).map_err(|error| errors::not_key_vault(&error.to_string()))
    }

    pub(super) fn state(&self) -> KeyState {
        let level = self.attributes.recovery_level.as_deref();
        KeyState::Scheduled {
            until: self.scheduled.and_then(|at| UNIX_EPOCH.checked_add(Duration::from_secs(at))),
            protected: level.map(|level| level.contains("Recoverable") && !level.contains("Purgeable")),
        }
    }
}

/// The reply to a wrap or an unwrap. Wipes the value, which may be the secret in base64.
#[derive(Deserialize, Zeroize, ZeroizeOnDrop)]
struct Unwrapped {
    value: String,
}

/// What one key version wraps with.
pub(super) struct Wrapper {
    pub(super) id: KekId,
    pub(super) way: Way,
}

/// Where a secret is wrapped.
pub(super) enum Way {
    /// Here, with the public half of an RSA key.
    Here(PublicHalf),
    /// At the HSM, by this version of a key that has no public half.
    There(String),
}

/// The public half of one key version.
pub(super) struct PublicHalf {
    id: KekId,
    key: OaepPublicEncryptingKey,
}

impl PublicHalf {
    /// RSA-OAEP-256 (RFC 8017, with SHA-256 and MGF1-SHA-256, no label), as long as the modulus.
    pub(super) fn wrap(&self, secret: &Secret32) -> Result<Vec<u8>, KmsError> {
        let mut blob = vec![0; self.key.ciphertext_size()];
        let wrapped = self.key.encrypt(&OAEP_SHA256_MGF1SHA256, secret.expose(), &mut blob, None);
        let len = wrapped.map_err(|_| misconfigured(format!("{} cannot wrap 32 bytes", self.id)))?.len();
        blob.truncate(len);
        Ok(blob)
    }
}

impl VaultKey {
    /// Reads the vault's reply, which was made at this time by the vault's clock.
    pub(super) fn parse(body: &[u8], asked: Option<SystemTime>) -> Result<Self, KmsError> {
        let key: Self = serde_json::from_slice(body).map_err(|error| errors::not_key_vault(&error.to_string()))?;
        Ok(Self { asked, ..key })
    }

    /// The key's id, which names its version.
    fn id(&self) -> Result<(KekId, AzureKek), KmsError> {
        let kek = AzureKek::parse(&self.key.kid)?;
        match &kek.version {
            Some(_) => Ok((KekId(kek.to_string()), kek)),
            None => Err(errors::not_key_vault("the key's id has no version")),
        }
    }

    fn bits(&self) -> Option<usize> {
        let modulus = decode(&self.key.n)?;
        let first = modulus.iter().position(|byte| *byte != 0)?;
        Some((modulus.len() - first) * 8 - modulus[first].leading_zeros() as usize)
    }

    pub(super) fn facts(&self) -> Result<Facts, KmsError> {
        let time = |seconds: u64| UNIX_EPOCH + Duration::from_secs(seconds);
        let kty = self.key.kty.as_str();
        let kind = self.bits().map_or_else(|| kty.to_owned(), |bits| format!("{kty} {bits}"));
        Ok(Facts {
            enabled: self.attributes.enabled,
            not_before: self.attributes.nbf.map(time),
            expires: self.attributes.exp.map(time),
            operations: self.key.key_ops.clone(),
            recovery_level: self.attributes.recovery_level.clone(),
            service_time: self.asked,
            ..Facts::new(self.id()?.0, kind)
        })
    }

    /// What to wrap with, if it is something to wrap with at this moment.
    pub(super) fn wrapper(&self, configured: &AzureKek, now: SystemTime) -> Result<Wrapper, KmsError> {
        let (id, kek) = self.id()?;
        if !kek.name.eq_ignore_ascii_case(&configured.name) {
            return Err(errors::not_key_vault("it answered with another key"));
        }
        let facts = self.facts()?;
        if facts.enabled == Some(false) {
            return Err(errors::key_disabled(configured, kek.version.as_deref()));
        }
        if facts.expires.is_some_and(|expires| expires <= now) {
            let expired = misconfigured(format!("{id} has expired: it still unwraps, and wraps nothing more"));
            return Err(KmsError { code: Some(KEY_EXPIRED.to_owned()), ..expired }
                .hint(format!("add a version: {}", errors::az(configured, "rotate"))));
        }
        if facts.not_before.is_some_and(|begin| begin > now) {
            let early = misconfigured(format!("{id} is not valid yet"));
            return Err(KmsError { code: Some(KEY_NOT_YET_VALID.to_owned()), ..early }
                .hint("pin a version that is, with /VERSION"));
        }
        let kty = self.key.kty.as_str();
        if !matches!(kty, "RSA" | "RSA-HSM" | AES) {
            return Err(misconfigured(format!("{id} is of type {kty}, and only RSA and {AES} keys can be used"))
                .hint(format!("make one: {}", errors::az(configured, "create --kty RSA --size 3072"))));
        }
        // An RSA key wraps here, and needs no permission to.
        let needed: &[&str] = if kty == AES { &["wrapKey", "unwrapKey"] } else { &["unwrapKey"] };
        if let Some(ops) = &self.key.key_ops
            && let Some(missing) = needed.iter().find(|op| !ops.iter().any(|permitted| permitted == *op))
        {
            return Err(errors::operation_forbidden(configured, &format!("{id} is not permitted to {missing}")));
        }
        if kty == AES {
            let version = kek.version.unwrap_or_default();
            return Ok(Wrapper { id, way: Way::There(version) });
        }
        let unusable = || misconfigured(format!("{id} has a public half that cannot be used"));
        let (n, e) = decode(&self.key.n).zip(decode(&self.key.e)).ok_or_else(unusable)?;
        let public: PublicEncryptingKey = PublicKeyComponents { n, e }.try_into().map_err(|_| unusable())?;
        let key = OaepPublicEncryptingKey::new(public).map_err(|_| unusable())?;
        if key.ciphertext_size() > MAX_WRAPPED_LEN {
            return Err(misconfigured(format!("{id} is longer than 4096 bits")));
        }
        Ok(Wrapper { id: id.clone(), way: Way::Here(PublicHalf { id, key }) })
    }
}

/// The wrapped secret in the reply to a wrap.
pub(super) fn wrapped(body: &[u8]) -> Result<Vec<u8>, KmsError> {
    let reply: Unwrapped = serde_json::from_slice(body).map_err(|_| errors::not_key_vault("no value in the reply"))?;
    match decode(&reply.value) {
        Some(blob) if blob.len() == AES_WRAPPED_LEN => Ok(blob),
        Some(blob) => Err(errors::not_key_vault(&format!("the wrapped secret is {} bytes long", blob.len()))),
        None => Err(errors::not_key_vault("the value in the reply is not base64")),
    }
}

/// The secret in the reply to an unwrap.
pub(super) fn unwrapped(body: &[u8]) -> Result<Secret32, KmsError> {
    let reply: Unwrapped = serde_json::from_slice(body).map_err(|_| errors::not_key_vault("no value in the reply"))?;
    let bytes = decode(&reply.value).map(Zeroizing::new);
    let bytes = bytes.ok_or_else(|| errors::not_key_vault("the value in the reply is not base64"))?;
    Secret32::from_slice(&bytes).ok_or_else(|| {
        let message = format!("the vault unwrapped {} bytes instead of 32", bytes.len());
        KmsError::new(KmsErrorKind::Damaged, message)
    })
}

/// Base64 in either alphabet, padded or not: all of them were seen.
fn decode(text: &str) -> Option<Vec<u8>> {
    let mut text: Vec<u8> = text.trim_end_matches('=').bytes().collect();
    for byte in &mut text {
        match byte {
            b'+' => *byte = b'-',
            b'/' => *byte = b'_',
            _ => {}
        }
    }
    let decoded = BASE64URL_NOPAD.decode(&text).ok();
    text.zeroize();
    decoded
}

fn misconfigured(message: String) -> KmsError {
    KmsError::new(KmsErrorKind::Misconfigured, message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use aws_lc_rs::rsa::{KeySize, OaepPrivateDecryptingKey, PrivateDecryptingKey};
    use aws_lc_rs::signature::{KeyPair, RsaKeyPair};
    use serde_json::{Value, json};

    const VERSION: &str = "0123456789abcdef0123456789abcdef";

    fn configured() -> AzureKek {
        AzureKek::parse("https://v.vault.azure.net/keys/k").unwrap()
    }

    /// A fresh private key and what a vault would say about it.
    fn rsa() -> (PrivateDecryptingKey, Value) {
        use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der};
        let private = PrivateDecryptingKey::generate(KeySize::Rsa2048).unwrap();
        let der: Pkcs8V1Der<'static> = private.as_der().unwrap();
        let pair = RsaKeyPair::from_pkcs8(der.as_ref()).unwrap();
        let (n, e) = (pair.public_key().modulus(), pair.public_key().exponent());
        let (n, e) = (n.big_endian_without_leading_zero(), e.big_endian_without_leading_zero());
        let document = json!({
            "key": {
                "kid": format!("https://v.vault.azure.net/keys/k/{VERSION}"), "kty": "RSA",
                "key_ops": ["wrapKey", "unwrapKey"],
                "n": BASE64URL_NOPAD.encode(n), "e": BASE64URL_NOPAD.encode(e),
            },
            "attributes": {"enabled": true, "created": 1, "updated": 1, "recoveryLevel": "Recoverable"},
            "tags": {},
        });
        (private, document)
    }

    fn parse(document: &Value) -> VaultKey {
        VaultKey::parse(document.to_string().as_bytes(), None).unwrap()
    }

    #[test]
    fn a_deleted_key_says_until_when_it_can_be_brought_back() {
        let of = |text: &str| DeletedKey::parse(text.as_bytes()).unwrap().state();
        let until = UNIX_EPOCH.checked_add(Duration::from_secs(1_800_000_000));
        let state =
            of(r#"{"scheduledPurgeDate": 1800000000, "attributes": {"recoveryLevel": "Recoverable+Purgeable"}}"#);
        assert_eq!(state, KeyState::Scheduled { until, protected: Some(false) });
        let state = of(r#"{"scheduledPurgeDate": 1800000000, "attributes": {"recoveryLevel": "Recoverable"}}"#);
        assert_eq!(state, KeyState::Scheduled { until, protected: Some(true) });
        assert_eq!(of("{}"), KeyState::Scheduled { until: None, protected: None });
    }

    #[test]
    fn what_is_wrapped_with_the_public_half_the_private_half_unwraps() {
        let (private, document) = rsa();
        let wrapper = parse(&document).wrapper(&configured(), SystemTime::now()).unwrap();
        assert_eq!(wrapper.id.0, format!("https://v.vault.azure.net/keys/k/{VERSION}"));
        let Way::Here(public) = wrapper.way else { panic!("an RSA key wraps here") };
        let blob = public.wrap(&Secret32::take(&mut [7; 32])).unwrap();
        assert_eq!(blob.len(), 256);
        let private = OaepPrivateDecryptingKey::new(private).unwrap();
        let mut plain = vec![0; private.min_output_size()];
        let plain = private.decrypt(&OAEP_SHA256_MGF1SHA256, &blob, &mut plain, None).unwrap();
        assert_eq!(plain, [7; 32]);
    }

    #[test]
    fn nothing_is_wrapped_with_a_key_that_could_not_unwrap_it() {
        let (_, document) = rsa();
        let now = UNIX_EPOCH + Duration::from_secs(1_000_000);
        let refused = |path: &str, value: Value| {
            let mut document = document.clone();
            let (parent, name) = path.rsplit_once('/').unwrap();
            document.pointer_mut(parent).unwrap()[name] = value;
            let error = parse(&document).wrapper(&configured(), now).err();
            error.unwrap_or_else(|| panic!("{path} was accepted"))
        };
        assert_eq!(refused("/attributes/enabled", json!(false)).kind, KmsErrorKind::Refused);
        assert_eq!(refused("/attributes/exp", json!(1_000_000)).kind, KmsErrorKind::Misconfigured);
        assert_eq!(refused("/attributes/nbf", json!(1_000_001)).kind, KmsErrorKind::Misconfigured);
        assert!(refused("/key/kty", json!("EC")).hint.unwrap().contains("az keyvault key create"));
        assert_eq!(refused("/key/key_ops", json!(["wrapKey"])).code.as_deref(), Some("KeyOperationForbidden"));
        assert_eq!(refused("/key/n", json!("AQAB")).kind, KmsErrorKind::Misconfigured);
        assert_eq!(refused("/key/n", json!("!")).kind, KmsErrorKind::Misconfigured);
        let unversioned = refused("/key/kid", json!("https://v.vault.azure.net/keys/k"));
        assert_eq!(unversioned.kind, KmsErrorKind::Unreachable);
        let other = refused("/key/kid", json!(format!("https://v.vault.azure.net/keys/other/{VERSION}")));
        assert_eq!(other.kind, KmsErrorKind::Unreachable);
    }

    #[test]
    fn an_aes_key_wraps_at_the_hsm_if_it_is_permitted_to() {
        let (_, mut document) = rsa();
        document["key"] =
            json!({ "kid": format!("https://h.managedhsm.azure.net/keys/k/{VERSION}"), "kty": "oct-HSM" });
        let configured = AzureKek::parse("https://h.managedhsm.azure.net/keys/k").unwrap();
        let wrapper = parse(&document).wrapper(&configured, SystemTime::now()).unwrap();
        assert!(matches!(wrapper.way, Way::There(version) if version == VERSION));
        document["key"]["key_ops"] = json!(["unwrapKey"]);
        let error = parse(&document).wrapper(&configured, SystemTime::now()).err().unwrap();
        assert_eq!(error.code.as_deref(), Some("KeyOperationForbidden"));
        let reply = |len| json!({ "kid": "k", "value": BASE64URL_NOPAD.encode(&vec![7; len]) }).to_string();
        assert_eq!(wrapped(reply(40).as_bytes()).unwrap(), [7; 40]);
        assert_eq!(wrapped(reply(32).as_bytes()).unwrap_err().kind, KmsErrorKind::Unreachable);
    }

    #[test]
    fn the_facts_name_the_kind_the_size_and_the_validity() {
        let (_, mut document) = rsa();
        document["attributes"]["exp"] = json!(86_400);
        let facts = parse(&document).facts().unwrap();
        assert_eq!((facts.kind.as_str(), facts.enabled), ("RSA 2048", Some(true)));
        assert_eq!((facts.expires, facts.not_before), (Some(UNIX_EPOCH + Duration::from_secs(86_400)), None));
    }

    #[test]
    fn an_unwrapped_value_is_taken_in_every_form_of_base64() {
        let bytes: [u8; 32] = std::array::from_fn(|i| 0xFF - i as u8 * 3);
        for value in [
            data_encoding::BASE64.encode(&bytes),
            data_encoding::BASE64_NOPAD.encode(&bytes),
            data_encoding::BASE64URL.encode(&bytes),
            BASE64URL_NOPAD.encode(&bytes),
            data_encoding::BASE64.encode(&bytes).replace('/', "\\/"),
        ] {
            let body = format!(r#"{{"kid":"x","value":"{value}"}}"#);
            assert_eq!(unwrapped(body.as_bytes()).unwrap().expose(), &bytes, "{body}");
        }
    }

    #[test]
    fn a_reply_that_is_not_key_vaults_is_no_answer_and_another_length_is_damage() {
        for body in ["", "<html>", "{}", r#"{"value":"!"}"#, r#"{"value":7}"#] {
            assert_eq!(unwrapped(body.as_bytes()).unwrap_err().kind, KmsErrorKind::Unreachable, "{body}");
        }
        assert_eq!(unwrapped(br#"{"value":"AQAB"}"#).unwrap_err().kind, KmsErrorKind::Damaged);
        assert!(VaultKey::parse(b"<html>", None).is_err());
    }
}
