//! What the vault answers when it does not do what was asked: status, `code`, inner code and message, in the words
//! of Azure Key Vault.

use hyper::StatusCode;
use serde_json::{Value, json};
use std::fmt;

/// One error reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The HTTP status.
    pub status: StatusCode,
    /// `error.code`.
    pub code: &'static str,
    /// `error.innererror.code`, which says *why* a request is forbidden.
    pub inner: Option<&'static str>,
    /// `error.message`.
    pub message: String,
    /// The `Retry-After` header, in seconds.
    pub retry_after: Option<u64>,
}

/// The caller, as the messages about permissions name it.
#[derive(Clone, Copy, Debug)]
pub struct Caller<'a> {
    /// Its application id.
    pub client_id: &'a str,
    /// Its tenant.
    pub tenant_id: &'a str,
}

impl fmt::Display for Caller<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { client_id, tenant_id } = self;
        write!(f, "appid={client_id};oid={client_id};iss=https://sts.windows.net/{tenant_id}/")
    }
}

impl Refusal {
    fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, code, inner: None, message: message.into(), retry_after: None }
    }

    fn forbidden(inner: &'static str, message: impl Into<String>) -> Self {
        Self { inner: Some(inner), ..Self::new(StatusCode::FORBIDDEN, "Forbidden", message) }
    }

    /// 400: a parameter that is missing, malformed, or not supported; also a ciphertext that does not decrypt.
    pub fn bad_parameter(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "BadParameter", message)
    }

    /// 401: no token, or one that is not accepted. The challenge goes with it.
    pub fn unauthorized(message: impl Into<String>) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "Unauthorized", message)
    }

    /// 403: a disabled key.
    pub fn key_disabled(operation: &str) -> Self {
        Self::forbidden("KeyDisabled", format!("Operation {operation} is not allowed on a disabled key."))
    }

    /// 403: an expired key. Only for wrapping and encrypting.
    pub fn key_expired(operation: &str) -> Self {
        Self::forbidden("KeyExpired", format!("Operation {operation} is not allowed on an expired key."))
    }

    /// 403: a key that is not valid yet. Only for wrapping and encrypting.
    pub fn key_not_yet_valid(operation: &str) -> Self {
        Self::forbidden(
            "KeyNotYetValid",
            format!("Operation {operation} is not allowed on a key that is not yet valid."),
        )
    }

    /// 403: the key's `key_ops` do not have this operation.
    pub fn operation_forbidden(operation: &str) -> Self {
        Self::forbidden("KeyOperationForbidden", format!("Operation {operation} is not permitted on this key."))
    }

    /// 403: the caller's role was taken away.
    pub fn role_removed(caller: Caller<'_>, action: &str, resource: &str) -> Self {
        Self::forbidden(
            "ForbiddenByRbac",
            format!(
                "Caller is not authorized to perform action on resource.\r\nIf role assignments, deny assignments or \
                 role definitions were changed recently, please observe propagation time.\r\nCaller: {caller}\r\n\
                 Action: '{action}'\r\nResource: '{resource}'\r\nAssignment: (not found)\r\nDenyAssignmentId: null\
                 \r\nDecisionReason: null\r\nVault: devvault;location=local\r\n"
            ),
        )
    }

    /// 403: the caller's access policy was taken away.
    pub fn policy_removed(caller: Caller<'_>, operation: &str) -> Self {
        Self::forbidden(
            "AccessDenied",
            format!(
                "The user, group or application '{caller}' does not have keys {operation} permission on key vault \
                 'devvault;location=local'. For help resolving this issue, please see \
                 https://go.microsoft.com/fwlink/?linkid=2125287"
            ),
        )
    }

    /// 403: the firewall does not let this address in.
    pub fn firewall(caller: Caller<'_>, address: &str) -> Self {
        Self::forbidden(
            "ForbiddenByFirewall",
            format!(
                "Client address is not authorized and caller is not a trusted service.\r\nClient address: {address}\
                 \r\nCaller: {caller}\r\nVault: devvault;location=local"
            ),
        )
    }

    /// 404: no such key or version, or it is deleted.
    pub fn key_not_found(name: &str) -> Self {
        Self::new(
            StatusCode::NOT_FOUND,
            "KeyNotFound",
            format!(
                "A key with (name/id) {name} was not found in this key vault. If you recently deleted this key you \
                 may be able to recover it using the correct recovery command. For help resolving this issue, please \
                 see https://go.microsoft.com/fwlink/?linkid=2125182"
            ),
        )
    }

    /// 404: nothing deleted has this name.
    pub fn deleted_key_not_found(name: &str) -> Self {
        Self::new(StatusCode::NOT_FOUND, "KeyNotFound", format!("Deleted Key not found: {name}"))
    }

    /// 409: the name belongs to a deleted key.
    pub fn deleted_but_recoverable(name: &str) -> Self {
        Self {
            inner: Some("ObjectIsDeletedButRecoverable"),
            ..Self::new(
                StatusCode::CONFLICT,
                "Conflict",
                format!(
                    "Key {name} is currently in a deleted but recoverable state, and its name cannot be reused; in \
                     this state, the key can only be recovered or purged."
                ),
            )
        }
    }

    /// 404: no such path.
    pub fn no_such_path() -> Self {
        Self::new(StatusCode::NOT_FOUND, "NotFound", "The request path is not one of the keys API.")
    }

    /// 405: the path exists, with another method.
    pub fn method_not_allowed() -> Self {
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "BadParameter", "Method is not allowed.")
    }

    /// 501: the real service has it, this server does not.
    pub fn not_implemented(what: &str) -> Self {
        Self::new(StatusCode::NOT_IMPLEMENTED, "NotImplemented", format!("kmsfs dev-vault does not implement {what}."))
    }

    /// 429, with or without a `Retry-After`.
    pub fn throttled(retry_after: Option<u64>) -> Self {
        Self {
            retry_after,
            ..Self::new(
                StatusCode::TOO_MANY_REQUESTS,
                "Throttled",
                "Request was not processed because too many requests were received. Reason: VaultRequestTypeLimitReached",
            )
        }
    }

    /// 5xx.
    pub fn broken(status: StatusCode) -> Self {
        if status == StatusCode::SERVICE_UNAVAILABLE {
            return Self::new(status, "ServiceUnavailable", "The service is temporarily unavailable.");
        }
        Self::new(status, "InternalServerError", "An unexpected error occurred on the server.")
    }

    /// The body of the reply.
    pub fn body(&self) -> Value {
        let mut error = json!({ "code": self.code, "message": self.message });
        if let Some(inner) = self.inner {
            error["innererror"] = json!({ "code": inner });
        }
        json!({ "error": error })
    }
}

impl From<std::io::Error> for Refusal {
    fn from(error: std::io::Error) -> Self {
        tracing::error!(%error, "the state directory cannot be written");
        Self::broken(StatusCode::INTERNAL_SERVER_ERROR)
    }
}
