//! A file of application default credentials, as Google writes it. No I/O.
//! Invariant: an [`Account`] can be asked for a token, and its `Debug` shows no secret.

use crate::kms::{KmsError, KmsErrorKind, rest};
use reqwest::Url;
use serde::Deserialize;
use std::path::PathBuf;
use zeroize::Zeroizing;

/// Where Google takes refresh tokens and the grants of service accounts.
const TOKEN_URI: &str = "https://oauth2.googleapis.com/token";

/// Who to be, and the project that pays for the calls if it is not the key's.
pub(super) struct Account {
    pub(super) identity: Identity,
    pub(super) quota_project: Option<String>,
    /// Where to become another service account in the end.
    pub(super) impersonate: Option<Url>,
}

/// Whoever asks for a token.
pub(super) enum Identity {
    /// A service account with a key of its own.
    Service { email: String, key_id: Option<String>, key: Zeroizing<String>, token_uri: Url },
    /// A person who logged in.
    User { client: String, client_secret: Zeroizing<String>, refresh_token: Zeroizing<String>, token_uri: Url },
    /// A token of somebody else's, in a file that is renewed; in JSON, it is in this field.
    External { audience: String, token_type: String, token_url: Url, file: PathBuf, field: Option<String> },
}

#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum File {
    ServiceAccount {
        client_email: String,
        private_key_id: Option<String>,
        private_key: Zeroizing<String>,
        token_uri: Option<String>,
        quota_project_id: Option<String>,
    },
    AuthorizedUser {
        client_id: String,
        client_secret: Zeroizing<String>,
        refresh_token: Zeroizing<String>,
        token_uri: Option<String>,
        quota_project_id: Option<String>,
    },
    ExternalAccount {
        audience: String,
        subject_token_type: String,
        token_url: String,
        credential_source: Source,
        service_account_impersonation_url: Option<String>,
        quota_project_id: Option<String>,
    },
    ImpersonatedServiceAccount {
        service_account_impersonation_url: String,
        source_credentials: Box<File>,
        quota_project_id: Option<String>,
    },
}

#[derive(Deserialize)]
struct Source {
    file: Option<PathBuf>,
    #[serde(default)]
    format: Format,
}

#[derive(Default, Deserialize)]
struct Format {
    #[serde(default, rename = "type")]
    kind: String,
    subject_token_field_name: Option<String>,
}

impl Account {
    /// Reads the content of a credentials file.
    ///
    /// # Errors
    /// [`KmsErrorKind::Credentials`] for something else than a credentials file of a kind that is known.
    pub(super) fn parse(text: &[u8]) -> Result<Self, KmsError> {
        // What the parser says may quote the file.
        let file = serde_json::from_slice(text).map_err(|_| {
            wrong("is not one of a service account, a login, or a workload identity with its token in a file")
        })?;
        Self::of(file)
    }

    fn of(file: File) -> Result<Self, KmsError> {
        let account = |identity, quota_project| Self { identity, quota_project, impersonate: None };
        Ok(match file {
            File::ServiceAccount { client_email, private_key_id, private_key, token_uri, quota_project_id } => {
                let token_uri = url(token_uri.as_deref().unwrap_or(TOKEN_URI))?;
                let identity =
                    Identity::Service { email: client_email, key_id: private_key_id, key: private_key, token_uri };
                account(identity, quota_project_id)
            }
            File::AuthorizedUser { client_id, client_secret, refresh_token, token_uri, quota_project_id } => {
                let token_uri = url(token_uri.as_deref().unwrap_or(TOKEN_URI))?;
                account(Identity::User { client: client_id, client_secret, refresh_token, token_uri }, quota_project_id)
            }
            File::ExternalAccount {
                audience,
                subject_token_type: token_type,
                token_url,
                credential_source,
                service_account_impersonation_url,
                quota_project_id,
            } => {
                let (file, field) = credential_source.file()?;
                let token_url = url(&token_url)?;
                let identity = Identity::External { audience, token_type, token_url, file, field };
                let impersonate = service_account_impersonation_url.as_deref().map(url).transpose()?;
                Self { impersonate, ..account(identity, quota_project_id) }
            }
            File::ImpersonatedServiceAccount {
                service_account_impersonation_url,
                source_credentials,
                quota_project_id,
            } => {
                let source = Self::of(*source_credentials)?;
                if source.impersonate.is_some() {
                    return Err(wrong("impersonates twice"));
                }
                let quota_project = quota_project_id.or(source.quota_project);
                let impersonate = Some(url(&service_account_impersonation_url)?);
                Self { identity: source.identity, quota_project, impersonate }
            }
        })
    }

