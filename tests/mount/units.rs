//! The units of scripts/systemd: right, hardened, and run by a real systemd in namespaces of its own.

use crate::harness::{Ended, Outcome, run};
use std::path::PathBuf;
use std::process::Command;

fn scripts() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("scripts")
}

/// A copy of the units that names the program of this test.
fn units() -> Outcome<tempfile::TempDir> {
    let directory = tempfile::tempdir()?;
    for name in ["kmsfs@.service", "kmsfs.target"] {
        let text = std::fs::read_to_string(scripts().join("systemd").join(name))?;
        std::fs::write(directory.path().join(name), text.replace("/usr/bin/kmsfs", env!("CARGO_BIN_EXE_kmsfs")))?;
    }
    std::os::unix::fs::symlink("kmsfs@.service", directory.path().join("kmsfs@acme.service"))?;
    Ok(directory)
}

#[test]
fn systemd_finds_nothing_wrong_with_the_units() -> Outcome {
    let units = units()?;
    let mut command = Command::new("systemd-analyze");
    command
        .args(["verify", "--man=no"])
        .args(["kmsfs@acme.service", "kmsfs.target"].map(|unit| units.path().join(unit)));
    let ended = Ended::from(command.output()?);
    assert_eq!((ended.code, ended.stderr.trim()), (0, ""), "{ended:?}");
    Ok(())
}

#[test]
fn the_service_is_hardened_to_at_most_3_0() -> Outcome {
    let unit = scripts().join("systemd/kmsfs@.service");
    // It ends with a failure above the threshold, which is in tenths.
    let report = run("systemd-analyze", &[&"security", &"--offline=true", &"--no-pager", &"--threshold=30", &unit]);
    let last = report.lines().rfind(|line| line.contains("Overall exposure level")).expect("a verdict").to_owned();
    let level: f64 =
        last.split(':').nth(1).and_then(|rest| rest.split_whitespace().next()).expect("a number").parse()?;
    assert!(level <= 3.0, "{last}");
    Ok(())
}

#[test]
fn a_real_systemd_starts_restarts_stops_and_mends_the_mounts_of_two_tenants() -> Outcome {
    let mut command = Command::new(scripts().join("with-systemd"));
    command.arg(env!("CARGO_BIN_EXE_kmsfs")).args(["bash", "-c", include_str!("units/two-tenants.sh")]);
    let ended = Ended::from(command.output()?);
    assert_eq!(ended.code, 0, "{}\n{}", ended.stdout, ended.stderr);
    Ok(())
}
