//! The JSON documents of the keys API, from the vault's own types.

use super::key::{Key, KeyVersion, Limits, RECOVERABLE_DAYS, Seconds};
use super::material::Material;
use super::refusal::Refusal;
use data_encoding::{BASE64URL_NOPAD, Specification};
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// `https://devvault.localhost:PORT/keys/NAME/VERSION`.
pub fn key_id(vault_url: &str, key: &Key, version: &KeyVersion) -> String {
    format!("{vault_url}/keys/{}/{}", key.name, version.id)
}

/// A key bundle: what may be known of one version, with its attributes.
pub fn bundle(vault_url: &str, key: &Key, version: &KeyVersion) -> Value {
    let mut document = json!({
        "key": {
            "kid": key_id(vault_url, key, version),
            "kty": version.kty,
            "key_ops": version.limits.operations,
        },
        "attributes": attributes(version),
    });
    // Of an AES key nothing is told but that it is there.
    if let Material::Rsa(rsa) = &version.material {
        document["key"]["n"] = json!(BASE64URL_NOPAD.encode(rsa.modulus()));
        document["key"]["e"] = json!(BASE64URL_NOPAD.encode(rsa.exponent()));
    }
    if !version.tags.is_empty() {
        document["tags"] = json!(version.tags);
    }
    with_deletion(document, vault_url, key)
}

/// A line of a list: an id with attributes. In a list of keys the id has no version.
pub fn item(vault_url: &str, key: &Key, version: &KeyVersion, with_version: bool) -> Value {
    let kid = if with_version { key_id(vault_url, key, version) } else { format!("{vault_url}/keys/{}", key.name) };
    let mut document = json!({ "kid": kid, "attributes": attributes(version) });
    if !version.tags.is_empty() {
        document["tags"] = json!(version.tags);
    }
    with_deletion(document, vault_url, key)
}

/// The rotation policy that the client set, or the one that a new key has.
pub fn rotation_policy(vault_url: &str, key: &Key) -> Value {
    let mut document = key.rotation_policy.clone().unwrap_or_else(|| {
        json!({ "lifetimeActions": [{ "trigger": { "timeBeforeExpiry": "P30D" }, "action": { "type": "Notify" } }] })
    });
    document["id"] = json!(format!("{vault_url}/keys/{}/rotationpolicy", key.name));
    document
}

/// The body of `create`.
#[derive(Debug, Deserialize)]
pub struct CreateBody {
    /// `RSA`, `RSA-HSM` or `oct-HSM`.
    pub kty: String,
    /// 2048, 3072 or 4096; 256 for `oct-HSM`.
    pub key_size: Option<u64>,
    /// 65537.
    pub public_exponent: Option<u64>,
    /// Without it, everything.
    pub key_ops: Option<Vec<String>>,
    /// Limits.
    #[serde(default)]
    pub attributes: AttributesBody,
    /// The client's own labels.
    pub tags: Option<BTreeMap<String, String>>,
}

/// The body of an update.
#[derive(Debug, Deserialize)]
pub struct UpdateBody {
    /// Replaces what was there.
    pub key_ops: Option<Vec<String>>,
    /// Only what is named changes.
    #[serde(default)]
    pub attributes: AttributesBody,
    /// Replaces what was there.
    pub tags: Option<BTreeMap<String, String>>,
}

/// The attributes that a client can set.
#[derive(Debug, Default, Deserialize)]
pub struct AttributesBody {
    enabled: Option<bool>,
    nbf: Option<Seconds>,
    exp: Option<Seconds>,
}

impl AttributesBody {
    /// Changes what is named.
    pub fn apply(&self, key_ops: Option<&Vec<String>>, limits: &mut Limits) {
        limits.enabled = self.enabled.unwrap_or(limits.enabled);
        limits.not_before = self.nbf.or(limits.not_before);
        limits.expires = self.exp.or(limits.expires);
        if let Some(operations) = key_ops {
            limits.operations.clone_from(operations);
        }
    }
}

/// The body of a cryptographic operation.
#[derive(Debug, Deserialize)]
pub struct BlockBody {
    /// The algorithm's name.
    pub alg: String,
    /// The block.
    pub value: String,
}

/// Decodes base64 or base64url, padded or not.
///
/// # Errors
/// 400 for anything else.
pub fn decode_base64(text: &str) -> Result<Vec<u8>, Refusal> {
    let mut specification = Specification::new();
    specification.symbols.push_str("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_");
    specification.translate.from.push_str("+/");
    specification.translate.to.push_str("-_");
    let refused = || Refusal::bad_parameter("The parameter 'value' is not base64url.");
    let encoding = specification.encoding().map_err(|_| refused())?;
    encoding.decode(text.trim_end_matches('=').as_bytes()).map_err(|_| refused())
}

fn attributes(version: &KeyVersion) -> Value {
    let mut attributes = json!({
        "enabled": version.limits.enabled,
        "created": version.created,
        "updated": version.updated,
        "recoveryLevel": "Recoverable+Purgeable",
        "recoverableDays": RECOVERABLE_DAYS,
        "exportable": false,
    });
    for (name, time) in [("nbf", version.limits.not_before), ("exp", version.limits.expires)] {
        if let Some(time) = time {
            attributes[name] = json!(time);
        }
    }
    attributes
}

fn with_deletion(mut document: Value, vault_url: &str, key: &Key) -> Value {
    if let Some(deletion) = key.deleted {
        document["recoveryId"] = json!(format!("{vault_url}/deletedkeys/{}", key.name));
        document["deletedDate"] = json!(deletion.at);
        document["scheduledPurgeDate"] = json!(deletion.purged_at);
    }
    document
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_accepted_in_every_dress() {
        let bytes = vec![0xfb, 0xef, 0xff, 0x01];
        for text in ["--__AQ", "--__AQ==", "++//AQ", "++//AQ==", "-+_/AQ"] {
            assert_eq!(decode_base64(text), Ok(bytes.clone()), "{text}");
        }
        for text in ["--__A", "--_ _AQ", "--__AQ\n", "*"] {
            assert_eq!(decode_base64(text).map_err(|refusal| refusal.status.as_u16()), Err(400), "{text}");
        }
    }
}
