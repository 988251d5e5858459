//! The Debian package, its manual pages and completions: made by `scripts/package` from the program that the tests use,
//! looked at with Debian's own tools, and lived with on a Debian 12 of its own. Needs root and `/dev/fuse`, and fails without.

mod archive;
mod debian;
mod life;
mod pages;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Once;

/// What a test that fails in its own preparation does.
type Outcome<T = ()> = Result<T, Box<dyn std::error::Error>>;

/// How a command ended: its code, and what it printed on both outputs.
#[derive(Debug)]
struct Ended {
    code: i32,
    text: String,
}

impl From<Output> for Ended {
    fn from(output: Output) -> Self {
        let text = [output.stdout, output.stderr].concat();
        Self { code: output.status.code().unwrap_or(-1), text: String::from_utf8_lossy(&text).into_owned() }
    }
}

impl Ended {
    /// Runs a command to its end.
    fn of(command: &mut Command) -> Self {
        Self::from(command.output().unwrap_or_else(|error| panic!("{command:?}: {error}")))
    }

    /// What it printed; it has to have succeeded.
    fn ok(self) -> String {
        assert_eq!(self.code, 0, "{}", self.text);
        self.text
    }
}

/// The program that writes the manual pages. `cargo test` builds it along with all examples, but not if only this test is
/// asked for; then it may be that of yesterday.
fn manual() -> PathBuf {
    static BUILT: Once = Once::new();
    let path = Path::new(env!("CARGO_BIN_EXE_kmsfs")).with_file_name("examples").join("manual");
    BUILT.call_once(|| {
        let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        cargo.args(["build", "--locked", "--quiet", "--example", "manual"]).current_dir(env!("CARGO_MANIFEST_DIR"));
        if path.iter().any(|part| part == "release") {
            cargo.arg("--release");
        }
        Ended::of(&mut cargo).ok();
    });
    path
}

/// Makes a package of the program that the tests use, with this version; returns its file.
fn package(version: &str, directory: &Path) -> PathBuf {
    manual();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/package");
    let mut command = Command::new(script);
    command.args(["--fast", "--version", version, "--binary", env!("CARGO_BIN_EXE_kmsfs"), "--output"]).arg(directory);
    let printed = Ended::of(&mut command).ok();
    let file = printed.lines().find(|line| line.ends_with(".deb")).expect("the name of a package");
    PathBuf::from(file)
}
