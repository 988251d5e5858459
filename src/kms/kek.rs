//! The name of a KEK as its owner writes it, and nothing that does I/O. Depends on the seam only.
//! Invariant: a [`KekRef`] is complete: it has a scheme, a place and a key, and a wrong form is refused with
//! the right one in the hint.

mod aws;
mod gcp;
mod transit;

pub use aws::{AwsKek, AwsResource};
pub use gcp::GcpKek;
pub use transit::TransitKek;

use super::local::looks_like_a_key;
use super::{KmsError, KmsErrorKind};
use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use url::Url;

const AZURE_FORM: &str = "write it as https://NAME.vault.azure.net/keys/KEY, with /VERSION at the end to pin a version";
const RAW_ANEW: &str = "make a new one with 'kmsfs key generate --output FILE', and name it with file:FILE";
const FILE_FORM: &str = "write it as file:PATH, for example file:/etc/kmsfs/volume.key";
const RAW_FORMS: &str = "say where it is, with --kek: file:PATH, cmd:COMMAND, fd:NUMBER or credential:NAME";
/// How a volume records a raw key that comes from no place which could be recorded.
const RAW: &str = "raw:";

/// Which KEK, at which provider.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KekRef {
    /// A key in an Azure Key Vault or Managed HSM.
    Azure(AzureKek),
    /// A key of AWS KMS.
    Aws(AwsKek),
    /// A key of Google Cloud KMS.
    Gcp(GcpKek),
    /// A key in the Transit engine of a Vault or OpenBao server.
    Transit(TransitKek),
    /// A raw key in a file; the path is absolute.
    File(PathBuf),
    /// A raw key that a command prints.
    Command(String),
    /// A raw key in an inherited file descriptor.
    Descriptor(u32),
    /// A raw key in a systemd credential of this name.
    Credential(String),
    /// A raw key that has to be given with each command.
    Raw,
}

impl KekRef {
    /// What a volume records of it. Whoever can write to a volume's directory can write another record, so a record
    /// never names a command to be run, or what is open in the process that mounts.
    pub fn recorded(&self) -> String {
        match self {
            Self::Command(_) | Self::Descriptor(_) | Self::Raw => RAW.to_owned(),
            other => other.to_string(),
        }
    }

    /// Whether a text may be what a volume records.
    pub fn is_recordable(text: &str) -> bool {
        !text.starts_with("cmd:") && !text.starts_with("fd:")
    }
}

/// A Key Vault key by its URL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AzureKek {
    /// The vault to dial: `https://HOST[:PORT]/`.
    pub vault: Url,
    /// The key's name in it.
    pub name: String,
    /// The one version that is used, or the newest.
    pub version: Option<String>,
}

impl AzureKek {
    /// The host to dial.
    pub fn host(&self) -> &str {
        self.vault.host_str().unwrap_or_default()
    }

    /// The name by which Azure's command line knows the vault: the first label of the host.
    pub fn vault_name(&self) -> &str {
        self.host().split('.').next().unwrap_or_default()
    }