    /// What kind it is, for messages.
    pub(super) fn name(&self) -> &'static str {
        match self.identity {
            Identity::Service { .. } => "service account",
            Identity::User { .. } => "login",
            Identity::External { .. } => "workload identity",
        }
    }

    /// The host that is asked for its token.
    pub(super) fn host(&self) -> &str {
        let url = match &self.identity {
            Identity::Service { token_uri, .. } | Identity::User { token_uri, .. } => token_uri,
            Identity::External { token_url, .. } => token_url,
        };
        url.host_str().unwrap_or_default()
    }
}

impl Source {
    /// The file with the token, and the field of it.
    fn file(self) -> Result<(PathBuf, Option<String>), KmsError> {
        let field = match (self.format.kind.as_str(), self.format.subject_token_field_name) {
            ("json", Some(field)) => Some(field),
            ("" | "text", _) => None,
            _ => return Err(wrong("has a token of an unknown format")),
        };
        let file = self.file.ok_or_else(|| {
            wrong("has its token elsewhere than in a file (a URL, a program or AWS), which is not supported")
        })?;
        Ok((file, field))
    }
}

impl std::fmt::Debug for Account {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

fn url(text: &str) -> Result<Url, KmsError> {
    rest::endpoint(text).map_err(|what| wrong(&format!("names a token server that cannot be one: {what}")))
}

fn wrong(what: &str) -> KmsError {
    KmsError::new(KmsErrorKind::Credentials, format!("the file with Google credentials {what}"))
        .hint("make one: gcloud auth application-default login, or gcloud iam service-accounts keys create")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    const IMPERSONATE: &str = "https://iamcredentials.googleapis.com/v1/x:generateAccessToken";

    fn parse(document: &Value) -> Result<Account, KmsError> {
        Account::parse(document.to_string().as_bytes())
    }

    fn external(source: Value) -> Value {
        json!({
            "type": "external_account", "audience": "//iam.googleapis.com/x", "credential_source": source,
            "subject_token_type": "urn:ietf:params:oauth:token-type:jwt", "token_url": "https://sts.googleapis.com/v1/token",
        })
    }

    #[test]
    fn each_kind_of_file_is_read() {
        let service = json!({"type": "service_account", "client_email": "a@p.iam.gserviceaccount.com",
            "private_key_id": "1", "private_key": "PEM", "project_id": "p"});
        let account = parse(&service).unwrap();
        let Identity::Service { email, key_id, token_uri, .. } = &account.identity else { panic!("{account:?}") };
        assert_eq!((email.as_str(), key_id.as_deref()), ("a@p.iam.gserviceaccount.com", Some("1")));
        assert_eq!(token_uri.as_str(), TOKEN_URI);

        let user = json!({"type": "authorized_user", "client_id": "c", "client_secret": "s", "refresh_token": "r",
            "quota_project_id": "q"});
        assert_eq!(parse(&user).unwrap().quota_project.as_deref(), Some("q"));

        let format = json!({"type": "json", "subject_token_field_name": "t"});
        let mut federated = external(json!({"file": "/token", "format": format}));
        federated["service_account_impersonation_url"] = json!(IMPERSONATE);
        let account = parse(&federated).unwrap();
        assert_eq!((account.host(), account.impersonate.is_some()), ("sts.googleapis.com", true));
        let Identity::External { file, field, .. } = account.identity else { panic!("no workload identity") };
        assert_eq!((file, field.as_deref()), (PathBuf::from("/token"), Some("t")));

        let impersonated = json!({"type": "impersonated_service_account", "source_credentials": user,
            "service_account_impersonation_url": IMPERSONATE});
        let account = parse(&impersonated).unwrap();
        assert_eq!((account.name(), account.impersonate.is_some()), ("login", true));
    }

    #[test]
    fn what_cannot_be_used_is_refused_without_being_quoted() {
        let mut clear = external(json!({"file": "/token"}));
        clear["token_url"] = json!("http://sts.example/v1/token");
        for document in [
            json!({"type": "service_account", "private_key": "hunter2"}),
            json!({"type": "gdch_service_account"}),
            json!({"type": "authorized_user", "client_id": "hunter2"}),
            json!("hunter2"),
            external(json!({"url": "http://169.254.169.254/hunter2"})),
            external(json!({"executable": {"command": "hunter2"}})),
            external(json!({"file": "/t", "format": {"type": "json"}})),
            clear,
        ] {
            let error = parse(&document).unwrap_err();
            assert_eq!(error.kind, KmsErrorKind::Credentials, "{document}");
            assert!(!format!("{error:?}").contains("hunter2"), "{error:?}");
        }
    }

    #[test]
    fn debug_output_holds_no_secret() {
        let user = json!({"type": "authorized_user", "client_id": "c", "client_secret": "hunter2", "refresh_token": "hunter2"});
        assert_eq!(format!("{:?}", parse(&user).unwrap()), "login");
    }
}
