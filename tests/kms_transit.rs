//! What is Transit's own, against a real OpenBao server: tokens and logins, versions that are too old, keys that are made
//! anew, and TLS. What all providers have in common is in `kms_contract`.

#[path = "openbao/server.rs"]
mod openbao;

use kmsfs::crypto::Secret32;
use kmsfs::kms::{ConnectOptions, KEY_REPLACED, KeyState, Kms, KmsError, KmsErrorKind, Wrapped, connect};
use kmsfs::units::VolumeId;
use openbao::{KEY, OpenBao, ROOT, text};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

const VOLUME: VolumeId = VolumeId([5; 16]);
/// For things that happen by themselves.
const PATIENCE: Duration = Duration::from_secs(60);

fn provider(server: &OpenBao, variables: &[(&str, &str)]) -> Arc<dyn Kms> {
    let mut all: HashMap<String, String> = server.environment("");
    all.extend(variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
    let options = ConnectOptions::from_variables(|name| all.get(name).cloned());
    connect(&server.reference(), &options).expect("a provider")
}

fn with_token(server: &OpenBao, token: &str) -> Arc<dyn Kms> {
    provider(server, &[("BAO_TOKEN", token)])
}

fn wrapped(kms: &dyn Kms) -> Wrapped {
    kms.wrap(&Secret32::take(&mut [0x42; 32]), VOLUME).expect("a wrapped secret")
}

#[track_caller]
fn unwraps(kms: &dyn Kms, wrapped: &Wrapped) {
    assert_eq!(kms.unwrap(wrapped, VOLUME).expect("it unwraps").secret.expose(), &[0x42; 32]);
}

#[track_caller]
fn refusal(kms: &dyn Kms, wrapped: &Wrapped) -> KmsError {
    kms.unwrap(wrapped, VOLUME).map(drop).expect_err("it does not unwrap")
}

fn until(what: &str, mut happened: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !happened() {
        assert!(begin.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_version_below_the_lowest_that_decrypts_is_refused_until_it_is_permitted_again() {
    let server = OpenBao::start();
    let kms = with_token(&server, &server.user());
    let old = wrapped(&*kms);
    server.rotate();
    let config = format!("transit/keys/{KEY}/config");
    server.ok("POST", &config, json!({ "min_decryption_version": 2 }));
    let error = refusal(&*kms, &old);
    assert_eq!((error.kind, error.code.as_deref()), (KmsErrorKind::Refused, Some("VersionTooOld")), "{error:?}");
    // What wraps finds the newer version by itself.
    let new = wrapped(&*kms);
    assert!(new.kek.0.ends_with("/2"), "{new:?}");
    unwraps(&*kms, &new);
    server.ok("POST", &config, json!({ "min_decryption_version": 1, "min_encryption_version": 2 }));
    unwraps(&*kms, &old);
    let environment = server.environment(ROOT);
    let pinned = connect(&old.kek.0, &ConnectOptions::from_variables(|name| environment.get(name).cloned()));
    let error =
        pinned.expect("a provider").wrap(&Secret32::random(), VOLUME).map(drop).expect_err("it is too old to wrap");
    assert_eq!(error.kind, KmsErrorKind::Misconfigured);
}

#[test]
fn a_key_that_was_deleted_and_made_anew_is_a_refusal_and_wrapping_makes_none() {
    let server = OpenBao::start();
    let kms = with_token(&server, ROOT);
    let old = wrapped(&*kms);
    server.ok("POST", &format!("transit/keys/{KEY}/config"), json!({ "deletion_allowed": true }));
    server.ok("DELETE", &format!("transit/keys/{KEY}"), Value::Null);
    assert_eq!(refusal(&*kms, &old).code.as_deref(), Some("KeyNotFound"));
    // Root may make keys, and encrypting with one that is not there would do that.
    let error = kms.wrap(&Secret32::random(), VOLUME).map(drop).expect_err("there is no key");
    assert_eq!((error.kind, error.code.as_deref()), (KmsErrorKind::Refused, Some("KeyNotFound")), "{error:?}");
    assert_eq!(refusal(&*kms, &old).code.as_deref(), Some("KeyNotFound"));
    // The server tells in whole seconds when a version was made.
    let second = |name: &str| {
        let reply = server.ok("POST", &format!("transit/keys/{name}"), json!({}));
        reply["data"]["keys"]["1"].as_u64().expect("when it was made")
    };
    let now = second("clock-0");
    let mut keys = 0..;
    until("another second has begun", || second(&format!("clock-{}", keys.next().unwrap_or(0) + 1)) > now);
    server.ok("POST", &format!("transit/keys/{KEY}"), json!({}));
    let error = refusal(&*kms, &old);
    assert_eq!((error.kind, error.code.as_deref()), (KmsErrorKind::Refused, Some(KEY_REPLACED)), "{error:?}");
    // Who never saw the old one cannot tell it from damage.
    assert_eq!(refusal(&*with_token(&server, ROOT), &old).kind, KmsErrorKind::Damaged);
    server.ok("DELETE", "sys/mounts/transit", Value::Null);
    let error = refusal(&*kms, &old);
    assert_eq!((error.kind, error.code.as_deref()), (KmsErrorKind::Refused, Some("MountNotFound")), "{error:?}");
}

#[test]
fn the_state_of_a_version_is_shown_to_whoever_has_to_prove_it() {
    let server = OpenBao::start();
    let kms = with_token(&server, ROOT);
    let old = wrapped(&*kms).kek;
    let config = format!("transit/keys/{KEY}/config");
    assert_eq!(kms.key_state(&old), KeyState::Usable);
    server.soft_delete();
    assert_eq!(kms.key_state(&old), KeyState::Scheduled { until: None, protected: None });
    server.restore();
    server.rotate();
    server.ok("POST", &config, json!({ "min_decryption_version": 2, "min_encryption_version": 2 }));
    assert_eq!(kms.key_state(&old), KeyState::Suspended);
    server.ok("POST", &format!("transit/keys/{KEY}/trim"), json!({ "min_available_version": 2 }));
    assert_eq!(kms.key_state(&old), KeyState::Destroyed);
    server.remove_policy();
    assert!(matches!(with_token(&server, &server.user()).key_state(&old), KeyState::NotShown(_)));
    server.ok("POST", &config, json!({ "deletion_allowed": true }));
    server.ok("DELETE", &format!("transit/keys/{KEY}"), Value::Null);
    assert_eq!(kms.key_state(&old), KeyState::Destroyed);
    server.seal();
    assert!(matches!(kms.key_state(&old), KeyState::NotShown(_)));
}

#[test]
fn a_token_is_renewed_before_it_expires_without_being_asked_for() {
    let server = OpenBao::start();
    let token = server.token(json!({ "policies": ["kmsfs"], "ttl": "4s" }));
    let kms = with_token(&server, &token);
    let wrapped = wrapped(&*kms);
    let begin = Instant::now();
    until("it lives longer than it was given", || begin.elapsed() > Duration::from_secs(10));
    assert!(server.calls("auth/token/renew-self") >= 2, "{}", server.calls("auth/token/renew-self"));
    unwraps(&*kms, &wrapped);
}

#[test]
fn a_token_that_expired_is_a_matter_of_credentials_and_one_that_was_revoked_is_a_refusal() {
    let server = OpenBao::start();
    let short = server.token(json!({ "policies": ["kmsfs"], "ttl": "3s", "explicit_max_ttl": "3s" }));
    let kms = with_token(&server, &short);
    let wrapped = wrapped(&*kms);
    until("it has expired", || kms.unwrap(&wrapped, VOLUME).is_err());
    let error = refusal(&*kms, &wrapped);
    assert_eq!(error.kind, KmsErrorKind::Credentials, "{error:?}");
    assert!(error.message.contains("has expired"), "{error}");

    let token = server.user();
    let kms = with_token(&server, &token);
    unwraps(&*kms, &wrapped);
    server.ok("POST", "auth/token/revoke", json!({ "token": token }));
    let error = refusal(&*kms, &wrapped);
    assert_eq!((error.kind, error.code.as_deref()), (KmsErrorKind::Refused, Some("TokenRevoked")), "{error:?}");
    // One that never worked is only a wrong one.
    assert_eq!(refusal(&*with_token(&server, &token), &wrapped).kind, KmsErrorKind::Credentials);
}

#[test]
fn a_token_that_may_not_even_look_at_itself_is_still_told_from_one_that_is_none() {
    let server = OpenBao::start();
    let token = server.token(json!({ "policies": ["kmsfs"], "no_default_policy": true, "ttl": "1h" }));
    let kms = with_token(&server, &token);
    let wrapped = wrapped(&*kms);
    unwraps(&*kms, &wrapped);
    server.remove_policy();
    let error = refusal(&*kms, &wrapped);
    assert_eq!((error.kind, error.code.as_deref()), (KmsErrorKind::Refused, Some("PermissionDenied")), "{error:?}");
    server.grant_policy();
    unwraps(&*kms, &wrapped);
}

#[test]
fn an_app_role_logs_in_again_when_its_token_is_gone_and_is_refused_when_the_role_is() {
    let server = OpenBao::start();
    let (role, secret) = server.app_role("1h", "2h");
    let file = server.file("secret-id");
    fs::write(&file, format!("{secret}\n")).expect("the secret id");
    let login =
        [("KMSFS_TRANSIT_ROLE_ID", role.as_str()), ("KMSFS_TRANSIT_SECRET_ID_FILE", file.to_str().expect("UTF-8"))];
    let kms = provider(&server, &login);
    let wrapped = wrapped(&*kms);
    unwraps(&*kms, &wrapped);
    assert_eq!(server.calls("auth/approle/login"), 1);
    let revoke = || server.ok("PUT", "sys/leases/revoke-prefix/auth/approle/login", json!({}));
    revoke();
    unwraps(&*kms, &wrapped);
    assert_eq!(server.calls("auth/approle/login"), 2);
    // The policy is the owner's word, and no reason to log in again.
    server.remove_policy();
    assert_eq!(refusal(&*kms, &wrapped).code.as_deref(), Some("PermissionDenied"));
    assert_eq!(server.calls("auth/approle/login"), 2);
    server.grant_policy();
    unwraps(&*kms, &wrapped);
    server.ok("DELETE", "auth/approle/role/kmsfs", Value::Null);
    revoke();
    let error = refusal(&*kms, &wrapped);
    assert_eq!((error.kind, error.code.as_deref()), (KmsErrorKind::Refused, Some("TokenRevoked")), "{error:?}");
    // Given back, it works again, with a new id of the role in the environment or with the old one.
    let (again, secret) = server.app_role("1h", "2h");
    server.ok("POST", "auth/approle/role/kmsfs/role-id", json!({ "role_id": role }));
    assert_ne!(again, role);
    fs::write(&file, secret).expect("the secret id");
    unwraps(&*kms, &wrapped);
}

#[test]
fn an_app_role_goes_on_beyond_the_longest_life_of_a_token() {
    let server = OpenBao::start();
    let (role, secret) = server.app_role("3s", "5s");
    let kms = provider(&server, &[("KMSFS_TRANSIT_ROLE_ID", &role), ("KMSFS_TRANSIT_SECRET_ID", &secret)]);
    let wrapped = wrapped(&*kms);
    let begin = Instant::now();
    until("twice the longest life is over", || {
        unwraps(&*kms, &wrapped);
        begin.elapsed() > Duration::from_secs(11)
    });
    assert!(server.calls("auth/approle/login") >= 2);
    assert!(server.calls("auth/token/renew-self") >= 1);
}

#[test]
fn a_token_file_is_read_again_when_its_token_is_no_longer_accepted() {
    let server = OpenBao::start();
    let file = server.file("token");
    let (old, new) = (server.user(), server.user());
    fs::write(&file, &old).expect("a token");
    let kms = provider(&server, &[("KMSFS_TRANSIT_TOKEN_FILE", file.to_str().expect("UTF-8"))]);
    let wrapped = wrapped(&*kms);
    fs::write(&file, format!("{new}\n")).expect("a token");
    server.ok("POST", "auth/token/revoke", json!({ "token": old }));
    unwraps(&*kms, &wrapped);
}

/// Answers one request as Kubernetes does that knows the service account `kmsfs` in the namespace `ns`.
fn token_review(mut stream: TcpStream) {
    let mut sent = Vec::new();
    let mut buffer = [0; 4096];
    let whole = |sent: &[u8]| {
        let text = String::from_utf8_lossy(sent).to_ascii_lowercase();
        let Some((head, body)) = text.split_once("\r\n\r\n") else { return false };
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
        length.is_some_and(|length| body.len() >= length.trim().parse().expect("a length"))
    };
    while !whole(&sent) {
        let len = stream.read(&mut buffer).expect("a request");
        assert!(len > 0, "{}", String::from_utf8_lossy(&sent));
        sent.extend_from_slice(&buffer[..len]);
    }
    let user =
        json!({ "username": "system:serviceaccount:ns:kmsfs", "uid": "u1", "groups": ["system:serviceaccounts"] });
    let review = json!({
        "apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview",
        "status": { "authenticated": true, "user": user },
    });
    let body = review.to_string();
    let head = "HTTP/1.1 201 Created\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: ";
    stream.write_all(format!("{head}{}\r\n\r\n{body}", body.len()).as_bytes()).expect("an answer");
}

#[test]
fn a_kubernetes_service_account_logs_in_with_its_token() {
    let server = OpenBao::start();
    // Kubernetes itself is played: the one question that the server asks it.
    let kubernetes = TcpListener::bind("127.0.0.1:0").expect("a port");
    let host = format!("http://{}", kubernetes.local_addr().expect("an address"));
    let certificate = rcgen::generate_simple_self_signed(["kubernetes".to_owned()]).expect("a certificate").cert.pem();
    server.ok("POST", "sys/auth/kubernetes", json!({ "type": "kubernetes" }));
    let config = json!({ "kubernetes_host": host, "kubernetes_ca_cert": certificate, "disable_local_ca_jwt": true });
    server.ok("POST", "auth/kubernetes/config", config);
    let role = json!({
        "bound_service_account_names": "kmsfs", "bound_service_account_namespaces": "ns", "token_policies": "kmsfs",
    });
    server.ok("POST", "auth/kubernetes/role/kmsfs", role);
    let encode = |value: Value| data_encoding::BASE64URL_NOPAD.encode(value.to_string().as_bytes());
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs();
    let claims = json!({
        "iss": "kubernetes/serviceaccount", "sub": "system:serviceaccount:ns:kmsfs",
        "iat": now, "nbf": now, "exp": now + 3600,
        "kubernetes.io/serviceaccount/namespace": "ns", "kubernetes.io/serviceaccount/service-account.name": "kmsfs",
        "kubernetes.io/serviceaccount/service-account.uid": "u1", "kubernetes.io/serviceaccount/secret.name": "s",
    });
    let file = server.file("jwt");
    fs::write(&file, format!("{}.{}.c2ln\n", encode(json!({ "alg": "RS256" })), encode(claims))).expect("a token");
    let login = [("KMSFS_TRANSIT_ROLE", "kmsfs"), ("KMSFS_TRANSIT_JWT_FILE", file.to_str().expect("UTF-8"))];
    let played = std::thread::spawn(move || token_review(kubernetes.accept().expect("a question").0));
    let kms = provider(&server, &login);
    let wrapped = wrapped(&*kms);
    unwraps(&*kms, &wrapped);
    assert_eq!(server.calls("auth/kubernetes/login"), 1);
    played.join().expect("Kubernetes was asked");
    let error = refusal(&*provider(&server, &[("KMSFS_TRANSIT_ROLE", "other"), login[1]]), &wrapped);
    assert_eq!(error.kind, KmsErrorKind::Credentials, "{error:?}");
}

#[test]
fn with_tls_the_servers_ca_has_to_be_trusted() {
    let server = OpenBao::start_tls();
    let kms = with_token(&server, &server.user());
    let wrapped = wrapped(&*kms);
    unwraps(&*kms, &wrapped);
    let error = refusal(&*provider(&server, &[("KMSFS_CA_FILE", ""), ("BAO_TOKEN", ROOT)]), &wrapped);
    assert_eq!(error.kind, KmsErrorKind::Unreachable);
    assert!(error.hint.as_ref().is_some_and(|hint| hint.contains("KMSFS_CA_FILE")), "{error:?}");
}

#[test]
fn a_namespace_is_part_of_where_the_key_is() {
    let server = OpenBao::start();
    let wrapped = wrapped(&*with_token(&server, ROOT));
    let elsewhere = provider(&server, &[("BAO_TOKEN", ROOT), ("BAO_NAMESPACE", "elsewhere")]);
    let error = refusal(&*elsewhere, &wrapped);
    assert_eq!((error.kind, error.code.as_deref()), (KmsErrorKind::Refused, Some("NamespaceNotFound")), "{error:?}");
    server.ok("POST", "sys/namespaces/elsewhere", json!({}));
    let error = refusal(&*elsewhere, &wrapped);
    assert_eq!((error.kind, error.code.as_deref()), (KmsErrorKind::Refused, Some("MountNotFound")), "{error:?}");
}

#[test]
fn the_servers_audit_log_has_the_ids_of_an_unwrap_and_no_secret() {
    let server = OpenBao::start();
    server.ok("PUT", "sys/config/auditing/request-headers/user-agent", json!({ "hmac": false }));
    server.ok("PUT", "sys/config/auditing/request-headers/x-request-id", json!({ "hmac": false }));
    let mut all = server.environment(&server.user());
    all.insert("KMSFS_TEST".to_owned(), String::new());
    let options = ConnectOptions::from_variables(|name| all.get(name).cloned());
    let options = ConnectOptions { mount: Some("volume-7".into()), ..options };
    let kms = connect(&server.reference(), &options).expect("a provider");
    let wrapped = wrapped(&*kms);
    let ids = kms.unwrap(&wrapped, VOLUME).expect("it unwraps").ids;
    let audit = server.audit();
    let lines: Vec<Value> = audit.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let request = ids.request.expect("the server's id");
    let line = lines.iter().find(|line| line["request"]["id"] == *request).expect("the call is in the log");
    assert_eq!(text(&line["request"]["path"]), format!("transit/decrypt/{KEY}"));
    let headers = line["request"]["headers"].to_string();
    assert!(headers.contains("(mount volume-7)"), "{headers}");
    assert!(headers.contains(&ids.client_request.expect("our id")), "{headers}");
    assert!(!audit.contains(&data_encoding::BASE64.encode(&[0x42; 32])));
}

#[test]
fn a_hundred_unwraps_at_once_log_in_once() {
    let server = OpenBao::start();
    let (role, secret) = server.app_role("1h", "1h");
    let wrapped = wrapped(&*with_token(&server, ROOT));
    let kms = provider(&server, &[("KMSFS_TRANSIT_ROLE_ID", &role), ("KMSFS_TRANSIT_SECRET_ID", &secret)]);
    std::thread::scope(|scope| {
        for _ in 0..100 {
            scope.spawn(|| unwraps(&*kms, &wrapped));
        }
    });
    assert_eq!(server.calls("auth/approle/login"), 1);
}
