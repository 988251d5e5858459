//! The commands and the process: start, stop, restart, and what is on the disk.

use crate::harness::{Outcome, TestVault, block};
use serde_json::Value;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::process::Stdio;

#[tokio::test]
async fn everything_survives_a_restart() -> Outcome {
    let vault = TestVault::start();
    let kid = vault.ok(&["key", "create", "k"]);
    vault.ok(&["key", "create", "gone"]);
    vault.ok(&["key", "delete", "gone"]);
    let (before, client, wire) = (vault.environment(), vault.client(), vault.wire().await);
    let blob = client.wrap_key("k", block(&[4; 32]), None).await?.into_model()?.result.expect("a wrapped key");
    vault.ok(&["key", "disable", "k"]);
    vault.ok(&["stop"]);
    assert!(wire.try_send(reqwest::Method::GET, "/keys/k", None).await.is_err(), "it has stopped");
    vault.ok(&["start"]);
    assert_eq!(vault.environment(), before);
    let seen = wire.get("/keys/k").await;
    assert_eq!((seen.status.as_u16(), &seen.body["key"]["kid"]), (200, &Value::String(kid)), "old token, old CA");
    assert_eq!(seen.body["attributes"]["enabled"], false);
    assert_eq!(wire.get("/deletedkeys/gone").await.status, 200);
    vault.ok(&["key", "enable", "k"]);
    let unwrapped = vault.client().unwrap_key("k", "", block(&blob), None).await?.into_model()?;
    assert_eq!(unwrapped.result, Some(vec![4; 32]));
    Ok(())
}

#[tokio::test]
async fn a_killed_vault_starts_again_with_what_it_had_answered() -> Outcome {
    let vault = TestVault::start();
    let kid = vault.ok(&["key", "create", "k"]);
    let pid = vault.status()["pid"].as_i64().and_then(|pid| rustix::process::Pid::from_raw(pid as i32));
    rustix::process::kill_process(pid.expect("a process id"), rustix::process::Signal::KILL)?;
    let wire_url = vault.ok(&["start"]);
    assert_eq!(wire_url, vault.environment()["KMSFS_DEV_VAULT_URL"]);
    assert_eq!(vault.wire().await.get("/keys/k").await.body["key"]["kid"], kid);
    Ok(())
}

#[test]
fn a_second_start_prints_the_url_of_the_first() {
    let vault = TestVault::new();
    let url = vault.ok(&["start"]);
    let pid = vault.status()["pid"].clone();
    assert_eq!(vault.ok(&["start"]), url);
    assert_eq!(vault.status()["pid"], pid);
    assert_eq!(vault.ok(&["start", "--listen", &vault.address().to_string(), "--token-lifetime", "1h"]), url);
}

#[test]
fn a_second_start_does_not_silently_differ_from_the_first() {
    let vault = TestVault::start();
    for arguments in [["--listen", "127.0.0.1:1"], ["--token-lifetime", "5s"]] {
        let error = vault.fails(&[&["start"], &arguments[..]].concat(), 1);
        assert!(error.contains("already runs") && error.contains("hint: kmsfs dev-vault stop"), "{error}");
    }
    assert!(vault.fails(&["start", "--foreground"], 1).contains("another process serves"));
}

#[test]
fn a_start_right_after_a_signal_to_end_succeeds() -> Outcome {
    let vault = TestVault::start();
    for _ in 0..5 {
        let pid = vault.status()["pid"].as_i64().and_then(|pid| rustix::process::Pid::from_raw(pid as i32));
        rustix::process::kill_process(pid.expect("a process id"), rustix::process::Signal::TERM)?;
        vault.ok(&["start"]);
        vault.ok(&["stop"]);
        vault.ok(&["start"]);
    }
    Ok(())
}

#[test]
fn starts_at_the_same_time_all_give_the_same_vault() -> Outcome {
    let vault = TestVault::new();
    let starts: Vec<_> =
        (0..4).map(|_| vault.command(&["start"]).stdout(Stdio::piped()).spawn()).collect::<Result<_, _>>()?;
    let mut urls = Vec::new();
    for start in starts {
        let output = start.wait_with_output()?;
        assert!(output.status.success());
        urls.push(output.stdout);
    }
    urls.dedup();
    assert_eq!(urls.len(), 1);
    Ok(())
}

#[test]
fn stop_ends_the_process_and_can_be_said_twice() -> Outcome {
    let vault = TestVault::start();
    let pid = vault.status()["pid"].as_i64().expect("a process id");
    let address = vault.address();
    vault.ok(&["stop"]);
    let state = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    assert!(state.is_empty() || state.contains(") Z ") || state.contains(") X "), "still there: {state}");
    TcpListener::bind(address)?;
    vault.ok(&["stop"]);
    Ok(())
}

