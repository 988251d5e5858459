//! The vault's process: the one that serves, and the command that starts it.
//!
//! `start` runs the same program again with its standard output as a pipe. The child leaves the terminal's session,
//! serves, and writes one line: that it serves, or why not. Only then does `start` return, so what follows it in a
//! script can rely on the vault.

use super::control::{self, Control};
use super::identity::Identity;
use super::keyring::Keyring;
use super::server;
use super::state::{LOG, StateDir, StateLock};
use super::tls;
use super::vault::Vault;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::ffi::OsString;
use std::fs::OpenOptions;
use std::io::{self, BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::fs::OpenOptionsExt;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::signal::unix::{SignalKind, signal};

/// Threads that serve requests: an RSA operation takes about a millisecond, and a test machine has two cores.
const WORKERS: usize = 2;

/// How a vault is to be started.
#[derive(Clone, Debug, Default)]
pub struct Start {
    /// The address; without it the one of last time, or a free port.
    pub listen: Option<SocketAddr>,
    /// How long tokens are valid; without it as last time.
    pub token_lifetime: Option<Duration>,
}

/// Why a vault could not be started.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct StartFailure {
    /// What is wrong.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
    /// Whether the reason is another process that serves the directory, or is about to.
    pub busy: bool,
}

/// What the child tells the command that started it.
#[derive(Serialize, Deserialize)]
enum Report {
    Serving(String),
    Failed(StartFailure),
}

impl From<io::Error> for StartFailure {
    fn from(error: io::Error) -> Self {
        Self { message: format!("the vault cannot start: {error}"), hint: None, busy: false }
    }
}

/// A vault that is ready to serve: the lock is held and the port is bound.
pub struct Bound {
    state: StateDir,
    vault: Arc<Vault>,
    listener: TcpListener,
    tls: tokio_rustls::TlsAcceptor,
    _lock: StateLock,
}

impl Bound {
    /// Takes the lock, binds the port, reads the keys, and writes what clients need into the directory.
    ///
    /// # Errors
    /// Where another process serves the directory, or the port is taken, or a file cannot be read or written.
    pub fn new(state: StateDir, start: &Start) -> Result<Self, StartFailure> {
        let Some(lock) = state.try_lock()? else {
            return Err(StartFailure {
                message: format!("another process serves {}", state.path().display()),
                hint: Some("wait until it has ended".into()),
                busy: true,
            });
        };
        let kept = Identity::load(&state)?;
        let wanted = start.listen.or(kept.as_ref().map(|identity| identity.listen));
        let wanted = wanted.unwrap_or((Ipv4Addr::LOCALHOST, 0).into());
        let listener = TcpListener::bind(wanted).map_err(|error| StartFailure {
            message: format!("cannot listen on {wanted}: {error}"),
            hint: Some("choose another port with --listen; ids of existing keys hold the port".into()),
            busy: false,
        })?;
        listener.set_nonblocking(true)?;
        let mut identity = kept.map_or_else(|| Identity::generate(wanted), Ok)?;
        identity.listen = listener.local_addr()?;
        if let Some(lifetime) = start.token_lifetime {
            identity.token_lifetime = lifetime.as_secs();
        }
        let tls = tls::server_config(&state)?.into();
        let keyring = Keyring::load(state.clone())?;
        identity.store(&state)?;
        Ok(Self { state, vault: Arc::new(Vault::new(identity, keyring)), listener, tls, _lock: lock })
    }

    /// `https://devvault.localhost:PORT`.
    pub fn url(&self) -> String {
        self.vault.identity.vault_url()
    }

    /// Serves until a command or a signal says stop. `ready` is called once commands and requests are answered.
    ///
    /// # Errors
    /// Where there is no runtime or no control socket.
    pub fn serve(self, ready: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(WORKERS).enable_all().build()?;
        let ended = runtime.block_on(async {
            let listener = tokio::net::TcpListener::from_std(self.listener)?;
            let accepting = tokio::spawn(server::serve(self.vault.clone(), listener, self.tls));
            let control = control::Server::bind(&self.state)?;
            let mut terminate = signal(SignalKind::terminate())?;
            ready()?;
            tokio::select! {
                () = control.serve(self.vault) => {}
                _ = terminate.recv() => {}
                _ = tokio::signal::ctrl_c() => {}
            }
            // The port is given back before the lock: whoever gets the lock next can bind it.
            accepting.abort();
            let _ = accepting.await;
            Ok(())
        });
        // Every answered change is on disk, and hanging requests would hold an orderly end up for ever.
        runtime.shutdown_background();
        ended
    }
}

