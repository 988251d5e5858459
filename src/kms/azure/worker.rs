//! The one thread that runs the SDK: questions come by a channel, several are under way at once, and each is answered
//! or given up within the deadline. Here are the retries, with backoff, and the one refresh of a token.
//! Invariant: whoever asks gets an answer within the deadline and a little, whatever the SDK does.

use super::client::Maker;
use super::errors::{self, Asked};
use super::key::{self, DeletedKey, VaultKey};
use crate::crypto::wipe_stack;
use crate::kms::{AzureKek, Backoff, CallIds, ConnectOptions, KmsError, KmsErrorKind, Unwrapped};
use azure_core::http::headers::Headers;
use azure_core::http::request::options::ClientRequestId;
use azure_core::http::response::ResponseBody;
use azure_core::http::{ClientMethodOptions, Context};
use azure_core::{Bytes, Uuid};
use azure_security_keyvault_keys::KeyClient;
use azure_security_keyvault_keys::models::{
    EncryptionAlgorithm, KeyClientGetDeletedKeyOptions, KeyClientGetKeyOptions, KeyClientUnwrapKeyOptions,
    KeyClientUpdateKeyPropertiesOptions, KeyOperationParameters, UpdateKeyPropertiesParameters,
};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use zeroize::Zeroize;

/// So many tries for one question, if the deadline allows for them.
const TRIES: u32 = 5;
const FIRST_PAUSE: Duration = Duration::from_millis(200);
/// A vault that throttles wants to be left alone for longer.
const FIRST_PAUSE_THROTTLED: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(16);
/// Given to the thread beyond the deadline to hand over the answer.
const HANDOVER: Duration = Duration::from_millis(500);

/// What to ask the vault.
pub(super) enum Question {
    /// The key to wrap with.
    Key,
    /// One version of the key, whatever has become of it.
    Version(String),
    /// The key, if it is deleted.
    Deleted,
    /// To put these tags in the place of all that a version has.
    Tag { version: String, tags: HashMap<String, String> },
    /// A secret, of the version that wrapped it.
    Unwrap { version: String, blob: Vec<u8> },
}

/// What the vault said.
pub(super) enum Answer {
    Key(VaultKey),
    Deleted(DeletedKey),
    Secret(Unwrapped),
}

struct Letter {
    question: Question,
    reply: mpsc::SyncSender<Result<Answer, KmsError>>,
}

/// The thread. It ends when this is dropped.
pub(super) struct Worker {
    letters: UnboundedSender<Letter>,
    deadline: Duration,
}

impl Worker {
    pub(super) fn start(kek: AzureKek, options: &ConnectOptions) -> Result<Self, KmsError> {
        let failed = |error: std::io::Error| {
            KmsError::new(KmsErrorKind::Misconfigured, format!("no thread to ask the vault with: {error}"))
        };
        let maker = Maker::new(kek.clone(), options)?;
        let client = maker.make()?;
        let deadline = options.deadline;
        let desk = Arc::new(Desk { kek, maker, deadline, client: Mutex::new(Arc::new(client)) });
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
        let (letters, mut inbox) = unbounded_channel::<Letter>();
        let run = move || {
            runtime.block_on(async {
                while let Some(Letter { question, reply }) = inbox.recv().await {
                    let desk = Arc::clone(&desk);
                    tokio::spawn(async move {
                        // Who asked may have gone; then the answer is wiped here.
                        let _ = reply.send(desk.answer(&question).await);
                        wipe_stack();
                    });
                }
            });
            // Not to wait for a name that is still being looked up.
            runtime.shutdown_background();
        };
        thread::Builder::new().name("kmsfs-azure".into()).spawn(run).map_err(failed)?;
        Ok(Self { letters, deadline })
    }

    /// Asks, and waits for the answer for the deadline at most.
    pub(super) fn ask(&self, question: Question) -> Result<Answer, KmsError> {
        let (reply, answer) = mpsc::sync_channel(1);
        let gone = |what: &str| KmsError::new(KmsErrorKind::Unreachable, what);
        self.letters.send(Letter { question, reply }).map_err(|_| gone("the thread that asks the vault is gone"))?;
        answer.recv_timeout(self.deadline + HANDOVER).unwrap_or_else(|error| match error {
            mpsc::RecvTimeoutError::Timeout => Err(gone("the vault does not answer in time")),
            mpsc::RecvTimeoutError::Disconnected => Err(gone("the call to the vault ended without an answer")),
        })
    }
}

/// What the calls share.
struct Desk {
    kek: AzureKek,
    maker: Maker,
    deadline: Duration,
    client: Mutex<Arc<KeyClient>>,
}

