//! The package as a file.

use crate::{Ended, Outcome, package};
use std::fs;
use std::process::Command;
use tempfile::TempDir;

#[test]
fn the_same_program_gives_the_same_bytes() -> Outcome {
    let directory = TempDir::new()?;
    let [one, other] = ["one", "other"].map(|name| package("1.0-1", &directory.path().join(name)));
    assert!(fs::read(&one)? == fs::read(&other)?, "two packages of one program differ");
    let sums = Ended::of(
        Command::new("sha256sum")
            .args(["--check", "--strict"])
            .arg(format!("{}.sha256", one.display()))
            .current_dir(one.parent().ok_or("no directory")?),
    );
    assert_eq!(sums.code, 0, "{}", sums.text);
    Ok(())
}

#[test]
fn lintian_has_nothing_to_say() -> Outcome {
    let directory = TempDir::new()?;
    let file = package("1.0-1", directory.path());
    let mut lintian = Command::new("lintian");
    lintian.args(["--allow-root", "--fail-on", "error,warning", "--tag-display-limit", "0"]).arg(file);
    let ended = Ended::of(&mut lintian);
    assert_eq!(
        (ended.code, ended.text.replace("running with root privileges is not recommended!\n", "").as_str()),
        (0, "")
    );
    Ok(())
}
