//! Tenants by their configurations: mounted, listed, checked, suspended, unmounted.

use crate::harness::{Ended, Outcome, Volume, number, until};
use serde_json::Value;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;

const MOUNTPOINT: i32 = 4;
const CREDENTIALS: i32 = 8;
const BUSY: i32 = 10;
const CONFIG: i32 = 17;
const SUSPENDED: i32 = 18;

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

/// A machine with tenants: directories for their configurations and their state.
pub struct Tenants {
    place: TempDir,
    volumes: Vec<(String, Volume)>,
}

impl Tenants {
    /// These, each with a volume under a key in a file.
    pub fn new(names: &[&str]) -> Self {
        let place = TempDir::with_prefix("kmsfs-tenants-").expect("a temporary directory");
        for directory in ["etc/credentials", "state"] {
            fs::create_dir_all(place.path().join(directory)).expect("a directory");
        }
        let volumes: Vec<_> = names.iter().map(|name| ((*name).to_owned(), Volume::new())).collect();
        let tenants = Self { place, volumes };
        names.iter().for_each(|name| tenants.configure(name, ""));
        tenants
    }

    pub fn volume(&self, tenant: &str) -> &Volume {
        &self.volumes.iter().find(|(name, _)| name == tenant).expect("a tenant").1
    }

    pub fn at(&self, tenant: &str, path: &str) -> PathBuf {
        self.volume(tenant).mountpoint().join(path)
    }

    /// A file in the directory of configurations.
    pub fn file(&self, name: &str) -> PathBuf {
        self.place.path().join("etc").join(name)
    }

    /// Writes a configuration, with these lines after those that are needed.
    pub fn configure(&self, tenant: &str, lines: &str) {
        let volume = self.volume(tenant);
        let places = format!("volume = {:?}\nmountpoint = {:?}\n", volume.path(), volume.mountpoint());
        self.write(&format!("{tenant}.toml"), &format!("{places}{lines}"));
    }

    pub fn write(&self, name: &str, content: &str) {
        fs::write(self.file(name), content).expect("a file");
        fs::set_permissions(self.file(name), fs::Permissions::from_mode(0o600)).expect("permissions");
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kmsfs"));
        command
            .args(arguments)
            .env("KMSFS_CONFIG_DIR", self.file(""))
            .env("KMSFS_STATE_DIR", self.place.path().join("state"));
        command
    }

    pub fn run(&self, arguments: &[&str]) -> Ended {
        self.command(arguments).output().expect("the program runs").into()
    }

    pub fn ok(&self, arguments: &[&str]) -> String {
        let ended = self.run(arguments);
        assert_eq!(ended.code, 0, "{arguments:?}: {ended:?}");
        ended.stdout
    }

    pub fn fails(&self, arguments: &[&str], code: i32) -> String {
        let ended = self.run(arguments);
        assert_eq!(ended.code, code, "{arguments:?}: {ended:?}");
        assert!(ended.stderr.contains("error: ") && ended.stderr.contains("hint: "), "{ended:?}");
        ended.stderr
    }

    /// What `tenant list` says of one.
    pub fn row(&self, tenant: &str) -> Value {
        let rows: Value = serde_json::from_str(&self.ok(&["tenant", "list", "--json"])).expect("JSON");
        rows.as_array().expect("an array").iter().find(|row| row["tenant"] == tenant).expect("the tenant").clone()
    }

    /// The events of a tenant's audit log.
    fn events(&self, tenant: &str) -> Vec<Value> {
        let lines = self.ok(&["audit", "show", text(&self.volume(tenant).path()), "--json"]);
        lines.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
    }
}

impl Drop for Tenants {
    /// The mountpoints of tenants cannot be changed, and not be removed either.
    fn drop(&mut self) {
        for (name, volume) in &self.volumes {
            let mountpoint = volume.mountpoint();
            if self.run(&["umount", "--force", "--quiet", text(&mountpoint)]).code != 0 {
                eprintln!("{name} is still mounted");
                continue;
            }
            if let Ok(directory) = fs::File::open(&mountpoint) {
                let _ = rustix::fs::ioctl_setflags(&directory, rustix::fs::IFlags::empty());
            }
        }
    }
}

