//! One table: what AWS KMS says, and what it amounts to. No I/O.
//! Invariant: only an answer of the service about the key or the permission to use it is a refusal.

use crate::kms::rest::first_line;
use crate::kms::{AwsKek, AwsResource, KmsError, KmsErrorKind, OPERATION_FORBIDDEN, THROTTLED};
use serde::Deserialize;

/// What was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Asked {
    Key,
    Wrap,
    Unwrap,
}

#[derive(Default, Deserialize)]
struct Body {
    #[serde(default, rename = "__type")]
    kind: String,
    #[serde(default)]
    message: Option<String>,
    /// Some errors have it with a capital letter.
    #[serde(default, rename = "Message")]
    capital: Option<String>,
}

/// Sorts an answer of the service that is not a success. `header` is the reply's `x-amzn-ErrorType`.
pub(super) fn sort(status: u16, header: Option<&str>, body: &[u8], asked: Asked, kek: &AwsKek) -> KmsError {
    use KmsErrorKind::{Damaged, Misconfigured, Refused, Unreachable};
    let body = serde_json::from_slice::<Body>(body).unwrap_or_default();
    let name = if body.kind.is_empty() { header.unwrap_or_default() } else { &body.kind };
    let code = name_only(name);
    let said = match body.message.as_deref().or(body.capital.as_deref()).map(first_line) {
        Some(message) if !message.is_empty() => message,
        _ => format!("HTTP status {status}"),
    };
    let error = |kind, what: &str| KmsError {
        code: Some(code.to_owned()).filter(|code| !code.is_empty()),
        // Some messages begin with what is said here already.
        ..KmsError::new(kind, if said == what { said.clone() } else { format!("{what}: {said}") })
    };
    let host = kek.host();
    match code {
        "DisabledException" => error(Refused, &format!("{kek} is disabled")).hint(enable(kek)),
        "KMSInvalidStateException" => invalid_state(error(Refused, &format!("{kek} cannot be used now")), kek),
        "AccessDeniedException" | "NotAuthorized" | "AccessDenied" => error(Refused, &format!("AWS KMS refuses {kek}")).hint(
            "the key's policy, or a policy of the identity, has to allow kms:DescribeKey, kms:Encrypt and kms:Decrypt",
        ),
        "NotFoundException" => error(Refused, &format!("AWS KMS has no {kek}")).hint(missing(kek)),
        "InvalidKeyUsageException" => {
            // A key that may not decrypt is a refusal to a lease, as with the other clouds.
            let kind = if asked == Asked::Unwrap { Refused } else { Misconfigured };
            let error = error(kind, &format!("{kek} cannot wrap"));
            KmsError { code: Some(OPERATION_FORBIDDEN.to_owned()), ..error }.hint(SYMMETRIC)
        }
        "InvalidCiphertextException" | "IncorrectKeyException" if asked == Asked::Unwrap => {
            error(Damaged, &format!("the wrapped secret is not one of {kek}"))
        }
        "ThrottlingException" | "Throttling" | "LimitExceededException" | "RequestLimitExceeded" => {
            KmsError { code: Some(THROTTLED.to_owned()), ..error(Unreachable, &format!("{host} has too much to do")) }
        }
        "KMSInternalException"
        | "DependencyTimeoutException"
        | "KeyUnavailableException"
        | "InternalFailure"
        | "ServiceUnavailable"
        | "ServiceUnavailableException" => error(Unreachable, &format!("{host} failed")),
        "UnrecognizedClientException"
        | "InvalidClientTokenId"
        | "ExpiredTokenException"
        | "ExpiredToken"
        | "InvalidSignatureException"
        | "SignatureDoesNotMatch"
        | "IncompleteSignature"
        | "IncompleteSignatureException"
        | "MissingAuthenticationToken"
        | "MissingAuthenticationTokenException"
        | "RequestExpired"
        | "OptInRequired" => credentials(error, code, &host),
        "InvalidArnException" => error(Misconfigured, &format!("{kek} is not taken")),
        "DryRunOperationException"
        | "InvalidGrantTokenException"
        | "UnsupportedOperationException"
        | "ValidationException"
        | "ValidationError"
        | "SerializationException"
        | "UnknownOperationException" => {
            // A ciphertext of no length that a key can have is not even looked at.
            let kind = if asked == Asked::Unwrap && code == "ValidationException" { Damaged } else { Misconfigured };
            let error = error(kind, &format!("{host} does not take the request"));
            if kind == Misconfigured { error.hint(SYMMETRIC) } else { error }
        }
        _ if status == 429 => {
            KmsError { code: Some(THROTTLED.to_owned()), ..error(Unreachable, &format!("{host} has too much to do")) }
        }
        // Something between here and AWS, which speaks for itself: nothing about the key.
        _ => error(Unreachable, &format!("{host} failed with status {status}")),
    }
}

