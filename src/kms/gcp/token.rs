//! The requests that bring a token for Google Cloud KMS, and their replies. No I/O.
//! Invariant: a token that is shown to Cloud KMS was asked for with the scope of Cloud KMS and no other (but for that of
//! a login, which says itself what it is for), and no error holds any part of one.

use super::account::Identity;
use crate::kms::rest::{self, Reply, Request};
use crate::kms::{KmsError, KmsErrorKind};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeyPair;
use aws_lc_rs::signature::RSA_PKCS1_SHA256;
use data_encoding::BASE64URL_NOPAD;
use reqwest::header::HeaderName;
use reqwest::{Method, Url};
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::pki_types::pem::PemObject;
use serde::Deserialize;
use serde_json::{Value, json};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use zeroize::Zeroizing;

/// What the token may do.
const SCOPE: &str = "https://www.googleapis.com/auth/cloudkms";
/// What a token may do that is only there to get another one.
const SCOPE_TO_IMPERSONATE: &str = "https://www.googleapis.com/auth/cloud-platform";
/// Google takes no grant that is good for longer.
const GRANT_SECONDS: u64 = 3600;
const FORM: &str = "application/x-www-form-urlencoded";

/// A token, and for how long it is good.
pub(super) struct Token {
    pub(super) value: Zeroizing<String>,
    pub(super) lifetime: Duration,
}

/// Asks for a token of this identity. `subject` is the content of a workload identity's token file.
///
/// # Errors
/// [`KmsErrorKind::Credentials`] for a key that cannot sign, or a file that holds no token.
pub(super) fn request(
    identity: &Identity,
    to_impersonate: bool,
    subject: &[u8],
    now: SystemTime,
) -> Result<Request, KmsError> {
    let scope = if to_impersonate { SCOPE_TO_IMPERSONATE } else { SCOPE };
    Ok(match identity {
        Identity::Service { email, key_id, key, token_uri } => {
            let grant = grant(email, key_id.as_deref(), key, token_uri, scope, now)?;
            form(token_uri, &[("grant_type", "urn:ietf:params:oauth:grant-type:jwt-bearer"), ("assertion", &grant)])
        }
        Identity::User { client, client_secret, refresh_token, token_uri } => form(
            token_uri,
            &[
                ("grant_type", "refresh_token"),
                ("client_id", client),
                ("client_secret", client_secret),
                ("refresh_token", refresh_token),
            ],
        ),
        Identity::External { audience, token_type, token_url, field, .. } => form(
            token_url,
            &[
                ("grant_type", "urn:ietf:params:oauth:grant-type:token-exchange"),
                ("requested_token_type", "urn:ietf:params:oauth:token-type:access_token"),
                ("audience", audience),
                ("scope", scope),
                ("subject_token_type", token_type),
                ("subject_token", &*subject_token(subject, field.as_deref())?),
            ],
        ),
    })
}

/// Asks, with the token of one identity, for that of a service account.
pub(super) fn impersonate(url: &Url, token: &Token) -> Request {
    let body = json!({ "scope": [SCOPE], "lifetime": format!("{GRANT_SECONDS}s") });
    Request::post(url.clone(), &body).bearer(&token.value)
}

/// Asks the metadata server for the token of the machine's own service account.
///
/// # Errors
/// [`KmsErrorKind::Misconfigured`] for a host that is none.
pub(super) fn of_machine(host: &str) -> Result<Request, KmsError> {
    let url = format!("http://{host}/computeMetadata/v1/instance/service-accounts/default/token");
    let mut url = Url::parse(&url).map_err(|_| {
        KmsError::new(KmsErrorKind::Misconfigured, format!("'{host}' is not a host")).hint("see GCE_METADATA_HOST")
    })?;
    url.query_pairs_mut().append_pair("scopes", SCOPE);
    // Without it the server does not answer: a request that somebody was tricked into has no such header.
    Ok(Request::get(url).header(HeaderName::from_static("metadata-flavor"), "Google"))
}

