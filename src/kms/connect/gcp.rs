//! How to reach Google Cloud KMS, and who to be there. Depends on nothing.

use std::path::PathBuf;

/// Where the service and the application default credentials are.
#[derive(Clone, Debug, Default)]
pub struct GcpOptions {
    /// Where Google Cloud KMS is, if not at its public address.
    pub endpoint: Option<String>,
    /// A file with credentials that somebody named: it has to be there.
    pub credentials_file: Option<PathBuf>,
    /// The file that `gcloud auth application-default login` writes: it counts if it is there.
    pub login_file: Option<PathBuf>,
    /// The host of the metadata server, if not the usual one.
    pub metadata_host: Option<String>,
}

impl GcpOptions {
    /// The options that these variables describe: `KMSFS_GCP_ENDPOINT`, `GOOGLE_APPLICATION_CREDENTIALS`,
    /// `CLOUDSDK_CONFIG` or `HOME`, `GCE_METADATA_HOST`.
    pub fn from_variables(variable: impl Fn(&str) -> Option<String>) -> Self {
        let get = |name: &str| variable(name).filter(|value| !value.is_empty());
        let config = get("CLOUDSDK_CONFIG")
            .map(PathBuf::from)
            .or_else(|| get("HOME").map(|home| PathBuf::from(home).join(".config/gcloud")));
        Self {
            endpoint: get("KMSFS_GCP_ENDPOINT"),
            credentials_file: get("GOOGLE_APPLICATION_CREDENTIALS").map(PathBuf::from),
            login_file: config.map(|config| config.join("application_default_credentials.json")),
            metadata_host: get("GCE_METADATA_HOST"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_credentials_of_a_login_are_where_gcloud_keeps_them() {
        let options = |variables: &[(&str, &str)]| {
            let find = |name: &str| variables.iter().find(|(n, _)| *n == name).map(|(_, value)| (*value).to_owned());
            GcpOptions::from_variables(find).login_file
        };
        let file = "application_default_credentials.json";
        assert_eq!(options(&[("HOME", "/root")]), Some(PathBuf::from("/root/.config/gcloud").join(file)));
        assert_eq!(options(&[("HOME", "/root"), ("CLOUDSDK_CONFIG", "/c")]), Some(PathBuf::from("/c").join(file)));
        assert_eq!(options(&[("HOME", "")]), None);
    }
}
