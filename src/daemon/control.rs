//! The control socket of a mount: JSON lines, one request and one reply on a connection, which then stays open until
//! the mount's process ends if the client waits for that. Its place follows from the mountpoint, so that every
//! command finds it.

use super::metrics::Metrics;
use super::{LeftFile, Readiness, RekeyStatus, RewrapStatus, ScrubStatus, Status};
use crate::check::Finding;
use crate::failure::{Exit, Failure};
use serde::{Deserialize, Serialize};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::num::NonZeroU64;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// The version of what is spoken.
const VERSION: u32 = 1;
/// The longest request, in bytes.
const MAX_LINE: u64 = 64 * 1024;
/// So many connections at once. Whoever comes on top is told so, and does not wait.
const CONNECTIONS: usize = 64;
/// For how long a client may take to say what it wants, and to take its reply.
const ASKING: Duration = Duration::from_secs(10);

/// What a mount is asked.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Command {
    /// How things stand.
    Status,
    /// Everything that is counted.
    Metrics,
    /// Whether it can be used; the mount itself is asked.
    Ready,
    /// Log so much from now on.
    LogLevel {
        /// `error`, `warn`, `info`, `debug` or `trace`.
        level: String,
    },
    /// Lock by the operator's hand.
    Lock,
    /// Unlock by the operator's hand.
    Unlock,
    /// Store what was written, and take the mount away from whoever uses it; answered when it is gone.
    Stop,
    /// Which process it is; the connection then shows when it ends.
    Watch,
    /// Begin to authenticate everything.
    Scrub {
        /// Bytes a second, at most.
        rate: Option<NonZeroU64>,
    },
    /// How far a scrub is; answered when it ends, or after a moment.
    ScrubProgress {
        /// Which one.
        number: u64,
    },
    /// End the scrub that runs.
    ScrubCancel,
    /// Begin to wrap everything by another KEK, or by the newest version of its own.
    Rewrap {
        /// The KEK.
        kek: Option<String>,
        /// The recovery KEK.
        recovery_kek: Option<String>,
        /// Files a second, at most.
        rate: Option<NonZeroU64>,
    },
    /// How far a rewrap is; answered when it ends, or after a moment.
    RewrapProgress {
        /// Which one.
        number: u64,
    },
    /// End the rewrap that runs.
    RewrapCancel,
    /// Begin to give files new keys.
    Rekey {
        /// Only what is at or below this path: the bytes of each name, from the root on.
        path: Option<Vec<Vec<u8>>>,
        /// Only files whose key is older than so many seconds.
        older_than_s: Option<u64>,
        /// Begin anew, and do not go on with one that did not come to its end.
        anew: bool,
        /// Bytes a second, at most.
        rate: Option<NonZeroU64>,
    },
    /// How far a rekey is; answered when it ends, or after a moment.
    RekeyProgress {
        /// Which one.
        number: u64,
    },
    /// End the rekey that runs.
    RekeyCancel,
}

/// A request.
#[derive(Debug, Serialize, Deserialize)]
pub struct Request {
    version: u32,
    command: Command,
}

/// A reply.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// How things stand.
    Status(Box<Status>),
    /// Everything that is counted.
    Metrics(Box<Metrics>),
    /// Whether it can be used.
    Ready(Readiness),
    /// It was done.
    Done,
    /// How far a scrub is.
    Scrub {
        /// Its state.
        status: Box<ScrubStatus>,
        /// What it found; nothing before it has ended.
        findings: Vec<Finding>,
    },
    /// How far a rewrap is.
    Rewrap {
        /// Its state.
        status: Box<RewrapStatus>,
        /// The files that are left; nothing before it has ended.
        left: Vec<LeftFile>,
    },
    /// How far a rekey is.
    Rekey {
        /// Its state.
        status: Box<RekeyStatus>,
        /// The files that are left; nothing before it has ended.
        left: Vec<LeftFile>,
    },
    /// It was not done, and why.
    Failed(Problem),
}

/// What went wrong: a kind for the program, words for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// `refused`, `unreachable`, `credentials`, `misconfigured`, `damaged`, `busy`, `locked`, `store`, `suspended`, `other`; of what
    /// was not understood `unknown-version`, `unknown-command`, `not-a-request`.
    pub kind: String,
    /// What happened.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
}

