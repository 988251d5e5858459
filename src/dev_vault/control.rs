//! The control socket: one JSON line asks, one JSON line answers.
//!
//! It is apart from the vault's own port, so commands get through whatever fault is set. The socket is in a directory
//! that only its owner may enter; there is no other authentication.

use super::documents::{bundle, key_id};
use super::faults::Rule;
use super::key::{Key, Limits, Seconds};
use super::keyring::NewVersion;
use super::material::Kind;
use super::names::KeyName;
use super::refusal::Refusal;
use super::state::StateDir;
use super::vault::Vault;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs::Permissions;
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

/// What a command asks of the running vault.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "kebab-case")]
pub enum Command {
    /// Address, process, keys, faults and counts.
    Status,
    /// End the process.
    Stop,
    /// Make a key, or a new version of it.
    CreateKey {
        /// Its name.
        name: KeyName,
        /// `RSA`, `RSA-HSM` or `oct-HSM`.
        kty: String,
        /// Without it, the usual one.
        bits: Option<u64>,
        /// `key_ops`; without them, all.
        operations: Option<Vec<String>>,
    },
    /// Add a version like the newest.
    RotateKey {
        /// Of this key.
        name: KeyName,
    },
    /// Enable or disable one version, or all.
    EnableKey {
        /// Of this key.
        name: KeyName,
        /// Only this one.
        version: Option<String>,
        /// Or disable.
        enabled: bool,
    },
    /// Set the end of one version, or of all.
    ExpireKey {
        /// Of this key.
        name: KeyName,
        /// Only this one.
        version: Option<String>,
        /// When; without it, never.
        at: Option<Seconds>,
    },
    /// Delete the key; it can be recovered.
    DeleteKey {
        /// Its name.
        name: KeyName,
    },
    /// Bring a deleted key back.
    RecoverKey {
        /// Its name.
        name: KeyName,
    },
    /// Destroy a deleted key.
    PurgeKey {
        /// Its name.
        name: KeyName,
    },
    /// Show one key, deleted or not, with all of its versions.
    ShowKey {
        /// Its name.
        name: KeyName,
    },
    /// Set a fault.
    SetFault {
        /// For this key only.
        key: Option<KeyName>,
        /// Which.
        rule: Rule,
    },
    /// Take faults back.
    ClearFault {
        /// That of this key only.
        key: Option<KeyName>,
    },
}

/// The answer to a [`Command`].
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Answer {
    /// Done.
    Done(Value),
    /// Not done.
    Failed {
        /// Why.
        message: String,
        /// The vault's own code: `KeyNotFound`, `Conflict` …
        code: String,
    },
}

impl Vault {
    /// Runs a command. Making keys takes up to seconds.
    pub fn command(&self, command: Command) -> Answer {
        match self.run(command) {
            Ok(value) => Answer::Done(value),
            Err(refusal) => Answer::Failed {
                message: refusal.message.trim_end().to_owned(),
                code: refusal.inner.unwrap_or(refusal.code).to_owned(),
            },
        }
    }

    fn run(&self, command: Command) -> Result<Value, Refusal> {
        let keyring = &self.keyring;
        let key = match command {
            Command::Status => return Ok(self.status()),
            Command::Stop => return Ok(Value::Null),
            Command::CreateKey { name, kty, bits, operations } => {
                let kind = Kind::named(&kty, bits)?;
                keyring.may_create(&name)?;
                let operations = operations.unwrap_or_else(|| kind.operations());
                let limits = Limits { operations, ..Limits::default() };
                let version = NewVersion { kind, limits, tags: BTreeMap::new() }.generate()?;
                keyring.add_version(&name, version)?
            }
            Command::RotateKey { name } => keyring.rotate(&name)?,
            Command::EnableKey { name, version, enabled } => {
                keyring.limit(&name, version.as_deref(), |limits| limits.enabled = enabled)?
            }
            Command::ExpireKey { name, version, at } => {
                keyring.limit(&name, version.as_deref(), |limits| limits.expires = at)?
            }
            Command::DeleteKey { name } => keyring.delete(&name)?,
            Command::RecoverKey { name } => keyring.recover(&name)?,
            Command::PurgeKey { name } => return keyring.purge(&name).map(|()| Value::Null),
            Command::ShowKey { name } => keyring
                .get(&name)
                .or_else(|_| keyring.get_deleted(&name).map_err(|_| Refusal::key_not_found(name.as_str())))?,
            Command::SetFault { key, rule } => {
                self.faults.set(key, rule);
                return Ok(json!(self.faults.rules()));
            }
            Command::ClearFault { key } => {
                self.faults.clear(key.as_ref());
                return Ok(json!(self.faults.rules()));
            }
        };
        Ok(self.described(&key))
    }

    fn status(&self) -> Value {
        let keys = self.keyring.list(false).into_iter().chain(self.keyring.list(true));
        json!({
            "url": self.identity.vault_url(),
            "listen": self.identity.listen,
            "pid": std::process::id(),
            "token_lifetime": self.identity.token_lifetime,
            "keys": keys.map(|key| self.described(&key)).collect::<Vec<_>>(),
            "faults": self.faults.rules(),
            "calls": self.calls.counts(),
        })
    }

