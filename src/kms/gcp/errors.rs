//! One table: what Google Cloud KMS says, and what it amounts to. No I/O.
//! Invariant: only an answer of Google's own is a refusal, and a reply whose checksums are wrong is no answer.

use crate::kms::rest::first_line;
use crate::kms::{GcpKek, KmsError, KmsErrorKind, THROTTLED};
use serde::Deserialize;
use serde_json::Value;

/// What was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Asked {
    Key,
    Wrap,
    Unwrap,
}

#[derive(Default, Deserialize)]
struct Body {
    #[serde(default)]
    error: Status,
}

/// `google.rpc.Status` as REST writes it.
#[derive(Default, Deserialize)]
struct Status {
    #[serde(default)]
    message: String,
    #[serde(default)]
    status: String,
    #[serde(default)]
    details: Vec<Detail>,
}

/// `google.rpc.ErrorInfo` has a reason, `google.rpc.PreconditionFailure` has violations.
#[derive(Deserialize)]
struct Detail {
    #[serde(default)]
    reason: Value,
    #[serde(default)]
    violations: Value,
}

impl Status {
    /// The word that says most: `SERVICE_DISABLED`, `KEY_DISABLED`, else the status itself.
    fn code(&self) -> Option<String> {
        let reasons = self.details.iter().filter_map(|detail| detail.reason.as_str());
        let violations = self.details.iter().filter_map(|detail| detail.violations.as_array()).flatten();
        let types = violations.filter_map(|violation| violation.get("type").and_then(Value::as_str));
        let word = reasons.chain(types).chain([self.status.as_str()]).find(|word| !word.is_empty())?;
        let is_word = word.len() <= 64 && word.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
        is_word.then(|| word.to_owned())
    }
}

/// Sorts an answer of the service that is not a success.
pub(super) fn sort(status: u16, body: &[u8], asked: Asked, kek: &GcpKek) -> KmsError {
    use KmsErrorKind::{Credentials, Damaged, Misconfigured, Refused, Unreachable};
    let said = serde_json::from_slice::<Body>(body).unwrap_or_default().error;
    let code = said.code();
    let message = match first_line(&said.message) {
        empty if empty.is_empty() => format!("HTTP status {status}"),
        message => message,
    };
    let error = |kind, what: &str| KmsError { code: code.clone(), ..KmsError::new(kind, format!("{what}: {message}")) };
    match said.status.as_str() {
        // What was sent did not arrive as it left.
        "INVALID_ARGUMENT" if message.to_ascii_lowercase().contains("crc32c") => garbled("a request"),
        "FAILED_PRECONDITION" => precondition(error(Refused, &format!("{kek} cannot be used now")), kek),
        "PERMISSION_DENIED" => permission(error, code.as_deref(), kek),
        "NOT_FOUND" => error(Refused, &format!("Google Cloud KMS has no {kek}"))
            .hint(format!("check the name: gcloud kms keys describe {}", named(kek))),
        "INVALID_ARGUMENT" if asked == Asked::Unwrap && code.as_deref() != Some("API_KEY_INVALID") => {
            error(Damaged, &format!("the wrapped secret is not one of {kek}"))
        }
        "INVALID_ARGUMENT" | "UNIMPLEMENTED" | "OUT_OF_RANGE" => {
            error(Misconfigured, &format!("{kek} cannot wrap like this")).hint(SYMMETRIC)
        }
        "UNAUTHENTICATED" => KmsError {
            code: code.clone().or_else(|| Some("UNAUTHENTICATED".to_owned())),
            ..error(Credentials, "Google does not accept the credentials")
        }
        .hint(
            "check GOOGLE_APPLICATION_CREDENTIALS and this machine's clock; or: gcloud auth application-default login",
        ),
        "RESOURCE_EXHAUSTED" => throttled(error(Unreachable, "Google Cloud KMS has too much to do")),
        _ if status == 429 => throttled(error(Unreachable, "Google Cloud KMS has too much to do")),
        "UNAVAILABLE" | "INTERNAL" | "DEADLINE_EXCEEDED" | "ABORTED" | "CANCELLED" | "UNKNOWN" | "DATA_LOSS" => {
            error(Unreachable, "Google Cloud KMS failed")
        }
        _ => error(Unreachable, &format!("Google Cloud KMS failed with status {status}")),
    }
}

fn throttled(error: KmsError) -> KmsError {
    KmsError { code: Some(THROTTLED.to_owned()), ..error }
}

