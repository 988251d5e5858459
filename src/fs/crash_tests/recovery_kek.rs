//! A second KEK for the day on which the first one is lost.

use super::cloud::Cloud;
use super::rewrap::{all, complete, put_files, put_more, rewrap};
use super::*;
use crate::format::volume::KekRole;
use crate::fs::rewrap::{Plan, Progress, Rewrap, Stopped};
use crate::kms::KmsErrorKind;

#[test]
fn the_recovery_key_opens_everything_and_leads_to_a_new_one() {
    let cloud = Cloud::default();
    let store = cloud.make("a", Some("r"), 3);
    let fs = cloud.mount(&store);
    let (_, wraps) = cloud.calls("r");
    put_files(&fs, 7);
    // One for each envelope, the next one included.
    assert_eq!(cloud.calls("r").1 - wraps, cloud.calls("a").1 - 1);
    fs.shut_down().unwrap();
    let before = all(&fs);
    drop(fs);
    cloud.key("a").refuses.store(true, Ordering::Relaxed);
    assert!(cloud.mount_by(&store, KekRole::Primary).is_err());
    let asked = cloud.calls("a").0;
    let fs = cloud.mount_by(&store, KekRole::Recovery).unwrap();
    assert_eq!(all(&fs), before);
    drop(fs);
    let fs = cloud.open(&store, KekRole::Recovery, false).unwrap();
    let (outcome, _) = complete(&fs, Some("b"));
    assert_eq!(outcome.retired.len(), 1);
    fs.shut_down().unwrap();
    drop(fs);
    assert_eq!(cloud.calls("a").0, asked, "the lost key is not asked");
    // One key cannot be both.
    let fs = cloud.mount(&store);
    assert!(matches!(rewrap(&fs, Some("r")).0, Err(Stopped::Kms(error)) if error.kind == KmsErrorKind::Misconfigured));
    assert_eq!(fs.volume().record().newest().reference, "b");
    drop(fs);
    // Each of the two opens everything now.
    for role in [KekRole::Primary, KekRole::Recovery] {
        assert_eq!(all(&cloud.mount_by(&store, role).unwrap()), before);
    }
}

#[test]
fn a_recovery_key_can_be_added_later_and_replaced() {
    let cloud = Cloud::default();
    let store = cloud.make("a", None, 3);
    let fs = cloud.mount(&store);
    put_files(&fs, 7);
    for recovery in ["r", "s"] {
        let (progress, stop) = (Progress::default(), AtomicBool::new(false));
        let plan = Plan { kek: None, recovery_kek: Some(recovery.into()) };
        let run = Rewrap { fs: &fs, progress: &progress, stop: &stop, pace: &|_| (), wait: &|_| () };
        assert_eq!(run.run(&plan).unwrap().left_count, 0);
        put_more(&fs, recovery.as_bytes());
    }
    fs.shut_down().unwrap();
    let before = all(&fs);
    drop(fs);
    for key in ["a", "r"] {
        cloud.key(key).refuses.store(true, Ordering::Relaxed);
    }
    assert_eq!(all(&cloud.mount_by(&store, KekRole::Recovery).unwrap()), before);
}
