//! A reply on its way out: status, headers, and a JSON body.

use super::refusal::Refusal;
use http_body_util::Full;
use hyper::body::Bytes;
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE, DATE, HeaderName, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use hyper::{Response, StatusCode};
use serde_json::Value;
use std::time::{Duration, SystemTime};

/// One reply.
#[derive(Debug)]
pub struct Reply {
    response: Response<Full<Bytes>>,
}

impl Reply {
    /// With a JSON body.
    pub fn json(status: StatusCode, body: &Value) -> Self {
        let mut reply = Self { response: Response::new(Full::new(body.to_string().into())) };
        *reply.response.status_mut() = status;
        reply.set(CONTENT_TYPE, "application/json; charset=utf-8");
        reply.set(CACHE_CONTROL, "no-cache");
        reply
    }

    /// 204.
    pub fn no_content() -> Self {
        let mut reply = Self { response: Response::new(Full::default()) };
        *reply.response.status_mut() = StatusCode::NO_CONTENT;
        reply
    }

    /// With the `Retry-After` header, if there is a value.
    #[must_use]
    pub fn retry_after(mut self, seconds: Option<u64>) -> Self {
        if let Some(seconds) = seconds {
            self.set(RETRY_AFTER, &seconds.to_string());
        }
        self
    }

    /// With the challenge of a vault that wants a token.
    #[must_use]
    pub fn challenge(mut self, challenge: &str) -> Self {
        self.set(WWW_AUTHENTICATE, challenge);
        self
    }

    /// The headers that every reply of a vault carries. `client_request_id` is the client's own, which comes back.
    #[must_use]
    pub fn service_headers(mut self, request_id: &str, client_request_id: Option<&HeaderValue>, network: &str) -> Self {
        if let Some(id) = client_request_id {
            self.response.headers_mut().insert(HeaderName::from_static("x-ms-client-request-id"), id.clone());
        }
        self.set(HeaderName::from_static("x-ms-request-id"), request_id);
        self.set(HeaderName::from_static("x-ms-keyvault-region"), "local");
        self.set(
            HeaderName::from_static("x-ms-keyvault-service-version"),
            concat!("kmsfs/", env!("CARGO_PKG_VERSION")),
        );
        self.set(HeaderName::from_static("x-ms-keyvault-network-info"), network);
        self.set(HeaderName::from_static("x-content-type-options"), "nosniff");
        self
    }

    /// With the time of a clock that is so many seconds ahead, if that is said; else the server puts in its own.
    #[must_use]
    pub fn clock(mut self, ahead: Option<i64>) -> Self {
        if let Some(ahead) = ahead {
            let (now, apart) = (SystemTime::now(), Duration::from_secs(ahead.unsigned_abs()));
            let time = if ahead < 0 { now.checked_sub(apart) } else { now.checked_add(apart) };
            self.set(DATE, &httpdate::fmt_http_date(time.unwrap_or(now)));
        }
        self
    }

    /// Its status.
    pub fn status(&self) -> StatusCode {
        self.response.status()
    }

    /// As hyper sends it.
    pub fn into_response(self) -> Response<Full<Bytes>> {
        self.response
    }

    /// Values are made here from numbers, GUIDs and constants; one that no header can hold is left out.
    fn set(&mut self, name: HeaderName, value: &str) {
        if let Ok(value) = HeaderValue::from_str(value) {
            self.response.headers_mut().insert(name, value);
        }
    }
}

impl From<Refusal> for Reply {
    fn from(refusal: Refusal) -> Self {
        Self::json(refusal.status, &refusal.body()).retry_after(refusal.retry_after)
    }
}
