//! All keys of the vault, in memory and on disk.
//!
//! A change is made to a copy, written to the key's file, and only then seen by requests: what a client was told is
//! on disk, and a failed write changes nothing.

use super::key::{Deletion, Key, KeyVersion, Limits, RECOVERABLE_DAYS, now};
use super::material::Kind;
use super::names::KeyName;
use super::refusal::Refusal;
use super::state::{KEYS, StateDir};
use parking_lot::RwLock;
use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

/// The keys, deleted ones included.
#[derive(Debug)]
pub struct Keyring {
    state: StateDir,
    keys: RwLock<BTreeMap<KeyName, Arc<Key>>>,
}

/// What a new version is to be.
#[derive(Clone, Debug)]
pub struct NewVersion {
    /// Which kind of key.
    pub kind: Kind,
    /// What it may do.
    pub limits: Limits,
    /// The client's own labels.
    pub tags: BTreeMap<String, String>,
}

impl NewVersion {
    /// Makes the key. Takes up to seconds: never on a thread that serves requests.
    ///
    /// # Errors
    /// 500 where no key can be made.
    pub fn generate(self) -> Result<KeyVersion, Refusal> {
        Ok(KeyVersion::new(self.kind.generate()?, self.kind.kty(), self.limits, self.tags)?)
    }
}

impl Keyring {
    /// Reads all keys of the directory.
    ///
    /// # Errors
    /// Where one of them cannot be read: the vault does not start with a part of its keys.
    pub fn load(state: StateDir) -> io::Result<Self> {
        let mut keys = BTreeMap::new();
        for file in state.key_files()? {
            let key: Key = state
                .read_json(&file)
                .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", state.file(&file).display())))?
                .ok_or(io::ErrorKind::NotFound)?;
            keys.insert(key.name.clone(), Arc::new(key));
        }
        Ok(Self { state, keys: RwLock::new(keys) })
    }

    /// The key of this name.
    ///
    /// # Errors
    /// 404 where there is none or it is deleted.
    pub fn get(&self, name: &KeyName) -> Result<Arc<Key>, Refusal> {
        let key = self.keys.read().get(name).cloned();
        key.filter(|key| key.deleted.is_none()).ok_or_else(|| Refusal::key_not_found(name.as_str()))
    }

    /// The deleted key of this name.
    ///
    /// # Errors
    /// 404 where there is none.
    pub fn get_deleted(&self, name: &KeyName) -> Result<Arc<Key>, Refusal> {
        let key = self.keys.read().get(name).cloned();
        key.filter(|key| key.deleted.is_some()).ok_or_else(|| Refusal::deleted_key_not_found(name.as_str()))
    }

    /// All keys that are deleted, or all that are not, by name.
    pub fn list(&self, deleted: bool) -> Vec<Arc<Key>> {
        self.keys.read().values().filter(|key| key.deleted.is_some() == deleted).cloned().collect()
    }

    /// Whether a new version of this name may be added.
    ///
    /// # Errors
    /// 409 where the name belongs to a deleted key.
    pub fn may_create(&self, name: &KeyName) -> Result<(), Refusal> {
        match self.get_deleted(name) {
            Ok(key) => Err(Refusal::deleted_but_recoverable(key.name.as_str())),
            Err(_) => Ok(()),
        }
    }

    /// Adds a version to the key, which is made if there is none.
    ///
    /// # Errors
    /// 409 where the name belongs to a deleted key.
    pub fn add_version(&self, name: &KeyName, version: KeyVersion) -> Result<Arc<Key>, Refusal> {
        self.change(name, |key| {
            let mut key = match key {
                Some(key) if key.deleted.is_some() => {
                    return Err(Refusal::deleted_but_recoverable(key.name.as_str()));
                }
                Some(key) => key.clone(),
                None => Key { name: name.clone(), versions: Vec::new(), deleted: None, rotation_policy: None },
            };
            key.versions.push(version);
            Ok(key)
        })
    }

