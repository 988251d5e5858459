//! Builds the SDK's client: transport, identity, and the labels on each request. Talks to nobody.
//! Invariant: no redirect is followed, nothing is retried, and a token is sent only to a host that its challenge names;
//! the SDK verifies that, and it is not turned off here.

use crate::kms::{AzureKek, ConnectOptions, Credentials, KmsError, KmsErrorKind, rest};
use async_trait::async_trait;
use azure_core::cloud::{CloudConfiguration, CustomConfiguration};
use azure_core::credentials::{Secret, TokenCredential};
use azure_core::http::headers::USER_AGENT;
use azure_core::http::policies::{Policy, PolicyResult};
use azure_core::http::{ClientOptions, Context, HttpClient, Request, RetryOptions, Transport};
use azure_identity::{
    ClientAssertionCredentialOptions, ClientSecretCredential, ClientSecretCredentialOptions, DeveloperToolsCredential,
    ManagedIdentityCredential, ManagedIdentityCredentialOptions, UserAssignedId, WorkloadIdentityCredential,
    WorkloadIdentityCredentialOptions,
};
use azure_security_keyvault_keys::{KeyClient, KeyClientOptions};
use std::sync::Arc;
use url::Url;

/// What is needed to build a client, and to build it anew when its token is no longer accepted.
pub(super) struct Maker {
    kek: AzureKek,
    credentials: Credentials,
    transport: Transport,
    label: Arc<Label>,
}

impl Maker {
    pub(super) fn new(kek: AzureKek, options: &ConnectOptions) -> Result<Self, KmsError> {
        if let Credentials::None(reason) = &options.credentials {
            return Err(KmsError::new(KmsErrorKind::Credentials, reason.clone())
                .hint("set AZURE_TENANT_ID, AZURE_CLIENT_ID and AZURE_CLIENT_SECRET, or log in with 'az login'"));
        }
        let credentials = options.credentials.clone();
        let transport = Transport::new(Arc::new(http_client(&kek, options)?) as Arc<dyn HttpClient>);
        let label = Arc::new(Label(rest::label(options.mount.as_deref())));
        Ok(Self { kek, credentials, transport, label })
    }

    /// A client that has no token yet.
    pub(super) fn make(&self) -> Result<KeyClient, KmsError> {
        let credential = self.credential().map_err(|error| {
            KmsError::new(KmsErrorKind::Credentials, format!("the {} cannot be used: {error}", self.credentials.name()))
                .hint("check AZURE_TENANT_ID, AZURE_CLIENT_ID, AZURE_AUTHORITY_HOST and the token file")
        })?;
        let options = KeyClientOptions { client_options: self.client_options(), ..KeyClientOptions::default() };
        KeyClient::new(self.kek.vault.as_str(), credential, Some(options)).map_err(|error| {
            KmsError::new(KmsErrorKind::Misconfigured, format!("{} cannot be used: {error}", self.kek.vault))
        })
    }

    fn client_options(&self) -> ClientOptions {
        ClientOptions {
            per_try_policies: vec![Arc::clone(&self.label) as Arc<dyn Policy>],
            retry: RetryOptions::none(),
            transport: Some(self.transport.clone()),
            ..ClientOptions::default()
        }
    }

    fn credential(&self) -> azure_core::Result<Arc<dyn TokenCredential>> {
        let at = |authority: &Option<String>| {
            let cloud = Some(Arc::new(cloud(self.kek.host(), authority.as_deref())));
            ClientOptions { cloud, ..self.client_options() }
        };
        Ok(match &self.credentials {
            Credentials::ClientSecret { tenant, client, secret, authority } => ClientSecretCredential::new(
                tenant,
                client.clone(),
                Secret::new(secret.to_string()),
                Some(ClientSecretCredentialOptions { client_options: at(authority) }),
            )?,
            Credentials::WorkloadIdentity { tenant, client, token_file, authority } => {
                WorkloadIdentityCredential::new(Some(WorkloadIdentityCredentialOptions {
                    credential_options: ClientAssertionCredentialOptions { client_options: at(authority) },
                    client_id: Some(client.clone()),
                    tenant_id: Some(tenant.clone()),
                    token_file_path: Some(token_file.clone()),
                }))?
            }
            Credentials::ManagedIdentity { client } => {
                ManagedIdentityCredential::new(Some(ManagedIdentityCredentialOptions {
                    user_assigned_id: client.clone().map(UserAssignedId::ClientId),
                    client_options: self.client_options(),
                }))?
            }
            Credentials::DeveloperTools | Credentials::None(_) => DeveloperToolsCredential::new(None)?,
        })
    }
}

/// Where tokens come from: what is configured, else what goes with the vault's cloud.
fn cloud(host: &str, authority: Option<&str>) -> CloudConfiguration {
    match authority {
        Some(authority) => {
            let mut custom = CustomConfiguration::default();
            custom.authority_host = authority.to_owned();
            custom.into()
        }
        None if host.ends_with(".azure.cn") => CloudConfiguration::AzureChina,
        None if host.ends_with(".usgovcloudapi.net") => CloudConfiguration::AzureGovernment,
        None => CloudConfiguration::AzurePublic,
    }
}

