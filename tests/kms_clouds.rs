//! What only AWS KMS or Google Cloud KMS has: who to be, aliases, ids of calls, checksums. The rest is in the contract.

#[path = "clouds/servers.rs"]
mod clouds;

use clouds::aws::Aws;
use clouds::gcp::{Fault, Gcp};
use kmsfs::crypto::Secret32;
use kmsfs::kms::{ConnectOptions, Kms, KmsErrorKind, Wrapped, connect};
use kmsfs::units::VolumeId;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::process::{Command, Output};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tempfile::TempDir;

const VOLUME: VolumeId = VolumeId([5; 16]);

fn provider(reference: &str, environment: &HashMap<String, String>) -> Arc<dyn Kms> {
    let options = ConnectOptions::from_variables(|name| environment.get(name).cloned());
    connect(reference, &options).expect("a provider")
}

fn wrapped(kms: &dyn Kms) -> Wrapped {
    kms.wrap(&Secret32::take(&mut [0x42; 32]), VOLUME).expect("a wrapped secret")
}

#[track_caller]
fn unwraps(kms: &dyn Kms, wrapped: &Wrapped) {
    assert_eq!(kms.unwrap(wrapped, VOLUME).expect("a secret").secret.expose(), &[0x42; 32]);
}

/// `kmsfs key test` in this environment and no other.
fn key_test(reference: &str, environment: &HashMap<String, String>) -> (Output, Value) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kmsfs"));
    command.env_clear().envs(environment).args(["key", "test", "--json", reference]);
    let output = command.output().expect("the program runs");
    let report = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("no report: {output:?}"));
    (output, report)
}

#[test]
fn the_key_is_recorded_and_never_its_alias_and_each_call_has_aws_s_own_id() {
    let aws = Aws::ministack();
    let kms = provider(&aws.alias(), &aws.environment());
    let wrapped = wrapped(&*kms);
    assert_eq!(wrapped.kek.0, aws.key);
    let id = kms.unwrap(&wrapped, VOLUME).expect("a secret").ids.request.expect("an id");
    assert!(id.len() >= 36, "{id}");
    aws.disable();
    let error = kms.unwrap(&wrapped, VOLUME).expect_err("a disabled key");
    assert!(error.ids.request.is_some_and(|other| other != id));
    assert!(error.hint.expect("a hint").contains(&format!("enable-key --region eu-west-1 --key-id {}", aws.key)));
}

#[test]
fn aws_credentials_are_found_where_every_tool_finds_them() {
    let aws = Aws::ministack();
    let home = TempDir::new().expect("a directory");
    let (id, secret) = &aws.user;
    let credentials = home.path().join("credentials");
    std::fs::write(&credentials, format!("[work]\naws_access_key_id = {id}\naws_secret_access_key = {secret}\n"))
        .expect("a file");
    let answer = json!({ "Version": 1, "AccessKeyId": id, "SecretAccessKey": secret });
    let config = home.path().join("config");
    std::fs::write(&config, format!("[profile tool]\ncredential_process = /bin/echo '{answer}'\n")).expect("a file");
    let mut environment = aws.environment();
    environment.remove("AWS_ACCESS_KEY_ID");
    environment.remove("AWS_SECRET_ACCESS_KEY");
    environment.insert("PATH".into(), "/usr/bin:/bin".into());
    environment.insert("AWS_SHARED_CREDENTIALS_FILE".into(), credentials.to_string_lossy().into());
    environment.insert("AWS_CONFIG_FILE".into(), config.to_string_lossy().into());
    environment.insert("AWS_EC2_METADATA_DISABLED".into(), "true".into());
    for profile in ["work", "tool"] {
        environment.insert("AWS_PROFILE".into(), profile.into());
        let (output, report) = key_test(&aws.alias(), &environment);
        assert_eq!((output.status.code(), &report["kek"]), (Some(0), &aws.key.as_str().into()), "{profile}: {report}");
        assert!(!String::from_utf8_lossy(&output.stdout).contains(secret.as_str()));
    }
    // And where there are none, that is what is said, in time.
    environment.remove("AWS_PROFILE");
    let begin = Instant::now();
    let (output, report) = key_test(&aws.alias(), &environment);
    assert_eq!((output.status.code(), &report["cause"]), (Some(8), &"credentials".into()), "{report}");
    assert!(report["message"].as_str().expect("a message").contains("there are no AWS credentials"), "{report}");
    assert!(begin.elapsed() < Duration::from_secs(20), "{:?}", begin.elapsed());
}

#[test]
fn a_token_service_that_is_away_is_silence_and_one_that_refuses_is_not() {
    let aws = Aws::ministack();
    let home = TempDir::new().expect("a directory");
    let token = home.path().join("token");
    std::fs::write(&token, "not-a-token").expect("a file");
    let mut environment = aws.environment();
    environment.remove("AWS_ACCESS_KEY_ID");
    environment.remove("AWS_SECRET_ACCESS_KEY");
    environment.insert("AWS_WEB_IDENTITY_TOKEN_FILE".into(), token.to_string_lossy().into());
    environment.insert("AWS_ROLE_ARN".into(), "arn:aws:iam::000000000000:role/none".into());
    environment.insert("HOME".into(), home.path().to_string_lossy().into());
    // Nobody listens there.
    environment.insert("AWS_ENDPOINT_URL_STS".into(), "http://127.0.0.1:1".into());
    let (output, report) = key_test(&aws.alias(), &environment);
    assert_eq!((output.status.code(), &report["error_kind"]), (Some(7), &"unreachable".into()), "{report}");
    let kms = aws.environment()["AWS_ENDPOINT_URL_KMS"].clone();
    environment.insert("AWS_ENDPOINT_URL_STS".into(), kms);
    let (output, report) = key_test(&aws.alias(), &environment);
    assert_eq!((output.status.code(), &report["error_kind"]), (Some(8), &"credentials".into()), "{report}");
}