#[test]
fn the_daemon_has_left_the_terminal_and_the_directory() -> Outcome {
    let vault = TestVault::start();
    let pid = vault.status()["pid"].as_i64().expect("a process id");
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let fields: Vec<&str> = stat.rsplit(')').next().expect("fields").split_whitespace().collect();
    assert_eq!(fields[3], pid.to_string(), "a session of its own");
    assert_eq!(fields[4], "0", "no terminal");
    assert_eq!(std::fs::read_link(format!("/proc/{pid}/cwd"))?, std::path::Path::new("/"));
    let log = vault.file("log").canonicalize()?;
    for (descriptor, target) in [(0, std::path::Path::new("/dev/null")), (1, &log), (2, &log)] {
        assert_eq!(std::fs::read_link(format!("/proc/{pid}/fd/{descriptor}"))?, target);
    }
    Ok(())
}

#[test]
fn secrets_are_readable_by_their_owner_only() -> Outcome {
    let vault = TestVault::start();
    vault.ok(&["key", "create", "k"]);
    let mode = |name: &str| std::fs::metadata(vault.file(name)).map(|data| data.permissions().mode() & 0o7777);
    for (name, expected) in [
        (".", 0o700),
        ("keys", 0o700),
        ("keys/k.json", 0o600),
        ("ca.key", 0o600),
        ("env", 0o600),
        ("vault.json", 0o600),
        ("control.sock", 0o600),
        ("log", 0o600),
        ("ca.pem", 0o644),
    ] {
        assert_eq!(mode(name)?, expected, "{name}");
    }
    Ok(())
}

#[test]
fn only_loopback_addresses_are_served() {
    let vault = TestVault::new();
    for address in ["0.0.0.0:0", "192.0.2.1:443", "[::]:0"] {
        let error = vault.fails(&["start", "--listen", address], 2);
        assert!(error.contains("not a loopback address") && error.contains("hint: "), "{error}");
    }
    assert!(!vault.directory.exists(), "a refused start leaves nothing behind");
}

#[test]
fn a_port_that_is_taken_is_named() -> Outcome {
    let vault = TestVault::new();
    let taken = TcpListener::bind("127.0.0.1:0")?;
    let address = taken.local_addr()?.to_string();
    let error = vault.fails(&["start", "--listen", &address], 1);
    assert!(error.contains(&address) && error.contains("hint: choose another port"), "{error}");
    drop(taken);
    assert!(vault.ok(&["start", "--listen", &address]).ends_with(address.trim_start_matches("127.0.0.1")));
    Ok(())
}

#[test]
fn a_directory_with_other_files_is_not_taken() -> Outcome {
    let vault = TestVault::new();
    std::fs::create_dir_all(&vault.directory)?;
    std::fs::write(vault.file("thesis.txt"), "")?;
    let error = vault.fails(&["start"], 13);
    assert!(error.contains("hint: --state takes a directory that is empty"), "{error}");
    Ok(())
}

#[test]
fn commands_for_a_vault_that_does_not_run_say_how_to_start_it() {
    let vault = TestVault::new();
    assert!(vault.fails(&["key", "list"], 1).contains("hint: kmsfs dev-vault start"));
    vault.ok(&["start"]);
    vault.ok(&["stop"]);
    for arguments in [&["key", "create", "k"][..], &["fault", "hang"], &["status"]] {
        let error = vault.fails(arguments, 1);
        assert!(error.contains("is not running") && error.contains("hint: kmsfs dev-vault start"), "{error}");
    }
}

#[test]
fn key_commands_name_the_key_that_is_missing() {
    let vault = TestVault::start();
    for command in ["disable", "enable", "rotate", "delete", "recover", "purge", "expire", "show"] {
        let error = vault.fails(&["key", command, "absent"], 1);
        assert!(error.contains("absent") && error.contains("hint: "), "{command}: {error}");
    }
    vault.fails(&["key", "create", "not/a/name"], 2);
    vault.fails(&["key", "create", "k", "--size", "1024"], 2);
}

#[test]
fn the_list_shows_what_state_each_key_is_in() {
    let vault = TestVault::start();
    let kid = vault.ok(&["key", "create", "on"]);
    vault.ok(&["key", "create", "off"]);
    vault.ok(&["key", "disable", "off"]);
    vault.ok(&["key", "create", "gone"]);
    vault.ok(&["key", "delete", "gone"]);
    let list = vault.ok(&["key", "list"]);
    let states: Vec<_> = list.lines().map(|line| line.split('\t').take(2).collect::<Vec<_>>().join(" ")).collect();
    assert_eq!(states, ["off disabled", "on enabled", "gone deleted"]);
    assert!(list.contains(&kid));
    let shown: Value = serde_json::from_str(&vault.ok(&["key", "show", "gone"])).expect("JSON");
    assert_eq!(shown["deleted"], true);
    assert!(!shown.to_string().contains("\"d\""), "a private key is shown");
}

#[test]
fn in_the_foreground_it_serves_until_it_is_told_to_end() -> Outcome {
    use std::io::BufRead;
    let vault = TestVault::new();
    let mut child = vault.command(&["start", "--foreground"]).stdout(Stdio::piped()).spawn()?;
    let mut url = String::new();
    std::io::BufReader::new(child.stdout.take().expect("a pipe")).read_line(&mut url)?;
    assert_eq!(vault.status()["pid"], child.id());
    assert_eq!(vault.status()["url"], url.trim_end());
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
    assert!(child.wait()?.success());
    Ok(())
}
