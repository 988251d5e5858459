//! Asks the vault through the SDK, on the provider's own thread; here is the one refresh of a token.
//! Invariant: a token that the vault does not take is replaced once for a question, not more often.

use super::client::Maker;
use super::errors::{self, Asked};
use super::key::{self, DeletedKey, VaultKey};
use crate::kms::worker::Service;
use crate::kms::{AzureKek, CallIds, ConnectOptions, KmsError, KmsErrorKind, Unwrapped};
use azure_core::http::headers::Headers;
use azure_core::http::request::options::ClientRequestId;
use azure_core::http::response::ResponseBody;
use azure_core::http::{ClientMethodOptions, Context};
use azure_core::{Bytes, Uuid};
use azure_security_keyvault_keys::KeyClient;
use azure_security_keyvault_keys::models::{
    EncryptionAlgorithm, KeyClientGetDeletedKeyOptions, KeyClientGetKeyOptions, KeyClientUnwrapKeyOptions,
    KeyClientUpdateKeyPropertiesOptions, KeyClientWrapKeyOptions, KeyOperationParameters,
    UpdateKeyPropertiesParameters,
};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;
use zeroize::{Zeroize, Zeroizing};

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
    /// A secret, wrapped there: for a key without a public half.
    Wrap { version: String, secret: Zeroizing<Vec<u8>> },
    /// A secret, of the version that wrapped it.
    Unwrap { version: String, algorithm: EncryptionAlgorithm, blob: Vec<u8> },
}

/// What the vault said.
pub(super) enum Answer {
    Key(VaultKey),
    Deleted(DeletedKey),
    Wrapped(Vec<u8>),
    Secret(Unwrapped),
}

/// What the calls share.
pub(super) struct Desk {
    kek: AzureKek,
    maker: Maker,
    client: Mutex<Arc<KeyClient>>,
}

impl Service for Desk {
    type Question = Question;
    type Answer = Answer;

    fn host(&self) -> &str {
        self.kek.host()
    }

    async fn ask(&self, question: &Question) -> Result<Answer, KmsError> {
        let client = Arc::clone(&self.client.lock());
        match self.try_once(&client, question).await {
            // The vault does not take the token, and the SDK keeps it until it expires by this machine's clock.
            Err(error) if error.kind == KmsErrorKind::Credentials && error.code.is_some() => {
                let client = self.refresh(&client)?;
                self.try_once(&client, question).await
            }
            outcome => outcome,
        }
    }
}

impl Desk {
    pub(super) fn new(kek: AzureKek, options: &ConnectOptions) -> Result<Self, KmsError> {
        let maker = Maker::new(kek.clone(), options)?;
        let client = Mutex::new(Arc::new(maker.make()?));
        Ok(Self { kek, maker, client })
    }

    /// One request.
    async fn try_once(&self, client: &KeyClient, question: &Question) -> Result<Answer, KmsError> {
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
            Question::Wrap { version, secret } => {
                let options = KeyClientWrapKeyOptions { key_version: Some(version.clone()), method_options };
                let reply = match parameters(EncryptionAlgorithm::A256Kw, secret).try_into() {
                    Ok(body) => client.wrap_key(&self.kek.name, body, Some(options)).await,
                    Err(error) => Err(error),
                };
                (Asked::Wrap, reply.map(|response| response.deconstruct()))
            }
            Question::Unwrap { version, algorithm, blob } => {
                let options = KeyClientUnwrapKeyOptions { method_options };
                let reply = match parameters(algorithm.clone(), blob).try_into() {
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
    fn refresh(&self, old: &Arc<KeyClient>) -> Result<Arc<KeyClient>, KmsError> {
        let mut client = self.client.lock();
        if Arc::ptr_eq(&client, old) {
            *client = Arc::new(self.maker.make()?);
        }
        Ok(Arc::clone(&client))
    }
}

fn parameters(algorithm: EncryptionAlgorithm, value: &[u8]) -> KeyOperationParameters {
    KeyOperationParameters {
        algorithm: Some(algorithm),
        value: Some(value.to_vec()),
        ..KeyOperationParameters::default()
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
        Asked::Wrap => key::wrapped(&body).map(Answer::Wrapped),
        Asked::Unwrap => key::unwrapped(&body).map(|secret| Answer::Secret(Unwrapped { secret, ids: ids.clone() })),
    };
    if let Ok(mut bytes) = Bytes::from(body).try_into_mut() {
        bytes.zeroize();
    }
    answer.map_err(|error| KmsError { ids: Box::new(ids), ..error })
}
