//! Asks AWS KMS: signs, sends, reads. Runs on the provider's own thread.
//! Invariant: credentials that are not accepted are replaced once for a question, not more often.

use super::credentials::Provider;
use super::errors::{self, Asked};
use super::sign;
use super::wire::{self, Metadata};
use crate::kms::rest::{self, Reply, Rest};
use crate::kms::worker::Service;
use crate::kms::{AwsKek, CallIds, ConnectOptions, KekId, KmsError, KmsErrorKind, Unwrapped};
use crate::units::VolumeId;
use reqwest::Url;
use std::time::SystemTime;
use zeroize::Zeroizing;

/// What to ask.
pub(super) enum Question {
    /// About the key that is configured.
    Key,
    /// To wrap a secret with this key or alias.
    Wrap { kek: String, secret: Zeroizing<[u8; 32]>, volume: VolumeId },
    /// To unwrap, with the key that wrapped.
    Unwrap { kek: AwsKek, blob: Vec<u8>, volume: VolumeId },
}

/// What was said.
pub(super) enum Answer {
    Key(Metadata, Option<SystemTime>),
    Wrapped(KekId, Vec<u8>),
    Secret(Unwrapped),
}

/// What the calls share.
pub(super) struct Desk {
    kek: AwsKek,
    url: Url,
    host: String,
    rest: Rest,
    credentials: Provider,
}

impl Desk {
    pub(super) fn new(kek: AwsKek, options: &ConnectOptions) -> Result<Self, KmsError> {
        let url = match &options.aws.endpoint {
            Some(endpoint) => rest::endpoint(endpoint),
            None => rest::endpoint(&format!("https://{}", kek.host())),
        }
        .map_err(|what| {
            KmsError::new(KmsErrorKind::Misconfigured, format!("the endpoint of AWS KMS cannot be used: {what}"))
                .hint("AWS_ENDPOINT_URL_KMS is https://HOST[:PORT], or http:// on this machine")
        })?;
        let host = url.host_str().unwrap_or_default().to_owned();
        let rest = Rest::new(&[&host], options.ca_file.as_deref(), options.mount.as_deref())?;
        let credentials = Provider::new(&kek.region, options)?;
        Ok(Self { kek, url, host, rest, credentials })
    }

    /// One request.
    async fn try_once(&self, question: &Question) -> Result<Answer, KmsError> {
        let kek = match question {
            Question::Unwrap { kek, .. } => kek,
            Question::Key | Question::Wrap { .. } => &self.kek,
        };
        let (asked, operation, body) = match question {
            Question::Key => (Asked::Key, "DescribeKey", wire::describe(&kek.to_string())),
            Question::Wrap { kek, secret, volume } => (Asked::Wrap, "Encrypt", wire::encrypt(kek, secret, *volume)),
            Question::Unwrap { blob, volume, .. } => {
                (Asked::Unwrap, "Decrypt", wire::decrypt(&kek.to_string(), blob, *volume))
            }
        };
        let credentials = self.credentials.get().await?;
        let request = sign::post(&self.url, operation, body, &self.kek.region, &credentials, SystemTime::now())?;
        let reply = self.rest.send(request).await?;
        let request_id = reply.header("x-amzn-requestid").map(rest::first_line);
        let ids = CallIds { request: request_id, client_request: None };
        let answer = if reply.status == 200 {
            read(&reply, asked, kek, &ids)
        } else {
            let error = errors::sort(reply.status, reply.header("x-amzn-errortype"), &reply.body, asked, kek);
            Err(KmsError { retry_after: reply.retry_after(), ..error })
        };
        answer.map_err(|error| KmsError { ids: Box::new(ids), ..error })
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
            // With a code, it was AWS KMS itself that did not accept them: a role's session may have been ended.
            Err(error)
                if error.kind == KmsErrorKind::Credentials && error.code.is_some() && self.credentials.can_renew() =>
            {
                self.credentials.forget().await;
                self.try_once(question).await
            }
            outcome => outcome,
        }
    }
}

fn read(reply: &Reply, asked: Asked, kek: &AwsKek, ids: &CallIds) -> Result<Answer, KmsError> {
    Ok(match asked {
        Asked::Key => Answer::Key(Metadata::parse(&reply.body)?, reply.time()),
        Asked::Wrap => {
            let (kek, blob) = wire::encrypted(&reply.body)?;
            Answer::Wrapped(kek, blob)
        }
        Asked::Unwrap => Answer::Secret(Unwrapped { secret: wire::decrypted(&reply.body, kek)?, ids: ids.clone() }),
    })
}
