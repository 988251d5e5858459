//! `kmsfs tenant restart`: after an upgrade, one mount after the other, so that never more than one tenant notices.

use super::*;
use crate::cli::umount::{How, umount};
use std::process::Stdio;
use std::time::Instant;

/// `tenant restart`.
#[derive(Args)]
pub struct Restart {
    /// Which ones
    #[arg(required_unless_present = "all")]
    tenants: Vec<TenantName>,
    /// All that are mounted and not suspended
    #[arg(long, conflicts_with = "tenants")]
    all: bool,
    #[command(flatten)]
    place: Place,
}

/// The first one that does not come back ends it: whatever is wrong may be wrong for all.
pub fn run(arguments: &Restart) -> Result<(), Failure> {
    let directory = arguments.place.directory();
    let names = if arguments.all { configured(&directory)? } else { arguments.tenants.clone() };
    let mut left = names.iter();
    while let Some(name) = left.next() {
        let loaded = match Loaded::of(&directory, name) {
            // One that is not set up yet keeps no other one.
            Err(failure) if arguments.all => {
                failure.print();
                continue;
            }
            loaded => loaded?,
        };
        let mounted = !matches!(State::of(&loaded.config.mountpoint), State::NotMounted);
        if arguments.all && (!mounted || Suspension::forbids(name).is_err()) {
            continue;
        }
        Suspension::forbids(name)?;
        let begin = Instant::now();
        let result = restart(&directory, &loaded).and_then(|()| match State::of(&loaded.config.mountpoint) {
            State::Mounted(status) => Ok(status.state),
            _ => Err(Failure::new(Exit::Failure, format!("{name} does not answer"))),
        });
        match result {
            Ok(state) => println!("{name:<22} {state} after {:.2} s", begin.elapsed().as_secs_f64()),
            Err(failure) => {
                let left: Vec<_> = left.map(TenantName::as_str).collect();
                let message = format!("{name} did not come back: {}", failure.message);
                let rest = if left.is_empty() { "none".to_owned() } else { left.join(" ") };
                let hint = failure.hint.map(|hint| format!("{hint}; not restarted: {rest}"));
                return Err(Failure { exit: failure.exit, message, hint });
            }
        }
    }
    Ok(())
}

/// By its unit if that runs it, and else by hand.
fn restart(directory: &Path, loaded: &Loaded) -> Result<(), Failure> {
    let failed = |error: std::io::Error| Failure::new(Exit::Failure, format!("it cannot be started: {error}"));
    let unit = format!("kmsfs@{}.service", loaded.config.name);
    let systemctl = |words: &[&str]| {
        let mut command = std::process::Command::new("systemctl");
        command.args(words).stdin(Stdio::null()).status().map(|status| status.success())
    };
    if sd_notify::booted().unwrap_or(false) && systemctl(&["is-active", "--quiet", &unit]).unwrap_or(false) {
        return match systemctl(&["restart", &unit]).map_err(failed)? {
            true => Ok(()),
            false => Err(Failure::new(Exit::Failure, format!("{unit} does not start"))
                .hint(format!("systemctl status {unit}; journalctl -u {unit}"))),
        };
    }
    if !matches!(State::of(&loaded.config.mountpoint), State::NotMounted) {
        umount(&loaded.config.mountpoint, How::ByForce)?;
    }
    let mut command = loaded.mount_command(directory, false).map_err(failed)?;
    let output = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).output().map_err(failed)?;
    succeeded(&output)
}