impl Problem {
    /// One without a hint.
    pub fn new(kind: &str, message: impl Into<String>) -> Self {
        Self { kind: kind.to_owned(), message: message.into(), hint: None }
    }

    /// With a hint.
    pub fn hint(self, hint: &str) -> Self {
        Self { hint: Some(hint.to_owned()), ..self }
    }
}

impl From<io::Error> for Problem {
    fn from(error: io::Error) -> Self {
        Self::new("other", error.to_string())
    }
}

impl From<Failure> for Problem {
    fn from(failure: Failure) -> Self {
        let kind = if failure.exit == Exit::Suspended { "suspended" } else { "other" };
        Self { kind: kind.to_owned(), message: failure.message, hint: failure.hint }
    }
}

/// The directory of the control sockets of this user's mounts.
pub fn directory() -> PathBuf {
    let uid = rustix::process::geteuid();
    if uid.is_root() {
        return PathBuf::from("/run/kmsfs");
    }
    match std::env::var_os("XDG_RUNTIME_DIR") {
        Some(directory) if !directory.is_empty() => PathBuf::from(directory).join("kmsfs"),
        _ => std::env::temp_dir().join(format!("kmsfs-{}", uid.as_raw())),
    }
}

/// The control socket of the mount at this absolute path.
pub fn path(mountpoint: &Path) -> PathBuf {
    let hash = blake3::hash(mountpoint.as_os_str().as_encoded_bytes());
    directory().join(format!("{}.sock", &hash.to_hex()[..32]))
}

/// Makes [`directory`], for its own user only.
///
/// # Errors
/// The system's; also if it belongs to somebody else.
pub(super) fn make_directory() -> io::Result<()> {
    let directory = directory();
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&directory)?;
    let metadata = std::fs::symlink_metadata(&directory)?;
    if !metadata.is_dir() || metadata.uid() != rustix::process::geteuid().as_raw() {
        return Err(io::Error::other(format!("{} belongs to somebody else", directory.display())));
    }
    std::fs::set_permissions(&directory, std::fs::Permissions::from_mode(0o700))?;
    Ok(())
}

/// The socket of a mount that serves; removed when dropped.
pub struct Socket {
    path: PathBuf,
    listener: UnixListener,
}

