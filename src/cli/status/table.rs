//! All mounts in a table that fits a terminal of 80 columns.

use super::{seconds, state};
use crate::audit::clean;
use crate::daemon::host::{Found, Tone};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

/// The widths of the columns: with a space between them, 79 together.
const NAME: usize = 26;
const STATE: usize = 24;
const FOR: usize = 9;
const LEASE: usize = 9;
const KEY: usize = 7;

/// Whether the terminal shows colours, and nobody asked it not to (<https://no-color.org>).
pub fn has_colours() -> bool {
    let is_dumb = std::env::var_os("TERM").is_some_and(|terminal| terminal == "dumb");
    let may = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    std::io::stdout().is_terminal() && may && !is_dumb
}

/// The table.
pub fn of(all: &BTreeMap<PathBuf, Found>, colours: bool) -> String {
    if all.is_empty() {
        return "nothing is mounted\n".into();
    }
    let mut out = line("MOUNT", "  STATE", None, ["FOR", "LEASE", "KEY"].map(str::to_owned));
    for (mountpoint, found) in all {
        let (shape, colour) = look(found);
        let (word, rest) = match found {
            Found::Answers(status) => {
                let is_locked = status.state == "locked";
                let lease = if is_locked { "-".to_owned() } else { short(status.lease_remaining_s) };
                (state(status), [short(status.since_s), lease, tail(version(&clean(&status.kek)), KEY)])
            }
            other => (other.state().to_owned(), ["-", "-", "-"].map(str::to_owned)),
        };
        let colour = colours.then_some(colour);
        out += &line(&tail(&name(mountpoint, found), NAME), &format!("{shape} {word}"), colour, rest);
    }
    out
}

fn line(name: &str, state: &str, colour: Option<u8>, [time, lease, key]: [String; 3]) -> String {
    let (name, state) = (filled(name, NAME), filled(&tail(state, STATE), STATE));
    let state = colour.map_or_else(|| state.clone(), |colour| format!("\x1b[{colour}m{state}\x1b[0m"));
    let mut out = String::new();
    // A string takes everything.
    let _ = writeln!(out, "{name} {state} {time:>FOR$} {lease:>LEASE$} {key}");
    out
}

/// The tenant, or where it is mounted.
fn name(mountpoint: &Path, found: &Found) -> String {
    match found {
        Found::Answers(status) => status.tenant.as_ref().map(ToString::to_string),
        _ => None,
    }
    .unwrap_or_else(|| clean(&mountpoint.to_string_lossy()))
}

/// What distinguishes a state, with colours and without.
fn look(found: &Found) -> (char, u8) {
    match (found, found.tone()) {
        (Found::Silent, _) => ('?', 31),
        (_, Tone::Good) => ('●', 32),
        (_, Tone::Attention) => ('▲', 33),
        (_, Tone::Calm) => ('■', 34),
        (_, Tone::Bad) => ('✖', 31),
    }
}

/// The two largest units of a time.
fn short(time: f64) -> String {
    seconds(time).split(' ').take(2).collect::<Vec<_>>().concat().replace("days", "d").replace("day", "d")
}

/// The end of a text, as the beginnings are what texts have in common; `width` is in columns.
fn tail(text: &str, width: usize) -> String {
    if text.width() <= width {
        return text.to_owned();
    }
    let mut room = width - 1;
    let fits = |letter: &char| {
        let left = room.checked_sub(letter.width().unwrap_or(0));
        room = left.unwrap_or(0);
        left.is_some()
    };
    let mut end: Vec<char> = text.chars().rev().take_while(fits).collect();
    end.push('…');
    end.iter().rev().collect()
}

/// Blanks after a text up to so many columns.
fn filled(text: &str, width: usize) -> String {
    format!("{text}{}", " ".repeat(width.saturating_sub(text.width())))
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
        assert_eq!(tail("/srv/データ", 6), "…ータ");
        assert_eq!(filled("データ", 8), "データ  ");
        assert_eq!(version("https://v.vault.azure.net/keys/k/0123abcd"), "0123abcd");
        assert_eq!(short(90_061.0), "1d1h");
        assert_eq!(short(59.9), "59s");
    }

    #[test]
    fn every_line_fits_whatever_it_is_about() {
        let places = [format!("/{}", "x".repeat(300)), format!("/{}", "漢字".repeat(50)), "/a\n\u{1b}[2Jb".into()];
        let mut all: BTreeMap<_, _> = places.iter().map(|place| (PathBuf::from(place), Found::Dead)).collect();
        all.insert("/z".into(), Found::Silent);
        let text = of(&all, false);
        assert_eq!(text.lines().count(), 5);
        for line in text.lines() {
            assert!(line.width() <= 79 && !line.contains('\u{1b}'), "{line}");
        }
        assert!(text.contains("✖ dead") && text.contains("? silent"), "{text}");
        assert!(of(&all, true).contains("\u{1b}[31m✖ dead"));
    }
}
