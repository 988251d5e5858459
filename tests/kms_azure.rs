//! The Azure provider, the leases and `kmsfs key` against the embedded Key Vault: real TLS, real tokens, real RSA,
//! and faults on command.

use kmsfs::crypto::Secret32;
use kmsfs::kms::{AzureKek, ConnectOptions, KekId, Kms, KmsError, KmsErrorKind, Wrapped, connect};
use kmsfs::lease::{BootTime, Canary, Event, Keeper, Leases, LockReason, OnRevoked, Policy, State, Volume};
use kmsfs::units::VolumeId;
use serde_json::Value;
use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};
use tempfile::TempDir;

const VOLUME: VolumeId = VolumeId([5; 16]);
const KEY: &str = "disk";
/// For things that happen at once.
const PATIENCE: Duration = Duration::from_secs(30);

/// A vault with one key, stopped when it goes out of scope.
struct Vault {
    _parent: TempDir,
    directory: PathBuf,
    variables: HashMap<String, String>,
}

impl Vault {
    fn start() -> Self {
        let parent = TempDir::new().expect("a temporary directory");
        let directory = parent.path().join("vault");
        let mut vault = Self { _parent: parent, directory, variables: HashMap::new() };
        vault.ok(&["start"]);
        let environment = std::fs::read_to_string(vault.directory.join("env")).expect("the file env");
        for line in environment.lines().filter_map(|line| line.strip_prefix("export ")) {
            let (name, value) = line.split_once('=').expect("a variable");
            vault.variables.insert(name.into(), value.trim_matches('\'').into());
        }
        vault.ok(&["key", "create", KEY]);
        vault
    }

    fn ok(&self, arguments: &[&str]) -> String {
        let program = env!("CARGO_BIN_EXE_kmsfs");
        let output =
            Command::new(program).arg("dev-vault").args(arguments).arg("--state").arg(&self.directory).output();
        let output = output.expect("the program runs");
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        String::from_utf8(output.stdout).expect("text").trim_end().to_owned()
    }

    fn fault(&self, fault: &str) {
        self.ok(&[&["fault"], fault.split(' ').collect::<Vec<_>>().as_slice()].concat());
    }

    /// How often the vault was asked for this since it was started.
    fn calls(&self, operation: &str) -> u64 {
        let status: Value = serde_json::from_str(&self.ok(&["status", "--json"])).expect("JSON");
        status["calls"]["calls"][operation].as_u64().unwrap_or(0)
    }

    fn reference(&self) -> String {
        format!("{}/keys/{KEY}", self.variables["KMSFS_DEV_VAULT_URL"])
    }

    fn options(&self) -> ConnectOptions {
        self.options_with(&[])
    }

    fn options_with(&self, overrides: &[(&str, &str)]) -> ConnectOptions {
        ConnectOptions::from_variables(|name| {
            let other = overrides.iter().find(|(n, _)| *n == name).map(|(_, value)| (*value).to_owned());
            other.or_else(|| self.variables.get(name).cloned())
        })
    }

    fn kms(&self) -> Arc<dyn Kms> {
        connect(&self.reference(), &self.options()).expect("a provider")
    }

    /// `kmsfs key` in the vault's environment.
    fn key(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kmsfs"));
        command.env_clear().envs(&self.variables).arg("key").args(arguments);
        command.output().expect("the program runs")
    }
}

impl Drop for Vault {
    fn drop(&mut self) {
        let program = env!("CARGO_BIN_EXE_kmsfs");
        let _ = Command::new(program).args(["dev-vault", "stop", "--state"]).arg(&self.directory).output();
    }
}

fn secret() -> Secret32 {
    Secret32::take(&mut [0x42; 32])
}

fn wrapped(kms: &dyn Kms) -> Wrapped {
    kms.wrap(&secret(), VOLUME).expect("a wrapped secret")
}

