//! Tokens of the vault's own Entra tenant: JWTs (RFC 7519) with HS256, for one application.
//!
//! The vault checks what it signed itself, so tokens need no memory and are still good after a restart.

use super::identity::{Identity, random_guid};
use super::key::{Seconds, now};
use aws_lc_rs::hmac;
use data_encoding::BASE64URL_NOPAD;
use serde_json::{Value, json};
use std::io;

/// Why a token is not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenFailure {
    /// There is none.
    Missing,
    /// It was not issued here, or it was changed.
    Invalid,
    /// Its time is over.
    Expired,
}

impl TokenFailure {
    /// In the words of Key Vault.
    pub fn message(self) -> &'static str {
        match self {
            Self::Missing => "AKV10000: Request is missing a Bearer or PoP token.",
            Self::Invalid => "AKV10032: Invalid issuer. The token was not issued for this vault, or it was changed.",
            Self::Expired => {
                "[BearerReadAccessTokenFailed] Error validating token: IDX10223: Lifetime validation failed. The \
                 token is expired."
            }
        }
    }
}

/// Issues and checks tokens.
pub struct Tokens {
    key: hmac::Key,
    tenant_id: String,
    client_id: String,
    authority: String,
    lifetime: Seconds,
}

impl Tokens {
    /// For the application of this identity.
    pub fn new(identity: &Identity) -> Self {
        Self {
            key: hmac::Key::new(hmac::HMAC_SHA256, identity.token_key.as_bytes()),
            tenant_id: identity.tenant_id.clone(),
            client_id: identity.client_id.clone(),
            authority: identity.authority(),
            lifetime: identity.token_lifetime,
        }
    }

    /// The seconds from a token's issue to its end.
    pub fn lifetime(&self) -> Seconds {
        self.lifetime
    }

    /// A new token.
    ///
    /// # Errors
    /// Where the operating system has no random bytes.
    pub fn issue(&self) -> io::Result<String> {
        let issued = now();
        let header = json!({ "typ": "JWT", "alg": "HS256" });
        let claims = json!({
            "aud": self.authority, "iss": format!("{}/{}/v2.0", self.authority, self.tenant_id),
            "tid": self.tenant_id, "appid": self.client_id, "oid": self.client_id, "sub": self.client_id,
            "iat": issued, "nbf": issued, "exp": issued + self.lifetime, "uti": random_guid()?, "ver": "1.0",
        });
        let signed = format!("{}.{}", encoded(&header), encoded(&claims));
        let tag = hmac::sign(&self.key, signed.as_bytes());
        Ok(format!("{signed}.{}", BASE64URL_NOPAD.encode(tag.as_ref())))
    }

    /// Checks the `Authorization` header.
    ///
    /// # Errors
    /// See [`TokenFailure`].
    pub fn check(&self, authorization: Option<&str>) -> Result<(), TokenFailure> {
        let (scheme, token) = authorization.and_then(|value| value.split_once(' ')).ok_or(TokenFailure::Missing)?;
        if !scheme.eq_ignore_ascii_case("bearer") {
            return Err(TokenFailure::Missing);
        }
        let (signed, tag) = token.trim().rsplit_once('.').ok_or(TokenFailure::Invalid)?;
        let tag = BASE64URL_NOPAD.decode(tag.as_bytes()).map_err(|_| TokenFailure::Invalid)?;
        hmac::verify(&self.key, signed.as_bytes(), &tag).map_err(|_| TokenFailure::Invalid)?;
        let expires = signed
            .split_once('.')
            .and_then(|(_, claims)| BASE64URL_NOPAD.decode(claims.as_bytes()).ok())
            .and_then(|claims| serde_json::from_slice::<Value>(&claims).ok())
            .and_then(|claims| claims["exp"].as_u64())
            .ok_or(TokenFailure::Invalid)?;
        if expires <= now() { Err(TokenFailure::Expired) } else { Ok(()) }
    }
}

fn encoded(value: &Value) -> String {
    BASE64URL_NOPAD.encode(value.to_string().as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens(lifetime: Seconds) -> io::Result<Tokens> {
        let identity = Identity::generate(([127, 0, 0, 1], 1).into())?;
        Ok(Tokens::new(&Identity { token_lifetime: lifetime, ..identity }))
    }

    #[test]
    fn a_token_of_another_vault_is_not_accepted() -> io::Result<()> {
        let header = format!("Bearer {}", tokens(60)?.issue()?);
        assert_eq!(tokens(60)?.check(Some(&header)), Err(TokenFailure::Invalid));
        Ok(())
    }

    #[test]
    fn a_token_ends_with_its_lifetime() -> io::Result<()> {
        for (lifetime, accepted) in [(60, Ok(())), (0, Err(TokenFailure::Expired))] {
            let tokens = tokens(lifetime)?;
            assert_eq!(tokens.check(Some(&format!("Bearer {}", tokens.issue()?))), accepted);
        }
        Ok(())
    }

    #[test]
    fn a_changed_token_is_not_accepted() -> io::Result<()> {
        let tokens = tokens(60)?;
        let token = tokens.issue()?;
        let (signed, tag) = token.rsplit_once('.').ok_or(io::ErrorKind::InvalidData)?;
        let changed = format!("Bearer {}A.{tag}", &signed[..signed.len() - 1]);
        assert_ne!(changed, format!("Bearer {token}"));
        assert_eq!(tokens.check(Some(&changed)), Err(TokenFailure::Invalid));
        Ok(())
    }
}