#[test]
fn aws_in_clear_is_for_this_machine_only() {
    let environment = HashMap::from([("AWS_ENDPOINT_URL_KMS".to_owned(), "http://kms.example".to_owned())]);
    let (output, report) = key_test("arn:aws:kms:eu-west-1:123456789012:key/k", &environment);
    assert_eq!((output.status.code(), &report["cause"]), (Some(12), &"misconfigured".into()), "{report}");
}

#[test]
fn google_credentials_of_every_kind_bring_a_token() {
    let gcp = Gcp::start();
    let wrapped = wrapped(&*provider(&gcp.key("tenant"), &gcp.environment()));
    let login = json!({ "type": "authorized_user", "client_id": "client", "client_secret": "secret",
        "refresh_token": "refresh", "quota_project_id": "payer", "token_uri": gcp.token_uri() });
    let subject = gcp.write("subject", br#"{"token":"workload"}"#);
    let mut workload = json!({ "type": "external_account", "audience": "//iam.googleapis.com/pool",
        "subject_token_type": "urn:ietf:params:oauth:token-type:jwt", "token_url": gcp.token_uri(),
        "credential_source": { "file": subject, "format": { "type": "json", "subject_token_field_name": "token" } } });
    let impersonated = json!({ "type": "impersonated_service_account", "source_credentials": login.clone(),
        "service_account_impersonation_url": gcp.impersonation_uri() });
    let kinds = [
        ("login", gcp.environment_of("login.json", &login), Some("payer")),
        ("workload identity", gcp.environment_of("workload.json", &workload), None),
        ("impersonation", gcp.environment_of("impersonated.json", &impersonated), Some("payer")),
        ("the machine's", gcp.environment_without(&[("GCE_METADATA_HOST", &gcp.metadata_host())]), None),
    ];
    for (kind, environment, payer) in kinds {
        println!("{kind}");
        unwraps(&*provider(&gcp.key("tenant"), &environment), &wrapped);
        assert_eq!(gcp.quota_project().as_deref(), payer, "{kind}");
    }
    assert_eq!(gcp.calls("impersonate"), 1);
    // A token that is not the workload's.
    gcp.write("subject", br#"{"token":"somebody"}"#);
    workload["service_account_impersonation_url"] = json!(gcp.impersonation_uri());
    let kms = provider(&gcp.key("tenant"), &gcp.environment_of("workload.json", &workload));
    let error = kms.unwrap(&wrapped, VOLUME).expect_err("a stranger");
    assert_eq!(error.kind, KmsErrorKind::Credentials);
    assert!(error.message.contains("invalid_grant") && !error.message.contains("somebody"), "{error:?}");
}

#[test]
fn a_google_token_is_used_again_and_replaced_once_when_it_is_revoked() {
    let gcp = Gcp::start();
    let kms = provider(&gcp.key("tenant"), &gcp.environment());
    let wrapped = wrapped(&*kms);
    for _ in 0..5 {
        unwraps(&*kms, &wrapped);
    }
    assert_eq!(gcp.calls("token"), 1);
    gcp.revoke_tokens();
    unwraps(&*kms, &wrapped);
    assert_eq!((gcp.calls("token"), gcp.calls("decrypt")), (2, 7));
    assert!(gcp.agent().starts_with("kmsfs/"), "{}", gcp.agent());
}

#[test]
fn a_garbled_reply_is_asked_for_again_and_never_used() {
    let gcp = Gcp::start();
    let kms = provider(&gcp.key("tenant"), &gcp.environment());
    let wrapped = wrapped(&*kms);
    gcp.fault(Fault::GarbledFor(1));
    unwraps(&*kms, &wrapped);
    assert_eq!(gcp.calls("decrypt"), 2);
    gcp.fault(Fault::Garbled);
    let error = kms.unwrap(&wrapped, VOLUME).expect_err("a garbled reply");
    assert_eq!((error.kind, error.code.as_deref()), (KmsErrorKind::Unreachable, Some("ChecksumMismatch")));
    let error = kms.wrap(&Secret32::take(&mut [1; 32]), VOLUME).expect_err("a garbled reply");
    assert_eq!((error.kind, error.code.as_deref()), (KmsErrorKind::Unreachable, Some("ChecksumMismatch")));
}

#[test]
fn a_google_key_can_be_tested_without_the_right_to_look_at_it() {
    let gcp = Gcp::start();
    let (output, report) = key_test(&gcp.key("tenant"), &gcp.environment());
    assert_eq!((output.status.code(), &report["kind"]), (Some(0), &"AES-256, SOFTWARE".into()), "{report}");
    gcp.let_look(false);
    let (output, report) = key_test(&gcp.key("tenant"), &gcp.environment());
    assert_eq!((output.status.code(), &report["kind"]), (Some(0), &"AES-256".into()), "{report}");
    gcp.grant(false);
    let (output, report) = key_test(&gcp.key("tenant"), &gcp.environment());
    assert_eq!((output.status.code(), &report["cause"]), (Some(6), &"role".into()), "{report}");
}

#[test]
fn google_in_clear_is_for_this_machine_only() {
    let environment = HashMap::from([("KMSFS_GCP_ENDPOINT".to_owned(), "http://kms.example".to_owned())]);
    let (output, report) = key_test("projects/p/locations/l/keyRings/r/cryptoKeys/k", &environment);
    assert_eq!((output.status.code(), &report["cause"]), (Some(12), &"misconfigured".into()), "{report}");
}
