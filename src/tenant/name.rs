//! What a tenant can be called: the same name is a file's, a directory's and a systemd instance's.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// The longest name, in characters.
const LONGEST: usize = 64;

/// A tenant's name: 1 to 64 of `A-Z a-z 0-9 . _ -`, the first a letter or digit.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TenantName(String);

impl TenantName {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for TenantName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let fits = text.len() <= LONGEST
            && text.starts_with(|first: char| first.is_ascii_alphanumeric())
            && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'));
        let reason =
            || format!("a tenant's name is 1 to {LONGEST} of A-Z a-z 0-9 . _ - and begins with a letter or digit");
        if fits { Ok(Self(text.to_owned())) } else { Err(reason()) }
    }
}

impl TryFrom<String> for TenantName {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<TenantName> for String {
    fn from(name: TenantName) -> Self {
        name.0
    }
}

impl fmt::Display for TenantName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_safe_in_a_path_and_in_a_unit() {
        for name in ["acme", "A1", "tenant-17.eu_west", &"x".repeat(64)] {
            assert_eq!(name.parse::<TenantName>().unwrap().as_str(), name);
        }
        for name in ["", ".", "..", ".hidden", "-o", "a/b", "a b", "a\nb", "ä", "a@b", &"x".repeat(65)] {
            assert!(name.parse::<TenantName>().is_err(), "{name}");
        }
    }
}
