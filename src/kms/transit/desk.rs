//! Asks the server, with a token: one question, at most one new token for it.

use super::document::{Binding, Ciphertext, Envelope, Plaintext, TransitKey};
use super::errors::{self, Asked};
use super::session::{Session, Token};
use crate::crypto::Secret32;
use crate::kms::rest::Reply;
use crate::kms::worker::Service;
use crate::kms::{CallIds, ConnectOptions, KmsError, TransitKek, Unwrapped};
use crate::units::VolumeId;
use data_encoding::{BASE64, HEXLOWER};
use serde::Serialize;
use zeroize::Zeroizing;

/// No type of key: Transit makes a key that is not there when it is asked to encrypt with it, unless it is asked for
/// one of a type that does not exist. With a key that is there, the type is not looked at.
const NO_TYPE: &str = "existing";

/// What to ask the server.
pub(super) enum Question {
    /// What the key is.
    Key,
    /// A secret in base64, to be wrapped by this version.
    Wrap { plaintext: Zeroizing<String>, version: u32, binding: Binding, volume: VolumeId },
    /// A secret. `made` is when that version was made, if that is known.
    Unwrap { ciphertext: String, version: u32, binding: Binding, volume: VolumeId, made: Option<u64> },
    /// A secret that was bound by a context, wrapped by this version instead.
    Rewrap { ciphertext: String, version: u32, volume: VolumeId },
}

impl Question {
    pub(super) fn wrap(secret: &Secret32, version: u32, binding: Binding, volume: VolumeId) -> Self {
        Self::Wrap { plaintext: Zeroizing::new(BASE64.encode(secret.expose())), version, binding, volume }
    }
}

/// What the server said.
pub(super) enum Answer {
    Key(TransitKey),
    Ciphertext(Vec<u8>),
    Secret(Unwrapped),
}

/// The body of a request; what is `None` is left out.
#[derive(Default, Serialize)]
struct Document<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    plaintext: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ciphertext: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    associated_data: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    context: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    key_version: Option<u32>,
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    kind: Option<&'a str>,
}

impl Document<'_> {
    fn bound(self, binding: Binding, volume: VolumeId) -> Self {
        let id = Some(BASE64.encode(&volume.0));
        match binding {
            Binding::AssociatedData => Self { associated_data: id, ..self },
            Binding::Context => Self { context: id, ..self },
        }
    }
}

/// What the calls share.
pub(super) struct Desk {
    kek: TransitKek,
    session: Session,
}

impl Desk {
    pub(super) fn new(kek: TransitKek, options: &ConnectOptions) -> Result<Self, KmsError> {
        Ok(Self { session: Session::new(kek.clone(), options)?, kek })
    }

    /// One question with one token.
    async fn send(&self, question: &Question, token: &Token, id: &str) -> Result<Reply, KmsError> {
        let (operation, document) = match question {
            Question::Key => {
                let path = format!("{}/keys/{}", self.kek.mount, self.kek.name);
                return self.session.send(&path, None::<&Document>, Some(token), Some(id)).await;
            }
            Question::Wrap { plaintext, version, binding, volume } => {
                let document = Document {
                    plaintext: Some(plaintext),
                    key_version: Some(*version),
                    kind: Some(NO_TYPE),
                    ..Document::default()
                };
                ("encrypt", document.bound(*binding, *volume))
            }
            Question::Unwrap { ciphertext, binding, volume, .. } => {
                let document = Document { ciphertext: Some(ciphertext), ..Document::default() };
                ("decrypt", document.bound(*binding, *volume))
            }
            Question::Rewrap { ciphertext, version, volume } => {
                let document =
                    Document { ciphertext: Some(ciphertext), key_version: Some(*version), ..Document::default() };
                ("rewrap", document.bound(Binding::Context, *volume))
            }
        };
        let path = format!("{}/{operation}/{}", self.kek.mount, self.kek.name);
        self.session.send(&path, Some(&document), Some(token), Some(id)).await
    }