#[test]
fn a_tenant_is_mounted_as_its_configuration_says() -> Outcome {
    let tenants = Tenants::new(&["acme"]);
    tenants.configure(
        "acme",
        "options = [\"allow_other\", \"noexec\"]\nrevalidate = \"7s\"\noffline-grace = \"1m\"\n[labels]\ncustomer = \"Acme\"\n",
    );
    assert_eq!(tenants.row("acme")["state"], "not mounted");
    tenants.ok(&["mount", "--tenant", "acme"]);
    fs::write(tenants.at("acme", "file"), "x")?;
    let row = tenants.row("acme");
    assert_eq!((&row["state"], &row["labels"]["customer"]), (&"unlocked".into(), &"Acme".into()));
    let status: Value = serde_json::from_str(&tenants.ok(&["status", "--json", text(&tenants.at("acme", ""))]))?;
    assert_eq!(status["tenant"], "acme");
    assert_eq!((&status["revalidate_s"], &status["offline_grace_s"]), (&7.0.into(), &60.0.into()));
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    let line = mounts.lines().find(|line| line.contains(text(&tenants.volume("acme").mountpoint()))).expect("a mount");
    assert!(line.contains("noexec") && line.contains("allow_other"), "{line}");
    tenants.ok(&["umount", "--tenant", "acme"]);
    assert_eq!(tenants.row("acme")["state"], "not mounted");
    tenants.fails(&["umount", "--tenant", "acme"], MOUNTPOINT);
    Ok(())
}

#[test]
fn a_mistake_in_a_configuration_is_told_with_its_line() {
    let tenants = Tenants::new(&["acme"]);
    for (lines, at, what) in [
        ("revalidat = \"7s\"", 3, "did you mean 'revalidate'"),
        ("revalidate = \"7\"", 3, "'7'"),
        ("\nrevalidate = \"1ms\"", 4, "cannot be under"),
        ("options = [\"allow-other\"]", 3, "'allow-other'"),
        ("on-revoked = \"panic\"", 3, "'panic'"),
        ("volume-id = \"x\"", 3, "'x'"),
        ("with-recovery-kek = true", 3, "read only"),
    ] {
        tenants.configure("acme", lines);
        for arguments in [&["mount", "--tenant", "acme"][..], &["tenant", "check", "acme", "--offline"]] {
            let ended = tenants.run(arguments);
            let said = ended.stdout.clone() + &ended.stderr;
            assert_eq!(ended.code, CONFIG, "{lines}: {ended:?}");
            assert!(said.contains(&format!("acme.toml:{at}: ")) && said.contains(what), "{lines}: {said}");
        }
    }
    tenants.configure("acme", "on-rollback = \"warn\"");
    assert!(tenants.fails(&["mount", "--tenant", "acme"], CONFIG).contains("rollback-guard"));
    tenants.configure("acme", "");
    assert!(tenants.fails(&["mount", "--tenant", "acme", "--revalidate", "9s"], 2).contains("revalidate"));
    tenants.fails(&["mount", "--tenant", "nobody"], CONFIG);
    assert_eq!(tenants.run(&["mount", "--tenant", "../acme"]).code, 2);
}

#[test]
fn each_process_has_the_credentials_of_its_own_tenant_and_of_nobody_else() -> Outcome {
    let tenants = Tenants::new(&["acme", "globex"]);
    for name in ["acme", "globex"] {
        tenants.write(
            &format!("credentials/{name}.env"),
            &format!("AWS_ACCESS_KEY_ID=id-of-{name}\nKMSFS_CA_FILE=/{name}\n"),
        );
        tenants.configure(name, &format!("[credentials]\nfile = \"{name}.env\""));
        // Whoever starts it is somebody, too.
        let mut command = tenants.command(&["mount", "--tenant", name]);
        command.env("AZURE_CLIENT_SECRET", "of-the-operator").env("HOME", "/root").env("UNRELATED", "kept");
        assert!(command.status()?.success());
    }
    for (name, other) in [("acme", "globex"), ("globex", "acme")] {
        let pid = tenants.row(name)["pid"].as_u64().expect("a process");
        let environment = fs::read_to_string(format!("/proc/{pid}/environ"))?;
        let has = |variable: &str| environment.split('\0').any(|entry| entry == variable);
        assert!(has(&format!("AWS_ACCESS_KEY_ID=id-of-{name}")) && has("UNRELATED=kept"), "{environment}");
        assert!(
            !environment.contains(other)
                && !environment.contains("of-the-operator")
                && !environment.split('\0').any(|entry| entry.starts_with("HOME="))
        );
        let arguments = fs::read_to_string(format!("/proc/{pid}/cmdline"))?;
        assert!(arguments.contains(name) && !arguments.contains("id-of"), "{arguments}");
    }
    fs::set_permissions(tenants.file("credentials/acme.env"), fs::Permissions::from_mode(0o644))?;
    assert!(tenants.fails(&["mount", "--tenant", "acme"], CREDENTIALS).contains("others can read"));
    tenants.ok(&["umount", "--tenant", "acme"]);
    tenants.ok(&["umount", "--tenant", "globex"]);
    Ok(())
}

