//! The names in a key's id: the key's own, which compares without regard to case, and its versions'.

use super::identity::random;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::cmp::Ordering;
use std::fmt;
use std::io;
use std::str::FromStr;

/// A key's name: 1 to 127 letters, digits and dashes. `Tenant` and `tenant` are one key, written as it was created.
#[derive(Clone, Debug)]
pub struct KeyName(String);

/// The text is no key name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotAKeyName;

impl fmt::Display for NotAKeyName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key's name is 1 to 127 letters, digits and dashes")
    }
}

impl std::error::Error for NotAKeyName {}

impl FromStr for KeyName {
    type Err = NotAKeyName;

    fn from_str(text: &str) -> Result<Self, NotAKeyName> {
        let good = (1..=127).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
        if good { Ok(Self(text.to_owned())) } else { Err(NotAKeyName) }
    }
}

impl KeyName {
    /// As it was written.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The one form that all its spellings share.
    pub fn folded(&self) -> String {
        self.0.to_ascii_lowercase()
    }

    #[cfg(test)]
    pub(super) fn known(text: &str) -> Self {
        Self(text.to_owned())
    }
}

impl fmt::Display for KeyName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Ord for KeyName {
    fn cmp(&self, other: &Self) -> Ordering {
        let folded = |name: &'_ Self| name.0.bytes().map(|b| b.to_ascii_lowercase()).collect::<Vec<_>>();
        folded(self).cmp(&folded(other))
    }
}

impl PartialOrd for KeyName {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for KeyName {
    fn eq(&self, other: &Self) -> bool {
        self.0.eq_ignore_ascii_case(&other.0)
    }
}

impl Eq for KeyName {}

impl Serialize for KeyName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for KeyName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// A new version's name: 32 hexadecimal digits.
pub fn new_version() -> io::Result<String> {
    Ok(data_encoding::HEXLOWER.encode(&random::<16>()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spellings_of_a_name_are_one_key() {
        assert_eq!(KeyName::known("Tenant-A"), KeyName::known("tenant-a"));
        assert_ne!(KeyName::known("tenant-a"), KeyName::known("tenant-b"));
    }

    #[test]
    fn a_name_is_never_a_path() {
        for text in ["", "..", "a/b", "a.b", "ä", &"a".repeat(128)] {
            assert_eq!(text.parse::<KeyName>().err(), Some(NotAKeyName), "{text}");
        }
    }
}