    fn described(&self, key: &Key) -> Value {
        let url = self.identity.vault_url();
        let versions: Vec<_> = key.versions.iter().map(|version| bundle(&url, key, version)).collect();
        json!({
            "name": key.name,
            "kid": key.newest().map(|version| key_id(&url, key, version)),
            "deleted": key.deleted.is_some(),
            "versions": versions,
        })
    }
}

/// The server's end of the socket.
#[derive(Debug)]
pub struct Server {
    listener: tokio::net::UnixListener,
}

impl Server {
    /// Makes the socket. A stale one, of a server that was killed, is replaced: the caller holds the lock.
    ///
    /// # Errors
    /// Where it cannot be made.
    pub fn bind(state: &StateDir) -> io::Result<Self> {
        let (_directory, path) = state.control_socket()?;
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = tokio::net::UnixListener::bind(&path)?;
        std::fs::set_permissions(&path, Permissions::from_mode(0o600))?;
        Ok(Self { listener })
    }

    /// Runs commands until one says stop.
    pub async fn serve(self, vault: Arc<Vault>) {
        let (stop, mut stopped) = tokio::sync::mpsc::channel(1);
        loop {
            tokio::select! {
                accepted = self.listener.accept() => {
                    if let Ok((stream, _)) = accepted {
                        tokio::spawn(conversation(vault.clone(), stream, stop.clone()));
                    }
                }
                _ = stopped.recv() => return,
            }
        }
    }
}

async fn conversation(vault: Arc<Vault>, mut stream: tokio::net::UnixStream, stop: tokio::sync::mpsc::Sender<()>) {
    use tokio::io::{AsyncBufReadExt, AsyncWriteExt};
    let (reader, mut writer) = stream.split();
    let mut lines = tokio::io::BufReader::new(reader).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        let answer = match serde_json::from_str(&line) {
            Ok(Command::Stop) => {
                let _ = stop.send(()).await;
                // Held open until the process ends: the end of the stream is what the command waits for.
                return std::future::pending().await;
            }
            Ok(command) => {
                let vault = vault.clone();
                tokio::task::spawn_blocking(move || vault.command(command)).await.ok()
            }
            Err(error) => Some(Answer::Failed { message: error.to_string(), code: "BadCommand".into() }),
        };
        let Some(mut text) = answer.and_then(|answer| serde_json::to_string(&answer).ok()) else { return };
        text.push('\n');
        if writer.write_all(text.as_bytes()).await.is_err() {
            return;
        }
    }
}

/// A command's end of the socket.
#[derive(Debug)]
pub struct Control {
    stream: BufReader<UnixStream>,
}

impl Control {
    /// Connects to the vault that serves this directory; `None` where none does.
    ///
    /// # Errors
    /// Where the socket is there and cannot be used.
    pub fn connect(state: &StateDir) -> io::Result<Option<Self>> {
        let (_directory, path) = state.control_socket()?;
        match UnixStream::connect(path) {
            Ok(stream) => {
                stream.set_read_timeout(Some(Duration::from_secs(60)))?;
                Ok(Some(Self { stream: BufReader::new(stream) }))
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Asks, and waits for the answer.
    ///
    /// # Errors
    /// Where the vault ends meanwhile or takes longer than a minute.
    pub fn ask(&mut self, command: &Command) -> io::Result<Answer> {
        let mut line = serde_json::to_string(command)?;
        line.push('\n');
        self.stream.get_mut().write_all(line.as_bytes())?;
        let mut answer = String::new();
        self.stream.read_line(&mut answer)?;
        if answer.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(serde_json::from_str(&answer)?)
    }

    /// Tells the vault to end, and waits until its process has.
    ///
    /// # Errors
    /// Where it does not end within a minute.
    pub fn stop(mut self, state: &StateDir) -> io::Result<()> {
        let status = match self.ask(&Command::Status) {
            Ok(Answer::Done(status)) => status,
            Ok(Answer::Failed { message, .. }) => return Err(io::Error::other(message)),
            // It was ending already.
            Err(error) if has_ended(&error) => return state.wait_until_unlocked(),
            Err(error) => return Err(error),
        };
        let pid = status["pid"].as_i64().and_then(|pid| Pid::from_raw(pid.try_into().ok()?));
        // Opened before the end, so that it is this process and not a later one with its number. Not there for a
        // process that cannot be seen from here, in a container: then the lock alone tells its end.
        let process = pid.and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
        match self.ask(&Command::Stop) {
            Err(error) if has_ended(&error) => {}
            Err(error) => return Err(error),
            Ok(_) => return Err(io::Error::other("it was told to end and did not")),
        }
        if let Some(process) = process {
            let minute = Timespec { tv_sec: 60, tv_nsec: 0 };
            if poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&minute))? == 0 {
                return Err(io::ErrorKind::TimedOut.into());
            }
        }
        state.wait_until_unlocked()
    }
}

/// Whether the error says that the vault's process ended in the middle of a conversation.
pub fn has_ended(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
    matches!(error.kind(), UnexpectedEof | ConnectionReset | BrokenPipe)
}
