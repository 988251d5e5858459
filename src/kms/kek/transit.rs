//! A key of Vault's or OpenBao's Transit engine by its URL. Depends on the seam only.

use super::{is_loopback, misconfigured};
use crate::kms::KmsError;
use std::fmt;
use url::Url;

pub(super) const FORM: &str =
    "write it as transit+https://HOST[:PORT]/MOUNT/keys/NAME, with /VERSION at the end to pin a version";

/// A Transit key by its URL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TransitKek {
    /// The server to dial: `https://HOST[:PORT]/`, or `http` on this machine.
    pub server: Url,
    /// Where the engine is mounted: `transit`, `team/transit`.
    pub mount: String,
    /// The key's name.
    pub name: String,
    /// The one version that is used, or the newest.
    pub version: Option<u32>,
}

impl TransitKek {
    /// The host to dial.
    pub fn host(&self) -> &str {
        self.server.host_str().unwrap_or_default()
    }

    /// The key with this version.
    #[must_use]
    pub fn at(&self, version: u32) -> Self {
        Self { version: Some(version), ..self.clone() }
    }

    /// Whether a text is meant to be one, whatever is wrong with it.
    pub(super) fn claims(text: &str) -> bool {
        text.get(..8).is_some_and(|scheme| scheme.eq_ignore_ascii_case("transit+"))
    }

    /// Takes `transit+https://HOST[:PORT]/MOUNT/keys/NAME[/VERSION]` apart. Where two readings are possible, because a
    /// mount ends in `keys`, the last number is a version.
    ///
    /// # Errors
    /// `Misconfigured` with what is wrong and the right form.
    pub fn parse(text: &str) -> Result<Self, KmsError> {
        let wrong = |what: &str| misconfigured(format!("'{text}' is not a Transit key: {what}")).hint(FORM);
        let address = text.get("transit+".len()..).unwrap_or_default();
        let url = Url::parse(address).map_err(|error| wrong(&error.to_string()))?;
        if !url.username().is_empty() || url.password().is_some() {
            return Err(misconfigured("the URL of a Transit key holds no user or password").hint(FORM));
        }
        match url.scheme() {
            "https" => {}
            "http" if is_loopback(url.host_str().unwrap_or_default()) => {}
            "http" => {
                let safe = address.get("http".len()..).unwrap_or_default();
                let error = misconfigured(format!("'{text}' would send tokens and keys in clear"));
                return Err(error.hint(format!("write transit+https{safe}; http is for servers on this machine only")));
            }
            _ => return Err(wrong("it begins neither with transit+https:// nor with transit+http://")),
        }
        if url.query().is_some() || url.fragment().is_some() {
            return Err(wrong("it goes on after the key"));
        }
        if url.host_str().is_none_or(str::is_empty) {
            return Err(wrong("it has no host"));
        }
        let path = url.path().trim_matches('/').to_owned();
        let path: Vec<&str> = path.split('/').collect();
        let version = |text: &str| text.parse().ok().filter(|version| *version > 0 && !text.starts_with(['0', '+']));
        let (mount, name, version) = match path[..] {
            [ref mount @ .., "keys", name, last] if !mount.is_empty() && version(last).is_some() => {
                (mount, name, version(last))
            }
            [ref mount @ .., "keys", name] if !mount.is_empty() => (mount, name, None),
            ["keys", ..] => return Err(wrong("it does not say where the engine is mounted (often: transit)")),
            _ => return Err(wrong("its path is not /MOUNT/keys/NAME or /MOUNT/keys/NAME/VERSION")),
        };
        if let ["v1", ref rest @ ..] = *mount {
            let mount = if rest.is_empty() { "transit".to_owned() } else { rest.join("/") };
            return Err(wrong("the API's /v1/ is no part of it")
                .hint(format!("write transit+{}/{mount}/keys/{name}", url.origin().ascii_serialization())));
        }
        let is_plain = |part: &str| {
            let inner = part.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'));
            (1..=128).contains(&part.len()) && inner && !part.starts_with('.')
        };
        if !mount.iter().copied().chain([name]).all(is_plain) {
            return Err(wrong("mounts and names are letters, digits, '-', '_' and '.'"));
        }
        let (mount, name) = (mount.join("/"), name.to_owned());
        let mut server = url;
        server.set_path("/");
        Ok(Self { server, mount, name, version })
    }
}

