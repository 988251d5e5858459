//! Certificates: in every state of a key they say what can be shown, and never more.

#![allow(clippy::unwrap_used, reason = "a test ends at the first thing that goes wrong")]

use crate::harness::{Ended, Volume, bytes, until};
use crate::vault::Vault;
use serde_json::Value;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

fn text(path: impl AsRef<Path>) -> String {
    path.as_ref().to_str().expect("UTF-8").to_owned()
}

/// A certificate of this name, with its exit code.
fn certify(volume: &Volume, name: &str, code: i32) -> Value {
    let (base, key) = (text(volume.file(name)), text(volume.file("signing.pem")));
    let ended = volume.run(&["certify", &text(volume.path()), "--output", &base, "--signing-key", &key]);
    assert_eq!(ended.code, code, "{ended:?}");
    let signed: Value =
        serde_json::from_slice(&fs::read(format!("{base}.json")).expect("a certificate")).expect("JSON");
    let page = fs::read_to_string(format!("{base}.html")).expect("a page");
    assert!(page.starts_with("<!DOCTYPE html>") && !page.contains("<script"), "{page}");
    let certificate = signed["certificate"].clone();
    let verdict = certificate["verdict"].as_str().expect("a verdict");
    if verdict != "destroyed" {
        assert!(!certificate["statement"].as_str().expect("words").contains("destroyed"), "{certificate:#}");
    }
    assert_eq!(verify(volume, name, &[]).code, 0);
    certificate
}

fn verify(volume: &Volume, name: &str, more: &[&str]) -> Ended {
    volume.run(&[&["certify", "--verify", &format!("{}.json", text(volume.file(name)))], more].concat())
}

fn filled(volume: Volume) -> Volume {
    let mount = volume.mount(&[]);
    fs::create_dir(mount.at("directory")).unwrap();
    for number in 0..20 {
        fs::write(mount.at(format!("directory/file {number}")), bytes(number, 10_000 * number as usize)).unwrap();
    }
    fs::write(mount.at("text"), "plain text ".repeat(10_000)).unwrap();
    mount.unmount()
}

fn results(certificate: &Value) -> Vec<String> {
    let conditions = certificate["conditions"].as_array().expect("conditions");
    conditions.iter().map(|condition| condition["result"].as_str().expect("a result").to_owned()).collect()
}

/// Where the encrypted files of a volume are.
fn stored(volume: &Volume) -> Vec<PathBuf> {
    fn walk(directory: &Path, out: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(directory).unwrap() {
            let entry = entry.unwrap();
            match entry.file_type().unwrap() {
                kind if kind.is_dir() => walk(&entry.path(), out),
                kind if kind.is_file() => out.push(entry.path()),
                _ => (),
            }
        }
    }
    let mut out = Vec::new();
    walk(&volume.path().join("tree"), &mut out);
    out
}

#[test]
fn a_certificate_says_what_became_of_a_key_in_a_vault_and_never_more() {
    let vault = Vault::start();
    let volume = filled(vault.volume());
    let state = |certificate: &Value| (certificate["verdict"].clone(), certificate["keys"][0]["state"].clone());
    let is = |verdict: &str, key: &str| (Value::from(verdict), Value::from(key));
    let usable = certify(&volume, "usable", 1);
    assert_eq!(state(&usable), is("readable", "usable"));
    assert_eq!(usable["store"]["not_ciphertext_count"], 0, "{usable:#}");
    assert!(usable["store"]["windows_tested"].as_u64() > Some(400) && usable["headers"]["leaves"] == 21, "{usable:#}");
    vault.run(&["key", "disable", "tenant"]);
    let disabled = certify(&volume, "disabled", 0);
    assert_eq!(state(&disabled), is("suspended", "suspended"));
    assert_eq!(disabled["headers"], usable["headers"]);
    assert_eq!(disabled["keys"][0]["volume_key"]["code"], "KeyDisabled");
    vault.run(&["key", "enable", "tenant"]);
    vault.run(&["fault", "forbid-role"]);
    assert_eq!(state(&certify(&volume, "forbidden", 0)), is("refused", "not-shown"));
    vault.run(&["fault", "none"]);
    vault.run(&["key", "delete", "tenant"]);
    let deleted = certify(&volume, "deleted", 0);
    assert_eq!(state(&deleted), is("scheduled-for-destruction", "scheduled"));
    let until = deleted["recoverable_until"].as_str().expect("a date");
    assert!(deleted["statement"].as_str().expect("words").contains(until), "{deleted:#}");
    vault.run(&["key", "recover", "tenant"]);
    assert_eq!(state(&certify(&volume, "recovered", 1)), is("readable", "usable"));
    vault.run(&["key", "delete", "tenant"]);
    vault.run(&["key", "purge", "tenant"]);
    let purged = certify(&volume, "purged", 0);
    assert_eq!(state(&purged), is("destroyed", "destroyed"));
    let met = results(&purged);
    assert_eq!((met.len(), met[3].as_str(), met[4].as_str()), (10, "shown", "not shown"), "{met:?}");
    // A key of the same name is another key.
    vault.run(&["key", "create", "tenant"]);
    assert_eq!(state(&certify(&volume, "another", 0)), is("destroyed", "destroyed"));
    vault.run(&["stop"]);
    assert_eq!(state(&certify(&volume, "away", 7)), is("not-shown", "not-shown"));
}

