//! One table: what Key Vault, the identity provider or the network says, and what it amounts to. No I/O.
//! Invariant: only an answer of the vault itself is a refusal. Silence in all its forms is `Unreachable`.

use crate::kms::rest::{self, error_chain, first_line, reason};
use crate::kms::{AzureKek, KEY_EXPIRED, KEY_NOT_YET_VALID, KmsError, KmsErrorKind, OPERATION_FORBIDDEN, THROTTLED};
use azure_core::error::ErrorKind;
use azure_core::http::RawResponse;
use azure_core::http::headers::{HeaderName, Headers};
use serde::Deserialize;
use std::error::Error as _;
use std::time::Duration;

/// The code of an answer 401 without one. An error of kind `Credentials` that has a code comes from the vault itself.
const UNAUTHORIZED: &str = "Unauthorized";

/// The header with the id that the vault gave a call.
pub(super) const REQUEST_ID: &str = "x-ms-request-id";

/// What was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Asked {
    Key,
    Wrap,
    Deleted,
    Unwrap,
    Tag,
}

#[derive(Default, Deserialize)]
struct Body {
    #[serde(default)]
    error: Detail,
}

#[derive(Default, Deserialize)]
struct Detail {
    #[serde(default)]
    code: String,
    #[serde(default)]
    message: String,
    #[serde(default, alias = "innerError")]
    innererror: Option<Inner>,
}

#[derive(Deserialize)]
struct Inner {
    #[serde(default)]
    code: String,
}

/// Sorts an error of the SDK.
pub(super) fn sort(error: &azure_core::Error, asked: Asked, kek: &AzureKek) -> KmsError {
    match error.kind() {
        ErrorKind::HttpResponse { status, raw_response, .. } => {
            let body = raw_response.as_deref().map(|response| response.body().as_ref()).unwrap_or_default();
            let mut sorted = status_error(u16::from(*status), body, asked, kek);
            if let Some(response) = raw_response {
                sorted.ids.request = header(response.headers(), REQUEST_ID);
                sorted.retry_after = retry_after(response);
            }
            sorted
        }
        ErrorKind::Credential => identity(error, kek),
        _ if chain(error).contains("challenge resource") => KmsError::new(
            KmsErrorKind::Misconfigured,
            format!("{} asks for a token that is not for itself; none was sent", kek.host()),
        )
        .hint("name the vault by its own host, NAME.vault.azure.net; through a private endpoint too"),
        ErrorKind::Other => KmsError::new(KmsErrorKind::Misconfigured, first_line(&chain(error))),
        _ => rest::silent(kek.host(), &chain(error)),
    }
}

/// Sorts an answer of the vault.
fn status_error(status: u16, body: &[u8], asked: Asked, kek: &AzureKek) -> KmsError {
    let Detail { code, message, innererror } = serde_json::from_slice::<Body>(body).unwrap_or_default().error;
    let inner = innererror.map(|inner| inner.code).filter(|code| !code.is_empty());
    let code = inner.or(Some(code).filter(|code| !code.is_empty()));
    let said = if message.is_empty() { format!("HTTP status {status}") } else { first_line(&message) };
    let error = |kind, what: &str| KmsError { code: code.clone(), ..KmsError::new(kind, format!("{what}: {said}")) };
    // A 403 to an unwrap is a refusal, whatever the owner did to bring it about.
    let forbidden = if asked == Asked::Unwrap { KmsErrorKind::Refused } else { KmsErrorKind::Misconfigured };
    match (status, code.as_deref()) {
        (403, Some(OPERATION_FORBIDDEN)) => {
            let hint = operation_forbidden(kek, "").hint.unwrap_or_default();
            error(forbidden, &format!("{kek} may not be used like this")).hint(hint)
        }
        (403, Some(KEY_EXPIRED | KEY_NOT_YET_VALID)) => {
            error(forbidden, &format!("{kek} is not valid now")).hint(format!("add a version: {}", az(kek, "rotate")))
        }
        (403, inner) => {
            let refused = error(KmsErrorKind::Refused, &format!("{} refuses {}", kek.host(), kek.name));
            match hint_403(inner, asked, kek) {
                Some(hint) => refused.hint(hint),
                None => refused,
            }
        }
        (404, _) => error(KmsErrorKind::Refused, &format!("{} has no key {}", kek.host(), kek.name))
            .hint(format!("if it was deleted, bring it back: {}", az(kek, "recover"))),
        (400, _) if asked == Asked::Unwrap => {
            error(KmsErrorKind::Damaged, &format!("the wrapped secret is not one of {kek}"))
        }
        (400, _) => error(KmsErrorKind::Misconfigured, &format!("{} does not take the request", kek.host())),
        (401, _) => KmsError {
            code: code.clone().or(Some(UNAUTHORIZED.to_owned())),
            ..error(KmsErrorKind::Credentials, &format!("{} does not accept the token", kek.host()))
        }
        .hint("check that the identity is of the vault's tenant, and this machine's clock"),
        (409, Some(code)) if code.contains("Deleted") => {
            error(KmsErrorKind::Refused, &format!("{kek} is deleted")).hint(az(kek, "recover"))
        }
        (429, _) => KmsError {
            code: Some(THROTTLED.to_owned()),
            ..error(KmsErrorKind::Unreachable, &format!("{} has too much to do", kek.host()))
        },
        (_, _) => error(KmsErrorKind::Unreachable, &format!("{} failed with status {status}", kek.host())),
    }
}