impl Desk {
    /// Tries until there is an answer, or no time for another try.
    async fn answer(&self, question: &Question) -> Result<Answer, KmsError> {
        let end = Instant::now() + self.deadline;
        let mut pauses = Backoff::seeded(FIRST_PAUSE, LONGEST_PAUSE);
        let mut throttled = Backoff::seeded(FIRST_PAUSE_THROTTLED, LONGEST_PAUSE);
        let mut refreshed = false;
        let mut tries = 0;
        let mut last: Option<KmsError> = None;
        loop {
            tries += 1;
            let client = Arc::clone(&self.client.lock());
            let left = end.saturating_duration_since(Instant::now());
            let Ok(result) = tokio::time::timeout(left, self.ask(&client, question)).await else {
                // What went wrong before says more than that there was no time left.
                let message = format!("{} does not answer within {:?}", self.kek.host(), self.deadline);
                return Err(last.unwrap_or_else(|| KmsError::new(KmsErrorKind::Unreachable, message)));
            };
            let error = match result {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            if error.kind == KmsErrorKind::Credentials && error.code.is_some() && !refreshed {
                // The vault does not take the token, and the SDK keeps it until it expires by this machine's clock.
                refreshed = true;
                self.refresh(&client)?;
                continue;
            }
            if error.kind != KmsErrorKind::Unreachable || tries == TRIES {
                return Err(error);
            }
            let pause = match error.retry_after {
                Some(asked) => asked,
                None if error.code.as_deref() == Some(crate::kms::THROTTLED) => throttled.delay(),
                None => pauses.delay(),
            };
            if Instant::now() + pause >= end {
                return Err(error);
            }
            last = Some(error);
            tokio::time::sleep(pause).await;
        }
    }

    /// One try.
    async fn ask(&self, client: &KeyClient, question: &Question) -> Result<Answer, KmsError> {
        let id = Uuid::new_v4().to_string();
        let method_options =
            ClientMethodOptions { context: Context::new().with_value(ClientRequestId::new(id.clone())) };
        let (asked, reply) = match question {
            Question::Key | Question::Version(_) => {
                let key_version = match question {
                    Question::Version(version) => Some(version.clone()),
                    _ => self.kek.version.clone(),
                };
                let options = KeyClientGetKeyOptions { key_version, method_options };
                let reply = client.get_key(&self.kek.name, Some(options)).await;
                (Asked::Key, reply.map(|response| response.deconstruct()))
            }
            Question::Tag { version, tags } => {
                let parameters = UpdateKeyPropertiesParameters {
                    tags: Some(tags.clone()),
                    ..UpdateKeyPropertiesParameters::default()
                };
                let options =
                    KeyClientUpdateKeyPropertiesOptions { key_version: Some(version.clone()), method_options };
                let reply = match parameters.try_into() {
                    Ok(body) => client.update_key_properties(&self.kek.name, body, Some(options)).await,
                    Err(error) => Err(error),
                };
                (Asked::Tag, reply.map(|response| response.deconstruct()))
            }
            Question::Deleted => {
                let options = KeyClientGetDeletedKeyOptions { method_options };
                let reply = client.get_deleted_key(&self.kek.name, Some(options)).await;
                (Asked::Deleted, reply.map(|response| response.deconstruct()))
            }
            Question::Unwrap { version, blob } => {
                let parameters = KeyOperationParameters {
                    algorithm: Some(EncryptionAlgorithm::RsaOaep256),
                    value: Some(blob.clone()),
                    ..KeyOperationParameters::default()
                };
                let options = KeyClientUnwrapKeyOptions { method_options };
                let reply = match parameters.try_into() {
                    Ok(body) => client.unwrap_key(&self.kek.name, version, body, Some(options)).await,
                    Err(error) => Err(error),
                };
                (Asked::Unwrap, reply.map(|response| response.deconstruct()))
            }
        };
        let ours = Some(id);
        match reply {
            Ok((_, headers, body)) => {
                let ids = CallIds { request: errors::header(&headers, errors::REQUEST_ID), client_request: ours };
                read(&headers, body, asked, ids)
            }
            Err(error) => {
                let error = errors::sort(&error, asked, &self.kek);
                let ids = CallIds { client_request: ours, ..*error.ids };
                Err(KmsError { ids: Box::new(ids), ..error })
            }
        }
    }

    /// A client without a token takes the place of this one, unless another call has seen to it.
    fn refresh(&self, old: &Arc<KeyClient>) -> Result<(), KmsError> {
        let mut client = self.client.lock();
        if Arc::ptr_eq(&client, old) {
            *client = Arc::new(self.maker.make()?);
        }
        Ok(())
    }
}

/// Reads a reply and wipes it, if nobody else holds its bytes.
fn read(headers: &Headers, body: ResponseBody, asked: Asked, ids: CallIds) -> Result<Answer, KmsError> {
    let answer = match asked {
        Asked::Key | Asked::Tag => {
            let time = errors::header(headers, "date").and_then(|date| azure_core::time::parse_rfc7231(&date).ok());
            VaultKey::parse(&body, time.map(Into::into)).map(Answer::Key)
        }
        Asked::Deleted => DeletedKey::parse(&body).map(Answer::Deleted),
        Asked::Unwrap => key::unwrapped(&body).map(|secret| Answer::Secret(Unwrapped { secret, ids: ids.clone() })),
    };
    if let Ok(mut bytes) = Bytes::from(body).try_into_mut() {
        bytes.zeroize();
    }
    answer.map_err(|error| KmsError { ids: Box::new(ids), ..error })
}