#[track_caller]
fn unwraps(kms: &dyn Kms, wrapped: &Wrapped) {
    let secret = kms.unwrap(wrapped, VOLUME).expect("the vault unwraps").secret;
    assert_eq!(secret.expose(), self::secret().expose());
}

#[track_caller]
fn refusal(kms: &dyn Kms, wrapped: &Wrapped) -> KmsError {
    kms.unwrap(wrapped, VOLUME).expect_err("the vault does not unwrap")
}

#[test]
fn what_is_wrapped_here_is_unwrapped_there_by_the_version_that_wrapped() {
    let vault = Vault::start();
    let kms = vault.kms();
    let old = wrapped(&*kms);
    let version = AzureKek::parse(&old.kek.0).expect("a key id").version;
    assert!(version.is_some(), "{old:?}");
    assert_eq!((old.blob.len(), vault.calls("wrapkey")), (256, 0));
    unwraps(&*kms, &old);

    let newest = vault.ok(&["key", "rotate", KEY]);
    assert_eq!(wrapped(&*kms).kek, old.kek, "the newest version is only asked for by current()");
    assert_eq!(kms.current().expect("the newest version"), KekId(newest.clone()));
    let new = wrapped(&*kms);
    assert_eq!(new.kek.0, newest);
    unwraps(&*kms, &new);
    unwraps(&*kms, &old);
}

#[test]
fn a_pinned_version_is_used_although_there_is_a_newer_one() {
    let vault = Vault::start();
    let first = vault.kms().current().expect("a version");
    vault.ok(&["key", "rotate", KEY]);
    let kms = connect(&first.0, &vault.options()).expect("a provider");
    assert_eq!(kms.current().expect("a version"), first);
    assert_eq!(wrapped(&*kms).kek, first);
}

#[test]
fn creating_goes_on_without_a_call_while_the_vault_throttles_or_is_away() {
    let vault = Vault::start();
    let kms = vault.kms();
    wrapped(&*kms);
    vault.fault("throttle");
    for _ in 0..100 {
        wrapped(&*kms);
    }
    vault.ok(&["stop"]);
    wrapped(&*kms);
}

#[test]
fn every_way_to_revoke_is_a_refusal_and_undoing_it_grants_again() {
    let vault = Vault::start();
    let kms = vault.kms();
    let wrapped = wrapped(&*kms);
    let cases: [(&[&str], &[&str], &str, &str); 5] = [
        (&["key", "disable", KEY], &["key", "enable", KEY], "KeyDisabled", "key enable"),
        (&["key", "delete", KEY], &["key", "recover", KEY], "KeyNotFound", "key recover"),
        (&["fault", "forbid-role"], &["fault", "none"], "ForbiddenByRbac", "Key Vault Crypto Service Encryption User"),
        (&["fault", "forbid-policy"], &["fault", "none"], "AccessDenied", "set-policy"),
        (&["fault", "forbid-firewall"], &["fault", "none"], "ForbiddenByFirewall", "network-rule"),
    ];
    for (revoke, grant, code, hint) in cases {
        vault.ok(revoke);
        let before = vault.calls("unwrapkey");
        let error = refusal(&*kms, &wrapped);
        assert_eq!((error.kind, error.code.as_deref()), (KmsErrorKind::Refused, Some(code)), "{revoke:?}");
        assert!(error.hint.as_ref().is_some_and(|h| h.contains(hint)), "{revoke:?}: {error:?}");
        assert!(error.ids.request.is_some(), "{revoke:?}");
        assert_eq!(vault.calls("unwrapkey"), before + 1, "{revoke:?}: a refusal is not argued with");
        vault.ok(grant);
        unwraps(&*kms, &wrapped);
    }
    vault.ok(&["key", "delete", KEY]);
    vault.ok(&["key", "purge", KEY]);
    assert_eq!(refusal(&*kms, &wrapped).kind, KmsErrorKind::Refused);
}

