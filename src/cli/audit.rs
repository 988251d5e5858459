//! `kmsfs audit`: reading the audit log of a volume, and checking that it is what was written.

use super::{Exit, Failure};
use crate::audit::{self, Broken, Cursor, Tail, Verdict};
use crate::crypto::Secret32;
use crate::crypto::derive::VolumeKeys;
use crate::daemon::control::{self, Command, Reply};
use crate::daemon::mountpoint;
use crate::fs::volume::Volume;
use crate::kms::{ConnectOptions, connect};
use crate::store::StoreDir;
use clap::{Args, Subcommand};
use serde_json::{Value, json};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// How often `--follow` looks for new lines.
const LOOK: Duration = Duration::from_millis(250);

/// What can be done with the audit log.
#[derive(Subcommand)]
pub enum AuditCommand {
    /// Print what happened to a volume
    Show(Show),
    /// Check that no line was changed, removed or added
    Verify(Verify),
}

/// `audit show`.
#[derive(Args)]
pub struct Show {
    /// The volume's directory, or where it is mounted
    #[arg(value_name = "VOLUME|MOUNTPOINT")]
    volume: PathBuf,
    /// Only what happened since: a time like 2026-11-22T03:00:00Z, or so long ago, like 2h
    #[arg(long, value_name = "TIME|DURATION", value_parser = since)]
    since: Option<SystemTime>,
    /// Go on, and print what happens
    #[arg(long, short = 'f')]
    follow: bool,
    /// Print the lines as they are in the log
    #[arg(long)]
    json: bool,
}

