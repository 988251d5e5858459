//! Who to be at a Vault or OpenBao server. Depends on nothing.

use std::path::PathBuf;
use zeroize::Zeroizing;

/// The token that Kubernetes gives to a pod.
const SERVICE_ACCOUNT_TOKEN: &str = "/var/run/secrets/kubernetes.io/serviceaccount/token";

/// How to log in, and in which namespace the key is.
#[derive(Clone, Debug)]
pub struct TransitOptions {
    /// Who to be.
    pub login: TransitLogin,
    /// The one server that may see the identity. A volume's record says which server has the key, and whoever can write
    /// to the volume's directory can change that: so it is not taken from there.
    pub address: Option<String>,
    /// The namespace, if not the root one.
    pub namespace: Option<String>,
}

/// Which identity to show. Chosen by [`TransitLogin::choose`].
#[derive(Clone)]
pub enum TransitLogin {
    /// A token that somebody else got.
    Token(Zeroizing<String>),
    /// A file with a token, which `bao login` or an agent writes; read again when the token is no longer accepted.
    TokenFile(PathBuf),
    /// An AppRole.
    AppRole {
        /// Where the auth method is mounted, below `auth/`.
        path: String,
        /// The role's id.
        role: String,
        /// Its secret id; there are roles without one.
        secret: Option<SecretId>,
    },
    /// A Kubernetes service account, or whatever logs in with a role and a signed token.
    Kubernetes {
        /// Where the auth method is mounted, below `auth/`.
        path: String,
        /// The role's name.
        role: String,
        /// The file with the signed token, read at each login.
        token_file: PathBuf,
    },
    /// None; the reason, for the moment that one is needed.
    None(String),
}

/// The secret half of an AppRole.
#[derive(Clone)]
pub enum SecretId {
    /// The secret id itself.
    Value(Zeroizing<String>),
    /// The file that it is in, read at each login.
    File(PathBuf),
}

impl std::fmt::Debug for TransitLogin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl TransitOptions {
    /// The options that these variables describe: those of [`TransitLogin::choose`], `BAO_ADDR` and `BAO_NAMESPACE`, or
    /// `VAULT_ADDR` and `VAULT_NAMESPACE`.
    pub fn from_variables(variable: impl Fn(&str) -> Option<String>) -> Self {
        let namespace = either(&variable, "NAMESPACE").map(|name| name.trim_matches('/').to_owned());
        let address = either(&variable, "ADDR");
        Self { login: TransitLogin::choose(variable), address, namespace: namespace.filter(|name| !name.is_empty()) }
    }
}

impl TransitLogin {
    /// What kind of identity it is, for messages.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Token(_) => "token",
            Self::TokenFile(_) => "token file",
            Self::AppRole { .. } => "AppRole",
            Self::Kubernetes { .. } => "Kubernetes role",
            Self::None(_) => "none",
        }
    }

    /// Chooses by what is configured:
    ///
    /// 1. `KMSFS_TRANSIT_LOGIN` names it: `token`, `token-file`, `approle`, `kubernetes`;
    /// 2. `BAO_TOKEN` or `VAULT_TOKEN`: a token;
    /// 3. `KMSFS_TRANSIT_TOKEN_FILE`: a token file;
    /// 4. `KMSFS_TRANSIT_ROLE_ID`: an AppRole, with `KMSFS_TRANSIT_SECRET_ID` or `KMSFS_TRANSIT_SECRET_ID_FILE`;
    /// 5. `KMSFS_TRANSIT_ROLE`: a Kubernetes role, with the pod's own token or `KMSFS_TRANSIT_JWT_FILE`;
    /// 6. otherwise `~/.vault-token`, where `bao login` and `vault login` leave theirs.
    ///
    /// `KMSFS_TRANSIT_LOGIN_PATH` is where the auth method is mounted, if not at `approle` or `kubernetes`.
    pub fn choose(variable: impl Fn(&str) -> Option<String>) -> Self {
        let get = |name: &str| variable(name).filter(|value| !value.is_empty());
        let named = |name: &str| get(&format!("KMSFS_TRANSIT_{name}"));
        let kind = match named("LOGIN").as_deref() {
            Some(kind @ ("token" | "token-file" | "approle" | "kubernetes")) => kind.to_owned(),
            Some(other) => {
                let choice = "it can be token, token-file, approle or kubernetes";
                return Self::None(format!("KMSFS_TRANSIT_LOGIN is '{other}'; {choice}"));
            }
            None if either(&variable, "TOKEN").is_some() => "token".into(),
            None if named("TOKEN_FILE").is_some() => "token-file".into(),
            None if named("ROLE_ID").is_some() => "approle".into(),
            None if named("ROLE").is_some() => "kubernetes".into(),
            None => "token-file".into(),
        };
        let need =
            |what: &str, value: Option<String>| value.ok_or_else(|| format!("{kind} needs {what}, which is not set"));
        let path = named("LOGIN_PATH").map(|path| path.trim_matches('/').trim_start_matches("auth/").to_owned());
        let path = path.unwrap_or_else(|| kind.clone());
        let choice = match kind.as_str() {
            "token" => {
                need("BAO_TOKEN or VAULT_TOKEN", either(&variable, "TOKEN")).map(|token| Self::Token(token.into()))
            }
            "approle" => need("KMSFS_TRANSIT_ROLE_ID", named("ROLE_ID")).map(|role| {
                let file = named("SECRET_ID_FILE").map(|file| SecretId::File(file.into()));
                let secret = named("SECRET_ID").map(|secret| SecretId::Value(secret.into())).or(file);
                Self::AppRole { path, role, secret }
            }),
            "kubernetes" => need("KMSFS_TRANSIT_ROLE", named("ROLE")).map(|role| {
                let token_file = named("JWT_FILE").unwrap_or_else(|| SERVICE_ACCOUNT_TOKEN.to_owned()).into();
                Self::Kubernetes { path, role, token_file }
            }),
            _ => {
                let home = || get("HOME").map(|home| format!("{home}/.vault-token"));
                need("KMSFS_TRANSIT_TOKEN_FILE", named("TOKEN_FILE").or_else(home))
                    .map(|file| Self::TokenFile(file.into()))
            }
        };
        choice.unwrap_or_else(Self::None)
    }
}

