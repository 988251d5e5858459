//! The part of Entra ID that clients talk to before they talk to the vault: discovery, and tokens for the client
//! credentials grant (RFC 6749, section 4.4).

use super::faults::Fault;
use super::identity::random_guid;
use super::reply::Reply;
use super::vault::Vault;
use aws_lc_rs::constant_time;
use hyper::{Method, StatusCode};
use serde_json::{Value, json};
use std::collections::HashMap;
use url::form_urlencoded;

/// A path of the authority.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// `/TENANT/oauth2/v2.0/token`.
    Token(String),
    /// `/TENANT/v2.0/.well-known/openid-configuration`, with or without `v2.0`.
    OpenIdConfiguration(String),
    /// `/common/discovery/instance`.
    InstanceDiscovery,
}

impl Endpoint {
    /// The endpoint at this path.
    pub fn at(method: &Method, path: &str) -> Option<Self> {
        let segments: Vec<&str> = path.trim_matches('/').split('/').collect();
        match (method, segments.as_slice()) {
            (&Method::POST, [tenant, "oauth2", "v2.0", "token"]) => Some(Self::Token((*tenant).into())),
            (
                &Method::GET,
                [tenant, "v2.0", ".well-known", "openid-configuration"]
                | [tenant, ".well-known", "openid-configuration"],
            ) => Some(Self::OpenIdConfiguration((*tenant).into())),
            (&Method::GET, ["common", "discovery", "instance"]) => Some(Self::InstanceDiscovery),
            _ => None,
        }
    }
}

/// Answers it.
pub fn answer(vault: &Vault, endpoint: &Endpoint, body: &[u8]) -> Reply {
    match endpoint {
        Endpoint::Token(tenant) => token(vault, tenant, body),
        Endpoint::OpenIdConfiguration(tenant) => known_tenant(vault, tenant).map_or_else(
            || failed(StatusCode::BAD_REQUEST, "invalid_tenant", 90002, &format!("Tenant '{tenant}' not found.")),
            |tenant| Reply::json(StatusCode::OK, &openid_configuration(vault, tenant)),
        ),
        Endpoint::InstanceDiscovery => {
            let (authority, tenant) = (vault.identity.authority(), &vault.identity.tenant_id);
            let host = authority.trim_start_matches("https://");
            Reply::json(
                StatusCode::OK,
                &json!({
                    "tenant_discovery_endpoint": format!("{authority}/{tenant}/v2.0/.well-known/openid-configuration"),
                    "api-version": "1.1",
                    "metadata": [{ "preferred_network": host, "preferred_cache": host, "aliases": [host] }],
                }),
            )
        }
    }
}

/// What the token endpoint says under a fault; `None` for those that it cannot have.
pub fn fault_reply(fault: Fault) -> Option<Reply> {
    match fault {
        Fault::Throttle { retry_after } => {
            let reply = failed(StatusCode::TOO_MANY_REQUESTS, "temporarily_unavailable", 90055, "Too many requests.");
            Some(reply.retry_after(retry_after))
        }
        Fault::Error { status } => {
            let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
            Some(failed(status, "server_error", 90033, "A transient error has occurred. Please try again."))
        }
        Fault::ForbidRole
        | Fault::ForbidPolicy
        | Fault::ForbidFirewall
        | Fault::Hang
        | Fault::Reset
        | Fault::Latency(_)
        | Fault::Clock { .. } => None,
    }
}

fn token(vault: &Vault, tenant: &str, body: &[u8]) -> Reply {
    let form: HashMap<_, _> = form_urlencoded::parse(body).collect();
    let field = |name: &str| form.get(name).map(|value| value.as_ref()).unwrap_or_default();
    let identity = &vault.identity;
    if known_tenant(vault, tenant).is_none() {
        return failed(StatusCode::BAD_REQUEST, "invalid_request", 90002, &format!("Tenant '{tenant}' not found."));
    }
    if field("grant_type") != "client_credentials" {
        let message = "The grant type is not supported: kmsfs dev-vault has client_credentials.";
        return failed(StatusCode::BAD_REQUEST, "unsupported_grant_type", 70003, message);
    }
    if field("client_id") != identity.client_id {
        let message = format!("Application with identifier '{}' was not found.", field("client_id"));
        return failed(StatusCode::BAD_REQUEST, "unauthorized_client", 700_016, &message);
    }
    let secret_matches =
        constant_time::verify_slices_are_equal(field("client_secret").as_bytes(), identity.client_secret.as_bytes());
    if secret_matches.is_err() {
        return failed(StatusCode::UNAUTHORIZED, "invalid_client", 7_000_215, "Invalid client secret provided.");
    }
    let scopes = [format!("{}/.default", identity.authority()), "https://vault.azure.net/.default".into()];
    if !field("scope").split(' ').any(|scope| scopes.iter().any(|known| known == scope)) {
        let message = format!("The resource principal of scope '{}' was not found.", field("scope"));
        return failed(StatusCode::BAD_REQUEST, "invalid_scope", 70011, &message);
    }
    match vault.tokens.issue() {
        Ok(token) => Reply::json(
            StatusCode::OK,
            &json!({
                "token_type": "Bearer", "expires_in": vault.tokens.lifetime(),
                "ext_expires_in": vault.tokens.lifetime(), "access_token": token,
            }),
        ),
        Err(_) => failed(StatusCode::INTERNAL_SERVER_ERROR, "server_error", 90033, "No random bytes."),
    }
}

fn known_tenant<'a>(vault: &'a Vault, tenant: &str) -> Option<&'a str> {
    tenant.eq_ignore_ascii_case(&vault.identity.tenant_id).then_some(vault.identity.tenant_id.as_str())
}

fn openid_configuration(vault: &Vault, tenant: &str) -> Value {
    let base = format!("{}/{tenant}", vault.identity.authority());
    json!({
        "issuer": format!("{base}/v2.0"),
        "token_endpoint": format!("{base}/oauth2/v2.0/token"),
        "authorization_endpoint": format!("{base}/oauth2/v2.0/authorize"),
        "device_authorization_endpoint": format!("{base}/oauth2/v2.0/devicecode"),
        "jwks_uri": format!("{base}/discovery/v2.0/keys"),
        "token_endpoint_auth_methods_supported": ["client_secret_post"],
        "response_types_supported": ["code"],
        "subject_types_supported": ["pairwise"],
        "id_token_signing_alg_values_supported": ["RS256"],
        "scopes_supported": ["openid"],
        "tenant_region_scope": "local",
    })
}

/// An error as Entra ID writes it; clients read `error_codes` and show `error_description`.
fn failed(status: StatusCode, error: &str, code: u32, message: &str) -> Reply {
    let trace = random_guid().unwrap_or_default();
    Reply::json(
        status,
        &json!({
            "error": error,
            "error_description": format!("AADSTS{code}: {message} Trace ID: {trace}"),
            "error_codes": [code],
            "timestamp": humantime::format_rfc3339_seconds(std::time::SystemTime::now()).to_string(),
            "trace_id": trace, "correlation_id": trace,
        }),
    )
}
