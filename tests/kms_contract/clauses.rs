//! What every provider does, whatever its cloud calls it.

use crate::bench::{Bench, options};
use kmsfs::crypto::Secret32;
use kmsfs::kms::{
    ConnectOptions, KekId, Kms, KmsError, KmsErrorKind, MAX_WRAPPED_LEN, THROTTLED, WrapAlgorithm, Wrapped, connect,
};
use kmsfs::units::VolumeId;
use serde_json::Value;
use std::collections::HashMap;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

const VOLUME: VolumeId = VolumeId([5; 16]);
const OTHER_VOLUME: VolumeId = VolumeId([6; 16]);
/// Given beyond a deadline to a machine that has other things to do.
const SLACK: Duration = Duration::from_secs(3);

fn secret(seed: u8) -> Secret32 {
    Secret32::take(&mut [seed; 32])
}

fn wrapped(kms: &dyn Kms) -> Wrapped {
    kms.wrap(&secret(0x42), VOLUME).expect("a wrapped secret")
}

#[track_caller]
fn unwraps(kms: &dyn Kms, wrapped: &Wrapped, what: &str) {
    let unwrapped = kms.unwrap(wrapped, VOLUME).unwrap_or_else(|error| panic!("{what}: {error:?}"));
    assert_eq!(unwrapped.secret.expose(), &[0x42; 32], "{what}");
}

#[track_caller]
fn refusal(kms: &dyn Kms, wrapped: &Wrapped, what: &str) -> KmsError {
    match kms.unwrap(wrapped, VOLUME) {
        Ok(_) => panic!("{what}: it unwraps"),
        Err(error) => error,
    }
}

/// How `kmsfs key test` ends, and its report.
fn key_test(reference: &str, environment: &HashMap<String, String>) -> (i32, Value) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kmsfs"));
    command.env_clear().envs(environment).args(["key", "test", "--json", reference]);
    let output = command.output().expect("the program runs");
    let report = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("no report: {output:?}"));
    (output.status.code().expect("an exit code"), report)
}

pub fn what_is_wrapped_is_unwrapped_by_a_provider_that_knows_nothing(bench: &dyn Bench) {
    let kms = bench.kms();
    let (one, two) = (wrapped(&*kms), kms.wrap(&secret(7), VOLUME).expect("another one"));
    for wrapped in [&one, &two] {
        assert_eq!(wrapped.algorithm, bench.algorithm());
        assert_eq!(WrapAlgorithm::from_code(wrapped.algorithm as u8), Some(wrapped.algorithm));
        assert!(bench.blob_len().contains(&wrapped.blob.len()), "{} bytes", wrapped.blob.len());
        assert!(wrapped.blob.len() <= MAX_WRAPPED_LEN);
        assert!(!wrapped.blob.windows(8).any(|bytes| bytes == [0x42; 8] || bytes == [7; 8]), "the secret is in it");
    }
    assert_eq!(kms.current().expect("a version"), one.kek);
    let stranger = bench.kms();
    unwraps(&*stranger, &one, "by another provider");
    assert_eq!(stranger.unwrap(&two, VOLUME).expect("the other one").secret.expose(), &[7; 32]);
    let facts = kms.facts().expect("facts");
    assert_eq!(facts.kek, one.kek);
    assert!(!facts.kind.is_empty() && facts.enabled != Some(false), "{facts:?}");
}

pub fn a_secret_of_another_volume_is_not_unwrapped_where_the_service_binds_it(bench: &dyn Bench) {
    let kms = bench.kms();
    let outcome = kms.unwrap(&wrapped(&*kms), OTHER_VOLUME);
    if bench.binds_volume() {
        assert_eq!(outcome.map(drop).expect_err("another volume").kind, KmsErrorKind::Damaged);
    } else {
        // The keys of files are derived with the volume's own key: this binds them all the same.
        outcome.expect("the service does not know volumes");
    }
}

