//! Google Cloud KMS: a stub of it, there is nothing else.

use crate::bench::{Calls, Change, Shown};
use crate::clouds::gcp::{Fault, Gcp};
use kmsfs::kms::WrapAlgorithm;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::ops::RangeInclusive;

/// A stub, with a service account.
pub struct Bench(Gcp);

impl Bench {
    pub fn new() -> Self {
        Self(Gcp::start())
    }

    fn faulty(&self, name: &'static str, fault: Fault) -> Change<'_> {
        Change::new(name, move || self.0.fault(fault.clone()), || self.0.fault(Fault::None))
    }

    fn state(&self, name: &'static str, state: &'static str, code: &'static str) -> Change<'_> {
        Change::new(name, move || self.0.set(state), || self.0.set("ENABLED")).code(code)
    }

    fn answer(&self, name: &'static str, status: u16, word: &str, reason: Option<&str>) -> Change<'_> {
        let details =
            reason.map(|reason| json!({ "@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": reason }));
        let details: Vec<_> = details.into_iter().collect();
        let error = json!({ "code": status, "status": word, "message": "no", "details": details });
        self.faulty(name, Fault::Reply(status, json!({ "error": error })))
    }
}

impl crate::bench::Bench for Bench {
    /// The ciphertext says it, and the service finds it there.
    fn is_told_the_version(&self) -> bool {
        false
    }

    fn name(&self) -> &'static str {
        "Google Cloud KMS"
    }

    fn reference(&self) -> String {
        self.0.key("tenant")
    }

    fn other_reference(&self) -> String {
        self.0.key("other")
    }

    fn environment(&self) -> HashMap<String, String> {
        self.0.environment()
    }

    fn algorithm(&self) -> WrapAlgorithm {
        WrapAlgorithm::GcpKms
    }

    /// Google's own are longer.
    fn blob_len(&self) -> RangeInclusive<usize> {
        61..=512
    }

    fn binds_volume(&self) -> bool {
        true
    }

    fn calls(&self) -> Shown<Calls> {
        Shown::Yes(Calls { wraps: self.0.calls("encrypt"), unwraps: self.0.calls("decrypt") })
    }

    fn calls_for_a_wrap(&self) -> u64 {
        1
    }

    fn rotate(&self) -> Shown<()> {
        self.0.rotate();
        Shown::Yes(())
    }

    fn refusals(&self) -> Vec<Change<'_>> {
        vec![
            self.state("disabled", "DISABLED", "KEY_DISABLED"),
            self.state("destruction scheduled", "DESTROY_SCHEDULED", "DESTROYED"),
            self.state("destroyed", "DESTROYED", "DESTROYED"),
            Change::new("role removed", || self.0.grant(false), || self.0.grant(true)).code("PERMISSION_DENIED"),
            self.answer("service off", 403, "PERMISSION_DENIED", Some("SERVICE_DISABLED")).code("SERVICE_DISABLED"),
            self.answer("not there", 404, "NOT_FOUND", None).code("NOT_FOUND"),
        ]
    }

    fn silences(&self) -> Shown<Vec<Change<'_>>> {
        Shown::Yes(vec![
            self.faulty("the connection is cut", Fault::Cut),
            self.faulty("no answer", Fault::Silence),
            self.answer("not available", 503, "UNAVAILABLE", None),
            self.answer("an error of its own", 500, "INTERNAL", None),
            self.answer("too late", 504, "DEADLINE_EXCEEDED", None),
            self.faulty("something else answers", Fault::Reply(403, Value::Null)),
            self.faulty("replies are garbled", Fault::Garbled),
            self.faulty("requests are garbled", Fault::GarbledRequest),
        ])
    }

    fn throttle(&self) -> Shown<Change<'_>> {
        Shown::Yes(self.answer("quota", 429, "RESOURCE_EXHAUSTED", Some("RATE_LIMIT_EXCEEDED")))
    }

    fn misconfigured(&self) -> Vec<(String, &'static str)> {
        vec![
            (self.0.key("signer"), "--purpose encryption"),
            (format!("gcp-kms://{}", self.0.key("tenant")), "write projects/"),
            ("projects/acme/locations/l/keyRings/kmsfs".into(), "cryptoKeys/KEY"),
        ]
    }

    fn strangers(&self) -> Shown<Vec<HashMap<String, String>>> {
        let login = json!({ "type": "authorized_user", "client_id": "client", "client_secret": "secret",
            "refresh_token": "revoked", "token_uri": self.0.token_uri() });
        let unsigned = self.0.environment_of("stranger.json", &login);
        let absent = ("GOOGLE_APPLICATION_CREDENTIALS".to_owned(), "/nonexistent/account.json".to_owned());
        let without = self.0.environment_without(&[]).into_iter().chain([absent]).collect();
        Shown::Yes(vec![unsigned, without])
    }
}
