//! `kmsfs tenant list`.

use super::*;
use serde::Serialize;
use std::collections::BTreeMap;
use std::time::Duration;

/// `tenant list`.
#[derive(Args)]
pub struct List {
    #[command(flatten)]
    place: Place,
    /// Print a JSON array
    #[arg(long)]
    json: bool,
}

/// A tenant as it is listed. Stable: scripts depend on the names.
#[derive(Serialize)]
struct Row {
    tenant: TenantName,
    /// `unlocked`, `read-only`, `prevent-new`, `draining`, `locked`, `suspended`, `dead`, `not mounted` or `wrong`.
    state: String,
    /// Why it is locked, suspended or wrong.
    reason: Option<String>,
    /// For how long it has been so, in seconds, if that is known.
    since_s: Option<f64>,
    /// The operator suspended it, whether it is mounted or not.
    suspended: Option<Suspension>,
    volume: Option<PathBuf>,
    volume_id: Option<String>,
    mountpoint: Option<PathBuf>,
    pid: Option<u32>,
    kek: Option<String>,
    labels: BTreeMap<String, String>,
}

pub fn run(arguments: &List) -> Result<(), Failure> {
    let directory = arguments.place.directory();
    let rows: Vec<_> = configured(&directory)?.into_iter().map(|tenant| row(&directory, tenant)).collect();
    if arguments.json {
        println!("{}", serde_json::to_string_pretty(&rows).unwrap_or_default());
        return Ok(());
    }
    if rows.is_empty() {
        println!("no tenant is configured in {}", directory.display());
        return Ok(());
    }
    println!("{}", line("TENANT", "STATE", "FOR", "MOUNTPOINT"));
    for row in &rows {
        let reason = row.reason.as_deref().filter(|_| matches!(row.state.as_str(), "locked" | "draining"));
        let state = reason.map_or_else(|| row.state.clone(), |reason| format!("{} ({reason})", row.state));
        let mountpoint = row.mountpoint.as_ref().map(|path| path.display().to_string()).unwrap_or_default();
        println!("{}", line(row.tenant.as_str(), &state, &row.since_s.map(short).unwrap_or_default(), &mountpoint));
    }
    Ok(())
}

/// Four columns; up to 80 characters unless a name is long.
fn line(tenant: &str, state: &str, since: &str, mountpoint: &str) -> String {
    format!("{tenant:<22} {state:<20} {since:>7}  {mountpoint}").trim_end().to_owned()
}

/// A duration in its largest unit.
fn short(seconds: f64) -> String {
    let text = humantime::format_duration(Duration::from_secs(seconds as u64)).to_string();
    text.split(' ').next().unwrap_or_default().to_owned()
}

fn row(directory: &Path, tenant: TenantName) -> Row {
    let suspended = Suspension::read(&state_directory(&tenant)).unwrap_or_default();
    let mut row = Row {
        tenant,
        state: "wrong".to_owned(),
        reason: None,
        since_s: None,
        suspended,
        volume: None,
        volume_id: None,
        mountpoint: None,
        pid: None,
        kek: None,
        labels: BTreeMap::new(),
    };
    let config = match Config::read(directory, &row.tenant, &keys()) {
        Ok(config) => config,
        Err(failure) => {
            row.reason = Some(failure.message);
            return row;
        }
    };
    let state = State::of(&config.mountpoint);
    (row.volume, row.mountpoint, row.labels) = (Some(config.volume), Some(config.mountpoint), config.labels);
    row.state = match (&row.suspended, &state) {
        (Some(_), State::Mounted(_) | State::NotMounted) => "suspended".to_owned(),
        (None, State::NotMounted) => "not mounted".to_owned(),
        (_, State::Dead) => "dead".to_owned(),
        (None, State::Mounted(status)) => status.state.clone(),
    };
    row.reason = row.suspended.as_ref().map(|suspension| suspension.reason.clone());
    if let State::Mounted(status) = state {
        row.reason = row.reason.or(status.reason);
        row.since_s = Some(status.since_s);
        (row.volume_id, row.pid, row.kek) = (Some(status.volume_id), Some(status.pid), Some(status.kek));
    }
    row
}
