//! The log of a mount's process, on standard error: for people, for machines, or for the journal, which knows times by
//! itself and wants priorities. Its level can be changed while it runs.
//!
//! What could tell something of a tenant's files by name has a target of its own, [`NAMES`], which is off unless asked for.

use std::fmt;
use std::io::IsTerminal;
use std::os::unix::fs::MetadataExt;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::registry::{LookupSpan, Registry};
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, reload};

pub use crate::fs::NAMES;

/// What the environment may say of the level.
const VARIABLE: &str = "KMSFS_LOG";

/// How a line looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// For people
    #[default]
    Text,
    /// One object on each line
    Json,
}

/// A log that runs.
#[derive(Clone, Debug)]
pub struct Log {
    filter: reload::Handle<EnvFilter, Registry>,
    names: bool,
}

impl Log {
    /// Starts it. `None` if this process has one.
    pub fn start(format: Format, names: bool) -> Option<Self> {
        let filter = EnvFilter::try_from_env(VARIABLE).unwrap_or_else(|_| filter(Level::INFO, names));
        let (filter, handle) = reload::Layer::new(filter);
        let layer = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
        let journal = is_journal(std::env::var("JOURNAL_STREAM").ok().as_deref());
        let colours = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        let layer = match (format, journal) {
            (Format::Text, false) => layer.with_ansi(colours).boxed(),
            (Format::Text, true) => {
                layer.with_ansi(false).with_level(false).without_time().map_event_format(Prioritised).boxed()
            }
            (Format::Json, false) => layer.json().boxed(),
            (Format::Json, true) => layer.json().without_time().map_event_format(Prioritised).boxed(),
        };
        tracing_subscriber::registry().with(filter).with(layer).try_init().ok()?;
        Some(Self { filter: handle, names })
    }

    /// Logs so much from now on: `error`, `warn`, `info`, `debug` or `trace`.
    ///
    /// # Errors
    /// What is wrong with the level.
    pub fn set_level(&self, level: &str) -> Result<(), String> {
        let level = level.parse().map_err(|_| "it is error, warn, info, debug or trace")?;
        self.filter.reload(filter(level, self.names)).map_err(|error| error.to_string())
    }
}

/// What is logged at a level: all of ours, and of others what is wrong.
fn filter(level: Level, names: bool) -> EnvFilter {
    let names = if names { "trace" } else { "off" };
    EnvFilter::new(format!("warn,kmsfs={level},fuser=error,{NAMES}={names}"))
}

/// Whether standard error is the journal itself, and not what somebody has put in its place since.
fn is_journal(stream: Option<&str>) -> bool {
    let Some(stream) = stream else { return false };
    let Ok(found) = std::fs::metadata("/proc/self/fd/2") else { return false };
    stream == format!("{}:{}", found.dev(), found.ino())
}

/// Each line begins with its priority, as `sd-daemon(3)` has it.
struct Prioritised<F>(F);

impl<S, N, F> FormatEvent<S, N> for Prioritised<F>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
    F: FormatEvent<S, N>,
{
    fn format_event(&self, context: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let priority = match *event.metadata().level() {
            Level::ERROR => 3,
            Level::WARN => 4,
            Level::INFO => 6,
            Level::DEBUG | Level::TRACE => 7,
        };
        write!(writer, "<{priority}>")?;
        self.0.format_event(context, writer, event)
    }
}
