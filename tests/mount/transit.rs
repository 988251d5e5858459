//! A mounted volume whose key is in Vault's or OpenBao's Transit engine: a real OpenBao server takes it away.

use crate::harness::{Mount, Outcome, Volume, bytes, content, number, until};
use crate::openbao::OpenBao;
use std::fs::{self, File};
use std::time::{Duration, Instant};

/// The promise: nothing can be read any more so long after `revalidate`.
const BOUND: Duration = Duration::from_secs(5);
const REVALIDATE: Duration = Duration::from_secs(1);

fn mounted(server: &OpenBao, options: &[&str]) -> Mount {
    let volume = Volume::with_kek(&server.reference(), server.environment(&server.user()), &[]);
    volume.mount(&[&["--revalidate", "1s"], options].concat())
}

fn wait_for(mount: &Mount, state: &str) {
    until(state, || mount.status()["state"] == state);
}

/// Takes the key away and gives it back, while a file is open.
fn revoke_and_restore(mount: &Mount, revoke: impl Fn(), restore: impl Fn(), code: &str) -> Outcome {
    fs::write(mount.at("file"), bytes(1, 300_000))?;
    let held = File::open(mount.at("file"))?;
    assert!(content(&held) == bytes(1, 300_000));
    revoke();
    let begin = Instant::now();
    let mut last = begin;
    while begin.elapsed() < REVALIDATE + BOUND + Duration::from_secs(1) {
        rustix::fs::fadvise(&held, 0, None, rustix::fs::Advice::DontNeed)?;
        if std::os::unix::fs::FileExt::read_at(&held, &mut [0; 4096], 0).is_ok() {
            last = Instant::now();
        }
    }
    assert!(last - begin < REVALIDATE + BOUND, "{code}: read {:?} after the refusal", last - begin);
    assert_eq!(number(File::open(mount.at("file"))), libc::EKEYREVOKED);
    let status = mount.status();
    assert_eq!((&status["state"], &status["reason"]), (&"locked".into(), &"revoked".into()), "{status}");
    let volume = mount.volume();
    let log = volume.ok(&["audit", "show", volume.path().to_str().expect("UTF-8"), "--json"]);
    assert!(log.contains(code), "{log}");
    restore();
    wait_for(mount, "unlocked");
    assert!(content(&held) == bytes(1, 300_000));
    fs::write(mount.at("after"), b"after")?;
    assert_eq!(fs::read(mount.at("after"))?, b"after");
    Ok(())
}

#[test]
fn a_soft_deleted_key_and_a_removed_policy_lock_within_the_bound_and_come_back() -> Outcome {
    let server = OpenBao::start();
    let mount = mounted(&server, &[]);
    revoke_and_restore(&mount, || server.soft_delete(), || server.restore(), "KeySoftDeleted")?;
    revoke_and_restore(&mount, || server.remove_policy(), || server.grant_policy(), "PermissionDenied")?;
    let mount = mount.again(&[]);
    assert!(fs::read(mount.at("file"))? == bytes(1, 300_000));
    server.soft_delete();
    let volume = mount.unmount();
    assert!(volume.mount_fails(&[], 6).contains("soft-delete-restore"));
    server.restore();
    Ok(())
}

#[test]
fn a_sealed_server_is_away_and_not_a_revocation() -> Outcome {
    let server = OpenBao::start();
    let mount = mounted(&server, &["--offline-grace", "4s"]);
    fs::write(mount.at("file"), bytes(1, 100_000))?;
    let held = File::open(mount.at("file"))?;
    server.seal();
    let begin = Instant::now();
    wait_for(&mount, "locked");
    // Everything went on for as long as the grace.
    assert!(begin.elapsed() > Duration::from_secs(2), "{:?}", begin.elapsed());
    assert_eq!(mount.status()["reason"], "unreachable");
    assert_eq!(number(File::open(mount.at("file"))), libc::EKEYEXPIRED);
    server.unseal();
    wait_for(&mount, "unlocked");
    assert!(content(&held) == bytes(1, 100_000));
    drop(held);
    server.seal();
    let volume = mount.unmount();
    volume.mount_fails(&[], 7);
    server.unseal();
    Ok(())
}

#[test]
fn each_envelope_is_one_call_to_wrap_and_one_to_unwrap() -> Outcome {
    let server = OpenBao::start();
    let environment = server.environment(&server.user());
    let volume = Volume::with_kek(&server.reference(), environment, &["--files-per-envelope", "100"]);
    let calls = |operation: &str| server.calls(&format!("transit/{operation}/disk"));
    let wraps = calls("encrypt");
    let mount = volume.mount(&["--revalidate", "1h"]);
    let unwraps = calls("decrypt");
    for number in 0..300 {
        fs::write(mount.at(number.to_string()), number.to_string())?;
    }
    assert_eq!(calls("decrypt"), unwraps, "creating unwraps nothing");
    // A mount wraps the volume key, to see which version is the newest, and may begin an envelope before it is needed.
    assert!((3..=5).contains(&(calls("encrypt") - wraps)), "{}", calls("encrypt") - wraps);
    let mount = mount.again(&["--revalidate", "1h"]);
    let unwraps = calls("decrypt");
    for number in 0..300 {
        assert_eq!(fs::read_to_string(mount.at(number.to_string()))?, number.to_string());
    }
    assert!((3..=4).contains(&(calls("decrypt") - unwraps)), "{}", calls("decrypt") - unwraps);
    // New keys: each old envelope once, and as few new ones as files need, and perhaps the next one.
    let mount = mount.again(&["--revalidate", "1h"]);
    let (unwraps, wraps) = (calls("decrypt"), calls("encrypt"));
    mount.volume().ok(&["rekey", mount.at("").to_str().expect("UTF-8")]);
    assert!((3..=4).contains(&(calls("decrypt") - unwraps)), "{}", calls("decrypt") - unwraps);
    assert!((3..=4).contains(&(calls("encrypt") - wraps)), "{}", calls("encrypt") - wraps);
    for number in 0..300 {
        assert_eq!(fs::read_to_string(mount.at(number.to_string()))?, number.to_string());
    }
    Ok(())
}