#[test]
fn a_key_in_a_cloud_is_not_asked_for_by_a_tenant_without_credentials() {
    let tenants = Tenants::new(&["acme"]);
    tenants.configure("acme", "kek = \"https://vault.invalid/keys/acme\"");
    let mut command = tenants.command(&["mount", "--tenant", "acme"]);
    command.env("AZURE_CLIENT_SECRET", "s").env("AZURE_CLIENT_ID", "c").env("AZURE_TENANT_ID", "t");
    let ended = Ended::from(command.output().expect("it runs"));
    assert_eq!(ended.code, CREDENTIALS, "{ended:?}");
    assert!(ended.stderr.contains("[credentials]"), "{ended:?}");
}

#[test]
fn a_suspended_tenant_stays_locked_whatever_is_restarted() -> Outcome {
    let tenants = Tenants::new(&["acme"]);
    let mountpoint = tenants.volume("acme").mountpoint();
    tenants.ok(&["mount", "--tenant", "acme"]);
    fs::write(tenants.at("acme", "file"), "x")?;
    tenants.ok(&["tenant", "suspend", "acme", "--reason", "does not pay"]);
    assert_eq!(number(fs::read(tenants.at("acme", "file"))), libc::ENOKEY);
    let row = tenants.row("acme");
    assert_eq!((&row["state"], &row["reason"]), (&"suspended".into(), &"does not pay".into()));
    assert!(tenants.fails(&["unlock", text(&mountpoint)], SUSPENDED).contains("does not pay"));
    assert_eq!(number(fs::read(tenants.at("acme", "file"))), libc::ENOKEY);
    tenants.ok(&["umount", "--tenant", "acme"]);
    assert!(tenants.fails(&["mount", "--tenant", "acme"], SUSPENDED).contains("kmsfs tenant resume acme"));
    assert_eq!(tenants.row("acme")["state"], "suspended");
    tenants.ok(&["tenant", "resume", "acme"]);
    tenants.fails(&["tenant", "resume", "acme"], 2);
    tenants.ok(&["mount", "--tenant", "acme"]);
    assert_eq!(fs::read(tenants.at("acme", "file"))?, b"x");
    // While it is mounted, both take effect at once.
    tenants.ok(&["tenant", "suspend", "acme", "--reason", "again"]);
    tenants.ok(&["tenant", "resume", "acme"]);
    assert_eq!(fs::read(tenants.at("acme", "file"))?, b"x");
    let events = tenants.events("acme");
    let said: Vec<_> =
        events.iter().filter(|event| ["suspend", "resume"].iter().any(|name| event["event"] == *name)).collect();
    assert_eq!(said.len(), 4);
    assert!(said.iter().any(|event| event["event"] == "suspend" && event["reason"] == "does not pay"));
    tenants.ok(&["umount", "--tenant", "acme"]);
    Ok(())
}

