//! Who to be at Google: application default credentials. A file that is named, the file of a login, or the machine's own
//! service account.
//! Invariant: a token is used until shortly before it ends, and goes to nobody but Google Cloud KMS and, to become
//! another account, the address that the credentials file names for that.

use super::account::{Account, Identity};
use super::token::{self, Token};
use crate::kms::rest::{self, Rest};
use crate::kms::{ConnectOptions, GcpOptions, KmsError, KmsErrorKind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};
use tokio::sync::Mutex;
use zeroize::Zeroizing;

/// Tokens that end within this time are renewed. The metadata server gives out the same one until five minutes before.
const RENEWAL: Duration = Duration::from_secs(225);
/// The metadata server is on this machine: it answers at once, or there is none.
const METADATA_TIMEOUT: Duration = Duration::from_secs(1);
const METADATA_HOST: &str = "metadata.google.internal";
const HINT: &str = "name a file with credentials in GOOGLE_APPLICATION_CREDENTIALS, or log in: \
                    gcloud auth application-default login";

/// What a request shows: the token, and the project that pays for it.
#[derive(Clone)]
pub(super) struct Pass {
    pub(super) token: Zeroizing<String>,
    pub(super) quota_project: Option<String>,
}

/// Where tokens come from, and the one that came last.
pub(super) struct Provider {
    source: Source,
    /// For token servers in the network.
    network: Rest,
    /// For the metadata server, which is behind no proxy.
    machine: Rest,
    kept: Mutex<Option<(Pass, Instant)>>,
}

enum Source {
    File(PathBuf),
    /// The host, and whether somebody named it.
    Machine(String, bool),
}

impl Provider {
    /// Chooses, and looks at the file if it is one; asks nobody yet.
    ///
    /// # Errors
    /// [`KmsErrorKind::Credentials`] for a file that cannot be used, [`KmsErrorKind::Misconfigured`] for a CA file.
    pub(super) fn new(options: &ConnectOptions) -> Result<Self, KmsError> {
        let source = choose(&options.gcp);
        let account = match &source {
            Source::File(path) => Some(read(path)?),
            Source::Machine(..) => None,
        };
        let rest = |hosts: &[&str]| Rest::new(hosts, options.ca_file.as_deref(), options.mount.as_deref());
        let hosts: Vec<&str> = account.iter().map(Account::host).collect();
        Ok(Self { source, network: rest(&hosts)?, machine: rest(&["127.0.0.1"])?, kept: Mutex::new(None) })
    }

    /// A token that is good now.
    ///
    /// # Errors
    /// [`KmsErrorKind::Credentials`] if there is none or it is refused, [`KmsErrorKind::Unreachable`] if whoever gives
    /// it does not answer.
    pub(super) async fn get(&self) -> Result<Pass, KmsError> {
        let mut kept = self.kept.lock().await;
        let left = |end: &Instant| end.saturating_duration_since(Instant::now());
        if let Some((pass, _)) = kept.as_ref().filter(|(_, end)| left(end) > RENEWAL) {
            return Ok(pass.clone());
        }
        let asked = Instant::now();
        match self.load().await {
            Ok((Token { value, lifetime }, quota_project)) => {
                let end = asked.checked_add(lifetime).unwrap_or(asked);
                Ok(kept.insert((Pass { token: value, quota_project }, end)).0.clone())
            }
            Err(error) => match kept.as_ref().filter(|(_, end)| left(end) > Duration::ZERO) {
                Some((pass, _)) => Ok(pass.clone()),
                None => Err(error),
            },
        }
    }

    /// It was not accepted: the next one is fetched anew.
    pub(super) async fn forget(&self) {
        *self.kept.lock().await = None;
    }

