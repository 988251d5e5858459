//! From the reference that a user writes to a provider that can be asked. Depends on the providers.
//! Invariant: nothing in here talks to a network; what can be seen to be wrong without one is said at once.

mod aws;
mod gcp;
mod transit;

pub use aws::{AwsKeys, AwsOptions};
pub use gcp::GcpOptions;
pub use transit::{SecretId, TransitLogin, TransitOptions};

#[cfg(not(all(feature = "aws", feature = "azure", feature = "gcp", feature = "transit")))]
use super::KmsErrorKind;
use super::kek::has_to_be_given;
use super::{KekRef, Kms, KmsError, LocalKms};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use zeroize::Zeroizing;

/// The default of [`ConnectOptions::deadline`].
const DEADLINE: Duration = Duration::from_secs(5);

/// How to reach a KMS.
#[derive(Clone, Debug)]
pub struct ConnectOptions {
    /// Who to be at Azure.
    pub credentials: Credentials,
    /// The same for Vault and OpenBao.
    pub transit: TransitOptions,
    /// PEM certificates to trust besides the system's.
    pub ca_file: Option<PathBuf>,
    /// The longest that one call may take, its retries included.
    pub deadline: Duration,
    /// What the service's log shall call this client: the mount's id. Letters, digits, `-`, `_`, `.`.
    pub mount: Option<String>,
    /// Where systemd put the credentials of the service that this runs in.
    pub credentials_directory: Option<PathBuf>,
    /// What is different at AWS.
    pub aws: AwsOptions,
    /// What is different at Google.
    pub gcp: GcpOptions,
}

/// Which identity to show to Azure. Chosen by [`Credentials::choose`], in this order.
#[derive(Clone)]
pub enum Credentials {
    /// A service principal with a secret.
    ClientSecret {
        /// The directory (tenant) id.
        tenant: String,
        /// The application's (client) id.
        client: String,
        /// Its secret.
        secret: Zeroizing<String>,
        /// Where tokens come from, if not from Azure's public cloud.
        authority: Option<String>,
    },
    /// A token file that Kubernetes or a CI system renews.
    WorkloadIdentity {
        /// The directory (tenant) id.
        tenant: String,
        /// The application's (client) id.
        client: String,
        /// The file with the federated token.
        token_file: PathBuf,
        /// Where tokens come from, if not from Azure's public cloud.
        authority: Option<String>,
    },
    /// The identity of the virtual machine, App Service or Container App that this runs on.
    ManagedIdentity {
        /// The client id of a user-assigned identity, or the machine's own.
        client: Option<String>,
    },
    /// Whoever is logged in with `az` or `azd`.
    DeveloperTools,
    /// None; the reason and the way out, for the moment that one is needed.
    None(String),
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl Credentials {
    /// What kind of identity it is, for messages.
    pub fn name(&self) -> &'static str {
        match self {
            Self::ClientSecret { .. } => "client secret",
            Self::WorkloadIdentity { .. } => "workload identity",
            Self::ManagedIdentity { .. } => "managed identity",
            Self::DeveloperTools => "developer tools (az, azd)",
            Self::None(_) => "none",
        }
    }

