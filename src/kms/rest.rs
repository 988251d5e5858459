//! JSON over HTTPS for providers: one request, one reply. Depends on the seam and the HTTP library; knows no provider.
//! Invariant: no redirect is followed, nothing is retried here (`worker` does that), a reply has a limit, and what an
//! error says holds neither a body nor a token. Whatever is not an answer of the service is `Unreachable`.

pub(super) use super::kek::is_loopback;
use super::kek::is_loopback_name;
use super::{KmsError, KmsErrorKind};
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, USER_AGENT};
use reqwest::{Method, Url};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::{Duration, SystemTime};
use zeroize::{Zeroize, Zeroizing};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Idle connections are closed before the load balancers between here and there forget them.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);
/// No reply that a provider waits for comes near to this, in bytes.
const MAX_REPLY_LEN: usize = 1 << 20;

/// Sends requests, and names the mount in each of them.
pub(super) struct Rest {
    client: reqwest::Client,
    agent: HeaderValue,
}

impl Rest {
    /// A client for these hosts; others are not excluded. Talks to nobody yet.
    ///
    /// # Errors
    /// [`KmsErrorKind::Misconfigured`] for a CA file that cannot be used.
    pub(super) fn new(hosts: &[&str], ca_file: Option<&Path>, mount: Option<&str>) -> Result<Self, KmsError> {
        let agent = HeaderValue::try_from(label(mount)).unwrap_or(HeaderValue::from_static("kmsfs"));
        Ok(Self { client: client(hosts, ca_file)?, agent })
    }

    /// Sends it once. A reply of any status but a redirection is `Ok`: what it means, the provider knows.
    ///
    /// # Errors
    /// [`KmsErrorKind::Unreachable`] if no whole reply came.
    pub(super) async fn send(&self, request: Request) -> Result<Reply, KmsError> {
        let Request { method, url, headers, body } = request;
        let host = url.host_str().unwrap_or_default().to_owned();
        let silence = |error: reqwest::Error| silent(&host, &error_chain(&error.without_url()));
        let mut builder = self.client.request(method, url).header(USER_AGENT, self.agent.clone()).headers(headers);
        if let Some(body) = body {
            builder = builder.body(body);
        }
        let mut response = builder.send().await.map_err(silence)?;
        let status = response.status();
        if status.is_redirection() {
            let message =
                format!("{host} sends on to another place (status {}), which is not followed", status.as_u16());
            return Err(KmsError::new(KmsErrorKind::Unreachable, message));
        }
        let headers = std::mem::take(response.headers_mut());
        let mut body = Zeroizing::new(Vec::new());
        while let Some(chunk) = response.chunk().await.map_err(silence)? {
            if body.len() + chunk.len() > MAX_REPLY_LEN {
                let message = format!("{host} replies with more than {MAX_REPLY_LEN} bytes");
                return Err(KmsError::new(KmsErrorKind::Unreachable, message));
            }
            body.extend_from_slice(&chunk);
            if let Ok(mut bytes) = chunk.try_into_mut() {
                bytes.zeroize();
            }
        }
        Ok(Reply { status: status.as_u16(), headers, body })
    }
}

/// What to send. Header values that are given here are not shown by any log.
pub(super) struct Request {
    method: Method,
    url: Url,
    headers: HeaderMap,
    body: Option<Vec<u8>>,
}

impl Request {
    /// A request without a body.
    pub(super) fn new(method: Method, url: Url) -> Self {
        Self { method, url, headers: HeaderMap::new(), body: None }
    }

    /// GET.
    pub(super) fn get(url: Url) -> Self {
        Self::new(Method::GET, url)
    }

    /// POST of a JSON document. It may hold a secret: the HTTP library frees its copies without wiping, which the
    /// program's allocator does.
    pub(super) fn post(url: Url, document: &impl Serialize) -> Self {
        let body = serde_json::to_vec(document).unwrap_or_default();
        let request = Self::new(Method::POST, url).header(CONTENT_TYPE, "application/json");
        Self { body: Some(body), ..request }
    }

