//! The conditions of NIST SP 800-88 Rev. 1 for cryptographic erase (section 2.6), one by one, each with the evidence for
//! it or the word that it was not shown. The conditions are given in our own words.

use super::Evidence;
use super::keys::{KeyEvidence, Verdict};
use crate::format::volume::VolumeRecord;
use serde_json::{Value, json};

/// How far a condition is met.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Met {
    Shown,
    /// Shown to be otherwise.
    Contradicted,
    NotShown,
}

/// All conditions.
pub(super) fn all(evidence: &Evidence, record: &VolumeRecord) -> Vec<Value> {
    let rows = [
        before_encryption(evidence),
        only_ciphertext(evidence, record),
        keys_are_known(evidence),
        wrapping_keys(evidence),
        all_copies(evidence),
        escrow(evidence),
        memory(evidence),
        strength(evidence),
        module(),
        copies_of_data(evidence),
    ];
    rows.into_iter()
        .enumerate()
        .map(|(number, (section, condition, met, words))| {
            let met = match met {
                Met::Shown => "shown",
                Met::Contradicted => "contradicted",
                Met::NotShown => "not shown",
            };
            json!({
                "number": number + 1,
                "source": format!("NIST SP 800-88 Rev. 1, section {section}"),
                "condition": condition,
                "result": met,
                "evidence": words,
            })
        })
        .collect()
}

type Row = (&'static str, &'static str, Met, String);

fn before_encryption(evidence: &Evidence) -> Row {
    let condition = "No sensitive data was stored in the clear, unsanitized, before encryption was turned on";
    let trail = &evidence.trail;
    let (met, words) = if !trail.imports.is_empty() {
        let from: Vec<_> = trail.imports.iter().filter_map(|import| import["source"].as_str()).collect();
        let words = format!(
            "The audit log says that files which existed in the clear were imported, from: {}. Whether the places where \
             they were have been sanitized was not shown.",
            from.join("; ")
        );
        (Met::Contradicted, words)
    } else if trail.is_whole() {
        let words = "The audit log is there from the beginning, and knows of no import. What was copied in through a \
                     mount may have existed in the clear elsewhere: the log does not see that.";
        (Met::NotShown, words.to_owned())
    } else {
        (Met::NotShown, "The audit log is missing, broken, or not there from the beginning.".to_owned())
    };
    ("2.6.1", condition, met, words)
}

fn only_ciphertext(evidence: &Evidence, record: &VolumeRecord) -> Row {
    let condition = "All data that is to be erased was encrypted before it was stored";
    let scan = &evidence.scan;
    let names =
        if record.plain_names { " Names of files are not encrypted in this volume, and stay readable." } else { "" };
    let (met, words) = if scan.foreign_count > 0 {
        (
            Met::Contradicted,
            format!(
                "Places in the store that are not ciphertext of kmsfs: {}. They are listed.{names}",
                scan.foreign_count
            ),
        )
    } else {
        let words = format!(
            "Every one of {} names of files has a header of kmsfs, and {} windows of content were tested for randomness \
             without a finding. Sizes, times, owners, modes and the shape of the tree are not encrypted.{names}",
            scan.files, scan.tested.windows
        );
        (if record.plain_names { Met::Contradicted } else { Met::Shown }, words)
    };
    ("2.6.2", condition, met, words)
}

fn list(keys: impl Iterator<Item = impl AsRef<str>>) -> String {
    keys.map(|key| key.as_ref().to_owned()).collect::<Vec<_>>().join(", ")
}

fn keys_are_known(evidence: &Evidence) -> Row {
    let condition = "It is known where the keys are, those that wrap other keys included";
    let other = evidence.trail.other_keks(&evidence.keys);
    let all = format!("The volume record lists {}.", list(evidence.keys.iter().map(|key| &key.id)));
    let (met, words) = if evidence.unknown_keks() > 0 {
        (Met::NotShown, format!("{all} {} files need a key that it does not list.", evidence.unknown_keks()))
    } else if !other.is_empty() {
        let words = format!(
            "{all} The audit log names others that were in use: {}. They open nothing in this volume now; they do open \
             copies of it that were made then.",
            list(other.into_iter())
        );
        (Met::NotShown, words)
    } else {
        (Met::Shown, format!("{all} No file needs another one, and the audit log names no other."))
    };
    ("2.6.2", condition, met, words)
}

