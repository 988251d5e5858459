//! Who we are at the server: gets a token, keeps it alive, and finds out what has become of one that is not accepted.
//! Invariant: a token that the server took back before its time is a refusal; one whose time was over, or that never
//! was one, is a matter of credentials; and no answer about it is silence.

use super::document::Envelope;
use super::errors::{self, Asked};
use crate::kms::rest::{Reply, Request, Rest};
use crate::kms::{
    Backoff, CallIds, ConnectOptions, KmsError, KmsErrorKind, SecretId, TransitKek, TransitLogin, TransitOptions,
};
use parking_lot::Mutex;
use reqwest::Url;
use reqwest::header::HeaderName;
use serde::Deserialize;
use serde_json::{Value, json};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::Notify;
use zeroize::{Zeroize, Zeroizing};

/// The server's clock and ours may be apart by so much when a token ends.
const MARGIN: Duration = Duration::from_secs(1);
/// A machine that slept wakes up at least this often to see what is due.
const LONGEST_WAIT: Duration = Duration::from_secs(30);

/// The code of a refusal because the token was taken back.
const TOKEN_REVOKED: &str = "TokenRevoked";

/// What a login, a renewal and a lookup say about a token.
#[derive(Deserialize)]
struct Grant {
    client_token: Option<String>,
    #[serde(alias = "ttl")]
    lease_duration: u64,
    #[serde(default)]
    renewable: bool,
}

impl Drop for Grant {
    fn drop(&mut self) {
        self.client_token.zeroize();
    }
}

#[derive(Deserialize)]
struct Login {
    auth: Grant,
}

/// A token, and what is known of it.
pub(super) struct Token {
    value: Zeroizing<String>,
    life: Mutex<Life>,
    /// The server has taken it at least once.
    worked: AtomicBool,
    /// The server was asked, or has said by itself, for how long it is good.
    known: AtomicBool,
}

/// Times are of [`boot_time`].
#[derive(Clone, Copy, Default)]
struct Life {
    /// When it was asked for the last time, and for how long it was granted; `None` if unknown, or for ever.
    granted: Option<(Duration, Duration)>,
    renewable: bool,
}

/// The time since the machine was started, the time that it slept included: tokens do not sleep.
fn boot_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or(0))
}

impl Token {
    fn new(value: &str) -> Self {
        let value = Zeroizing::new(value.trim().to_owned());
        Self { value, life: Mutex::default(), worked: AtomicBool::new(false), known: AtomicBool::new(false) }
    }

    /// What the server said to a question that was asked at this time.
    fn granted(&self, asked: Duration, grant: &Grant) {
        let lease = Some(Duration::from_secs(grant.lease_duration)).filter(|lease| !lease.is_zero());
        self.known.store(true, Ordering::Relaxed);
        *self.life.lock() = Life { granted: lease.map(|lease| (asked, lease)), renewable: grant.renewable };
    }

    fn is_over(&self) -> bool {
        let is_over = |(since, lease): (Duration, Duration)| boot_time() + MARGIN.min(lease / 6) >= since + lease;
        self.life.lock().granted.is_some_and(is_over)
    }

    /// The server had taken it, and its time is not over: that it takes it no more is somebody's will.
    fn was_taken_back(&self) -> bool {
        self.worked.load(Ordering::Relaxed) && !self.is_over()
    }

    /// When to renew it: after two thirds of its life. `None` if that is of no use.
    fn renewal(&self) -> Option<Duration> {
        let life = *self.life.lock();
        life.granted.filter(|_| life.renewable && !self.is_over()).map(|(since, lease)| since + lease * 2 / 3)
    }
}

/// What all calls share.
pub(super) struct Session {
    rest: Rest,
    kek: TransitKek,
    options: TransitOptions,
    token: Mutex<Option<Arc<Token>>>,
    /// Held by the one who gets a new token.
    login: tokio::sync::Mutex<()>,
    changed: Notify,
    /// The longest that an errand of its own may take.
    deadline: Duration,
}