    /// Chooses by what is configured, and by nothing that has to be asked over a network:
    ///
    /// 1. `KMSFS_AZURE_CREDENTIAL` names it: `client-secret`, `workload-identity`, `managed-identity`, `developer-tools`;
    /// 2. `AZURE_CLIENT_SECRET`: a client secret, with `AZURE_TENANT_ID` and `AZURE_CLIENT_ID`;
    /// 3. `AZURE_FEDERATED_TOKEN_FILE`: workload identity, with the same two;
    /// 4. `IDENTITY_ENDPOINT` (App Service, Container Apps): managed identity;
    /// 5. otherwise `az` or `azd`.
    ///
    /// A virtual machine's managed identity leaves no trace in the environment: it has to be named (1).
    pub fn choose(variable: impl Fn(&str) -> Option<String>) -> Self {
        let get = |name: &str| variable(name).filter(|value| !value.is_empty());
        // Both forms are in use: with the scheme and without it.
        let authority =
            get("AZURE_AUTHORITY_HOST").map(|host| if host.contains("://") { host } else { format!("https://{host}") });
        let kind = match get("KMSFS_AZURE_CREDENTIAL").as_deref() {
            Some(kind @ ("client-secret" | "workload-identity" | "managed-identity" | "developer-tools")) => {
                kind.to_owned()
            }
            Some(other) => {
                return Self::None(format!(
                    "KMSFS_AZURE_CREDENTIAL is '{other}'; it can be client-secret, workload-identity, managed-identity or developer-tools"
                ));
            }
            None if get("AZURE_CLIENT_SECRET").is_some() => "client-secret".into(),
            None if get("AZURE_FEDERATED_TOKEN_FILE").is_some() => "workload-identity".into(),
            None if get("IDENTITY_ENDPOINT").is_some() => "managed-identity".into(),
            None => "developer-tools".into(),
        };
        let need = |name: &str| get(name).ok_or_else(|| format!("{kind} needs {name}, which is not set"));
        let choice = match kind.as_str() {
            "client-secret" => need("AZURE_TENANT_ID").and_then(|tenant| {
                let (client, secret) = (need("AZURE_CLIENT_ID")?, Zeroizing::new(need("AZURE_CLIENT_SECRET")?));
                Ok(Self::ClientSecret { tenant, client, secret, authority })
            }),
            "workload-identity" => need("AZURE_TENANT_ID").and_then(|tenant| {
                let (client, token_file) = (need("AZURE_CLIENT_ID")?, need("AZURE_FEDERATED_TOKEN_FILE")?.into());
                Ok(Self::WorkloadIdentity { tenant, client, token_file, authority })
            }),
            "managed-identity" => Ok(Self::ManagedIdentity { client: get("AZURE_CLIENT_ID") }),
            _ => Ok(Self::DeveloperTools),
        };
        choice.unwrap_or_else(Self::None)
    }
}

impl ConnectOptions {
    /// The options that these variables describe: those of [`Credentials::choose`] and of each provider,
    /// `KMSFS_CA_FILE`, and `CREDENTIALS_DIRECTORY` as systemd sets it.
    pub fn from_variables(variable: impl Fn(&str) -> Option<String>) -> Self {
        let path = |name| variable(name).filter(|path| !path.is_empty()).map(PathBuf::from);
        let (ca_file, credentials_directory) = (path("KMSFS_CA_FILE"), path("CREDENTIALS_DIRECTORY"));
        let (aws, gcp) = (AwsOptions::from_variables(&variable), GcpOptions::from_variables(&variable));
        let transit = TransitOptions::from_variables(&variable);
        let credentials = Credentials::choose(variable);
        Self { credentials, aws, gcp, transit, ca_file, deadline: DEADLINE, mount: None, credentials_directory }
    }
}

/// A provider for the KEK that this reference names. Talks to nobody yet.
///
/// # Errors
/// `Misconfigured` for a wrong reference, key file or CA file; `Credentials`
/// when a KMS would ask for an identity and there is none.
pub fn connect(reference: &str, options: &ConnectOptions) -> Result<Arc<dyn Kms>, KmsError> {
    match reference.parse()? {
        KekRef::File(path) => Ok(Arc::new(LocalKms::new(&path)?)),
        KekRef::Command(line) => Ok(Arc::new(LocalKms::command(&line, options.deadline)?)),
        KekRef::Descriptor(number) => Ok(Arc::new(LocalKms::descriptor(number, options.deadline)?)),
        KekRef::Credential(name) => {
            Ok(Arc::new(LocalKms::credential(&name, options.credentials_directory.as_deref())?))
        }
        KekRef::Raw => Err(has_to_be_given()),
        #[cfg(feature = "aws")]
        KekRef::Aws(kek) => Ok(Arc::new(super::AwsKms::new(kek, options)?)),
        #[cfg(feature = "azure")]
        KekRef::Azure(kek) => Ok(Arc::new(super::AzureKms::new(kek, options)?)),
        #[cfg(feature = "gcp")]
        KekRef::Gcp(kek) => Ok(Arc::new(super::GcpKms::new(kek, options)?)),
        #[cfg(feature = "transit")]
        KekRef::Transit(kek) => Ok(Arc::new(super::TransitKms::new(kek, options)?)),
        #[cfg(not(all(feature = "aws", feature = "azure", feature = "gcp", feature = "transit")))]
        other => {
            let message = format!("this kmsfs was built without the KMS of {other}");
            Err(KmsError::new(KmsErrorKind::Misconfigured, message)
                .hint("install it with all features, which is what happens without --no-default-features"))
        }
    }
}