pub fn old_versions_unwrap_and_the_newest_wraps_once_it_is_asked_for(bench: &dyn Bench) {
    let kms = bench.kms();
    let old = wrapped(&*kms);
    let Some(()) = bench.rotate().or_say(bench.name(), "versions") else { return };
    assert_eq!(wrapped(&*kms).kek, old.kek, "the newest version is only asked for by current()");
    let newest = kms.current().expect("the newest version");
    assert_ne!(newest, old.kek);
    let new = wrapped(&*kms);
    assert_eq!(new.kek, newest);
    for kms in [kms, bench.kms()] {
        unwraps(&*kms, &old, "the old version");
        unwraps(&*kms, &new, "the new version");
    }
    // The version counts, not what the service would find by itself.
    let confused = Wrapped { kek: new.kek.clone(), ..old.clone() };
    if bench.is_told_the_version() {
        assert_eq!(refusal(&*bench.kms(), &confused, "the wrong version").kind, KmsErrorKind::Damaged);
    }
    let pinned = connect(&bench.pinned(&old.kek.0), &bench.options()).expect("a pinned version");
    assert_eq!(wrapped(&*pinned).kek, old.kek);
    if let Some(again) = bench.kms().rewrap(&old, VOLUME).expect("a rewrap") {
        assert!(bench.rewraps());
        assert_eq!(again.kek, newest);
        unwraps(&*bench.kms(), &again, "what was wrapped again");
    } else {
        assert!(!bench.rewraps(), "the service can wrap again");
    }
}

pub fn every_way_to_revoke_is_a_refusal_and_undoing_it_grants_again(bench: &dyn Bench) {
    let kms = bench.kms();
    let wrapped = wrapped(&*kms);
    let refusals = bench.refusals();
    assert!(!refusals.is_empty());
    for change in refusals {
        let what = change.name;
        (change.set)();
        for kms in [&kms, &bench.kms()] {
            let error = refusal(&**kms, &wrapped, what);
            assert_eq!((error.kind, error.code.as_deref()), (KmsErrorKind::Refused, change.code), "{what}: {error:?}");
            assert!(error.hint.is_some(), "{what}: {error:?}");
        }
        let (exit, report) = key_test(&bench.reference(), &bench.environment());
        assert_eq!(
            (exit, &report["error_kind"], &report["exit"]),
            (6, &"refused".into(), &6.into()),
            "{what}: {report}"
        );
        (change.unset)();
        unwraps(&*kms, &wrapped, what);
        unwraps(&*bench.kms(), &wrapped, what);
    }
    let (exit, report) = key_test(&bench.reference(), &bench.environment());
    assert_eq!((exit, &report["ok"]), (0, &true.into()), "{report}");
}

pub fn every_kind_of_silence_is_unreachable_within_the_deadline(bench: &dyn Bench) {
    let Some(silences) = bench.silences().or_say(bench.name(), "silence") else { return };
    let options = ConnectOptions { deadline: Duration::from_secs(2), ..bench.options() };
    let kms = connect(&bench.reference(), &options).expect("a provider");
    let wrapped = wrapped(&*kms);
    unwraps(&*kms, &wrapped, "before");
    for change in silences {
        let what = change.name;
        (change.set)();
        for kms in [&kms, &connect(&bench.reference(), &options).expect("a provider")] {
            let start = Instant::now();
            let error = refusal(&**kms, &wrapped, what);
            assert_eq!(error.kind, KmsErrorKind::Unreachable, "{what}: {error:?}");
            assert!(start.elapsed() < kms.deadline() + SLACK, "{what}: {:?}", start.elapsed());
        }
        (change.unset)();
        unwraps(&*kms, &wrapped, what);
    }
}

pub fn a_service_that_throttles_is_unreachable_and_says_so(bench: &dyn Bench) {
    let Some(change) = bench.throttle().or_say(bench.name(), "throttling") else { return };
    let options = ConnectOptions { deadline: Duration::from_secs(3), ..bench.options() };
    let kms = connect(&bench.reference(), &options).expect("a provider");
    let wrapped = wrapped(&*kms);
    (change.set)();
    let error = refusal(&*kms, &wrapped, "throttled");
    assert_eq!((error.kind, error.code.as_deref()), (KmsErrorKind::Unreachable, Some(THROTTLED)), "{error:?}");
    (change.unset)();
    unwraps(&*kms, &wrapped, "no longer throttled");
}

