//! Vault and OpenBao Transit: a real OpenBao server.

use crate::bench::{Bench, Calls, Change, Shown};
use crate::openbao::{KEY, OpenBao};
use kmsfs::kms::WrapAlgorithm;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::ops::RangeInclusive;

/// A server, and a token that may use the key and nothing else.
pub struct Transit {
    server: OpenBao,
    token: String,
    derived: bool,
}

impl Transit {
    /// With an ordinary key, which takes associated data.
    pub fn new() -> Self {
        let server = OpenBao::start();
        server.ok("POST", "transit/keys/other", json!({}));
        for kind in ["rsa-2048", "ed25519"] {
            server.ok("POST", &format!("transit/keys/{kind}"), json!({ "type": kind }));
        }
        // Two policies: the one that is taken away gives the key, the other one the rest.
        let others = "path \"transit/encrypt/other\" { capabilities = [\"update\"] }\n\
                      path \"transit/keys/other\" { capabilities = [\"read\"] }\n\
                      path \"transit/keys/rsa-2048\" { capabilities = [\"read\"] }\n\
                      path \"transit/keys/ed25519\" { capabilities = [\"read\"] }\n";
        server.ok("PUT", "sys/policies/acl/others", json!({ "policy": others }));
        let token = server.token(json!({ "policies": ["kmsfs", "others"], "ttl": "1h" }));
        Self { server, token, derived: false }
    }

    /// With a key that is derived for each volume.
    pub fn derived() -> Self {
        let bench = Self::new();
        bench.server.ok("POST", &format!("transit/keys/{KEY}/config"), json!({ "deletion_allowed": true }));
        bench.server.ok("DELETE", &format!("transit/keys/{KEY}"), Value::Null);
        bench.server.ok(
            "POST",
            &format!("transit/keys/{KEY}"),
            json!({ "derived": true, "type": "chacha20-poly1305" }),
        );
        Self { derived: true, ..bench }
    }
}

impl Bench for Transit {
    fn name(&self) -> &'static str {
        "OpenBao Transit"
    }

    fn reference(&self) -> String {
        self.server.reference()
    }

    fn other_reference(&self) -> String {
        self.server.reference_of("other")
    }

    fn environment(&self) -> HashMap<String, String> {
        self.server.environment(&self.token)
    }

    fn algorithm(&self) -> WrapAlgorithm {
        WrapAlgorithm::Transit
    }

    fn blob_len(&self) -> RangeInclusive<usize> {
        61..=61
    }

    fn binds_volume(&self) -> bool {
        true
    }

    fn rewraps(&self) -> bool {
        self.derived
    }

    fn calls(&self) -> Shown<Calls> {
        let calls = |operation: &str| self.server.calls(&format!("transit/{operation}/{KEY}"));
        Shown::Yes(Calls { wraps: calls("encrypt"), unwraps: calls("decrypt") })
    }

    fn calls_for_a_wrap(&self) -> u64 {
        1
    }

    fn rotate(&self) -> Shown<()> {
        self.server.rotate();
        Shown::Yes(())
    }

    fn refusals(&self) -> Vec<Change<'_>> {
        let server = &self.server;
        vec![
            Change::new("deleted", || server.soft_delete(), || server.restore()).code("KeySoftDeleted"),
            Change::new("policy removed", || server.remove_policy(), || server.grant_policy()).code("PermissionDenied"),
        ]
    }

    fn silences(&self) -> Shown<Vec<Change<'_>>> {
        let server = &self.server;
        Shown::Yes(vec![
            Change::new("sealed", || server.seal(), || server.unseal()),
            Change::new("stopped where it is", || server.freeze(), || server.thaw()),
        ])
    }

    fn throttle(&self) -> Shown<Change<'_>> {
        Shown::Yes(Change::new("a quota", || self.server.limit(), || self.server.unlimit()))
    }

    fn misconfigured(&self) -> Vec<(String, &'static str)> {
        vec![
            (self.server.reference_of("rsa-2048"), "type=aes256-gcm96"),
            (self.server.reference_of("ed25519"), "type=aes256-gcm96"),
            (format!("{}/99", self.server.reference()), "without a version"),
            ("transit+http://bao.example/transit/keys/k".into(), "write transit+https://"),
        ]
    }

    fn strangers(&self) -> Shown<Vec<HashMap<String, String>>> {
        let mut half = HashMap::from([("KMSFS_TRANSIT_ROLE_ID".to_owned(), "wrong".to_owned())]);
        half.insert("KMSFS_TRANSIT_SECRET_ID".to_owned(), "wrong".to_owned());
        half.insert("BAO_ADDR".to_owned(), self.server.address());
        // The auth method has to be there for a login to be refused.
        self.server.app_role("1h", "1h");
        Shown::Yes(vec![self.server.environment("no-token"), half, HashMap::new()])
    }
}
