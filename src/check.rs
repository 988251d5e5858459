//! Checking volumes: what can be seen without a key ([`structure()`]), authenticating everything ([`Deep`]), and taking
//! damaged files aside ([`quarantine()`]); and counting what each key has wrapped ([`count_keys`]). Files are read by the code that serves mounts; nothing is parsed twice.
//! Depends on `fs` and below. Invariant: nothing here changes a volume but [`quarantine()`].

mod deep;
mod finding;
mod keys;
mod quarantine;
mod queue;
mod saved;
mod structure;
mod walk;

pub use deep::{Deep, Progress, Stopped};
pub use finding::{Finding, Findings, Kind, Severity, printable};
pub use keys::{KeyCounts, count_keys};
pub use quarantine::{QuarantineError, quarantine};
pub use queue::Order;
pub use saved::Saved;
pub use structure::Totals;
pub use walk::size;

use crate::file::Context;
use crate::fs::volume::Volume;
use crate::journal::recovery::{Inspection, Recovery};
use std::io;
use std::sync::atomic::AtomicBool;

/// What the journal says of itself, before anything is recovered.
pub fn journal(inspection: &Inspection, findings: &mut Findings) {
    if inspection.damaged {
        findings.add(Kind::Journal, b"journal", None, "neither log has a header that can be read");
    }
}

/// What a recovery has found to be damaged.
pub fn recovery(found: &Recovery, findings: &mut Findings) {
    for at in &found.damaged_at {
        findings.add(Kind::Journal, b"journal", None, format!("a record at {at} is damaged, and later ones are whole"));
    }
}

/// Looks at everything that can be seen without a key; returns how much there is, `None` if it was told to stop.
///
/// # Errors
/// The store's, if the tree itself cannot be read.
pub fn structure(
    volume: &Volume,
    context: &Context,
    findings: &mut Findings,
    stop: &AtomicBool,
) -> io::Result<Option<Totals>> {
    let record = volume.record();
    let totals = structure::check(&record, context, &*volume.tree()?, &*volume.links()?, findings, stop)?;
    let lost = volume.lost_if_any().and_then(|lost| lost.map_or(Ok(()), |lost| structure::lost(&*lost, findings)));
    if let Err(error) = lost {
        findings.add(Kind::Io, b"lost", None, error.to_string());
    }
    Ok(totals)
}
