//! AWS KMS, as far as it can be had on loopback.

use crate::bench::{Calls, Change, Shown};
use crate::clouds::aws::{Aws, Fault};
use kmsfs::kms::WrapAlgorithm;
use std::collections::HashMap;
use std::ops::RangeInclusive;

/// A server, by an alias of its key.
pub struct Bench {
    aws: Aws,
    other: String,
}

impl Bench {
    pub fn ministack() -> Self {
        Self::of(Aws::ministack())
    }

    pub fn moto() -> Self {
        Self::of(Aws::moto())
    }

    fn of(aws: Aws) -> Self {
        let other = aws.create_key();
        Self { aws, other }
    }

    fn front(&self, name: &'static str, fault: Fault) -> Change<'_> {
        Change::new(name, move || self.aws.fault(fault.clone()), || self.aws.fault(Fault::None))
    }
}

impl crate::bench::Bench for Bench {
    fn name(&self) -> &'static str {
        "AWS KMS"
    }

    fn reference(&self) -> String {
        self.aws.alias()
    }

    fn other_reference(&self) -> String {
        self.other.clone()
    }

    fn environment(&self) -> HashMap<String, String> {
        self.aws.environment()
    }

    fn algorithm(&self) -> WrapAlgorithm {
        WrapAlgorithm::AwsKms
    }

    /// AWS's own are longer, and may be of any length up to the room that there is.
    fn blob_len(&self) -> RangeInclusive<usize> {
        65..=512
    }

    fn binds_volume(&self) -> bool {
        true
    }

    fn calls(&self) -> Shown<Calls> {
        Shown::Yes(Calls { wraps: self.aws.calls("Encrypt"), unwraps: self.aws.calls("Decrypt") })
    }

    fn calls_for_a_wrap(&self) -> u64 {
        1
    }

    /// What AWS itself calls rotation nobody can see; another key behind the alias is what is a version here.
    fn rotate(&self) -> Shown<()> {
        self.aws.repoint(&self.aws.create_key());
        Shown::Yes(())
    }

    fn refusals(&self) -> Vec<Change<'_>> {
        let aws = &self.aws;
        vec![
            Change::new("disabled", || aws.disable(), || aws.enable()).code("DisabledException"),
            Change::new("pending deletion", || aws.schedule_deletion(), || aws.cancel_deletion())
                .code("KeyPendingDeletion"),
            Change::new("policy removed", || aws.remove_grant(), || aws.grant()).code("AccessDeniedException"),
        ]
    }

    fn silences(&self) -> Shown<Vec<Change<'_>>> {
        let internal = Fault::Reply(500, r#"{"__type":"KMSInternalException","message":"try again"}"#);
        let timeout = Fault::Reply(503, r#"{"__type":"DependencyTimeoutException","message":"try again"}"#);
        Shown::Yes(vec![
            self.front("the connection is cut", Fault::Cut),
            self.front("no answer", Fault::Silence),
            self.front("an error of its own", internal),
            self.front("an error behind it", timeout),
            self.front("something else answers", Fault::Reply(403, "<html>")),
            Change::new("stopped where it is", || self.aws.freeze(), || self.aws.thaw()),
        ])
    }

    fn throttle(&self) -> Shown<Change<'_>> {
        let answer = r#"{"__type":"ThrottlingException","message":"Rate exceeded"}"#;
        Shown::Yes(self.front("throttled", Fault::Reply(400, answer)))
    }

    fn misconfigured(&self) -> Vec<(String, &'static str)> {
        vec![
            (self.aws.create_key_of("RSA_2048"), "SYMMETRIC_DEFAULT"),
            ("alias/tenant".into(), "arn:aws:kms:REGION:ACCOUNT:alias/tenant"),
            (self.aws.key.replace(":kms:", ":s3:"), "arn:aws:kms:REGION:ACCOUNT:key/ID"),
        ]
    }

    fn strangers(&self) -> Shown<Vec<HashMap<String, String>>> {
        let (id, _) = &self.aws.user;
        Shown::Yes(vec![
            self.aws.environment_of(id, "not-its-secret"),
            self.aws.environment_of("AKIANOBODYKNOWSIT000", "secret"),
        ])
    }
}