#[test]
fn a_key_that_is_not_permitted_to_unwrap_wraps_nothing() {
    let vault = Vault::start();
    vault.ok(&["key", "create", "wrap-only", "--ops", "wrapKey"]);
    let reference = vault.reference().replace(KEY, "wrap-only");
    let kms = connect(&reference, &vault.options()).expect("a provider");
    let error = kms.wrap(&secret(), VOLUME).expect_err("a secret that nobody could unwrap");
    assert_eq!((error.kind, error.code.as_deref()), (KmsErrorKind::Misconfigured, Some("KeyOperationForbidden")));
}

#[test]
fn an_expired_key_wraps_nothing_more_and_still_unwraps() {
    let vault = Vault::start();
    let kms = vault.kms();
    let wrapped = wrapped(&*kms);
    vault.ok(&["key", "expire", KEY]);
    unwraps(&*kms, &wrapped);
    let error = vault.kms().wrap(&secret(), VOLUME).expect_err("the key has expired");
    assert_eq!(error.kind, KmsErrorKind::Misconfigured);
    assert!(error.hint.is_some_and(|hint| hint.contains("rotate")));
}

#[test]
fn every_kind_of_silence_is_unreachable_within_the_deadline() {
    let vault = Vault::start();
    let options = ConnectOptions { deadline: Duration::from_secs(2), ..vault.options() };
    let kms = connect(&vault.reference(), &options).expect("a provider");
    let wrapped = wrapped(&*kms);
    unwraps(&*kms, &wrapped);
    for fault in ["throttle", "error", "error --status 503", "hang", "reset", "latency=1m", "hang --also-tokens"] {
        vault.fault(fault);
        let start = Instant::now();
        let error = refusal(&*kms, &wrapped);
        assert_eq!(error.kind, KmsErrorKind::Unreachable, "{fault}: {error:?}");
        assert!(start.elapsed() < kms.deadline() + Duration::from_secs(2), "{fault}: {:?}", start.elapsed());
        assert_eq!(error.code.as_deref() == Some("Throttled"), fault == "throttle", "{error:?}");
        vault.fault("none");
        unwraps(&*kms, &wrapped);
    }
    vault.ok(&["stop"]);
    let error = refusal(&*kms, &wrapped);
    assert_eq!(error.kind, KmsErrorKind::Unreachable);
    assert!(error.message.contains("connection refused"), "{error}");
    vault.ok(&["start"]);
    unwraps(&*kms, &wrapped);
}

#[test]
fn a_fault_that_passes_is_not_noticed() {
    let vault = Vault::start();
    let kms = vault.kms();
    let wrapped = wrapped(&*kms);
    unwraps(&*kms, &wrapped);
    for fault in ["error", "error --status 503", "reset", "throttle", "throttle --retry-after 2s"] {
        vault.fault(&format!("{fault} --count 1"));
        let before = vault.calls("unwrapkey");
        unwraps(&*kms, &wrapped);
        assert!(vault.calls("unwrapkey") > before, "{fault}");
    }
}

#[test]
fn a_retry_after_beyond_the_deadline_is_not_waited_for() {
    let vault = Vault::start();
    let kms = vault.kms();
    let wrapped = wrapped(&*kms);
    vault.fault("throttle --retry-after 60s");
    let start = Instant::now();
    let error = refusal(&*kms, &wrapped);
    assert_eq!(error.retry_after, Some(Duration::from_secs(60)));
    assert!(start.elapsed() < kms.deadline() / 2, "{:?}", start.elapsed());
    assert_eq!(vault.calls("unwrapkey"), 1);
}

#[test]
fn a_changed_blob_is_damage() {
    let vault = Vault::start();
    let kms = vault.kms();
    let wrapped = wrapped(&*kms);
    for (at, len) in [(0, 256), (255, 256), (0, 255)] {
        let mut damaged = wrapped.clone();
        damaged.blob[at] ^= 1;
        damaged.blob.truncate(len);
        let error = refusal(&*kms, &damaged);
        assert_eq!(error.kind, KmsErrorKind::Damaged, "{error:?}");
    }
}

