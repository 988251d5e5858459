//! The ARN of a key in AWS KMS. No I/O.
//! Invariant: an [`AwsKek`] has a region whose endpoint is known, and names a key or an alias, nothing else.

use super::misconfigured;
use crate::kms::KmsError;
use std::fmt;

const FORM: &str = "write its whole ARN: arn:aws:kms:REGION:ACCOUNT:key/ID, or …:alias/NAME; \
                    aws kms describe-key --key-id ID_OR_ALIAS prints it";

/// The partitions of AWS, and the domains of their endpoints.
const PARTITIONS: [(&str, &str); 4] = [
    ("aws", "amazonaws.com"),
    ("aws-cn", "amazonaws.com.cn"),
    ("aws-us-gov", "amazonaws.com"),
    ("aws-eusc", "amazonaws.eu"),
];

/// A key of AWS KMS by its ARN, or by the ARN of an alias of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AwsKek {
    /// Which AWS: `aws`, `aws-cn`, `aws-us-gov`, `aws-eusc`.
    pub partition: String,
    /// The region, which is also where it is dialled.
    pub region: String,
    /// The twelve digits of the account.
    pub account: String,
    /// The key or its alias.
    pub resource: AwsResource,
}

/// What an ARN names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AwsResource {
    /// A key by its id: 36 characters, or `mrk-` and 32 digits for one that is in several regions.
    Key(String),
    /// A name that its owner can point to another key.
    Alias(String),
}

impl AwsKek {
    /// Takes `arn:PARTITION:kms:REGION:ACCOUNT:key/ID` or `…:alias/NAME` apart.
    ///
    /// # Errors
    /// [`crate::kms::KmsErrorKind::Misconfigured`] with what is wrong and the right form.
    pub fn parse(text: &str) -> Result<Self, KmsError> {
        let wrong = |what: &str| misconfigured(format!("'{text}' is not a key of AWS KMS: {what}")).hint(FORM);
        let parts: Vec<&str> = text.split(':').collect();
        let ["arn", partition, service, region, account, resource] = parts[..] else {
            return Err(wrong("it does not have the six parts of an ARN"));
        };
        if !PARTITIONS.iter().any(|(name, _)| *name == partition) {
            return Err(wrong("its partition is none of aws, aws-cn, aws-us-gov and aws-eusc"));
        }
        if service != "kms" {
            return Err(wrong("it is of another service"));
        }
        let plain = |text: &str, more: &[u8]| text.bytes().all(|b| b.is_ascii_alphanumeric() || more.contains(&b));
        if !(1..=32).contains(&region.len()) || !plain(region, b"-") || region.starts_with('-') {
            return Err(wrong("it names no region"));
        }
        if account.len() != 12 || !account.bytes().all(|b| b.is_ascii_digit()) {
            return Err(wrong("an account is twelve digits"));
        }
        let resource = match resource.split_once('/') {
            Some(("key", id)) if (1..=64).contains(&id.len()) && plain(id, b"-") => AwsResource::Key(id.to_owned()),
            Some(("alias", name)) if (1..=250).contains(&name.len()) && plain(name, b"-_/") => {
                AwsResource::Alias(name.to_owned())
            }
            _ => return Err(wrong("it names neither key/ID nor alias/NAME")),
        };
        let own = str::to_owned;
        Ok(Self { partition: own(partition), region: own(region), account: own(account), resource })
    }

    /// The host that answers for its region.
    pub fn host(&self) -> String {
        let domain = PARTITIONS.iter().find(|(name, _)| *name == self.partition).map_or("amazonaws.com", |(_, d)| *d);
        format!("kms.{}.{domain}", self.region)
    }

    /// Whether these ARNs name one key: the same, or the same multi-region key in two regions.
    pub fn is_same_key(&self, other: &Self) -> bool {
        let related = matches!(&self.resource, AwsResource::Key(id) if id.starts_with("mrk-"))
            && (&self.partition, &self.account, &self.resource) == (&other.partition, &other.account, &other.resource);
        self == other || related
    }
}