/// A version that is not enabled; which of the states it is in is in the message, or in a violation.
fn precondition(error: KmsError, kek: &GcpKek) -> KmsError {
    let words = format!("{} {}", error.code.as_deref().unwrap_or_default(), error.message).to_ascii_lowercase();
    let (code, hint) = if words.contains("destroy") {
        ("DESTROYED", format!("if it is only scheduled: {}, then enable it", version_command("restore", kek)))
    } else if words.contains("disabled") {
        ("KEY_DISABLED", format!("enable it: {}", version_command("enable", kek)))
    } else {
        return error.hint(format!("see its state: gcloud kms keys versions list {}", kek.gcloud()));
    };
    KmsError { code: Some(code.to_owned()), ..error }.hint(hint)
}

/// All of them are refusals; which of them it is makes another hint.
fn permission(error: impl Fn(KmsErrorKind, &str) -> KmsError, code: Option<&str>, kek: &GcpKek) -> KmsError {
    let refused = |what: &str| error(KmsErrorKind::Refused, what);
    match code {
        Some("SERVICE_DISABLED") => refused(&format!("Google Cloud KMS is turned off in {}", kek.project))
            .hint(format!("gcloud services enable cloudkms.googleapis.com --project {}", kek.project)),
        Some("BILLING_DISABLED" | "ACCOUNT_STATE_INVALID" | "CONSUMER_SUSPENDED" | "CONSUMER_INVALID") => {
            refused(&format!("the project {} may use no services", kek.project))
                .hint("see to the project and its billing, or to the quota project of the credentials")
        }
        Some("SECURITY_POLICY_VIOLATED" | "VPC_SERVICE_CONTROLS") => {
            refused(&format!("VPC Service Controls keep this machine from {kek}"))
                .hint("let it through the perimeter around the key's project")
        }
        _ => refused(&format!("Google Cloud KMS refuses {kek}")).hint(format!(
            "grant the identity roles/cloudkms.cryptoKeyEncrypterDecrypter: gcloud kms keys add-iam-policy-binding {} \
             --role roles/cloudkms.cryptoKeyEncrypterDecrypter --member MEMBER; a fresh grant takes minutes to be seen",
            named(kek)
        )),
    }
}

/// Whether it was refused to the identity, and not by the state of the key.
pub(super) fn is_about_rights(error: &KmsError) -> bool {
    matches!(error.code.as_deref(), Some("PERMISSION_DENIED" | "IAM_PERMISSION_DENIED"))
}

/// What to do about a key of another kind.
pub(super) const SYMMETRIC: &str = "a KEK is a symmetric key: gcloud kms keys create --purpose encryption";

/// Something answered that is not Google Cloud KMS in good health.
pub(super) fn not_google(what: &str) -> KmsError {
    KmsError::new(KmsErrorKind::Unreachable, format!("the reply is not one of Google Cloud KMS: {what}"))
}

/// The [`KmsError::code`] of a request or reply that arrived with other bytes than it left with.
pub(super) const CHECKSUM: &str = "ChecksumMismatch";

/// A request or a reply was changed on its way.
pub(super) fn garbled(what: &str) -> KmsError {
    let error = KmsError::new(KmsErrorKind::Unreachable, format!("{what} was damaged on its way: wrong CRC32C"));
    KmsError { code: Some(CHECKSUM.to_owned()), ..error }
}

fn version_command(what: &str, kek: &GcpKek) -> String {
    let version = kek.version.map_or("N".to_owned(), |version| version.to_string());
    format!("gcloud kms keys versions {what} {version} {}", kek.gcloud())
}