fn hint_403(inner: Option<&str>, asked: Asked, kek: &AzureKek) -> Option<String> {
    match inner {
        Some("ForbiddenByRbac") if asked == Asked::Tag => Some(
            "the rollback guard keeps its counter in a tag of the key: grant the identity a role with the data action \
             Microsoft.KeyVault/vaults/keys/update/action on the key (the Encryption User role has it not), or keep the \
             guard in a file"
                .to_owned(),
        ),
        Some("AccessDenied") if asked == Asked::Tag => Some(format!(
            "the rollback guard keeps its counter in a tag of the key: give the identity the key permission update: \
             az keyvault set-policy --name {} --key-permissions get wrapKey unwrapKey update --object-id OBJECT_ID",
            kek.vault_name()
        )),
        Some("KeyDisabled") => key_disabled(kek, None).hint,
        Some("ForbiddenByRbac") => Some(format!(
            "grant the identity the role '{} Crypto Service Encryption User' on the key or the vault; \
             a fresh grant takes 1 to 5 minutes to be seen",
            if is_hsm(kek) { "Managed HSM" } else { "Key Vault" }
        )),
        Some("AccessDenied") => Some(format!(
            "give the identity the key permissions get and unwrapKey: az keyvault set-policy --name {} \
             --key-permissions get wrapKey unwrapKey --object-id OBJECT_ID",
            kek.vault_name()
        )),
        Some("ForbiddenByFirewall") => Some(format!(
            "let this machine's address through the vault's firewall: az keyvault network-rule add --name {} \
             --ip-address ADDRESS",
            kek.vault_name()
        )),
        _ => None,
    }
}

/// The command that does something to this key, for hints.
pub(super) fn az(kek: &AzureKek, what: &str) -> String {
    if kek.host().ends_with(".localhost") {
        let verb = what.split(' ').next().unwrap_or_default();
        return format!("kmsfs dev-vault key {verb} {} --state DIR", kek.name);
    }
    let (verb, options) = what.split_once(' ').map_or((what, String::new()), |(verb, rest)| (verb, format!(" {rest}")));
    let vault = if is_hsm(kek) { "--hsm-name" } else { "--vault-name" };
    format!("az keyvault key {verb} {vault} {} --name {}{options}", kek.vault_name(), kek.name)
}

fn is_hsm(kek: &AzureKek) -> bool {
    kek.host().contains(".managedhsm.")
}

/// The key is disabled.
pub(super) fn key_disabled(kek: &AzureKek, version: Option<&str>) -> KmsError {
    let command = if kek.host().ends_with(".localhost") {
        az(kek, "enable")
    } else {
        let version = version.or(kek.version.as_deref()).map(|v| format!(" --version {v}")).unwrap_or_default();
        az(kek, &format!("set-attributes --enabled true{version}"))
    };
    let error = KmsError::new(KmsErrorKind::Refused, format!("{kek} is disabled"));
    KmsError { code: Some("KeyDisabled".to_owned()), ..error }.hint(format!("enable it: {command}"))
}

