//! A volume in a directory of its own, mounted by the real program; unmounted when it goes out of scope, also when
//! the test fails.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// What a test that fails in its own preparation does.
pub type Outcome<T = ()> = Result<T, Box<dyn std::error::Error>>;

/// For how long something that has to happen by itself may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// What every test that other users take part in mounts with.
pub const FOR_ALL: &[&str] = &["-o", "allow_other,suid,dev"];
/// The user and group `nobody`.
pub const NOBODY: u32 = 65534;

/// A volume that is not mounted.
pub struct Volume {
    parent: TempDir,
    /// Where it is, if not beside the mountpoint.
    place: Option<PathBuf>,
    /// What the program's environment has beside the test's own.
    environment: HashMap<String, String>,
}

/// How a command ended.
#[derive(Debug)]
pub struct Ended {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

/// A mounted volume.
pub struct Mount {
    volume: Volume,
}

impl Volume {
    /// A volume whose KEK is in a file.
    pub fn new() -> Self {
        Self::with(&[])
    }

    /// The same, made with these options of `init`.
    pub fn with(options: &[&str]) -> Self {
        Self::nothing().made(options)
    }

    /// A volume in this directory, which may lie on another filesystem.
    pub fn at(path: &Path) -> Self {
        let mut volume = Self::nothing();
        volume.place = Some(path.to_owned());
        volume.made(&[])
    }

    fn made(self, options: &[&str]) -> Self {
        let volume = self;
        volume.make_key("kek");
        let kek = volume.kek("kek");
        volume.ok(&[&["init", volume.path().to_str().expect("UTF-8"), "--kek", &kek], options].concat());
        volume
    }

    /// A volume whose KEK is at this address.
    pub fn with_kek(kek: &str, environment: HashMap<String, String>, options: &[&str]) -> Self {
        let mut volume = Self::nothing();
        volume.environment = environment;
        volume.ok(&[&["init", volume.path().to_str().expect("UTF-8"), "--kek", kek], options].concat());
        volume
    }

    /// A place for a volume, and an empty mountpoint.
    pub fn nothing() -> Self {
        assert!(rustix::process::geteuid().is_root(), "these tests mount as several users: run them as root");
        assert!(Path::new("/dev/fuse").exists(), "these tests need /dev/fuse: modprobe fuse");
        let parent = TempDir::with_prefix("kmsfs-mount-").expect("a temporary directory");
        // Other users come through here.
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(parent.path(), mode).expect("permissions");
        std::fs::create_dir(parent.path().join("mnt")).expect("a mountpoint");
        Self { parent, place: None, environment: HashMap::new() }
    }

    /// Makes a raw key in a file.
    pub fn make_key(&self, name: &str) {
        let key = self.ok(&["key", "generate"]);
        std::fs::write(self.file(name), key).expect("a key file");
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
        std::fs::set_permissions(self.file(name), mode).expect("permissions");
    }

    /// How `--kek` calls the key in a file.
    pub fn kek(&self, name: &str) -> String {
        format!("file:{}", self.file(name).display())
    }

    /// The volume's directory.
    pub fn path(&self) -> PathBuf {
        self.place.clone().unwrap_or_else(|| self.file("volume"))
    }

    /// Where it is mounted.
    pub fn mountpoint(&self) -> PathBuf {
        self.file("mnt")
    }

    /// A file beside the volume.
    pub fn file(&self, name: &str) -> PathBuf {
        self.parent.path().join(name)
    }

    /// The log of its mounts.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.file("log")).unwrap_or_default()
    }

    /// `kmsfs` with these arguments, to be run.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kmsfs"));
        command.args(arguments).envs(&self.environment);
        command
    }

    /// Runs `kmsfs` with these arguments.
    pub fn run(&self, arguments: &[&str]) -> Ended {
        Ended::from(self.command(arguments).output().expect("the program runs"))
    }

    /// The same, which has to succeed; returns what it printed.
    pub fn ok(&self, arguments: &[&str]) -> String {
        let ended = self.run(arguments);
        assert_eq!(ended.code, 0, "{arguments:?}: {ended:?}");
        ended.stdout
    }

    /// The same, which has to fail with this code, an error and a hint; returns both.
    pub fn fails(&self, arguments: &[&str], code: i32) -> String {
        let ended = self.run(arguments);
        assert_eq!(ended.code, code, "{arguments:?}: {ended:?}");
        assert!(ended.stderr.starts_with("error: ") && ended.stderr.contains("\nhint: "), "{ended:?}");
        ended.stderr
    }

    /// The arguments that mount it.
    pub fn mount_arguments(&self, options: &[&str]) -> Vec<String> {
        let places = [self.path(), self.mountpoint()].map(|path| path.to_str().expect("UTF-8").to_owned());
        let log = self.file("log").to_str().expect("UTF-8").to_owned();
        let options = options.iter().map(|option| (*option).to_owned());
        ["mount".to_owned()].into_iter().chain(places).chain(["--log-file".to_owned(), log]).chain(options).collect()
    }

    /// Mounts it.
    pub fn mount(self, options: &[&str]) -> Mount {
        let arguments = self.mount_arguments(options);
        self.ok(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
        Mount { volume: self }
    }

    /// Tries to mount it, which has to fail.
    pub fn mount_fails(&self, options: &[&str], code: i32) -> String {
        let arguments = self.mount_arguments(options);
        self.fails(&arguments.iter().map(String::as_str).collect::<Vec<_>>(), code)
    }
}

