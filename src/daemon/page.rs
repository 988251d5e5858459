//! The status page: how every mount is doing, for people. Plain files, without a build step and without anything from
//! elsewhere; what is shown comes as JSON and is put in as text, never as markup.

use super::host::Found;
use crate::http::Answer;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

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

/// What the page shows: what `kmsfs status --json` prints, and for each mount its tone.
pub fn data(found: &BTreeMap<PathBuf, Found>) -> Answer {
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let mounts: Vec<_> = found.iter().map(|(mountpoint, found)| mount(mountpoint, found)).collect();
    let value = json!({"host": host, "version": env!("CARGO_PKG_VERSION"), "mounts": mounts});
    Answer::ok("application/json", value.to_string())
}

fn mount(mountpoint: &Path, found: &Found) -> Value {
    let mut value = found.to_json(mountpoint);
    value["tone"] = json!(found.tone());
    value
}