/// What the service does not accept is the caller, not the call.
fn credentials(error: impl Fn(KmsErrorKind, &str) -> KmsError, code: &str, host: &str) -> KmsError {
    let error = error(KmsErrorKind::Credentials, &format!("{host} does not accept the credentials"));
    error.hint(match code {
        "ExpiredTokenException" | "ExpiredToken" => "the session has ended: renew it, with a profile: aws sso login",
        "InvalidSignatureException" | "SignatureDoesNotMatch" | "RequestExpired" => {
            "check the secret access key, and this machine's clock: AWS accepts five minutes"
        }
        "OptInRequired" => "the account has not opted in to this region",
        _ => "check them: aws sts get-caller-identity",
    })
}

/// What a key is that cannot be used now, by the words of the message: there is no field for it.
fn invalid_state(error: KmsError, kek: &AwsKek) -> KmsError {
    let lower = error.message.to_ascii_lowercase();
    let (code, hint) = if lower.contains("pending deletion") || lower.contains("pendingdeletion") {
        let ours = command(kek, "cancel-key-deletion");
        ("KeyPendingDeletion", format!("to keep it: {ours}, and then {}", command(kek, "enable-key")))
    } else if lower.contains("pending import") || lower.contains("pendingimport") {
        ("KeyPendingImport", format!("its material is gone: import it again ({})", command(kek, "describe-key")))
    } else {
        return error.hint(format!("see its state: {}", command(kek, "describe-key")));
    };
    KmsError { code: Some(code.to_owned()), ..error }.hint(hint)
}

/// The key is disabled, as its description says.
pub(super) fn disabled(kek: &AwsKek, state: &str) -> KmsError {
    match state {
        "Disabled" => KmsError {
            code: Some("DisabledException".to_owned()),
            ..KmsError::new(KmsErrorKind::Refused, format!("{kek} is disabled"))
        }
        .hint(enable(kek)),
        other => {
            let message = format!("{kek} cannot be used now: its state is {}", first_line(other));
            invalid_state(KmsError::new(KmsErrorKind::Refused, message), kek)
        }
    }
}

/// What to do about a key of another kind.
pub(super) const SYMMETRIC: &str = "a KEK is a symmetric key: aws kms create-key --key-spec SYMMETRIC_DEFAULT";

/// Something answered that is not AWS KMS in good health.
pub(super) fn not_aws(what: &str) -> KmsError {
    KmsError::new(KmsErrorKind::Unreachable, format!("the reply is not one of AWS KMS: {what}"))
}

fn enable(kek: &AwsKek) -> String {
    format!("enable it: {}", command(kek, "enable-key"))
}

fn missing(kek: &AwsKek) -> String {
    match kek.resource {
        AwsResource::Key(_) => {
            "check the region and the id; a key whose time of deletion has come is gone for good".to_owned()
        }
        AwsResource::Alias(_) => {
            format!("check the region and the alias: aws kms list-aliases --region {}", kek.region)
        }
    }
}

fn command(kek: &AwsKek, what: &str) -> String {
    format!("aws kms {what} --region {} --key-id {kek}", kek.region)
}

/// `com.amazonaws.kms#DisabledException:http://…` → `DisabledException`.
fn name_only(kind: &str) -> &str {
    let kind = kind.rsplit_once('#').map_or(kind, |(_, name)| name);
    let kind = kind.split(':').next().unwrap_or_default();
    if kind.len() <= 64 && kind.bytes().all(|b| b.is_ascii_alphanumeric()) { kind } else { "" }
}

#[cfg(test)]
mod tests {
    use super::*;
    use KmsErrorKind::{Credentials, Damaged, Misconfigured, Refused, Unreachable};

    const KEY: &str = "arn:aws:kms:eu-west-1:123456789012:key/k";

    fn kek() -> AwsKek {
        AwsKek::parse(KEY).unwrap()
    }