    /// Adds a version like the newest one. Takes up to seconds: never on a thread that serves requests.
    ///
    /// # Errors
    /// 404 where there is no such key, 409 where it was deleted meanwhile.
    pub fn rotate(&self, name: &KeyName) -> Result<Arc<Key>, Refusal> {
        let key = self.get(name)?;
        let newest = key.version(None)?;
        // Neither the end of the old version nor its being disabled is inherited: a rotation gives a key that works.
        let limits = Limits { operations: newest.limits.operations.clone(), ..Limits::default() };
        let kind = newest.material.kind(&newest.kty);
        let version = NewVersion { kind, limits, tags: newest.tags.clone() }.generate()?;
        self.add_version(name, version)
    }

    /// Changes a key that is not deleted.
    ///
    /// # Errors
    /// 404 where there is none, and what the change itself refuses.
    pub fn update(
        &self,
        name: &KeyName,
        change: impl FnOnce(&mut Key) -> Result<(), Refusal>,
    ) -> Result<Arc<Key>, Refusal> {
        self.change(name, |key| {
            let live = key.filter(|key| key.deleted.is_none()).ok_or_else(|| Refusal::key_not_found(name.as_str()))?;
            let mut key = live.clone();
            change(&mut key)?;
            Ok(key)
        })
    }

    /// Changes the limits of one version, or of all of them.
    ///
    /// # Errors
    /// 404 where there is no such key or version.
    pub fn limit(
        &self,
        name: &KeyName,
        version: Option<&str>,
        change: impl Fn(&mut Limits),
    ) -> Result<Arc<Key>, Refusal> {
        self.update(name, |key| {
            let at = now();
            let only = version.map(|id| key.version(Some(id)).map(|version| version.id.clone())).transpose()?;
            for version in key.versions.iter_mut().filter(|version| only.as_ref().is_none_or(|id| *id == version.id)) {
                change(&mut version.limits);
                version.updated = at;
            }
            Ok(())
        })
    }

    /// Deletes a key; it can be recovered.
    ///
    /// # Errors
    /// 404 where there is none.
    pub fn delete(&self, name: &KeyName) -> Result<Arc<Key>, Refusal> {
        self.update(name, |key| {
            let at = now();
            key.deleted = Some(Deletion { at, purged_at: at + RECOVERABLE_DAYS * 86_400 });
            Ok(())
        })
    }

    /// Brings a deleted key back, with all of its versions.
    ///
    /// # Errors
    /// 404 where nothing deleted has this name.
    pub fn recover(&self, name: &KeyName) -> Result<Arc<Key>, Refusal> {
        self.change(name, |key| {
            let deleted = key.filter(|key| key.deleted.is_some());
            let deleted = deleted.ok_or_else(|| Refusal::deleted_key_not_found(name.as_str()))?;
            Ok(Key { deleted: None, ..deleted.clone() })
        })
    }

    /// Destroys a deleted key.
    ///
    /// # Errors
    /// 404 where nothing deleted has this name.
    pub fn purge(&self, name: &KeyName) -> Result<(), Refusal> {
        let mut keys = self.keys.write();
        if keys.get(name).is_none_or(|key| key.deleted.is_none()) {
            return Err(Refusal::deleted_key_not_found(name.as_str()));
        }
        self.state.remove(&file_of(name))?;
        keys.remove(name);
        Ok(())
    }

    fn change(
        &self,
        name: &KeyName,
        change: impl FnOnce(Option<&Key>) -> Result<Key, Refusal>,
    ) -> Result<Arc<Key>, Refusal> {
        let mut keys = self.keys.write();
        let key = change(keys.get(name).map(Arc::as_ref))?;
        self.state.replace_json(&file_of(name), &key)?;
        let key = Arc::new(key);
        keys.insert(key.name.clone(), key.clone());
        Ok(key)
    }
}

fn file_of(name: &KeyName) -> String {
    format!("{KEYS}/{}.json", name.folded())
}