/// The key's `key_ops` do not have what is needed.
pub(super) fn operation_forbidden(kek: &AzureKek, message: &str) -> KmsError {
    let error = KmsError::new(KmsErrorKind::Misconfigured, message);
    let command = az(kek, "set-attributes --ops wrapKey unwrapKey");
    KmsError { code: Some(OPERATION_FORBIDDEN.to_owned()), ..error }
        .hint(format!("permit the operations wrapKey and unwrapKey: {command}"))
}

/// Something answered that is not a Key Vault in good health.
pub(super) fn not_key_vault(what: &str) -> KmsError {
    KmsError::new(KmsErrorKind::Unreachable, format!("the reply is not one of Key Vault: {what}"))
}

/// No token: because there is no identity or it is not accepted, or because nobody was there to ask.
fn identity(error: &azure_core::Error, kek: &AzureKek) -> KmsError {
    let mut source = error.source();
    let mut cause: Option<&azure_core::Error> = None;
    while let Some(inner) = source {
        cause = inner.downcast_ref().or(cause);
        source = inner.source();
    }
    let refused = match cause.map(azure_core::Error::kind) {
        Some(ErrorKind::HttpResponse { status, .. }) => !matches!(u16::from(*status), 408 | 429 | 500..),
        Some(ErrorKind::Connection | ErrorKind::Io | ErrorKind::DataConversion) => false,
        Some(ErrorKind::Credential | ErrorKind::Other) | None => true,
    };
    let text = chain(error);
    if !refused {
        let what = reason(&text).unwrap_or_else(|| first_line(&cause.map_or(text, chain)));
        return KmsError::new(KmsErrorKind::Unreachable, format!("no token for {}: {what}", kek.host()))
            .hint("check the network, AZURE_AUTHORITY_HOST and KMSFS_CA_FILE");
    }
    let hint = if text.contains("7000222") {
        "the client secret has expired: az ad app credential reset --id CLIENT_ID"
    } else if text.contains("7000215") {
        "AZURE_CLIENT_SECRET is not the secret's value (nor is it the secret's id)"
    } else if text.contains("700016") {
        "AZURE_CLIENT_ID is not an application of the tenant AZURE_TENANT_ID"
    } else if text.contains("90002") {
        "AZURE_TENANT_ID is not a tenant of this cloud; see AZURE_AUTHORITY_HOST"
    } else if text.contains("AzureCliCredential") || text.contains("AzureDeveloperCli") {
        "log in with 'az login', or set AZURE_TENANT_ID, AZURE_CLIENT_ID and AZURE_CLIENT_SECRET; \
         for a machine's own identity set KMSFS_AZURE_CREDENTIAL=managed-identity"
    } else {
        "check AZURE_TENANT_ID, AZURE_CLIENT_ID and the secret or token that goes with them"
    };
    let message = first_line(&cause.map_or_else(|| text.clone(), chain));
    KmsError::new(KmsErrorKind::Credentials, format!("the identity is not accepted: {message}")).hint(hint)
}

fn chain(error: &azure_core::Error) -> String {
    error_chain(error)
}

/// A header of a reply.
pub(super) fn header(headers: &Headers, name: &'static str) -> Option<String> {
    headers.get_optional_str(&HeaderName::from_static(name)).map(str::to_owned)
}

fn retry_after(response: &RawResponse) -> Option<Duration> {
    let number = |name| header(response.headers(), name).and_then(|value| value.trim().parse().ok());
    number("x-ms-retry-after-ms")
        .or_else(|| number("retry-after-ms"))
        .map(Duration::from_millis)
        .or_else(|| number("retry-after").map(Duration::from_secs))
}

#[cfg(test)]
mod tests {
    use super::*;
    use KmsErrorKind::{Credentials, Damaged, Misconfigured, Refused, Unreachable};
    use azure_core::Error;
    use azure_core::http::StatusCode;

