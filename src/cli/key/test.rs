//! `kmsfs key test`: whether a KEK works, and if not, what stands in the way. Tries what a mount does: asks for the key,
//! wraps a throw-away secret, and unwraps it again. A wrap alone proves nothing: it may be local, and Azure has been seen
//! to wrap with a disabled key.

use super::print;
use crate::audit::{self, Event, clean};
use crate::crypto::Secret32;
use crate::crypto::cipher::ValueCipher;
use crate::crypto::derive::VolumeKeys;
use crate::failure::Failure;
use crate::fs::volume::Volume;
use crate::kms::{
    CallIds, ConnectOptions, Facts, KEY_EXPIRED, KEY_MALFORMED, KEY_NOT_YET_VALID, KEY_REPLACED, Kms, KmsError,
    KmsErrorKind, OPERATION_FORBIDDEN, THROTTLED, connect,
};
use crate::units::VolumeId;
use clap::Args;
use serde_json::{Value, json};
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime};

/// For the end of `--help`.
pub const EXIT_CODES: &str = "\
Exit codes: 0 it works; 6 refused: disabled, deleted, no role, no access policy, firewall; 7 no answer, or throttled; \
8 no credentials; 11 it is not the volume's key; 12 it cannot work like this: expired, an operation that is not \
permitted, a key of a type that cannot wrap.";

/// So many unwraps are timed, after the first one.
const TIMED: usize = 3;
/// A clock that differs by more than this is worth a warning: tokens are not accepted at five minutes.
const SKEW: f64 = 60.0;

/// `key test`.
#[derive(Args)]
pub struct Arguments {
    /// The KEK: https://NAME.vault.azure.net/keys/KEY[/VERSION], transit+https://HOST/MOUNT/keys/NAME[/VERSION],
    /// arn:aws:kms:…, projects/…/cryptoKeys/KEY, or file:PATH, cmd:COMMAND, fd:NUMBER, credential:NAME
    #[arg(value_name = "KEK", required_unless_present = "volume")]
    kek: Option<String>,
    /// Test the KEK of this volume, also with the volume's own key, and note it in the volume's audit log
    #[arg(long, value_name = "VOLUME")]
    volume: Option<PathBuf>,
    /// Print one JSON object, also when the test fails
    #[arg(long)]
    json: bool,
}

/// What was tried when it failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Connect,
    Get,
    Wrap,
    Unwrap,
    Message,
    VolumeKey,
}

impl Step {
    fn name(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::Get => "get",
            Self::Wrap => "wrap",
            Self::Unwrap => "unwrap",
            Self::Message => "message",
            Self::VolumeKey => "volume-key",
        }
    }
}

/// What the test found, as far as it came.
#[derive(Default)]
struct Report {
    facts: Option<Facts>,
    wrapped_bytes: Option<usize>,
    wrap: Option<Duration>,
    /// The first one, which also connects, and the others.
    first_unwrap: Option<Duration>,
    unwraps: Vec<Duration>,
    /// By how many seconds this machine's clock is ahead of the service's, and how far that may be wrong.
    skew: Option<(f64, f64)>,
    ids: CallIds,
    /// A message was encrypted, and decrypted again with what the KMS unwrapped: so many bytes.
    message: Option<usize>,
    /// What the provider itself warns of.
    warnings: Vec<String>,
}

/// Runs it.
pub fn run(arguments: &Arguments) -> Result<(), Failure> {
    let volume = match &arguments.volume {
        Some(path) => Some(Volume::open(path).map_err(|error| Failure::of_volume(path, error))?),
        None => None,
    };
    let recorded = volume.as_ref().map(|volume| volume.record().newest().reference.clone());
    let kek = arguments.kek.clone().or(recorded).unwrap_or_default();
    let mut report = Report::default();
    let mut step = Step::Connect;
    let outcome = report.fill(&kek, volume.as_ref(), &mut step);
    if let Some(volume) = &volume {
        note(volume, &kek, &report, &outcome);
    }
    let failure = outcome.err().map(|error| (cause(&error), error.clone(), Failure::from(error)));
    if arguments.json {
        print(&report.json(step, failure.as_ref()).to_string())?;
    } else if failure.is_none() || report.facts.is_some() {
        print(&report.text().join("\n"))?;
    }
    failure.map_or(Ok(()), |(_, _, failure)| Err(failure))
}

