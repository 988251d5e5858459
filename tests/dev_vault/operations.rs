//! Each operation of the keys API, by way of Microsoft's Rust client.

use crate::harness::{Outcome, TestVault, block};
use azure_core::http::RequestContent;
use azure_security_keyvault_keys::ResourceExt as _;
use azure_security_keyvault_keys::models::{
    CreateKeyParameters, EncryptionAlgorithm, Key, KeyAttributes, KeyClientGetKeyOptions,
    KeyClientListDeletedKeyPropertiesOptions, KeyClientListKeyPropertiesOptions,
    KeyClientListKeyPropertiesVersionsOptions, KeyClientUpdateKeyPropertiesOptions, KeyOperation,
    KeyOperationParameters, KeyRotationPolicy, KeyRotationPolicyAttributes, KeyType, UpdateKeyPropertiesParameters,
};
use futures::TryStreamExt;
use serde_json::json;
use std::collections::{BTreeSet, HashMap};

fn rsa(bits: i32) -> CreateKeyParameters {
    CreateKeyParameters { kty: Some(KeyType::Rsa), key_size: Some(bits), ..CreateKeyParameters::default() }
}

fn version_of(key: &Key) -> String {
    key.resource_id().ok().and_then(|id| id.version).expect("a versioned id")
}

