//! Which call a request is: its method and path, parsed.

use super::key::Use;
use super::names::KeyName;
use super::refusal::Refusal;
use hyper::Method;

/// An operation of the keys API.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// `POST /keys/NAME/create`.
    Create,
    /// `GET /keys/NAME[/VERSION]`.
    Get,
    /// `GET /keys/NAME/versions`.
    Versions,
    /// `GET /keys`.
    List,
    /// `PATCH /keys/NAME[/VERSION]`.
    Update,
    /// `POST /keys/NAME/rotate`.
    Rotate,
    /// `POST /keys/NAME/VERSION/wrapkey` and its like.
    Use(Use),
    /// `GET /keys/NAME/rotationpolicy`.
    GetRotationPolicy,
    /// `PUT /keys/NAME/rotationpolicy`.
    SetRotationPolicy,
    /// `DELETE /keys/NAME`.
    Delete,
    /// `GET /deletedkeys/NAME`.
    GetDeleted,
    /// `GET /deletedkeys`.
    ListDeleted,
    /// `POST /deletedkeys/NAME/recover`.
    Recover,
    /// `DELETE /deletedkeys/NAME`.
    Purge,
}

impl Operation {
    /// Its name among the counts of the status.
    pub fn name(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Get => "get",
            Self::Versions => "versions",
            Self::List => "list",
            Self::Update => "update",
            Self::Rotate => "rotate",
            Self::Use(Use::Wrap) => "wrapkey",
            Self::Use(Use::Unwrap) => "unwrapkey",
            Self::Use(Use::Encrypt) => "encrypt",
            Self::Use(Use::Decrypt) => "decrypt",
            Self::GetRotationPolicy => "get-rotation-policy",
            Self::SetRotationPolicy => "set-rotation-policy",
            Self::Delete => "delete",
            Self::GetDeleted => "get-deleted",
            Self::ListDeleted => "list-deleted",
            Self::Recover => "recover",
            Self::Purge => "purge",
        }
    }

    /// The permission it needs, as Azure's roles name it.
    pub fn action(self) -> &'static str {
        match self {
            Self::Get | Self::Versions | Self::List | Self::GetRotationPolicy => "Microsoft.KeyVault/vaults/keys/read",
            Self::Create => "Microsoft.KeyVault/vaults/keys/create/action",
            Self::Update | Self::SetRotationPolicy => "Microsoft.KeyVault/vaults/keys/update/action",
            Self::Rotate => "Microsoft.KeyVault/vaults/keys/rotate/action",
            Self::Use(Use::Wrap) => "Microsoft.KeyVault/vaults/keys/wrap/action",
            Self::Use(Use::Unwrap) => "Microsoft.KeyVault/vaults/keys/unwrap/action",
            Self::Use(Use::Encrypt) => "Microsoft.KeyVault/vaults/keys/encrypt/action",
            Self::Use(Use::Decrypt) => "Microsoft.KeyVault/vaults/keys/decrypt/action",
            Self::Delete => "Microsoft.KeyVault/vaults/keys/delete",
            Self::GetDeleted | Self::ListDeleted => "Microsoft.KeyVault/vaults/keys/read",
            Self::Recover => "Microsoft.KeyVault/vaults/keys/recover/action",
            Self::Purge => "Microsoft.KeyVault/vaults/keys/purge/action",
        }
    }
}

/// An operation on a key, on one of its versions, or on none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// What is asked.
    pub operation: Operation,
    /// Of which key. `None` for lists only.
    pub key: Option<KeyName>,
    /// Of which version. `None` is the newest.
    pub version: Option<String>,
}

impl Call {
    /// Parses method and path. Names of operations are compared without regard to case: Microsoft's specification
    /// writes `wrapkey`, some of its clients `wrapKey`. An empty version is the newest one.
    ///
    /// # Errors
    /// 404 for a path outside the API, 405 for a wrong method, 501 for what this server does not have.
    pub fn parse(method: &Method, path: &str) -> Result<Self, Refusal> {
        let path = path.strip_prefix('/').unwrap_or(path);
        let path = path.strip_suffix('/').unwrap_or(path);
        let mut segments = path.split('/');
        let collection = segments.next().unwrap_or_default();
        let rest: Vec<&str> = segments.collect();
        match collection {
            "keys" => Self::live(method, &rest),
            "deletedkeys" => Self::deleted(method, &rest),
            "rng" => Err(Refusal::not_implemented("random bytes")),
            _ => Err(Refusal::no_such_path()),
        }
    }

    /// The key that the request's faults are looked up for.
    pub fn key(&self) -> Option<&KeyName> {
        self.key.as_ref()
    }