    fn kek() -> AzureKek {
        AzureKek::parse("https://acme.vault.azure.net/keys/disk").unwrap()
    }

    #[test]
    fn every_answer_of_the_vault_amounts_to_what_the_table_says() {
        let inner = |code: &str| {
            format!(r#"{{"error":{{"code":"Forbidden","message":"m","innererror":{{"code":"{code}"}}}}}}"#)
        };
        let outer = |code: &str| format!(r#"{{"error":{{"code":"{code}","message":"m"}}}}"#);
        let hinted = "az keyvault key set-attributes --vault-name acme --name disk --enabled true";
        let cases: [(u16, String, KmsErrorKind, Option<&str>, &str); 20] = [
            (403, inner("KeyDisabled"), Refused, Some("KeyDisabled"), hinted),
            (403, inner("KeyDisabled").replace("innererror", "innerError"), Refused, Some("KeyDisabled"), hinted),
            (
                403,
                inner("ForbiddenByRbac"),
                Refused,
                Some("ForbiddenByRbac"),
                "Key Vault Crypto Service Encryption User",
            ),
            (403, inner("AccessDenied"), Refused, Some("AccessDenied"), "set-policy --name acme"),
            (403, inner("ForbiddenByFirewall"), Refused, Some("ForbiddenByFirewall"), "network-rule add --name acme"),
            (403, inner("SomethingNew"), Refused, Some("SomethingNew"), ""),
            (403, outer("Forbidden"), Refused, Some("Forbidden"), ""),
            (403, String::new(), Refused, None, ""),
            (403, inner("KeyOperationForbidden"), Refused, Some("KeyOperationForbidden"), "--ops wrapKey unwrapKey"),
            (403, inner("KeyExpired"), Refused, Some("KeyExpired"), "az keyvault key rotate"),
            (
                404,
                outer("KeyNotFound"),
                Refused,
                Some("KeyNotFound"),
                "az keyvault key recover --vault-name acme --name disk",
            ),
            (404, "<html>".into(), Refused, None, "recover"),
            (400, outer("BadParameter"), Damaged, Some("BadParameter"), ""),
            (401, outer("Unauthorized"), Credentials, Some("Unauthorized"), "clock"),
            (429, outer("Throttled"), Unreachable, Some("Throttled"), ""),
            (429, String::new(), Unreachable, Some("Throttled"), ""),
            (500, outer("InternalServerError"), Unreachable, Some("InternalServerError"), ""),
            (503, "<html>".into(), Unreachable, None, ""),
            (408, String::new(), Unreachable, None, ""),
            (302, String::new(), Unreachable, None, ""),
        ];
        for (status, body, kind, code, hint) in cases {
            let error = status_error(status, body.as_bytes(), Asked::Unwrap, &kek());
            assert_eq!((error.kind, error.code.as_deref()), (kind, code), "{status} {body}");
            assert!(error.hint.as_deref().unwrap_or_default().contains(hint), "{status} {body}: {:?}", error.hint);
        }
    }

    #[test]
    fn what_is_wrong_with_the_key_is_a_refusal_or_damage_only_for_an_unwrap() {
        assert_eq!(status_error(400, b"", Asked::Key, &kek()).kind, Misconfigured);
        let body = br#"{"error":{"code":"Forbidden","innererror":{"code":"KeyOperationForbidden"}}}"#;
        assert_eq!(status_error(403, body, Asked::Key, &kek()).kind, Misconfigured);
    }

    #[test]
    fn who_may_use_a_key_and_not_note_anything_of_it_is_told_what_is_missing() {
        for (code, hint) in [("ForbiddenByRbac", "keys/update/action"), ("AccessDenied", "unwrapKey update")] {
            let body = format!(r#"{{"error":{{"code":"Forbidden","innererror":{{"code":"{code}"}}}}}}"#);
            let error = status_error(403, body.as_bytes(), Asked::Tag, &kek());
            assert_eq!(error.kind, Refused);
            assert!(error.hint.as_deref().unwrap_or_default().contains(hint), "{:?}", error.hint);
        }
    }

    #[test]
    fn a_message_is_one_line_without_control_characters() {
        let body =
            br#"{"error":{"code":"Forbidden","message":"Caller is not authorized.\r\nCaller: appid=1\u001b[31m"}}"#;
        let error = status_error(403, body, Asked::Unwrap, &kek());
        assert!(error.message.ends_with("Caller is not authorized"), "{}", error.message);
    }

    #[test]
    fn the_request_id_and_the_wish_to_be_left_alone_are_kept() {
        let mut headers = Headers::new();
        headers.insert("x-ms-request-id", "id-1");
        headers.insert("retry-after", "7");
        let response = RawResponse::from_bytes(StatusCode::TooManyRequests, headers.clone(), "");
        let kind = |response| ErrorKind::HttpResponse {
            status: StatusCode::TooManyRequests,
            error_code: None,
            raw_response: Some(Box::new(response)),
        };
        let error = sort(&kind(response).into_error(), Asked::Unwrap, &kek());
        assert_eq!((error.ids.request.as_deref(), error.retry_after), (Some("id-1"), Some(Duration::from_secs(7))));
        headers.insert("x-ms-retry-after-ms", "1500");
        let response = RawResponse::from_bytes(StatusCode::TooManyRequests, headers, "");
        let error = sort(&kind(response).into_error(), Asked::Unwrap, &kek());
        assert_eq!(error.retry_after, Some(Duration::from_millis(1500)));
    }

    #[test]
    fn an_identity_provider_that_refuses_is_not_one_that_is_silent() {
        let credential = |inner: Error| Error::with_error(ErrorKind::Credential, inner, "authentication failed");
        let http = |status| {
            let kind = ErrorKind::HttpResponse { status, error_code: None, raw_response: None };
            Error::with_message(kind, "AADSTS7000215: Invalid client secret provided.\r\nTrace ID: 1")
        };
        let refused = sort(&credential(http(StatusCode::Unauthorized)), Asked::Unwrap, &kek());
        assert_eq!(refused.kind, Credentials);
        assert!(refused.message.contains("Invalid client secret") && !refused.message.contains("Trace"), "{refused:?}");
        assert!(refused.hint.unwrap().contains("AZURE_CLIENT_SECRET"));
        for silent in [
            http(StatusCode::ServiceUnavailable),
            http(StatusCode::TooManyRequests),
            Error::with_message(ErrorKind::Connection, "tcp connect error: Connection refused"),
            Error::with_message(ErrorKind::Io, "x"),
        ] {
            assert_eq!(sort(&credential(silent), Asked::Unwrap, &kek()).kind, Unreachable);
        }
        let none = Error::with_message(ErrorKind::Credential, "AzureCliCredential authentication failed. not found");
        let none = sort(&none, Asked::Unwrap, &kek());
        assert_eq!(none.kind, Credentials);
        assert!(none.hint.unwrap().contains("az login"));
    }

    #[test]
    fn silence_says_what_kind_of_silence() {
        for (text, words, hint) in [
            ("client error (Connect): invalid peer certificate: UnknownIssuer", "certificate", "KMSFS_CA_FILE"),
            ("client error (Connect): dns error: failed to lookup address information", "no address", "deleted"),
            ("tcp connect error: Connection refused (os error 111)", "connection refused", ""),
        ] {
            let error = sort(&Error::with_message(ErrorKind::Connection, text), Asked::Unwrap, &kek());
            assert_eq!(error.kind, Unreachable);
            assert!(error.message.contains(words), "{}", error.message);
            assert!(error.hint.unwrap_or_default().contains(hint));
        }
    }

    #[test]
    fn hints_fit_the_place_of_the_key() {
        let at = |url: &str| key_disabled(&AzureKek::parse(url).unwrap(), None).hint.unwrap();
        assert!(at("https://devvault.localhost:1/keys/k").contains("kmsfs dev-vault key enable k --state DIR"));
        assert!(at("https://h.managedhsm.azure.net/keys/k").contains("--hsm-name h --name k"));
        let pinned = at("https://v.vault.azure.net/keys/k/0123456789abcdef0123456789abcdef");
        assert!(pinned.ends_with("--version 0123456789abcdef0123456789abcdef"), "{pinned}");
    }
}
