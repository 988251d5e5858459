//! One request and its answer.

use super::{Answer, Routes};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CONTENT_TYPE, HOST, HeaderName, HeaderValue};
use hyper::{Method, Request, Response};
use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::Arc;

/// A page may load what is served here, and nothing else; it is shown in no frame, and sends nothing anywhere.
const HEADERS: [(&str, &str); 6] = [
    (
        "content-security-policy",
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
    ("x-content-type-options", "nosniff"),
    ("x-frame-options", "DENY"),
    ("referrer-policy", "no-referrer"),
    ("cross-origin-resource-policy", "same-origin"),
    ("cache-control", "no-store"),
];

/// Answers a request; if `checks_host`, only one that knows that it is for this machine.
pub(super) async fn exchange(
    routes: Arc<Routes>,
    checks_host: bool,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let host = request.headers().get(HOST).and_then(|host| host.to_str().ok());
    let answer = if checks_host && !host.is_some_and(is_loopback) {
        // The name of another machine that leads here is how a page from there would get at the answer.
        Answer::text(421, "this is served under localhost, 127.0.0.1 and [::1] only\n")
    } else if !matches!(*request.method(), Method::GET | Method::HEAD) {
        Answer::text(405, "this can be read, and nothing else\n")
    } else {
        let path = request.uri().path().to_owned();
        // Whoever makes the answer may have to wait for a mount.
        match tokio::task::spawn_blocking(move || routes(&path)).await {
            Ok(Some(answer)) => answer,
            Ok(None) => Answer::text(404, "there is nothing here\n"),
            Err(_) => Answer::text(500, "the answer could not be made\n"),
        }
    };
    let mut response = Response::new(Full::new(Bytes::from(answer.body)));
    *response.status_mut() = hyper::StatusCode::from_u16(answer.status).unwrap_or_default();
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(answer.content_type));
    if answer.status == 405 {
        headers.insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
    }
    for (name, value) in HEADERS {
        headers.insert(HeaderName::from_static(name), HeaderValue::from_static(value));
    }
    Ok(response)
}

/// Whether a `Host` header names this machine in a way that no other machine's owner can give away.
fn is_loopback(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split_once(']').map_or(rest, |(address, _)| address),
        None => host.split_once(':').map_or(host, |(name, _)| name),
    };
    name.eq_ignore_ascii_case("localhost") || name.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_other_machines_are_not_this_one() {
        for good in ["localhost", "LOCALHOST:9180", "127.0.0.1", "127.0.0.1:1", "[::1]", "[::1]:9180"] {
            assert!(is_loopback(good), "{good}");
        }
        for bad in ["", "evil.example", "localhost.evil.example", "127.0.0.1.nip.io:80", "10.0.0.1", "[::2]:1"] {
            assert!(!is_loopback(bad), "{bad}");
        }
    }
}
