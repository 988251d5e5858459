//! A running vault: from a request to its answer, through counting, faults and tokens.

use super::api::Api;
use super::authority::{self, Endpoint};
use super::call::{Call, Operation};
use super::calls::{CHALLENGE, Calls, Entry, TOKEN};
use super::faults::{Fault, Faults};
use super::identity::{Identity, random_guid};
use super::keyring::Keyring;
use super::listing::Query;
use super::refusal::{Caller, Refusal};
use super::reply::Reply;
use super::token::Tokens;
use hyper::body::Bytes;
use hyper::header::{AUTHORIZATION, HeaderValue, USER_AGENT};
use hyper::{HeaderMap, Method, StatusCode, Uri};
use std::net::IpAddr;
use std::sync::Arc;

/// Everything that requests and commands work on.
pub struct Vault {
    /// Its address and secrets.
    pub identity: Identity,
    /// Its keys.
    pub keyring: Keyring,
    /// Its tokens.
    pub tokens: Tokens,
    /// The outages and refusals that are set.
    pub faults: Faults,
    /// How often it was called.
    pub calls: Calls,
}

/// A request with its body.
#[derive(Debug)]
pub struct Request {
    /// GET, POST …
    pub method: Method,
    /// Path and query.
    pub uri: Uri,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Bytes,
    /// Where it comes from.
    pub peer: IpAddr,
}

/// What becomes of a request.
#[derive(Debug)]
pub enum Outcome {
    /// It is answered.
    Answer(Reply),
    /// It is never answered.
    Silence,
    /// Its connection is reset.
    Reset,
}

impl Vault {
    /// A vault with this identity and these keys.
    pub fn new(identity: Identity, keyring: Keyring) -> Self {
        let tokens = Tokens::new(&identity);
        Self { identity, keyring, tokens, faults: Faults::default(), calls: Calls::default() }
    }

    /// Takes a request to its outcome.
    pub async fn respond(self: Arc<Self>, request: Request) -> Outcome {
        if let Some(endpoint) = Endpoint::at(&request.method, request.uri.path()) {
            return self.respond_as_authority(&endpoint, &request.body).await;
        }
        let client_request_id = request.headers.get("x-ms-client-request-id").cloned();
        let text = |value: &HeaderValue| value.to_str().ok().map(str::to_owned);
        let client = request.headers.get(USER_AGENT).and_then(text);
        let operation = Call::parse(&request.method, request.uri.path()).ok().map(|call| call.operation.name());
        let peer = request.peer;
        match self.clone().respond_as_vault(request).await {
            Outcome::Answer(reply) => {
                let entry = Entry {
                    operation,
                    status: reply.status().as_u16(),
                    request_id: random_guid().unwrap_or_default(),
                    client_request_id: client_request_id.as_ref().and_then(text),
                    client,
                };
                self.send(reply, entry, client_request_id.as_ref(), peer)
            }
            other => other,
        }
    }

    async fn respond_as_authority(&self, endpoint: &Endpoint, body: &[u8]) -> Outcome {
        if matches!(endpoint, Endpoint::Token(_)) {
            self.calls.arrived(TOKEN, None);
            match self.faults.take_for_token() {
                Some(Fault::Hang) => return Outcome::Silence,
                Some(Fault::Reset) => return Outcome::Reset,
                Some(Fault::Latency(latency)) => tokio::time::sleep(latency).await,
                Some(fault) => {
                    if let Some(reply) = authority::fault_reply(fault) {
                        return Outcome::Answer(reply);
                    }
                }
                None => {}
            }
        }
        Outcome::Answer(authority::answer(self, endpoint, body))
    }

