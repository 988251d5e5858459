//! The audit log of a volume: what happened to it, as JSON lines in its directory `audit/`, each with the hash of the one
//! before, and authenticated by checkpoints that need the volume key. Depends on the store, the seam of the KMS, and keys.
//!
//! [`Audit`] is the log of a mount, written by a thread of its own; everybody who has something to say has a
//! [`Recorder`]. [`append`] is for commands that have one thing to say. [`verify`](verify()) and [`tail`] are for who reads it.
//! Invariant: nobody who records waits for a disk, and nothing that goes wrong with the log fails anything else.

mod chain;
mod claim;
mod event;
mod limiter;
mod log;
mod read;
mod recent;
mod verify;
mod writer;

pub use chain::{Head, Read, hex, mac};
pub use claim::{Claim, MAIN};
pub use event::{Call, Event, Settings, clean, envelope_digest};
pub use log::{FILE_LEN, Found, KEEP, Limits, Log};
pub use read::{Cursor, Tail, tail};
pub use recent::Recent;
pub use verify::{Broken, Verdict, verify};
pub use writer::{Recorder, Status};

use crate::crypto::Secret32;
use crate::store::dir::DirStore;
use crate::store::{Store, StoreDir};
use crate::units::VolumeId;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

/// The log's directory in a volume.
pub const DIRECTORY: &str = "audit";
/// For how long the end of a mount waits for its last lines.
const PATIENCE: Duration = Duration::from_secs(5);
/// For how long a mount waits for a command that writes to the main series.
const COMMANDS: Duration = Duration::from_secs(2);

/// The log of a mount. Dropping it writes what is left, and a last checkpoint if the volume is unlocked.
pub struct Audit {
    recorder: Recorder,
    shared: Arc<writer::Shared>,
    /// What was found at the opening.
    pub found: Found,
    _claim: Option<Claim>,
}

impl Audit {
    /// Opens the log of a volume and starts the thread that writes it.
    ///
    /// # Errors
    /// `WouldBlock` if another process writes it; the system's.
    pub fn open(volume: &Path, id: VolumeId, shared: bool, limits: Limits) -> io::Result<Self> {
        let path = volume.join(DIRECTORY);
        let claim = Self::claim(&path, shared)?;
        let (log, found) = Log::open(directory(volume)?, id, &claim.series, limits)?;
        Self::start(log, found, Some(claim))
    }

    /// A command that has one thing to say is waited for. Should something else keep the main series, another one will do.
    fn claim(path: &Path, shared: bool) -> io::Result<Claim> {
        let until = Instant::now() + COMMANDS;
        loop {
            match Claim::take(path, shared) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && !shared => {
                    if Instant::now() >= until {
                        return Claim::take(path, true);
                    }
                    std::thread::sleep(Duration::from_millis(20));
                }
                other => return other,
            }
        }
    }

    fn start(log: Log, mut found: Found, claim: Option<Claim>) -> io::Result<Self> {
        let (recorder, shared) = Recorder::new(&log);
        let writer = writer::Writer::new(Arc::clone(&shared), log);
        std::thread::Builder::new().name("kmsfs-audit".into()).spawn(move || writer.run())?;
        for note in found.notes.drain(..) {
            recorder.record(note);
        }
        Ok(Self { recorder, shared, found, _claim: claim })
    }

    /// What to say things with.
    pub fn recorder(&self) -> &Recorder {
        &self.recorder
    }
}

impl Drop for Audit {
    fn drop(&mut self) {
        self.shared.stop();
        if !self.shared.ended(PATIENCE) {
            tracing::error!("the audit log's last lines could not be written within {PATIENCE:?}");
        }
        self.shared.wipe();
    }
}

/// The directory of a volume's log. A symbolic link in its place is not followed.
///
/// # Errors
/// The system's.
pub fn directory(volume: &Path) -> io::Result<Arc<dyn StoreDir>> {
    DirStore::open(volume)?.root().open_dir(DIRECTORY.as_bytes())
}

/// Notes events in the log of a volume, and returns when they are durable: into the main series, or one beside it if
/// somebody has the volume mounted. With a key, followed by a checkpoint.
///
/// # Errors
/// The system's.
pub fn append(volume: &Path, id: VolumeId, key: Option<Secret32>, events: &[Event]) -> io::Result<Head> {
    let path = volume.join(DIRECTORY);
    let claim = match Claim::take(&path, false) {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Claim::take(&path, true)?,
        other => other?,
    };
    let (mut log, found) = Log::open(directory(volume)?, id, &claim.series, Limits::default())?;
    for event in found.notes.iter().chain(events) {
        log.append(SystemTime::now(), event)?;
    }
    log.checkpoint(SystemTime::now(), || Box::new(key))?;
    log.sync()?;
    Ok(log.head())
}