#[test]
fn many_unwraps_are_under_way_at_once() {
    let vault = Vault::start();
    let kms = vault.kms();
    let wrapped = wrapped(&*kms);
    unwraps(&*kms, &wrapped);
    vault.fault("latency=1s");
    let start = Instant::now();
    thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| unwraps(&*kms, &wrapped));
        }
    });
    assert!(start.elapsed() < Duration::from_secs(4), "16 calls of 1 s took {:?}", start.elapsed());
}

#[test]
fn a_token_that_the_vault_takes_no_more_is_renewed_once() {
    let vault = Vault::start();
    let kms = vault.kms();
    let wrapped = wrapped(&*kms);
    unwraps(&*kms, &wrapped);
    // Another signing key: every token that was given out is void, long before it expires.
    vault.ok(&["stop"]);
    let file = vault.directory.join("vault.json");
    let mut settings: Value = serde_json::from_slice(&std::fs::read(&file).expect("vault.json")).expect("JSON");
    settings["token_key"] = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA".into();
    std::fs::write(&file, settings.to_string()).expect("vault.json");
    vault.ok(&["start"]);
    unwraps(&*kms, &wrapped);
    assert_eq!(vault.calls("token"), 1);
}

#[test]
fn a_wrong_identity_is_not_a_revocation() {
    let vault = Vault::start();
    let wrapped = wrapped(&*vault.kms());
    let options = vault.options_with(&[("AZURE_CLIENT_SECRET", "wrong")]);
    let kms = connect(&vault.reference(), &options).expect("a provider");
    let error = refusal(&*kms, &wrapped);
    assert_eq!(error.kind, KmsErrorKind::Credentials, "{error:?}");
    assert!(error.hint.is_some_and(|hint| hint.contains("AZURE_CLIENT_SECRET")));
    let options = vault.options_with(&[("AZURE_TENANT_ID", "")]);
    let error = connect(&vault.reference(), &options).err().expect("half an identity");
    assert_eq!(error.kind, KmsErrorKind::Credentials);
    assert!(error.message.contains("AZURE_TENANT_ID"), "{error}");
}

#[test]
fn a_vault_whose_certificate_is_not_trusted_gets_nothing() {
    let vault = Vault::start();
    let wrapped = wrapped(&*vault.kms());
    let options = vault.options_with(&[("KMSFS_CA_FILE", "")]);
    let error = refusal(&*connect(&vault.reference(), &options).expect("a provider"), &wrapped);
    assert_eq!(error.kind, KmsErrorKind::Unreachable);
    assert!(error.hint.is_some_and(|hint| hint.contains("KMSFS_CA_FILE")));
    assert_eq!(vault.calls("token"), 1, "only the first provider asked for a token");
}

#[test]
fn a_token_goes_only_to_a_vault_that_asks_for_itself() {
    let vault = Vault::start();
    let wrapped = wrapped(&*vault.kms());
    let tokens = vault.calls("token");
    // The host 'localhost' is not below the resource 'localhost' that the challenge names.
    let reference = vault.reference().replace("devvault.localhost", "localhost");
    let error = refusal(&*connect(&reference, &vault.options()).expect("a provider"), &wrapped);
    assert_eq!(error.kind, KmsErrorKind::Misconfigured, "{error:?}");
    assert_eq!(vault.calls("token"), tokens);
}

#[test]
fn a_hundred_readers_of_one_envelope_cost_the_vault_one_unwrap() {
    let vault = Vault::start();
    let kms = vault.kms();
    let leases = Leases::new(Arc::clone(&kms), VOLUME, NonZeroUsize::MIN);
    let wrapped = wrapped(&*kms);
    thread::scope(|scope| {
        for _ in 0..100 {
            scope.spawn(|| assert_eq!(leases.fetch(&wrapped).expect("a lease").expose(), secret().expose()));
        }
    });
    assert_eq!((vault.calls("unwrapkey"), leases.stats().calls), (1, 1));
}