    /// The same with this body, of this type.
    pub(super) fn body(self, content_type: &str, body: Vec<u8>) -> Self {
        Self { body: Some(body), ..self }.header(CONTENT_TYPE, content_type)
    }

    /// With this header. A value that cannot be one is left out; then the service refuses the request.
    pub(super) fn header(mut self, name: HeaderName, value: &str) -> Self {
        if let Ok(mut value) = HeaderValue::from_str(value) {
            value.set_sensitive(true);
            self.headers.insert(name, value);
        }
        self
    }

    /// A header that it has, for tests.
    #[cfg(test)]
    pub(super) fn header_value(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// With this token.
    pub(super) fn bearer(self, token: &str) -> Self {
        let value = Zeroizing::new(format!("Bearer {token}"));
        self.header(AUTHORIZATION, &value)
    }
}

/// What came back. The body is wiped when this is dropped.
pub(super) struct Reply {
    pub(super) status: u16,
    headers: HeaderMap,
    pub(super) body: Zeroizing<Vec<u8>>,
}

impl Reply {
    /// The body as JSON, if it is that.
    pub(super) fn json<T: DeserializeOwned>(&self) -> Option<T> {
        serde_json::from_slice(&self.body).ok()
    }

    /// All headers.
    pub(super) fn headers(&self) -> &HeaderMap {
        &self.headers
    }

    /// A header.
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// For how long the service wants to be left alone: seconds, or a date.
    pub(super) fn retry_after(&self) -> Option<Duration> {
        let value = self.header("retry-after")?.trim();
        let until =
            |date: SystemTime| date.duration_since(self.time().unwrap_or_else(SystemTime::now)).unwrap_or_default();
        value.parse().map(Duration::from_secs).ok().or_else(|| httpdate::parse_http_date(value).ok().map(until))
    }

