//! A small HTTP server for this machine: it answers GET and HEAD on a Unix socket or on loopback, and nothing can be told
//! to it. One thread, and a few more for as long as answers are made. Knows nothing of what it serves.
//! Invariant: a page of another origin gets nothing, by whatever name it calls this machine.

mod address;
mod exchange;

pub use address::Address;
use exchange::exchange;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use std::io;
use std::net::TcpListener;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// So many connections at once; others wait.
const CONNECTIONS: usize = 32;
/// So many answers are made at once.
const ANSWERS: usize = 4;
/// For how long a client may take to ask.
const ASKING: Duration = Duration::from_secs(10);
/// After the system had no connection to give.
const PAUSE: Duration = Duration::from_millis(50);

/// What is answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// The media type.
    pub content_type: &'static str,
    /// What is sent.
    pub body: String,
}

impl Answer {
    /// One that is all right.
    pub fn ok(content_type: &'static str, body: impl Into<String>) -> Self {
        Self { status: 200, content_type, body: body.into() }
    }

    /// A line of text.
    pub fn text(status: u16, body: impl Into<String>) -> Self {
        Self { status, content_type: "text/plain; charset=utf-8", body: body.into() }
    }
}

/// What makes the answers: from the path of a request, which begins with `/`; `None` if there is nothing there.
pub type Routes = dyn Fn(&str) -> Option<Answer> + Send + Sync;

/// A server that is bound and does not serve yet. Its socket is removed when it is dropped, and when it has served.
pub struct Server {
    listener: Listener,
    address: Address,
}

enum Listener {
    Unix(UnixListener),
    Loopback(TcpListener),
}

impl Server {
    /// Takes an address. A socket that a dead process left behind is replaced; it is for its own user only.
    ///
    /// # Errors
    /// The system's, above all that somebody else serves there.
    pub fn bind(address: &Address) -> io::Result<Self> {
        let (listener, address) = match address {
            Address::Unix(path) => {
                free(path)?;
                let listener = UnixListener::bind(path)?;
                std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
                listener.set_nonblocking(true)?;
                // The process may change its directory later.
                (Listener::Unix(listener), Address::Unix(path.canonicalize()?))
            }
            Address::Loopback(address) => {
                let listener = TcpListener::bind(address)?;
                listener.set_nonblocking(true)?;
                let address = Address::Loopback(listener.local_addr()?);
                (Listener::Loopback(listener), address)
            }
        };
        Ok(Self { listener, address })
    }

    /// Where it is; with the port that the system chose.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// Serves for as long as the process lives, on a thread of its own.
    ///
    /// # Errors
    /// If the system has no thread to give.
    pub fn spawn(self, routes: Arc<Routes>) -> io::Result<()> {
        std::thread::Builder::new().name("kmsfs-http".into()).spawn(move || {
            if let Err(error) = self.serve(routes, std::future::pending()) {
                tracing::error!("metrics are not served any more: {error}");
            }
        })?;
        Ok(())
    }

    /// Serves until something has happened.
    ///
    /// # Errors
    /// The system's.
    pub fn serve(self, routes: Arc<Routes>, until: impl Future<Output = ()>) -> io::Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(ANSWERS)
            .thread_name("kmsfs-http")
            .build()?;
        let result = runtime.block_on(async {
            tokio::select! {
                result = self.accept(routes) => result,
                () = until => Ok(()),
            }
        });
        // Nobody waits for an answer that is being made.
        runtime.shutdown_background();
        result
    }

    async fn accept(&self, routes: Arc<Routes>) -> io::Result<()> {
        let free = Arc::new(Semaphore::new(CONNECTIONS));
        let turn = || async { Arc::clone(&free).acquire_owned().await.map_err(io::Error::other) };
        match &self.listener {
            Listener::Unix(listener) => {
                let listener = tokio::net::UnixListener::from_std(listener.try_clone()?)?;
                loop {
                    let turn = turn().await?;
                    match listener.accept().await {
                        Ok((stream, _)) => connect(stream, false, &routes, turn),
                        Err(_) => tokio::time::sleep(PAUSE).await,
                    }
                }
            }
            Listener::Loopback(listener) => {
                let listener = tokio::net::TcpListener::from_std(listener.try_clone()?)?;
                loop {
                    let turn = turn().await?;
                    match listener.accept().await {
                        Ok((stream, _)) => connect(stream, true, &routes, turn),
                        Err(_) => tokio::time::sleep(PAUSE).await,
                    }
                }
            }
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Address::Unix(path) = &self.address {
            let _ = std::fs::remove_file(path);
        }
    }
}

fn connect(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    checks_host: bool,
    routes: &Arc<Routes>,
    turn: OwnedSemaphorePermit,
) {
    let routes = Arc::clone(routes);
    tokio::spawn(async move {
        let _turn = turn;
        let service = service_fn(move |request| exchange(Arc::clone(&routes), checks_host, request));
        let mut builder = http1::Builder::new();
        builder.timer(TokioTimer::new()).header_read_timeout(ASKING);
        // Who hung up is told nothing.
        let _ = builder.serve_connection(TokioIo::new(stream), service).await;
    });
}

/// Removes a socket at which nobody answers.
fn free(path: &Path) -> io::Result<()> {
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
        Ok(metadata) if !metadata.file_type().is_socket() => Err(io::ErrorKind::AlreadyExists.into()),
        Ok(_) if UnixStream::connect(path).is_ok() => Err(io::ErrorKind::AddrInUse.into()),
        Ok(_) => std::fs::remove_file(path),
    }
}

#[cfg(test)]
mod tests;