#[tokio::test]
async fn what_is_wrapped_unwraps_to_the_same_bytes() -> Outcome {
    let vault = TestVault::start();
    let client = vault.client();
    for (bits, length) in [(2048, 256), (3072, 384), (4096, 512)] {
        let name = format!("key-{bits}");
        let key = client.create_key(&name, rsa(bits).try_into()?, None).await?.into_model()?;
        let wrapped = client.wrap_key(&name, block(&[9; 32]), None).await?.into_model()?;
        assert_eq!(wrapped.kid, key.key.as_ref().and_then(|jwk| jwk.kid.clone()));
        let blob = wrapped.result.expect("a wrapped key");
        assert_eq!(blob.len(), length);
        for version in [version_of(&key), String::new()] {
            let unwrapped = client.unwrap_key(&name, &version, block(&blob), None).await?.into_model()?;
            assert_eq!(unwrapped.result, Some(vec![9; 32]));
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_key_id_names_the_vault_the_key_and_32_digits() -> Outcome {
    let vault = TestVault::start();
    let key = vault.client().create_key("Tenant-A", rsa(2048).try_into()?, None).await?.into_model()?;
    let id = key.resource_id()?;
    assert_eq!(id.vault_url, vault.environment()["KMSFS_DEV_VAULT_URL"]);
    assert!(id.vault_url.starts_with("https://devvault.localhost:"));
    assert_eq!(id.name, "Tenant-A");
    let version = version_of(&key);
    assert!(version.len() == 32 && version.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)));
    Ok(())
}

#[tokio::test]
async fn what_is_encrypted_decrypts_to_the_same_bytes() -> Outcome {
    let vault = TestVault::start();
    let client = vault.client();
    client.create_key("k", rsa(2048).try_into()?, None).await?;
    for algorithm in [EncryptionAlgorithm::RsaOaep256, EncryptionAlgorithm::RsaOaep] {
        let body = |value: &[u8]| -> azure_core::Result<RequestContent<KeyOperationParameters>> {
            KeyOperationParameters {
                algorithm: Some(algorithm.clone()),
                value: Some(value.to_vec()),
                ..KeyOperationParameters::default()
            }
            .try_into()
        };
        let encrypted = client.encrypt("k", body(b"short text")?, None).await?.into_model()?;
        let ciphertext = encrypted.result.expect("a ciphertext");
        let decrypted = client.decrypt("k", "", body(&ciphertext)?, None).await?.into_model()?;
        assert_eq!(decrypted.result.as_deref(), Some(&b"short text"[..]));
    }
    Ok(())
}

#[tokio::test]
async fn the_public_half_wraps_what_the_vault_unwraps() -> Outcome {
    let vault = TestVault::start();
    let client = vault.client();
    let key = client.create_key("k", rsa(2048).try_into()?, None).await?.into_model()?;
    let jwk = key.key.expect("a public key");
    let components =
        aws_lc_rs::rsa::PublicKeyComponents { n: jwk.n.expect("a modulus"), e: jwk.e.expect("an exponent") };
    let public: aws_lc_rs::rsa::PublicEncryptingKey = components.try_into()?;
    let public = aws_lc_rs::rsa::OaepPublicEncryptingKey::new(public)?;
    let mut blob = vec![0; public.ciphertext_size()];
    public.encrypt(&aws_lc_rs::rsa::OAEP_SHA256_MGF1SHA256, &[3; 32], &mut blob, None)?;
    let unwrapped = client.unwrap_key("k", "", block(&blob), None).await?.into_model()?;
    assert_eq!(unwrapped.result, Some(vec![3; 32]));
    Ok(())
}

#[tokio::test]
async fn after_a_rotation_the_newest_wraps_and_the_old_still_unwraps() -> Outcome {
    let vault = TestVault::start();
    let client = vault.client();
    let old = client.create_key("k", rsa(3072).try_into()?, None).await?.into_model()?;
    let blob = client.wrap_key("k", block(&[1; 32]), None).await?.into_model()?.result.expect("a wrapped key");
    let new = client.rotate_key("k", None).await?.into_model()?;
    assert_ne!(version_of(&old), version_of(&new));
    let wrapped = client.wrap_key("k", block(&[2; 32]), None).await?.into_model()?;
    assert_eq!(wrapped.kid, new.key.as_ref().and_then(|jwk| jwk.kid.clone()));
    assert_eq!(wrapped.result.map(|blob| blob.len()), Some(384), "a rotation keeps the size");
    let unwrapped = client.unwrap_key("k", &version_of(&old), block(&blob), None).await?.into_model()?;
    assert_eq!(unwrapped.result, Some(vec![1; 32]));
    assert!(client.unwrap_key("k", &version_of(&new), block(&blob), None).await.is_err());
    Ok(())
}

#[tokio::test]
async fn each_version_can_be_had_by_its_name() -> Outcome {
    let vault = TestVault::start();
    let client = vault.client();
    let old = client.create_key("k", rsa(2048).try_into()?, None).await?.into_model()?;
    let new = client.create_key("k", rsa(2048).try_into()?, None).await?.into_model()?;
    let newest = client.get_key("k", None).await?.into_model()?;
    assert_eq!(version_of(&newest), version_of(&new));
    let options = KeyClientGetKeyOptions { key_version: Some(version_of(&old)), ..KeyClientGetKeyOptions::default() };
    let got = client.get_key("K", Some(options)).await?.into_model()?;
    assert_eq!(got.key.map(|jwk| jwk.n), old.key.map(|jwk| jwk.n));
    Ok(())
}

#[tokio::test]
async fn an_update_changes_what_it_names_and_nothing_else() -> Outcome {
    let vault = TestVault::start();
    let client = vault.client();
    let expires = time(4_000_000_000)?;
    let create = CreateKeyParameters {
        key_ops: Some(vec![KeyOperation::WrapKey, KeyOperation::UnwrapKey]),
        key_attributes: Some(KeyAttributes { expires: Some(expires), ..KeyAttributes::default() }),
        tags: Some(HashMap::from([("tenant".into(), "a".into())])),
        ..rsa(2048)
    };
    let key = client.create_key("k", create.try_into()?, None).await?.into_model()?;
    let update = UpdateKeyPropertiesParameters {
        key_attributes: Some(KeyAttributes { enabled: Some(false), ..KeyAttributes::default() }),
        ..UpdateKeyPropertiesParameters::default()
    };
    for version in [None, Some(version_of(&key))] {
        let options = KeyClientUpdateKeyPropertiesOptions {
            key_version: version,
            ..KeyClientUpdateKeyPropertiesOptions::default()
        };
        client.update_key_properties("k", update.clone().try_into()?, Some(options)).await?;
    }
    let got = client.get_key("k", None).await?.into_model()?;
    let attributes = got.attributes.expect("attributes");
    assert_eq!((attributes.enabled, attributes.expires), (Some(false), Some(expires)));
    assert_eq!(attributes.created, key.attributes.and_then(|attributes| attributes.created));
    assert_eq!(got.tags, Some(HashMap::from([("tenant".into(), "a".into())])));
    assert_eq!(got.key.and_then(|jwk| jwk.key_ops), Some(vec!["wrapKey".into(), "unwrapKey".into()]));
    Ok(())
}

#[tokio::test]
async fn lists_hold_every_item_once_over_several_pages() -> Outcome {
    let vault = TestVault::start();
    let client = vault.client();
    let names: BTreeSet<String> = ["a", "b", "c", "d", "e"].map(String::from).into();
    for name in &names {
        client.create_key(name, rsa(2048).try_into()?, None).await?;
    }
    let of_two = KeyClientListKeyPropertiesOptions { maxresults: Some(2), ..Default::default() };
    let listed: Vec<_> = client.list_key_properties(Some(of_two))?.try_collect().await?;
    assert_eq!(listed.len(), 5);
    let listed: BTreeSet<_> = listed.iter().filter_map(|item| item.resource_id().ok()).map(|id| id.name).collect();
    assert_eq!(listed, names);
    assert_eq!(vault.calls("list"), 3);

    let mut versions = BTreeSet::from([version_of(&client.get_key("a", None).await?.into_model()?)]);
    for _ in 0..2 {
        versions.insert(version_of(&client.rotate_key("a", None).await?.into_model()?));
    }
    let of_two = KeyClientListKeyPropertiesVersionsOptions { maxresults: Some(2), ..Default::default() };
    let listed: Vec<_> = client.list_key_properties_versions("a", Some(of_two))?.try_collect().await?;
    assert_eq!(listed.len(), 3);
    assert_eq!(listed.iter().filter_map(|item| item.resource_id().ok()?.version).collect::<BTreeSet<_>>(), versions);

    for name in &names {
        client.delete_key(name, None).await?;
    }
    assert_eq!(client.list_key_properties(None)?.try_collect::<Vec<_>>().await?.len(), 0);
    let of_two = KeyClientListDeletedKeyPropertiesOptions { maxresults: Some(2), ..Default::default() };
    let listed: Vec<_> = client.list_deleted_key_properties(Some(of_two))?.try_collect().await?;
    assert_eq!(listed.len(), 5);
    assert!(listed.iter().all(|item| item.recovery_id.is_some() && item.deleted_date.is_some()));
    Ok(())
}

#[tokio::test]
async fn a_recovered_key_unwraps_what_it_wrapped_before() -> Outcome {
    let vault = TestVault::start();
    let client = vault.client();
    let key = client.create_key("k", rsa(2048).try_into()?, None).await?.into_model()?;
    let blob = client.wrap_key("k", block(&[5; 32]), None).await?.into_model()?.result.expect("a wrapped key");
    let deleted = client.delete_key("k", None).await?.into_model()?;
    let recovery_id = format!("{}/deletedkeys/k", vault.environment()["KMSFS_DEV_VAULT_URL"]);
    assert_eq!(deleted.recovery_id, Some(recovery_id));
    assert!(deleted.scheduled_purge_date > deleted.deleted_date);
    let seen = client.get_deleted_key("k", None).await?.into_model()?;
    assert_eq!(seen.key.and_then(|jwk| jwk.kid), key.key.as_ref().and_then(|jwk| jwk.kid.clone()));
    let recovered = client.recover_deleted_key("k", None).await?.into_model()?;
    assert_eq!(version_of(&recovered), version_of(&key));
    let unwrapped = client.unwrap_key("k", &version_of(&key), block(&blob), None).await?.into_model()?;
    assert_eq!(unwrapped.result, Some(vec![5; 32]));
    Ok(())
}

#[tokio::test]
async fn a_purged_key_is_gone_and_its_name_is_free() -> Outcome {
    let vault = TestVault::start();
    let client = vault.client();
    let key = client.create_key("k", rsa(2048).try_into()?, None).await?.into_model()?;
    client.delete_key("k", None).await?;
    client.purge_deleted_key("k", None).await?;
    assert!(!vault.file("keys/k.json").exists(), "the private key is still on the disk");
    assert!(client.get_deleted_key("k", None).await.is_err());
    let again = client.create_key("k", rsa(2048).try_into()?, None).await?.into_model()?;
    assert_ne!(version_of(&again), version_of(&key));
    Ok(())
}

#[tokio::test]
async fn a_rotation_policy_is_kept() -> Outcome {
    let vault = TestVault::start();
    let client = vault.client();
    client.create_key("k", rsa(2048).try_into()?, None).await?;
    let first = client.get_key_rotation_policy("k", None).await?.into_model()?;
    assert_eq!(first.lifetime_actions.map(|actions| actions.len()), Some(1));
    let policy = KeyRotationPolicy {
        attributes: Some(KeyRotationPolicyAttributes {
            expiry_time: Some("P2Y".into()),
            ..KeyRotationPolicyAttributes::default()
        }),
        lifetime_actions: Some(Vec::new()),
        ..KeyRotationPolicy::default()
    };
    client.update_key_rotation_policy("k", policy.try_into()?, None).await?;
    let kept = client.get_key_rotation_policy("k", None).await?.into_model()?;
    assert_eq!(kept.attributes.and_then(|attributes| attributes.expiry_time).as_deref(), Some("P2Y"));
    assert_eq!(kept.lifetime_actions.map(|actions| actions.len()), Some(0));
    Ok(())
}

#[tokio::test]
async fn the_counts_are_the_calls_that_were_made() -> Outcome {
    let vault = TestVault::start();
    let client = vault.client();
    vault.ok(&["key", "create", "one"]);
    vault.ok(&["key", "create", "two"]);
    let blob = client.wrap_key("one", block(&[5; 32]), None).await?.into_model()?.result.expect("a wrapped key");
    for _ in 0..3 {
        client.unwrap_key("one", "", block(&blob), None).await?;
    }
    client.get_key("two", None).await?;
    let calls = &vault.status()["calls"];
    assert_eq!(calls["calls"], json!({ "challenge": 1, "token": 1, "wrapkey": 1, "unwrapkey": 3, "get": 1 }));
    assert_eq!(calls["keys"], json!({ "one": { "wrapkey": 1, "unwrapkey": 3 }, "two": { "get": 1 } }));
    assert_eq!(calls["answers"], json!({ "200": 5, "401": 1 }));
    Ok(())
}

fn time(seconds: i64) -> azure_core::Result<azure_core::time::OffsetDateTime> {
    azure_core::time::OffsetDateTime::from_unix_timestamp(seconds)
        .map_err(|error| azure_core::Error::new(azure_core::error::ErrorKind::DataConversion, error))
}