    /// Takes `https://HOST[:PORT]/keys/NAME[/VERSION]` apart.
    ///
    /// # Errors
    /// [`KmsErrorKind::Misconfigured`] with what is wrong and the right form.
    pub fn parse(text: &str) -> Result<Self, KmsError> {
        let wrong = |what: &str| misconfigured(format!("'{text}' is not a Key Vault key: {what}")).hint(AZURE_FORM);
        let url = Url::parse(text).map_err(|error| wrong(&error.to_string()))?;
        if !url.username().is_empty() || url.password().is_some() {
            return Err(misconfigured("the URL of a Key Vault key holds no user or password").hint(AZURE_FORM));
        }
        if url.query().is_some() || url.fragment().is_some() {
            return Err(wrong("it goes on after the key"));
        }
        if url.host_str().is_none_or(str::is_empty) {
            return Err(wrong("it has no host"));
        }
        let mut path: Vec<&str> = url.path().split('/').skip(1).collect();
        if path.last() == Some(&"") {
            path.pop();
        }
        let (name, version) = match path[..] {
            ["keys", name] => (name, None),
            ["keys", name, version] => (name, Some(version)),
            [] | ["keys"] => return Err(wrong("it names a vault, but no key in it")),
            ["secrets" | "certificates", ..] => return Err(wrong("it names a secret or a certificate")),
            _ => return Err(wrong("its path is not /keys/KEY or /keys/KEY/VERSION")),
        };
        let name_is_valid =
            (1..=127).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
        if !name_is_valid {
            return Err(wrong("a key's name is 1 to 127 letters, digits and hyphens"));
        }
        if version.is_some_and(|v| v.len() != 32 || !v.bytes().all(|b| b.is_ascii_hexdigit())) {
            return Err(wrong("a version is 32 hexadecimal digits"));
        }
        let (name, version) = (name.to_owned(), version.map(str::to_ascii_lowercase));
        let mut vault = url;
        vault.set_path("/");
        Ok(Self { vault, name, version })
    }
}

impl FromStr for KekRef {
    type Err = KmsError;

    fn from_str(text: &str) -> Result<Self, KmsError> {
        if text.is_empty() {
            return Err(misconfigured("no KEK is named").hint(AZURE_FORM));
        }
        let named = text.split_once(':').map_or(text, |(_, rest)| rest);
        if looks_like_a_key(text) || looks_like_a_key(named) && !Path::new(named).exists() {
            // Not repeated: whoever sees the message need not have seen the command line.
            let error = misconfigured("a key itself was given instead of its name");
            return Err(error.hint(format!("it was on the command line and is not secret any more: {RAW_ANEW}")));
        }
        if let Some(path) = text.strip_prefix("file:") {
            return file(path);
        }
        if let Some(line) = text.strip_prefix("cmd:") {
            return Ok(Self::Command(line.to_owned()));
        }
        if let Some(number) = text.strip_prefix("fd:") {
            let wrong = || misconfigured(format!("'{text}' names no file descriptor")).hint("write it as fd:3");
            return number.parse().map(Self::Descriptor).map_err(|_| wrong());
        }
        if let Some(name) = text.strip_prefix("credential:") {
            return credential(name);
        }
        if text == RAW {
            return Ok(Self::Raw);
        }
        if TransitKek::claims(text) {
            return TransitKek::parse(text).map(Self::Transit);
        }
        if let Some(meant) = transit_without_scheme(text) {
            let error = misconfigured(format!("'{text}' is the path of a key in Vault or OpenBao, not in Key Vault"));
            return Err(error.hint(format!("write {meant}")));
        }
        if GcpKek::recognises(text) {
            return GcpKek::parse(text).map(Self::Gcp);
        }
        if text.get(..8).is_some_and(|scheme| scheme.eq_ignore_ascii_case("https://")) {
            return AzureKek::parse(text).map(Self::Azure);
        }
        if let Some(rest) = text.strip_prefix("http://") {
            let error = misconfigured(format!("'{text}' would send tokens and keys in clear"));
            return Err(error.hint(format!("write https://{rest}")));
        }
        if ["transit", "vault:", "openbao:", "bao:"].iter().any(|start| text.starts_with(start)) {
            return Err(misconfigured(format!("'{text}' does not say at which server")).hint(transit::FORM));
        }
        if text.starts_with("arn:") {
            return AwsKek::parse(text).map(Self::Aws);
        }
        if text.starts_with("alias/") || text.starts_with("key/") {
            let error = misconfigured(format!("'{text}' does not say of which region and account it is"));
            return Err(error.hint(format!("write arn:aws:kms:REGION:ACCOUNT:{text}")));
        }
        if let Some(provider) = other_cloud(text) {
            let error = misconfigured(format!("'{text}' names a key of {provider}, which is not supported yet"));
            return Err(error.hint(format!(
                "supported are Azure Key Vault, AWS KMS, Google Cloud KMS, Vault and OpenBao Transit, and raw keys in files; {AZURE_FORM}"
            )));
        }
        if text.contains(".vault.azure.") || text.contains(".managedhsm.azure.") {
            return Err(misconfigured(format!("'{text}' has no scheme")).hint(format!("write https://{text}")));
        }
        let is_path = text.contains('/') || Path::new(text).exists();
        let error = misconfigured(format!("'{text}' does not say which KMS it is of"));
        Err(error.hint(if is_path {
            format!("for a raw key in a file, write file:{text}")
        } else {
            AZURE_FORM.to_owned()
        }))
    }
}