    fn sorted(status: u16, name: &str, message: &str, asked: Asked) -> KmsError {
        let body = format!(r#"{{"__type":"{name}","message":"{message}"}}"#);
        sort(status, None, body.as_bytes(), asked, &kek())
    }

    #[test]
    fn every_answer_of_the_service_amounts_to_what_the_table_says() {
        let pending = "arn:aws:kms:eu-west-1:123456789012:key/k is pending deletion.";
        let cases = [
            (400, "DisabledException", "m", Refused, "DisabledException", "aws kms enable-key --region eu-west-1"),
            (400, "KMSInvalidStateException", pending, Refused, "KeyPendingDeletion", "aws kms cancel-key-deletion"),
            (400, "KMSInvalidStateException", "k is pending import.", Refused, "KeyPendingImport", "import it"),
            (400, "KMSInvalidStateException", "m", Refused, "KMSInvalidStateException", "aws kms describe-key"),
            (400, "AccessDeniedException", "m", Refused, "AccessDeniedException", "kms:Decrypt"),
            (400, "NotFoundException", "m", Refused, "NotFoundException", "region"),
            (400, "InvalidKeyUsageException", "m", Refused, OPERATION_FORBIDDEN, "SYMMETRIC_DEFAULT"),
            (400, "InvalidCiphertextException", "m", Damaged, "InvalidCiphertextException", ""),
            (400, "IncorrectKeyException", "m", Damaged, "IncorrectKeyException", ""),
            (400, "ValidationException", "m", Damaged, "ValidationException", ""),
            (400, "ThrottlingException", "m", Unreachable, THROTTLED, ""),
            (400, "LimitExceededException", "m", Unreachable, THROTTLED, ""),
            (500, "KMSInternalException", "m", Unreachable, "KMSInternalException", ""),
            (503, "DependencyTimeoutException", "m", Unreachable, "DependencyTimeoutException", ""),
            (500, "KeyUnavailableException", "m", Unreachable, "KeyUnavailableException", ""),
            (400, "UnrecognizedClientException", "m", Credentials, "UnrecognizedClientException", "sts"),
            (400, "ExpiredTokenException", "m", Credentials, "ExpiredTokenException", "aws sso login"),
            (400, "InvalidSignatureException", "m", Credentials, "InvalidSignatureException", "clock"),
            (400, "IncompleteSignatureException", "m", Credentials, "IncompleteSignatureException", "sts"),
            (403, "MissingAuthenticationToken", "m", Credentials, "MissingAuthenticationToken", ""),
            (400, "InvalidArnException", "m", Misconfigured, "InvalidArnException", ""),
            (400, "UnknownOperationException", "m", Misconfigured, "UnknownOperationException", ""),
            (400, "SomethingNewException", "m", Unreachable, "SomethingNewException", ""),
        ];
        for (status, name, message, kind, code, hint) in cases {
            let error = sorted(status, name, message, Asked::Unwrap);
            assert_eq!((error.kind, error.code.as_deref()), (kind, Some(code)), "{name}");
            assert!(error.hint.as_deref().unwrap_or_default().contains(hint), "{name}: {:?}", error.hint);
        }
    }

    #[test]
    fn what_is_not_the_services_own_answer_says_nothing_about_the_key() {
        for (status, body) in
            [(403, "<html>"), (404, ""), (400, "{}"), (502, "<html>"), (503, ""), (302, ""), (407, "")]
        {
            let error = sort(status, None, body.as_bytes(), Asked::Unwrap, &kek());
            assert_eq!((error.kind, error.code), (Unreachable, None), "{status} {body}");
        }
        assert_eq!(sort(429, None, b"", Asked::Unwrap, &kek()).code.as_deref(), Some(THROTTLED));
    }

    #[test]
    fn the_name_is_found_wherever_the_service_puts_it() {
        let name = |header, body: &str| sort(400, header, body.as_bytes(), Asked::Unwrap, &kek()).code;
        let disabled = Some("DisabledException".to_owned());
        assert_eq!(name(None, r#"{"__type":"com.amazonaws.kms#DisabledException","Message":"m"}"#), disabled);
        assert_eq!(name(Some("DisabledException:http://internal.amazon.com/coral/"), "{}"), disabled);
        assert_eq!(name(Some("DisabledException"), ""), disabled);
        assert_eq!(name(Some("<script>"), ""), None);
    }

    #[test]
    fn what_is_wrong_with_the_request_is_damage_only_for_an_unwrap() {
        for asked in [Asked::Key, Asked::Wrap] {
            assert_eq!(sorted(400, "ValidationException", "m", asked).kind, Misconfigured);
            assert_eq!(sorted(400, "InvalidKeyUsageException", "m", asked).kind, Misconfigured);
            assert_eq!(sorted(400, "InvalidCiphertextException", "m", asked).kind, Unreachable);
        }
    }

    #[test]
    fn a_message_is_first_line_without_control_characters() {
        let error =
            sorted(400, "AccessDeniedException", r"User: x is not authorized.\r\nmore\u001b[31m", Asked::Unwrap);
        assert!(error.message.ends_with("User: x is not authorized"), "{}", error.message);
    }

    #[test]
    fn the_state_of_a_key_says_why_it_cannot_be_used() {
        assert_eq!(disabled(&kek(), "Disabled").code.as_deref(), Some("DisabledException"));
        assert_eq!(disabled(&kek(), "PendingDeletion").code.as_deref(), Some("KeyPendingDeletion"));
        assert_eq!(disabled(&kek(), "PendingImport").code.as_deref(), Some("KeyPendingImport"));
        assert_eq!(disabled(&kek(), "Unavailable").kind, Refused);
    }
}
