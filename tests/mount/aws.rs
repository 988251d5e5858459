//! A mounted volume whose key is in AWS KMS, at a server that enforces what AWS enforces.

use crate::clouds::aws::Aws;
use crate::harness::{Mount, Outcome, Volume, bytes, content, create, number, until};
use crate::openbao::OpenBao;
use crate::vault::Vault;
use std::fs;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

const REVALIDATE: Duration = Duration::from_secs(1);
/// The promise: nothing can be read any more so long after `revalidate`.
const BOUND: Duration = Duration::from_secs(5);

fn volume(aws: &Aws) -> Volume {
    Volume::with_kek(&aws.alias(), aws.environment(), &[])
}

/// Waits until nothing can be read, and checks that it was not too late and that the number is right.
fn locks_within_the_bound(mount: &Mount, since: Instant, error: i32) {
    until("the volume locks", || fs::read(mount.at("file")).is_err());
    // The call that finds out may have been under way already, and is confirmed a second later.
    let took = since.elapsed();
    assert!(took < REVALIDATE + BOUND, "it took {took:?}");
    until("the state is told", || mount.status()["state"] == "locked");
    assert_eq!(number(fs::read(mount.at("file"))), error);
    assert_eq!(number(fs::read_dir(mount.at("directory"))), error);
}

#[test]
fn a_key_that_is_disabled_or_about_to_be_deleted_locks_and_everything_is_back_with_it() -> Outcome {
    let aws = Aws::ministack();
    let mount = volume(&aws).mount(&["--revalidate", "1s"]);
    fs::create_dir(mount.at("directory"))?;
    fs::write(mount.at("file"), bytes(1, 300_000))?;
    let open = create(mount.at("directory/open"));
    open.write_all_at(&bytes(2, 10_000), 0)?;
    open.sync_all()?;
    type Act = fn(&Aws);
    let ways: [(&str, Act, Act); 3] = [
        ("disabled", Aws::disable, Aws::enable),
        ("pending deletion", Aws::schedule_deletion, Aws::cancel_deletion),
        ("policy removed", Aws::remove_grant, Aws::grant),
    ];
    for (way, revoke, give_back) in ways {
        revoke(&aws);
        locks_within_the_bound(&mount, Instant::now(), libc::EKEYREVOKED);
        assert_eq!(number(open.read_at(&mut [0; 100], 0)), libc::EKEYREVOKED, "{way}");
        give_back(&aws);
        until("the volume unlocks", || mount.status()["state"] == "unlocked");
        assert_eq!(fs::read(mount.at("file"))?, bytes(1, 300_000), "{way}");
        assert_eq!(content(&open), bytes(2, 10_000), "{way}");
    }
    drop(open);
    // What the audit log has of it joins with CloudTrail.
    let volume = mount.unmount();
    let log = volume.ok(&["audit", "show", "--json", volume.path().to_str().expect("UTF-8")]);
    assert!(log.contains("DisabledException") && log.contains("KeyPendingDeletion"), "{log}");
    let remounted = volume.mount(&[]);
    assert_eq!(fs::read(remounted.at("file"))?, bytes(1, 300_000));
    Ok(())
}

#[test]
fn a_server_that_is_gone_locks_only_after_the_grace() -> Outcome {
    let mut aws = Aws::ministack();
    let mount = volume(&aws).mount(&["--revalidate", "1s", "--offline-grace", "8s"]);
    fs::create_dir(mount.at("directory"))?;
    fs::write(mount.at("file"), bytes(1, 300_000))?;
    aws.kill();
    let killed = Instant::now();
    assert!(is_readable(&mount), "silence is no refusal");
    until("the volume locks", || !is_readable(&mount));
    assert!(killed.elapsed() > Duration::from_secs(6), "it locked after {:?}", killed.elapsed());
    until("the state is told", || mount.status()["state"] == "locked");
    assert_eq!(number(fs::read(mount.at("file"))), libc::EKEYEXPIRED);
    Ok(())
}

#[test]
fn a_volume_goes_from_the_embedded_vault_to_aws_and_on_to_transit_and_back_while_it_is_mounted() -> Outcome {
    let (vault, aws, openbao) = (Vault::start(), Aws::ministack(), OpenBao::start());
    let mut environment = vault.environment();
    environment.extend(aws.environment());
    environment.extend(openbao.environment(&openbao.user()));
    let home = format!("{}/keys/tenant", vault.environment()["KMSFS_DEV_VAULT_URL"]);
    let mount = Volume::with_kek(&home, environment, &["--files-per-envelope", "4"]).mount(&[]);
    for number in 0..12 {
        fs::write(mount.at(number.to_string()), bytes(number, 5000))?;
    }
    let all =
        |mount: &Mount| (0..12).all(|n| fs::read(mount.at(n.to_string())).is_ok_and(|read| read == bytes(n, 5000)));
    let place = mount.at("").to_str().expect("UTF-8").to_owned();
    for (number, kek) in [&aws.alias(), &openbao.reference(), &home].into_iter().enumerate() {
        let report = mount.volume().ok(&["rewrap", &place, "--kek", kek, "--json"]);
        let report: serde_json::Value = serde_json::from_str(&report)?;
        assert_eq!((&report["complete"], &report["rewrapped"]), (&true.into(), &12.into()), "{report:#}");
        match number {
            0 => drop(vault.run(&["key", "disable", "tenant"])),
            1 => {
                aws.disable();
                vault.run(&["key", "enable", "tenant"]);
            }
            _ => openbao.soft_delete(),
        }
        // New keys under the new provider, too; and nothing needs the old one.
        mount.volume().ok(&["rekey", &place]);
        mount.volume().ok(&["lock", &place]);
        mount.volume().ok(&["unlock", &place]);
        assert!(all(&mount), "{kek}");
    }
    assert!(all(&mount.again(&[])));
    Ok(())
}

fn is_readable(mount: &Mount) -> bool {
    fs::read(mount.at("file")).is_ok()
}

#[test]
fn another_key_behind_the_alias_is_a_new_version_and_the_old_one_is_still_asked() -> Outcome {
    let aws = Aws::ministack();
    let mount = volume(&aws).mount(&[]);
    fs::write(mount.at("old"), bytes(1, 5000))?;
    let volume = mount.unmount();
    let second = aws.create_key();
    aws.repoint(&second);
    let mount = volume.mount(&[]);
    fs::write(mount.at("new"), bytes(2, 5000))?;
    let volume = mount.unmount();
    let info = volume.ok(&["info", "--json", volume.path().to_str().expect("UTF-8")]);
    assert!(info.contains(&aws.key) && info.contains(&second), "{info}");
    let mount = volume.mount(&[]);
    assert_eq!((fs::read(mount.at("old"))?, fs::read(mount.at("new"))?), (bytes(1, 5000), bytes(2, 5000)));
    // The first key alone: its own files, and no others.
    let volume = mount.unmount();
    aws.disable();
    let mount = volume.mount(&[]);
    assert_eq!(fs::read(mount.at("new"))?, bytes(2, 5000));
    assert_eq!(number(fs::read(mount.at("old"))), libc::EKEYREVOKED);
    aws.enable();
    until("the old file is back", || fs::read(mount.at("old")).is_ok());
    Ok(())
}