impl Session {
    pub(super) fn new(kek: TransitKek, options: &ConnectOptions) -> Result<Self, KmsError> {
        if let TransitLogin::None(reason) = &options.transit.login {
            return Err(KmsError::new(KmsErrorKind::Credentials, reason.clone()).hint(HOW_TO_LOG_IN));
        }
        if !options.transit.address.as_deref().is_some_and(|address| is_server(address, &kek.server)) {
            let server = kek.server.as_str().trim_end_matches('/');
            let named = options.transit.address.as_deref().map_or("not set".to_owned(), |named| format!("'{named}'"));
            let message =
                format!("BAO_ADDR (or VAULT_ADDR) is {named}, and the key is at {server}: nothing was sent there");
            return Err(KmsError::new(KmsErrorKind::Misconfigured, message)
                .hint(format!("if you trust that server with your token: export BAO_ADDR={server}")));
        }
        let rest = Rest::new(&[kek.host()], options.ca_file.as_deref(), options.mount.as_deref())?;
        let (deadline, options) = (options.deadline, options.transit.clone());
        let (token, login) = (Mutex::default(), tokio::sync::Mutex::default());
        Ok(Self { rest, kek, options, token, login, changed: Notify::new(), deadline })
    }

    /// Sends a request to `/v1/PATH`.
    pub(super) async fn send(
        &self,
        path: &str,
        document: Option<&impl serde::Serialize>,
        token: Option<&Token>,
        client_request: Option<&str>,
    ) -> Result<Reply, KmsError> {
        let mut url = self.kek.server.clone();
        url.set_path(&format!("v1/{path}"));
        let mut request = match document {
            Some(document) => Request::post(url, document),
            None => Request::get(url),
        };
        // Without it the server takes a request for one that a browser was tricked into.
        request = request.header(HeaderName::from_static("x-vault-request"), "true");
        if let Some(token) = token {
            request = request.header(HeaderName::from_static("x-vault-token"), &token.value);
        }
        if let Some(namespace) = &self.options.namespace {
            request = request.header(HeaderName::from_static("x-vault-namespace"), namespace);
        }
        if let Some(id) = client_request {
            request = request.header(HeaderName::from_static("x-request-id"), id);
        }
        self.rest.send(request).await
    }

    /// The token to show, a new one if there is none, or if a login can replace one whose time is over.
    pub(super) async fn token(&self) -> Result<Arc<Token>, KmsError> {
        let held = self.held();
        match held {
            Some(token) if !(token.is_over() && self.can_log_in()) => Ok(token),
            other => self.replace(other.as_ref(), false).await,
        }
    }

    fn held(&self) -> Option<Arc<Token>> {
        self.token.lock().clone()
    }

    /// Whether there is more to show than a token, which somebody else may have renewed.
    fn can_log_in(&self) -> bool {
        matches!(self.options.login, TransitLogin::AppRole { .. } | TransitLogin::Kubernetes { .. })
    }

    /// The server took this token.
    pub(super) fn works(&self, token: &Token) {
        if !token.worked.swap(true, Ordering::Relaxed) {
            self.changed.notify_one();
        }
    }

    /// Whether the server knows the token, which it did not let do something.
    pub(super) async fn is_known(&self, token: &Token) -> Result<bool, KmsError> {
        let reply = self.send("auth/token/lookup-self", None::<&Value>, Some(token), None).await?;
        match reply.status {
            200 => Ok(true),
            // Somebody who may not look at himself is somebody.
            403 if errors::said(&reply).is_some() => Ok(errors::is_policy(&reply)),
            _ => Err(errors::sort(&reply, Asked::Key, &self.kek, &CallIds::default())),
        }
    }

    /// A new token in the place of this one, which the server has rejected or not, unless another call has seen to it.
    pub(super) async fn replace(&self, old: Option<&Arc<Token>>, rejected: bool) -> Result<Arc<Token>, KmsError> {
        let _turn = self.login.lock().await;
        if let Some(held) = self.held()
            && old.is_none_or(|old| !Arc::ptr_eq(old, &held))
        {
            return Ok(held);
        }
        let token = Arc::new(self.log_in(old.map(|old| &**old).filter(|_| rejected)).await?);
        *self.token.lock() = Some(Arc::clone(&token));
        self.changed.notify_one();
        Ok(token)
    }

