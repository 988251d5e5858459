//! All mounts of this user on this host, asked by their control sockets: what the one server for all of them answers, and
//! what `kmsfs status` lists.

use super::control::{self, Command, Reply};
use super::metrics::{self, Metrics};
use super::mountpoint;
use super::{Status, page};
use crate::http::Answer;
use serde::Serialize;
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashSet};
use std::path::PathBuf;
use std::time::Duration;

/// For how long a mount is waited for; it waits for itself for less.
const PATIENCE: Duration = Duration::from_secs(6);
/// So many mounts are asked at once.
const AT_ONCE: usize = 16;

/// What was found of the mounts.
#[derive(Debug, Default)]
pub struct Gathered {
    /// The mounts that answered, by their mountpoints.
    pub mounts: Vec<Metrics>,
    /// Mounts whose processes are there and did not answer in time, or not so that it could be understood.
    pub silent: usize,
}

/// A mount as it was found.
#[derive(Debug)]
pub enum Found {
    /// It answers.
    Answers(Box<Status>),
    /// Its process is there, and does not answer in time, or not so that it could be understood.
    Silent,
    /// Its process is gone, and the mount is still there: whoever uses it gets errors.
    Dead,
}

/// What people are to feel about a mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Tone {
    /// It does what it is there for.
    Good,
    /// It works; something has to be looked at.
    Attention,
    /// It does not work.
    Bad,
    /// Somebody wants it to be closed.
    Calm,
}

impl Found {
    /// The state: that of [`Status`], or `silent` or `dead`.
    pub fn state(&self) -> &str {
        match self {
            Self::Answers(status) => &status.state,
            Self::Silent => "silent",
            Self::Dead => "dead",
        }
    }

    /// What people are to feel about it.
    pub fn tone(&self) -> Tone {
        let Self::Answers(status) = self else { return Tone::Bad };
        match (status.state.as_str(), status.reason.as_deref()) {
            ("unlocked", _) if status.is_granted() && !has_trouble(status) => Tone::Good,
            ("locked" | "draining", Some("operator" | "idle")) => Tone::Calm,
            ("locked", _) => Tone::Bad,
            _ => Tone::Attention,
        }
    }

    /// As JSON: that of [`Status`], or its `state` and `mountpoint`.
    pub fn to_json(&self, mountpoint: &std::path::Path) -> Value {
        match self {
            // What cannot be written as JSON has no other name here.
            Self::Answers(status) => serde_json::to_value(status).unwrap_or_default(),
            _ => json!({"state": self.state(), "reason": null, "mountpoint": mountpoint.to_string_lossy()}),
        }
    }
}

fn has_trouble(status: &Status) -> bool {
    let audit = status.audit.as_ref().is_some_and(|audit| audit.error.is_some());
    let guard = status.rollback_guard.as_ref().is_some_and(|guard| guard.suspect || guard.error.is_some());
    status.damaged > 0 || status.uncommitted_at_lock > 0 || audit || guard
}

/// Everything that is counted of all of them.
pub fn gather() -> Gathered {
    let mut gathered = Gathered::default();
    for (_, reply) in ask_all(&Command::Metrics) {
        match reply {
            Some(Reply::Metrics(metrics)) => gathered.mounts.push(*metrics),
            _ => gathered.silent += 1,
        }
    }
    gathered.mounts.sort_by(|one, other| one.status.mountpoint.cmp(&other.status.mountpoint));
    gathered
}

/// How all of them are doing, by their mountpoints; also those that do not answer, and those whose process died.
pub fn look() -> BTreeMap<PathBuf, Found> {
    let mut found = BTreeMap::new();
    let mut silent = HashSet::new();
    for (socket, reply) in ask_all(&Command::Status) {
        match reply {
            Some(Reply::Status(status)) => drop(found.insert(status.mountpoint.clone(), Found::Answers(status))),
            _ => drop(silent.insert(socket)),
        }
    }
    let user = rustix::process::geteuid().as_raw();
    let is_mine = |mounted: &mountpoint::Mounted| mounted.fs_type == mountpoint::FS_TYPE && mounted.user == Some(user);
    for mounted in mountpoint::mounts().unwrap_or_default().into_iter().filter(is_mine) {
        let place = mounted.mountpoint;
        if found.contains_key(&place) {
            continue;
        }
        let is_silent = silent.remove(&control::path(&place));
        if is_silent && !control::is_stuck(&place) {
            found.insert(place, Found::Silent);
        } else if is_silent || mountpoint::is_dead(&place) {
            found.insert(place, Found::Dead);
        }
    }
    // One that is mounted nowhere any more, and still used, is known by its socket only.
    found.extend(silent.into_iter().map(|socket| (socket, Found::Silent)));
    found
}

/// What is answered for all of them under this path: `/metrics`, `/livez` and `/readyz`, and the page.
pub fn answer(path: &str) -> Option<Answer> {
    Some(match path {
        "/metrics" => {
            let gathered = gather();
            let text = metrics::of_host(&gathered.mounts, gathered.silent);
            Answer::ok(metrics::CONTENT_TYPE, text)
        }
        "/status.json" => page::data(&look()),
        "/livez" => Answer::text(200, "alive\n"),
        "/readyz" => readiness(),
        other => return page::answer(other),
    })
}

/// Whether every mount is ready; the server is told of each that is not, and not by whose name: only how many.
fn readiness() -> Answer {
    let replies = ask_all(&Command::Ready);
    let ready = |(_, reply): &&(PathBuf, Option<Reply>)| matches!(reply, Some(Reply::Ready(state)) if state.ready);
    let count = replies.iter().filter(ready).count();
    let status = if count == replies.len() { 200 } else { 503 };
    Answer::text(status, format!("{count} of {} mounts are ready\n", replies.len()))
}

/// Asks each mount the same, several at once; by their sockets. `None` for one that is there and does not answer.
fn ask_all(command: &Command) -> Vec<(PathBuf, Option<Reply>)> {
    let entries = std::fs::read_dir(control::directory()).into_iter().flatten().flatten();
    let is_socket = |path: &PathBuf| path.extension().is_some_and(|kind| kind == "sock");
    let sockets: Vec<_> = entries.map(|entry| entry.path()).filter(is_socket).collect();
    let mut replies = Vec::new();
    for some in sockets.chunks(AT_ONCE) {
        std::thread::scope(|scope| {
            let ask = |socket| scope.spawn(move || control::ask_within(socket, command.clone(), PATIENCE));
            let asked: Vec<_> = some.iter().map(|socket| (socket, ask(socket.as_path()))).collect();
            for (socket, asked) in asked {
                match asked.join() {
                    // What a process left that died.
                    Ok(Err(error)) if control::is_gone(&error) => (),
                    reply => replies.push((socket.clone(), reply.ok().and_then(Result::ok))),
                }
            }
        });
    }
    replies
}
