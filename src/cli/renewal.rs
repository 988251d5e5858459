//! What the commands that give every file something new say in the same words: `rewrap` and `rekey`.

use super::{Exit, Failure};
use crate::daemon::control::Problem;
use crate::daemon::{JobState, LeftFile};
use serde::Serialize;
use serde_json::json;
use std::time::Duration;

/// So many of the files that are left are printed.
const SHOWN: usize = 20;

/// How it ended.
pub struct End<'a> {
    pub state: JobState,
    pub problem: Option<Problem>,
    /// How many files are left, and the first of them.
    pub left: (u64, &'a [LeftFile]),
}

/// For how long it ran, to be printed.
pub fn took(seconds: f64) -> humantime::FormattedDuration {
    let took = Duration::from_secs_f64(seconds.max(0.001));
    humantime::format_duration(Duration::from_millis(took.as_millis() as u64))
}

/// Prints the files that are left.
pub fn print_left(count: u64, left: &[LeftFile]) {
    for file in left.iter().take(SHOWN) {
        println!("left: {}: {}", file.stored, file.why);
    }
    if count > SHOWN as u64 {
        println!("left: {} more", count - left.len().min(SHOWN) as u64);
    }
}

/// What the exit code says of it. `left` is what the files that are left mean, `goes_on` how it goes on.
pub fn outcome(what: &str, end: End<'_>, left: &str, goes_on: &str) -> Result<(), Failure> {
    let failure = match end.state {
        JobState::Complete if end.left.0 > 0 => {
            let message = format!("{} files {left}", end.left.0);
            let refused = end.left.1.iter().all(|file| file.refused);
            let failure = Failure::new(if refused { Exit::KmsRefused } else { Exit::Damage }, message);
            failure.hint(if refused {
                "enable the key, or the version, that they need, and give the same command again"
            } else {
                "restore or remove them (kmsfs fsck --deep --quarantine DIR moves them out), and give the same command again"
            })
        }
        JobState::Complete => return Ok(()),
        JobState::Locked => Failure::new(Exit::Failure, "the volume locked before the end").hint(goes_on),
        JobState::Unmounted => Failure::new(Exit::Mountpoint, "the volume was unmounted before the end").hint(goes_on),
        JobState::Cancelled => Failure::new(Exit::Interrupted, "cancelled before the end").hint(goes_on),
        JobState::Running | JobState::Failed => {
            let problem = end.problem.unwrap_or_else(|| Problem::new("other", format!("the {what} failed")));
            let hint = problem.hint.clone().unwrap_or_else(|| goes_on.to_owned());
            Failure::from(problem).hint(hint)
        }
    };
    Err(failure)
}

/// A status as JSON, with whether it is complete and the files that are left.
pub fn to_json(status: &impl Serialize, is_complete: bool, left: &[LeftFile]) -> serde_json::Value {
    let mut value = json!(status);
    value["complete"] = json!(is_complete);
    value["left_files"] = json!(left);
    value
}
