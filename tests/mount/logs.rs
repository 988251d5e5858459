//! What the process of a mount logs: as text or as JSON, for the journal as it wants it, and nothing by name.

use crate::harness::{Mount, Volume, bytes, number, until};
use serde_json::Value;
use std::fs;
use std::os::unix::fs::MetadataExt;

#[test]
fn json_lines_are_json_and_the_level_can_be_changed_at_run_time() {
    let mount = Volume::new().mount(&["--log-format", "json", "--revalidate", "1s"]);
    let place = mount.at("");
    let place = place.to_str().expect("UTF-8");
    let volume = mount.volume();
    let granted = || volume.log().contains("the KMS granted the key");
    assert!(!granted());
    volume.ok(&["log-level", place, "debug"]);
    until("a probe is logged", granted);
    volume.ok(&["log-level", place, "error"]);
    volume.ok(&["lock", place]);
    volume.ok(&["unlock", place]);
    assert!(!volume.log().contains("locked"), "{}", volume.log());
    volume.ok(&["log-level", place, "info"]);
    volume.ok(&["lock", place]);
    assert!(volume.log().contains("\"locked"), "{}", volume.log());
    for line in volume.log().lines() {
        let line: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        assert!(line["level"].is_string() && line["timestamp"].is_string() && line["fields"]["message"].is_string());
    }
    assert_eq!(volume.run(&["log-level", place, "loud"]).code, 2);
}

#[test]
fn to_the_journal_go_priorities_and_no_times_and_no_colours() {
    let volume = Volume::new();
    let log = volume.file("log");
    fs::write(&log, "").expect("a log");
    let found = fs::metadata(&log).expect("attributes");
    for (format, begin) in [("text", "<4>"), ("json", "<4>{")] {
        fs::File::create(&log).expect("an empty log");
        let arguments = volume.mount_arguments(&["--log-format", format]);
        let mut command = volume.command(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
        command.env("JOURNAL_STREAM", format!("{}:{}", found.dev(), found.ino()));
        assert!(command.status().expect("it runs").success());
        let place = volume.mountpoint();
        let place = place.to_str().expect("UTF-8");
        volume.ok(&["lock", place]);
        volume.ok(&["unlock", place]);
        volume.ok(&["umount", place]);
        let text = volume.log();
        assert!(text.lines().any(|line| line.starts_with(begin) && line.contains("locked")), "{text}");
        assert!(text.lines().all(|line| line.starts_with('<') && !line.contains('\u{1b}')), "{text}");
        let begins_with_time = |line: &str| line.as_bytes().get(3).is_some_and(u8::is_ascii_digit);
        assert!(!text.contains("timestamp") && !text.lines().any(begins_with_time), "a time: {text}");
    }
}

#[test]
fn no_name_of_a_file_is_logged_unless_somebody_asks_for_it() {
    for (option, is_told) in [(None, false), (Some("--log-names"), true)] {
        let volume = Volume::with(&["--plain-names"]);
        let mount = volume.mount(&[]);
        fs::write(mount.at("secret-name"), bytes(1, 10_000)).expect("a file");
        let volume = mount.unmount();
        let stored = volume.path().join("tree/secret-name");
        let mut content = fs::read(&stored).expect("its bytes");
        let last = content.len() - 1;
        content[last] ^= 1;
        fs::write(&stored, content).expect("damage");
        let mount: Mount = volume.mount(&option.into_iter().collect::<Vec<_>>());
        mount.volume().ok(&["log-level", mount.at("").to_str().expect("UTF-8"), "trace"]);
        assert_eq!(number(fs::read(mount.at("secret-name"))), libc::EIO);
        let log = mount.volume().log();
        assert!(log.contains("damage: file"), "{log}");
        assert_eq!(log.contains("secret-name"), is_told, "{log}");
    }
}
