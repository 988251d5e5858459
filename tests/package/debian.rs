//! A Debian 12 of its own, in a directory, with its own mounts and processes: they end with it, whatever happens.

use crate::Ended;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use tempfile::TempDir;

/// The base system, made once; what the package depends on is among apt's files, so that no network is needed later.
const BOOTSTRAP: &str = r#"
    debootstrap --variant=minbase --include=ca-certificates,man-db bookworm "$1.new" >&2
    chroot "$1.new" apt-get --yes --no-install-recommends --download-only install fuse3 >&2
    mv "$1.new" "$1""#;

/// The first process of its namespaces: it makes the mounts, says what its number is outside, and reaps orphans until its
/// input ends.
const FIRST: &str = r#"
    mount --bind "$1" "$1"
    mount -t proc proc "$1/proc"
    mount -t tmpfs tmpfs "$1/run"
    touch "$1/dev/fuse"
    mount --bind /dev/fuse "$1/dev/fuse"
    read -r number _ </proc/self/stat
    echo "$number"
    read -r _ || true"#;

/// A running Debian.
pub struct Debian {
    place: TempDir,
    first: Child,
    number: String,
}

impl Debian {
    /// A fresh one.
    pub fn new() -> Self {
        assert!(rustix::process::geteuid().is_root(), "this test makes a system of its own: run it as root");
        assert!(Path::new("/dev/fuse").exists(), "this test needs /dev/fuse: modprobe fuse");
        let temporary = Path::new(env!("CARGO_TARGET_TMPDIR"));
        let base = temporary.join("debian-12");
        if !base.exists() {
            let _ = fs::remove_dir_all(temporary.join("debian-12.new"));
            Ended::of(Command::new("bash").args(["-euc", BOOTSTRAP, "bash"]).arg(&base)).ok();
        }
        let place = TempDir::with_prefix_in("debian-", temporary).expect("a temporary directory");
        let root = place.path().join("root");
        Ended::of(Command::new("cp").args(["--archive", "--reflink=auto"]).args([&base, &root])).ok();
        // Not every C library leads names below localhost to this machine.
        fs::write(root.join("etc/hosts"), "127.0.0.1 localhost devvault.localhost\n").expect("a file of hosts");
        let mut first = Command::new("unshare")
            .args(["--mount", "--pid", "--fork", "--kill-child", "bash", "-euc", FIRST, "bash"])
            .arg(&root)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("unshare runs");
        let mut number = String::new();
        BufReader::new(first.stdout.take().expect("a pipe")).read_line(&mut number).expect("its number");
        assert!(!number.is_empty(), "the first process did not start");
        Self { place, first, number: number.trim().to_owned() }
    }

    /// A path in it, from outside.
    pub fn path(&self, path: &str) -> PathBuf {
        self.place.path().join("root").join(path.trim_start_matches('/'))
    }

    /// Runs a shell's script in it.
    pub fn run(&self, script: &str) -> Ended {
        let mut command = Command::new("nsenter");
        command.args(["--target", &self.number, "--mount", "--pid", "chroot"]).arg(self.path("/"));
        command.args([
            "env",
            "-i",
            "PATH=/usr/sbin:/usr/bin",
            "HOME=/root",
            "LC_ALL=C.UTF-8",
            "DEBIAN_FRONTEND=noninteractive",
        ]);
        Ended::of(command.args(["sh", "-euc", script]).stdin(Stdio::null()))
    }

    /// The same, which has to succeed; returns what it printed.
    pub fn ok(&self, script: &str) -> String {
        let ended = self.run(script);
        assert_eq!(ended.code, 0, "{script}\n{}", ended.text);
        ended.text
    }
}

impl Drop for Debian {
    fn drop(&mut self) {
        // With the first process, the kernel ends all others and takes the mounts away.
        drop(self.first.stdin.take());
        let _ = self.first.wait();
    }
}