impl fmt::Display for AwsKek {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "arn:{}:kms:{}:{}:", self.partition, self.region, self.account)?;
        match &self.resource {
            AwsResource::Key(id) => write!(f, "key/{id}"),
            AwsResource::Alias(name) => write!(f, "alias/{name}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kms::KmsErrorKind;

    const KEY: &str = "arn:aws:kms:eu-west-1:123456789012:key/1234abcd-12ab-34cd-56ef-1234567890ab";

    #[test]
    fn an_arn_is_taken_apart_and_written_as_it_was() {
        let kek = AwsKek::parse(KEY).unwrap();
        assert_eq!((kek.partition.as_str(), kek.region.as_str()), ("aws", "eu-west-1"));
        assert_eq!(kek.account, "123456789012");
        assert_eq!(kek.resource, AwsResource::Key("1234abcd-12ab-34cd-56ef-1234567890ab".into()));
        for text in
            [KEY, "arn:aws-cn:kms:cn-north-1:123456789012:alias/tenants/a_1", "arn:aws:kms:x:000000000000:key/k"]
        {
            assert_eq!(AwsKek::parse(text).unwrap().to_string(), text);
        }
    }

    #[test]
    fn each_partition_has_its_own_domain() {
        let host = |partition: &str, region: &str| {
            AwsKek::parse(&format!("arn:{partition}:kms:{region}:123456789012:key/k")).unwrap().host()
        };
        assert_eq!(host("aws", "eu-west-1"), "kms.eu-west-1.amazonaws.com");
        assert_eq!(host("aws-cn", "cn-north-1"), "kms.cn-north-1.amazonaws.com.cn");
        assert_eq!(host("aws-us-gov", "us-gov-west-1"), "kms.us-gov-west-1.amazonaws.com");
        assert_eq!(host("aws-eusc", "eusc-de-east-1"), "kms.eusc-de-east-1.amazonaws.eu");
    }

    #[test]
    fn a_key_of_several_regions_is_one_key_and_others_are_not() {
        let parse =
            |region: &str, id: &str| AwsKek::parse(&format!("arn:aws:kms:{region}:123456789012:key/{id}")).unwrap();
        let mrk = "mrk-1234abcd12ab34cd56ef1234567890ab";
        assert!(parse("eu-west-1", mrk).is_same_key(&parse("us-east-1", mrk)));
        assert!(!parse("eu-west-1", mrk).is_same_key(&parse("us-east-1", "mrk-0234abcd12ab34cd56ef1234567890ab")));
        assert!(!parse("eu-west-1", "k").is_same_key(&parse("us-east-1", "k")));
        assert!(parse("eu-west-1", "k").is_same_key(&parse("eu-west-1", "k")));
    }

    #[test]
    fn what_is_not_the_arn_of_a_key_is_refused_with_the_right_form() {
        for text in [
            "arn:",
            "arn:aws:kms:eu-west-1:123456789012",
            "arn:aws:kms:eu-west-1:123456789012:key",
            "arn:aws:kms:eu-west-1:123456789012:key/",
            "arn:aws:kms:eu-west-1:123456789012:key/a/b",
            "arn:aws:kms:eu-west-1:123456789012:key/a b",
            "arn:aws:kms:eu-west-1:123456789012:alias/",
            "arn:aws:kms:eu-west-1:123456789012:grant/x",
            "arn:aws:kms:eu-west-1:1:key/k",
            "arn:aws:kms::123456789012:key/k",
            "arn:aws:kms:evil.example/:123456789012:key/k",
            "arn:aws:s3:::bucket",
            "arn:oracle:kms:eu-west-1:123456789012:key/k",
            "arn:aws:kms:eu-west-1:123456789012:key/k:1",
        ] {
            let error = AwsKek::parse(text).expect_err(text);
            assert_eq!(error.kind, KmsErrorKind::Misconfigured, "{text}");
            assert!(error.hint.unwrap().contains("arn:aws:kms:REGION:ACCOUNT:key/ID"), "{text}");
        }
    }
}
