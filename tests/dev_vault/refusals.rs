//! What the vault refuses, and in which words: kmsfs tells a revocation from an outage by these.

use crate::harness::{Outcome, TestVault, Wire, block, inner_code, refused, success};
use reqwest::Method;
use serde_json::{Value, json};

/// The codes of all four cryptographic operations on a key, with `wrapped` for the two that open.
async fn all_uses(wire: &Wire, key: &str, wrapped: &str) -> [(u16, String, String); 4] {
    let mut codes = Vec::new();
    for (operation, value) in [("wrapkey", "AAAA"), ("encrypt", "AAAA"), ("unwrapkey", wrapped), ("decrypt", wrapped)] {
        codes.push(wire.apply(&format!("/keys/{key}/{operation}"), value).await.codes());
    }
    codes.try_into().expect("four operations")
}

#[tokio::test]
async fn a_disabled_key_does_nothing_but_can_be_seen() -> Outcome {
    let vault = TestVault::start();
    vault.ok(&["key", "create", "k"]);
    let wire = vault.wire().await;
    let wrapped = wire.wrapped("k").await;
    vault.ok(&["key", "disable", "k"]);
    let no = refused(403, "Forbidden", "KeyDisabled");
    assert_eq!(all_uses(&wire, "k", &wrapped).await, [no.clone(), no.clone(), no.clone(), no]);
    let seen = wire.get("/keys/k").await;
    assert_eq!((seen.status.as_u16(), &seen.body["attributes"]["enabled"]), (200, &Value::Bool(false)));
    vault.ok(&["key", "enable", "k"]);
    assert_eq!(wire.unwrap("k", &wrapped).await, success());
    Ok(())
}

#[tokio::test]
async fn microsofts_client_shows_the_inner_code_of_a_disabled_key() -> Outcome {
    let vault = TestVault::start();
    vault.ok(&["key", "create", "k"]);
    let client = vault.client();
    let blob = client.wrap_key("k", block(&[1; 32]), None).await?.into_model()?.result.expect("a wrapped key");
    vault.ok(&["key", "disable", "k"]);
    let error = client.unwrap_key("k", "", block(&blob), None).await.expect_err("the key is disabled");
    assert_eq!(inner_code(&error), (403, "KeyDisabled".into()));
    Ok(())
}

#[tokio::test]
async fn disabling_a_key_disables_all_of_its_versions_and_one_can_be_named() -> Outcome {
    let vault = TestVault::start();
    let old = vault.ok(&["key", "create", "k"]);
    let old = old.rsplit('/').next().expect("a version").to_owned();
    let wire = vault.wire().await;
    let wrapped = wire.wrapped("k").await;
    vault.ok(&["key", "rotate", "k"]);
    let path = format!("/keys/k/{old}/unwrapkey");
    let disabled = refused(403, "Forbidden", "KeyDisabled");

    vault.ok(&["key", "disable", "k"]);
    assert_eq!(wire.apply(&path, &wrapped).await.codes(), disabled);
    vault.ok(&["key", "enable", "k", "--version", &old]);
    assert_eq!(wire.apply(&path, &wrapped).await.codes(), success());
    assert_eq!(wire.apply("/keys/k/wrapkey", "AAAA").await.codes(), disabled, "the newest is still disabled");
    vault.ok(&["key", "enable", "k"]);
    vault.ok(&["key", "disable", "k", "--version", &old]);
    assert_eq!(wire.apply(&path, &wrapped).await.codes(), disabled);
    assert_eq!(wire.apply("/keys/k/wrapkey", "AAAA").await.codes(), success());
    Ok(())
}

#[tokio::test]
async fn an_expired_key_still_unwraps() -> Outcome {
    let vault = TestVault::start();
    vault.ok(&["key", "create", "k"]);
    let wire = vault.wire().await;
    let wrapped = wire.wrapped("k").await;
    vault.ok(&["key", "expire", "k"]);
    let no = refused(403, "Forbidden", "KeyExpired");
    assert_eq!(all_uses(&wire, "k", &wrapped).await, [no.clone(), no, success(), success()]);
    vault.ok(&["key", "expire", "k", "--never"]);
    assert_eq!(wire.apply("/keys/k/wrapkey", "AAAA").await.codes(), success());
    Ok(())
}

