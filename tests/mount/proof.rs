//! `scripts/revoke-and-verify` from end to end: its verdict, its JSON and its page.

use crate::harness::{Ended, Mount};
use crate::vault::Vault;
use serde_json::Value;
use std::fs;
use std::path::Path;
use std::process::Command;

const REVALIDATE: &[&str] = &["--revalidate", "1s"];

/// Runs the script on a mount; how it ended, its JSON, and its page.
fn prove(mount: &Mount, arguments: &[&str]) -> (Ended, Value, String) {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/revoke-and-verify");
    let page = mount.volume().file("page.html");
    let mut command = Command::new("python3");
    command.arg(script).arg(mount.volume().mountpoint()).args(["--json", "--html"]).arg(&page).args(arguments);
    command.env("KMSFS", env!("CARGO_BIN_EXE_kmsfs")).env_remove("KMSFS_DEV_VAULT_STATE");
    let ended = Ended::from(command.output().expect("python3 runs"));
    let report = serde_json::from_str(&ended.stdout).unwrap_or_else(|error| panic!("{error}: {ended:?}"));
    (ended, report, fs::read_to_string(page).unwrap_or_default())
}

fn assert_proven((ended, report, page): &(Ended, Value, String), mount: &Mount) {
    let failed: Vec<_> =
        report["checks"].as_array().expect("checks").iter().filter(|check| check["ok"] != true).collect();
    assert!(ended.code == 0 && report["ok"] == true, "{failed:#?} {}", ended.stderr);
    let times = &report["times"];
    let seconds = |name: &str| times[name].as_f64().unwrap_or_else(|| panic!("no {name} in {times}"));
    assert!(seconds("locked_after_s") <= seconds("allowed_s") && seconds("last_byte_after_s") <= seconds("allowed_s"));
    assert!(seconds("kms_refused_after_s") <= seconds("locked_after_s"), "{times}");
    assert!(seconds("unlocked_after_s") > 0.0);
    let happened: Vec<_> = report["timeline"]
        .as_array()
        .expect("moments")
        .iter()
        .map(|moment| moment["what"].as_str().expect("words"))
        .collect();
    for what in ["the KMS refused, says the audit log", "locked", "the last byte was read", "unlocked"] {
        assert!(happened.contains(&what), "{what} is not in {happened:?}");
    }
    let head = report["audit"]["head"].as_str().expect("the head of the audit log");
    let volume = mount.volume();
    volume.ok(&["audit", "verify", volume.path().to_str().expect("UTF-8"), "--head", head]);
    // For people who open it far away: nothing is loaded, nothing is run.
    assert!(page.contains("<svg") && page.contains(head) && page.contains("PASS"), "{page}");
    for foreign in ["<script", "src=", "href=", "url(", "@import", "<link"] {
        assert!(!page.contains(foreign), "{foreign} in {page}");
    }
}

#[test]
fn the_script_proves_a_revocation_by_commands_of_another_kms() {
    let server = crate::openbao::OpenBao::start();
    let volume = crate::harness::Volume::with_kek(&server.reference(), server.environment(&server.user()), &[]);
    let mount = volume.mount(REVALIDATE);
    let bao = |what: &str| {
        let (address, program) = (server.address(), server.program());
        format!("BAO_ADDR={address} BAO_TOKEN={} '{}' {what}", crate::openbao::ROOT, program.display())
    };
    let revoke = bao("delete transit/keys/disk/soft-delete");
    let grant = bao("write -f transit/keys/disk/soft-delete-restore");
    assert_proven(&prove(&mount, &["--restore", "--revoke-command", &revoke, "--grant-command", &grant]), &mount);
}

#[test]
fn the_script_proves_a_revocation_of_a_key_in_a_file_and_writes_a_page() {
    let mount = crate::harness::Volume::new().mount(REVALIDATE);
    fs::write(mount.at("some <b>file"), "what was there before\n".repeat(1000)).unwrap();
    assert_proven(&prove(&mount, &["--restore"]), &mount);
    assert!(mount.volume().file("kek").exists());
}

#[test]
fn the_script_proves_a_revocation_in_a_vault_also_by_the_commands_of_its_owner() {
    let vault = Vault::start();
    let mount = vault.volume().mount(REVALIDATE);
    let state = vault.state().to_str().unwrap();
    let embedded = prove(&mount, &["--vault-state", state, "--restore"]);
    assert_proven(&embedded, &mount);
    assert!(embedded.1["client_request_id"].is_string(), "{}", embedded.1);
    let command = |verb: &str| format!("{} dev-vault key {verb} tenant --state {state}", env!("CARGO_BIN_EXE_kmsfs"));
    let (disable, enable) = (command("disable"), command("enable"));
    let arguments = ["--revoke-command", &disable, "--grant-command", &enable, "--patience", "60", "--restore"];
    assert_proven(&prove(&mount, &arguments), &mount);
}

#[test]
fn the_script_says_when_it_can_prove_nothing() {
    let mount = crate::harness::Volume::new().mount(REVALIDATE);
    let (ended, report, page) = prove(&mount, &["--revoke-command", "true", "--patience", "2"]);
    assert_eq!((ended.code, &report["ok"], page.as_str()), (2, &Value::Null, ""), "{ended:?}");
    assert!(ended.stderr.contains("was not refused"), "{ended:?}");
    let (ended, ..) = prove(&mount, &["--revoke-command", "false"]);
    assert!(ended.code == 2 && ended.stderr.contains("status 1"), "{ended:?}");
}