#[test]
fn a_check_finds_what_cannot_work_before_it_is_tried() -> Outcome {
    let tenants = Tenants::new(&["acme", "globex", "initech"]);
    let id = |name: &str| -> Outcome<String> {
        let info: Value = serde_json::from_str(&tenants.ok(&["info", "--json", text(&tenants.volume(name).path())]))?;
        Ok(info["volume_id"].as_str().expect("an id").to_owned())
    };
    for name in ["acme", "globex", "initech"] {
        tenants.configure(name, &format!("volume-id = \"{}\"", id(name)?));
    }
    assert_eq!(tenants.ok(&["tenant", "check", "--all"]).matches(" ok").count(), 3);
    let check = |arguments: &[&str], code: i32| -> Outcome<Value> {
        let ended = tenants.run(&[&["tenant", "check", "--json"], arguments].concat());
        assert_eq!(ended.code, code, "{ended:?}");
        Ok(serde_json::from_str(&ended.stdout)?)
    };
    let said = |checked: &Value, at: usize| checked[at]["findings"].to_string();
    // Two that share what they must not.
    let acme = tenants.volume("acme");
    tenants.write("globex.toml", &format!("volume = {:?}\nmountpoint = {:?}\n", acme.path(), acme.mountpoint()));
    let checked = check(&["acme"], CONFIG)?;
    assert!(said(&checked, 0).contains("is also that of globex"), "{checked}");
    // The same identity under another name is a warning.
    tenants.configure("globex", &format!("volume-id = \"{}\"\n[credentials]\nfile = \"two.env\"", id("globex")?));
    tenants.configure("acme", &format!("volume-id = \"{}\"\n[credentials]\nfile = \"one.env\"", id("acme")?));
    tenants.write("credentials/one.env", "AWS_PROFILE=all\nAWS_REGION=r\n");
    tenants.write("credentials/two.env", "AWS_REGION=r\nAWS_PROFILE=all\n");
    let checked = check(&["--all"], 0)?;
    assert!(
        said(&checked, 0).contains("same as those of globex") && said(&checked, 1).contains("those of acme"),
        "{checked}"
    );
    assert!(checked[2]["findings"].as_array().expect("a list").is_empty());
    // A key that is gone, which only asking shows.
    fs::remove_file(tenants.volume("initech").file("kek"))?;
    check(&["initech", "--offline"], 0)?;
    let checked = check(&["initech"], 6)?;
    assert_eq!((&checked[0]["ok"], &checked[0]["findings"][0]["level"]), (&false.into(), &"error".into()));
    // Another volume in its place, no mountpoint, a file that others may change.
    tenants.configure("initech", &format!("volume-id = \"{}\"", "0".repeat(32)));
    check(&["initech", "--offline"], 11)?;
    tenants.configure("initech", "");
    assert!(said(&check(&["initech", "--offline"], 0)?, 0).contains("volume-id = "));
    fs::remove_dir(tenants.volume("initech").mountpoint())?;
    check(&["initech", "--offline"], MOUNTPOINT)?;
    fs::set_permissions(tenants.file("initech.toml"), fs::Permissions::from_mode(0o666))?;
    assert!(said(&check(&["initech", "--offline"], CONFIG)?, 0).contains("others can change"));
    assert_eq!(tenants.row("initech")["state"], "wrong");
    Ok(())
}

#[test]
fn a_list_fits_a_terminal() {
    let tenants = Tenants::new(&["acme", "globex"]);
    tenants.write("long-name-of-a-tenant.toml", "volume = \"/srv/x\"\nmountpoint = \"/data/long\"\n");
    let list = tenants.ok(&["tenant", "list"]);
    assert_eq!(list.lines().count(), 4, "{list}");
    let line = list.lines().find(|line| line.starts_with("long-name")).expect("a line");
    assert!(line.contains("not mounted") && line.ends_with("/data/long") && line.len() <= 80, "{line}");
}

#[test]
fn all_mounts_are_unmounted_together_and_one_in_use_does_not_keep_the_others() -> Outcome {
    let tenants = Tenants::new(&["acme", "globex"]);
    // In a namespace of its own: other tests mount at the same time.
    fs::create_dir_all("/run/kmsfs")?;
    let script = "set -e; findmnt -rno TARGET -t fuse.kmsfs | xargs -r umount -l; mount -t tmpfs tmpfs /run/kmsfs; \"$1\" mount --tenant acme; \"$1\" mount --tenant globex; \
                  exec 3<\"$2\"; \"$1\" umount --all && exit 1; test $? = 10; exec 3<&-; \
                  grep -q \" $2 \" /proc/self/mountinfo; ! grep -q \" $3 \" /proc/self/mountinfo; \"$1\" umount --all; \
                  ! grep -q \" $2 \" /proc/self/mountinfo; \"$1\" umount --all";
    let mut command = Command::new("unshare");
    command.args(["--mount", "bash", "-c", script, "bash", env!("CARGO_BIN_EXE_kmsfs")]);
    command.args([tenants.volume("acme").mountpoint(), tenants.volume("globex").mountpoint()]);
    command.env("KMSFS_CONFIG_DIR", tenants.file("")).env("KMSFS_STATE_DIR", tenants.place.path().join("state"));
    let ended = Ended::from(command.output()?);
    assert_eq!(ended.code, 0, "{ended:?}");
    Ok(())
}

