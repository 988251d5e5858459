//! Who to be at AWS: an access key that is named, or what the SDK's standard chain finds: profiles with roles or a
//! process (and single sign-on, with the feature `aws-sso`), web identity, the container's role, the machine's role. Its
//! requests go through our client.
//! Invariant: credentials are used until shortly before they end, and no message holds any part of a secret.

use crate::kms::kek::is_loopback;
use crate::kms::rest::{self, Rest};
use crate::kms::{AwsKeys, ConnectOptions, KmsError, KmsErrorKind};
use aws_config::Region;
use aws_config::default_provider::credentials::DefaultCredentialsChain;
use aws_config::imds;
use aws_config::provider_config::ProviderConfig;
use aws_config::retry::RetryConfig;
use aws_credential_types::Credentials;
use aws_credential_types::provider::ProvideCredentials;
use aws_credential_types::provider::error::CredentialsError;
use aws_smithy_async::rt::sleep::TokioSleep;
use aws_smithy_runtime_api::client::http::{HttpConnector, HttpConnectorFuture, SharedHttpConnector, http_client_fn};
use aws_smithy_runtime_api::client::orchestrator::{HttpRequest, HttpResponse};
use aws_smithy_runtime_api::client::result::ConnectorError;
use aws_smithy_types::body::SdkBody;
use reqwest::header::{CONTENT_TYPE, HeaderName};
use reqwest::{Method, Url};
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::sync::Mutex;

/// Credentials that end within this time are renewed; what cannot be renewed is used to its end.
const RENEWAL: Duration = Duration::from_secs(300);
/// A metadata service is on this machine: it answers at once, or there is none.
const METADATA_TIMEOUT: Duration = Duration::from_secs(1);

/// Where credentials come from, and those that came last.
pub(super) struct Provider {
    source: Source,
    region: String,
    kept: Mutex<Option<Credentials>>,
}

enum Source {
    Keys(AwsKeys),
    Chain(Connector),
}

impl Provider {
    /// Asks nobody yet.
    ///
    /// # Errors
    /// [`KmsErrorKind::Misconfigured`] for a CA file that cannot be used.
    pub(super) fn new(region: &str, options: &ConnectOptions) -> Result<Self, KmsError> {
        let source = match &options.aws.keys {
            Some(keys) => Source::Keys(keys.clone()),
            None => Source::Chain(Connector::new(options)?),
        };
        Ok(Self { source, region: region.to_owned(), kept: Mutex::new(None) })
    }

    /// Credentials that are good now.
    ///
    /// # Errors
    /// [`KmsErrorKind::Credentials`] if there are none or they are refused, [`KmsErrorKind::Unreachable`] if whoever
    /// gives them does not answer.
    pub(super) async fn get(&self) -> Result<Credentials, KmsError> {
        let mut kept = self.kept.lock().await;
        let left = |credentials: &Credentials| match credentials.expiry() {
            Some(end) => end.duration_since(SystemTime::now()).unwrap_or_default(),
            None => Duration::MAX,
        };
        if let Some(good) = kept.as_ref().filter(|kept| left(kept) > RENEWAL) {
            return Ok(good.clone());
        }
        match self.load().await {
            Ok(new) => Ok(kept.insert(new).clone()),
            Err(error) => kept.clone().filter(|old| left(old) > Duration::ZERO).ok_or(error),
        }
    }

    /// They were not accepted: the next ones are fetched anew.
    pub(super) async fn forget(&self) {
        *self.kept.lock().await = None;
    }

    /// Whether other credentials can come when these are forgotten.
    pub(super) fn can_renew(&self) -> bool {
        matches!(self.source, Source::Chain(_))
    }

    async fn load(&self) -> Result<Credentials, KmsError> {
        let connector = match &self.source {
            Source::Keys(AwsKeys { id, secret, token }) => {
                let token = token.as_ref().map(|token| token.as_str().to_owned());
                return Ok(Credentials::new(id, secret.as_str(), token, None, "environment"));
            }
            Source::Chain(connector) => SharedHttpConnector::new(connector.clone()),
        };
        let config = ProviderConfig::without_region()
            .with_region(Some(Region::new(self.region.clone())))
            .with_sleep_impl(TokioSleep::new())
            // Whoever asks tries again.
            .with_retry_config(RetryConfig::standard().with_max_attempts(1))
            .with_http_client(http_client_fn(move |_, _| connector.clone()));
        let machine = imds::Client::builder()
            .configure(&config)
            .max_attempts(1)
            .operation_timeout(METADATA_TIMEOUT)
            .operation_attempt_timeout(METADATA_TIMEOUT)
            .build();
        let chain = DefaultCredentialsChain::builder()
            .configure(config)
            .region(Region::new(self.region.clone()))
            .imds_client(machine)
            .build()
            .await;
        chain.provide_credentials().await.map_err(|error| sort(&error))
    }
}