    /// The reply to a question, with a new token if the server does not know ours any more.
    async fn reply(&self, question: &Question, id: &str) -> Result<Reply, KmsError> {
        let token = self.session.token().await?;
        let reply = self.send(question, &token, id).await?;
        if reply.status != 403 || errors::said(&reply).is_none() || errors::is_policy(&reply) {
            self.note(&reply, &token);
            return Ok(reply);
        }
        // The same words for a token that may not and for one that is none: it is asked for.
        if self.session.is_known(&token).await? {
            return Ok(reply);
        }
        let fresh = self.session.replace(Some(&token), true).await?;
        let reply = self.send(question, &fresh, id).await?;
        self.note(&reply, &fresh);
        Ok(reply)
    }

    fn note(&self, reply: &Reply, token: &Token) {
        if reply.status == 200 {
            self.session.works(token);
        }
    }

    fn read(&self, question: &Question, reply: &Reply, mut ids: CallIds) -> Result<Answer, KmsError> {
        let asked = match question {
            Question::Key => Asked::Key,
            Question::Wrap { .. } => Asked::Wrap,
            Question::Unwrap { .. } => Asked::Unwrap,
            Question::Rewrap { .. } => Asked::Rewrap,
        };
        if reply.status != 200 {
            return Err(errors::sort(reply, asked, &self.kek, &ids));
        }
        let strange = || errors::not_transit("its document is another than was asked for");
        match question {
            Question::Key => {
                let Envelope { mut data, .. } = reply.json::<Envelope<TransitKey>>().ok_or_else(strange)?;
                data.asked = reply.time();
                Ok(Answer::Key(data))
            }
            Question::Wrap { version, .. } | Question::Rewrap { version, .. } => {
                let Envelope { data, .. } = reply.json::<Envelope<Ciphertext>>().ok_or_else(strange)?;
                data.take(*version).map(Answer::Ciphertext)
            }
            Question::Unwrap { .. } => {
                let Envelope { data, request_id } = reply.json::<Envelope<Plaintext>>().ok_or_else(strange)?;
                ids.request = Some(request_id).filter(|id| !id.is_empty());
                Ok(Answer::Secret(Unwrapped { secret: data.secret()?, ids }))
            }
        }
    }

    /// What a secret that does not authenticate means: damage, or that the version which wrapped it is not there any
    /// more, because its key was deleted and made anew under the same name.
    async fn explain(&self, error: KmsError, version: u32, made: Option<u64>) -> KmsError {
        let Some(made) = made else { return error };
        let id = new_id();
        let reply = match self.reply(&Question::Key, &id).await {
            Ok(reply) => reply,
            Err(_) => return error,
        };
        match self.read(&Question::Key, &reply, CallIds { request: None, client_request: Some(id) }) {
            Ok(Answer::Key(state)) if state.made(version) == Some(made) => error,
            Ok(_) => {
                KmsError { ids: error.ids, ..errors::replaced(&self.kek, "this version was made at another time") }
            }
            Err(other) if other.code.as_deref() == Some(errors::KEY_NOT_FOUND) => other,
            // That we may not see the key says nothing about the secret.
            Err(_) => error,
        }
    }
}

impl Service for Desk {
    type Question = Question;
    type Answer = Answer;

    fn host(&self) -> &str {
        self.kek.host()
    }

    async fn ask(&self, question: &Question) -> Result<Answer, KmsError> {
        let id = new_id();
        let ids = CallIds { request: None, client_request: Some(id.clone()) };
        let with_ids = |error: KmsError| KmsError { ids: Box::new(ids.clone()), ..error };
        let reply = self.reply(question, &id).await.map_err(with_ids)?;
        let answer = self.read(question, &reply, ids.clone()).map_err(with_ids);
        match (answer, question) {
            (Err(error), Question::Unwrap { version, made, .. })
                if error.code.as_deref() == Some(errors::NOT_AUTHENTIC) =>
            {
                Err(self.explain(error, *version, *made).await)
            }
            (answer, _) => answer,
        }
    }

    async fn upkeep(&self) {
        self.session.keep_alive().await;
    }
}

/// An id for a call, which the server's audit log has too if it is told to keep this header.
fn new_id() -> String {
    let mut bytes = [0; 16];
    // An id that is not random is still an id.
    let _ = getrandom::fill(&mut bytes);
    HEXLOWER.encode(&bytes)
}