#[test]
fn a_rotated_key_is_not_gone_before_all_of_its_versions_are() {
    let vault = Vault::start();
    let volume = filled(vault.volume());
    vault.run(&["key", "rotate", "tenant"]);
    let volume = volume.mount(&[]).unmount();
    let id = |certificate: &Value, number: usize| certificate["keys"][number]["id"].as_str().expect("an id").to_owned();
    let both = certify(&volume, "both", 1);
    assert_eq!(both["keys"].as_array().map(Vec::len), Some(2));
    let newest = id(&both, 1).rsplit('/').next().expect("a version").to_owned();
    vault.run(&["key", "disable", "tenant", "--version", &newest]);
    let one = certify(&volume, "one", 1);
    assert_eq!((&one["keys"][0]["verdict"], &one["keys"][1]["verdict"]), (&"readable".into(), &"suspended".into()));
}

#[test]
fn what_is_not_ciphertext_is_found_wherever_it_is() {
    let vault = Vault::start();
    let volume = filled(vault.volume());
    vault.run(&["key", "disable", "tenant"]);
    certify(&volume, "clean", 0);
    let named = |certificate: &Value, path: &str| {
        let found = certificate["store"]["not_ciphertext"].as_array().expect("a list");
        found.iter().any(|found| found["path"].as_str().expect("a path").contains(path))
    };
    fs::write(volume.path().join("tree/notes.txt"), "somebody's notes ".repeat(1000)).unwrap();
    fs::write(volume.path().join("dump.sql"), "create table").unwrap();
    fs::write(volume.path().join("links/x"), "somebody's link ".repeat(20)).unwrap();
    rustix::fs::setxattr(volume.path().join("tree"), "user.comment", b"x", rustix::fs::XattrFlags::empty()).unwrap();
    let planted = certify(&volume, "planted", 14);
    for path in ["tree/notes.txt", "dump.sql", "links/x"] {
        assert!(named(&planted, path), "{path}: {:#}", planted["store"]);
    }
    assert!(planted["store"].to_string().contains("user.comment"));
    assert_ne!(results(&planted)[1], "shown");
    assert_ne!(planted["headers"], certify_headers(&volume, "clean"));
    for path in ["tree/notes.txt", "dump.sql", "links/x"] {
        fs::remove_file(volume.path().join(path)).unwrap();
    }
    rustix::fs::removexattr(volume.path().join("tree"), "user.comment").unwrap();
    // In the middle of a file that is whole otherwise.
    let file = stored(&volume).into_iter().max_by_key(|path| fs::metadata(path).unwrap().len()).expect("a file");
    let open = fs::File::options().write(true).open(&file).unwrap();
    open.write_all_at(&b"what should not be here ".repeat(400), 8192).unwrap();
    let inside = certify(&volume, "inside", 14);
    assert_eq!(inside["store"]["windows_suspicious"].as_u64().map(|count| (2..=3).contains(&count)), Some(true));
    assert!(named(&inside, file.file_name().unwrap().to_str().unwrap()), "{:#}", inside["store"]);
}

fn certify_headers(volume: &Volume, name: &str) -> Value {
    let text = fs::read_to_string(format!("{}.json", text(volume.file(name)))).unwrap();
    serde_json::from_str::<Value>(&text).unwrap()["certificate"]["headers"].clone()
}

