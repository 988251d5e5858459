//! The resource name of a key in Google Cloud KMS. No I/O.
//! Invariant: a [`GcpKek`] names one key, and each part of it can stand in a URL as it is.

use super::misconfigured;
use crate::kms::KmsError;
use std::fmt;

const FORM: &str = "write it as projects/PROJECT/locations/LOCATION/keyRings/RING/cryptoKeys/KEY, with \
                    /cryptoKeyVersions/N at the end to pin a version; \
                    gcloud kms keys list --location LOCATION --keyring RING prints it";

/// Before the resource name in other places that write it.
const PREFIXES: [&str; 4] =
    ["//cloudkms.googleapis.com/", "https://cloudkms.googleapis.com/v1/", "gcp-kms://", "gcpkms://"];

/// A key of Google Cloud KMS by its resource name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GcpKek {
    /// The project's id or number. A domain may stand before it: `example.com:PROJECT`.
    pub project: String,
    /// Where it is kept: `global`, `europe-west3` …
    pub location: String,
    /// The key ring.
    pub ring: String,
    /// The key in it.
    pub key: String,
    /// The one version that is used to wrap, or the primary one.
    pub version: Option<u64>,
}

impl GcpKek {
    /// Whether this looks like a Google key in one of the ways in which it is written.
    pub fn recognises(text: &str) -> bool {
        text.starts_with("projects/") || PREFIXES.iter().any(|prefix| text.starts_with(prefix))
    }

    /// Takes `projects/P/locations/L/keyRings/R/cryptoKeys/K[/cryptoKeyVersions/N]` apart.
    ///
    /// # Errors
    /// [`crate::kms::KmsErrorKind::Misconfigured`] with what is wrong and the right form.
    pub fn parse(text: &str) -> Result<Self, KmsError> {
        let wrong = |what: &str| misconfigured(format!("'{text}' is not a key of Google Cloud KMS: {what}"));
        if let Some(name) = PREFIXES.iter().find_map(|prefix| text.strip_prefix(prefix)) {
            return Err(wrong("it is more than the resource name").hint(format!("write {name}")));
        }
        let parts: Vec<&str> = text.split('/').collect();
        let ["projects", project, "locations", location, "keyRings", ring, "cryptoKeys", key, ref rest @ ..] =
            parts[..]
        else {
            return Err(wrong("its parts are not those of a key's name").hint(FORM));
        };
        let plain = |text: &str, more: &[u8]| {
            (1..=128).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric() || more.contains(&b))
        };
        // A dot alone would be taken for a directory.
        if !plain(project, b"-.:") || project.starts_with('.') || !plain(location, b"-") {
            return Err(wrong("its project or location cannot be one").hint(FORM));
        }
        if !plain(ring, b"-_") || !plain(key, b"-_") {
            return Err(wrong("rings and keys have names of letters, digits, '-' and '_'").hint(FORM));
        }
        let version = match *rest {
            [] => None,
            ["cryptoKeyVersions", number] if number.bytes().all(|b| b.is_ascii_digit()) && !number.starts_with('0') => {
                Some(number.parse().map_err(|_| wrong("a version is a number").hint(FORM))?)
            }
            ["cryptoKeyVersions", _] => return Err(wrong("a version is a number, from 1 on").hint(FORM)),
            _ => return Err(wrong("it goes on after the key").hint(FORM)),
        };
        let own = str::to_owned;
        Ok(Self { project: own(project), location: own(location), ring: own(ring), key: own(key), version })
    }

    /// The key without a version.
    pub fn key_name(&self) -> String {
        let Self { project, location, ring, key, .. } = self;
        format!("projects/{project}/locations/{location}/keyRings/{ring}/cryptoKeys/{key}")
    }

    /// Whether the two are versions of one key. A project's number and its id are the same project, and Google
    /// answers with either: what is compared is the rest.
    pub fn is_same_key(&self, other: &Self) -> bool {
        (&self.location, &self.ring, &self.key) == (&other.location, &other.ring, &other.key)
    }

    /// The options of `gcloud kms` that name it.
    pub fn gcloud(&self) -> String {
        let Self { project, location, ring, key, .. } = self;
        format!("--project {project} --location {location} --keyring {ring} --key {key}")
    }
}

impl fmt::Display for GcpKek {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.key_name())?;
        match self.version {
            Some(version) => write!(f, "/cryptoKeyVersions/{version}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kms::KmsErrorKind;

    const KEY: &str = "projects/p-1/locations/europe-west3/keyRings/ring_1/cryptoKeys/tenant-a";

    #[test]
    fn a_resource_name_is_taken_apart_and_written_as_it_was() {
        let kek = GcpKek::parse(KEY).unwrap();
        assert_eq!((kek.project.as_str(), kek.location.as_str()), ("p-1", "europe-west3"));
        assert_eq!((kek.ring.as_str(), kek.key.as_str(), kek.version), ("ring_1", "tenant-a", None));
        let version = format!("{KEY}/cryptoKeyVersions/12");
        assert_eq!(GcpKek::parse(&version).unwrap().version, Some(12));
        for text in [KEY, &version, "projects/example.com:p/locations/global/keyRings/r/cryptoKeys/k"] {
            assert_eq!(GcpKek::parse(text).unwrap().to_string(), text);
        }
        assert_eq!(GcpKek::parse(&version).unwrap().key_name(), KEY);
    }

    #[test]
    fn versions_of_one_key_are_one_key() {
        let first = GcpKek::parse(KEY).unwrap();
        assert!(first.is_same_key(&GcpKek::parse(&format!("{KEY}/cryptoKeyVersions/3")).unwrap()));
        assert!(first.is_same_key(&GcpKek::parse(&KEY.replace("p-1", "123456")).unwrap()));
        for other in [KEY.replace("tenant-a", "b"), KEY.replace("ring_1", "r"), KEY.replace("west3", "west4")] {
            assert!(!first.is_same_key(&GcpKek::parse(&other).unwrap()), "{other}");
        }
    }

    #[test]
    fn what_is_not_a_keys_name_is_refused_with_the_right_form() {
        for text in [
            "projects/p",
            "projects/p/locations/l/keyRings/r",
            "projects/p/locations/l/keyrings/r/cryptoKeys/k",
            "projects/p/locations/l/keyRings/r/cryptoKeys/",
            "projects/../locations/l/keyRings/r/cryptoKeys/k",
            "projects/p/locations/l/keyRings/r/cryptoKeys/k?x=1",
            "projects/p/locations/l/keyRings/r/cryptoKeys/k/",
            &format!("{KEY}/cryptoKeyVersions/newest"),
            &format!("{KEY}/cryptoKeyVersions/0"),
            &format!("{KEY}/cryptoKeyVersions/01"),
            &format!("{KEY}/cryptoKeyVersions/1/x"),
            &format!("{KEY}/cryptoKeyVersions/99999999999999999999999"),
        ] {
            let error = GcpKek::parse(text).expect_err(text);
            assert_eq!(error.kind, KmsErrorKind::Misconfigured, "{text}");
            assert!(error.hint.unwrap().contains("projects/PROJECT/locations/LOCATION/keyRings/RING"), "{text}");
        }
        for prefix in PREFIXES {
            let error = GcpKek::parse(&format!("{prefix}{KEY}")).unwrap_err();
            assert_eq!(error.hint.unwrap(), format!("write {KEY}"));
        }
    }
}
