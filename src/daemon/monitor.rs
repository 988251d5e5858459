//! What others may know of a mount: by the control socket, or by a server of its own (`--metrics`).

use super::errand::Errand;
use super::log::Log;
use super::metrics::{self, Metrics};
use super::{MountOptions, Status};
use crate::failure::{Exit, Failure};
use crate::fs::Fs;
use crate::http::{Answer, Server};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::sync::{Arc, mpsc};
use std::time::Duration;

/// For how long a mount may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// So many at most wait for one that does not.
const ASKING: usize = 4;

/// Whether a mount can be used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Readiness {
    /// It answers, and the KMS granted its key the last time that it was asked.
    pub ready: bool,
    /// What is in the way.
    pub why: Vec<String>,
}

impl Readiness {
    /// As it is answered to a probe.
    pub fn answer(&self) -> Answer {
        match self.ready {
            true => Answer::text(200, "ready\n"),
            false => Answer::text(503, format!("not ready: {}\n", self.why.join("; "))),
        }
    }
}

/// What watches one mount.
pub struct Monitor {
    fs: Arc<Fs>,
    mountpoint: PathBuf,
    status: Box<dyn Fn() -> Status + Send + Sync>,
    log: Option<Log>,
    /// One that waits for the mount has one of them.
    asking: Arc<()>,
}

impl Monitor {
    /// Of a mount that has this status.
    pub fn new(
        fs: Arc<Fs>,
        mountpoint: PathBuf,
        log: Option<Log>,
        status: impl Fn() -> Status + Send + Sync + 'static,
    ) -> Self {
        Self { fs, mountpoint, status: Box::new(status), log, asking: Arc::default() }
    }

    /// How things stand.
    pub fn status(&self) -> Status {
        (self.status)()
    }

    /// What is counted.
    pub fn metrics(&self) -> Metrics {
        Metrics::of(&self.fs, self.status())
    }

    /// Whether it can be used. The mount is asked through the kernel.
    pub fn readiness(&self) -> Readiness {
        let status = self.status();
        let mut why = Vec::new();
        if status.state != "unlocked" && !status.is_resting() {
            let reason = status.reason.map(|reason| format!(" ({reason})")).unwrap_or_default();
            why.push(format!("{}{reason}", status.state));
        }
        why.extend(status.last_error.map(|error| format!("the KMS did not grant the key: {error}")));
        why.extend(self.unanswered());
        Readiness { ready: why.is_empty(), why }
    }

    /// Why the mount does not answer.
    fn unanswered(&self) -> Option<String> {
        if Arc::strong_count(&self.asking) > ASKING {
            return Some("the mount has not answered the last questions".into());
        }
        let asking = Arc::clone(&self.asking);
        let (done, finished) = mpsc::channel();
        let errand = Errand::ask(&self.mountpoint);
        let spawned = std::thread::Builder::new().name("kmsfs-ask".into()).spawn(move || {
            let _asking = asking;
            // Nobody may be waiting any more.
            let _ = done.send(errand.run());
        });
        match spawned.map(|_| finished.recv_timeout(PATIENCE)) {
            Ok(Ok(Ok(()))) => None,
            Ok(Ok(Err(error))) => Some(format!("the mount does not answer: {error}")),
            Ok(Err(_)) => Some("the mount does not answer".into()),
            Err(error) => Some(format!("no thread to ask the mount: {error}")),
        }
    }

    /// Logs so much from now on.
    ///
    /// # Errors
    /// Why not, in words.
    pub fn set_log_level(&self, level: &str) -> Result<(), String> {
        self.log.as_ref().ok_or("this process has no log")?.set_level(level)
    }

    fn answer(&self, path: &str) -> Option<Answer> {
        Some(match path {
            "/metrics" => Answer::ok(metrics::CONTENT_TYPE, metrics::of_all(&[self.metrics()])),
            "/livez" => Answer::text(200, "alive\n"),
            "/readyz" => self.readiness().answer(),
            _ => return None,
        })
    }

    /// Serves what is counted, where the options say so.
    ///
    /// # Errors
    /// If the system has no thread to give.
    pub fn serve(self: &Arc<Self>, server: Option<Server>) -> std::io::Result<()> {
        let Some(server) = server else { return Ok(()) };
        tracing::info!("metrics: {}", server.address());
        let this = Arc::clone(self);
        server.spawn(Arc::new(move |path| this.answer(path)))
    }
}

/// Takes the address of the mount's own server.
///
/// # Errors
/// That somebody else has it.
pub fn bind(options: &MountOptions) -> Result<Option<Server>, Failure> {
    let Some(address) = &options.metrics else { return Ok(None) };
    Server::bind(address).map(Some).map_err(|error| {
        Failure::new(Exit::Failure, format!("metrics cannot be served at {address}: {error}"))
            .hint("each mount needs an address of its own; kmsfs serve-status serves all of them under one")
    })
}
