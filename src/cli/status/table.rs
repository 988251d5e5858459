//! All mounts in a table that fits a terminal of 80 columns.

use super::{seconds, state};
use crate::audit::clean;
use crate::daemon::Status;
use std::fmt::Write as _;
use std::io::IsTerminal;

/// The widths of the columns: with a space between them, 79 together.
const NAME: usize = 26;
const STATE: usize = 24;
const FOR: usize = 9;
const LEASE: usize = 9;
const KEY: usize = 7;

/// Whether the terminal shows colours, and nobody asked it not to (<https://no-color.org>).
pub fn has_colours() -> bool {
    std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// The table.
pub fn of(all: &[Status], colours: bool) -> String {
    if all.is_empty() {
        return "nothing is mounted\n".into();
    }
    let mut out = String::new();
    // A string takes everything.
    let _ = writeln!(out, "{:<NAME$} {:<STATE$} {:>FOR$} {:>LEASE$} KEY", "MOUNT", "  STATE", "FOR", "LEASE");
    for status in all {
        let (shape, colour) = look(status);
        let name = match &status.tenant {
            Some(tenant) => tenant.to_string(),
            None => clean(&status.mountpoint.to_string_lossy()),
        };
        let word = format!("{shape} {:<1$}", state(status), STATE - 2);
        let word = if colours { format!("\x1b[{colour}m{word}\x1b[0m") } else { word };
        let _ = writeln!(
            out,
            "{:<NAME$} {word} {:>FOR$} {:>LEASE$} {}",
            tail(&name, NAME),
            short(status.since_s),
            if status.state == "locked" { "-".to_owned() } else { short(status.lease_remaining_s) },
            tail(version(&clean(&status.kek)), KEY),
        );
    }
    out
}

/// What distinguishes a state, with colours and without.
fn look(status: &Status) -> (char, u8) {
    match (status.state.as_str(), status.reason.as_deref()) {
        ("unlocked", _) if status.is_granted() => ('●', 32),
        ("unlocked", _) => ('▲', 33),
        (_, Some("operator")) => ('◼', 34),
        _ => ('✖', 31),
    }
}

/// The two largest units of a time.
fn short(time: f64) -> String {
    seconds(time).split(' ').take(2).collect::<Vec<_>>().concat().replace("days", "d").replace("day", "d")
}

/// The end of a text, as the beginnings are what texts have in common.
fn tail(text: &str, width: usize) -> String {
    let letters = text.chars().count();
    if letters <= width {
        return text.to_owned();
    }
    std::iter::once('…').chain(text.chars().skip(letters + 1 - width)).collect()
}

/// The last part of a key's name: its version, where there are versions.
fn version(kek: &str) -> &str {
    kek.rsplit(['/', ':']).find(|part| !part.is_empty()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_too_long_loses_its_beginning() {
        assert_eq!(tail("/data/a", 7), "/data/a");
        assert_eq!(tail("/srv/data/a", 7), "…data/a");
        assert_eq!(version("https://v.vault.azure.net/keys/k/0123abcd"), "0123abcd");
        assert_eq!(short(90_061.0), "1d1h");
        assert_eq!(short(59.9), "59s");
    }
}
