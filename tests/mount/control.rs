//! The control socket is what `src/manual/control.md` says it is: its examples are replayed on a mount.

use crate::harness::{Mount, Volume};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

const PAGE: &str = include_str!("../../src/manual/control.md");

fn socket(mount: &Mount) -> PathBuf {
    let hash = blake3::hash(mount.at("").as_os_str().as_encoded_bytes()).to_hex();
    PathBuf::from("/run/kmsfs").join(format!("{}.sock", &hash[..32]))
}

fn exchange(mount: &Mount, request: &str) -> Value {
    let mut stream = UnixStream::connect(socket(mount)).expect("the control socket");
    stream.write_all(format!("{request}\n").as_bytes()).expect("a request");
    let mut reply = String::new();
    BufReader::new(stream).read_line(&mut reply).expect("a reply");
    serde_json::from_str(&reply).unwrap_or_else(|error| panic!("{request}: {error}: {reply}"))
}

/// Whether what is shown is in what came, with the same kinds of values. Words that programs rely on are the same.
fn assert_like(shown: &Value, came: &Value, at: &str) {
    match (shown, came) {
        (Value::Object(shown), Value::Object(came)) => {
            for (name, shown) in shown {
                let came = came.get(name).unwrap_or_else(|| panic!("{at}.{name} is not there: {came:?}"));
                assert_like(shown, came, &format!("{at}.{name}"));
            }
        }
        (Value::Array(_), Value::Array(_)) | (Value::Number(_), Value::Number(_)) | (Value::Null, _) => (),
        // How long a scrub of next to nothing runs is nobody's promise.
        (Value::String(shown), Value::String(came)) if at.ends_with(".state") && shown == "running" => {
            assert!(came == "running" || came == "complete", "{at}: {came}");
        }
        (Value::String(shown), Value::String(came)) => {
            if [".kind", ".state"].iter().any(|end| at.ends_with(end)) || at == "reply" {
                assert_eq!(shown, came, "{at}");
            }
        }
        (Value::Bool(shown), Value::Bool(came)) => assert_eq!(shown, came, "{at}"),
        other => panic!("{at}: {other:?}"),
    }
}

#[test]
fn the_examples_of_the_manual_are_what_a_mount_says() {
    let mount = Mount::new();
    std::fs::write(mount.at("file"), "x").expect("a file");
    let lines: Vec<_> = PAGE.lines().collect();
    let mut replayed = Vec::new();
    for pair in lines.windows(2) {
        let (Some(request), Some(shown)) = (pair[0].strip_prefix("> "), pair[1].strip_prefix("< ")) else { continue };
        let mut came = exchange(&mount, request);
        // Those are answered after a moment, too.
        while request.contains("_progress")
            && shown.contains("\"complete\"")
            && came.to_string().contains("\"running\"")
        {
            came = exchange(&mount, request);
        }
        assert_like(&serde_json::from_str(shown).expect("JSON"), &came, "reply");
        if request.contains("\"command\":\"status\"") && came["status"].is_object() {
            for name in came["status"].as_object().expect("a status").keys() {
                assert!(PAGE.contains(&format!("\"{name}\":")), "{name} is not in the manual");
            }
        }
        replayed.push(request.to_owned());
    }
    assert!(replayed.len() >= 18, "{replayed:?}");
    let commands = include_str!("../../src/daemon/control.rs");
    let commands = commands.split("pub enum Command {").nth(1).and_then(|rest| rest.split("\n}").next()).expect("them");
    let names = commands
        .lines()
        .filter_map(|line| line.strip_prefix("    "))
        .filter(|line| line.starts_with(char::is_alphabetic));
    let mut count = 0;
    for name in names {
        let name = name.trim_end_matches([',', '{', ' ']);
        let snake: String = name
            .char_indices()
            .flat_map(|(at, letter)| {
                (at > 0 && letter.is_uppercase()).then_some('_').into_iter().chain(letter.to_lowercase())
            })
            .collect();
        assert!(
            replayed.iter().any(|request| request.contains(&format!("\"{snake}\""))),
            "{snake} is not in the manual"
        );
        count += 1;
    }
    assert!(count > 10);
}

#[test]
fn only_the_mounts_own_user_can_connect_and_hostile_requests_end_in_an_answer() {
    let mount = Volume::new().mount(&[]);
    let path = socket(&mount);
    let mode = |path: &std::path::Path| std::fs::metadata(path).expect("attributes").permissions().mode() & 0o777;
    assert_eq!((mode(&path), mode(path.parent().expect("a directory"))), (0o600, 0o700));
    for request in
        ["", "[]", "{}", "null", "{\"version\":1}", "{\"version\":\"1\",\"command\":\"status\"}", &"[".repeat(100_000)]
    {
        assert_eq!(
            exchange(&mount, request)["failed"]["kind"],
            "not-a-request",
            "{}",
            &request[..request.len().min(40)]
        );
    }
    let later = json!({"version": 1, "command": "status", "of_a_later_version": [1, 2]}).to_string();
    assert!(exchange(&mount, &later)["status"].is_object());
    assert_eq!(
        exchange(&mount, &json!({"version": 9, "command": {"new": 1}}).to_string())["failed"]["kind"],
        "unknown-version"
    );
    assert_eq!(mount.status()["state"], "unlocked");
}

#[test]
fn whoever_comes_after_too_many_is_told_so_and_those_who_leave_make_room() {
    let mount = Mount::new();
    let place = mount.at("").display().to_string();
    let mut held = Vec::new();
    let refused = |held: &mut Vec<UnixStream>| {
        held.push(UnixStream::connect(socket(&mount)).expect("the control socket"));
        let ended = mount.volume().run(&["lock", &place]);
        assert!(held.len() < 200, "nobody is refused");
        (ended.code == 10).then_some(ended)
    };
    held.extend((0..64).map(|_| UnixStream::connect(socket(&mount)).expect("the control socket")));
    let ended = loop {
        if let Some(ended) = refused(&mut held) {
            break ended;
        }
    };
    assert!(ended.stderr.contains("64 programs are connected"), "{ended:?}");
    drop(held);
    crate::harness::until("room", || mount.volume().run(&["status", "--json", &place]).code == 0);
}