/// `audit verify`.
#[derive(Args)]
pub struct Verify {
    /// The volume's directory, or where it is mounted
    #[arg(value_name = "VOLUME|MOUNTPOINT")]
    volume: PathBuf,
    /// Ask the KMS for the volume's key, and check the checkpoints with it: somebody who can write to the volume can
    /// make a whole new chain, but no checkpoint
    #[arg(long)]
    deep: bool,
    /// Where the key is now, if not where the volume says
    #[arg(long, requires = "deep")]
    kek: Option<String>,
    /// The hash of a line, noted earlier (kmsfs status prints it): it has to be in the log still
    #[arg(long, value_name = "HASH", value_parser = hash)]
    head: Option<[u8; 32]>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Runs one of them.
pub fn run(command: &AuditCommand) -> Result<(), Failure> {
    match command {
        AuditCommand::Show(arguments) => show(arguments),
        AuditCommand::Verify(arguments) => verify(arguments),
    }
}

fn since(text: &str) -> Result<SystemTime, String> {
    if let Ok(ago) = humantime::parse_duration(text) {
        return SystemTime::now().checked_sub(ago).ok_or_else(|| "that is too long ago".to_owned());
    }
    humantime::parse_rfc3339_weak(text)
        .map_err(|_| "it is a time like 2026-11-22T03:00:00Z, or a duration like 2h".to_owned())
}

fn hash(text: &str) -> Result<[u8; 32], String> {
    // `kmsfs status` prints the number of the line too.
    let digits = text.rsplit(':').next().unwrap_or(text);
    let bytes = data_encoding::HEXLOWER_PERMISSIVE.decode(digits.as_bytes()).ok();
    bytes.and_then(|bytes| bytes.try_into().ok()).ok_or_else(|| "it is not 64 hexadecimal digits".to_owned())
}

/// The volume in a directory, or behind a mountpoint.
fn find(path: &Path) -> Result<Volume, Failure> {
    let mounted = mountpoint::absolute(path).ok().and_then(|path| match control::ask(&path, Command::Status) {
        Ok((Reply::Status(status), _)) => Some(status.volume),
        // Mounted by somebody else, or by a process that is dead: the kernel knows from where.
        _ => mountpoint::mounted_at(&path)
            .ok()
            .flatten()
            .filter(|m| m.fs_type == mountpoint::FS_TYPE)
            .map(|m| m.source.into()),
    });
    let path = mounted.unwrap_or_else(|| path.to_owned());
    Volume::open(&path).map_err(|error| Failure::of_volume(&path, error))
}

fn directory(volume: &Volume) -> Result<Arc<dyn StoreDir>, Failure> {
    audit::directory(volume.path()).map_err(|error| Failure::of_store(volume.path(), &error))
}

fn show(arguments: &Show) -> Result<(), Failure> {
    let volume = find(&arguments.volume)?;
    let dir = directory(&volume)?;
    let mut cursor = Cursor::default();
    let since = arguments.since.map(|time| humantime::format_rfc3339_millis(time).to_string());
    let mut out = std::io::stdout().lock();
    loop {
        let lines = audit::tail(&*dir, &mut cursor).map_err(|error| Failure::of_store(volume.path(), &error))?;
        for line in lines.iter().filter(|line| is_since(line, since.as_deref())) {
            let text = if arguments.json { line.text.clone() } else { readable(line).into_bytes() };
            match out.write_all(&text).and_then(|()| out.write_all(b"\n")).and_then(|()| out.flush()) {
                // Whoever reads has seen enough.
                Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => return Ok(()),
                Err(error) => {
                    return Err(Failure::new(Exit::Failure, format!("standard output cannot be written: {error}")));
                }
                Ok(()) => (),
            }
        }
        if !arguments.follow {
            return Ok(());
        }
        std::thread::sleep(LOOK);
    }
}

fn is_since(line: &Tail, since: Option<&str>) -> bool {
    // Times in this form are in the order of their texts. A line that says no time is shown.
    since.is_none_or(|since| line.read.as_ref().is_none_or(|read| read.time.as_str() >= since))
}

/// A line for people. Whatever is in it, it steers no terminal.
fn readable(line: &Tail) -> String {
    let Some(read) = &line.read else {
        return format!("{:<24}  NOT A LINE OF A LOG  {}", "?", audit::clean(&String::from_utf8_lossy(&line.text)));
    };
    let mut fields = Vec::new();
    for (name, value) in read.value.as_object().into_iter().flatten() {
        if !matches!(name.as_str(), "seq" | "time" | "event" | "prev") {
            flatten(name, value, &mut fields);
        }
    }
    let (time, event) = (audit::clean(&read.time), audit::clean(&read.event));
    let series = if line.series == audit::MAIN { String::new() } else { format!("{} ", line.series) };
    format!("{time:<24} {series}{:>6}  {event:<20} {}", read.seq, fields.join(" ")).trim_end().to_owned()
}

fn flatten(name: &str, value: &Value, out: &mut Vec<String>) {
    match value {
        Value::Null => (),
        Value::Object(fields) => fields.iter().for_each(|(field, value)| flatten(field, value, out)),
        Value::String(text) if text.is_empty() => (),
        Value::String(text) => {
            let text = audit::clean(text);
            out.push(if text.contains(' ') { format!("{name}=\"{text}\"") } else { format!("{name}={text}") });
        }
        Value::Array(items) => out.push(format!("{name}={}", audit::clean(&json!(items).to_string()))),
        other => out.push(format!("{name}={other}")),
    }
}

fn verify(arguments: &Verify) -> Result<(), Failure> {
    let volume = find(&arguments.volume)?;
    let dir = directory(&volume)?;
    let key = if arguments.deep { Some(audit_key(&volume, arguments.kek.as_deref())?) } else { None };
    let verdicts = audit::verify(&*dir, volume.record().id, key.as_ref(), arguments.head.as_ref())
        .map_err(|error| Failure::of_store(volume.path(), &error))?;
    let failure = judge(&volume, &verdicts, arguments.head.as_ref());
    if arguments.json {
        let report = json!({
            "ok": failure.is_none(),
            "volume_id": volume.record().id.to_string(),
            "series": verdicts,
            "error": failure.as_ref().map(|failure| &failure.message),
        });
        println!("{report:#}");
    } else {
        verdicts.iter().for_each(|verdict| print_verdict(verdict, arguments.deep));
        if let Some((verdict, seq)) = verdicts.iter().find_map(|verdict| Some((verdict, verdict.noted_at?))) {
            println!("the noted head is line {seq} of {}; {} lines follow it", verdict.series, verdict.last_seq - seq);
        }
    }
    failure.map_or(Ok(()), Err)
}

fn audit_key(volume: &Volume, kek: Option<&str>) -> Result<Secret32, Failure> {
    let record = volume.record();
    let newest = record.newest();
    let options = ConnectOptions::from_variables(|name| std::env::var(name).ok());
    let kms = connect(kek.unwrap_or(&newest.reference), &options)?;
    let volume_key = kms.unwrap(&newest.volume_key, record.id)?.secret;
    volume.authenticate(&volume_key).map_err(|error| Failure::of_volume(volume.path(), error))?;
    Ok(VolumeKeys::from(&volume_key).audit_mac)
}

/// What is wrong with a log, if something is.
fn judge(volume: &Volume, verdicts: &[Verdict], noted: Option<&[u8; 32]>) -> Option<Failure> {
    let of_volume = |message: String| Failure::new(Exit::Volume, message);
    let broken = verdicts.iter().find_map(|verdict| Some((verdict, verdict.broken.as_ref()?)));
    if let Some((verdict, Broken { file, line, offset, after_seq, what })) = broken {
        let message = format!(
            "the audit log is not what was written: audit/{file}, line {line} (byte {offset}), after line {after_seq} of {}: {what}",
            verdict.series
        );
        return Some(of_volume(message).hint("compare it with a backup of the volume; keep the file as evidence"));
    }
    if verdicts.is_empty() {
        let message = format!("{} has no audit log", volume.path().display());
        return Some(of_volume(message).hint("volumes begin one when they are made; it may have been removed"));
    }
    if noted.is_some() && verdicts.iter().all(|verdict| verdict.noted_at.is_none()) {
        let failure =
            of_volume("the noted head is not in the audit log: lines were cut off, or the log was replaced".into());
        return Some(failure.hint("if it is old, its file may have been removed to make room: mount --audit-keep"));
    }
    None
}

fn print_verdict(verdict: &Verdict, deep: bool) {
    let Verdict { series, files, lines, first_seq, last_seq, head, checkpoints, torn_bytes, .. } = verdict;
    println!("{series}: {lines} lines in {files} files, {first_seq} to {last_seq}");
    if *first_seq > 1 {
        println!("  lines 1 to {} were removed to make room", first_seq - 1);
    }
    match verdict.authenticated_to {
        Some(seq) => println!(
            "  {checkpoints} checkpoints, authentic up to line {seq}; {} lines after it are not authenticated yet",
            last_seq - seq
        ),
        None if deep => println!("  no checkpoint: nothing is authenticated yet"),
        None => println!("  {checkpoints} checkpoints, not checked (--deep asks the KMS for the key)"),
    }
    if *torn_bytes > 0 {
        println!("  {torn_bytes} bytes at the end are no whole line: a crash, or it is being written");
    }
    println!("  head {last_seq}:{head}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_and_a_duration_are_both_taken() {
        assert!(since("2h").unwrap() < SystemTime::now());
        let at = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
        assert_eq!(since("2023-11-14T22:13:20Z").unwrap(), at);
        assert_eq!(since("2023-11-14 22:13:20").unwrap(), at);
        assert!(since("yesterday").is_err());
    }

    #[test]
    fn a_head_is_taken_as_status_and_verify_print_it() {
        let digits = "0a".repeat(32);
        assert_eq!(hash(&digits), Ok([10; 32]));
        assert_eq!(hash(&format!("17:{digits}")), Ok([10; 32]));
        assert!(hash("0a").is_err());
    }

    #[test]
    fn a_planted_line_steers_no_terminal() {
        let line = |text: &str| Tail {
            series: "main".into(),
            text: text.as_bytes().to_vec(),
            read: audit::Read::parse(text.as_bytes()).ok(),
        };
        let prev = "0".repeat(64);
        let planted = format!(r#"{{"seq":1,"time":"\u001b[2J","event":"\u001b]0;x","what":"a\nb","prev":"{prev}"}}"#);
        for text in [planted.as_str(), "\u{1b}[2J no line"] {
            assert!(!readable(&line(text)).contains(|c: char| c.is_control()), "{text}");
        }
    }
}