/// Writes into the audit log of a volume that its key was tested.
fn note(volume: &Volume, kek: &str, report: &Report, outcome: &Result<Option<Secret32>, KmsError>) {
    let error = outcome.as_ref().err();
    let event = Event::KeyTest {
        kek: clean(report.facts.as_ref().map_or(kek, |facts| &facts.kek.0)),
        ok: error.is_none(),
        message: error.map(|error| clean(&error.to_string())),
        call: error.map_or(&report.ids, |error| &error.ids).into(),
    };
    let key = outcome.as_ref().ok().and_then(Option::as_ref).map(|key| VolumeKeys::from(key).audit_mac);
    if let Err(error) = audit::append(volume.path(), volume.record().id, key, &[event]) {
        eprintln!("warning: the test could not be noted in the audit log: {error}");
    }
}

impl Report {
    /// Tries everything. Returns the volume's key, if there is a volume.
    fn fill(&mut self, kek: &str, volume: Option<&Volume>, step: &mut Step) -> Result<Option<Secret32>, KmsError> {
        let options = ConnectOptions::from_variables(|name| std::env::var(name).ok());
        let kms = connect(kek, &options)?;
        self.warnings = kms.warnings();
        *step = Step::Get;
        let asked = SystemTime::now();
        let facts = self.facts.insert(kms.facts()?);
        self.skew = facts.service_time.map(|service| skew(asked, SystemTime::now(), service));
        *step = Step::Wrap;
        let (secret, id) = (Secret32::random(), VolumeId([0; 16]));
        // The first wrap also fetches the public half: what counts is how long the next ones take.
        kms.current()?;
        let start = Instant::now();
        let wrapped = kms.wrap(&secret, id)?;
        (self.wrap, self.wrapped_bytes) = (Some(start.elapsed()), Some(wrapped.blob.len()));
        *step = Step::Unwrap;
        for round in 0..=TIMED {
            let start = Instant::now();
            let unwrapped = kms.unwrap(&wrapped, id)?;
            let took = start.elapsed();
            if round == 0 {
                self.first_unwrap = Some(took)
            } else {
                self.unwraps.push(took)
            }
            self.ids = unwrapped.ids;
            if unwrapped.secret.expose() != secret.expose() {
                let what = format!("{} unwrapped to something else than what was wrapped", wrapped.kek);
                return Err(KmsError::new(KmsErrorKind::Damaged, what));
            }
            if round == TIMED {
                *step = Step::Message;
                self.message = Some(try_message(&secret, &unwrapped.secret)?);
            }
        }
        let Some(volume) = volume else { return Ok(None) };
        *step = Step::VolumeKey;
        self.volume_key(&*kms, volume).map(Some)
    }

    fn volume_key(&mut self, kms: &dyn Kms, volume: &Volume) -> Result<Secret32, KmsError> {
        let record = volume.record();
        let unwrapped = kms.unwrap(&record.newest().volume_key, record.id)?;
        self.ids = unwrapped.ids;
        volume
            .authenticate(&unwrapped.secret)
            .map_err(|error| KmsError::new(KmsErrorKind::Damaged, error.to_string()))?;
        Ok(unwrapped.secret)
    }

    fn median(&self) -> Option<Duration> {
        let mut sorted = self.unwraps.clone();
        sorted.sort_unstable();
        sorted.get(sorted.len() / 2).copied()
    }

    /// What works now and may be a surprise later.
    fn warnings(&self) -> Vec<String> {
        let mut out = self.warnings.clone();
        if let Some(facts) = &self.facts {
            if facts.expires.is_some() {
                out.push("the KMS goes on unwrapping after the expiry: to revoke, disable or delete the key".into());
            }
            match facts.recovery_level.as_deref().map(recovery) {
                Some((false, _)) => out.push(
                    "without soft delete, a key that is deleted is gone at once, and all data with it: enable it"
                        .into(),
                ),
                Some((true, false)) => out.push(
                    "without purge protection, whoever may purge can destroy the key, and all data with it".into(),
                ),
                _ => (),
            }
        }
        if let Some((ahead, _)) = self.skew.filter(|(ahead, _)| ahead.abs() > SKEW) {
            out.push(format!("this machine's clock is {} the service's: tokens may not be accepted", apart(ahead)));
        }
        out
    }

