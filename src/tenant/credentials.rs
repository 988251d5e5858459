//! Who a tenant's process is for its KMS: the variables in that tenant's file, and none of whoever starts the process.

use super::config::trusted;
use crate::failure::{Exit, Failure};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use zeroize::Zeroizing;

/// What the clients of the KMSs read: variables that begin like this say who somebody is.
const IDENTITY: [&str; 9] =
    ["AZURE_", "AWS_", "GOOGLE_", "CLOUDSDK_", "BAO_", "VAULT_", "KMSFS_AZURE_", "KMSFS_TRANSIT_", "KMSFS_GCP_"];
/// The same as whole names. In `HOME` people who log in leave their tokens.
const NAMES: [&str; 6] =
    ["IDENTITY_ENDPOINT", "IDENTITY_HEADER", "MSI_ENDPOINT", "MSI_SECRET", "GCE_METADATA_HOST", "HOME"];
/// How a KMS is reached, which is nobody's secret; a tenant may have other ones than the rest.
const NETWORK: [&str; 7] =
    ["KMSFS_CA_FILE", "HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY", "https_proxy", "http_proxy", "no_proxy"];

/// Whether a variable of this name says who somebody is.
pub fn is_identity(name: &str) -> bool {
    NAMES.contains(&name) || IDENTITY.iter().any(|prefix| name.starts_with(prefix))
}

/// The variables of one tenant.
pub struct Credentials {
    /// The file that they are from.
    pub file: PathBuf,
    variables: Vec<(String, Zeroizing<String>)>,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names: Vec<_> = self.variables.iter().map(|(name, _)| name).collect();
        f.debug_struct("Credentials").field("file", &self.file).field("names", &names).finish()
    }
}

impl Credentials {
    /// Finds the file that a configuration names: an absolute path is that file; a name is one of the credentials that
    /// systemd gave this service, or else a file in `credentials/` beside the configuration.
    pub fn find(named: &Path, config_directory: &Path) -> PathBuf {
        let given = std::env::var_os("CREDENTIALS_DIRECTORY").filter(|path| !path.is_empty());
        let given = given.map(|directory| Path::new(&directory).join(named)).filter(|path| path.exists());
        match named.is_absolute() {
            true => named.to_owned(),
            false => given.unwrap_or_else(|| config_directory.join("credentials").join(named)),
        }
    }

    /// Reads a file of `NAME=VALUE` lines; a value may be in quotes, and lines that begin with `#` are passed over.
    ///
    /// # Errors
    /// [`Exit::Credentials`]: it is not there, others could read it, or a line is none.
    pub fn read(path: &Path) -> Result<Self, Failure> {
        let failed = |what: String| Failure::new(Exit::Credentials, format!("{}: {what}", path.display()));
        let metadata = std::fs::metadata(path).map_err(|error| {
            failed(error.to_string()).hint("put the tenant's variables there, NAME=VALUE in each line, mode 0600")
        })?;
        if let Some(wrong) = trusted(&metadata, 0o077) {
            return Err(failed(format!("credentials in a file that {wrong}"))
                .hint(format!("chown root {0}; chmod 600 {0}", path.display())));
        }
        let text = std::fs::read_to_string(path).map_err(|error| failed(error.to_string()))?;
        let text = Zeroizing::new(text);
        let mut variables = Vec::new();
        for (number, line) in text.lines().enumerate().map(|(at, line)| (at + 1, line.trim())) {
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            // What stands in the line may be a secret: it is not repeated.
            let wrong = |what: &str| Failure::new(Exit::Credentials, format!("{}:{number}: {what}", path.display()));
            let line = line.strip_prefix("export ").unwrap_or(line);
            let Some((name, value)) = line.split_once('=') else {
                return Err(wrong("this is not NAME=VALUE").hint("write one variable in each line"));
            };
            let name = name.trim_end();
            let is_name = !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
            if !is_name || !(is_identity(name) || NETWORK.contains(&name)) {
                let what = if is_name { format!("{name} is no variable of a KMS") } else { "no variable".to_owned() };
                return Err(wrong(&what).hint(format!(
                    "known are names that begin with {}, and {}, {}",
                    IDENTITY.join(" "),
                    NAMES.join(" "),
                    NETWORK.join(" ")
                )));
            }
            let Some(value) = unquoted(value.trim()) else {
                return Err(
                    wrong("the quotes do not match").hint("write the value without quotes, or all of it in them")
                );
            };
            variables.push((name.to_owned(), Zeroizing::new(value.to_owned())));
        }
        if variables.is_empty() {
            return Err(failed("there are no credentials in it".to_owned())
                .hint("put the tenant's variables there, NAME=VALUE in each line"));
        }
        Ok(Self { file: path.to_owned(), variables })
    }