impl fmt::Display for AzureKek {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}keys/{}", self.vault, self.name)?;
        match &self.version {
            Some(version) => write!(f, "/{version}"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for KekRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Azure(kek) => kek.fmt(f),
            Self::Aws(kek) => kek.fmt(f),
            Self::Gcp(kek) => kek.fmt(f),
            Self::Transit(kek) => kek.fmt(f),
            Self::File(path) => write!(f, "file:{}", path.display()),
            Self::Command(line) => write!(f, "cmd:{line}"),
            Self::Descriptor(number) => write!(f, "fd:{number}"),
            Self::Credential(name) => write!(f, "credential:{name}"),
            Self::Raw => f.write_str(RAW),
        }
    }
}

/// `file:PATH` and `file:///PATH`; a relative path counts from the current directory.
fn file(path: &str) -> Result<KekRef, KmsError> {
    let path = match path.strip_prefix("//") {
        Some(rest) if rest.starts_with('/') => rest,
        Some(_) => return Err(misconfigured(format!("'file:{path}' names a file on another host")).hint(FILE_FORM)),
        None => path,
    };
    if path.is_empty() {
        return Err(misconfigured("'file:' names no file").hint(FILE_FORM));
    }
    // Two slashes at the beginning would stay, and be read as the name of a host when the volume is opened.
    let path = if path.starts_with('/') { &path[path.len() - path.trim_start_matches('/').len() - 1..] } else { path };
    let absolute = std::path::absolute(path)
        .map_err(|error| misconfigured(format!("'file:{path}' cannot be made absolute: {error}")).hint(FILE_FORM))?;
    Ok(KekRef::File(absolute))
}

/// The reference that a Transit key's plain URL, as `curl` would be given it, is meant to be.
fn transit_without_scheme(text: &str) -> Option<String> {
    let url = Url::parse(text).ok().filter(|url| matches!(url.scheme(), "https" | "http"))?;
    let (mount, name) = url.path().rsplit_once("/keys/")?;
    let mount = mount.strip_prefix("/v1").filter(|rest| rest.starts_with('/')).unwrap_or(mount);
    let meant = format!("transit+{}{mount}/keys/{name}", url.origin().ascii_serialization());
    // A Key Vault key has nothing before `/keys/`.
    TransitKek::parse(&meant).ok().map(|_| meant)
}

/// `credential:NAME`, where NAME is that of a file in the directory of the service's credentials, and leads nowhere else.
fn credential(name: &str) -> Result<KekRef, KmsError> {
    let is_name = (1..=255).contains(&name.len())
        && !name.starts_with('.')
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'@'));
    if is_name {
        return Ok(KekRef::Credential(name.to_owned()));
    }
    let error = misconfigured(format!("'credential:{name}' names no systemd credential"));
    Err(error
        .hint("write it as credential:NAME, with the NAME of LoadCredential=; letters, digits, '-', '_', '.', '@'"))
}

/// That a raw key has to be given, because the volume could not record where it is.
pub(super) fn has_to_be_given() -> KmsError {
    misconfigured("the volume's key is a raw key that is recorded nowhere, and has to be given each time")
        .hint(RAW_FORMS)
}

fn other_cloud(text: &str) -> Option<&'static str> {
    const FORMS: [(&str, &str); 1] = [("pkcs11:", "a PKCS#11 token")];
    FORMS.iter().find(|(prefix, _)| text.starts_with(prefix)).map(|(_, provider)| *provider)
}