    fn text(&self) -> Vec<String> {
        let mut lines = Vec::new();
        let mut say = |name: &str, value: Option<String>| lines.extend(value.map(|value| format!("{name:<9} {value}")));
        let facts = self.facts.as_ref();
        say("key", facts.map(|facts| clean(&facts.kek.0)));
        say("kind", facts.map(|facts| clean(&facts.kind)));
        say("enabled", facts.and_then(|facts| facts.enabled).map(|yes| if yes { "yes" } else { "no" }.into()));
        say("permits", facts.and_then(|facts| facts.operations.as_ref()).map(|ops| clean(&ops.join(", "))));
        say("from", facts.and_then(|facts| facts.not_before).map(stamp));
        say("expires", facts.and_then(|facts| facts.expires).map(stamp));
        let recovery = facts.and_then(|facts| facts.recovery_level.as_deref()).map(|level| {
            let (soft, protected) = recovery(level);
            let on = |on| if on { "on" } else { "off" };
            format!("soft delete {}, purge protection {} ({})", on(soft), on(protected), clean(level))
        });
        say("deletion", recovery);
        say("wrapped", self.wrapped_bytes.map(|bytes| format!("{bytes} bytes")));
        say("wrap", self.wrap.map(millis));
        say(
            "unwrap",
            self.median().map(|median| {
                let first = self.first_unwrap.map(millis).unwrap_or_default();
                format!("{} (the first one: {first})", millis(median))
            }),
        );
        say("message", self.message.map(|bytes| format!("{bytes} bytes encrypted and decrypted again")));
        say(
            "clock",
            self.skew.map(|(ahead, within)| match ahead.abs() <= within {
                true => format!("the service's, to {within:.1} s"),
                false => format!("{} the service's", apart(ahead)),
            }),
        );
        for warning in self.warnings() {
            say("warning", Some(warning));
        }
        lines
    }

    fn json(&self, step: Step, failure: Option<&(&'static str, KmsError, Failure)>) -> Value {
        let micros = |duration: Duration| u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        let mut report = json!({
            "ok": failure.is_none(),
            "wrapped_bytes": self.wrapped_bytes,
            "wrap_us": self.wrap.map(micros),
            "unwrap_us": self.median().map(micros),
            "unwrap_first_us": self.first_unwrap.map(micros),
            "message_bytes": self.message,
            "clock_ahead_s": self.skew.map(|(ahead, _)| ahead),
            "request_id": self.ids.request,
            "client_request_id": self.ids.client_request,
            "warnings": self.warnings(),
        });
        if let Some(facts) = &self.facts {
            let recovery = facts.recovery_level.as_deref().map(recovery);
            report["kek"] = json!(facts.kek.0);
            report["kind"] = json!(facts.kind);
            report["enabled"] = json!(facts.enabled);
            report["operations"] = json!(facts.operations);
            report["not_before"] = json!(facts.not_before.map(stamp));
            report["expires"] = json!(facts.expires.map(stamp));
            report["recovery_level"] = json!(facts.recovery_level);
            report["soft_delete"] = json!(recovery.map(|(soft, _)| soft));
            report["purge_protection"] = json!(recovery.map(|(_, protected)| protected));
        }
        if let Some((cause, error, failure)) = failure {
            report["step"] = json!(step.name());
            report["cause"] = json!(cause);
            report["error_kind"] = json!(error.kind.name());
            report["code"] = json!(error.code);
            report["message"] = json!(error.message);
            report["hint"] = json!(failure.hint);
            report["request_id"] = json!(error.ids.request);
            report["client_request_id"] = json!(error.ids.client_request);
            report["retry_after_ms"] =
                json!(error.retry_after.map(|after| u64::try_from(after.as_millis()).unwrap_or(u64::MAX)));
            report["exit"] = json!(failure.exit as u8);
        }
        report
    }
}

/// Encrypts a message under the secret that was wrapped, as files are, and decrypts it with the one that was unwrapped.
fn try_message(wrapped: &Secret32, unwrapped: &Secret32) -> Result<usize, KmsError> {
    const MESSAGE: &[u8] = b"If this can be read again, files under this key can be.";
    const PURPOSE: &[u8] = b"kmsfs key test";
    let sealed = ValueCipher::new(wrapped).seal(PURPOSE, MESSAGE);
    match ValueCipher::new(unwrapped).open(PURPOSE, &sealed) {
        Ok(opened) if opened == MESSAGE => Ok(MESSAGE.len()),
        _ => Err(KmsError::new(KmsErrorKind::Damaged, "a test message could not be decrypted again")),
    }
}

/// One word for what stands in the way. Stable: scripts depend on it.
fn cause(error: &KmsError) -> &'static str {
    match (error.kind, error.code.as_deref()) {
        (_, Some("KeyDisabled" | "DisabledException" | "KEY_DISABLED")) => "disabled",
        (_, Some("ForbiddenByRbac" | "PERMISSION_DENIED" | "IAM_PERMISSION_DENIED")) => "role",
        (_, Some("AccessDenied" | "PermissionDenied" | "AccessDeniedException")) => "access-policy",
        (_, Some("ForbiddenByFirewall")) => "firewall",
        (_, Some(THROTTLED)) => "throttled",
        (_, Some(OPERATION_FORBIDDEN)) => "wrong-operation",
        (_, Some(KEY_EXPIRED)) => "expired",
        (_, Some(KEY_NOT_YET_VALID)) => "not-yet-valid",
        (_, Some(KEY_REPLACED)) => "another-key",
        (_, Some(KEY_MALFORMED)) => "malformed-key",
        (_, Some("TokenRevoked")) => "token-revoked",
        (_, Some("VersionTooOld")) => "version-too-old",
        (_, Some("KeyPendingDeletion" | "DESTROYED")) => "deleted",
        (_, Some(code)) if code.contains("Deleted") => "deleted",
        (KmsErrorKind::Refused, Some("NotFoundException" | "NOT_FOUND")) => "missing",
        (KmsErrorKind::Refused, Some(code)) if code.ends_with("NotFound") => "missing",
        (KmsErrorKind::Refused, _) => "refused",
        (KmsErrorKind::Unreachable, _) => "unreachable",
        (KmsErrorKind::Damaged, _) => "another-key",
        (KmsErrorKind::Misconfigured, _) => "misconfigured",
        (KmsErrorKind::Credentials, _) => "credentials",
    }
}