impl Mount {
    /// A new volume, mounted.
    pub fn new() -> Self {
        Volume::new().mount(&[])
    }

    /// A new volume, mounted for all users.
    pub fn for_all() -> Self {
        Volume::new().mount(FOR_ALL)
    }

    /// The volume.
    pub fn volume(&self) -> &Volume {
        &self.volume
    }

    /// A path in the mount; the mountpoint itself for "".
    pub fn at(&self, path: impl AsRef<Path>) -> PathBuf {
        let mountpoint = self.volume.mountpoint();
        if path.as_ref().as_os_str().is_empty() { mountpoint } else { mountpoint.join(path) }
    }

    /// Unmounts.
    pub fn unmount(self) -> Volume {
        self.volume.ok(&["umount", self.volume.mountpoint().to_str().expect("UTF-8")]);
        self.volume
    }

    /// The volume of a mount whose process is dead.
    pub fn into_dead(self) -> Volume {
        self.volume
    }

    /// Unmounts and mounts again.
    pub fn again(self, options: &[&str]) -> Self {
        self.unmount().mount(options)
    }

    /// The status as JSON.
    pub fn status(&self) -> serde_json::Value {
        let text = self.volume.ok(&["status", "--json", self.volume.mountpoint().to_str().expect("UTF-8")]);
        serde_json::from_str(&text).expect("the status is JSON")
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        let mountpoint = self.mountpoint();
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        if !mounts.contains(&format!(" {} ", mountpoint.display())) {
            return;
        }
        let umount = |option: &[&str]| {
            let mut command = Command::new(env!("CARGO_BIN_EXE_kmsfs"));
            command.arg("umount").args(option).arg(&mountpoint).status().is_ok_and(|status| status.success())
        };
        // A test that failed may have left something open.
        let _ = umount(&[]) || umount(&["--lazy"]);
        if std::thread::panicking() {
            eprintln!("the mount's log:\n{}", self.log());
        }
    }
}

impl From<Output> for Ended {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

/// Runs another program, which has to succeed; returns what it printed.
pub fn run(program: &str, arguments: &[&dyn AsRef<OsStr>]) -> String {
    let mut command = Command::new(program);
    for argument in arguments {
        command.arg(argument);
    }
    let ended = Ended::from(command.output().unwrap_or_else(|error| panic!("{program}: {error}")));
    assert_eq!(ended.code, 0, "{program}: {ended:?}");
    ended.stdout
}

/// Runs a Python script in a process of its own, with these arguments in `argv`; it has to succeed.
pub fn python(script: &str, arguments: &[&dyn AsRef<OsStr>]) -> String {
    let prelude = "import ctypes, errno, fcntl, mmap, os, signal, stat, struct, sys, time\nargv = sys.argv[1:]\n";
    let script = format!("{prelude}{script}");
    run("python3", &[&[&"-c" as &dyn AsRef<OsStr>, &script][..], arguments].concat())
}

/// The same as another user.
pub fn python_as(uid: u32, script: &str, arguments: &[&dyn AsRef<OsStr>]) -> String {
    let become_user = format!("os.setgroups([]); os.setgid({uid}); os.setuid({uid}); os.umask(0o022)\n");
    python(&(become_user + script), arguments)
}

/// A new file, open for reading and writing.
pub fn create(path: impl AsRef<Path>) -> File {
    let options = OpenOptions::new().read(true).write(true).create_new(true).clone();
    options.open(path.as_ref()).unwrap_or_else(|error| panic!("{}: {error}", path.as_ref().display()))
}

/// Bytes that are not the same in any two chunks, different for each seed.
pub fn bytes(seed: u64, len: usize) -> Vec<u8> {
    let mut out = vec![0; len];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut out);
    out
}

/// All of an open file.
pub fn content(file: &File) -> Vec<u8> {
    let mut out = vec![0; file.metadata().expect("attributes").len() as usize];
    file.read_exact_at(&mut out, 0).expect("the content");
    out
}

/// The number of the error with which something failed.
pub fn number<T: std::fmt::Debug>(result: std::io::Result<T>) -> i32 {
    result.expect_err("an error").raw_os_error().expect("a number")
}

/// Waits until something has happened by itself.
pub fn until(what: &str, happened: impl Fn() -> bool) {
    let begin = Instant::now();
    while !happened() {
        assert!(begin.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
        std::thread::yield_now();
    }
}
