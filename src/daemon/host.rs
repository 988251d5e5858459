//! All mounts of this user on this host, asked by their control sockets: what the one server for all of them answers.

use super::control::{self, Command, Reply};
use super::metrics::{self, Metrics};
use super::page;
use crate::http::Answer;
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

/// Everything that is counted of all of them.
pub fn gather() -> Gathered {
    let mut gathered = Gathered::default();
    for reply in ask_all(&Command::Metrics) {
        match reply {
            Some(Reply::Metrics(metrics)) => gathered.mounts.push(*metrics),
            _ => gathered.silent += 1,
        }
    }
    gathered.mounts.sort_by(|one, other| one.status.mountpoint.cmp(&other.status.mountpoint));
    gathered
}

/// What is answered for all of them under this path: `/metrics`, `/livez` and `/readyz`, and the page.
pub fn answer(path: &str) -> Option<Answer> {
    Some(match path {
        "/metrics" => {
            let gathered = gather();
            let text = metrics::of_host(&gathered.mounts, gathered.silent);
            Answer::ok(metrics::CONTENT_TYPE, text)
        }
        "/status.json" => page::data(&gather()),
        "/livez" => Answer::text(200, "alive\n"),
        "/readyz" => readiness(),
        other => return page::answer(other),
    })
}

/// Whether every mount is ready; the server is told of each that is not, and not by whose name: only how many.
fn readiness() -> Answer {
    let replies = ask_all(&Command::Ready);
    let ready = |reply: &&Option<Reply>| matches!(reply, Some(Reply::Ready(readiness)) if readiness.ready);
    let count = replies.iter().filter(ready).count();
    let status = if count == replies.len() { 200 } else { 503 };
    Answer::text(status, format!("{count} of {} mounts are ready\n", replies.len()))
}

/// Asks each mount the same, several at once. `None` for one that is there and does not answer.
fn ask_all(command: &Command) -> Vec<Option<Reply>> {
    let entries = std::fs::read_dir(control::directory()).into_iter().flatten().flatten();
    let is_socket = |path: &PathBuf| path.extension().is_some_and(|kind| kind == "sock");
    let sockets: Vec<_> = entries.map(|entry| entry.path()).filter(is_socket).collect();
    let mut replies = Vec::new();
    for some in sockets.chunks(AT_ONCE) {
        std::thread::scope(|scope| {
            let ask = |socket| scope.spawn(move || control::ask_within(socket, command.clone(), PATIENCE));
            let asked: Vec<_> = some.iter().map(|socket| ask(socket.as_path())).collect();
            for asked in asked {
                match asked.join() {
                    // What a process left that died.
                    Ok(Err(error)) if control::is_gone(&error) => (),
                    reply => replies.push(reply.ok().and_then(Result::ok)),
                }
            }
        });
    }
    replies
}
