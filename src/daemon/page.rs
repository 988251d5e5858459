//! The status page: how every mount is doing, for people. Plain files, without a build step and without anything from
//! elsewhere; what is shown comes as JSON and is put in as text, never as markup.

use super::host::Gathered;
use super::metrics::Metrics;
use crate::http::Answer;
use serde_json::{Value, json};

const HTML: &str = include_str!("page/page.html");
const CSS: &str = include_str!("page/page.css");
const SCRIPT: &str = include_str!("page/page.js");

/// The files of the page.
pub fn answer(path: &str) -> Option<Answer> {
    Some(match path {
        "/" => Answer::ok("text/html; charset=utf-8", HTML),
        "/page.css" => Answer::ok("text/css; charset=utf-8", CSS),
        "/page.js" => Answer::ok("text/javascript; charset=utf-8", SCRIPT),
        _ => return None,
    })
}

/// What the page shows.
pub fn data(gathered: &Gathered) -> Answer {
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let mounts: Vec<_> = gathered.mounts.iter().map(mount).collect();
    let value = json!({"host": host, "silent": gathered.silent, "mounts": mounts});
    Answer::ok("application/json", value.to_string())
}

fn mount(metrics: &Metrics) -> Value {
    let status = &metrics.status;
    let mut value = json!({
        "tenant": status.tenant,
        "mountpoint": status.mountpoint.to_string_lossy(),
        "state": status.state,
        "reason": status.reason,
        "since_s": status.since_s,
        "granted": status.is_granted(),
        "lease_remaining_s": status.lease_remaining_s,
        "lease_s": status.revalidate_s + status.offline_grace_s,
        "kek": status.kek,
        "latencies_us": metrics.recent_latencies_us,
        "hits": status.kms["hits"],
        "misses": status.kms["misses"],
        "damaged": status.damaged,
        "last_error": status.last_error,
        "events": metrics.events,
    });
    value["rollback"] = json!(status.rollback_guard.as_ref().is_some_and(|guard| guard.suspect));
    value["audit_error"] = json!(status.audit.as_ref().and_then(|audit| audit.error.as_ref()));
    value
}