    /// The variables with their values.
    pub fn variables(&self) -> impl Iterator<Item = (&str, &str)> {
        self.variables.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// The value of a variable.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.variables().filter(|(known, _)| *known == name).last().map(|(_, value)| value)
    }

    /// Whether two tenants would be the same for their KMS: everything that says who they are is equal.
    pub fn is_same_identity(&self, other: &Self) -> bool {
        fn identity(credentials: &Credentials) -> BTreeMap<&str, &str> {
            credentials.variables().filter(|(name, _)| is_identity(name)).collect()
        }
        identity(self) == identity(other)
    }
}

fn unquoted(value: &str) -> Option<&str> {
    for quote in ['"', '\''] {
        if let Some(rest) = value.strip_prefix(quote) {
            return rest.strip_suffix(quote).filter(|inner| !inner.contains(quote));
        }
    }
    Some(value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn read(text: &str, mode: u32) -> Result<Credentials, Failure> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("acme.env");
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        Credentials::read(&path)
    }

    #[test]
    fn variables_are_read_with_quotes_and_comments() {
        let text = "# acme\nAZURE_TENANT_ID=t\nexport AZURE_CLIENT_ID = 'c d'\n\nAZURE_CLIENT_SECRET=\"a=b#c\"\n";
        let credentials = read(text, 0o600).unwrap();
        let all: Vec<_> = credentials.variables().collect();
        assert_eq!(all, [("AZURE_TENANT_ID", "t"), ("AZURE_CLIENT_ID", "c d"), ("AZURE_CLIENT_SECRET", "a=b#c")]);
        assert!(!format!("{credentials:?}").contains("a=b#c"));
    }

    #[test]
    fn what_is_no_credential_is_refused_without_being_repeated() {
        for (text, what) in [
            ("AZURE_TENANT_ID=t\nhunter2", ":2: this is not NAME=VALUE"),
            ("LD_PRELOAD=hunter2", ":1: LD_PRELOAD is no variable of a KMS"),
            ("PATH=hunter2", ":1: PATH is no"),
            ("AWS_SECRET_ACCESS_KEY=\"hunter2", ":1: the quotes"),
            ("# nothing\n", "no credentials"),
        ] {
            let failure = read(text, 0o600).unwrap_err();
            assert!(failure.message.contains(what), "{failure:?}");
            assert!(failure.exit == Exit::Credentials && failure.hint.is_some());
            assert!(!format!("{failure:?}").contains("hunter2"));
        }
    }

    #[test]
    fn a_file_that_others_can_read_is_refused() {
        for mode in [0o640, 0o604, 0o620] {
            let failure = read("AWS_PROFILE=acme", mode).unwrap_err();
            assert!(failure.hint.unwrap().contains("chmod 600"), "{mode:o}");
        }
    }

    #[test]
    fn the_same_identity_is_known_in_another_order() {
        let one = read("AWS_PROFILE=a\nAWS_REGION=r\nKMSFS_CA_FILE=/x", 0o600).unwrap();
        let same = read("AWS_REGION=r\nAWS_PROFILE=a", 0o600).unwrap();
        let other = read("AWS_PROFILE=b\nAWS_REGION=r", 0o600).unwrap();
        assert!(one.is_same_identity(&same) && !one.is_same_identity(&other));
    }
}