fn wrapping_keys(evidence: &Evidence) -> Row {
    let condition = "The keys that wrap the data's keys are sanitized";
    let row = |key: &KeyEvidence| format!("{}: {}", key.id, key.verdict().name());
    let words = format!(
        "{}. Each was asked for the volume key and for a sample of the files' envelopes.",
        list(evidence.keys.iter().map(row))
    );
    let met = match evidence.keys.iter().map(KeyEvidence::verdict).min() {
        Some(Verdict::Destroyed) => Met::Shown,
        Some(Verdict::NotShown | Verdict::Refused) | None => Met::NotShown,
        Some(Verdict::Readable | Verdict::Suspended | Verdict::Scheduled) => Met::Contradicted,
    };
    ("2.6.2", condition, met, words)
}

fn all_copies(evidence: &Evidence) -> Row {
    let condition = "All copies of the keys are sanitized, backups among them";
    let words = if evidence.keys.iter().any(KeyEvidence::is_raw) {
        "A raw key is as many copies as somebody made of it: that there are none cannot be shown."
    } else {
        "The keys cannot be read out of the service that holds them. Backups that were made of them with the service's \
         own means (for Key Vault: az keyvault key backup) could be restored there, and cannot be seen from here."
    };
    ("2.6.2, 2.6.3", condition, Met::NotShown, words.to_owned())
}

fn escrow(evidence: &Evidence) -> Row {
    let condition = "No key exists in escrow or for recovery";
    let recovery: Vec<_> = evidence.keys.iter().filter(|key| key.is_for_recovery()).collect();
    let (met, words) = if recovery.is_empty() && evidence.scan.envelopes.recovery.is_empty() {
        (Met::Shown, "The volume record lists no key for recovery, and no file has an envelope for one.".to_owned())
    } else if !recovery.is_empty() && recovery.iter().all(|key| key.verdict() == Verdict::Destroyed) {
        (
            Met::Shown,
            format!("For recovery there was {}, and it is destroyed.", list(recovery.iter().map(|key| &key.id))),
        )
    } else {
        let words = format!(
            "For recovery there is {}; {} files have an envelope for it.",
            list(recovery.iter().map(|key| format!("{} ({})", key.id, key.verdict().name()))),
            evidence.scan.envelopes.recovery.values().sum::<u64>()
        );
        (Met::Contradicted, words)
    };
    ("2.6.3", condition, met, words)
}

fn memory(evidence: &Evidence) -> Row {
    let condition = "No key is left in the memory of a running system";
    let (met, words) = match &evidence.mounted {
        Some(mounted) if mounted.locked == Some(true) => {
            let words = format!(
                "The volume is mounted {}; the mount says that it is locked, and wipes keys then. Other machines were not asked.",
                mounted.holder
            );
            (Met::NotShown, words)
        }
        Some(mounted) => (Met::Contradicted, format!("The volume is mounted {}.", mounted.holder)),
        None => {
            let words =
                "No process has this directory's volume mounted. Machines that mount a copy of it were not asked.";
            (Met::NotShown, words.to_owned())
        }
    };
    ("2.6.2", condition, met, words)
}

fn strength(evidence: &Evidence) -> Row {
    let condition = "The encryption has a strength of 128 bits at least, of keys with as much entropy";
    let weakest = evidence.keys.iter().map(|key| key.strength().unwrap_or(0)).min().unwrap_or(0);
    let words = format!(
        "Content: AES-256-GCM under a key for each file; names: AES-256-SIV. All keys are 256 bits from the operating \
         system's generator. They are wrapped by keys of a strength of {weakest} bits at least (SP 800-57: RSA of 2048 \
         bits 112, of 3072 bits 128)."
    );
    ("2.6.3", condition, if weakest >= 128 { Met::Shown } else { Met::Contradicted }, words)
}

fn module() -> Row {
    let condition = "The cryptography is a validated or otherwise examined implementation";
    let words = "kmsfs uses AWS-LC and RustCrypto in builds that are not validated by FIPS 140. Whether the service that \
                 held the keys uses a validated module was not shown.";
    ("2.6.3", condition, Met::NotShown, words.to_owned())
}

fn copies_of_data(evidence: &Evidence) -> Row {
    let condition = "No copy of the data exists in the clear";
    let (met, words) = if evidence.trail.exports.is_empty() {
        let words = "The audit log knows of no export. What applications read through mounts and wrote elsewhere, it \
                     does not see.";
        (Met::NotShown, words.to_owned())
    } else {
        let to: Vec<_> = evidence.trail.exports.iter().filter_map(|export| export["target"].as_str()).collect();
        (
            Met::Contradicted,
            format!("The audit log says that the volume was exported in the clear, to: {}.", to.join("; ")),
        )
    };
    ("2.6.2", condition, met, words)
}