    async fn respond_as_vault(self: Arc<Self>, request: Request) -> Outcome {
        let call = Call::parse(&request.method, request.uri.path());
        let key = call.as_ref().ok().and_then(Call::key);
        let authorization = request.headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok());
        let token = self.tokens.check(authorization);
        match (&token, &call) {
            (Err(_), _) => self.calls.arrived(CHALLENGE, None),
            (Ok(()), Ok(call)) => self.calls.arrived(call.operation.name(), key),
            (Ok(()), Err(_)) => {}
        }
        match self.faults.take(key, Fault::is_outage) {
            Some(Fault::Hang) => return Outcome::Silence,
            Some(Fault::Reset) => return Outcome::Reset,
            Some(Fault::Latency(latency)) => tokio::time::sleep(latency).await,
            Some(Fault::Error { status }) => {
                let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
                return Outcome::Answer(Refusal::broken(status).into());
            }
            // Those come later, or change nothing here.
            Some(
                Fault::ForbidRole
                | Fault::ForbidPolicy
                | Fault::ForbidFirewall
                | Fault::Throttle { .. }
                | Fault::Clock { .. },
            )
            | None => {}
        }
        if let Err(failure) = token {
            let challenge = self.challenge();
            return Outcome::Answer(Reply::from(Refusal::unauthorized(failure.message())).challenge(&challenge));
        }
        let call = match call {
            Ok(call) => call,
            Err(refusal) => return Outcome::Answer(refusal.into()),
        };
        if let Some(refusal) = self.refused_by_fault(&call, request.peer) {
            return Outcome::Answer(refusal.into());
        }
        let answer = self.answer(call, request).await;
        Outcome::Answer(answer.unwrap_or_else(Reply::from))
    }

    async fn answer(self: Arc<Self>, call: Call, request: Request) -> Result<Reply, Refusal> {
        let query = Query::parse(request.uri.query());
        query.check_version()?;
        let makes_a_key = matches!(call.operation, Operation::Create | Operation::Rotate);
        let work = move || {
            let vault_url = self.identity.vault_url();
            Api { keyring: &self.keyring, vault_url: &vault_url }.answer(&call, &query, &request.body)
        };
        if !makes_a_key {
            return work();
        }
        tokio::task::spawn_blocking(work)
            .await
            .unwrap_or_else(|_| Err(Refusal::broken(StatusCode::INTERNAL_SERVER_ERROR)))
    }

    fn refused_by_fault(&self, call: &Call, peer: IpAddr) -> Option<Refusal> {
        let Identity { client_id, tenant_id, .. } = &self.identity;
        let caller = Caller { client_id, tenant_id };
        match self.faults.take(call.key(), Fault::is_refusal)? {
            Fault::ForbidRole => {
                let resource = call.key().map_or(String::new(), |key| format!("/keys/{}", key.folded()));
                let resource = format!(
                    "/subscriptions/{tenant_id}/resourcegroups/local/providers/microsoft.keyvault/vaults/devvault{resource}"
                );
                Some(Refusal::role_removed(caller, call.operation.action(), &resource))
            }
            Fault::ForbidPolicy => Some(Refusal::policy_removed(caller, call.operation.name())),
            Fault::ForbidFirewall => Some(Refusal::firewall(caller, &peer.to_string())),
            Fault::Throttle { retry_after } => Some(Refusal::throttled(retry_after)),
            Fault::Error { .. } | Fault::Hang | Fault::Reset | Fault::Latency(_) | Fault::Clock { .. } => None,
        }
    }

    fn challenge(&self) -> String {
        let authority = self.identity.authority();
        format!(r#"Bearer authorization="{authority}/{}", resource="{authority}""#, self.identity.tenant_id)
    }

    fn send(&self, reply: Reply, entry: Entry, client_request_id: Option<&HeaderValue>, peer: IpAddr) -> Outcome {
        let request_id = entry.request_id.clone();
        self.calls.answered(reply.status(), entry);
        let family = if peer.is_ipv4() { "Ipv4" } else { "Ipv6" };
        let network = format!("conn_type={family};addr={peer};act_addr_fam=InterNetwork;");
        let reply = reply.service_headers(&request_id, client_request_id, &network);
        Outcome::Answer(reply.clock(self.faults.clock()))
    }
}