    /// The service's clock when it answered, to the second.
    pub(super) fn time(&self) -> Option<SystemTime> {
        httpdate::parse_http_date(self.header("date")?).ok()
    }
}

/// An HTTP client for these hosts: no redirects, a connection for each call under way, private certificates if there are
/// any.
///
/// # Errors
/// [`KmsErrorKind::Misconfigured`] for a CA file that cannot be used.
pub(super) fn client(hosts: &[&str], ca_file: Option<&Path>) -> Result<reqwest::Client, KmsError> {
    let mut builder = reqwest::Client::builder()
        .https_only(false) // a machine's own identity is asked for on a link-local address, in clear
        .redirect(reqwest::redirect::Policy::none())
        .connect_timeout(CONNECT_TIMEOUT)
        .pool_idle_timeout(IDLE_TIMEOUT)
        .tcp_keepalive(Duration::from_secs(15))
        // With HTTP/2 every call would share one connection, and hang with it.
        .http1_only();
    for host in hosts.iter().copied().filter(|host| is_loopback(host)) {
        builder = builder.no_proxy();
        if is_loopback_name(host) {
            // RFC 6761, section 6.3; the C library does not know it. Port 0 stands for that of the URL.
            builder = builder.resolve(host, SocketAddr::from((Ipv4Addr::LOCALHOST, 0)));
        }
    }
    if let Some(path) = ca_file {
        let bad = |what: String| {
            KmsError::new(KmsErrorKind::Misconfigured, format!("the CA file '{}' {what}", path.display()))
                .hint("KMSFS_CA_FILE names a file with one or more certificates in PEM")
        };
        let pem = std::fs::read(path).map_err(|error| bad(format!("cannot be read: {error}")))?;
        let certificates =
            reqwest::Certificate::from_pem_bundle(&pem).map_err(|error| bad(format!("is not PEM: {error}")))?;
        if certificates.is_empty() {
            return Err(bad("holds no certificate".into()));
        }
        builder = builder.tls_certs_merge(certificates);
    }
    builder.build().map_err(|error| {
        let message = format!("no TLS client: {}", error_chain(&error));
        KmsError::new(KmsErrorKind::Misconfigured, message).hint("check KMSFS_CA_FILE and the system's certificates")
    })
}

/// A server's address as somebody wrote it: `https://HOST[:PORT][/PATH]`, in clear only on this machine.
///
/// # Errors
/// What is wrong with it, without repeating a password.
pub(super) fn endpoint(text: &str) -> Result<Url, String> {
    let url = Url::parse(text).map_err(|error| error.to_string())?;
    let host = url.host_str().unwrap_or_default();
    match url.scheme() {
        _ if !url.username().is_empty() || url.password().is_some() => Err("it holds a user or password".into()),
        "https" => Ok(url),
        "http" if is_loopback(host) => Ok(url),
        "http" => Err(format!("http://{host} would send tokens and keys in clear")),
        scheme => Err(format!("its scheme is '{scheme}'")),
    }
}

/// How this program and this mount are called in the logs of a service: nothing in it can break a header.
pub(super) fn label(mount: Option<&str>) -> String {
    let version = env!("CARGO_PKG_VERSION");
    let clean: String = mount
        .unwrap_or_default()
        .chars()
        .filter(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
        .take(64)
        .collect();
    if clean.is_empty() { format!("kmsfs/{version}") } else { format!("kmsfs/{version} (mount {clean})") }
}

/// Nobody answered at this host; `chain` is what the libraries say about it.
pub(super) fn silent(host: &str, chain: &str) -> KmsError {
    let what = reason(chain).unwrap_or_else(|| first_line(chain));
    let silent = KmsError::new(KmsErrorKind::Unreachable, format!("{host} does not answer: {what}"));
    if what.contains("certificate") {
        silent.hint("if the service's certificate is of a private CA, name its file in KMSFS_CA_FILE")
    } else if what.contains("no address") {
        silent.hint("check the host's name; what was deleted in a cloud has no address any more")
    } else {
        silent
    }
}

/// The usual reasons, shorter than the chain of errors that they come in.
pub(super) fn reason(chain: &str) -> Option<String> {
    let lower = chain.to_ascii_lowercase();
    let known = [
        ("certificate", "its certificate is not trusted"),
        ("dns error", "its name has no address"),
        ("failed to lookup", "its name has no address"),
        ("connection refused", "connection refused"),
        ("connection reset", "the connection was reset"),
        ("connection closed", "the connection was closed"),
        ("incompletemessage", "the connection was closed"),
        ("network is unreachable", "the network is unreachable"),
        ("no route to host", "no route to the host"),
        ("operation timed out", "it took too long to connect"),
        ("timed out", "it took too long"),
    ];
    known.iter().find(|(pattern, _)| lower.contains(pattern)).map(|(_, words)| (*words).to_owned())
}

/// An error with everything below it, on one line.
pub(super) fn error_chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        text = format!("{text}: {inner}");
        source = inner.source();
    }
    text
}