/// What it means that there are no credentials.
fn sort(error: &CredentialsError) -> KmsError {
    const HINT: &str = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or give the machine or container \
                        a role; see who you are: aws sts get-caller-identity";
    let what = rest::first_line(&rest::error_chain(error));
    let no = |kind, message: String| KmsError::new(kind, message).hint(HINT);
    match error {
        CredentialsError::CredentialsNotLoaded(_) => no(
            KmsErrorKind::Credentials,
            "there are no AWS credentials: no access key, profile, token file or role".into(),
        ),
        CredentialsError::ProviderTimedOut(_) => {
            no(KmsErrorKind::Unreachable, "whoever gives AWS credentials does not answer in time".into())
        }
        error if is_silence(error) => no(KmsErrorKind::Unreachable, format!("no AWS credentials: {what}")),
        _ => no(KmsErrorKind::Credentials, format!("no AWS credentials: {what}")),
    }
}

fn is_silence(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        if error.is::<ConnectorError>() {
            return true;
        }
        next = error.source();
    }
    false
}

/// Carries the SDK's requests. A server that fails is, to the SDK, no connection: so [`sort`] can tell.
#[derive(Clone)]
struct Connector {
    /// For token services in the network.
    network: Arc<Rest>,
    /// For what is on this machine and behind no proxy.
    machine: Arc<Rest>,
}

impl Connector {
    fn new(options: &ConnectOptions) -> Result<Self, KmsError> {
        let rest =
            |hosts: &[&str]| Rest::new(hosts, options.ca_file.as_deref(), options.mount.as_deref()).map(Arc::new);
        Ok(Self { network: rest(&[])?, machine: rest(&["127.0.0.1"])? })
    }

    async fn carry(self, request: HttpRequest) -> Result<HttpResponse, ConnectorError> {
        let user = |what: &str| ConnectorError::user(what.into());
        let url = Url::parse(request.uri()).map_err(|_| user("not a URL"))?;
        let method = Method::from_bytes(request.method().as_bytes()).map_err(|_| user("not a method"))?;
        let here = url.host_str().is_some_and(|host| is_loopback(host) || is_link_local(host));
        let rest = if here { &self.machine } else { &self.network };
        let mut ours = rest::Request::new(method, url);
        if let Some(body) = request.body().bytes().filter(|body| !body.is_empty()) {
            let kind = request.headers().get(CONTENT_TYPE.as_str()).unwrap_or("application/octet-stream");
            ours = ours.body(kind, body.to_vec());
        }
        for (name, value) in request.headers().iter() {
            // Ours says which mount it is, and the length is the HTTP library's business.
            if let Ok(name) = HeaderName::try_from(name)
                && !matches!(name.as_str(), "user-agent" | "content-length" | "host")
            {
                ours = ours.header(name, value);
            }
        }
        let reply = rest.send(ours).await.map_err(|error| ConnectorError::io(Box::new(error)))?;
        if reply.status >= 500 || reply.status == 429 {
            let message = format!("the server failed with status {}", reply.status);
            return Err(ConnectorError::io(message.into()));
        }
        let status = reply.status.try_into().map_err(|_| user("not a status"))?;
        let mut response = HttpResponse::new(status, SdkBody::from(reply.body.to_vec()));
        for (name, value) in reply.headers() {
            if let Ok(value) = value.to_str() {
                let _ = response.headers_mut().try_append(name.as_str().to_owned(), value.to_owned());
            }
        }
        Ok(response)
    }
}

impl HttpConnector for Connector {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        HttpConnectorFuture::new(self.clone().carry(request))
    }
}

impl std::fmt::Debug for Connector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Connector")
    }
}

/// The addresses at which a machine's and a container's metadata are.
fn is_link_local(host: &str) -> bool {
    host.starts_with("169.254.") || host.trim_start_matches('[').starts_with("fd00:ec2:")
}
