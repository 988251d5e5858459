//! Microsoft's Python client against the vault, with its own checks on.

use crate::harness::TestVault;
use std::process::Command;

#[test]
fn microsofts_python_client_finds_a_key_vault() {
    let python = std::env::var_os("KMSFS_TEST_PYTHON").unwrap_or_else(|| {
        panic!("KMSFS_TEST_PYTHON is not set: run scripts/test, or export KMSFS_TEST_PYTHON=\"$(scripts/python-env)\"")
    });
    let vault = TestVault::start();
    let output = Command::new(python)
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/dev_vault/python_client.py"))
        .arg(env!("CARGO_BIN_EXE_kmsfs"))
        .arg(&vault.directory)
        .envs(vault.environment())
        .output()
        .expect("the interpreter runs");
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{stdout}\n{stderr}");
    assert!(stdout.ends_with("all passed\n"), "{stdout}\n{stderr}");
}
