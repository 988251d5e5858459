//! The challenge and the tokens.

use crate::harness::{Outcome, TestVault, block, request_token};
use serde_json::Value;
use std::time::Duration;

fn challenge(response: &reqwest::Response) -> String {
    let header = response.headers().get("www-authenticate").and_then(|value| value.to_str().ok());
    header.expect("a challenge").to_owned()
}

#[tokio::test]
async fn without_a_good_token_every_path_is_a_challenge() -> Outcome {
    let vault = TestVault::start();
    vault.ok(&["key", "create", "k"]);
    let (environment, http, wire) = (vault.environment(), vault.http(), vault.wire().await);
    let authority = &environment["AZURE_AUTHORITY_HOST"];
    let expected =
        format!(r#"Bearer authorization="{authority}/{}", resource="{authority}""#, environment["AZURE_TENANT_ID"]);
    let mut forged = wire.token.clone();
    forged.pop();
    for path in ["/keys/k?api-version=7.6", "/keys?api-version=7.6", "/deletedkeys/k", "/other"] {
        for token in [None, Some("nonsense"), Some(forged.as_str())] {
            let request = http.get(format!("{}{path}", wire.url));
            let request = if let Some(token) = token { request.bearer_auth(token) } else { request };
            let response = request.send().await?;
            assert_eq!((response.status().as_u16(), challenge(&response)), (401, expected.clone()), "{path} {token:?}");
            let body: Value = serde_json::from_slice(&response.bytes().await?)?;
            assert_eq!(body["error"]["code"], "Unauthorized");
        }
    }
    assert_eq!(vault.calls("get"), 0);
    Ok(())
}

#[tokio::test]
async fn a_token_ends_after_its_lifetime_and_a_new_one_is_taken() -> Outcome {
    let vault = TestVault::start_with(&["--token-lifetime", "1s"]);
    vault.ok(&["key", "create", "k"]);
    let wire = vault.wire().await;
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    loop {
        let answer = wire.get("/keys/k").await;
        if answer.status == 401 {
            assert!(answer.body["error"]["message"].as_str().is_some_and(|text| text.contains("expired")));
            assert!(answer.headers.contains_key("www-authenticate"));
            break;
        }
        assert_eq!(answer.status, 200);
        assert!(tokio::time::Instant::now() < deadline, "the token is still accepted");
    }
    assert_eq!(vault.wire().await.get("/keys/k").await.status, 200);
    Ok(())
}

#[tokio::test]
async fn a_wrong_secret_gets_no_token() -> Outcome {
    let vault = TestVault::start();
    let (status, body) = request_token(&vault.http(), &vault.environment(), "wrong").await;
    assert_eq!((status, &body["error"], &body["error_codes"][0]), (401, &"invalid_client".into(), &7_000_215.into()));
    assert_eq!(body["access_token"], Value::Null);
    let mut environment = vault.environment();
    let secret = environment["AZURE_CLIENT_SECRET"].clone();
    environment.insert("AZURE_CLIENT_ID".into(), "00000000-0000-0000-0000-000000000000".into());
    assert_eq!(request_token(&vault.http(), &environment, &secret).await.0, 400);
    let mut environment = vault.environment();
    environment.insert("AZURE_TENANT_ID".into(), "00000000-0000-0000-0000-000000000000".into());
    assert_eq!(request_token(&vault.http(), &environment, &secret).await.0, 400);
    Ok(())
}

#[tokio::test]
async fn a_token_of_another_vault_is_not_taken() -> Outcome {
    let (one, other) = (TestVault::start(), TestVault::start());
    let mut wire = one.wire().await;
    assert_eq!(wire.get("/keys").await.status, 200);
    wire.token = other.wire().await.token;
    assert_eq!(wire.get("/keys").await.status, 401);
    Ok(())
}

#[tokio::test]
async fn one_token_serves_many_calls_of_microsofts_client() -> Outcome {
    let vault = TestVault::start();
    vault.ok(&["key", "create", "k"]);
    let client = vault.client();
    for _ in 0..5 {
        client.wrap_key("k", block(&[1; 32]), None).await?;
    }
    assert_eq!((vault.calls("token"), vault.calls("challenge"), vault.calls("wrapkey")), (1, 1, 5));
    Ok(())
}

#[tokio::test]
async fn discovery_leads_from_the_instance_to_the_token_endpoint() -> Outcome {
    let vault = TestVault::start();
    let (environment, http) = (vault.environment(), vault.http());
    let (authority, tenant) = (&environment["AZURE_AUTHORITY_HOST"], &environment["AZURE_TENANT_ID"]);
    let get = async |url: &str| -> Result<Value, Box<dyn std::error::Error>> {
        let response = http.get(url).send().await?.error_for_status()?;
        Ok(serde_json::from_slice(&response.bytes().await?)?)
    };
    let instance = get(&format!("{authority}/common/discovery/instance?api-version=1.1")).await?;
    let discovery = instance["tenant_discovery_endpoint"].as_str().ok_or("no endpoint")?;
    let expected = format!("{authority}/{tenant}/oauth2/v2.0/token");
    for url in [discovery, &format!("{authority}/{tenant}/.well-known/openid-configuration")] {
        assert_eq!(get(url).await?["token_endpoint"], expected, "{url}");
    }
    assert!(get(&format!("{authority}/other/v2.0/.well-known/openid-configuration")).await.is_err());
    Ok(())
}