pub fn a_changed_blob_is_damage(bench: &dyn Bench) {
    let kms = bench.kms();
    let wrapped = wrapped(&*kms);
    let last = wrapped.blob.len() - 1;
    let changed = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut blob = wrapped.blob.clone();
        change(&mut blob);
        Wrapped { blob, ..wrapped.clone() }
    };
    let flipped = |at: usize| changed(&move |blob| blob[at] ^= 1);
    let other = connect(&bench.other_reference(), &bench.options()).expect("the other key");
    let others = other.wrap(&secret(0x42), VOLUME).expect("a secret of another key");
    let cases = [
        ("its first byte", flipped(0)),
        ("a byte in it", flipped(last / 2)),
        ("its last byte", flipped(last)),
        ("cut", changed(&|blob| blob.truncate(last))),
        ("lengthened", changed(&|blob| blob.push(0))),
        ("empty", changed(&Vec::clear)),
        ("of another key", Wrapped { blob: others.blob, ..wrapped.clone() }),
        ("of a provider that is not this one", Wrapped { kek: KekId("other:key#1".into()), ..wrapped.clone() }),
    ];
    for (what, damaged) in cases {
        let error = refusal(&*kms, &damaged, what);
        assert_eq!(error.kind, KmsErrorKind::Damaged, "{what}: {error:?}");
    }
    unwraps(&*kms, &wrapped, "unchanged");
}

pub fn what_cannot_work_is_said_with_a_way_out(bench: &dyn Bench) {
    for (reference, word) in bench.misconfigured() {
        let wrap = |kms: Arc<dyn Kms>| kms.wrap(&secret(1), VOLUME).map(drop);
        let error = connect(&reference, &bench.options()).and_then(wrap).expect_err(&reference);
        assert_eq!(error.kind, KmsErrorKind::Misconfigured, "{reference}: {error:?}");
        assert!(error.hint.as_ref().is_some_and(|hint| hint.contains(word)), "{reference}: {error:?}");
        let (exit, report) = key_test(&reference, &bench.environment());
        assert_eq!(exit, 12, "{reference}: {report}");
    }
}

pub fn an_identity_that_is_not_accepted_is_no_revocation(bench: &dyn Bench) {
    let Some(strangers) = bench.strangers().or_say(bench.name(), "identities") else { return };
    let wrapped = wrapped(&*bench.kms());
    for environment in strangers {
        let outcome = connect(&bench.reference(), &options(&environment)).and_then(|kms| kms.unwrap(&wrapped, VOLUME));
        let error = outcome.map(drop).expect_err("a stranger");
        assert_eq!(error.kind, KmsErrorKind::Credentials, "{error:?}");
        assert!(error.hint.is_some(), "{error:?}");
        let (exit, report) = key_test(&bench.reference(), &environment);
        assert_eq!((exit, &report["cause"]), (8, &"credentials".into()), "{report}");
    }
}

pub fn an_unwrap_is_one_call_and_a_wrap_as_many_as_are_stated(bench: &dyn Bench) {
    let kms = bench.kms();
    let wrapped = wrapped(&*kms);
    unwraps(&*kms, &wrapped, "the first time");
    let Some(before) = bench.calls().or_say(bench.name(), "counting") else { return };
    for _ in 0..5 {
        kms.wrap(&secret(1), VOLUME).expect("a wrap");
    }
    for _ in 0..3 {
        unwraps(&*kms, &wrapped, "again");
    }
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| unwraps(&*kms, &wrapped, "with others"));
        }
    });
    let after = bench.calls().or_say(bench.name(), "counting").expect("it counted before");
    assert_eq!(after.unwraps - before.unwraps, 11);
    assert_eq!(after.wraps - before.wraps, 5 * bench.calls_for_a_wrap());
}

/// A secret goes from each provider to each other one.
pub fn a_secret_can_be_wrapped_again_by_any_other_provider(benches: &[Box<dyn Bench>]) {
    for from in benches {
        let old = wrapped(&*from.kms());
        for to in benches {
            let what = format!("from {} to {}", from.name(), to.name());
            let secret = from.kms().unwrap(&old, VOLUME).expect("the secret").secret;
            let new = to.kms().wrap(&secret, VOLUME).unwrap_or_else(|error| panic!("{what}: {error:?}"));
            unwraps(&*to.kms(), &new, &what);
            if from.name() != to.name() {
                let error = refusal(&*to.kms(), &old, &what);
                assert_eq!(error.kind, KmsErrorKind::Damaged, "{what}: {error:?}");
            }
        }
    }
}