fn http_client(kek: &AzureKek, options: &ConnectOptions) -> Result<reqwest::Client, KmsError> {
    let authority = match &options.credentials {
        Credentials::ClientSecret { authority, .. } | Credentials::WorkloadIdentity { authority, .. } => {
            authority.as_deref()
        }
        _ => None,
    };
    let authority = authority.and_then(|url| Url::parse(url).ok());
    let hosts = [Some(kek.host()), authority.as_ref().and_then(Url::host_str)];
    rest::client(&hosts.into_iter().flatten().collect::<Vec<_>>(), options.ca_file.as_deref())
}

/// Names this mount in every request, so that the vault's own log does too.
#[derive(Debug)]
struct Label(String);

#[async_trait]
impl Policy for Label {
    async fn send(&self, ctx: &Context, request: &mut Request, next: &[Arc<dyn Policy>]) -> PolicyResult {
        let sdk = request.headers().get_optional_str(&USER_AGENT).unwrap_or_default();
        // The identity's own requests, and a second try after a challenge, pass here too.
        let agent = if sdk.starts_with("kmsfs/") { sdk.to_owned() } else { format!("{} {sdk}", self.0) };
        request.insert_header(USER_AGENT, agent);
        next[0].send(ctx, request, &next[1..]).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use azure_core::http::headers::{AUTHORIZATION, CLIENT_REQUEST_ID, Headers, WWW_AUTHENTICATE};
    use azure_core::http::{AsyncRawResponse, StatusCode};

    fn maker(credentials: Credentials) -> Result<Maker, KmsError> {
        let options = ConnectOptions { credentials, ..ConnectOptions::from_variables(|_| None) };
        Maker::new(AzureKek::parse("https://v.vault.azure.net/keys/k").unwrap(), &options)
    }

    #[test]
    fn without_an_identity_nothing_is_connected() {
        let error = maker(Credentials::None("no".into())).err().unwrap();
        assert_eq!(error.kind, KmsErrorKind::Credentials);
    }

    #[test]
    fn an_authority_in_clear_is_refused() {
        let credentials = Credentials::ClientSecret {
            tenant: "t".into(),
            client: "c".into(),
            secret: String::from("s").into(),
            authority: Some("http://login.example".into()),
        };
        assert_eq!(maker(credentials).unwrap().make().err().unwrap().kind, KmsErrorKind::Credentials);
    }

    #[test]
    fn the_cloud_follows_the_vault_unless_an_authority_is_named() {
        assert_eq!(cloud("v.vault.azure.cn", None), CloudConfiguration::AzureChina);
        assert_eq!(cloud("v.vault.usgovcloudapi.net", None), CloudConfiguration::AzureGovernment);
        assert_eq!(cloud("v.vault.azure.net", None), CloudConfiguration::AzurePublic);
        assert!(matches!(cloud("v.vault.azure.cn", Some("https://x")), CloudConfiguration::Custom(_)));
    }

    /// Plays the vault and the identity provider, and notes who asks.
    #[derive(Debug, Default)]
    struct Recorder(parking_lot::Mutex<Vec<(String, String, bool)>>);

    #[async_trait]
    impl HttpClient for Recorder {
        async fn execute_request(&self, request: &Request) -> azure_core::Result<AsyncRawResponse> {
            let headers = request.headers();
            let agent = headers.get_optional_str(&USER_AGENT).unwrap_or_default().to_owned();
            let has_id = headers.get_optional_str(&CLIENT_REQUEST_ID).is_some();
            self.0.lock().push((request.url().host_str().unwrap_or_default().to_owned(), agent, has_id));
            let mut reply = Headers::new();
            let (status, body) = if request.url().path().ends_with("/token") {
                (StatusCode::Ok, r#"{"token_type":"Bearer","expires_in":3600,"access_token":"t"}"#)
            } else if headers.get_optional_str(&AUTHORIZATION).is_some() {
                (StatusCode::Ok, "{}")
            } else {
                let challenge = r#"Bearer authorization="https://login/t", resource="https://vault.azure.net""#;
                reply.insert(WWW_AUTHENTICATE, challenge);
                (StatusCode::Unauthorized, "")
            };
            Ok(AsyncRawResponse::from_bytes(status, reply, body))
        }
    }

    #[test]
    fn every_request_names_the_mount_and_has_an_id() {
        let recorder = Arc::new(Recorder::default());
        let credentials = Credentials::ClientSecret {
            tenant: "t".into(),
            client: "c".into(),
            secret: String::from("s").into(),
            authority: Some("https://login".into()),
        };
        let maker = Maker {
            kek: AzureKek::parse("https://v.vault.azure.net/keys/k").unwrap(),
            credentials,
            transport: Transport::new(Arc::clone(&recorder) as _),
            label: Arc::new(Label(rest::label(Some("m1")))),
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(maker.make().unwrap().get_key("k", None)).unwrap();
        let seen = recorder.0.lock();
        let hosts: Vec<_> = seen.iter().map(|(host, ..)| host.as_str()).collect();
        assert_eq!(hosts, ["v.vault.azure.net", "login", "v.vault.azure.net"]);
        let label = concat!("kmsfs/", env!("CARGO_PKG_VERSION"), " (mount m1) azsdk-rust-");
        assert!(seen.iter().all(|(_, agent, has_id)| agent.starts_with(label) && *has_id), "{seen:?}");
    }
}
