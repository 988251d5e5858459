//! All KEKs of one volume behind one seam: what a key wrapped is unwrapped at exactly that key's provider, and what is
//! new is wrapped by the primary one. Depends on the seam only; how a reference becomes a connection is its maker's
//! affair. Invariant: a key of one provider is never asked for what another one wrapped, and a provider is connected to
//! only when something of it is needed: a KEK that has long been left needs no credentials.

use super::{Facts, KekId, KeyState, Kms, KmsError, Unwrapped, Wrapped};
use crate::crypto::Secret32;
use crate::units::VolumeId;
use parking_lot::RwLock;
use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// From a reference to a provider that can be asked; see [`super::connect()`].
pub type Connector = Box<dyn Fn(&str) -> Result<Arc<dyn Kms>, KmsError> + Send + Sync>;

/// The connections to the KEKs of one volume.
pub struct Ring {
    connect: Connector,
    keys: RwLock<Keys>,
}

#[derive(Default)]
struct Keys {
    /// Each key with its version, and the reference by which it is reached; a later one counts before an earlier one.
    references: Vec<(KekId, String)>,
    /// The reference of the one that wraps.
    primary: String,
    /// Connections by reference, made when they are needed for the first time.
    connections: HashMap<String, Arc<dyn Kms>>,
}

impl Ring {
    /// No keys yet.
    pub fn new(connect: Connector) -> Self {
        Self { connect, keys: RwLock::default() }
    }

    /// One connection for whatever comes.
    pub fn of_one(kms: Arc<dyn Kms>) -> Self {
        Self::new(Box::new(move |_| Ok(Arc::clone(&kms))))
    }

    /// From now on these are the keys, each with the reference by which it is reached, and the one with the reference
    /// `primary` wraps. Connections to keys that are none any more are given up.
    pub fn set_keys(&self, references: Vec<(KekId, String)>, primary: &str) {
        let mut keys = self.keys.write();
        keys.connections.retain(|reference, _| references.iter().any(|(_, known)| known == reference));
        keys.references = references;
        keys.primary = primary.to_owned();
    }

    /// The connection to the key with this reference.
    ///
    /// # Errors
    /// See [`super::connect()`].
    pub fn at(&self, reference: &str) -> Result<Arc<dyn Kms>, KmsError> {
        if let Some(connection) = self.keys.read().connections.get(reference) {
            return Ok(Arc::clone(connection));
        }
        let made = self.connect(reference)?;
        Ok(Arc::clone(self.keys.write().connections.entry(reference.to_owned()).or_insert(made)))
    }

    /// A new connection, which knows nothing of what was asked before: what it wraps is wrapped by the version that is
    /// the newest now.
    ///
    /// # Errors
    /// See [`super::connect()`].
    pub fn connect(&self, reference: &str) -> Result<Arc<dyn Kms>, KmsError> {
        (self.connect)(reference)
    }

    /// From now on this is the connection to the key with this reference.
    pub fn keep(&self, reference: &str, connection: Arc<dyn Kms>) {
        self.keys.write().connections.insert(reference.to_owned(), connection);
    }

    fn primary(&self) -> Result<Arc<dyn Kms>, KmsError> {
        let primary = self.keys.read().primary.clone();
        self.at(&primary)
    }

    /// The reference by which the key that wrapped something is reached: the primary one for a key that is not known,
    /// whose provider then says what it thinks of it.
    fn reference_of(&self, kek: &KekId) -> String {
        let keys = self.keys.read();
        let known = keys.references.iter().rev().find(|(id, _)| id.is_same_key(kek));
        known.map_or_else(|| keys.primary.clone(), |(_, reference)| reference.clone())
    }
}

impl Kms for Ring {
    fn wrap(&self, secret: &Secret32, volume: VolumeId) -> Result<Wrapped, KmsError> {
        self.primary()?.wrap(secret, volume)
    }

    fn unwrap(&self, wrapped: &Wrapped, volume: VolumeId) -> Result<Unwrapped, KmsError> {
        self.at(&self.reference_of(&wrapped.kek))?.unwrap(wrapped, volume)
    }