#[test]
fn an_unmount_by_force_stores_what_was_written_and_ends_for_whoever_uses_it() -> Outcome {
    use std::io::Write;
    let tenants = Tenants::new(&["acme"]);
    tenants.ok(&["mount", "--tenant", "acme"]);
    let content = crate::harness::bytes(1, 3_000_000);
    let mut file = fs::File::create(tenants.at("acme", "file"))?;
    file.write_all(&content)?;
    tenants.fails(&["umount", "--tenant", "acme"], BUSY);
    tenants.ok(&["umount", "--tenant", "acme", "--force"]);
    assert_eq!(number(file.metadata()), libc::ENOTCONN);
    assert_eq!(tenants.row("acme")["state"], "not mounted");
    tenants.ok(&["mount", "--tenant", "acme"]);
    assert!(fs::read(tenants.at("acme", "file"))? == content);
    let mounts: Vec<_> = tenants.events("acme").into_iter().filter(|event| event["event"] == "mount").collect();
    assert_eq!(mounts.last().expect("a mount")["after_crash"], false);
    tenants.ok(&["umount", "--tenant", "acme"]);
    Ok(())
}

#[test]
fn applications_of_a_dead_mount_get_errors_and_nothing_is_written_below_it() -> Outcome {
    let tenants = Tenants::new(&["acme"]);
    tenants.ok(&["mount", "--tenant", "acme"]);
    let content = crate::harness::bytes(2, 100_000);
    fs::write(tenants.at("acme", "file"), &content)?;
    let file = fs::File::open(tenants.at("acme", "file"))?;
    file.sync_all()?;
    let pid = tenants.row("acme")["pid"].as_i64().expect("a process");
    let pid = rustix::process::Pid::from_raw(i32::try_from(pid)?).expect("a process");
    rustix::process::kill_process(pid, rustix::process::Signal::KILL)?;
    until("the connection ends", || fs::metadata(tenants.at("acme", "file")).is_err());
    assert_eq!(number(fs::read(tenants.at("acme", "file"))), libc::ENOTCONN);
    assert_eq!(number(fs::write(tenants.at("acme", "new"), "x")), libc::ENOTCONN);
    assert_eq!(number(file.metadata()), libc::ENOTCONN);
    assert_eq!(tenants.row("acme")["state"], "dead");
    tenants.ok(&["tenant", "check", "acme"]);
    drop(file);
    // Once it is taken away, nobody writes into the directory below: not even root.
    tenants.ok(&["umount", "--tenant", "acme"]);
    assert_eq!(number(fs::write(tenants.at("acme", "new"), "x")), libc::EPERM);
    assert_eq!(fs::read_dir(tenants.at("acme", ""))?.count(), 0);
    // The next start does all of it by itself: it also replaces a dead mount that is still there.
    tenants.ok(&["mount", "--tenant", "acme"]);
    assert!(fs::read(tenants.at("acme", "file"))? == content);
    let pid = tenants.row("acme")["pid"].as_i64().expect("a process");
    let pid = rustix::process::Pid::from_raw(i32::try_from(pid)?).expect("a process");
    rustix::process::kill_process(pid, rustix::process::Signal::KILL)?;
    until("it is dead", || tenants.row("acme")["state"] == "dead");
    tenants.ok(&["mount", "--tenant", "acme"]);
    assert!(fs::read(tenants.at("acme", "file"))? == content);
    Ok(())
}

#[test]
fn a_restart_stores_what_was_written_and_takes_the_mounts_one_after_the_other() -> Outcome {
    let tenants = Tenants::new(&["acme", "globex", "initech"]);
    tenants.ok(&["mount", "--tenant", "acme"]);
    tenants.ok(&["mount", "--tenant", "globex"]);
    for name in ["acme", "globex"] {
        fs::write(tenants.at(name, "file"), name)?;
    }
    let pids = ["acme", "globex"].map(|name| tenants.row(name)["pid"].clone());
    let said = tenants.ok(&["tenant", "restart", "--all"]);
    assert_eq!(said.lines().count(), 2, "{said}");
    assert!(said.lines().all(|line| line.contains("unlocked after")), "{said}");
    for (name, pid) in ["acme", "globex"].into_iter().zip(pids) {
        assert_ne!(tenants.row(name)["pid"], pid);
        assert_eq!(fs::read(tenants.at(name, "file"))?, name.as_bytes());
    }
    assert_eq!(tenants.row("initech")["state"], "not mounted");
    // One that cannot come back ends it, and the others are as they were.
    tenants.configure("acme", "kek = \"file:/nowhere\"");
    let pid = tenants.row("globex")["pid"].clone();
    let error = tenants.fails(&["tenant", "restart", "acme", "globex"], 6);
    assert!(error.contains("not restarted: globex"), "{error}");
    assert_eq!(tenants.row("globex")["pid"], pid);
    Ok(())
}
