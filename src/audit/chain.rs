//! The bytes of the log: lines, the chain over them, and the MAC of a checkpoint (format.md, "The audit log"). No I/O.
//! Invariant: a line carries the number after, and the hash of, the line before; nothing of a line is outside its hash.

use super::event::Event;
use crate::crypto::Secret32;
use crate::units::VolumeId;
use serde::Serialize;
use serde_json::Value;
use std::fmt;
use std::time::SystemTime;

/// The longest line that is read, in bytes.
pub(super) const LONGEST_LINE: usize = 1 << 20;

/// How far a chain goes: how many lines it has, and the hash of the last one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Head {
    /// The number of the last line, counted from 1; 0 before the first.
    pub seq: u64,
    /// BLAKE3 of the last line without its newline; zeros before the first.
    pub hash: [u8; 32],
}

impl fmt::Display for Head {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.seq, hex(&self.hash))
    }
}

#[derive(Serialize)]
struct Line<'a> {
    seq: u64,
    time: &'a str,
    #[serde(flatten)]
    event: &'a Event,
    prev: &'a str,
}

/// A line that was read.
#[derive(Clone, Debug)]
pub struct Read {
    /// Its number.
    pub seq: u64,
    /// When it happened, as it says.
    pub time: String,
    /// What happened, as it says.
    pub event: String,
    /// The hash of the line before, as it says.
    pub prev: [u8; 32],
    /// All of it.
    pub value: Value,
    /// Its own hash.
    pub hash: [u8; 32],
}

impl Head {
    /// The next line, with its newline, and the head after it.
    pub(super) fn line(&self, time: &str, event: &Event) -> serde_json::Result<(Vec<u8>, Self)> {
        let seq = self.seq + 1;
        let mut bytes = serde_json::to_vec(&Line { seq, time, event, prev: &hex(&self.hash) })?;
        let hash = *blake3::hash(&bytes).as_bytes();
        bytes.push(b'\n');
        Ok((bytes, Self { seq, hash }))
    }

    /// The head after a line, which has to be the next one.
    ///
    /// # Errors
    /// What is wrong with it, in words.
    pub fn follow(&self, line: &Read) -> Result<Self, String> {
        if line.seq != self.seq + 1 {
            return Err(format!("line {} follows line {}", line.seq, self.seq));
        }
        if line.prev != self.hash {
            return Err(format!(
                "line {} does not carry the hash of line {}: one of the two was changed",
                line.seq, self.seq
            ));
        }
        Ok(Self { seq: line.seq, hash: line.hash })
    }
}

impl Read {
    /// Reads a line without its newline.
    ///
    /// # Errors
    /// What is wrong with it, in words.
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        if bytes.len() > LONGEST_LINE {
            return Err("a line is too long".into());
        }
        let value: Value = serde_json::from_slice(bytes).map_err(|_| "a line is not JSON")?;
        let text = |name: &str| value[name].as_str().map(str::to_owned).ok_or_else(|| format!("a line has no {name}"));
        let seq = value["seq"].as_u64().filter(|seq| *seq > 0).ok_or("a line has no seq")?;
        let (time, event, prev) = (text("time")?, text("event")?, text("prev")?);
        let prev = data_encoding::HEXLOWER.decode(prev.as_bytes()).ok().and_then(|bytes| bytes.try_into().ok());
        let prev = prev.ok_or("a line has no hash of the line before")?;
        Ok(Self { seq, time, event, prev, hash: *blake3::hash(bytes).as_bytes(), value })
    }
}

/// The MAC of a checkpoint: keyed BLAKE3 of the volume, the series, the checkpoint's own number and time, and the hash of
/// the line before it, which stands for all lines before.
pub fn mac(key: &Secret32, volume: VolumeId, series: &str, before: &Head, time: &str) -> String {
    let mut hasher = zeroize::Zeroizing::new(blake3::Hasher::new_keyed(key.expose()));
    for text in [series, time] {
        hasher.update(&(text.len() as u64).to_le_bytes()).update(text.as_bytes());
    }
    hasher.update(&volume.0).update(&(before.seq + 1).to_le_bytes()).update(&before.hash);
    hex(hasher.finalize().as_bytes())
}

/// A moment as lines tell it: UTC, to the millisecond.
pub fn stamp(time: SystemTime) -> String {
    humantime::format_rfc3339_millis(time).to_string()
}

/// Hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    data_encoding::HEXLOWER.encode(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, UNIX_EPOCH};

    #[test]
    fn the_form_of_a_line_and_of_a_mac_is_frozen() {
        let time = stamp(UNIX_EPOCH + Duration::from_millis(1_700_000_000_123));
        let (line, head) = Head::default().line(&time, &Event::Unlock).unwrap();
        let expected = concat!(
            r#"{"seq":1,"time":"2023-11-14T22:13:20.123Z","event":"unlock","#,
            r#""prev":"0000000000000000000000000000000000000000000000000000000000000000"}"#,
            "\n"
        );
        assert_eq!(String::from_utf8(line).unwrap(), expected);
        assert_eq!(head.hash, *blake3::hash(expected.trim_end().as_bytes()).as_bytes());
        let key = Secret32::take(&mut [7; 32]);
        let mac = mac(&key, VolumeId([1; 16]), "main", &Head { seq: 1, hash: [2; 32] }, &time);
        assert_eq!(mac, FROZEN_MAC);
    }

    const FROZEN_MAC: &str = "dccaba74217d801406aa95851dac945501f29f822bfaa0d743e1cd18ba00af83";

    #[test]
    fn a_mac_depends_on_everything_that_it_stands_for() {
        let (one, two) = (Secret32::take(&mut [1; 32]), Secret32::take(&mut [2; 32]));
        let (volume, head) = (VolumeId([1; 16]), Head { seq: 5, hash: [9; 32] });
        let all = [
            mac(&one, volume, "main", &head, "t"),
            mac(&two, volume, "main", &head, "t"),
            mac(&one, VolumeId([2; 16]), "main", &head, "t"),
            mac(&one, volume, "shared-1", &head, "t"),
            mac(&one, volume, "main", &Head { seq: 6, ..head }, "t"),
            mac(&one, volume, "main", &Head { hash: [8; 32], ..head }, "t"),
            mac(&one, volume, "main", &head, "u"),
            mac(&one, volume, "mai", &head, "nt"),
        ];
        assert_eq!(all.iter().collect::<std::collections::HashSet<_>>().len(), all.len());
    }

    #[test]
    fn only_the_next_line_follows() {
        let (first, head) = Head::default().line("t", &Event::Unlock).unwrap();
        let (second, after) = head.line("t", &Event::Unlock).unwrap();
        let read = |line: &[u8]| Read::parse(&line[..line.len() - 1]).unwrap();
        assert_eq!(Head::default().follow(&read(&first)), Ok(head));
        assert_eq!(head.follow(&read(&second)), Ok(after));
        assert!(head.follow(&read(&first)).is_err());
        assert!(Head::default().follow(&read(&second)).is_err());
        let changed = String::from_utf8(second).unwrap().replace("unlock", "mount");
        assert_ne!(head.follow(&read(changed.as_bytes())), Ok(after));
        assert!(Head { hash: [1; 32], ..head }.follow(&read(changed.as_bytes())).is_err());
    }

    #[test]
    fn what_is_no_line_is_refused() {
        for text in ["", "{}", "[]", "null", "\0\0", r#"{"seq":1,"time":"t","event":"e","prev":"00"}"#] {
            assert!(Read::parse(text.as_bytes()).is_err(), "{text}");
        }
    }
}