impl fmt::Display for TransitKek {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "transit+{}{}/keys/{}", self.server, self.mount, self.name)?;
        self.version.map_or(Ok(()), |version| write!(f, "/{version}"))
    }
}

#[cfg(test)]
mod tests {
    use super::super::KekRef;
    use super::*;
    use crate::kms::KmsErrorKind;

    fn transit(text: &str) -> TransitKek {
        match text.parse() {
            Ok(KekRef::Transit(kek)) => kek,
            other => panic!("{text}: {other:?}"),
        }
    }

    #[test]
    fn a_transit_key_is_taken_apart() {
        let kek = transit("transit+https://bao.example:8200/team/transit/keys/disk-key");
        assert_eq!((kek.server.as_str(), kek.mount.as_str()), ("https://bao.example:8200/", "team/transit"));
        assert_eq!((kek.name.as_str(), kek.version, kek.host()), ("disk-key", None, "bao.example"));
        assert_eq!(transit("transit+https://h/transit/keys/k/12").version, Some(12));
        assert_eq!(transit("transit+https://h/transit/keys/12").name, "12");
        let odd = transit("transit+https://h/a/keys/keys/5");
        assert_eq!((odd.mount.as_str(), odd.name.as_str(), odd.version), ("a", "keys", Some(5)));
        for loopback in ["127.0.0.1:8200", "[::1]:8200", "localhost", "bao.localhost:1"] {
            assert_eq!(transit(&format!("TRANSIT+http://{loopback}/transit/keys/k")).server.scheme(), "http");
        }
    }

    #[test]
    fn what_is_printed_parses_to_the_same_reference() {
        for text in ["transit+https://h/t/keys/k", "transit+http://127.0.0.1:1/a/b/keys/k.1/7"] {
            assert_eq!(transit(text).to_string(), text);
        }
        assert_eq!(transit("transit+https://h/t/keys/k").at(3).to_string(), "transit+https://h/t/keys/k/3");
    }

    #[test]
    fn a_wrong_form_is_refused_with_the_right_one_in_the_hint() {
        let cases = [
            ("transit+http://h.example/transit/keys/k", "write transit+https://h.example/transit/keys/k"),
            ("transit+https://h:8200/v1/transit/keys/k", "write transit+https://h:8200/transit/keys/k"),
            ("https://h:8200/v1/transit/keys/k", "write transit+https://h:8200/transit/keys/k"),
            ("https://h:8200/transit/keys/k", "write transit+https://h:8200/transit/keys/k"),
            ("http://127.0.0.1:8200/transit/keys/k", "write transit+http://127.0.0.1:8200/transit/keys/k"),
            ("transit+ftp://h/transit/keys/k", "transit+https://HOST"),
            ("transit://h/transit/keys/k", "transit+https://HOST"),
            ("vault:transit/keys/k", "transit+https://HOST"),
            ("transit/keys/k", "transit+https://HOST"),
            ("transit+https://h/keys/k", "/MOUNT/keys/NAME"),
            ("transit+https://h/transit/k", "/MOUNT/keys/NAME"),
            ("transit+https://h/transit/keys/", "/MOUNT/keys/NAME"),
            ("transit+https://h/transit/keys/k/newest", "/VERSION"),
            ("transit+https://h/transit/keys/k/0", "/VERSION"),
            ("transit+https://h/transit/keys/a%2Fb", "/MOUNT/keys/NAME"),
            ("transit+https://h/transit/keys/k?x", "/MOUNT/keys/NAME"),
            ("transit+https:///transit/keys/k", "/MOUNT/keys/NAME"),
            ("transit+https://u:p@h/transit/keys/k", "/MOUNT/keys/NAME"),
        ];
        for (text, hint) in cases {
            let error = text.parse::<KekRef>().expect_err(text);
            assert_eq!(error.kind, KmsErrorKind::Misconfigured, "{text}");
            assert!(error.hint.as_ref().is_some_and(|h| h.contains(hint)), "{text}: {:?}", error.hint);
            assert!(!error.to_string().contains("u:p"), "{error}");
        }
    }
}