/// Whether a deleted key can be brought back, and whether nobody can destroy it for good before its time, as Key Vault's
/// recovery level says.
fn recovery(level: &str) -> (bool, bool) {
    let soft = level.contains("Recoverable");
    (soft, soft && !level.contains("Purgeable"))
}

/// By how many seconds the local clock is ahead, and how far that may be wrong: the service tells whole seconds, of a
/// moment between the two.
fn skew(asked: SystemTime, answered: SystemTime, service: SystemTime) -> (f64, f64) {
    let seconds = |time: SystemTime| time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64();
    let (begin, end) = (seconds(asked), seconds(answered));
    let ahead = f64::midpoint(begin, end) - (seconds(service) + 0.5);
    (ahead, 0.5 + (end - begin).abs() / 2.0)
}

fn apart(ahead: f64) -> String {
    format!("{:.0} s {}", ahead.abs(), if ahead > 0.0 { "ahead of" } else { "behind" })
}

fn millis(duration: Duration) -> String {
    format!("{:.1} ms", duration.as_secs_f64() * 1000.0)
}

fn stamp(time: SystemTime) -> String {
    humantime::format_rfc3339_seconds(time).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kms::KekId;

    #[test]
    fn the_recovery_level_says_what_happens_to_a_deleted_key() {
        for (level, expected) in [
            ("Purgeable", (false, false)),
            ("Recoverable+Purgeable", (true, false)),
            ("CustomizedRecoverable+Purgeable", (true, false)),
            ("Recoverable", (true, true)),
            ("Recoverable+ProtectedSubscription", (true, true)),
            ("CustomizedRecoverable", (true, true)),
        ] {
            assert_eq!(recovery(level), expected, "{level}");
        }
    }

    #[test]
    fn a_clock_that_is_wrong_is_noticed_and_one_that_is_right_is_not() {
        let at = |millis: u64| SystemTime::UNIX_EPOCH + Duration::from_millis(millis);
        let (ahead, within) = skew(at(10_900), at(11_100), at(10_000));
        assert!(ahead.abs() <= within, "{ahead} {within}");
        let report = |service| Report { skew: Some(skew(at(900_000), at(900_100), at(service))), ..Report::default() };
        assert!(report(900_000).warnings().is_empty());
        assert!(report(300_000).warnings()[0].contains("600 s ahead of"));
        assert!(report(1_500_000).warnings()[0].contains("600 s behind"));
    }

    #[test]
    fn what_may_be_a_surprise_later_is_said() {
        let facts = |level: &str| Facts {
            recovery_level: Some(level.into()),
            expires: Some(SystemTime::UNIX_EPOCH),
            ..Facts::new(KekId("k".into()), "RSA 2048")
        };
        let warnings = |level| Report { facts: Some(facts(level)), ..Report::default() }.warnings().join("\n");
        assert!(warnings("Recoverable").contains("goes on unwrapping after the expiry"));
        assert!(!warnings("Recoverable").contains("purge"));
        assert!(warnings("Recoverable+Purgeable").contains("without purge protection"));
        assert!(warnings("Purgeable").contains("without soft delete"));
    }
}
