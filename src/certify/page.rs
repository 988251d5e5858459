//! A certificate as a page for people: one file, without scripts, and nothing in it comes from elsewhere. To print it, or to
//! make a PDF of it, any browser will do.

use super::signature::fingerprint;
use serde_json::Value;
use std::fmt::Write;

const STYLE: &str = "
body { font: 11pt/1.45 Georgia, 'Times New Roman', serif; color: #111; max-width: 46rem; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.7rem; margin: 0 0 .2rem } h2 { font-size: 1.15rem; margin: 1.6rem 0 .4rem; break-after: avoid }
.verdict { border: 2px solid; padding: .8rem 1rem; margin: 1rem 0; break-inside: avoid }
.verdict b { font-size: 1.25rem; display: block } .destroyed { border-color: #176b2c; background: #eef8f0 }
.readable { border-color: #9b1c1c; background: #fcefef } .open { border-color: #8a6100; background: #fdf7e7 }
table { border-collapse: collapse; width: 100%; font-size: 9.5pt } td { overflow-wrap: anywhere }
.conditions { table-layout: fixed } .conditions th:first-child { width: 36% } .conditions th:nth-child(2) { width: 6.5rem } tr { break-inside: avoid }
th, td { text-align: left; vertical-align: top; padding: .3rem .5rem; border-bottom: 1px solid #bbb }
th { font-weight: 600; width: 11rem } thead th { border-bottom: 2px solid #444; width: auto } thead { display: table-header-group }
code { font: 9pt/1.3 'DejaVu Sans Mono', Menlo, Consolas, monospace; overflow-wrap: anywhere }
.shown { color: #176b2c } .contradicted { color: #9b1c1c } .not { color: #8a6100 } .result { font-weight: 600; white-space: nowrap }
footer { margin-top: 2rem; font-size: 9pt; border-top: 1px solid #444; padding-top: .5rem }
@page { size: A4; margin: 18mm 16mm } @media print { body { margin: 0; max-width: none; padding: 0 } }
";

/// The page for a certificate that `public` signed; `file` is what the signed one is called.
pub fn page(certificate: &Value, public: &str, file: &str) -> String {
    let mut out = String::new();
    // Writing to a string does not fail.
    let _ = write(&mut out, certificate, public, file);
    out
}

/// Text of a field, safe to stand in a page.
fn text(value: &Value) -> String {
    match value {
        Value::Null => "–".to_owned(),
        Value::Bool(true) => "yes".to_owned(),
        Value::Bool(false) => "no".to_owned(),
        Value::String(text) => escaped(text),
        other => escaped(&other.to_string()),
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;").replace('\'', "&#39;")
}

fn items(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn write(out: &mut String, certificate: &Value, public: &str, file: &str) -> std::fmt::Result {
    let volume = &certificate["volume"];
    let verdict = certificate["verdict"].as_str().unwrap_or_default();
    let class = match verdict {
        "destroyed" => "destroyed",
        "readable" => "readable",
        _ => "open",
    };
    let title = format!("Keys of volume {}", text(&volume["id"]));
    write!(out, "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>{title}</title>")?;
    write!(
        out,
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
    )?;
    writeln!(out, "<style>{STYLE}</style></head><body>")?;
    writeln!(out, "<h1>Certificate: the state of a volume’s keys</h1>")?;
    let (made, by, host) = (text(&certificate["made"]), text(&certificate["made_by"]), text(&certificate["host"]));
    writeln!(out, "<div>Made {made} by {by} on {host}</div>")?;
    let name = escaped(&verdict.replace('-', " "));
    let statement = text(&certificate["statement"]);
    writeln!(out, "<div class=\"verdict {class}\"><b>{name}</b>{statement}</div>")?;
    keys(out, certificate)?;
    store(out, certificate)?;
    conditions(out, certificate)?;
    past(out, certificate)?;
    writeln!(
        out,
        "<footer>This page is for reading; what counts is the signed file <code>{}</code>, of which it says the same: \
         <code>kmsfs certify --verify {}</code>. Signed with Ed25519 by the key <code>{}</code> (fingerprint \
         <code>{}</code>); whose key that is has to be known from elsewhere. Nothing in this certificate was confirmed by \
         the volume’s own key.</footer></body></html>",
        escaped(file),
        escaped(file),
        escaped(public),
        fingerprint(public)
    )
}

fn row(out: &mut String, name: &str, value: &str) -> std::fmt::Result {
    writeln!(out, "<tr><th>{name}</th><td>{value}</td></tr>")
}

fn keys(out: &mut String, certificate: &Value) -> std::fmt::Result {
    writeln!(out, "<h2>Keys</h2>")?;
    for key in items(&certificate["keys"]) {
        let tries: Vec<_> = std::iter::once(&key["volume_key"]).chain(items(&key["envelopes_tried"])).collect();
        writeln!(out, "<table>")?;
        row(out, "key", &format!("<code>{}</code>", text(&key["id"])))?;
        row(
            out,
            "what for",
            &format!("{}, number {}; {} files", text(&key["role"]), text(&key["generation"]), text(&key["files"])),
        )?;
        let mut state = text(&key["state"]);
        for (field, words) in [
            ("state_detail", ""),
            ("recoverable_until", "recoverable until "),
            ("purge_protected", "purge protected: "),
        ] {
            if !key[field].is_null() {
                let _ = write!(state, "; {words}{}", text(&key[field]));
            }
        }
        row(out, "the service says", &state)?;
        let mut asked = String::new();
        for tried in tries {
            let code = tried["code"].as_str().map(|code| format!(" ({})", escaped(code))).unwrap_or_default();
            let id = tried["client_request_id"].as_str().or(tried["request_id"].as_str());
            let id = id.map(|id| format!(", call <code>{}</code>", escaped(id))).unwrap_or_default();
            let _ = write!(asked, "{}{code}{id}<br>", text(&tried["outcome"]));
        }
        row(out, "asked to unwrap", &asked)?;
        writeln!(out, "</table>")?;
    }
    Ok(())
}

fn store(out: &mut String, certificate: &Value) -> std::fmt::Result {
    let (store, volume, headers) = (&certificate["store"], &certificate["volume"], &certificate["headers"]);
    writeln!(out, "<h2>What is on the disk</h2><table>")?;
    row(out, "volume", &format!("<code>{}</code>", text(&volume["id"])))?;
    row(out, "names", &text(&volume["names"]))?;
    let files = format!(
        "{} names of files, {} directories, {} bytes",
        text(&store["names_of_files"]),
        text(&store["directories"]),
        text(&store["bytes"])
    );
    row(out, "contents", &files)?;
    let tests = format!(
        "{} windows of 4096 bytes, {} of them suspicious (false positives: {}); {} bytes in windows that are too short. {}",
        text(&store["windows_tested"]),
        text(&store["windows_suspicious"]),
        text(&store["false_positives"]),
        text(&store["bytes_in_windows_too_short"]),
        text(&store["not_tested"])
    );
    row(out, "randomness", &tests)?;
    row(out, "not ciphertext", &format!("places: {}", text(&store["not_ciphertext_count"])))?;
    row(
        out,
        "root of all headers",
        &format!("<code>{}</code> over {} files", text(&headers["root"]), text(&headers["leaves"])),
    )?;
    let mounted = &certificate["mounted"];
    let mounted = if mounted.is_null() {
        "no".to_owned()
    } else {
        format!("{}; locked: {}", text(&mounted["holder"]), text(&mounted["locked"]))
    };
    row(out, "mounted", &mounted)?;
    writeln!(out, "</table>")?;
    let foreign = items(&store["not_ciphertext"]);
    if !foreign.is_empty() {
        writeln!(out, "<h2>What is not ciphertext</h2><table><thead><tr><th>place</th><th>what</th></tr></thead>")?;
        for found in foreign {
            writeln!(out, "<tr><td><code>{}</code></td><td>{}</td></tr>", text(&found["path"]), text(&found["what"]))?;
        }
        writeln!(out, "</table>")?;
    }
    Ok(())
}

fn conditions(out: &mut String, certificate: &Value) -> std::fmt::Result {
    writeln!(
        out,
        "<h2>Conditions for cryptographic erase</h2><table class=\"conditions\"><thead><tr><th>condition</th><th>result</th><th>evidence</th></tr></thead>"
    )?;
    for condition in items(&certificate["conditions"]) {
        let result = text(&condition["result"]);
        let class = result.split(' ').next().unwrap_or_default();
        writeln!(
            out,
            "<tr><td>{}. {}<br><small>{}</small></td><td class=\"result {class}\">{result}</td><td>{}</td></tr>",
            text(&condition["number"]),
            text(&condition["condition"]),
            text(&condition["source"]),
            text(&condition["evidence"])
        )?;
    }
    writeln!(out, "</table>")
}

fn past(out: &mut String, certificate: &Value) -> std::fmt::Result {
    let log = &certificate["audit_log"];
    writeln!(out, "<h2>The audit log</h2><table>")?;
    row(out, "volume made", &text(&log["made"]))?;
    row(out, "whole", &text(&log["whole"]))?;
    for series in items(&log["series"]) {
        let head = format!("line {}, hash <code>{}</code>", text(&series["last_seq"]), text(&series["head"]));
        row(out, &format!("head of {}", text(&series["series"])), &head)?;
    }
    for (field, other, name) in [("imports", "source", "imported from"), ("exports", "target", "exported to")] {
        for moved in items(&log[field]) {
            let words = format!(
                "{}: {} files, {} bytes, {}",
                text(&moved[other]),
                text(&moved["files"]),
                text(&moved["bytes"]),
                text(&moved["time"])
            );
            row(out, name, &words)?;
        }
    }
    writeln!(out, "</table>")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn nothing_in_a_certificate_becomes_markup() {
        let evil = "<script>alert('x')</script>\"&";
        let certificate = json!({
            "verdict": evil, "statement": evil, "made": evil, "made_by": evil, "host": evil,
            "volume": {"id": evil, "names": evil},
            "keys": [{"id": evil, "state": evil, "state_detail": evil, "volume_key": {"outcome": evil, "code": evil, "client_request_id": evil}}],
            "store": {"not_ciphertext": [{"path": evil, "what": evil}], "false_positives": evil},
            "headers": {"root": evil}, "mounted": {"holder": evil},
            "conditions": [{"number": 1, "condition": evil, "result": evil, "evidence": evil, "source": evil}],
            "audit_log": {"made": evil, "series": [{"series": evil, "head": evil}], "imports": [{"source": evil}]},
        });
        let page = page(&certificate, evil, evil);
        assert!(!page.contains("<script") && page.matches("&lt;script").count() > 15, "{page}");
    }
}
