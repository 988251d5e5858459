//! Proving that a volume's keys are gone: what the KMS says of them, what it refuses, and what is left on the disk. The
//! certificate says what was shown and what was not; it never takes silence, or a key that can be brought back, for a
//! key that is destroyed.
//!
//! [`gather`] collects the evidence, [`Evidence::certificate`] puts it together as JSON, [`SigningKey`] signs that, and
//! [`page()`] prints it.

mod conditions;
mod keys;
mod merkle;
mod page;
mod randomness;
mod scan;
mod signature;
mod trail;

pub use keys::{KeyEvidence, Verdict};
pub use page::page;
pub use scan::{Foreign, Scan, root_now};
pub use signature::{NotSigned, SigningKey, fingerprint, verify};
pub use trail::Trail;

use crate::fs::volume::{Holder, Volume};
use crate::kms::ConnectOptions;
use data_encoding::HEXLOWER;
use serde_json::{Value, json};
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::time::SystemTime;

/// What a certificate calls itself.
pub const KIND: &str = "kmsfs certificate of the state of a volume's keys";
const VERSION: u32 = 1;

/// A mount of the volume, as far as this machine knows of one.
#[derive(Clone, Debug)]
pub struct Mounted {
    /// Who has it.
    pub holder: Holder,
    /// Its keys were wiped: it says that it is locked. `None` if it could not be asked.
    pub locked: Option<bool>,
}

/// All that was found out.
#[derive(Debug)]
pub struct Evidence {
    /// When.
    pub made: SystemTime,
    /// About each KEK.
    pub keys: Vec<KeyEvidence>,
    /// About the store.
    pub scan: Scan,
    /// About the past.
    pub trail: Trail,
    /// Who has the volume mounted.
    pub mounted: Option<Mounted>,
}

/// Asks the KMS, reads the audit log and looks at every byte of the store. `None` if it was told to stop.
///
/// # Errors
/// The store's.
pub fn gather(
    volume: &Volume,
    options: &ConnectOptions,
    mounted: Option<Mounted>,
    threads: usize,
    progress: &AtomicU64,
    stop: &AtomicBool,
) -> io::Result<Option<Evidence>> {
    let Some(scan) = scan::scan(volume, volume.root(), threads, progress, stop)? else { return Ok(None) };
    let trail = Trail::read(volume)?;
    // Last, so that the certificate is about the moment at which it is made.
    let ring = volume.ring(options.clone(), None);
    let keys = volume.record().keks.iter().map(|kek| keys::examine(kek, volume, &scan.envelopes, &ring)).collect();
    Ok(Some(Evidence { made: SystemTime::now(), keys, scan, trail, mounted }))
}

impl Evidence {
    /// The weakest of what was shown of each key that opens anything of the volume.
    pub fn verdict(&self) -> Verdict {
        let unknown = self.unknown_keks() > 0;
        let mounted = self.mounted.as_ref().map(|mounted| match mounted.locked {
            Some(true) => Verdict::Destroyed,
            Some(false) => Verdict::Readable,
            None => Verdict::NotShown,
        });
        let keys = self.keys.iter().map(KeyEvidence::verdict);
        let all = keys.chain(mounted).chain(unknown.then_some(Verdict::NotShown));
        all.min().unwrap_or(Verdict::NotShown)
    }

    /// Files with an envelope of a KEK that the record does not list.
    fn unknown_keks(&self) -> u64 {
        let known = |generation: &u32| self.keys.iter().any(|key| key.generation == *generation);
        let envelopes = &self.scan.envelopes;
        let counts = envelopes.files.iter().chain(&envelopes.recovery);
        counts.filter(|(generation, _)| !known(generation)).map(|(_, files)| files).sum()
    }

    /// Until when a key can be brought back, as far as the KMS says.
    fn recoverable_until(&self) -> Option<SystemTime> {
        self.keys.iter().filter_map(KeyEvidence::until).max()
    }

    /// The certificate, to be signed.
    pub fn certificate(&self, volume: &Volume) -> Value {
        let (record, verdict) = (volume.record(), self.verdict());
        let time = |time: SystemTime| humantime::format_rfc3339_seconds(time).to_string();
        let scan = &self.scan;
        json!({
            "kind": KIND,
            "version": VERSION,
            "made": time(self.made),
            "made_by": format!("kmsfs {}", env!("CARGO_PKG_VERSION")),
            "host": crate::audit::clean(&rustix::system::uname().nodename().to_string_lossy()),
            "verdict": verdict.name(),
            "statement": verdict.statement(self.recoverable_until().map(time).as_deref()),
            "recoverable_until": self.recoverable_until().map(time),
            "volume": {
                "id": record.id.to_string(),
                "record_generation": record.generation,
                "record_authenticated": false,
                "names": if record.plain_names { "plain: names can be read without any key" } else { "encrypted" },
                "chunk_size": record.chunk_size.bytes(),
                "files_per_envelope": record.files_per_envelope,
            },
            "keys": self.keys.iter().map(|key| key.to_json(&scan.envelopes)).collect::<Vec<_>>(),
            "files_of_unknown_keys": self.unknown_keks(),
            "store": {
                "names_of_files": scan.files,
                "directories": scan.directories,
                "symbolic_links": scan.symlinks,
                "others": scan.others,
                "bytes": scan.bytes,
                "not_ciphertext_count": scan.foreign_count,
                "not_ciphertext": scan.foreign,
                "windows_tested": scan.tested.windows,
                "windows_suspicious": scan.tested.suspicious,
                "bytes_in_windows_too_short": scan.tested.too_short,
                "bytes_zero": scan.tested.zeros,
                "false_positives": randomness::FALSE_POSITIVES,
                "not_tested": "journal/ and audit/ are known by their names only; what is as dense as ciphertext \
                               (compressed, or encrypted by somebody else) is not told from it",
            },
            "headers": {
                "root": HEXLOWER.encode(&scan.root),
                "leaves": scan.leaves,
                "rule": merkle::RULE,
            },
            "mounted": self.mounted.as_ref().map(|mounted| json!({
                "holder": crate::audit::clean(&mounted.holder.to_string()),
                "locked": mounted.locked,
            })),
            "audit_log": self.trail.to_json(&self.keys),
            "conditions": conditions::all(self, &record),
        })
    }
}
