//! What a key version is made of, and which of its algorithms goes with it.

use super::aes::{self, AesKey};
use super::key::Use;
use super::refusal::Refusal;
use super::rsa::{self, Modulus, Padding, RsaKey};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use zeroize::Zeroizing;

/// The key of one version.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Material {
    /// An RSA key pair.
    Rsa(#[serde(with = "rsa::stored")] Arc<RsaKey>),
    /// An AES-256 key.
    Aes(#[serde(with = "aes::stored")] Arc<AesKey>),
}

/// What a new key is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// An RSA key pair. Of `hsm`, `RSA-HSM`, the name is kept; it is a software key all the same.
    Rsa {
        /// Its size.
        modulus: Modulus,
        /// Whether the client asked for `RSA-HSM`.
        hsm: bool,
    },
    /// An AES-256 key, which only a Managed HSM has: `oct-HSM`.
    Aes,
}

/// An algorithm of the API.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Algorithm {
    /// `RSA-OAEP-256` and `RSA-OAEP`.
    Rsa(Padding),
    /// `A256KW` (RFC 7518).
    Aes256Kw,
}

impl Kind {
    /// The kind that a client calls by these; without a size, the usual one.
    ///
    /// # Errors
    /// 400 for one that this vault does not have.
    pub fn named(kty: &str, size: Option<u64>) -> Result<Self, Refusal> {
        match kty {
            "RSA" | "RSA-HSM" => Modulus::with_bits(size.unwrap_or(2048))
                .map(|modulus| Self::Rsa { modulus, hsm: kty == "RSA-HSM" })
                .ok_or_else(|| Refusal::bad_parameter("The property \"key_size\" has to be 2048, 3072 or 4096.")),
            "oct-HSM" if matches!(size, None | Some(256)) => Ok(Self::Aes),
            "oct-HSM" => Err(Refusal::bad_parameter("The property \"key_size\" of an oct-HSM key has to be 256.")),
            other => Err(Refusal::bad_parameter(format!("kmsfs dev-vault makes RSA and oct-HSM keys, not {other:?}."))),
        }
    }

    /// The kind's name in the API.
    pub fn kty(self) -> &'static str {
        match self {
            Self::Rsa { hsm: false, .. } => "RSA",
            Self::Rsa { hsm: true, .. } => "RSA-HSM",
            Self::Aes => "oct-HSM",
        }
    }

    /// What the API lets a new key do where nothing is said.
    pub fn operations(self) -> Vec<String> {
        let all: &[&str] = match self {
            Self::Rsa { .. } => &["encrypt", "decrypt", "sign", "verify", "wrapKey", "unwrapKey"],
            Self::Aes => &["encrypt", "decrypt", "wrapKey", "unwrapKey"],
        };
        all.iter().map(|operation| (*operation).to_owned()).collect()
    }

    /// Makes a key. Takes up to seconds: never on a thread that serves requests.
    ///
    /// # Errors
    /// 500 where no key can be made.
    pub fn generate(self) -> Result<Material, Refusal> {
        match self {
            Self::Rsa { modulus, .. } => RsaKey::generate(modulus)
                .map(|key| Material::Rsa(Arc::new(key)))
                .map_err(|_| Refusal::broken(hyper::StatusCode::INTERNAL_SERVER_ERROR)),
            Self::Aes => Ok(Material::Aes(Arc::new(AesKey::generate()?))),
        }
    }
}

impl Algorithm {
    /// The algorithm with this name in the API.
    pub fn named(name: &str) -> Option<Self> {
        match name {
            "A256KW" => Some(Self::Aes256Kw),
            _ => Padding::named(name).map(Self::Rsa),
        }
    }
}

impl Material {
    /// The kind to make another one like it.
    pub fn kind(&self, kty: &str) -> Kind {
        match self {
            Self::Rsa(rsa) => {
                let modulus = Modulus::with_bits(rsa.modulus().len() as u64 * 8).unwrap_or_default();
                Kind::Rsa { modulus, hsm: kty == "RSA-HSM" }
            }
            Self::Aes(_) => Kind::Aes,
        }
    }

    /// Runs one operation on one block.
    ///
    /// # Errors
    /// 400 where the algorithm is not the key's, or the block is not one that the key can take.
    pub fn apply(&self, operation: Use, algorithm: Algorithm, block: &[u8]) -> Result<Zeroizing<Vec<u8>>, Refusal> {
        let wrong = || Refusal::bad_parameter("The parameter is incorrect.\r\n");
        let done = match (self, algorithm, operation) {
            (Self::Rsa(key), Algorithm::Rsa(padding), Use::Wrap | Use::Encrypt) => {
                key.encrypt(padding, block).map(Zeroizing::new).ok()
            }
            (Self::Rsa(key), Algorithm::Rsa(padding), Use::Unwrap | Use::Decrypt) => key.decrypt(padding, block).ok(),
            (Self::Aes(key), Algorithm::Aes256Kw, Use::Wrap) => key.wrap(block).map(Zeroizing::new).ok(),
            (Self::Aes(key), Algorithm::Aes256Kw, Use::Unwrap) => key.unwrap(block).ok(),
            _ => None,
        };
        done.ok_or_else(wrong)
    }
}
