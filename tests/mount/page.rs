//! The status page in a real browser.

use crate::harness::{Mount, Volume, python, until};
use crate::status::Server;
use crate::vault::Vault;
use kmsfs::daemon::page;
use kmsfs::http::{Address, Answer};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

/// What is in a name that wants to be markup.
const HOSTILE: &str = "<img src=x onerror=document.title='owned'>";

/// A browser without a window, which has shown a page; its output.
fn chromium(address: &str, options: &[&str]) -> String {
    let profile = tempfile::tempdir().expect("a directory");
    let always = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--disable-dev-shm-usage",
        "--hide-scrollbars",
        "--virtual-time-budget=3000",
        "--enable-logging=stderr",
    ];
    let mut command = Command::new("chromium");
    command.args(always).arg(format!("--user-data-dir={}", profile.path().display())).args(options);
    let output = command.arg(format!("http://{address}/")).output().expect("chromium is installed");
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{errors}");
    let of_page: Vec<_> = errors.lines().filter(|line| line.contains("CONSOLE")).collect();
    assert!(of_page.is_empty(), "{of_page:?}");
    String::from_utf8(output.stdout).expect("UTF-8")
}

/// What the page has become after its script has run.
fn browse(address: &str) -> String {
    chromium(address, &["--dump-dom"])
}

/// The page's row that has this text.
fn row<'a>(page: &'a str, text: &str) -> &'a str {
    let mut rows = page.split("<details").skip(1);
    rows.find(|row| row.contains(text)).unwrap_or_else(|| panic!("{text} is not in {page}"))
}

/// Serves the page, with data of the test's; the address.
fn serve(mounts: Vec<Value>) -> String {
    let data = json!({"host": "files-03", "version": "0.1.0", "mounts": mounts}).to_string();
    let server = kmsfs::http::Server::bind(&"127.0.0.1:0".parse().expect("an address")).expect("a server");
    let Address::Loopback(address) = server.address().clone() else { unreachable!() };
    let routes = move |path: &str| match path {
        "/status.json" => Some(Answer::ok("application/json", data.clone())),
        other => page::answer(other),
    };
    server.spawn(Arc::new(routes)).expect("it serves");
    address.to_string()
}

/// A mount of the page, made of that of a real one.
fn mount(real: &Value, number: usize, changes: &Value) -> Value {
    let mut mount = real.clone();
    mount["tenant"] = json!(format!("tenant-{number:03}"));
    mount["mountpoint"] = json!(format!("/srv/tenant-{number:03}"));
    mount["tone"] = json!("good");
    for (name, value) in changes.as_object().expect("an object") {
        mount[name] = value.clone();
    }
    mount
}

/// How many different lines a picture has; one of nothing has one or two.
fn lines(picture: &Path) -> u64 {
    let script = r"
import zlib
data = open(argv[0], 'rb').read()
at, packed = 8, b''
while at < len(data):
    length, kind = struct.unpack('>I4s', data[at:at + 8])
    if kind == b'IHDR': width, height, depth, colour = struct.unpack('>IIBB', data[at + 8:at + 18])
    if kind == b'IDAT': packed += data[at + 8:at + 8 + length]
    at += 12 + length
plain = zlib.decompress(packed)
size = len(plain) // height
print(len({plain[line * size:(line + 1) * size] for line in range(height)}))
";
    python(script, &[&picture]).trim().parse().expect("a number")
}

