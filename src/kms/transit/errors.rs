//! One table: what the server says, and what it amounts to. No I/O.
//! Invariant: only an answer of the server itself, a document with `errors`, is a refusal. A proxy's page is silence.

use crate::kms::rest::{Reply, first_line};
use crate::kms::{CallIds, KEY_REPLACED, KmsError, KmsErrorKind, THROTTLED, TransitKek};
use serde::Deserialize;

/// The code of a wrap with a version that may not wrap any more.
pub(super) const VERSION_RETIRED: &str = "VersionRetired";
/// The code of a key that is not there.
pub(super) const KEY_NOT_FOUND: &str = "KeyNotFound";
/// The code of an unwrap that does not authenticate.
pub(super) const NOT_AUTHENTIC: &str = "NotAuthentic";

/// What was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Asked {
    Key,
    Wrap,
    Unwrap,
    Rewrap,
}

#[derive(Deserialize)]
struct Body {
    errors: Vec<String>,
}

/// What the server calls its errors, if this is an answer of the server.
pub(super) fn said(reply: &Reply) -> Option<String> {
    let errors = reply.json::<Body>()?.errors;
    let lines = errors.iter().flat_map(|error| error.lines()).map(str::trim).filter(|line| !line.is_empty());
    // "1 error occurred:" and bullets.
    let lines: Vec<_> =
        lines.filter(|line| !line.ends_with("occurred:")).map(|line| line.trim_start_matches("* ")).collect();
    Some(first_line(&lines.join("; ")))
}

/// Whether a 403 was decided by the token's policies. A token that is unknown to the server has none, and is told so in
/// other words, in which there may be no list of errors.
pub(super) fn is_policy(reply: &Reply) -> bool {
    let text = reply.json::<Body>().map(|body| body.errors.concat()).unwrap_or_default();
    text.contains("error occurred") && !text.contains("invalid token")
}

/// Sorts an answer that is not a success.
pub(super) fn sort(reply: &Reply, asked: Asked, kek: &TransitKek, ids: &CallIds) -> KmsError {
    let mut error = match said(reply) {
        Some(said) => answer(reply.status, &said, asked, kek),
        None => not_transit(&format!("status {} without a word of the server's own", reply.status)),
    };
    if reply.status == 429 {
        error.code = Some(THROTTLED.to_owned());
    }
    KmsError { ids: Box::new(ids.clone()), retry_after: reply.retry_after(), ..error }
}

/// One row for each answer.
fn answer(status: u16, said: &str, asked: Asked, kek: &TransitKek) -> KmsError {
    let key = format!("{}/keys/{}", kek.mount, kek.name);
    let has = |words: &[&str]| words.iter().any(|word| said.contains(word));
    let error = |kind, code: &str, what: String| {
        let what = if said.is_empty() { what } else { format!("{what}: {said}") };
        KmsError { code: Some(code.to_owned()).filter(|code| !code.is_empty()), ..KmsError::new(kind, what) }
    };
    use KmsErrorKind::{Damaged, Misconfigured, Refused, Unreachable};
    let host = kek.host();
    match status {
        400 if has(&["soft-deleted"]) => soft_deleted(kek),
        400 if has(&["too old"]) => error(Refused, "VersionTooOld", format!("{host} refuses {key}"))
            .hint(format!("permit the version again: bao write {key}/config min_decryption_version=VERSION")),
        400 if has(&["no such key version", "minimum encryption key version", "higher than the latest"]) => {
            error(Misconfigured, VERSION_RETIRED, format!("{kek} does not wrap")).hint("name the key without a version")
        }
        400 if has(&["key not found", "unknown key type"]) => key_missing(kek, said),
        400 if has(&["version is too new"]) => {
            error(Refused, "KeyVersionNotFound", format!("{host} has no such version of {key}"))
                .hint("the key was deleted and made anew, or comes from an old backup of the server")
        }
        400 if has(&["refusing", "disallowed", "disabled", "deleted"]) => {
            error(Refused, "", format!("{host} refuses {key}"))
        }
        // The last two: bound in a way that this key does not know. Whether the key has changed, the caller finds out.
        400 if has(&["message authentication failed", "unable to decrypt", "missing 'context'", "non-AEAD"])
            && matches!(asked, Asked::Unwrap | Asked::Rewrap) =>
        {
            error(Damaged, NOT_AUTHENTIC, format!("the wrapped secret is not one of {kek}"))
        }
        400 if matches!(asked, Asked::Unwrap | Asked::Rewrap) => {
            error(Damaged, "", format!("the wrapped secret is not one of {kek}"))
        }
        400 | 405 => error(Misconfigured, "", format!("{host} does not take the request")),
        403 => error(Refused, "PermissionDenied", format!("{host} refuses {key}")).hint(policy_hint(kek)),
        404 if has(&["no handler for route", "unsupported path"]) => {
            error(Refused, "MountNotFound", format!("{host} has no Transit engine at {}", kek.mount)).hint(format!(
                "see where it is: bao secrets list; a new one: bao secrets enable -path={} transit",
                kek.mount
            ))
        }
        404 if has(&["namespace"]) => error(Refused, "NamespaceNotFound", format!("{host} has no such namespace"))
            .hint("check BAO_NAMESPACE or VAULT_NAMESPACE"),
        404 => key_missing(kek, said),
        429 => error(Unreachable, THROTTLED, format!("{host} has too much to do")),
        503 if has(&["sealed"]) => {
            error(Unreachable, "Sealed", format!("{host} is sealed")).hint("bao operator unseal")
        }
        _ => error(Unreachable, "", format!("{host} failed with status {status}")),
    }
}

