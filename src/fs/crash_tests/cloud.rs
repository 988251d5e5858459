//! Several keys of a cloud, with versions: what they are asked is counted, and each can be told to refuse.

use super::*;
use crate::format::volume::KekRole;
use crate::fs::volume::RecoveryKek;
use crate::kms::{Facts, KekId, KmsError, KmsErrorKind, Ring, Unwrapped, WrapAlgorithm, Wrapped};
use crate::units::VolumeId;
use parking_lot::Mutex;
use std::sync::atomic::AtomicU32;

/// A key of a cloud, with versions.
#[derive(Default)]
pub(super) struct Key {
    name: String,
    pub version: AtomicU32,
    pub refuses: AtomicBool,
    unwraps: AtomicU64,
    wraps: AtomicU64,
}

/// A connection to one: it wraps by the version that was the newest when it was made.
pub(super) struct Connection(Arc<Key>, u32);

impl Kms for Connection {
    fn wrap(&self, secret: &crate::crypto::Secret32, _volume: VolumeId) -> Result<Wrapped, KmsError> {
        self.0.wraps.fetch_add(1, Ordering::Relaxed);
        let kek = KekId(format!("{}#{}", self.0.name, self.1));
        let pad = blake3::hash(kek.0.as_bytes());
        // A nonce makes each wrap one of its own.
        let nonce = crate::crypto::random_id();
        let blob = nonce.iter().copied().chain(secret.expose().iter().zip(pad.as_bytes()).map(|(a, b)| a ^ b));
        Ok(Wrapped { kek, algorithm: WrapAlgorithm::LocalAes256Gcm, blob: blob.collect() })
    }

    fn unwrap(&self, wrapped: &Wrapped, _volume: VolumeId) -> Result<Unwrapped, KmsError> {
        self.0.unwraps.fetch_add(1, Ordering::Relaxed);
        if self.0.refuses.load(Ordering::Relaxed) {
            return Err(KmsError::new(KmsErrorKind::Refused, "disabled"));
        }
        assert_eq!(wrapped.kek.0.split('#').next(), Some(&self.0.name[..]), "asked for what another key wrapped");
        let pad = blake3::hash(wrapped.kek.0.as_bytes());
        let bytes: Vec<u8> = wrapped.blob[16..].iter().zip(pad.as_bytes()).map(|(a, b)| a ^ b).collect();
        let secret = crate::crypto::Secret32::from_slice(&bytes).unwrap();
        Ok(Unwrapped { secret, ids: crate::kms::CallIds::default() })
    }

    fn current(&self) -> Result<KekId, KmsError> {
        Ok(self.facts()?.kek)
    }

    fn facts(&self) -> Result<Facts, KmsError> {
        Ok(Facts::new(KekId(format!("{}#{}", self.0.name, self.0.version.load(Ordering::Relaxed))), "fake"))
    }

    fn deadline(&self) -> std::time::Duration {
        std::time::Duration::from_secs(5)
    }
}

/// Several keys.
#[derive(Clone, Default)]
pub(super) struct Cloud(Arc<Mutex<BTreeMap<String, Arc<Key>>>>);

impl Cloud {
    pub fn key(&self, name: &str) -> Arc<Key> {
        let key = || Arc::new(Key { name: name.to_owned(), ..Key::default() });
        Arc::clone(self.0.lock().entry(name.to_owned()).or_insert_with(key))
    }

    pub fn connect(&self, name: &str) -> Connection {
        let key = self.key(name);
        let version = key.version.load(Ordering::Relaxed);
        Connection(key, version)
    }

    pub fn calls(&self, name: &str) -> (u64, u64) {
        let key = self.key(name);
        (key.unwraps.load(Ordering::Relaxed), key.wraps.load(Ordering::Relaxed))
    }

    pub fn make(&self, name: &str, recovery: Option<&str>, files_per_envelope: u32) -> MemStore {
        let store = MemStore::default();
        let second = recovery.map(|name| (name, self.connect(name)));
        let second = second.as_ref().map(|(reference, kms)| RecoveryKek { reference, kms });
        let options = InitOptions { files_per_envelope, ..OPTIONS };
        fill(&*store.root(), name, &self.connect(name), options, second).unwrap();
        store.sync_all().unwrap();
        store
    }

    pub fn mount(&self, store: &MemStore) -> Fs {
        self.mount_by(store, KekRole::Primary).unwrap()
    }

    pub fn mount_by(&self, store: &MemStore, role: KekRole) -> Result<Fs, KmsError> {
        let read_only = role == KekRole::Recovery;
        self.open(store, role, read_only)
    }

    pub fn open(&self, store: &MemStore, role: KekRole, read_only: bool) -> Result<Fs, KmsError> {
        let volume = Volume::read(store.root(), Path::new("memory")).unwrap().opened_by(role);
        let (journal, _) = recovery::open(&*volume.journal().unwrap(), &*volume.tree().unwrap(), LOG_LEN).unwrap();
        let context = volume.context(journal);
        let cloud = self.clone();
        let ring = Arc::new(Ring::new(Box::new(move |name| Ok(Arc::new(cloud.connect(name))))));
        let (references, primary) = volume.references();
        ring.set_keys(references, &primary);
        let key = match volume.unlock(&ring) {
            Ok(unwrapped) => unwrapped.secret,
            Err(volume::VolumeError::Kms(error)) => return Err(error),
            Err(other) => panic!("{other}"),
        };
        let kms: Arc<dyn Kms> = Arc::<Ring>::clone(&ring);
        let leases = Leases::new(kms, volume.record().id, NonZeroUsize::new(100).unwrap()).with_rate(1 << 20);
        let fs = Fs::new(volume, Arc::new(store.clone()), context, Arc::new(leases), key, read_only).unwrap();
        Ok(fs.with_ring(ring))
    }
}