/// A volume that only notes when it was locked.
#[derive(Default)]
struct Noted(Mutex<Vec<LockReason>>);

impl Volume for Noted {
    fn drain_and_lock(&self, reason: LockReason, drain: Duration) {
        // The whole bound is used: the worst case.
        thread::sleep(drain);
        self.0.lock().expect("no panic").push(reason);
    }

    fn restrict(&self, on_revoked: OnRevoked, _drain: Duration) {
        panic!("{on_revoked:?} was not asked for");
    }

    fn release(&self) {}

    fn unlock(&self, volume_key: Secret32) -> Result<(), String> {
        assert_eq!(volume_key.expose(), secret().expose());
        Ok(())
    }
}

#[test]
fn a_disabled_key_locks_within_revalidate_and_five_seconds_and_an_enabled_one_unlocks() {
    let vault = Vault::start();
    let kms = vault.kms();
    let leases = Arc::new(Leases::new(Arc::clone(&kms), VOLUME, NonZeroUsize::MIN));
    let envelope = wrapped(&*kms);
    leases.fetch(&envelope).expect("a lease");
    let volume = Arc::new(Noted::default());
    let (tell, events) = mpsc::channel();
    let revalidate = Duration::from_secs(1);
    let policy = Policy::new(revalidate, Duration::from_secs(600), Duration::from_secs(3)).expect("a policy");
    let keeper = Keeper::start(
        Arc::clone(&leases),
        Arc::clone(&volume) as _,
        Canary::new(wrapped(&*kms), &secret()),
        policy,
        move |event| {
            if !matches!(event, Event::Probed { .. }) {
                let _ = tell.send((BootTime::now(), event));
            }
        },
    )
    .expect("a keeper");

    vault.ok(&["key", "disable", KEY]);
    let revoked = BootTime::now();
    let (_, locking) = events.recv_timeout(PATIENCE).expect("an event");
    assert_eq!(locking, Event::Locking(LockReason::Revoked));
    let (when, locked) = events.recv_timeout(PATIENCE).expect("an event");
    assert_eq!(locked, Event::Locked(LockReason::Revoked));
    assert!(when - revoked <= revalidate + Duration::from_secs(5), "it took {:?}", when - revoked);
    assert!(leases.fetch(&envelope).is_err() && leases.stats().held == 0);
    assert_eq!(keeper.status().last_error.and_then(|error| error.code).as_deref(), Some("KeyDisabled"));

    vault.ok(&["key", "enable", KEY]);
    assert_eq!(events.recv_timeout(PATIENCE).expect("an event").1, Event::Unlocked);
    assert_eq!(keeper.status().state, State::Unlocked);
    leases.fetch(&envelope).expect("a lease");

    vault.fault("hang");
    keeper.lock();
    assert_eq!(keeper.status().state, State::Locked(LockReason::Operator));
    assert!(keeper.unlock().is_err());
    vault.fault("none");
    keeper.unlock().expect("the vault answers again");
    assert_eq!(*volume.0.lock().expect("no panic"), [LockReason::Revoked, LockReason::Operator]);
}