#[derive(Deserialize)]
struct Granted {
    access_token: Zeroizing<String>,
    expires_in: u64,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Impersonated {
    access_token: Zeroizing<String>,
    expire_time: String,
}

/// Reads the reply to any of the requests. `who` is what [`super::account::Account::name`] says, or what it was about.
///
/// # Errors
/// [`KmsErrorKind::Unreachable`] if the server failed, else [`KmsErrorKind::Credentials`] with what it said.
pub(super) fn read(reply: &Reply, who: &str, now: SystemTime) -> Result<Token, KmsError> {
    if reply.status != 200 {
        return Err(refused(reply.status, &reply.body, who));
    }
    granted(&reply.body, now).ok_or_else(|| {
        KmsError::new(KmsErrorKind::Unreachable, "the reply of Google's token server has no token in it")
    })
}

fn granted(body: &[u8], now: SystemTime) -> Option<Token> {
    if let Ok(Granted { access_token, expires_in }) = serde_json::from_slice(body) {
        return Some(Token { value: access_token, lifetime: Duration::from_secs(expires_in) });
    }
    let Impersonated { access_token, expire_time } = serde_json::from_slice(body).ok()?;
    let end = humantime::parse_rfc3339(&expire_time).ok()?;
    Some(Token { value: access_token, lifetime: end.duration_since(now).unwrap_or_default() })
}

/// `{"error":"invalid_grant","error_description":"…"}` of a token server, or `{"error":{"message":"…"}}` of an API.
fn refused(status: u16, body: &[u8], who: &str) -> KmsError {
    let document = serde_json::from_slice::<Value>(body).unwrap_or_default();
    let text = |pointer: &str| document.pointer(pointer).and_then(Value::as_str).map(rest::first_line);
    let said = match (text("/error_description").or_else(|| text("/error/message")), text("/error")) {
        (Some(said), Some(code)) => format!("{code}: {said}"),
        (Some(said), None) | (None, Some(said)) => said,
        (None, None) => format!("HTTP status {status}"),
    };
    if status >= 500 || matches!(status, 408 | 429) {
        return KmsError::new(KmsErrorKind::Unreachable, format!("Google gives no token now: {said}"));
    }
    KmsError::new(KmsErrorKind::Credentials, format!("Google does not accept the {who}: {said}")).hint(match who {
        "login" => "log in again: gcloud auth application-default login",
        "service account" => {
            "its key may be deleted, the account disabled, or this machine's clock wrong: \
             gcloud iam service-accounts keys list --iam-account EMAIL"
        }
        MACHINE => "give the machine a service account, with the access scope cloud-platform or cloudkms",
        _ => "check the pool's provider, and whom it lets impersonate the service account",
    })
}

/// Whom [`read`] speaks of when the metadata server was asked.
pub(super) const MACHINE: &str = "machine's service account";

/// A statement of a service account that it is itself (RFC 7523), signed with its key.
fn grant(
    email: &str,
    key_id: Option<&str>,
    key: &str,
    token_uri: &Url,
    scope: &str,
    now: SystemTime,
) -> Result<Zeroizing<String>, KmsError> {
    let unusable = || {
        let message = format!("the private key of {email} is not an RSA key in PEM (PKCS#8)");
        KmsError::new(KmsErrorKind::Credentials, message)
            .hint("make a new one: gcloud iam service-accounts keys create FILE --iam-account EMAIL")
    };
    let der = PrivatePkcs8KeyDer::from_pem_slice(key.as_bytes()).map_err(|_| unusable())?;
    let pair = KeyPair::from_pkcs8(der.secret_pkcs8_der()).map_err(|_| unusable())?;
    let issued = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let mut header = json!({ "alg": "RS256", "typ": "JWT" });
    if let Some(key_id) = key_id {
        header["kid"] = json!(key_id);
    }
    let (audience, expires) = (token_uri.as_str(), issued + GRANT_SECONDS);
    let claims = json!({ "iss": email, "scope": scope, "aud": audience, "iat": issued, "exp": expires });
    let part = |value: &Value| BASE64URL_NOPAD.encode(value.to_string().as_bytes());
    let mut grant = Zeroizing::new(format!("{}.{}", part(&header), part(&claims)));
    let mut signature = vec![0; pair.public_modulus_len()];
    pair.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), grant.as_bytes(), &mut signature).map_err(|_| unusable())?;
    grant.push('.');
    grant.push_str(&BASE64URL_NOPAD.encode(&signature));
    Ok(grant)
}

fn subject_token(file: &[u8], field: Option<&str>) -> Result<Zeroizing<String>, KmsError> {
    let token = match field {
        None => std::str::from_utf8(file).ok().map(|text| text.trim().to_owned()),
        Some(field) => {
            serde_json::from_slice::<Value>(file).ok().and_then(|value| value.get(field)?.as_str().map(str::to_owned))
        }
    };
    token.filter(|token| !token.is_empty()).map(Zeroizing::new).ok_or_else(|| {
        KmsError::new(KmsErrorKind::Credentials, "the token file of the workload identity holds no token")
            .hint("see who writes it: credential_source in the file that GOOGLE_APPLICATION_CREDENTIALS names")
    })
}