/// Whether a host is this machine, by its name or address.
pub(super) fn is_loopback(host: &str) -> bool {
    let address = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    is_loopback_name(host) || address.is_ok_and(|address| address.is_loopback())
}

/// Whether a name is always this machine's (RFC 6761, section 6.3).
pub(super) fn is_loopback_name(host: &str) -> bool {
    host == "localhost" || host.ends_with(".localhost")
}

fn misconfigured(message: impl Into<String>) -> KmsError {
    KmsError::new(KmsErrorKind::Misconfigured, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn azure(text: &str) -> AzureKek {
        match text.parse() {
            Ok(KekRef::Azure(kek)) => kek,
            other => panic!("{text}: {other:?}"),
        }
    }

    #[test]
    fn a_key_vault_key_is_taken_apart() {
        let kek = azure("https://myvault.vault.azure.net/keys/disk-key");
        assert_eq!((kek.vault.as_str(), kek.name.as_str()), ("https://myvault.vault.azure.net/", "disk-key"));
        assert_eq!((kek.version, kek.vault.port()), (None, None));
        let kek = azure("https://devvault.localhost:8443/keys/k/0123456789ABCDEF0123456789abcdef/");
        assert_eq!(kek.vault.as_str(), "https://devvault.localhost:8443/");
        assert_eq!((kek.name.as_str(), kek.vault_name()), ("k", "devvault"));
        assert_eq!(kek.version.as_deref(), Some("0123456789abcdef0123456789abcdef"));
    }

    #[test]
    fn any_https_host_may_be_a_vault() {
        for host in ["x.vault.azure.cn", "x.vault.usgovcloudapi.net", "x.managedhsm.azure.net", "10.1.2.3:444", "[::1]"]
        {
            assert_eq!(azure(&format!("HTTPS://{host}/keys/k")).to_string(), format!("https://{host}/keys/k"));
        }
    }

    #[test]
    fn what_is_printed_parses_to_the_same_reference() {
        for text in [
            "https://a.b:1/keys/k",
            "https://a.b/keys/k/0123456789abcdef0123456789abcdef",
            "file:/a b#c/d",
            "cmd:a b",
            "fd:3",
            "credential:k",
            "raw:",
            "arn:aws:kms:eu-west-1:123456789012:alias/a",
            "projects/p/locations/l/keyRings/r/cryptoKeys/k",
        ] {
            let parsed: KekRef = text.parse().unwrap();
            assert_eq!(parsed.to_string(), text);
        }
    }

    #[test]
    fn the_other_places_of_raw_keys_are_taken_apart() {
        assert_eq!("cmd:pass show 'a b'".parse(), Ok(KekRef::Command("pass show 'a b'".into())));
        assert_eq!("fd:3".parse(), Ok(KekRef::Descriptor(3)));
        assert_eq!("credential:kmsfs.key-1".parse(), Ok(KekRef::Credential("kmsfs.key-1".into())));
        assert_eq!("raw:".parse(), Ok(KekRef::Raw));
        for text in ["fd:", "fd:-1", "fd:3x", "credential:", "credential:a/b", "credential:..", "raw:x"] {
            assert!(text.parse::<KekRef>().is_err_and(|error| error.hint.is_some()), "{text}");
        }
    }

    #[test]
    fn what_a_volume_records_never_runs_anything() {
        for text in ["cmd:rm -rf /", "fd:3", "raw:"] {
            let recorded = text.parse::<KekRef>().unwrap().recorded();
            assert_eq!((recorded.as_str(), KekRef::is_recordable(&recorded)), ("raw:", true));
        }
        assert!(!KekRef::is_recordable("cmd:x") && !KekRef::is_recordable("fd:3"));
        assert_eq!("credential:k".parse::<KekRef>().unwrap().recorded(), "credential:k");
    }

    #[test]
    fn a_key_in_the_place_of_its_name_is_refused_and_not_repeated() {
        const KEY: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
        for text in [KEY.to_owned(), format!("raw:{KEY}"), format!("file:{KEY}"), format!("key:{KEY}"), "ab".repeat(32)]
        {
            let error = text.parse::<KekRef>().unwrap_err();
            assert!(error.message.contains("a key itself"), "{error}");
            let all = format!("{error} {error:?}");
            assert!(!all.contains("AAEC") && !all.contains("abab"), "{all}");
        }
    }

    #[test]
    fn a_file_reference_becomes_absolute() {
        let here = std::env::current_dir().unwrap();
        assert_eq!("file:k".parse(), Ok(KekRef::File(here.join("k"))));
        assert_eq!("file:/etc/k".parse(), Ok(KekRef::File("/etc/k".into())));
        for text in ["file:///etc/k", "file:////etc/k", "file://///etc/k", "file:///etc//k"] {
            let parsed: KekRef = text.parse().unwrap();
            assert_eq!(parsed, KekRef::File("/etc/k".into()), "{text}");
            assert_eq!(parsed.to_string(), "file:/etc/k");
        }
    }

    #[test]
    fn a_wrong_form_is_refused_with_the_right_one_in_the_hint() {
        let version = "0123456789abcdef0123456789abcdef";
        let cases = [
            ("", "https://NAME"),
            ("http://v.vault.azure.net/keys/k", "write https://v.vault.azure.net/keys/k"),
            ("v.vault.azure.net/keys/k", "write https://v.vault.azure.net/keys/k"),
            ("https://v.vault.azure.net", "/keys/KEY"),
            ("https://v.vault.azure.net/keys/", "/keys/KEY"),
            ("https://v.vault.azure.net/secrets/s", "/keys/KEY"),
            ("https://v.vault.azure.net/keys/k_1", "/keys/KEY"),
            ("https://v.vault.azure.net/keys/k/newest", "/keys/KEY"),
            (&format!("https://v.vault.azure.net/keys/k/{version}/x"), "/keys/KEY"),
            ("https://v.vault.azure.net/keys/../k", "/keys/KEY"),
            ("https://v.vault.azure.net/keys/k?api-version=7.4", "/keys/KEY"),
            ("https://u:p@v.vault.azure.net/keys/k", "/keys/KEY"),
            ("https:///", "https://NAME"),
            ("arn:aws:kms:eu-west-1:1:key/2", "arn:aws:kms:REGION:ACCOUNT:key/ID"),
            ("alias/tenant", "write arn:aws:kms:REGION:ACCOUNT:alias/tenant"),
            ("projects/p/locations/l/keyRings/r", "projects/PROJECT/locations/LOCATION"),
            ("gcp-kms://projects/p", "write projects/p"),
            ("pkcs11:token=t", "supported are"),
            ("/etc/kmsfs/key", "write file:/etc/kmsfs/key"),
            ("./key", "write file:./key"),
            ("mykey", "https://NAME"),
            ("file:", "file:PATH"),
            ("file://host/key", "file:PATH"),
        ];
        for (text, hint) in cases {
            let error = text.parse::<KekRef>().expect_err(text);
            assert_eq!(error.kind, KmsErrorKind::Misconfigured, "{text}");
            assert!(error.hint.as_ref().is_some_and(|h| h.contains(hint)), "{text}: {:?}", error.hint);
        }
    }

    #[test]
    fn this_machine_is_known_by_name_and_by_address() {
        for host in ["localhost", "vault.localhost", "127.0.0.1", "127.8.8.8", "[::1]", "::1"] {
            assert!(is_loopback(host), "{host}");
        }
        for host in ["localhost.example", "example", "10.0.0.1", "[::2]", "127.0.0.1.example", "0.0.0.0"] {
            assert!(!is_loopback(host), "{host}");
        }
    }

    #[test]
    fn a_password_in_the_url_is_not_repeated_in_the_error() {
        let error = AzureKek::parse("https://u:hunter2@v.vault.azure.net/keys/k").unwrap_err();
        assert!(!error.to_string().contains("hunter2"));
    }
}
