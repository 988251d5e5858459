//! `kmsfs key`: make a raw key, and find out whether a KEK works before anything depends on it.

use super::{Exit, Failure};
use crate::crypto::Secret32;
use crate::kms::{ConnectOptions, Facts, Kms, KmsError, connect};
use crate::units::VolumeId;
use clap::{Args, Subcommand};
use serde_json::json;
use std::io::Write;
use std::time::{Duration, Instant, SystemTime};
use zeroize::Zeroizing;

/// What can be done with keys.
#[derive(Subcommand)]
pub enum KeyCommand {
    /// Print a fresh raw key, for a file that `file:PATH` names: 32 random bytes in base64
    Generate,
    /// Wrap and unwrap a throw-away secret with a KEK, and say what the KMS knows about it
    Test(TestArguments),
}

/// `key test`.
#[derive(Args)]
pub struct TestArguments {
    /// The KEK: https://NAME.vault.azure.net/keys/KEY[/VERSION], or file:PATH
    #[arg(value_name = "KEK")]
    kek: String,
    /// Print one JSON object, also when the test fails
    #[arg(long)]
    json: bool,
}

/// Runs one of them.
///
/// # Errors
/// With the exit code that tells a refusal, a silence, a missing identity and a wrong key apart.
pub fn run(command: KeyCommand) -> Result<(), Failure> {
    match command {
        KeyCommand::Generate => generate(),
        KeyCommand::Test(arguments) => test(&arguments),
    }
}

fn generate() -> Result<(), Failure> {
    let mut text = Zeroizing::new([0; 45]);
    data_encoding::BASE64.encode_mut(Secret32::random().expose(), &mut text[..44]);
    text[44] = b'\n';
    // Standard output keeps a copy in its buffer: to go past it, not to leave one.
    let mut out = std::fs::File::from(rustix::io::dup(std::io::stdout()).map_err(|error| unprinted(&error.into()))?);
    out.write_all(&text[..]).map_err(|error| unprinted(&error))
}

fn test(arguments: &TestArguments) -> Result<(), Failure> {
    let options = ConnectOptions::from_variables(|name| std::env::var(name).ok());
    let report = connect(&arguments.kek, &options).and_then(|kms| Report::of(kms.as_ref()));
    match report {
        Ok(report) if arguments.json => print(&report.json().to_string()),
        Ok(report) => print(&report.text()),
        Err(error) => {
            let json = arguments.json.then(|| failure_json(&error));
            let failure = Failure::from(error);
            if let Some(mut json) = json {
                json["exit"] = json!(failure.exit as u8);
                print(&json.to_string())?;
            }
            Err(failure)
        }
    }
}

/// What the test found.
struct Report {
    facts: Facts,
    wrapped_bytes: usize,
    wrap: Duration,
    unwrap: Duration,
}

impl Report {
    fn of(kms: &dyn Kms) -> Result<Self, KmsError> {
        let facts = kms.facts()?;
        let secret = Secret32::random();
        let volume = VolumeId([0; 16]);
        // The first wrap also fetches the public half: what counts is how long the next ones take.
        kms.current()?;
        let start = Instant::now();
        let wrapped = kms.wrap(&secret, volume)?;
        let wrap = start.elapsed();
        // A wrap proves nothing: it may have been local, and Azure has been seen to wrap with a disabled key.
        let start = Instant::now();
        let unwrapped = kms.unwrap(&wrapped, volume)?.secret;
        let unwrap = start.elapsed();
        if unwrapped.expose() != secret.expose() {
            let what = format!("{} unwrapped to something else than what was wrapped", wrapped.kek);
            return Err(KmsError::new(crate::kms::KmsErrorKind::Damaged, what));
        }
        Ok(Self { facts, wrapped_bytes: wrapped.blob.len(), wrap, unwrap })
    }

    fn warning(&self) -> Option<&'static str> {
        let expiry_is_not_revocation =
            "the KMS goes on unwrapping after the expiry: to revoke, disable or delete the key";
        self.facts.expires.map(|_| expiry_is_not_revocation)
    }

    fn text(&self) -> String {
        let Facts { kek, kind, enabled, not_before, expires, .. } = &self.facts;
        let mut lines = vec![
            format!("key      {kek}"),
            format!("kind     {kind}"),
            format!("wrapped  {} bytes", self.wrapped_bytes),
            format!("wrap     {}", millis(self.wrap)),
            format!("unwrap   {}", millis(self.unwrap)),
        ];
        lines.extend(enabled.map(|enabled| format!("enabled  {}", if enabled { "yes" } else { "no" })));
        lines.extend(not_before.map(|time| format!("from     {}", stamp(time))));
        lines.extend(expires.map(|time| format!("expires  {}", stamp(time))));
        lines.extend(self.warning().map(|warning| format!("warning  {warning}")));
        lines.join("\n")
    }

    fn json(&self) -> serde_json::Value {
        let Facts { kek, kind, enabled, not_before, expires, .. } = &self.facts;
        json!({
            "ok": true,
            "kek": kek.0,
            "kind": kind,
            "enabled": enabled,
            "not_before": not_before.map(stamp),
            "expires": expires.map(stamp),
            "wrapped_bytes": self.wrapped_bytes,
            "wrap_us": u64::try_from(self.wrap.as_micros()).unwrap_or(u64::MAX),
            "unwrap_us": u64::try_from(self.unwrap.as_micros()).unwrap_or(u64::MAX),
            "warning": self.warning(),
        })
    }
}

fn failure_json(error: &KmsError) -> serde_json::Value {
    json!({
        "ok": false,
        "kind": error.kind.name(),
        "code": error.code,
        "message": error.message,
        "hint": error.hint,
        "request_id": error.ids.request,
        "client_request_id": error.ids.client_request,
        "retry_after_ms": error.retry_after.map(|after| u64::try_from(after.as_millis()).unwrap_or(u64::MAX)),
    })
}

fn millis(duration: Duration) -> String {
    format!("{:.1} ms", duration.as_secs_f64() * 1000.0)
}

fn stamp(time: SystemTime) -> String {
    humantime::format_rfc3339_seconds(time).to_string()
}

fn print(text: &str) -> Result<(), Failure> {
    writeln!(std::io::stdout(), "{text}").map_err(|error| unprinted(&error))
}

fn unprinted(error: &std::io::Error) -> Failure {
    Failure::new(Exit::Failure, format!("standard output cannot be written: {error}"))
}