#[tokio::test]
async fn a_key_that_is_not_yet_valid_still_unwraps() -> Outcome {
    let vault = TestVault::start();
    vault.ok(&["key", "create", "k"]);
    let wire = vault.wire().await;
    let wrapped = wire.wrapped("k").await;
    let later = json!({ "attributes": { "nbf": 4_000_000_000_u64 } });
    assert_eq!(wire.send(Method::PATCH, "/keys/k/", Some(later)).await.status, 200);
    let no = refused(403, "Forbidden", "KeyNotYetValid");
    assert_eq!(all_uses(&wire, "k", &wrapped).await, [no.clone(), no, success(), success()]);
    Ok(())
}

#[tokio::test]
async fn an_operation_outside_key_ops_is_forbidden() -> Outcome {
    let vault = TestVault::start();
    vault.ok(&["key", "create", "k", "--ops", "wrapKey,unwrapKey"]);
    let wire = vault.wire().await;
    let wrapped = wire.wrapped("k").await;
    let no = refused(403, "Forbidden", "KeyOperationForbidden");
    assert_eq!(all_uses(&wire, "k", &wrapped).await, [success(), no.clone(), success(), no]);
    Ok(())
}

#[tokio::test]
async fn a_deleted_key_is_not_found_and_blocks_its_name() -> Outcome {
    let vault = TestVault::start();
    vault.ok(&["key", "create", "k"]);
    let wire = vault.wire().await;
    let wrapped = wire.wrapped("k").await;
    vault.ok(&["key", "delete", "k"]);
    let none = refused(404, "KeyNotFound", "");
    assert_eq!(all_uses(&wire, "k", &wrapped).await, [none.clone(), none.clone(), none.clone(), none.clone()]);
    assert_eq!(wire.get("/keys/k").await.codes(), none);
    assert_eq!(wire.get("/deletedkeys/k").await.status, 200);
    let create = wire.send(Method::POST, "/keys/k/create", Some(json!({ "kty": "RSA" }))).await;
    assert_eq!(create.codes(), refused(409, "Conflict", "ObjectIsDeletedButRecoverable"));
    assert!(vault.fails(&["key", "create", "k"], 1).contains("hint: kmsfs dev-vault key recover"));
    vault.ok(&["key", "recover", "k"]);
    assert_eq!(wire.unwrap("k", &wrapped).await, success());
    vault.ok(&["key", "delete", "k"]);
    vault.ok(&["key", "purge", "k"]);
    assert_eq!(wire.get("/deletedkeys/k").await.codes(), none);
    Ok(())
}

#[tokio::test]
async fn what_does_not_exist_is_not_found() -> Outcome {
    let vault = TestVault::start();
    vault.ok(&["key", "create", "k"]);
    let wire = vault.wire().await;
    let none = refused(404, "KeyNotFound", "");
    let unknown_version = format!("/keys/k/{}", "0".repeat(32));
    for path in
        ["/keys/other", &unknown_version, "/keys/other/versions", "/deletedkeys/k", "/keys/other/rotationpolicy"]
    {
        assert_eq!(wire.get(path).await.codes(), none, "{path}");
    }
    for (method, path) in [
        (Method::DELETE, "/keys/other"),
        (Method::DELETE, "/deletedkeys/k"),
        (Method::POST, "/deletedkeys/k/recover"),
        (Method::POST, "/keys/other/rotate"),
    ] {
        assert_eq!(wire.send(method, path, None).await.codes(), none, "{path}");
    }
    assert_eq!(wire.get("/secrets/k").await.status, 404);
    Ok(())
}