/// Serves in this process, at the terminal.
///
/// # Errors
/// See [`Bound::new`].
pub fn run_in_foreground(state: StateDir, start: &Start) -> Result<(), StartFailure> {
    let bound = Bound::new(state, start)?;
    let url = bound.url();
    Ok(bound.serve(|| writeln!(io::stdout(), "{url}"))?)
}

/// Serves in this process, as the child of [`start_detached`].
///
/// # Errors
/// See [`Bound::new`]; the parent has been told.
pub fn run_detached(state: StateDir, start: &Start) -> Result<(), StartFailure> {
    // The only logger of this process, whose standard error is the log file.
    let _ = tracing_subscriber::fmt().with_max_level(tracing::Level::WARN).with_writer(io::stderr).try_init();
    let bound = rustix::process::setsid()
        .map_err(|errno| StartFailure::from(io::Error::from(errno)))
        .and_then(|_| Ok(std::env::set_current_dir("/")?))
        .and_then(|()| Bound::new(state, start));
    let bound = match bound {
        Ok(bound) => bound,
        Err(failure) => {
            report(&Report::Failed(failure.clone()))?;
            return Err(failure);
        }
    };
    let url = bound.url();
    Ok(bound.serve(|| {
        report(&Report::Serving(url))?;
        // The pipe to the parent is not needed any more, and must not keep a script's `$(…)` waiting.
        Ok(rustix::stdio::dup2_stdout(io::stderr())?)
    })?)
}

/// Starts the vault as a process of its own and returns its URL once it answers. Where another command starts it at
/// the same time, or a stopped one has not quite ended, that is waited for.
///
/// # Errors
/// Where it does not start; the child's reason.
pub fn start_detached(state: &StateDir, arguments: &[OsString]) -> Result<String, StartFailure> {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        match spawn(state, arguments) {
            Err(failure) if failure.busy && Instant::now() < deadline => {}
            ended => return ended,
        }
        if let Some(url) = status_of(state)?.and_then(|status| Some(status["url"].as_str()?.to_owned())) {
            return Ok(url);
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// The status of the vault that serves this directory, if one does.
///
/// # Errors
/// Where its socket cannot be used.
pub fn status_of(state: &StateDir) -> io::Result<Option<Value>> {
    let Some(mut control) = Control::connect(state)? else { return Ok(None) };
    match control.ask(&control::Command::Status) {
        Ok(control::Answer::Done(status)) => Ok(Some(status)),
        Ok(control::Answer::Failed { message, .. }) => Err(io::Error::other(message)),
        Err(error) if control::has_ended(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

fn spawn(state: &StateDir, arguments: &[OsString]) -> Result<String, StartFailure> {
    let log = OpenOptions::new().create(true).append(true).mode(0o600).open(state.file(LOG))?;
    let mut child = Command::new(std::env::current_exe()?)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log)
        .spawn()?;
    let mut line = String::new();
    if let Some(output) = child.stdout.take() {
        BufReader::new(output).read_line(&mut line)?;
    }
    match serde_json::from_str(&line) {
        Ok(Report::Serving(url)) => Ok(url),
        Ok(Report::Failed(failure)) => {
            child.wait()?;
            Err(failure)
        }
        Err(_) => {
            let status = child.wait()?;
            Err(StartFailure {
                message: format!("the vault ended while it started ({status})"),
                hint: Some(format!("see {}", state.file(LOG).display())),
                busy: false,
            })
        }
    }
}

fn report(report: &Report) -> io::Result<()> {
    let mut line = serde_json::to_string(report)?;
    line.push('\n');
    let mut output = io::stdout();
    output.write_all(line.as_bytes())?;
    output.flush()
}
