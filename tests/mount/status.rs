//! `kmsfs status` for people, and what the server of the status page answers.

use crate::harness::{Mount, Volume, run};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Stdio};

/// `kmsfs serve-status`; ends with the test.
pub struct Server {
    child: Child,
    /// Where it serves.
    pub address: String,
}

impl Server {
    pub fn new(volume: &Volume) -> Self {
        let mut command = volume.command(&["serve-status", "--listen", "127.0.0.1:0"]);
        let mut child = command.stderr(Stdio::piped()).spawn().expect("it starts");
        let mut line = String::new();
        let mut errors = BufReader::new(child.stderr.take().expect("its errors"));
        errors.read_line(&mut line).expect("a line");
        let address = line.trim().strip_prefix("serving http://").expect("an address").to_owned();
        Self { child, address }
    }

    fn ask(&self, request: &str) -> String {
        let mut stream = TcpStream::connect(&self.address).expect("the server");
        write!(stream, "{request}\r\nConnection: close\r\n\r\n").expect("a request");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer");
        answer
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn the_table_fits_80_columns_and_has_colours_only_for_terminals() {
    let mount = Mount::new();
    let place = mount.at("").display().to_string();
    mount.volume().ok(&["lock", &place]);
    let text = mount.volume().ok(&["status"]);
    let end: String = place.chars().rev().take(20).collect::<Vec<_>>().into_iter().rev().collect();
    let line = text.lines().find(|line| line.contains(&end)).unwrap_or_else(|| panic!("{end} is not in {text}"));
    assert!(line.contains("■ locked (operator)"), "{line}");
    assert!(text.lines().all(|line| line.chars().count() <= 80) && !text.contains('\u{1b}'), "{text}");
    // A terminal of util-linux.
    let program = env!("CARGO_BIN_EXE_kmsfs");
    let typescript = |command: &str| run("script", &[&"-qec", &command, &"/dev/null"]);
    assert!(typescript(&format!("env -u NO_COLOR {program} status")).contains("\u{1b}[34m■ locked"));
    assert!(!typescript(&format!("NO_COLOR=1 {program} status")).contains('\u{1b}'));
}

#[test]
fn a_watch_goes_on_and_its_json_is_a_line_each_time() {
    let mount = Mount::new();
    let place = mount.at("").display().to_string();
    let mut command = mount.volume().command(&["status", "--watch", "--json", &place]);
    let mut child = command.stdout(Stdio::piped()).spawn().expect("it starts");
    let mut lines = BufReader::new(child.stdout.take().expect("its output")).lines();
    for _ in 0..2 {
        let line = lines.next().expect("a line").expect("UTF-8");
        let status: serde_json::Value = serde_json::from_str(&line).expect("JSON");
        assert_eq!(status["state"], "unlocked");
    }
    child.kill().and_then(|()| child.wait()).expect("it ends");
}

#[test]
fn the_page_can_only_be_read_and_loads_nothing_from_elsewhere() {
    let mount = Mount::new();
    let server = Server::new(mount.volume());
    for path in ["/", "/page.css", "/page.js", "/status.json"] {
        let answer = server.ask(&format!("GET {path} HTTP/1.1\r\nHost: localhost"));
        assert!(
            answer.starts_with("HTTP/1.1 200") && answer.contains("content-security-policy: default-src 'none'"),
            "{answer}"
        );
        // The keys of mounts have addresses.
        let loads = path != "/status.json" && (answer.contains("innerHTML") || answer.contains("https://"));
        assert!(!loads, "{path}");
    }
    for request in ["POST / HTTP/1.1\r\nHost: localhost", "DELETE /status.json HTTP/1.1\r\nHost: localhost"] {
        assert!(server.ask(request).starts_with("HTTP/1.1 405"), "{request}");
    }
    assert!(server.ask("GET /status.json HTTP/1.1\r\nHost: rebound.example").starts_with("HTTP/1.1 421"));
    assert_eq!(mount.status()["state"], "unlocked");
}
