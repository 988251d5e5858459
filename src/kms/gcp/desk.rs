//! Asks Google Cloud KMS: shows a token, sends, reads. Runs on the provider's own thread.
//! Invariant: a token that is not accepted is replaced once for a question, not more often.

use super::credentials::Provider;
use super::errors::{self, Asked};
use super::wire;
use crate::kms::rest::{self, Reply, Request, Rest};
use crate::kms::worker::Service;
use crate::kms::{CallIds, ConnectOptions, Facts, GcpKek, KekId, KmsError, KmsErrorKind, Unwrapped};
use crate::units::VolumeId;
use reqwest::Url;
use reqwest::header::HeaderName;
use zeroize::Zeroizing;

const PUBLIC: &str = "https://cloudkms.googleapis.com";

/// What to ask.
pub(super) enum Question {
    /// About the key that is configured.
    Key,
    /// To wrap a secret with this key, or this version of it.
    Wrap { kek: GcpKek, secret: Zeroizing<[u8; 32]>, volume: VolumeId },
    /// To unwrap: Google finds the version in the blob. `kek` is the one that wrapped.
    Unwrap { kek: GcpKek, blob: Vec<u8>, volume: VolumeId },
}

/// What was said.
pub(super) enum Answer {
    Key(Facts),
    Wrapped(KekId, Vec<u8>),
    Secret(Unwrapped),
}

/// What the calls share.
pub(super) struct Desk {
    kek: GcpKek,
    url: Url,
    host: String,
    rest: Rest,
    credentials: Provider,
}

impl Desk {
    pub(super) fn new(kek: GcpKek, options: &ConnectOptions) -> Result<Self, KmsError> {
        let endpoint = options.gcp.endpoint.as_deref().unwrap_or(PUBLIC);
        let url = rest::endpoint(endpoint).map_err(|what| {
            KmsError::new(KmsErrorKind::Misconfigured, format!("the endpoint '{endpoint}' cannot be used: {what}"))
                .hint("KMSFS_GCP_ENDPOINT is https://HOST[:PORT], or http:// on this machine")
        })?;
        let host = url.host_str().unwrap_or_default().to_owned();
        let rest = Rest::new(&[&host], options.ca_file.as_deref(), options.mount.as_deref())?;
        let credentials = Provider::new(options)?;
        Ok(Self { kek, url, host, rest, credentials })
    }

    /// One request.
    async fn try_once(&self, question: &Question) -> Result<Answer, KmsError> {
        let at = |path: String| {
            let mut url = self.url.clone();
            url.set_path(&format!("/v1/{path}"));
            url
        };
        let (asked, kek, request) = match question {
            Question::Key => (Asked::Key, &self.kek, Request::get(at(self.kek.to_string()))),
            Question::Wrap { kek, secret, volume } => {
                let body = wire::encrypt(kek, secret, *volume);
                (Asked::Wrap, kek, Request::post(at(format!("{kek}:encrypt")), &body))
            }
            Question::Unwrap { kek, blob, volume } => {
                let body = wire::decrypt(kek, blob, *volume);
                (Asked::Unwrap, kek, Request::post(at(format!("{}:decrypt", self.kek.key_name())), &body))
            }
        };
        let pass = self.credentials.get().await?;
        let mut request = request.bearer(&pass.token);
        if let Some(project) = &pass.quota_project {
            request = request.header(HeaderName::from_static("x-goog-user-project"), project);
        }
        let reply = self.rest.send(request).await?;
        if reply.status == 200 {
            return read(&reply, asked, kek);
        }
        let error = errors::sort(reply.status, &reply.body, asked, kek);
        Err(KmsError { retry_after: reply.retry_after(), ..error })
    }
}

impl Service for Desk {
    type Question = Question;
    type Answer = Answer;

    fn host(&self) -> &str {
        &self.host
    }

    async fn ask(&self, question: &Question) -> Result<Answer, KmsError> {
        match self.try_once(question).await {
            // With a code, it was Cloud KMS itself that did not accept it: it may have been revoked.
            Err(error) if error.kind == KmsErrorKind::Credentials && error.code.is_some() => {
                self.credentials.forget().await;
                self.try_once(question).await
            }
            outcome => outcome,
        }
    }
}

fn read(reply: &Reply, asked: Asked, kek: &GcpKek) -> Result<Answer, KmsError> {
    Ok(match asked {
        Asked::Key => Answer::Key(Facts { service_time: reply.time(), ..wire::described(&reply.body, kek)? }),
        Asked::Wrap => {
            let (kek, blob) = wire::encrypted(&reply.body, kek)?;
            Answer::Wrapped(kek, blob)
        }
        // Google gives its calls no ids; its log knows the mount by the user agent.
        Asked::Unwrap => {
            Answer::Secret(Unwrapped { secret: wire::decrypted(&reply.body, kek)?, ids: CallIds::default() })
        }
    })
}
