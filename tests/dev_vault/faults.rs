//! Each fault: what a client meets, at once, also on a connection that is open already.

use crate::harness::{Outcome, TestVault, block, inner_code, refused, request_token, success};
use std::error::Error as _;
use std::io;
use std::time::{Duration, Instant};

#[tokio::test]
async fn refusals_and_errors_take_effect_at_once_and_can_be_taken_back() -> Outcome {
    let vault = TestVault::start();
    vault.ok(&["key", "create", "k"]);
    let wire = vault.wire().await;
    let wrapped = wire.wrapped("k").await;
    for (fault, answer) in [
        (&["forbid-role"][..], refused(403, "Forbidden", "ForbiddenByRbac")),
        (&["forbid-policy"], refused(403, "Forbidden", "AccessDenied")),
        (&["forbid-firewall"], refused(403, "Forbidden", "ForbiddenByFirewall")),
        (&["throttle"], refused(429, "Throttled", "")),
        (&["error"], refused(500, "InternalServerError", "")),
        (&["error", "--status", "503"], refused(503, "ServiceUnavailable", "")),
    ] {
        vault.ok(&[&["fault"], fault].concat());
        assert_eq!(wire.unwrap("k", &wrapped).await, answer, "{fault:?}");
        assert_eq!(wire.get("/keys?maxresults=1").await.codes(), answer, "{fault:?}");
        vault.ok(&["fault", "none"]);
        assert_eq!(wire.unwrap("k", &wrapped).await, success());
    }
    Ok(())
}

#[tokio::test]
async fn a_removed_role_names_the_caller_the_action_and_the_key() -> Outcome {
    let vault = TestVault::start();
    vault.ok(&["key", "create", "Tenant-A"]);
    let wire = vault.wire().await;
    vault.ok(&["fault", "forbid-role"]);
    let answer = wire.apply("/keys/Tenant-A/unwrapkey", "AAAA").await;
    let message = answer.body["error"]["message"].as_str().expect("a message");
    for part in
        ["Microsoft.KeyVault/vaults/keys/unwrap/action", "/keys/tenant-a", &vault.environment()["AZURE_CLIENT_ID"]]
    {
        assert!(message.contains(part), "{message}");
    }
    Ok(())
}

#[tokio::test]
async fn microsofts_client_shows_the_inner_code_of_a_removed_role() -> Outcome {
    let vault = TestVault::start();
    vault.ok(&["key", "create", "k"]);
    let client = vault.client();
    vault.ok(&["fault", "forbid-role"]);
    let error = client.wrap_key("k", block(&[1; 32]), None).await.expect_err("the role is removed");
    assert_eq!(inner_code(&error), (403, "ForbiddenByRbac".into()));
    Ok(())
}

#[tokio::test]
async fn a_throttle_says_when_to_come_back_only_if_it_was_told_to() -> Outcome {
    let vault = TestVault::start();
    vault.ok(&["key", "create", "k"]);
    let wire = vault.wire().await;
    vault.ok(&["fault", "throttle"]);
    assert_eq!(wire.get("/keys/k").await.headers.get("retry-after"), None);
    vault.ok(&["fault", "throttle", "--retry-after", "7s"]);
    let answer = wire.get("/keys/k").await;
    assert_eq!(answer.status, 429);
    assert_eq!(answer.headers["retry-after"], "7");
    Ok(())
}

#[tokio::test]
async fn a_reset_cuts_the_connection() -> Outcome {
    let vault = TestVault::start();
    vault.ok(&["key", "create", "k"]);
    let wire = vault.wire().await;
    vault.ok(&["fault", "reset"]);
    let error = wire.try_send(reqwest::Method::GET, "/keys/k", None).await.expect_err("the connection is reset");
    let mut source = error.source();
    let mut kinds = Vec::new();
    while let Some(error) = source {
        kinds.extend(error.downcast_ref::<io::Error>().map(io::Error::kind));
        source = error.source();
    }
    assert!(kinds.contains(&io::ErrorKind::ConnectionReset), "{error:?}");
    vault.ok(&["fault", "none"]);
    assert_eq!(wire.get("/keys/k").await.status, 200);
    Ok(())
}

#[tokio::test]
async fn a_hang_answers_nothing_and_commands_still_get_through() -> Outcome {
    let vault = TestVault::start();
    vault.ok(&["key", "create", "k"]);
    let wire = vault.wire().await;
    let before = vault.calls("get");
    vault.ok(&["fault", "hang"]);
    let hanging = wire.get("/keys/k");
    tokio::pin!(hanging);
    while vault.calls("get") == before {
        let waited = tokio::time::timeout(Duration::from_millis(20), &mut hanging).await;
        assert!(waited.is_err(), "a request was answered");
    }
    vault.ok(&["key", "disable", "k"]);
    vault.ok(&["fault", "none"]);
    assert_eq!(wire.get("/keys/k").await.status, 200, "a new request is answered");
    let waited = tokio::time::timeout(Duration::from_millis(200), &mut hanging).await;
    assert!(waited.is_err(), "the request that hung is never answered");
    Ok(())
}

