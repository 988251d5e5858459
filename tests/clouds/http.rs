//! An HTTP server on loopback that can also keep silent; gone when it goes out of scope.

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use std::collections::HashMap;
use std::future::Future;
use std::net::Ipv4Addr;
use std::pin::Pin;
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use tokio::net::TcpListener;
use tokio::sync::oneshot;

/// What was asked.
pub struct Asked {
    pub method: String,
    pub path: String,
    /// Names are in lower case.
    pub headers: HashMap<String, String>,
    pub body: Bytes,
}

/// How it is answered.
pub enum Answer {
    Reply {
        status: u16,
        headers: Vec<(String, String)>,
        body: Vec<u8>,
    },
    /// The connection is closed.
    Cut,
    /// Never.
    Silence,
}

impl Answer {
    pub fn json(status: u16, document: &serde_json::Value) -> Self {
        let headers = vec![("content-type".to_owned(), "application/json".to_owned())];
        Self::Reply { status, headers, body: document.to_string().into_bytes() }
    }
}

type Answered = Pin<Box<dyn Future<Output = Answer> + Send>>;
type Answering = Arc<dyn Fn(Asked) -> Answered + Send + Sync>;

/// The server.
pub struct Server {
    pub port: u16,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Starts it, on a port of its own.
    pub fn start<F: Future<Output = Answer> + Send + 'static>(
        answer: impl Fn(Asked) -> F + Send + Sync + 'static,
    ) -> Self {
        let answer: Answering = Arc::new(move |asked: Asked| -> Answered { Box::pin(answer(asked)) });
        let (stop, stopped) = oneshot::channel();
        let (tell, port) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async {
                let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
                tell.send(listener.local_addr().expect("an address").port()).expect("somebody waits for the port");
                tokio::select! {
                    () = serve(listener, answer) => {}
                    _ = stopped => {}
                }
            });
            runtime.shutdown_background();
        });
        let port = port.recv().expect("the server starts");
        Self { port, stop: Some(stop), thread: Some(thread) }
    }

    /// Its address.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.take().map(|stop| stop.send(()));
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn serve(listener: TcpListener, answer: Answering) {
    loop {
        let Ok((stream, _)) = listener.accept().await else { continue };
        let answer = Arc::clone(&answer);
        tokio::spawn(async move {
            let service = service_fn(move |request| exchange(request, Arc::clone(&answer)));
            let io = hyper_util::rt::TokioIo::new(stream);
            // A connection that is cut ends in an error.
            let _ = hyper::server::conn::http1::Builder::new().serve_connection(io, service).await;
        });
    }
}

async fn exchange(request: Request<Incoming>, answer: Answering) -> Result<Response<Full<Bytes>>, std::io::Error> {
    let (head, body) = request.into_parts();
    let body = body.collect().await.map_err(std::io::Error::other)?.to_bytes();
    let text = |value: &hyper::header::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    let asked = Asked {
        method: head.method.to_string(),
        path: head.uri.path().to_owned(),
        headers: head.headers.iter().map(|(name, value)| (name.as_str().to_owned(), text(value))).collect(),
        body,
    };
    match answer(asked).await {
        Answer::Reply { status, headers, body } => {
            let reply = headers.iter().fold(Response::builder().status(status), |reply, (name, value)| {
                reply.header(name.as_str(), value.as_str())
            });
            reply.body(Full::from(body)).map_err(std::io::Error::other)
        }
        Answer::Cut => Err(std::io::ErrorKind::ConnectionReset.into()),
        Answer::Silence => std::future::pending().await,
    }
}