#[tokio::test]
async fn a_bad_ciphertext_is_a_bad_parameter_and_never_forbidden() -> Outcome {
    let vault = TestVault::start();
    vault.ok(&["key", "create", "k"]);
    vault.ok(&["key", "create", "other"]);
    let wire = vault.wire().await;
    let wrapped = wire.wrapped("k").await;
    let changed = format!("{}{}", if wrapped.starts_with('A') { "B" } else { "A" }, &wrapped[1..]);
    let bad = refused(400, "BadParameter", "");
    assert_eq!(wire.unwrap("other", &wrapped).await, bad, "another key's");
    for value in [changed.as_str(), &wrapped[4..], "", "AAAA", "*"] {
        assert_eq!(wire.unwrap("k", value).await, bad, "{value:?}");
    }
    assert_eq!(wire.unwrap("k", &wrapped).await, success());
    Ok(())
}

#[tokio::test]
async fn a_request_that_is_not_understood_is_a_bad_parameter() -> Outcome {
    let vault = TestVault::start();
    vault.ok(&["key", "create", "k"]);
    let wire = vault.wire().await;
    let bad = refused(400, "BadParameter", "");
    for body in [
        json!({ "alg": "RSA1_5", "value": "AAAA" }),
        json!({ "alg": "A256KW", "value": "AAAA" }),
        json!({ "alg": "RSA-OAEP-256" }),
        json!({ "alg": "RSA-OAEP-256", "value": "A".repeat(400) }),
        json!([]),
    ] {
        let answer = wire.send(Method::POST, "/keys/k/wrapkey", Some(body.clone())).await;
        assert_eq!(answer.codes(), bad, "{body}");
    }
    for body in [json!({ "kty": "EC" }), json!({ "kty": "RSA", "key_size": 1024 }), json!({})] {
        let answer = wire.send(Method::POST, "/keys/new/create", Some(body.clone())).await;
        assert_eq!(answer.codes(), bad, "{body}");
    }
    for path in ["/keys?maxresults=0", "/keys?maxresults=26", "/keys?$skiptoken=*", "/keys/a.b"] {
        assert_eq!(wire.get(path).await.codes(), bad, "{path}");
    }
    let no_version = wire.http.get(format!("{}/keys/k", wire.url)).bearer_auth(&wire.token).send().await?;
    assert_eq!(no_version.status(), 400);
    Ok(())
}

#[tokio::test]
async fn every_dress_of_base64_and_every_spelling_of_an_operation_is_taken() -> Outcome {
    let vault = TestVault::start();
    vault.ok(&["key", "create", "k"]);
    let wire = vault.wire().await;
    let wrapped = wire.wrapped("k").await;
    assert!(!wrapped.contains(['+', '/', '=']), "replies are base64url without padding: {wrapped}");
    let standard = wrapped.replace('-', "+").replace('_', "/");
    for (path, value) in [
        ("/keys/k//unwrapkey", wrapped.clone()),
        ("/keys/k//unwrapKey", format!("{wrapped}==")),
        ("/keys/K/UnwrapKey", standard.clone()),
        ("/keys/k/unwrapkey/", format!("{standard}==")),
    ] {
        let answer = wire.apply(path, &value).await;
        assert_eq!(answer.body["value"], "A".repeat(43), "{path}: {answer:?}");
    }
    Ok(())
}

#[tokio::test]
async fn a_request_id_comes_back_and_every_answer_has_its_own() -> Outcome {
    let vault = TestVault::start();
    let wire = vault.wire().await;
    let mut ids = std::collections::BTreeSet::new();
    for token in [wire.token.as_str(), "none"] {
        let url = format!("{}/keys?api-version=7.6", wire.url);
        let request = wire.http.get(url).bearer_auth(token).header("x-ms-client-request-id", "mount-7");
        let response = request.send().await?;
        let header = |name: &str| response.headers().get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
        assert_eq!(header("x-ms-client-request-id").as_deref(), Some("mount-7"));
        assert!(header("x-ms-keyvault-service-version").is_some() && header("x-ms-keyvault-region").is_some());
        ids.insert(header("x-ms-request-id").expect("a request id"));
    }
    assert_eq!(ids.len(), 2);
    Ok(())
}
