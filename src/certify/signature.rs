//! Signing a certificate, and finding out whether one is what was signed. Ed25519 (RFC 8032) over the certificate as JSON
//! in one canonical form: no spaces, the fields of each object in the order of their names.

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};
use data_encoding::{BASE64, HEXLOWER};
use serde_json::{Map, Value, json};
use zeroize::Zeroizing;

const ALGORITHM: &str = "Ed25519";
const PEM: [&str; 2] = ["-----BEGIN PRIVATE KEY-----", "-----END PRIVATE KEY-----"];

/// A key to sign with.
pub struct SigningKey(Ed25519KeyPair);

/// Why a certificate is none.
#[derive(Debug, PartialEq, Eq)]
pub enum NotSigned {
    /// It is no certificate of ours.
    Malformed(String),
    /// It is not what was signed.
    Changed,
}

impl SigningKey {
    /// A fresh key as PKCS#8 in PEM, for a file.
    ///
    /// # Errors
    /// In words.
    pub fn generate() -> Result<Zeroizing<String>, String> {
        let document =
            Ed25519KeyPair::generate_pkcs8v1(&SystemRandom::new()).map_err(|_| "no key could be made".to_owned())?;
        let text = Zeroizing::new(BASE64.encode(document.as_ref()));
        Ok(Zeroizing::new(format!("{}\n{}\n{}\n", PEM[0], text.as_str(), PEM[1])))
    }

    /// Reads a key, as `openssl genpkey -algorithm ed25519` or [`SigningKey::generate`] makes one.
    ///
    /// # Errors
    /// In words, without any of the key.
    pub fn parse(pem: &str) -> Result<Self, String> {
        let wrong = || "it is not an Ed25519 key in PEM (PKCS#8, not encrypted)".to_owned();
        let body = pem.trim().strip_prefix(PEM[0]).and_then(|rest| rest.strip_suffix(PEM[1])).ok_or_else(wrong)?;
        let text = Zeroizing::new(body.split_ascii_whitespace().collect::<String>());
        let der = BASE64.decode(text.as_bytes()).map(Zeroizing::new).map_err(|_| wrong())?;
        Ed25519KeyPair::from_pkcs8_maybe_unchecked(&der).map(Self).map_err(|_| wrong())
    }

    /// The public half, in base64.
    pub fn public(&self) -> String {
        BASE64.encode(self.0.public_key().as_ref())
    }

    /// The signed certificate, as it goes into a file.
    pub fn sign(&self, certificate: Value) -> String {
        let signature = self.0.sign(canonical(&certificate).as_bytes());
        let signed = json!({
            "certificate": certificate,
            "signature": {
                "algorithm": ALGORITHM,
                "over": "the value of 'certificate' as JSON without spaces, fields ordered by name, in UTF-8",
                "public_key": self.public(),
                "value": BASE64.encode(signature.as_ref()),
            },
        });
        printed(&signed)
    }
}

/// The certificate in a file, and the public key that signed it, in base64. Whose key that is has to be known from
/// elsewhere.
///
/// # Errors
/// [`NotSigned`].
pub fn verify(text: &str) -> Result<(Value, String), NotSigned> {
    let malformed = |what: &str| NotSigned::Malformed(what.to_owned());
    let signed: Value = serde_json::from_str(text).map_err(|error| NotSigned::Malformed(error.to_string()))?;
    // A field that is there twice reads in one way here and may read in another one elsewhere.
    if printed(&signed) != text {
        return Err(malformed("it is not in the form in which certificates are written"));
    }
    let field = |name: &str| signed["signature"][name].as_str().ok_or_else(|| malformed("it has no signature"));
    if field("algorithm")? != ALGORITHM {
        return Err(malformed("it is signed in another way"));
    }
    let key = field("public_key")?;
    let bytes = |text: &str| BASE64.decode(text.as_bytes()).map_err(|_| malformed("its signature is not base64"));
    let certificate = &signed["certificate"];
    UnparsedPublicKey::new(&ED25519, bytes(key)?)
        .verify(canonical(certificate).as_bytes(), &bytes(field("value")?)?)
        .map_err(|_| NotSigned::Changed)?;
    Ok((certificate.clone(), key.to_owned()))
}

/// By what people tell public keys apart: the first 16 bytes of BLAKE3 of one, in hexadecimal.
pub fn fingerprint(public: &str) -> String {
    let bytes = BASE64.decode(public.as_bytes()).unwrap_or_default();
    HEXLOWER.encode(&blake3::hash(&bytes).as_bytes()[..16])
}

fn printed(value: &Value) -> String {
    format!("{:#}\n", ordered(value))
}

fn ordered(value: &Value) -> Value {
    match value {
        Value::Object(fields) => {
            let mut names: Vec<_> = fields.keys().collect();
            names.sort();
            Value::Object(names.into_iter().map(|name| (name.clone(), ordered(&fields[name]))).collect::<Map<_, _>>())
        }
        Value::Array(items) => items.iter().map(ordered).collect(),
        other => other.clone(),
    }
}

fn canonical(value: &Value) -> String {
    ordered(value).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> SigningKey {
        SigningKey::parse(&SigningKey::generate().unwrap()).unwrap()
    }

    #[test]
    fn what_was_signed_verifies_and_nothing_else_does() {
        let key = key();
        let signed = key.sign(json!({"verdict": "suspended", "b": [1, {"z": null, "a": "ä\n"}]}));
        let (certificate, public) = verify(&signed).unwrap();
        assert_eq!((certificate["verdict"].as_str(), public), (Some("suspended"), key.public()));
        assert_eq!(verify(&signed.replace("suspended", "destroyed")), Err(NotSigned::Changed));
        for changed in [signed.replacen('{', "{ ", 1), signed.trim().to_owned(), "{}".into(), String::new()] {
            assert!(matches!(verify(&changed), Err(NotSigned::Malformed(_))), "{changed}");
        }
        let twice =
            signed.replace("\"verdict\": \"suspended\"", "\"verdict\": \"destroyed\",\n    \"verdict\": \"suspended\"");
        assert!(matches!(verify(&twice), Err(NotSigned::Malformed(_))));
        let other = self::key().sign(certificate);
        let signature = |text: &str| serde_json::from_str::<Value>(text).unwrap()["signature"]["value"].to_string();
        assert_eq!(verify(&signed.replace(&signature(&signed), &signature(&other))), Err(NotSigned::Changed));
    }

    #[test]
    fn a_key_of_openssl_is_taken_and_other_texts_are_not() {
        // RFC 8032, section 7.1, test 1.
        let pem = "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEIJ1hsZ3v/VpguoRK9JLsLMREScVpezJpGXA7rAMcrn9g\n-----END PRIVATE KEY-----\n";
        assert_eq!(SigningKey::parse(pem).unwrap().public(), "11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=");
        for text in ["", "x", &pem.replace("MC4C", "MC5C"), &pem.replace("PRIVATE", "PUBLIC")] {
            assert!(SigningKey::parse(text).is_err(), "{text}");
        }
    }
}