/// A variable of OpenBao, or else of Vault.
fn either(variable: &impl Fn(&str) -> Option<String>, name: &str) -> Option<String> {
    let get = |name: String| variable(&name).filter(|value| !value.is_empty());
    get(format!("BAO_{name}")).or_else(|| get(format!("VAULT_{name}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(variables: &[(&str, &str)]) -> TransitOptions {
        let find = |name: &str| variables.iter().find(|(n, _)| *n == name).map(|(_, value)| (*value).to_owned());
        TransitOptions::from_variables(find)
    }

    #[test]
    fn the_most_direct_configured_identity_is_chosen() {
        let home = ("HOME", "/home/u");
        let role = ("KMSFS_TRANSIT_ROLE", "r");
        let approle = ("KMSFS_TRANSIT_ROLE_ID", "id");
        let token = ("VAULT_TOKEN", "t");
        let name = |variables: &[(&'static str, &'static str)]| options(variables).login.name();
        assert_eq!(name(&[home, role, approle, token]), "token");
        assert_eq!(name(&[home, role, approle]), "AppRole");
        assert_eq!(name(&[home, role]), "Kubernetes role");
        assert_eq!(name(&[home]), "token file");
        assert_eq!(name(&[]), "none");
        assert_eq!(name(&[token, approle, ("KMSFS_TRANSIT_LOGIN", "approle")]), "AppRole");
        assert_eq!(name(&[token, ("KMSFS_TRANSIT_LOGIN", "password")]), "none");
        match options(&[("VAULT_TOKEN", "v"), ("BAO_TOKEN", "b")]).login {
            TransitLogin::Token(token) => assert_eq!(*token, "b"),
            other => panic!("{other:?}"),
        }
        match options(&[approle, ("KMSFS_TRANSIT_LOGIN_PATH", "auth/team/approle/")]).login {
            TransitLogin::AppRole { path, secret: None, .. } => assert_eq!(path, "team/approle"),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn half_an_identity_says_what_is_missing_and_nothing_shows_a_secret() {
        match options(&[("KMSFS_TRANSIT_LOGIN", "kubernetes")]).login {
            TransitLogin::None(reason) => assert!(reason.contains("KMSFS_TRANSIT_ROLE,"), "{reason}"),
            other => panic!("{other:?}"),
        }
        let options = options(&[("BAO_TOKEN", "hunter2"), ("VAULT_NAMESPACE", "/a/b/")]);
        assert_eq!(options.namespace.as_deref(), Some("a/b"));
        assert!(!format!("{options:?}").contains("hunter2"));
    }
}