    /// A new token, after the server has rejected this one.
    async fn log_in(&self, old: Option<&Token>) -> Result<Token, KmsError> {
        let (path, document) = match &self.options.login {
            TransitLogin::Token(value) => return self.given(value, old),
            TransitLogin::TokenFile(file) => return self.given(&read(file, "token", "KMSFS_TRANSIT_TOKEN_FILE")?, old),
            TransitLogin::AppRole { path, role, secret } => {
                let secret = match secret {
                    Some(SecretId::Value(value)) => Some(value.clone()),
                    Some(SecretId::File(file)) => Some(read(file, "secret id", "KMSFS_TRANSIT_SECRET_ID_FILE")?),
                    None => None,
                };
                let secret = secret.as_ref().map(|secret| secret.as_str());
                (path, json!({ "role_id": role, "secret_id": secret.unwrap_or_default() }))
            }
            TransitLogin::Kubernetes { path, role, token_file } => {
                let jwt = read(token_file, "service account's token", "KMSFS_TRANSIT_JWT_FILE")?;
                (path, json!({ "role": role, "jwt": jwt.as_str() }))
            }
            TransitLogin::None(reason) => return Err(KmsError::new(KmsErrorKind::Credentials, reason.clone())),
        };
        let asked = boot_time();
        let reply = self.send(&format!("auth/{path}/login"), Some(&document), None, None).await?;
        if reply.status == 200 {
            let Login { auth } = reply.json().ok_or_else(|| errors::not_transit("no token in the reply to a login"))?;
            let value = auth.client_token.as_deref().filter(|value| !value.is_empty());
            let token = Token::new(value.ok_or_else(|| errors::not_transit("no token in the reply to a login"))?);
            token.granted(asked, &auth);
            return Ok(token);
        }
        let Some(said) = errors::said(&reply).filter(|_| matches!(reply.status, 400 | 401 | 403 | 404)) else {
            return Err(errors::sort(&reply, Asked::Key, &self.kek, &CallIds::default()));
        };
        if old.is_some_and(Token::was_taken_back) {
            return Err(self.taken_back(&format!("and a new login is not accepted: {said}")));
        }
        let what = format!("{} does not accept the {}: {said}", self.kek.host(), self.options.login.name());
        let hint = if reply.status == 404 {
            format!("there is no auth method at auth/{path}: KMSFS_TRANSIT_LOGIN_PATH says where it is")
        } else {
            HOW_TO_LOG_IN.to_owned()
        };
        Err(KmsError::new(KmsErrorKind::Credentials, what).hint(hint))
    }

    /// A token that was given to us. The same again is of no use.
    fn given(&self, value: &str, old: Option<&Token>) -> Result<Token, KmsError> {
        let token = Token::new(value);
        match old.filter(|old| *old.value == *token.value) {
            None => Ok(token),
            Some(old) if old.was_taken_back() => Err(self.taken_back("before its time was over")),
            Some(old) => {
                let what = if old.is_over() { "has expired" } else { "is not accepted" };
                let message = format!("the {} for {} {what}", self.options.login.name(), self.kek.host());
                Err(KmsError::new(KmsErrorKind::Credentials, message).hint(HOW_TO_LOG_IN))
            }
        }
    }

    fn taken_back(&self, how: &str) -> KmsError {
        let message = format!("{} has revoked our token {how}", self.kek.host());
        KmsError { code: Some(TOKEN_REVOKED.to_owned()), ..KmsError::new(KmsErrorKind::Refused, message) }
            .hint("ask whoever runs the server, and log in again")
    }

    /// Keeps the token alive, for ever: renews it in time, and logs in anew when it cannot be renewed for long.
    pub(super) async fn keep_alive(&self) {
        let mut pauses = Backoff::seeded(Duration::from_secs(1), Duration::from_secs(60));
        loop {
            let token = self.held();
            if let Some(token) = token.as_ref().filter(|token| token.worked.load(Ordering::Relaxed))
                && !token.known.swap(true, Ordering::Relaxed)
            {
                let _ = tokio::time::timeout(self.deadline, self.look_up(token)).await;
            }
            let Some((token, due)) = token.and_then(|token| token.renewal().map(|due| (token, due))) else {
                self.changed.notified().await;
                continue;
            };
            let left = due.saturating_sub(boot_time());
            if !left.is_zero() {
                // Another token in its place is seen to at once.
                let _ = tokio::time::timeout(left.min(LONGEST_WAIT), self.changed.notified()).await;
                continue;
            }
            let late = || KmsError::new(KmsErrorKind::Unreachable, "no answer in time");
            let renewed = tokio::time::timeout(self.deadline, self.renew(&token)).await;
            match renewed.unwrap_or_else(|_| Err(late())) {
                Ok(()) => pauses.reset(),
                // The calls find out what is wrong; here it is only tried again.
                Err(error) => {
                    tracing::warn!(host = self.kek.host(), %error, "the token could not be renewed");
                    tokio::time::sleep(pauses.delay()).await;
                }
            }
        }
    }