    fn live(method: &Method, rest: &[&str]) -> Result<Self, Refusal> {
        let lower = |text: &str| text.to_ascii_lowercase();
        match (method, rest) {
            (&Method::GET, []) => Ok(Self { operation: Operation::List, key: None, version: None }),
            (&Method::POST, ["restore"]) => Err(Refusal::not_implemented("restore")),
            (&Method::PUT, [_]) => Err(Refusal::not_implemented("import")),
            (&Method::GET, [name]) => Self::of(Operation::Get, name, ""),
            (&Method::PATCH, [name]) => Self::of(Operation::Update, name, ""),
            (&Method::DELETE, [name]) => Self::of(Operation::Delete, name, ""),
            (_, [name, word]) => match (method, lower(word).as_str()) {
                (&Method::GET, "versions") => Self::of(Operation::Versions, name, ""),
                (&Method::GET, "rotationpolicy") => Self::of(Operation::GetRotationPolicy, name, ""),
                (&Method::PUT, "rotationpolicy") => Self::of(Operation::SetRotationPolicy, name, ""),
                (&Method::POST, "create") => Self::of(Operation::Create, name, ""),
                (&Method::POST, "rotate") => Self::of(Operation::Rotate, name, ""),
                (&Method::POST, word) => Self::of(operation_named(word)?, name, ""),
                (&Method::GET, _) => Self::of(Operation::Get, name, word),
                (&Method::PATCH, _) => Self::of(Operation::Update, name, word),
                _ => Err(Refusal::method_not_allowed()),
            },
            (&Method::POST, [name, version, word]) => Self::of(operation_named(&lower(word))?, name, version),
            (_, [] | [_] | [_, _, _]) => Err(Refusal::method_not_allowed()),
            _ => Err(Refusal::no_such_path()),
        }
    }

    fn deleted(method: &Method, rest: &[&str]) -> Result<Self, Refusal> {
        match (method, rest) {
            (&Method::GET, []) => Ok(Self { operation: Operation::ListDeleted, key: None, version: None }),
            (&Method::GET, [name]) => Self::of(Operation::GetDeleted, name, ""),
            (&Method::DELETE, [name]) => Self::of(Operation::Purge, name, ""),
            (&Method::POST, [name, word]) if word.eq_ignore_ascii_case("recover") => {
                Self::of(Operation::Recover, name, "")
            }
            (_, [] | [_] | [_, _]) => Err(Refusal::method_not_allowed()),
            _ => Err(Refusal::no_such_path()),
        }
    }

    fn of(operation: Operation, name: &str, version: &str) -> Result<Self, Refusal> {
        let key = name.parse().map_err(|_| Refusal::bad_parameter(format!("Invalid key name: {name:?}.")))?;
        let version = Some(version).filter(|version| !version.is_empty()).map(str::to_owned);
        Ok(Self { operation, key: Some(key), version })
    }
}

fn operation_named(word: &str) -> Result<Operation, Refusal> {
    match word {
        "wrapkey" => Ok(Operation::Use(Use::Wrap)),
        "unwrapkey" => Ok(Operation::Use(Use::Unwrap)),
        "encrypt" => Ok(Operation::Use(Use::Encrypt)),
        "decrypt" => Ok(Operation::Use(Use::Decrypt)),
        "sign" | "verify" | "backup" | "release" | "attestation" => Err(Refusal::not_implemented(word)),
        _ => Err(Refusal::no_such_path()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(method: Method, path: &str) -> Result<(Operation, String, Option<String>), u16> {
        Call::parse(&method, path)
            .map(|call| (call.operation, call.key.map_or(String::new(), |key| key.to_string()), call.version))
            .map_err(|refusal| refusal.status.as_u16())
    }

    #[test]
    fn an_empty_version_is_the_newest() {
        let unwrap = Operation::Use(Use::Unwrap);
        for path in ["/keys/k//unwrapkey", "/keys/k/unwrapkey", "/keys/k//unwrapKey"] {
            assert_eq!(parsed(Method::POST, path), Ok((unwrap, "k".into(), None)), "{path}");
        }
        assert_eq!(parsed(Method::POST, "/keys/k/0a/UnwrapKey"), Ok((unwrap, "k".into(), Some("0a".into()))));
        assert_eq!(parsed(Method::GET, "/keys/k/"), Ok((Operation::Get, "k".into(), None)));
    }

    #[test]
    fn every_path_outside_the_api_is_refused() {
        for (method, path, status) in [
            (Method::GET, "/", 404),
            (Method::GET, "/secrets/k", 404),
            (Method::POST, "/keys/k/0a/guess", 404),
            (Method::POST, "/keys/k/0a/wrapkey/more", 404),
            (Method::DELETE, "/keys", 405),
            (Method::PUT, "/keys/k/0a", 405),
            (Method::GET, "/keys/k/0a/wrapkey", 405),
            (Method::POST, "/keys/k/0a/sign", 501),
            (Method::GET, "/keys/k%2fx", 400),
        ] {
            assert_eq!(parsed(method.clone(), path), Err(status), "{method} {path}");
        }
    }
}