    /// Only what the key that wraps has wrapped itself: no service turns the wrap of another one into its own.
    fn rewrap(&self, wrapped: &Wrapped, volume: VolumeId) -> Result<Option<Wrapped>, KmsError> {
        let (reference, primary) = (self.reference_of(&wrapped.kek), self.keys.read().primary.clone());
        if reference == primary { self.at(&primary)?.rewrap(wrapped, volume) } else { Ok(None) }
    }

    fn current(&self) -> Result<KekId, KmsError> {
        self.primary()?.current()
    }

    fn facts(&self) -> Result<Facts, KmsError> {
        self.primary()?.facts()
    }

    fn counter(&self, kek: &KekId, volume: VolumeId) -> Result<Option<u64>, KmsError> {
        self.at(&self.reference_of(kek))?.counter(kek, volume)
    }

    fn set_counter(&self, kek: &KekId, volume: VolumeId, value: u64) -> Result<(), KmsError> {
        self.at(&self.reference_of(kek))?.set_counter(kek, volume, value)
    }

    fn key_state(&self, key: &KekId) -> KeyState {
        match self.at(&self.reference_of(key)) {
            Ok(connection) => connection.key_state(key),
            Err(error) => KeyState::NotShown(error.to_string()),
        }
    }

    /// Of those that are connected to.
    fn warnings(&self) -> Vec<String> {
        self.keys.read().connections.values().flat_map(|connection| connection.warnings()).collect()
    }

    fn forget(&self) {
        self.keys.read().connections.values().for_each(|connection| connection.forget());
    }

    /// The longest of those that are connected to.
    fn deadline(&self) -> Duration {
        let deadlines = self.keys.read().connections.values().map(|connection| connection.deadline()).max();
        deadlines.unwrap_or(Duration::from_secs(5))
    }
}

impl fmt::Debug for Ring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ring").field("keys", &self.keys.read().references).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kms::{KmsErrorKind, LocalKms};

    const VOLUME: VolumeId = VolumeId([1; 16]);

    fn key(directory: &std::path::Path, name: &str, byte: u8) -> String {
        let path = directory.join(name);
        std::fs::write(&path, data_encoding::BASE64.encode(&[byte; 32])).unwrap();
        path.to_str().unwrap().to_owned()
    }

    #[test]
    fn each_secret_is_unwrapped_where_it_was_wrapped_and_new_ones_are_wrapped_by_the_primary() {
        let directory = tempfile::tempdir().unwrap();
        let [a, b] = [("a", 1), ("b", 2)].map(|(name, byte)| key(directory.path(), name, byte));
        let connected = Arc::new(parking_lot::Mutex::new(Vec::new()));
        let seen = Arc::clone(&connected);
        let ring = Ring::new(Box::new(move |reference| {
            seen.lock().push(reference.to_owned());
            Ok(Arc::new(LocalKms::new(reference.as_ref())?))
        }));
        let secret = Secret32::take(&mut [7; 32]);
        ring.set_keys(vec![(ring.at(&a).unwrap().current().unwrap(), a.clone())], &a);
        let by_a = ring.wrap(&secret, VOLUME).unwrap();
        let ids = [&a, &b].map(|reference| (ring.connect(reference).unwrap().current().unwrap(), reference.clone()));
        connected.lock().clear();
        ring.set_keys(ids.to_vec(), &b);
        let by_b = ring.wrap(&secret, VOLUME).unwrap();
        assert_eq!((&by_a.kek, &by_b.kek), (&ids[0].0, &ids[1].0));
        for wrapped in [&by_a, &by_b] {
            assert_eq!(ring.unwrap(wrapped, VOLUME).unwrap().secret.expose(), secret.expose());
        }
        // Once each, and only when it was needed.
        assert_eq!(connected.lock().join(" "), b);
        std::fs::remove_file(&a).unwrap();
        assert_eq!(ring.unwrap(&by_a, VOLUME).unwrap_err().kind, KmsErrorKind::Refused);
        assert!(ring.unwrap(&by_b, VOLUME).is_ok());
        // A key that was left is not asked any more: whoever is asked does not know it.
        ring.set_keys(ids[1..].to_vec(), &b);
        assert!(ring.unwrap(&by_a, VOLUME).is_err());
    }
}
