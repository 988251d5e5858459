//! The keys API: one call, one answer. Knows no connections, tokens or faults.

use super::call::{Call, Operation};
use super::documents::{BlockBody, CreateBody, UpdateBody, bundle, decode_base64, item, key_id, rotation_policy};
use super::key::{Key, Limits, Use, now};
use super::keyring::{Keyring, NewVersion};
use super::listing::{Page, Query};
use super::material::{Algorithm, Kind};
use super::names::KeyName;
use super::refusal::Refusal;
use super::reply::Reply;
use data_encoding::BASE64URL_NOPAD;
use hyper::StatusCode;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

/// The key operations, for a vault with this URL.
pub struct Api<'a> {
    /// All keys.
    pub keyring: &'a Keyring,
    /// `https://devvault.localhost:PORT`.
    pub vault_url: &'a str,
}

impl Api<'_> {
    /// Answers a call. Making a key takes up to seconds, everything else milliseconds.
    ///
    /// # Errors
    /// What the vault refuses.
    pub fn answer(&self, call: &Call, query: &Query, body: &[u8]) -> Result<Reply, Refusal> {
        let Some(name) = call.key() else { return self.list(call, query) };
        let version = call.version.as_deref();
        let document = match call.operation {
            Operation::Create => self.create(name, &parse(body)?)?,
            Operation::Get => {
                let key = self.keyring.get(name)?;
                bundle(self.vault_url, &key, key.version(version)?)
            }
            Operation::Versions => return self.versions(name, query),
            Operation::Update => self.update(name, version, &parse(body)?)?,
            Operation::Rotate => self.newest(&*self.keyring.rotate(name)?)?,
            Operation::Use(operation) => self.apply(operation, name, version, &parse(body)?)?,
            Operation::GetRotationPolicy => rotation_policy(self.vault_url, &*self.keyring.get(name)?),
            Operation::SetRotationPolicy => self.set_rotation_policy(name, parse(body)?)?,
            Operation::Delete => self.newest(&*self.keyring.delete(name)?)?,
            Operation::GetDeleted => self.newest(&*self.keyring.get_deleted(name)?)?,
            Operation::Recover => self.newest(&*self.keyring.recover(name)?)?,
            Operation::Purge => {
                self.keyring.purge(name)?;
                return Ok(Reply::no_content());
            }
            Operation::List | Operation::ListDeleted => return self.list(call, query),
        };
        Ok(Reply::json(StatusCode::OK, &document))
    }

    fn newest(&self, key: &Key) -> Result<Value, Refusal> {
        Ok(bundle(self.vault_url, key, key.version(None)?))
    }

    fn create(&self, name: &KeyName, body: &CreateBody) -> Result<Value, Refusal> {
        let kind = Kind::named(&body.kty, body.key_size)?;
        if !matches!(body.public_exponent, None | Some(0 | 65537)) {
            return Err(Refusal::bad_parameter("kmsfs dev-vault makes keys with the public exponent 65537."));
        }
        self.keyring.may_create(name)?;
        let mut limits = Limits { operations: kind.operations(), ..Limits::default() };
        body.attributes.apply(body.key_ops.as_ref(), &mut limits);
        let tags = body.tags.clone().unwrap_or_default();
        let version = NewVersion { kind, limits, tags }.generate()?;
        self.newest(&*self.keyring.add_version(name, version)?)
    }

    fn update(&self, name: &KeyName, version: Option<&str>, body: &UpdateBody) -> Result<Value, Refusal> {
        let mut id = String::new();
        let key = self.keyring.update(name, |key| {
            let version = key.version_mut(version)?;
            body.attributes.apply(body.key_ops.as_ref(), &mut version.limits);
            if let Some(tags) = &body.tags {
                version.tags.clone_from(tags);
            }
            version.updated = now();
            id.clone_from(&version.id);
            Ok(())
        })?;
        Ok(bundle(self.vault_url, &key, key.version(Some(&id))?))
    }

    fn apply(&self, operation: Use, name: &KeyName, version: Option<&str>, body: &BlockBody) -> Result<Value, Refusal> {
        let key = self.keyring.get(name)?;
        let version = key.version(version)?;
        let algorithm = Algorithm::named(&body.alg).ok_or_else(|| {
            Refusal::bad_parameter(format!(
                "The algorithm {:?} is not supported: kmsfs dev-vault takes RSA-OAEP-256, RSA-OAEP and A256KW.",
                body.alg
            ))
        })?;
        let block = version.apply(operation, algorithm, &decode_base64(&body.value)?, now())?;
        Ok(json!({ "kid": key_id(self.vault_url, &key, version), "value": BASE64URL_NOPAD.encode(&block) }))
    }

    fn set_rotation_policy(&self, name: &KeyName, mut policy: Value) -> Result<Value, Refusal> {
        if !policy.is_object() {
            return Err(Refusal::bad_parameter("The rotation policy has to be an object."));
        }
        let key = self.keyring.update(name, |key| {
            let created = key.rotation_policy.as_ref().and_then(|old| old["attributes"]["created"].as_u64());
            let expiry = policy["attributes"]["expiryTime"].take();
            policy["attributes"] = json!({ "created": created.unwrap_or_else(now), "updated": now() });
            if !expiry.is_null() {
                policy["attributes"]["expiryTime"] = expiry;
            }
            key.rotation_policy = Some(policy);
            Ok(())
        })?;
        Ok(rotation_policy(self.vault_url, &key))
    }

    fn list(&self, call: &Call, query: &Query) -> Result<Reply, Refusal> {
        let deleted = call.operation == Operation::ListDeleted;
        let collection = if deleted { "deletedkeys" } else { "keys" };
        let mut items = Vec::new();
        for key in self.keyring.list(deleted) {
            items.push((key.name.folded(), item(self.vault_url, &key, key.version(None)?, false)));
        }
        self.page(items, query, collection)
    }

    fn versions(&self, name: &KeyName, query: &Query) -> Result<Reply, Refusal> {
        let key = self.keyring.get(name)?;
        let mut items: Vec<_> = key
            .versions
            .iter()
            .map(|version| (version.id.clone(), item(self.vault_url, &key, version, true)))
            .collect();
        items.sort_by(|one, other| one.0.cmp(&other.0));
        self.page(items, query, &format!("keys/{}/versions", key.name))
    }

    fn page(&self, items: Vec<(String, Value)>, query: &Query, path: &str) -> Result<Reply, Refusal> {
        let Page { items, next } = query.page(items)?;
        let next = next.map(|token| format!("{}/{path}?{}", self.vault_url, query.next(&token)));
        Ok(Reply::json(StatusCode::OK, &json!({ "value": items, "nextLink": next })))
    }
}

fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, Refusal> {
    serde_json::from_slice(body)
        .map_err(|error| Refusal::bad_parameter(format!("The request body is not what the operation takes: {error}.")))
}