    /// Renews a token, or replaces it if what is left of it is hardly worth it.
    async fn renew(&self, token: &Arc<Token>) -> Result<(), KmsError> {
        let before = token.life.lock().granted.map(|(_, lease)| lease).unwrap_or_default();
        let asked = boot_time();
        let reply = self.send("auth/token/renew-self", Some(&json!({})), Some(token), None).await?;
        match reply.json::<Login>().filter(|_| reply.status == 200) {
            Some(Login { auth }) => token.granted(asked, &auth),
            None if matches!(reply.status, 400 | 403) => token.life.lock().renewable = false,
            None => return Err(errors::sort(&reply, Asked::Key, &self.kek, &CallIds::default())),
        }
        let life = *token.life.lock();
        let is_ending = !life.renewable || life.granted.is_some_and(|(_, lease)| lease < before / 2);
        if is_ending && self.can_log_in() {
            self.replace(Some(token), false).await?;
        } else if is_ending {
            token.life.lock().renewable = false;
            tracing::warn!(host = self.kek.host(), "the token cannot be renewed any more, and will expire");
        }
        Ok(())
    }

    /// Asks for how long a token is good that we did not get by a login.
    async fn look_up(&self, token: &Token) {
        let asked = boot_time();
        if let Ok(reply) = self.send("auth/token/lookup-self", None::<&Value>, Some(token), None).await
            && reply.status == 200
            && let Some(Envelope { data, .. }) = reply.json::<Envelope<Grant>>()
        {
            token.granted(asked, &data);
        }
    }
}

const HOW_TO_LOG_IN: &str = "set BAO_TOKEN or VAULT_TOKEN, KMSFS_TRANSIT_ROLE_ID and KMSFS_TRANSIT_SECRET_ID, \
or KMSFS_TRANSIT_ROLE, or log in with 'bao login'";

/// Whether an address, as the server's own command takes it, is that of this server.
fn is_server(address: &str, server: &Url) -> bool {
    Url::parse(address).is_ok_and(|url| url.origin() == server.origin() && url.has_host())
}

/// The one line of a file with a secret in it.
fn read(file: &Path, what: &str, variable: &str) -> Result<Zeroizing<String>, KmsError> {
    let bad = |why: &str| {
        KmsError::new(KmsErrorKind::Credentials, format!("the file of the {what}, '{}', {why}", file.display()))
            .hint(format!("{HOW_TO_LOG_IN}; {variable} names the file"))
    };
    let text = std::fs::read_to_string(file).map(Zeroizing::new);
    let text = text.map_err(|error| bad(&format!("cannot be read: {error}")))?;
    match text.trim() {
        "" => Err(bad("is empty")),
        line if line.len() > 16 << 10 || line.contains(['\n', '\r']) => Err(bad("holds more than one line")),
        line => Ok(Zeroizing::new(line.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_identity_is_for_one_server_which_the_volume_does_not_choose() {
        let open = |kek: &str, address: Option<&str>| {
            let options = ConnectOptions::from_variables(|name| match name {
                "VAULT_TOKEN" => Some("hunter2".to_owned()),
                "VAULT_ADDR" => address.map(str::to_owned),
                _ => None,
            });
            Session::new(TransitKek::parse(kek).unwrap(), &options).map(drop)
        };
        let kek = "transit+https://bao.example/transit/keys/k";
        for address in ["https://bao.example", "https://bao.example/", "HTTPS://BAO.EXAMPLE:443"] {
            assert_eq!(open(kek, Some(address)), Ok(()), "{address}");
        }
        let others =
            ["http://bao.example", "https://bao.example:8200", "https://bao.example.org", "bao.example", "unix:///s"];
        for address in others.map(Some).into_iter().chain([None]) {
            let error = open(kek, address).unwrap_err();
            assert_eq!(error.kind, KmsErrorKind::Misconfigured, "{address:?}");
            assert!(error.hint.unwrap().contains("BAO_ADDR=https://bao.example"), "{address:?}");
        }
    }
}