#[test]
fn a_certificate_that_was_tampered_with_is_rejected() {
    let vault = Vault::start();
    let volume = filled(vault.volume());
    vault.run(&["key", "disable", "tenant"]);
    certify(&volume, "made", 0);
    let place = text(volume.path());
    assert_eq!(verify(&volume, "made", &[&place]).code, 0);
    let signed = fs::read_to_string(volume.file("made.json")).unwrap();
    let key = serde_json::from_str::<Value>(&signed).unwrap()["signature"]["public_key"].as_str().unwrap().to_owned();
    assert_eq!(verify(&volume, "made", &["--public-key", &key]).code, 0);
    assert_eq!(verify(&volume, "made", &["--public-key", "11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo="]).code, 14);
    for (from, to) in [("\"suspended\"", "\"destroyed\""), ("\"leaves\": 21", "\"leaves\": 22"), ("{", "{ ")] {
        assert!(signed.contains(from));
        fs::write(volume.file("changed.json"), signed.replacen(from, to, 1)).unwrap();
        assert_eq!(verify(&volume, "changed", &[]).code, 14, "{from}");
    }
    // A second implementation, over the bytes as the manual describes them.
    let script = r#"
import base64, json, subprocess, tempfile
signed = json.load(open(argv[0]))
message = json.dumps(signed["certificate"], sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
der = bytes.fromhex("302a300506032b6570032100") + base64.b64decode(signed["signature"]["public_key"])
with tempfile.TemporaryDirectory() as d:
    for name, content in (("key", der), ("message", message), ("signature", base64.b64decode(signed["signature"]["value"]))):
        open(d + "/" + name, "wb").write(content)
    print(subprocess.run(["openssl", "pkeyutl", "-verify", "-rawin", "-pubin", "-keyform", "DER", "-inkey", d + "/key",
        "-in", d + "/message", "-sigfile", d + "/signature"], capture_output=True, text=True).stdout)
"#;
    assert!(crate::harness::python(script, &[&volume.file("made.json")]).contains("Verified Successfully"));
    let file = stored(&volume).remove(0);
    fs::File::options().write(true).open(file).unwrap().write_all_at(b"x", 100).unwrap();
    assert_eq!(verify(&volume, "made", &[&place]).code, 14);
}

#[test]
fn a_raw_key_that_is_gone_is_never_called_destroyed_and_a_mount_is_named() {
    let volume = filled(Volume::new());
    let mount = volume.mount(&["--revalidate", "1s"]);
    let volume = mount.volume();
    fs::rename(volume.file("kek"), volume.file("away")).unwrap();
    until("locked", || mount.status()["state"] == "locked");
    let locked = certify(volume, "locked", 0);
    assert_eq!((&locked["verdict"], &locked["mounted"]["locked"]), (&"refused".into(), &true.into()));
    fs::rename(volume.file("away"), volume.file("kek")).unwrap();
    until("unlocked", || mount.status()["state"] == "unlocked");
    let unlocked = certify(volume, "unlocked", 1);
    assert_eq!((&unlocked["verdict"], &unlocked["mounted"]["locked"]), (&"readable".into(), &false.into()));
    let volume = mount.unmount();
    fs::remove_file(volume.file("kek")).unwrap();
    let gone = certify(&volume, "gone", 0);
    assert_eq!((&gone["verdict"], &gone["keys"][0]["state"]), (&"refused".into(), &"not-shown".into()));
    assert!(gone["keys"][0]["state_detail"].as_str().expect("words").contains("other copies"));
    assert!(!gone.to_string().contains("\"destroyed\""));
}

#[test]
fn a_key_that_a_rewrap_gave_up_is_named_because_it_opens_older_copies() {
    let volume = filled(Volume::new());
    volume.make_key("new");
    let kek = volume.kek("new");
    let rewrapped = volume.run(&["rewrap", &text(volume.path()), "--kek", &kek, "--json"]);
    let report: Value = serde_json::from_str(&rewrapped.stdout).expect("JSON");
    let old = report["safe_to_disable"][0].as_str().expect("a key");
    let certificate = certify(&volume, "rewrapped", 1);
    assert_eq!(certificate["keys"].as_array().map(Vec::len), Some(1));
    let condition = certificate["conditions"].as_array().expect("conditions").iter();
    let mut named = condition.filter(|condition| condition.to_string().contains(old));
    let named = named.next().expect("the old key is named");
    assert_eq!(named["result"], "not shown");
    assert!(named.to_string().contains("they do open copies of it that were made then"), "{named}");
}

#[test]
fn plaintext_that_existed_before_or_elsewhere_is_in_the_certificate() {
    let volume = Volume::with(&["--plain-names"]);
    let source = volume.file("source");
    fs::create_dir(&source).unwrap();
    fs::write(source.join("file"), "content").unwrap();
    volume.ok(&["import", &text(&source), &text(volume.path()), "--label", "the old server"]);
    volume.ok(&["export", &text(volume.path()), &text(volume.file("back")), "--label", "the customer's disk"]);
    fs::remove_file(volume.file("kek")).unwrap();
    let certificate = certify(&volume, "moved", 0);
    let results = results(&certificate);
    assert_eq!(
        (results[0].as_str(), results[1].as_str(), results[9].as_str()),
        ("contradicted", "contradicted", "contradicted")
    );
    let conditions = certificate["conditions"].to_string();
    assert!(conditions.contains("the old server") && conditions.contains("the customer's disk"), "{conditions}");
    assert!(certificate["volume"]["names"].as_str().expect("words").contains("plain"));
}