fn key_missing(kek: &TransitKek, said: &str) -> KmsError {
    let said = if said.is_empty() { String::new() } else { format!(": {said}") };
    let message = format!("{} has no key {}/keys/{}{said}", kek.host(), kek.mount, kek.name);
    KmsError { code: Some(KEY_NOT_FOUND.to_owned()), ..KmsError::new(KmsErrorKind::Refused, message) }.hint(format!(
        "if it was deleted, restore it from a backup; a new one: bao write {}/keys/{} type=aes256-gcm96",
        kek.mount, kek.name
    ))
}

/// The key is deleted, and can be brought back.
pub(super) fn soft_deleted(kek: &TransitKek) -> KmsError {
    let error = KmsError::new(KmsErrorKind::Refused, format!("{kek} is deleted, and can be brought back"));
    KmsError { code: Some("KeySoftDeleted".to_owned()), ..error }
        .hint(format!("bring it back: bao write -f {}/keys/{}/soft-delete-restore", kek.mount, kek.name))
}

/// Under the key's name there is another key now: that which wrapped is gone, as if it were deleted.
pub(super) fn replaced(kek: &TransitKek, why: &str) -> KmsError {
    let message = format!("{kek} is another key now: it was deleted and made anew ({why})");
    KmsError { code: Some(KEY_REPLACED.to_owned()), ..KmsError::new(KmsErrorKind::Refused, message) }
        .hint("restore the key that wrapped from a backup: bao write MOUNT/restore/NAME backup=…")
}

/// The least that the token has to be allowed.
pub(super) fn policy_hint(kek: &TransitKek) -> String {
    let TransitKek { mount, name, .. } = kek;
    format!(
        "give the token a policy with path \"{mount}/encrypt/{name}\" and path \"{mount}/decrypt/{name}\" \
         {{ capabilities = [\"update\"] }} and path \"{mount}/keys/{name}\" {{ capabilities = [\"read\"] }}"
    )
}

/// Something answered that is not a Vault or OpenBao server in good health.
pub(super) fn not_transit(what: &str) -> KmsError {
    KmsError::new(KmsErrorKind::Unreachable, format!("the reply is not one of Vault or OpenBao: {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use KmsErrorKind::{Damaged, Misconfigured, Refused, Unreachable};

    fn kek() -> TransitKek {
        TransitKek::parse("transit+https://bao.example/transit/keys/disk").unwrap()
    }

    /// What OpenBao 2.7 says, word for word.
    #[test]
    fn every_answer_amounts_to_what_the_table_says() {
        let cases = [
            (400, "refusing to use soft-deleted key", Refused, Some("KeySoftDeleted"), "soft-delete-restore"),
            (
                400,
                "ciphertext or signature version is disallowed by policy (too old)",
                Refused,
                Some("VersionTooOld"),
                "min_decryption_version",
            ),
            (400, "encryption key not found", Refused, Some("KeyNotFound"), "backup"),
            (400, "unknown key type existing", Refused, Some("KeyNotFound"), "bao write transit/keys/disk"),
            (400, "invalid ciphertext: version is too new", Refused, Some("KeyVersionNotFound"), "made anew"),
            (400, "missing 'context' for key derivation; the key was created using", Damaged, Some(NOT_AUTHENTIC), ""),
            (
                400,
                "'[0].associated_data' provided for non-AEAD cipher suite rsa-4096",
                Damaged,
                Some(NOT_AUTHENTIC),
                "",
            ),
            (400, "cipher: message authentication failed", Damaged, Some(NOT_AUTHENTIC), ""),
            (400, "invalid ciphertext: could not decode base64", Damaged, None, ""),
            (400, "invalid ciphertext length", Damaged, None, ""),
            (400, "something new is disallowed", Refused, None, ""),
            (403, "permission denied", Refused, Some("PermissionDenied"), "path \"transit/decrypt/disk\""),
            (404, "", Refused, Some("KeyNotFound"), "backup"),
            (
                404,
                "no handler for route \"transit/decrypt/disk\". route entry not found.",
                Refused,
                Some("MountNotFound"),
                "secrets list",
            ),
            (404, "namespace not found", Refused, Some("NamespaceNotFound"), "BAO_NAMESPACE"),
            (405, "unsupported operation", Misconfigured, None, ""),
            (412, "required index state not present", Unreachable, None, ""),
            (429, "request path \"x\": rate limit quota exceeded", Unreachable, Some(THROTTLED), ""),
            (500, "internal error", Unreachable, None, ""),
            (502, "", Unreachable, None, ""),
            (503, "Vault is sealed", Unreachable, Some("Sealed"), "unseal"),
        ];
        for (status, said, kind, code, hint) in cases {
            let error = answer(status, said, Asked::Unwrap, &kek());
            assert_eq!((error.kind, error.code.as_deref()), (kind, code), "{status} {said}");
            assert!(error.hint.as_deref().unwrap_or_default().contains(hint), "{status} {said}: {:?}", error.hint);
        }
        assert_eq!(answer(400, "x", Asked::Key, &kek()).kind, Misconfigured);
        let retired = "requested version for encryption is less than the minimum encryption key version";
        assert_eq!(answer(400, retired, Asked::Wrap, &kek()).code.as_deref(), Some(VERSION_RETIRED));
    }
}