/// A key in the commands that take its name first.
pub(super) fn named(kek: &GcpKek) -> String {
    let GcpKek { project, location, ring, key, .. } = kek;
    format!("{key} --project {project} --location {location} --keyring {ring}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use KmsErrorKind::{Credentials, Damaged, Misconfigured, Refused, Unreachable};
    use serde_json::json;

    fn kek() -> GcpKek {
        GcpKek::parse("projects/p/locations/l/keyRings/r/cryptoKeys/k/cryptoKeyVersions/2").unwrap()
    }

    fn body(status: &str, message: &str, details: Value) -> Vec<u8> {
        json!({"error": {"code": 400, "status": status, "message": message, "details": details}}).to_string().into()
    }

    #[test]
    fn every_answer_of_the_service_amounts_to_what_the_table_says() {
        let reason = |reason: &str| json!([{"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": reason}]);
        let violation = |kind: &str| json!([{"violations": [{"type": kind, "subject": "s"}]}]);
        let disabled = "projects/p/… is not enabled, current state is: DISABLED.";
        type Case = (u16, Vec<u8>, KmsErrorKind, Option<&'static str>, &'static str);
        let cases: [Case; 21] = [
            (400, body("FAILED_PRECONDITION", disabled, json!([])), Refused, Some("KEY_DISABLED"), "versions enable 2"),
            (
                400,
                body("FAILED_PRECONDITION", "m", violation("KEY_DISABLED")),
                Refused,
                Some("KEY_DISABLED"),
                "--keyring r --key k",
            ),
            (
                400,
                body("FAILED_PRECONDITION", "current state is: DESTROY_SCHEDULED", json!([])),
                Refused,
                Some("DESTROYED"),
                "versions restore 2",
            ),
            (400, body("FAILED_PRECONDITION", "m", json!([])), Refused, Some("FAILED_PRECONDITION"), "versions list"),
            (
                403,
                body("PERMISSION_DENIED", "m", reason("IAM_PERMISSION_DENIED")),
                Refused,
                Some("IAM_PERMISSION_DENIED"),
                "add-iam-policy-binding k --project p",
            ),
            (403, body("PERMISSION_DENIED", "m", json!([])), Refused, Some("PERMISSION_DENIED"), "roles/cloudkms"),
            (
                403,
                body("PERMISSION_DENIED", "m", reason("SERVICE_DISABLED")),
                Refused,
                Some("SERVICE_DISABLED"),
                "gcloud services enable",
            ),
            (
                403,
                body("PERMISSION_DENIED", "m", reason("BILLING_DISABLED")),
                Refused,
                Some("BILLING_DISABLED"),
                "billing",
            ),
            (404, body("NOT_FOUND", "m", json!([])), Refused, Some("NOT_FOUND"), "gcloud kms keys describe k"),
            (400, body("INVALID_ARGUMENT", "m", json!([])), Damaged, Some("INVALID_ARGUMENT"), ""),
            (401, body("UNAUTHENTICATED", "m", json!([])), Credentials, Some("UNAUTHENTICATED"), "clock"),
            (
                401,
                body("UNAUTHENTICATED", "m", reason("ACCESS_TOKEN_EXPIRED")),
                Credentials,
                Some("ACCESS_TOKEN_EXPIRED"),
                "GOOGLE_APPLICATION_CREDENTIALS",
            ),
            (429, body("RESOURCE_EXHAUSTED", "m", json!([])), Unreachable, Some(THROTTLED), ""),
            (429, b"".to_vec(), Unreachable, Some(THROTTLED), ""),
            (503, body("UNAVAILABLE", "m", json!([])), Unreachable, Some("UNAVAILABLE"), ""),
            (500, body("INTERNAL", "m", json!([])), Unreachable, Some("INTERNAL"), ""),
            (504, body("DEADLINE_EXCEEDED", "m", json!([])), Unreachable, Some("DEADLINE_EXCEEDED"), ""),
            (
                400,
                body("INVALID_ARGUMENT", "ciphertext_crc32c: checksum mismatch", json!([])),
                Unreachable,
                Some(CHECKSUM),
                "",
            ),
            // From something in between: nothing about the key.
            (403, b"<html>".to_vec(), Unreachable, None, ""),
            (404, b"<html>".to_vec(), Unreachable, None, ""),
            (302, b"".to_vec(), Unreachable, None, ""),
        ];
        for (status, body, kind, code, hint) in cases {
            let text = String::from_utf8_lossy(&body).into_owned();
            let error = sort(status, &body, Asked::Unwrap, &kek());
            assert_eq!((error.kind, error.code.as_deref()), (kind, code), "{status} {text}");
            assert!(error.hint.as_deref().unwrap_or_default().contains(hint), "{text}: {:?}", error.hint);
        }
    }

    #[test]
    fn a_bad_argument_is_damage_only_for_an_unwrap() {
        for asked in [Asked::Key, Asked::Wrap] {
            assert_eq!(sort(400, &body("INVALID_ARGUMENT", "m", json!([])), asked, &kek()).kind, Misconfigured);
        }
    }

    #[test]
    fn a_message_is_one_line_and_a_code_one_word() {
        let error = sort(403, &body("PERMISSION_DENIED", "No.\r\nmore", json!([])), Asked::Unwrap, &kek());
        assert!(error.message.ends_with(": No"), "{}", error.message);
        let error = sort(403, &body("PERMISSION_DENIED", "m", json!([{"reason": "a\u{1b}b"}])), Asked::Unwrap, &kek());
        assert_eq!(error.code, None);
    }
}
