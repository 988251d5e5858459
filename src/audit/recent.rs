//! The last events of a mount, for whoever looks at its status: few, short, and without names or ids of files.

use super::chain::stamp;
use super::event::{Event, clean};
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::time::SystemTime;

/// So many are remembered.
const COUNT: usize = 10;

/// An event as `kmsfs status --json` has it. Stable: scripts depend on the names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recent {
    /// When it happened, the last time if several times in a row: RFC 3339, UTC.
    pub time: String,
    /// Its name in the audit log.
    pub event: String,
    /// What is to be said of it; may be empty.
    pub text: String,
    /// How many times in a row.
    pub times: u64,
}

/// The last events, the oldest first. What happens all the time (probes, unwrapped secrets) is left out.
#[derive(Default)]
pub(super) struct Last(VecDeque<Noted>);

struct Noted {
    time: SystemTime,
    event: &'static str,
    text: String,
    times: u64,
}

impl Last {
    /// One more. A kind that comes again takes no more room.
    pub(super) fn note(&mut self, time: SystemTime, event: &Event) {
        let Some(text) = gist(event) else { return };
        let event = event.name();
        if let Some(last) = self.0.back_mut().filter(|last| last.event == event) {
            (last.time, last.text, last.times) = (time, text, last.times + 1);
            return;
        }
        if self.0.len() == COUNT {
            self.0.pop_front();
        }
        self.0.push_back(Noted { time, event, text, times: 1 });
    }

    /// The newest first.
    pub(super) fn told(&self) -> Vec<Recent> {
        let told = |noted: &Noted| Recent {
            time: stamp(noted.time),
            event: noted.event.to_owned(),
            text: noted.text.clone(),
            times: noted.times,
        };
        self.0.iter().rev().map(told).collect()
    }
}

/// What is to be said of an event beside its name; `None` if it is not worth being remembered.
fn gist(event: &Event) -> Option<String> {
    let text = match event {
        Event::Probe { .. } | Event::Unwrap { .. } | Event::LeasesEnded { .. } | Event::Checkpoint { .. } => {
            return None;
        }
        Event::Mount { after_crash: true, .. } => "a crash was recovered".to_owned(),
        Event::Mount { version, .. } => format!("kmsfs {version}"),
        Event::Recovery { updates, files, .. } => format!("{updates} updates of {files} files"),
        Event::UnlockFailed { reason } => reason.clone(),
        Event::LeaseDenied { kind, message, .. } => format!("{kind}: {message}"),
        Event::Drain { reason, .. } => (*reason).to_owned(),
        Event::Lock { reason, drained: true, .. } => (*reason).to_owned(),
        Event::Lock { reason, files_waiting, .. } => format!("{reason}; {files_waiting} files could not be stored"),
        Event::Restricted { to } => (*to).to_owned(),
        Event::Damage { .. } | Event::FailedDecryption { .. } => "see kmsfs audit show".to_owned(),
        Event::KekVersion { kek } | Event::KeyTest { kek, .. } => kek.clone(),
        Event::RewrapStarted { to, .. } => to.clone().unwrap_or_default(),
        Event::RewrapEnded { state, files, left, .. } => format!("{state}: {files} files, {left} left"),
        Event::Rollback { refused, .. } => if *refused { "refused" } else { "warned of" }.to_owned(),
        Event::Check { what, files, damaged, .. } => format!("{what}: {files} files, {damaged} damaged"),
        Event::Import { files, .. } | Event::Export { files, .. } => format!("{files} files"),
        Event::Suspend { reason, .. } => reason.clone(),
        Event::Lost { count, .. } => format!("{count} events"),
        _ => String::new(),
    };
    Some(clean(&text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_last_are_kept_and_what_repeats_is_one() {
        let mut last = Last::default();
        let at = SystemTime::UNIX_EPOCH;
        for _ in 0..COUNT {
            last.note(at, &Event::Unlock);
            last.note(at, &Event::Lock { reason: "operator", took_ms: 1, drained: true, files_waiting: 0 });
            last.note(at, &Event::LeasesEnded { why: "wiped", served: Vec::new() });
        }
        last.note(at, &Event::FailedDecryption { file: "secret".into(), chunk: 1 });
        last.note(at, &Event::FailedDecryption { file: "secret".into(), chunk: 2 });
        last.note(at, &Event::Suspend { tenant: "t".into(), reason: "a\n\u{1b}[2J".into() });
        let told = last.told();
        assert_eq!(told.len(), COUNT);
        assert_eq!(told[0].text, "a\\u{a}\\u{1b}[2J");
        assert_eq!((told[1].event.as_str(), told[1].times), ("failed-decryption", 2));
        assert!(!told[1].text.contains("secret"));
        assert_eq!((told[2].event.as_str(), told[2].text.as_str()), ("lock", "operator"));
        assert_eq!(told[2].time, "1970-01-01T00:00:00.000Z");
    }
}