/// What is done to the key, what undoes it, the exit code, the cause, and what the hint says.
type Case<'a> = (&'a [&'a str], &'a [&'a str], i32, &'a str, &'a str);

#[test]
fn key_test_has_an_exit_code_for_each_way_to_fail() {
    let vault = Vault::start();
    let reference = vault.reference();
    let test = |reference: &str| {
        let output = vault.key(&["test", reference]);
        (output.status.code().expect("an exit code"), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    assert_eq!(test(&reference).0, 0);
    let cases: [Case; 14] = [
        (&["key", "disable", KEY], &["key", "enable", KEY], 6, "disabled", "enable it"),
        (&["key", "delete", KEY], &["key", "recover", KEY], 6, "missing", "bring it back"),
        (&["fault", "forbid-role"], &["fault", "none"], 6, "role", "grant the identity the role"),
        (&["fault", "forbid-policy"], &["fault", "none"], 6, "access-policy", "az keyvault set-policy"),
        (&["fault", "forbid-firewall"], &["fault", "none"], 6, "firewall", "network-rule add"),
        (&["fault", "throttle", "--retry-after", "60s"], &["fault", "none"], 7, "throttled", "key test"),
        (&["fault", "error"], &["fault", "none"], 7, "unreachable", "key test"),
        (&["fault", "reset"], &["fault", "none"], 7, "unreachable", "key test"),
        (&["fault", "hang"], &["fault", "none"], 7, "unreachable", "key test"),
        (&["key", "expire", KEY], &["key", "expire", KEY, "--never"], 12, "expired", "add a version"),
        (
            &["key", "create", "wraps", "--ops", "wrapKey"],
            &["fault", "none"],
            12,
            "wrong-operation",
            "permit the operations",
        ),
        (&["key", "create", "other"], &["fault", "none"], 0, "", ""),
        (&["fault", "latency=300ms"], &["fault", "none"], 0, "", ""),
        (&["key", "expire", KEY, "--in", "1h"], &["key", "expire", KEY, "--never"], 0, "", ""),
    ];
    for (set, unset, code, cause, hint) in cases {
        vault.ok(set);
        let reference = reference.replace(KEY, if set[1] == "create" { set[2] } else { KEY });
        let (exit, stderr) = test(&reference);
        assert_eq!(exit, code, "{set:?}: {stderr}");
        let report: Value = serde_json::from_slice(&vault.key(&["test", "--json", &reference]).stdout).expect("JSON");
        if code == 0 {
            assert_eq!(report["ok"], true, "{report}");
        } else {
            assert!(stderr.starts_with("error: ") && stderr.contains(hint), "{set:?}: {stderr}");
            assert_eq!((&report["cause"], &report["exit"]), (&cause.into(), &code.into()), "{report}");
            assert!(report["hint"].as_str().is_some_and(|said| said.contains(hint)), "{report}");
        }
        vault.ok(unset);
    }
    // Nobody listens there, nobody has that name, and nobody there is to be trusted.
    let elsewhere = |reference: &str, variables: &[(&str, &str)]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kmsfs"));
        command.envs(&vault.variables).envs(variables.iter().copied()).args(["key", "test", "--json", reference]);
        let report: Value = serde_json::from_slice(&command.output().expect("it runs").stdout).expect("JSON");
        (report["cause"].clone(), report["exit"].clone(), report["message"].as_str().expect("a message").to_owned())
    };
    for (what, (cause, exit, message)) in [
        ("connection refused", elsewhere(&format!("https://v.localhost:1/keys/{KEY}"), &[])),
        ("certificate is not trusted", elsewhere(&reference, &[("KMSFS_CA_FILE", "")])),
    ] {
        assert_eq!((&cause, &exit), (&"unreachable".into(), &7.into()), "{message}");
        assert!(message.contains(what), "{message}");
    }
    let (cause, exit, message) = elsewhere(&reference, &[("AZURE_CLIENT_SECRET", "wrong")]);
    assert_eq!((cause, exit), ("credentials".into(), 8.into()), "{message}");
    assert_eq!(test("https://devvault.localhost/keys/").0, 12);
    assert_eq!(test("arn:aws:kms:eu-west-1:1:key/2").0, 12);
    assert_eq!(test("file:/nonexistent/key").0, 6);
}

#[test]
fn key_test_prints_json_for_programs() {
    let vault = Vault::start();
    let output = vault.key(&["test", "--json", &vault.reference()]);
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!((&report["ok"], &report["enabled"], &report["kind"]), (&true.into(), &true.into(), &"RSA 2048".into()));
    assert_eq!(report["wrapped_bytes"], 256);
    assert_eq!((&report["soft_delete"], &report["purge_protection"]), (&true.into(), &false.into()));
    assert!(report["clock_ahead_s"].as_f64().expect("a number").abs() < 10.0, "{report}");
    assert!(report["unwrap_us"].as_u64().expect("a number") > 0 && report["client_request_id"].is_string());
    vault.fault("clock=-10m");
    let report: Value =
        serde_json::from_slice(&vault.key(&["test", "--json", &vault.reference()]).stdout).expect("JSON");
    let ahead = report["clock_ahead_s"].as_f64().expect("a number");
    assert!((590.0..620.0).contains(&ahead) && report["warnings"].to_string().contains("ahead of"), "{report}");
    vault.fault("none");
    vault.ok(&["key", "disable", KEY]);
    let output = vault.key(&["test", "--json", &vault.reference()]);
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!((&report["ok"], &report["error_kind"], &report["exit"]), (&false.into(), &"refused".into(), &6.into()));
    assert_eq!(report["code"], "KeyDisabled");
}

#[test]
fn a_generated_key_is_one_that_key_test_takes() {
    let directory = TempDir::new().expect("a temporary directory");
    let path = directory.path().join("key");
    let run = |arguments: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_kmsfs")).arg("key").args(arguments).output();
        output.expect("the program runs")
    };
    let (one, other) = (run(&["generate"]).stdout, run(&["generate"]).stdout);
    assert_eq!((one.len(), one.last()), (45, Some(&b'\n')));
    assert_ne!(one, other);
    std::fs::write(&path, &one).expect("a file");
    let output = run(&["test", "--json", &format!("file:{}", path.display())]);
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!((&report["ok"], &report["wrapped_bytes"], &report["enabled"]), (&true.into(), &72.into(), &Value::Null));
    std::fs::write(&path, "too short\n").expect("a file");
    assert_eq!(run(&["test", &format!("file:{}", path.display())]).status.code(), Some(12));
}

#[test]
fn a_counter_is_kept_for_each_volume_and_version_and_leaves_other_tags_alone() {
    let vault = Vault::start();
    let kms = vault.kms();
    let old = kms.current().expect("the newest version");
    assert_eq!(kms.counter(&old, VOLUME).expect("an answer"), None);
    kms.set_counter(&old, VOLUME, 7).expect("it is kept");
    kms.set_counter(&old, VolumeId([6; 16]), u64::MAX).expect("it is kept");
    let calls = vault.calls("update");
    kms.set_counter(&old, VOLUME, 7).expect("it is kept");
    assert_eq!(vault.calls("update"), calls, "what is there already is not written");
    kms.set_counter(&old, VOLUME, 8).expect("it is kept");
    assert_eq!(kms.counter(&old, VOLUME).expect("an answer"), Some(8));
    assert_eq!(kms.counter(&old, VolumeId([6; 16])).expect("an answer"), Some(u64::MAX));
    let new = KekId(vault.ok(&["key", "rotate", KEY]));
    kms.set_counter(&new, VOLUME, 9).expect("it is kept");
    assert_eq!(kms.counter(&new, VOLUME).expect("an answer"), Some(9));
    assert_eq!(kms.counter(&old, VOLUME).expect("an answer"), Some(8), "each version has its own");
    // The key goes on working.
    unwraps(&*kms, &wrapped(&*kms));
    vault.fault("throttle");
    assert_eq!(kms.counter(&new, VOLUME).expect_err("no answer").kind, KmsErrorKind::Unreachable);
    vault.fault("none");
    let other = KekId(new.0.replace(KEY, "other"));
    assert_eq!(kms.set_counter(&other, VOLUME, 1).expect_err("another key").kind, KmsErrorKind::Damaged);
}