/// The same for every reference, for a [`Ring`](super::Ring). The one with the first reference of `instead` is reached
/// by the second one: it is the same key under another name.
pub fn connector(options: ConnectOptions, instead: Option<(String, String)>) -> super::Connector {
    // What is in a descriptor may be there only once.
    let descriptors = Mutex::new(HashMap::<u32, Arc<dyn Kms>>::new());
    Box::new(move |reference| {
        let reference = match &instead {
            Some((recorded, now)) if recorded == reference => now,
            _ => reference,
        };
        let Ok(KekRef::Descriptor(number)) = reference.parse() else { return connect(reference, &options) };
        let mut descriptors = descriptors.lock();
        if let Some(connection) = descriptors.get(&number) {
            return Ok(Arc::clone(connection));
        }
        let connection = connect(reference, &options)?;
        descriptors.insert(number, Arc::clone(&connection));
        Ok(connection)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn choose(variables: &[(&str, &str)]) -> Credentials {
        Credentials::choose(|name| variables.iter().find(|(n, _)| *n == name).map(|(_, value)| (*value).to_owned()))
    }

    #[test]
    fn the_most_specific_configured_identity_is_chosen() {
        let principal = [("AZURE_TENANT_ID", "t"), ("AZURE_CLIENT_ID", "c")];
        let with = |more: &[(&'static str, &'static str)]| choose(&[&principal[..], more].concat()).name();
        let (secret, token) = (("AZURE_CLIENT_SECRET", "s"), ("AZURE_FEDERATED_TOKEN_FILE", "/f"));
        let endpoint = ("IDENTITY_ENDPOINT", "http://x");
        assert_eq!(with(&[secret, token, endpoint]), "client secret");
        assert_eq!(with(&[token, endpoint]), "workload identity");
        assert_eq!(with(&[endpoint]), "managed identity");
        assert_eq!(with(&[]), "developer tools (az, azd)");
        assert_eq!(with(&[("AZURE_CLIENT_SECRET", "")]), "developer tools (az, azd)");
        assert_eq!(with(&[secret, ("KMSFS_AZURE_CREDENTIAL", "managed-identity")]), "managed identity");
    }

    #[test]
    fn half_an_identity_is_none_and_says_what_is_missing() {
        let missing = |variables: &[(&str, &str)]| match choose(variables) {
            Credentials::None(reason) => reason,
            other => panic!("{other:?}"),
        };
        assert!(missing(&[("AZURE_CLIENT_SECRET", "s")]).contains("AZURE_TENANT_ID"));
        assert!(missing(&[("AZURE_CLIENT_SECRET", "s"), ("AZURE_TENANT_ID", "t")]).contains("AZURE_CLIENT_ID"));
        assert!(missing(&[("KMSFS_AZURE_CREDENTIAL", "password")]).contains("managed-identity"));
    }

    #[test]
    fn debug_output_holds_no_client_secret() {
        let options = ConnectOptions::from_variables(|name| {
            Some(format!("hunter2-{name}")).filter(|_| name != "KMSFS_AZURE_CREDENTIAL")
        });
        assert_eq!(options.credentials.name(), "client secret");
        assert!(!format!("{options:?}").contains("hunter2-AZURE"));
    }
}
