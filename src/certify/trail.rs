//! What the audit log of a volume says of its past, as far as that matters for whether its keys were all there was.

use super::keys::KeyEvidence;
use crate::audit::{self, Cursor, Verdict, clean};
use crate::fs::volume::Volume;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::io;

/// The most imports and exports that a certificate lists.
const LISTED: usize = 100;

/// What was found.
#[derive(Debug, Default)]
pub struct Trail {
    /// When the volume was made, if that line is there.
    pub made: Option<String>,
    /// Plaintext that existed before, and was imported.
    pub imports: Vec<Value>,
    /// Plaintext that was written elsewhere.
    pub exports: Vec<Value>,
    /// KEKs that were in use at some time.
    keks: BTreeSet<String>,
    series: Vec<Verdict>,
}

impl Trail {
    /// Reads the whole log. A log that is not there says nothing.
    ///
    /// # Errors
    /// The store's.
    pub fn read(volume: &Volume) -> io::Result<Self> {
        let directory = match audit::directory(volume.path()) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            other => other?,
        };
        let mut trail = Self { series: audit::verify(&*directory, volume.record().id, None, None)?, ..Self::default() };
        for line in audit::tail(&*directory, &mut Cursor::default())? {
            let Some(read) = line.read else { continue };
            match read.event.as_str() {
                "init" => trail.made = Some(clean(&read.time)),
                "import" => add(&mut trail.imports, shown(&read.value, "source"), "source"),
                "export" => add(&mut trail.exports, shown(&read.value, "target"), "target"),
                _ => (),
            }
            if let ("init" | "mount" | "kek-version", Some(kek)) = (read.event.as_str(), read.value["kek"].as_str()) {
                trail.keks.insert(clean(kek));
            }
            // What a rewrap has given up opens what was copied before.
            if let ("rewrap-ended", Some(retired)) = (read.event.as_str(), read.value["retired"].as_array()) {
                trail.keks.extend(retired.iter().filter_map(Value::as_str).map(clean));
            }
        }
        for list in [&mut trail.imports, &mut trail.exports] {
            list.truncate(LISTED);
        }
        Ok(trail)
    }

    /// Whether the log is there from the beginning and nothing in it is broken.
    pub fn is_whole(&self) -> bool {
        self.made.is_some() && self.series.iter().all(|series| series.broken.is_none() && series.first_seq <= 1)
    }

    /// KEKs that the log names, and the record does not.
    pub(super) fn other_keks(&self, keys: &[KeyEvidence]) -> Vec<&String> {
        self.keks.iter().filter(|kek| !keys.iter().any(|key| key.id == **kek)).collect()
    }

    pub(super) fn to_json(&self, keys: &[KeyEvidence]) -> Value {
        json!({
            "made": self.made,
            "whole": self.is_whole(),
            "authenticated": false,
            "series": self.series,
            "imports": self.imports,
            "exports": self.exports,
            "keys_not_in_the_record": self.other_keks(keys),
        })
    }
}

/// Adds what a line says. The line of an end takes the place of that of the beginning; what never ended counts as well.
fn add(list: &mut Vec<Value>, line: Value, other: &str) {
    if list.last().is_some_and(|last| last["files"] == 0 && last[other] == line[other]) {
        list.pop();
    }
    list.push(line);
}

/// What a line says of an import or export.
fn shown(line: &Value, other: &str) -> Value {
    let text = |name: &str| line[name].as_str().map(clean);
    json!({
        "time": text("time"),
        (other): text(other),
        "files": line["files"].as_u64(),
        "bytes": line["bytes"].as_u64(),
        "complete": line["complete"].as_bool(),
    })
}
