//! Connections: TLS, HTTP/1.1 with keep-alive, and the two outcomes that HTTP has no words for.

use super::vault::{Outcome, Request, Vault};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Response, StatusCode};
use hyper_util::rt::TokioIo;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

/// Longer bodies than any request of the keys API has.
const MAX_BODY: usize = 64 * 1024;
const TLS_HANDSHAKE: Duration = Duration::from_secs(10);

/// Serves the vault for ever.
pub async fn serve(vault: Arc<Vault>, listener: TcpListener, tls: TlsAcceptor) {
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                tokio::spawn(connection(vault.clone(), stream, peer.ip(), tls.clone()));
            }
            Err(error) => {
                // Out of file descriptors: clients wait in the queue until connections have ended.
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

async fn connection(vault: Arc<Vault>, stream: TcpStream, peer: IpAddr, tls: TlsAcceptor) {
    if stream.set_nodelay(true).is_err() {
        return;
    }
    let Ok(Ok(stream)) = tokio::time::timeout(TLS_HANDSHAKE, tls.accept(stream)).await else { return };
    let service = service_fn(move |request| exchange(vault.clone(), request, peer));
    let mut connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
    let reset = match (&mut connection).await {
        Ok(()) => false,
        Err(error) => std::error::Error::source(&error).is_some_and(|source| source.is::<Reset>()),
    };
    if reset {
        let stream = connection.into_parts().io.into_inner();
        // A socket that lingers for no time is reset when it is closed, and TLS does not say goodbye.
        if let Err(error) = stream.get_ref().0.set_zero_linger() {
            tracing::warn!(%error, "cannot reset a connection");
        }
    }
}

async fn exchange(
    vault: Arc<Vault>,
    request: hyper::Request<Incoming>,
    peer: IpAddr,
) -> Result<Response<Full<Bytes>>, Reset> {
    let (parts, body) = request.into_parts();
    let Ok(body) = Limited::new(body, MAX_BODY).collect().await else {
        let mut response = Response::new(Full::default());
        *response.status_mut() = StatusCode::PAYLOAD_TOO_LARGE;
        return Ok(response);
    };
    let request = Request { method: parts.method, uri: parts.uri, headers: parts.headers, body: body.to_bytes(), peer };
    match vault.respond(request).await {
        Outcome::Answer(reply) => Ok(reply.into_response()),
        Outcome::Silence => std::future::pending().await,
        Outcome::Reset => Err(Reset),
    }
}

/// Ends a connection without an answer.
#[derive(Clone, Copy, Debug)]
struct Reset;

impl fmt::Display for Reset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the connection is reset on command")
    }
}

impl std::error::Error for Reset {}