fn form(url: &Url, fields: &[(&str, &str)]) -> Request {
    let body = url::form_urlencoded::Serializer::new(String::new()).extend_pairs(fields).finish();
    Request::new(Method::POST, url.clone()).body(FORM, body.into_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der};
    use aws_lc_rs::rsa::KeySize;
    use aws_lc_rs::signature::{KeyPair as _, RSA_PKCS1_2048_8192_SHA256, UnparsedPublicKey};

    fn pem(pair: &KeyPair) -> String {
        let der: Pkcs8V1Der<'_> = pair.as_der().unwrap();
        let base64 = data_encoding::BASE64.encode(der.as_ref());
        let lines: Vec<_> = base64.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).unwrap()).collect();
        format!("-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----\n", lines.join("\n"))
    }

    fn server() -> Url {
        Url::parse("https://oauth2.googleapis.com/token").unwrap()
    }

    #[test]
    fn a_grant_says_who_for_what_and_until_when_and_is_signed() {
        let pair = KeyPair::generate(KeySize::Rsa2048).unwrap();
        let now = UNIX_EPOCH + Duration::from_secs(1_000);
        let grant = grant("a@p.example", Some("k1"), &pem(&pair), &server(), SCOPE, now).unwrap();
        let (signed, signature) = grant.rsplit_once('.').unwrap();
        let decode = |part: &str| BASE64URL_NOPAD.decode(part.as_bytes()).unwrap();
        UnparsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, pair.public_key())
            .verify(signed.as_bytes(), &decode(signature))
            .unwrap();
        let (header, claims) = signed.split_once('.').unwrap();
        let json = |part: &str| serde_json::from_slice::<Value>(&decode(part)).unwrap();
        assert_eq!(json(header), json!({"alg": "RS256", "typ": "JWT", "kid": "k1"}));
        assert_eq!(
            json(claims),
            json!({"iss": "a@p.example", "scope": SCOPE, "aud": server().as_str(), "iat": 1_000, "exp": 4_600})
        );
    }

    #[test]
    fn a_key_that_cannot_sign_is_refused_without_being_quoted() {
        for key in ["", "hunter2", "-----BEGIN PRIVATE KEY-----\naHVudGVyMg==\n-----END PRIVATE KEY-----\n"] {
            let error = grant("a@p.example", None, key, &server(), SCOPE, UNIX_EPOCH).unwrap_err();
            assert_eq!(error.kind, KmsErrorKind::Credentials);
            assert!(!format!("{error:?}").contains("unter2"), "{error:?}");
        }
    }

    #[test]
    fn the_token_of_a_workload_is_found_as_text_and_in_json() {
        assert_eq!(*subject_token(b" abc\n", None).unwrap(), "abc");
        assert_eq!(*subject_token(br#"{"t":"abc"}"#, Some("t")).unwrap(), "abc");
        for (file, field) in [(&b""[..], None), (b"\n", None), (b"{}", Some("t")), (b"abc", Some("t")), (b"\xFF", None)]
        {
            assert_eq!(subject_token(file, field).unwrap_err().kind, KmsErrorKind::Credentials);
        }
    }

    #[test]
    fn both_forms_of_a_granted_token_are_read() {
        let now = UNIX_EPOCH + Duration::from_secs(1_000);
        let token = granted(br#"{"access_token":"t","expires_in":3599,"token_type":"Bearer"}"#, now).unwrap();
        assert_eq!((token.value.as_str(), token.lifetime), ("t", Duration::from_secs(3599)));
        let token = granted(br#"{"accessToken":"t","expireTime":"1970-01-01T01:00:00Z"}"#, now).unwrap();
        assert_eq!((token.value.as_str(), token.lifetime), ("t", Duration::from_secs(2600)));
        for body in [&b""[..], b"{}", br#"{"access_token":"t"}"#, br#"{"accessToken":"t","expireTime":"soon"}"#] {
            assert!(granted(body, now).is_none());
        }
    }

    #[test]
    fn a_token_server_that_refuses_is_not_one_that_fails() {
        let said = br#"{"error":"invalid_grant","error_description":"Token has been expired or revoked."}"#;
        let error = refused(400, said, "login");
        assert_eq!(error.kind, KmsErrorKind::Credentials);
        assert!(error.message.ends_with("invalid_grant: Token has been expired or revoked"), "{}", error.message);
        assert!(error.hint.unwrap().contains("gcloud auth application-default login"));
        let api = br#"{"error":{"code":403,"message":"Permission 'iam.serviceAccounts.getAccessToken' denied."}}"#;
        assert!(refused(403, api, "workload identity").message.contains("getAccessToken"));
        for status in [500, 503, 429, 408] {
            assert_eq!(refused(status, b"<html>", "login").kind, KmsErrorKind::Unreachable, "{status}");
        }
    }
}