#[tokio::test]
async fn a_vault_with_hanging_requests_still_stops() -> Outcome {
    let vault = TestVault::start();
    vault.ok(&["key", "create", "k"]);
    let wire = vault.wire().await;
    vault.ok(&["fault", "hang"]);
    let hanging = tokio::spawn(async move { wire.try_send(reqwest::Method::GET, "/keys/k", None).await });
    while vault.calls("get") == 0 {
        tokio::task::yield_now().await;
    }
    vault.ok(&["stop"]);
    assert!(hanging.await?.is_err());
    Ok(())
}

#[tokio::test]
async fn latency_delays_the_answer_and_does_not_change_it() -> Outcome {
    let vault = TestVault::start();
    vault.ok(&["key", "create", "k"]);
    let wire = vault.wire().await;
    let wrapped = wire.wrapped("k").await;
    vault.ok(&["fault", "latency=300ms"]);
    let start = Instant::now();
    let (one, other) = tokio::join!(wire.unwrap("k", &wrapped), wire.unwrap("k", &wrapped));
    assert_eq!((one, other), (success(), success()));
    assert!(start.elapsed() >= Duration::from_millis(300), "{:?}", start.elapsed());
    Ok(())
}

#[tokio::test]
async fn a_key_disabled_during_the_latency_is_refused() -> Outcome {
    let vault = TestVault::start();
    vault.ok(&["key", "create", "k"]);
    let wire = vault.wire().await;
    let wrapped = wire.wrapped("k").await;
    vault.ok(&["fault", "latency=2s"]);
    let slow = wire.unwrap("k", &wrapped);
    tokio::pin!(slow);
    while vault.calls("unwrapkey") == 0 {
        let waited = tokio::time::timeout(Duration::from_millis(10), &mut slow).await;
        assert!(waited.is_err(), "answered without latency");
    }
    vault.ok(&["key", "disable", "k"]);
    assert_eq!(slow.await, refused(403, "Forbidden", "KeyDisabled"));
    Ok(())
}

#[tokio::test]
async fn a_fault_of_one_key_leaves_other_keys_alone() -> Outcome {
    let vault = TestVault::start();
    vault.ok(&["key", "create", "tenant-a"]);
    vault.ok(&["key", "create", "tenant-b"]);
    let wire = vault.wire().await;
    vault.ok(&["fault", "forbid-role", "--key", "tenant-a"]);
    assert_eq!(wire.get("/keys/Tenant-A").await.codes(), refused(403, "Forbidden", "ForbiddenByRbac"));
    assert_eq!(wire.get("/keys/tenant-b").await.status, 200);
    assert_eq!(wire.get("/keys").await.status, 200);
    vault.ok(&["fault", "none", "--key", "tenant-a"]);
    assert_eq!(wire.get("/keys/tenant-a").await.status, 200);
    Ok(())
}

#[tokio::test]
async fn a_counted_fault_is_over_after_so_many_requests() -> Outcome {
    let vault = TestVault::start();
    vault.ok(&["key", "create", "k"]);
    let wire = vault.wire().await;
    vault.ok(&["fault", "error", "--count", "2"]);
    let mut statuses = Vec::new();
    for _ in 0..3 {
        statuses.push(wire.get("/keys/k").await.status.as_u16());
    }
    assert_eq!(statuses, [500, 500, 200]);
    assert_eq!(vault.calls("get"), 3, "a request that meets a fault counts as a call");
    Ok(())
}

#[tokio::test]
async fn tokens_are_issued_during_an_outage_unless_it_takes_them_too() -> Outcome {
    let vault = TestVault::start();
    let environment = vault.environment();
    let (http, secret) = (vault.http(), &environment["AZURE_CLIENT_SECRET"]);
    vault.ok(&["fault", "error"]);
    assert_eq!(request_token(&http, &environment, secret).await.0, 200);
    vault.ok(&["fault", "error", "--status", "503", "--also-tokens"]);
    assert_eq!(request_token(&http, &environment, secret).await.0, 503);
    vault.ok(&["fault", "throttle", "--also-tokens"]);
    assert_eq!(request_token(&http, &environment, secret).await.0, 429);
    vault.ok(&["fault", "none"]);
    assert_eq!(request_token(&http, &environment, secret).await.0, 200);
    Ok(())
}

#[test]
fn options_that_do_not_belong_to_a_fault_are_refused() {
    let vault = TestVault::start();
    for arguments in [
        &["error", "--retry-after", "1s"][..],
        &["throttle", "--status", "500"],
        &["none", "--count", "1"],
        &["hang", "--also-tokens", "--key", "k"],
    ] {
        vault.fails(&[&["fault"], arguments].concat(), 2);
    }
    for arguments in [&["flood"][..], &["latency"], &["latency=fast"], &["error", "--status", "404"]] {
        vault.fails(&[&["fault"], arguments].concat(), 2);
    }
    assert_eq!(vault.status()["faults"]["vault"], serde_json::Value::Null);
}