#[test]
fn real_mounts_in_every_state_are_rows_of_it() {
    let vault = Vault::start();
    let revoked = vault.volume().mount(&["--revalidate", "1s"]);
    let locked = Mount::new();
    let (dead, silent) = (Mount::new(), Mount::new());
    let parent = Volume::nothing();
    let place = parent.file(HOSTILE.trim_end_matches('>'));
    fs::create_dir(&place).expect("a mountpoint");
    let hostile = Volume::new();
    hostile.ok(&["mount", hostile.path().to_str().expect("UTF-8"), place.to_str().expect("UTF-8")]);
    locked.volume().ok(&["lock", locked.at("").to_str().expect("UTF-8")]);
    vault.run(&["key", "disable", "tenant"]);
    until("locked", || revoked.status()["state"] == "locked");
    let signal = |mount: &Mount, signal| {
        let pid = mount.status()["pid"].as_i64().and_then(|pid| Pid::from_raw(pid as i32)).expect("a process");
        kill_process(pid, signal).expect("a signal");
        pid
    };
    let killed = signal(&dead, Signal::KILL);
    until("dead", || rustix::process::test_kill_process(killed).is_err());
    let server = Server::new(&hostile);
    let stopped = signal(&silent, Signal::STOP);
    let page = browse(&server.address);
    let list = hostile.run(&["status"]).stdout;
    let all = hostile.run(&["status", "--json"]).stdout;
    kill_process(stopped, Signal::CONT).expect("a signal");
    let unmounted = hostile.run(&["umount", place.to_str().expect("UTF-8")]);
    assert_eq!(unmounted.code, 0, "{unmounted:?}");

    assert!(!page.contains("<img") && !page.contains("<title>owned"), "{page}");
    let well = row(&page, "&lt;img src=x");
    for part in ["class=\"good\"", ">unlocked<", " left<", "Last audit events", "mount: kmsfs "] {
        assert!(well.contains(part), "{part}: {well}");
    }
    let expected = [
        (&revoked, "bad", "locked (revoked)"),
        (&locked, "calm", "locked (operator)"),
        (&dead, "bad", "dead"),
        (&silent, "bad", "silent"),
    ];
    let all: Vec<Value> = serde_json::from_str(&all).expect("JSON");
    for (mount, tone, word) in expected {
        let place = mount.at("").display().to_string();
        let row = row(&page, &place);
        assert!(row.contains(&format!("class=\"{tone}\"")) && row.contains(&format!(">{word}<")), "{row}");
        assert!(row.contains("<path d="), "{row}");
        let state = word.split(' ').next().expect("a word");
        assert!(all.iter().any(|one| one["mountpoint"] == *place && one["state"] == state), "{word}: {all:?}");
    }
    assert!(list.contains("✖ dead") && list.contains("? silent") && list.contains("✖ locked (revoked)"), "{list}");
    let why = row(&page, &revoked.at("").display().to_string());
    assert!(why.contains("<polyline") && why.contains("class=\"problem\"") && why.contains(">lock: revoked<"), "{why}");
}

#[test]
fn it_takes_whatever_comes_for_text_and_is_not_blank_with_none_and_with_a_hundred() {
    let real = Mount::new().status();
    let bad = json!({
        "tenant": HOSTILE, "mountpoint": format!("/{HOSTILE}"), "state": "draining", "reason": "revoked", "tone": "attention",
        "last_error": HOSTILE, "kek": HOSTILE, "volume": HOSTILE, "labels": {HOSTILE: HOSTILE, "__proto__": HOSTILE},
        "events": [{"time": HOSTILE, "event": HOSTILE, "text": HOSTILE, "times": 2}], "recent_latencies_us": [1, 2, 0],
    });
    let mut many: Vec<_> = (0..100).map(|number| mount(&real, number, &json!({}))).collect();
    many.push(mount(&real, 100, &bad));
    let (none, many) = (serve(Vec::new()), serve(many));
    let page = browse(&none);
    assert!(page.contains("Nothing is mounted.") && !page.contains("<details"), "{page}");
    let page = browse(&many);
    assert_eq!(page.matches("<details").count(), 101);
    assert!(!page.contains("<img") && !page.contains("<title>owned"), "{page}");
    let row = row(&page, "draining (revoked)");
    assert!(row.matches("&lt;img src=x").count() >= 9, "{row}");
    assert!(page.contains("<title>(1) kmsfs files-03</title>") && page.contains(">100 unlocked<"), "{page}");
    let pictures = tempfile::tempdir().expect("a directory");
    for (name, address, options) in [
        ("none", &none, &["--window-size=1280,800"][..]),
        ("many", &many, &["--window-size=1280,800"]),
        ("dark", &many, &["--window-size=1280,800", "--blink-settings=preferredColorScheme=0"]),
        ("phone", &many, &["--window-size=500,1000"]),
    ] {
        let picture = pictures.path().join(format!("{name}.png"));
        chromium(address, &[options, &[&format!("--screenshot={}", picture.display())]].concat());
        assert!(lines(&picture) > 30, "{name} is blank");
    }
    let read = |name: &str| fs::read(pictures.path().join(name)).expect("a picture");
    assert_ne!(read("dark.png"), read("many.png"), "dark is as light");
}

#[test]
fn it_says_when_its_server_is_gone() {
    let server = kmsfs::http::Server::bind(&"127.0.0.1:0".parse().expect("an address")).expect("a server");
    let Address::Loopback(address) = server.address().clone() else { unreachable!() };
    let routes = |path: &str| match path {
        "/status.json" => Some(Answer::ok("application/json", "no JSON")),
        other => page::answer(other),
    };
    server.spawn(Arc::new(routes)).expect("it serves");
    let page = browse(&address.to_string());
    assert!(page.contains("The server does not answer") && page.contains("<body class=\"stale\">"), "{page}");
}