impl Socket {
    /// Makes the socket of a mount, for its own user only. One that a dead process left behind is replaced.
    ///
    /// # Errors
    /// The system's; also if the directory belongs to somebody else.
    pub fn bind(mountpoint: &Path) -> io::Result<Self> {
        make_directory()?;
        let path = path(mountpoint);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => (),
        }
        let listener = UnixListener::bind(&path)?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
        Ok(Self { path, listener })
    }

    /// Answers requests with `answer`, each on a thread of its own, for as long as the process lives.
    ///
    /// # Errors
    /// If the system has no thread to give.
    pub fn serve(&self, answer: impl Fn(Command) -> Reply + Send + Sync + 'static) -> io::Result<()> {
        let listener = self.listener.try_clone()?;
        let answer = Arc::new(answer);
        let connected = Arc::new(());
        std::thread::Builder::new().name("kmsfs-control".into()).spawn(move || {
            for stream in listener.incoming().flatten() {
                let (answer, turn) = (Arc::clone(&answer), Arc::clone(&connected));
                if Arc::strong_count(&turn) > CONNECTIONS + 1 {
                    refuse(&stream);
                    continue;
                }
                // Without a thread the connection is closed, and the client says so.
                let _ = std::thread::Builder::new().name("kmsfs-control".into()).spawn(move || {
                    let _turn = turn;
                    converse(&stream, &*answer);
                });
            }
        })?;
        Ok(())
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// The command in a request. What is wrong with the version is said first: a later one may have other commands.
fn understand(line: &str) -> Result<Command, Problem> {
    #[derive(Deserialize)]
    struct Envelope {
        version: u32,
        command: serde_json::Value,
    }
    if line.len() as u64 >= MAX_LINE && !line.ends_with('\n') {
        return Err(Problem::new("not-a-request", format!("a request has {MAX_LINE} bytes at most")));
    }
    let hint = "it is served by another version of kmsfs: unmount it, and mount it again";
    let Envelope { version, command } = serde_json::from_str(line)
        .map_err(|error| Problem::new("not-a-request", format!("this is not a request: {error}")))?;
    if version != VERSION {
        let message = format!("this mount speaks version {VERSION} of the protocol, not {version}");
        return Err(Problem::new("unknown-version", message).hint(hint));
    }
    serde_json::from_value(command).map_err(|error| {
        Problem::new("unknown-command", format!("this mount does not know the command: {error}")).hint(hint)
    })
}

/// Says that there are too many connections, without waiting for the client.
fn refuse(mut stream: &UnixStream) {
    let problem =
        Problem::new("busy", format!("{CONNECTIONS} programs are connected to this mount, which is all it takes"));
    let text = serde_json::to_string(&Reply::Failed(problem)).unwrap_or_default() + "\n";
    // A new connection has room for it; one that does not is closed without a word.
    let _ = stream.set_nonblocking(true).and_then(|()| stream.write_all(text.as_bytes()));
}

fn converse(mut stream: &UnixStream, answer: &dyn Fn(Command) -> Reply) {
    let mut line = String::new();
    let bounded = stream.set_read_timeout(Some(ASKING)).and_then(|()| stream.set_write_timeout(Some(ASKING)));
    if bounded.is_err() || BufReader::new(stream.take(MAX_LINE)).read_line(&mut line).is_err() {
        return;
    }
    let reply = match understand(&line) {
        Ok(command) => answer(command),
        Err(problem) => Reply::Failed(problem),
    };
    let Ok(mut text) = serde_json::to_string(&reply) else { return };
    text.push('\n');
    if stream.write_all(text.as_bytes()).and_then(|()| stream.set_read_timeout(None)).is_ok() {
        // Until the client leaves, or this process ends, which is what the client waits for.
        let _ = stream.read(&mut [0]);
    }
}

/// A connection to a mount that answered.
pub struct Connection(UnixStream);

/// Asks the mount at this absolute path.
///
/// # Errors
/// The system's: `NotFound` or `ConnectionRefused` if nothing of ours serves there.
pub fn ask(mountpoint: &Path, command: Command) -> io::Result<(Reply, Connection)> {
    ask_socket(&path(mountpoint), command)
}

/// Asks the mount with this control socket.
///
/// # Errors
/// As for [`ask`].
pub fn ask_socket(socket: &Path, command: Command) -> io::Result<(Reply, Connection)> {
    converse_with(UnixStream::connect(socket)?, command)
}

fn converse_with(mut stream: UnixStream, command: Command) -> io::Result<(Reply, Connection)> {
    let mut text = serde_json::to_string(&Request { version: VERSION, command })?;
    text.push('\n');
    // A mount that takes no more connections says so, and closes without reading.
    let sent = stream.write_all(text.as_bytes());
    let mut line = String::new();
    BufReader::new(&stream).read_line(&mut line)?;
    if line.is_empty() {
        sent?;
    }
    Ok((serde_json::from_str(&line)?, Connection(stream)))
}

/// The same, for so long at most.
///
/// # Errors
/// As for [`ask`]; `WouldBlock` if there was no answer in time.
pub fn ask_within(socket: &Path, command: Command, patience: Duration) -> io::Result<Reply> {
    let stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(patience))?;
    stream.set_write_timeout(Some(patience))?;
    Ok(converse_with(stream, command)?.0)
}

/// Whether a socket was asked that nobody serves any more.
pub fn is_gone(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused)
}

/// Whether the process that served the mount at this absolute path was killed and cannot end, because one of its threads
/// waits for the mount itself: nothing but taking the mount away by force ends that.
pub fn is_stuck(mountpoint: &Path) -> bool {
    let Ok(stream) = UnixStream::connect(path(mountpoint)) else { return false };
    let Ok(peer) = rustix::net::sockopt::socket_peercred(&stream) else { return false };
    super::process::is_dead(peer.pid.as_raw_nonzero().get().unsigned_abs())
}

impl Connection {
    /// Waits until the mount's process has ended.
    ///
    /// # Errors
    /// `TimedOut` if it has not within `patience`.
    pub fn wait_for_end(mut self, patience: Duration) -> io::Result<()> {
        self.0.set_read_timeout(Some(patience))?;
        match self.0.read(&mut [0]) {
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                Err(io::ErrorKind::TimedOut.into())
            }
            _ => Ok(()),
        }
    }
}
