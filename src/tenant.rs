//! Tenants: whose volume is mounted where, and how, as files in a directory say it; whose credentials a mount has; and
//! whom the operator has suspended. Depends on how commands fail, and on nothing that is mounted.
//! Invariant: what one tenant's process is given, no other one's is: credentials come from that tenant's file alone.

mod config;
mod credentials;
mod name;
mod suspension;

pub use config::{Config, Key, Takes, configured};
pub use credentials::{Credentials, is_identity};
pub use name::TenantName;
pub use suspension::{Suspension, state_directory};

use std::path::PathBuf;

/// Where tenants' configurations are: this directory, `KMSFS_CONFIG_DIR`, or `/etc/kmsfs`.
pub fn config_directory(given: Option<PathBuf>) -> PathBuf {
    let variable = || std::env::var_os("KMSFS_CONFIG_DIR").filter(|path| !path.is_empty()).map(PathBuf::from);
    given.or_else(variable).unwrap_or_else(|| PathBuf::from("/etc/kmsfs"))
}
