//! What a check found, for people and for scripts.

use crate::check::{Finding, Findings, Severity, Totals, printable};
use serde_json::{Value, json};
use std::path::PathBuf;

/// The outcome of a check.
pub struct Report {
    /// The volume's directory.
    pub volume: PathBuf,
    /// Its id.
    pub volume_id: String,
    /// Everything was authenticated, not only looked at.
    pub deep: bool,
    /// It came to its end.
    pub complete: bool,
    /// What there is.
    pub totals: Totals,
    /// Files that were looked at.
    pub files: u64,
    /// Bytes that were authenticated.
    pub bytes: u64,
    /// What was found.
    pub findings: Findings,
    /// What was moved away: lines of the report in the quarantine.
    pub quarantined: Vec<Value>,
}

/// Prints it to standard output.
pub fn print(report: &Report, json: bool) {
    if json {
        println!("{:#}", to_json(report));
        return;
    }
    report.findings.iter().for_each(print_finding);
    for moved in &report.quarantined {
        println!("moved     {} is {} in the quarantine", moved["stored"].as_str().unwrap_or_default(), moved["file"]);
    }
    let Totals { files, directories, links, others, bytes } = report.totals;
    println!(
        "{}: {files} files ({}), {directories} directories, {links} symbolic links, {others} others",
        report.volume.display(),
        indicatif::HumanBytes(bytes)
    );
    if report.deep {
        println!("authenticated: {} files, {}", report.files, indicatif::HumanBytes(report.bytes));
    }
    let count = |severity| report.findings.count(severity);
    println!(
        "{} damaged, {} could not be checked, {} notes{}",
        count(Severity::Damage),
        count(Severity::Unchecked),
        count(Severity::Note),
        if report.complete { "" } else { "; not everything was looked at" }
    );
}

/// Prints one finding to standard output.
pub fn print_finding(finding: &Finding) {
    let severity = match finding.kind.severity() {
        Severity::Damage => "damage",
        Severity::Unchecked => "unchecked",
        Severity::Note => "note",
    };
    let place = finding.path.as_deref().map_or_else(|| printable(&finding.stored), printable);
    println!("{severity:<9} {}: {place}", finding.kind.name());
    if finding.path.is_some() {
        println!("          stored as {}", printable(&finding.stored));
    }
    let ranges = |ranges: Vec<String>| ranges.join(", ");
    if !finding.chunks.is_empty() {
        let chunk = |(first, last): &(u64, u64)| match first == last {
            true => first.to_string(),
            false => format!("{first}-{last}"),
        };
        println!("          {}: {}", finding.detail, ranges(finding.chunks.iter().map(chunk).collect()));
    } else if !finding.tag_blocks.is_empty() {
        let blocks = finding.tag_blocks.iter().map(u64::to_string).collect();
        println!("          {}: {}", finding.detail, ranges(blocks));
    } else {
        println!("          {}", finding.detail);
    }
    println!("          {}", finding.kind.advice());
}

fn to_json(report: &Report) -> Value {
    json!({
        "volume": report.volume,
        "volume_id": report.volume_id,
        "deep": report.deep,
        "complete": report.complete,
        "totals": report.totals,
        "files_checked": report.files,
        "bytes_authenticated": report.bytes,
        "damaged": report.findings.count(Severity::Damage),
        "unchecked": report.findings.count(Severity::Unchecked),
        "notes": report.findings.count(Severity::Note),
        "findings": report.findings.iter().map(Finding::to_json).collect::<Vec<_>>(),
        "quarantined": report.quarantined,
    })
}
