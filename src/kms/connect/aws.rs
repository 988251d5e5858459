//! How to reach AWS KMS, and who to be there. Depends on nothing.

use zeroize::Zeroizing;

/// What is different from the region's own endpoint and the standard chain of credentials.
#[derive(Clone, Debug, Default)]
pub struct AwsOptions {
    /// Where AWS KMS is, if not at its region's own address.
    pub endpoint: Option<String>,
    /// An access key, if one is named; otherwise AWS's SDK looks where it always does.
    pub keys: Option<AwsKeys>,
}

/// An access key.
#[derive(Clone)]
pub struct AwsKeys {
    /// Its id, which is no secret.
    pub id: String,
    /// The secret that signs.
    pub secret: Zeroizing<String>,
    /// The session's token, if the key is one of a session.
    pub token: Option<Zeroizing<String>>,
}

impl AwsOptions {
    /// The options that these variables describe: `AWS_ENDPOINT_URL_KMS` or `AWS_ENDPOINT_URL`, unless
    /// `AWS_IGNORE_CONFIGURED_ENDPOINT_URLS` is true; `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, `AWS_SESSION_TOKEN`.
    pub fn from_variables(variable: impl Fn(&str) -> Option<String>) -> Self {
        let get = |name: &str| variable(name).filter(|value| !value.is_empty());
        let ignored =
            get("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS").is_some_and(|value| value.eq_ignore_ascii_case("true"));
        let endpoint = get("AWS_ENDPOINT_URL_KMS").or_else(|| get("AWS_ENDPOINT_URL")).filter(|_| !ignored);
        let keys = get("AWS_ACCESS_KEY_ID").zip(get("AWS_SECRET_ACCESS_KEY")).map(|(id, secret)| AwsKeys {
            id,
            secret: secret.into(),
            token: get("AWS_SESSION_TOKEN").map(Zeroizing::new),
        });
        Self { endpoint, keys }
    }
}

impl std::fmt::Debug for AwsKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AwsKeys").field("id", &self.id).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(variables: &[(&str, &str)]) -> AwsOptions {
        AwsOptions::from_variables(|name| {
            variables.iter().find(|(n, _)| *n == name).map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn the_endpoint_of_the_service_goes_before_the_common_one() {
        let (common, own) = (("AWS_ENDPOINT_URL", "http://a"), ("AWS_ENDPOINT_URL_KMS", "http://b"));
        assert_eq!(options(&[common]).endpoint.as_deref(), Some("http://a"));
        assert_eq!(options(&[common, own]).endpoint.as_deref(), Some("http://b"));
        assert_eq!(options(&[own, ("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS", "true")]).endpoint, None);
    }

    #[test]
    fn half_an_access_key_is_none() {
        assert!(options(&[("AWS_ACCESS_KEY_ID", "a"), ("AWS_SECRET_ACCESS_KEY", "")]).keys.is_none());
        assert!(options(&[("AWS_SECRET_ACCESS_KEY", "a")]).keys.is_none());
        let keys = options(&[("AWS_ACCESS_KEY_ID", "a"), ("AWS_SECRET_ACCESS_KEY", "b")]).keys.unwrap();
        assert!(keys.token.is_none());
    }

    #[test]
    fn debug_output_holds_no_secret() {
        let options = AwsOptions::from_variables(|name| Some(format!("hunter2-{name}")));
        let text = format!("{options:?}");
        assert!(text.contains("hunter2-AWS_ACCESS_KEY_ID"), "{text}");
        assert!(!text.contains("hunter2-AWS_SECRET") && !text.contains("hunter2-AWS_SESSION"), "{text}");
    }
}
