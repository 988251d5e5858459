//! An embedded Key Vault for the volumes of tests.

use crate::harness::Volume;
use std::collections::HashMap;
use std::path::PathBuf;
use std::process::Command;
use tempfile::TempDir;

/// An embedded Key Vault with one key, `tenant`.
pub struct Vault {
    _parent: TempDir,
    state: PathBuf,
}

impl Vault {
    /// Starts it, and makes the key.
    pub fn start() -> Self {
        let parent = TempDir::new().expect("a temporary directory");
        let state = parent.path().join("vault");
        let vault = Self { _parent: parent, state };
        vault.run(&["start"]);
        vault.run(&["key", "create", "tenant"]);
        vault
    }

    /// Its directory.
    pub fn state(&self) -> &std::path::Path {
        &self.state
    }

    /// Runs `kmsfs dev-vault` with these arguments.
    pub fn run(&self, arguments: &[&str]) -> String {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kmsfs"));
        let output = command.arg("dev-vault").args(arguments).arg("--state").arg(&self.state).output();
        let output = output.expect("the program runs");
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        String::from_utf8(output.stdout).expect("text")
    }

    /// How often the vault was asked for this since it was started.
    pub fn calls(&self, operation: &str) -> u64 {
        let status: serde_json::Value = serde_json::from_str(&self.run(&["status", "--json"])).expect("JSON");
        status["calls"]["calls"][operation].as_u64().unwrap_or(0)
    }

    /// What the program's environment has to have, to reach it.
    pub fn environment(&self) -> HashMap<String, String> {
        let script = r#". "$1/env"; env -0"#;
        let output = Command::new("sh").args(["-euc", script, "sh"]).arg(&self.state).output().expect("a shell runs");
        let text = String::from_utf8(output.stdout).expect("the environment is text");
        text.split('\0').filter_map(|line| line.split_once('=')).map(|(k, v)| (k.into(), v.into())).collect()
    }

    /// A new volume whose KEK is the key.
    pub fn volume(&self) -> Volume {
        self.volume_with(&[])
    }

    /// The same, made with these options of `init`.
    pub fn volume_with(&self, options: &[&str]) -> Volume {
        let environment = self.environment();
        let kek = format!("{}/keys/tenant", environment["KMSFS_DEV_VAULT_URL"]);
        Volume::with_kek(&kek, environment, options)
    }
}

impl Drop for Vault {
    fn drop(&mut self) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kmsfs"));
        let _ = command.args(["dev-vault", "stop", "--state"]).arg(&self.state).output();
    }
}