    async fn load(&self) -> Result<(Token, Option<String>), KmsError> {
        let path = match &self.source {
            Source::File(path) => path,
            Source::Machine(host, named) => return Ok((self.machine_token(host, *named).await?, None)),
        };
        // Read again each time: files with keys and tokens are renewed.
        let account = read(path)?;
        let subject = match &account.identity {
            Identity::External { file, .. } => content(file, "the token file of the workload identity")?,
            Identity::Service { .. } | Identity::User { .. } => Zeroizing::default(),
        };
        let now = SystemTime::now();
        let request = token::request(&account.identity, account.impersonate.is_some(), &subject, now)?;
        let mut token = token::read(&self.network.send(request).await?, account.name(), now)?;
        if let Some(url) = &account.impersonate {
            let reply = self.network.send(token::impersonate(url, &token)).await?;
            token = token::read(&reply, "impersonation", SystemTime::now())?;
        }
        Ok((token, account.quota_project))
    }

    async fn machine_token(&self, host: &str, named: bool) -> Result<Token, KmsError> {
        let request = token::of_machine(host)?;
        let reply = match tokio::time::timeout(METADATA_TIMEOUT, self.machine.send(request)).await {
            Ok(Ok(reply)) => reply,
            // That nobody is there means, in most places, that this is no machine of Google's.
            _ if !named => {
                let what = "there are no Google credentials: no file, no login, and no metadata server answers";
                return Err(KmsError::new(KmsErrorKind::Credentials, what).hint(HINT));
            }
            Ok(Err(error)) => return Err(error),
            Err(_) => return Err(rest::silent(host, "timed out")),
        };
        token::read(&reply, token::MACHINE, SystemTime::now())
    }
}

fn choose(options: &GcpOptions) -> Source {
    if let Some(path) = &options.credentials_file {
        return Source::File(path.clone());
    }
    if let Some(path) = options.login_file.as_ref().filter(|path| path.exists()) {
        return Source::File(path.clone());
    }
    match &options.metadata_host {
        Some(host) => Source::Machine(host.clone(), true),
        None => Source::Machine(METADATA_HOST.to_owned(), false),
    }
}

fn read(path: &Path) -> Result<Account, KmsError> {
    let text = content(path, "the file with Google credentials")?;
    Account::parse(&text)
        .map_err(|error| KmsError { message: format!("{}: {}", path.display(), error.message), ..error })
}

fn content(path: &Path, what: &str) -> Result<Zeroizing<Vec<u8>>, KmsError> {
    std::fs::read(path).map(Zeroizing::new).map_err(|error| {
        let message = format!("{what}, '{}', cannot be read: {error}", path.display());
        KmsError::new(KmsErrorKind::Credentials, message).hint(HINT)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_named_file_goes_before_a_login_and_a_login_before_the_machine() {
        let dir = tempfile::TempDir::new().unwrap();
        let login = dir.path().join("application_default_credentials.json");
        let mut options = GcpOptions { login_file: Some(login.clone()), ..GcpOptions::default() };
        assert!(matches!(choose(&options), Source::Machine(host, false) if host == METADATA_HOST));
        options.metadata_host = Some("h".into());
        assert!(matches!(choose(&options), Source::Machine(host, true) if host == "h"));
        std::fs::write(&login, "{}").unwrap();
        assert!(matches!(choose(&options), Source::File(path) if path == login));
        options.credentials_file = Some("/named".into());
        assert!(matches!(choose(&options), Source::File(path) if path == Path::new("/named")));
    }

    #[test]
    fn a_named_file_that_is_absent_or_something_else_is_said_at_once() {
        let dir = tempfile::TempDir::new().unwrap();
        let other = dir.path().join("other.json");
        std::fs::write(&other, r#"{"private_key":"hunter2"}"#).unwrap();
        for path in [dir.path().join("absent"), other] {
            let mut options = ConnectOptions::from_variables(|_| None);
            options.gcp.credentials_file = Some(path.clone());
            let error = Provider::new(&options).err().unwrap();
            assert_eq!(error.kind, KmsErrorKind::Credentials);
            assert!(error.message.contains(path.to_str().unwrap()) && !error.message.contains("hunter2"), "{error}");
        }
    }
}
