//! Azure Key Vault and Managed HSM: the embedded vault, with an RSA key or an AES key.

use crate::bench::{Bench, Calls, Change, Shown};
use kmsfs::kms::WrapAlgorithm;
use std::collections::HashMap;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::process::Command;
use tempfile::TempDir;

/// A vault with one key of this type, stopped when it goes out of scope.
pub struct DevVault {
    _parent: TempDir,
    directory: PathBuf,
    environment: HashMap<String, String>,
    kty: &'static str,
    key: &'static str,
}

impl DevVault {
    /// With an RSA key, as Key Vault has them.
    pub fn rsa() -> Self {
        Self::start("RSA", "disk")
    }

    /// With an AES key, as a Managed HSM has them.
    pub fn aes() -> Self {
        Self::start("oct-HSM", "disk-aes")
    }

    fn start(kty: &'static str, key: &'static str) -> Self {
        let parent = TempDir::new().expect("a temporary directory");
        let directory = parent.path().join("vault");
        let mut vault = Self { _parent: parent, directory, environment: HashMap::new(), kty, key };
        vault.run(&["start"]);
        let environment = std::fs::read_to_string(vault.directory.join("env")).expect("the file env");
        for line in environment.lines().filter_map(|line| line.strip_prefix("export ")) {
            let (name, value) = line.split_once('=').expect("a variable");
            vault.environment.insert(name.into(), value.trim_matches('\'').into());
        }
        vault.run(&["key", "create", key, "--kty", kty]);
        vault.run(&["key", "create", "other", "--kty", kty]);
        vault.run(&["key", "create", "no-unwrap", "--kty", kty, "--ops", "wrapKey"]);
        vault.run(&["key", "create", "expired", "--kty", kty]);
        vault.run(&["key", "expire", "expired"]);
        vault
    }

    fn run(&self, arguments: &[&str]) -> String {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kmsfs"));
        let output = command.arg("dev-vault").args(arguments).arg("--state").arg(&self.directory).output();
        let output = output.expect("the program runs");
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        String::from_utf8(output.stdout).expect("text").trim_end().to_owned()
    }

    fn key(&self, name: &str) -> String {
        format!("{}/keys/{name}", self.environment["KMSFS_DEV_VAULT_URL"])
    }

    fn fault(&self, fault: &'static str) -> Change<'_> {
        let set = move || drop(self.run(&[&["fault"], &fault.split(' ').collect::<Vec<_>>()[..]].concat()));
        Change::new(fault, set, || drop(self.run(&["fault", "none"])))
    }
}

impl Bench for DevVault {
    fn name(&self) -> &'static str {
        if self.kty == "RSA" { "Azure Key Vault" } else { "Azure Managed HSM" }
    }

    fn reference(&self) -> String {
        self.key(self.key)
    }

    fn other_reference(&self) -> String {
        self.key("other")
    }

    fn environment(&self) -> HashMap<String, String> {
        self.environment.clone()
    }

    fn algorithm(&self) -> WrapAlgorithm {
        if self.kty == "RSA" { WrapAlgorithm::RsaOaep256 } else { WrapAlgorithm::Aes256Kw }
    }

    fn blob_len(&self) -> RangeInclusive<usize> {
        if self.kty == "RSA" { 256..=256 } else { 40..=40 }
    }

    fn binds_volume(&self) -> bool {
        false
    }

    fn calls(&self) -> Shown<Calls> {
        let status: serde_json::Value = serde_json::from_str(&self.run(&["status", "--json"])).expect("JSON");
        let calls = |operation: &str| status["calls"]["calls"][operation].as_u64().unwrap_or(0);
        Shown::Yes(Calls { wraps: calls("wrapkey"), unwraps: calls("unwrapkey") })
    }

    fn calls_for_a_wrap(&self) -> u64 {
        u64::from(self.kty != "RSA")
    }

    fn rotate(&self) -> Shown<()> {
        self.run(&["key", "rotate", self.key]);
        Shown::Yes(())
    }

    fn refusals(&self) -> Vec<Change<'_>> {
        let key = |verb: &'static str| move || drop(self.run(&["key", verb, self.key]));
        vec![
            Change::new("disabled", key("disable"), key("enable")).code("KeyDisabled"),
            Change::new("deleted", key("delete"), key("recover")).code("KeyNotFound"),
            self.fault("forbid-role").code("ForbiddenByRbac"),
            self.fault("forbid-policy").code("AccessDenied"),
            self.fault("forbid-firewall").code("ForbiddenByFirewall"),
        ]
    }

    fn silences(&self) -> Shown<Vec<Change<'_>>> {
        let faults = ["error", "error --status 503", "hang", "reset", "latency=1m", "hang --also-tokens"];
        let mut all: Vec<_> = faults.into_iter().map(|fault| self.fault(fault)).collect();
        all.push(Change::new("stopped", || drop(self.run(&["stop"])), || drop(self.run(&["start"]))));
        Shown::Yes(all)
    }

    fn throttle(&self) -> Shown<Change<'_>> {
        Shown::Yes(self.fault("throttle"))
    }

    fn misconfigured(&self) -> Vec<(String, &'static str)> {
        vec![
            (self.key("no-unwrap"), "permit the operations"),
            (self.key("expired"), "add a version"),
            (format!("{}/secrets/s", self.environment["KMSFS_DEV_VAULT_URL"]), "/keys/KEY"),
        ]
    }

    fn strangers(&self) -> Shown<Vec<HashMap<String, String>>> {
        let with = |name: &str, value: &str| {
            let mut environment = self.environment.clone();
            environment.insert(name.into(), value.into());
            environment
        };
        Shown::Yes(vec![with("AZURE_CLIENT_SECRET", "wrong"), with("AZURE_TENANT_ID", "")])
    }
}

impl Drop for DevVault {
    fn drop(&mut self) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kmsfs"));
        let _ = command.args(["dev-vault", "stop", "--state"]).arg(&self.directory).output();
    }
}