/// What a service says, fit for a message: one line, at most 300 characters, no control characters.
pub(super) fn first_line(text: &str) -> String {
    let line = text.trim().lines().next().unwrap_or_default().trim_end_matches('.');
    line.chars().filter(|c| !c.is_control()).take(300).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::TcpListener;

    /// Answers one connection with these bytes, and returns what it was sent.
    fn exchange(answer: &'static [u8], request: impl Fn(Url) -> Request) -> (Result<Reply, KmsError>, String) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = Url::parse(&format!("http://{}/path", listener.local_addr().unwrap())).unwrap();
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let (mut sent, mut buffer) = (Vec::new(), [0; 4096]);
            while !sent.windows(4).any(|end| end == b"\r\n\r\n") {
                let len = stream.read(&mut buffer).unwrap();
                sent.extend_from_slice(&buffer[..len]);
            }
            // Who is answered may hang up in the middle.
            let _ = stream.write_all(answer);
            String::from_utf8_lossy(&sent).into_owned()
        });
        let rest = Rest::new(&["127.0.0.1"], None, Some("m-1")).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let reply = runtime.block_on(rest.send(request(url)));
        (reply, server.join().unwrap())
    }

    #[test]
    fn a_request_names_the_mount_and_a_reply_is_taken_apart() {
        let answer = b"HTTP/1.1 429 Too Many\r\nDate: Sat, 28 Nov 2026 01:00:00 GMT\r\n\
                       Retry-After: Sat, 28 Nov 2026 01:00:07 GMT\r\nContent-Length: 7\r\n\r\n{\"a\":1}";
        let (reply, sent) = exchange(answer, |url| Request::get(url).bearer("hunter2"));
        let reply = reply.unwrap();
        assert_eq!((reply.status, reply.retry_after()), (429, Some(Duration::from_secs(7))));
        assert_eq!(reply.json::<serde_json::Value>().unwrap()["a"], 1);
        let sent = sent.to_ascii_lowercase();
        assert!(sent.contains(concat!("kmsfs/", env!("CARGO_PKG_VERSION"), " (mount m-1)")), "{sent}");
        assert!(sent.contains("authorization: bearer hunter2"), "{sent}");
    }

    #[test]
    fn what_is_not_a_whole_reply_is_silence_without_secrets() {
        static LONG: std::sync::LazyLock<Vec<u8>> = std::sync::LazyLock::new(|| {
            let mut answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2000000\r\n\r\n".to_vec();
            answer.resize(2_000_000, b' ');
            answer
        });
        let answers: [(&'static [u8], &str); 5] = [
            (b"", "closed"),
            (b"SSH-2.0-x\r\n", "127.0.0.1"),
            (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf", "127.0.0.1"),
            (b"HTTP/1.1 307 Elsewhere\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n", "not followed"),
            (&LONG, "more than"),
        ];
        for (answer, words) in answers {
            let document = serde_json::json!({ "plaintext": "hunter2" });
            let (reply, _) = exchange(answer, |url| Request::post(url, &document).bearer("hunter2"));
            let error = reply.err().unwrap();
            assert_eq!(error.kind, KmsErrorKind::Unreachable, "{error}");
            assert!(error.message.contains(words) && !format!("{error:?}").contains("hunter2"), "{error:?}");
        }
    }

    #[test]
    fn the_label_names_the_mount_and_cannot_break_a_header() {
        assert_eq!(label(Some("a-1\r\nX: y")), concat!("kmsfs/", env!("CARGO_PKG_VERSION"), " (mount a-1Xy)"));
        assert_eq!(label(None), concat!("kmsfs/", env!("CARGO_PKG_VERSION")));
    }

    #[test]
    fn only_this_machine_is_talked_to_in_clear() {
        for text in ["https://kms.example", "http://127.0.0.1:4566", "http://localhost/x", "http://[::1]:1"] {
            assert!(endpoint(text).is_ok(), "{text}");
        }
        for text in ["http://kms.example", "ftp://localhost", "kms.example", "https://u:hunter2@kms.example", ""] {
            assert!(!endpoint(text).expect_err(text).contains("hunter2"), "{text}");
        }
    }

    #[test]
    fn a_ca_file_that_is_absent_or_holds_no_certificate_is_refused() {
        let dir = tempfile::TempDir::new().unwrap();
        let empty = dir.path().join("empty.pem");
        std::fs::write(&empty, "").unwrap();
        for path in ["/nonexistent/ca.pem", empty.to_str().unwrap()] {
            let error = client(&[], Some(path.as_ref())).expect_err(path);
            assert_eq!(error.kind, KmsErrorKind::Misconfigured, "{path}");
            assert!(error.hint.unwrap().contains("KMSFS_CA_FILE"));
        }
    }
}
