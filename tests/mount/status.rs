//! `kmsfs status` for people, and the status page in a real browser.

use crate::harness::{Mount, Volume, run, until};
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// `kmsfs serve-status`; ends with the test.
struct Server {
    child: Child,
    address: String,
}

impl Server {
    fn new(volume: &Volume) -> Self {
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

/// What a page has become in a browser, after its script has run.
fn browse(address: &str, profile: &Path) -> String {
    let profile = format!("--user-data-dir={}", profile.display());
    let url = format!("http://{address}/");
    let options = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--virtual-time-budget=3000",
        "--enable-logging=stderr",
    ];
    let mut command = Command::new("chromium");
    command.args(options).args([profile.as_str(), "--dump-dom", url.as_str()]);
    let output = command.output().expect("chromium is installed");
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{errors}");
    let of_page: Vec<_> = errors.lines().filter(|line| line.contains("CONSOLE")).collect();
    assert!(of_page.is_empty(), "{of_page:?}");
    String::from_utf8(output.stdout).expect("UTF-8")
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
fn the_page_shows_every_mount_and_takes_hostile_names_for_text() {
    let hostile = "<img src=x onerror=document.title='owned'>";
    let parent = Volume::nothing();
    let place = parent.file(hostile);
    fs::create_dir(&place).expect("a mountpoint");
    let volume = Volume::new();
    let place = place.to_str().expect("UTF-8");
    volume.ok(&["mount", volume.path().to_str().expect("UTF-8"), place, "--revalidate", "1s"]);
    until("the KMS was asked", || !volume.ok(&["status", "--json", place]).contains("\"calls\": 0,"));
    let mount = Mount::new();
    mount.volume().ok(&["lock", mount.at("").to_str().expect("UTF-8")]);
    let server = Server::new(&volume);
    let page = browse(&server.address, &volume.file("profile"));
    let unmounted = volume.run(&["umount", place]);
    assert_eq!(unmounted.code, 0, "{unmounted:?}");
    assert!(page.contains("&lt;img src=x onerror=document.title='owned'&gt;"), "{page}");
    assert!(!page.contains("<img") && !page.contains("<title>owned"), "{page}");
    let row = |text: &str| page.split("<details").skip(1).find(|row| row.contains(text)).expect("a row");
    let locked = row(&mount.at("").display().to_string());
    for part in ["locked (operator)", "<svg", "<path", ">lock"] {
        assert!(locked.contains(part), "{part}: {locked}");
    }
    let well = row("&lt;img");
    assert!(well.contains(">unlocked<") && well.contains("class=\"spark number\""), "{well}");
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
        assert!(!answer.contains("innerHTML") && !answer.contains("https://"), "{path}");
    }
    for request in ["POST / HTTP/1.1\r\nHost: localhost", "DELETE /status.json HTTP/1.1\r\nHost: localhost"] {
        assert!(server.ask(request).starts_with("HTTP/1.1 405"), "{request}");
    }
    assert!(server.ask("GET /status.json HTTP/1.1\r\nHost: rebound.example").starts_with("HTTP/1.1 421"));
    assert_eq!(mount.status()["state"], "unlocked");
}
