//! A hundred tenants on one machine, each with a key of its own in one vault: they come up together, and what happens to
//! one of them, or to the keys of ten, is nothing to the others.

use crate::harness::{Ended, Outcome, bytes, number, until};
use crate::vault::Vault;
use serde_json::Value;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Instant;
use tempfile::TempDir;

const TENANTS: usize = 100;
/// The first so many lose their KMS.
const HUNG: usize = 10;
/// In seconds.
const REVALIDATE: u64 = 2;
/// So many processes of a test at once, where the order is not what is tested.
const TOGETHER: usize = 16;

/// The machine of an operator.
struct Host {
    place: TempDir,
    vault: Vault,
    names: Vec<String>,
}

impl Host {
    /// All tenants, configured and not mounted.
    fn new() -> Outcome<Self> {
        let place = TempDir::with_prefix("kmsfs-hundred-")?;
        let names: Vec<_> = (0..TENANTS).map(|number| format!("tenant-{number:02}")).collect();
        let host = Self { place, vault: Vault::start(), names };
        for directory in ["etc/credentials", "state", "volumes"] {
            fs::create_dir_all(host.place.path().join(directory))?;
        }
        let vault = host.vault.state().to_owned();
        host.each(TOGETHER, |name| {
            host.command(&["dev-vault", "key", "create", name, "--state"], |command| command.arg(&vault))
        });
        let url = &host.vault.environment()["KMSFS_DEV_VAULT_URL"];
        host.each(TOGETHER, |name| {
            let environment = host.vault.environment();
            let volume = host.volume(name);
            host.command(&["init", "--kek", &format!("{url}/keys/{name}")], |command| {
                command.arg(volume).envs(environment)
            })
        });
        let identity: String = (host.vault.environment().iter())
            .filter(|(name, _)| name.starts_with("AZURE_") || *name == "KMSFS_CA_FILE")
            .map(|(name, value)| format!("{name}={value}\n"))
            .collect();
        for name in &host.names {
            fs::create_dir_all(host.mountpoint(name))?;
            let places = format!("volume = {:?}\nmountpoint = {:?}\n", host.volume(name), host.mountpoint(name));
            let options = format!("revalidate = \"{REVALIDATE}s\"\n[credentials]\nfile = \"{name}.env\"\n");
            host.write(&format!("etc/{name}.toml"), &(places + &options))?;
            host.write(&format!("etc/credentials/{name}.env"), &identity)?;
        }
        Ok(host)
    }

    fn write(&self, name: &str, content: &str) -> Outcome {
        fs::write(self.place.path().join(name), content)?;
        fs::set_permissions(self.place.path().join(name), fs::Permissions::from_mode(0o600))?;
        Ok(())
    }

    fn volume(&self, tenant: &str) -> PathBuf {
        self.place.path().join("volumes").join(tenant)
    }

    fn mountpoint(&self, tenant: &str) -> PathBuf {
        self.place.path().join("mnt").join(tenant)
    }

    /// `kmsfs` with these arguments and what is added. Of the operator's environment it has the directories alone.
    fn command(&self, arguments: &[&str], add: impl FnOnce(&mut Command) -> &mut Command) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kmsfs"));
        command.args(arguments).env("KMSFS_CONFIG_DIR", self.place.path().join("etc"));
        add(command.env("KMSFS_STATE_DIR", self.place.path().join("state")));
        command
    }

    /// Runs a command for each tenant, so many at once; all have to succeed.
    fn each(&self, at_once: usize, command: impl Fn(&str) -> Command) {
        for names in self.names.chunks(at_once) {
            let start = |name: &String| {
                let mut command = command(name);
                command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts")
            };
            // All of them, before anything is judged: none is left behind.
            let children: Vec<Child> = names.iter().map(start).collect();
            let ended: Vec<Ended> =
                children.into_iter().map(|child| child.wait_with_output().expect("it ends").into()).collect();
            for (name, ended) in names.iter().zip(ended) {
                assert_eq!(ended.code, 0, "{name}: {ended:?}");
            }
        }
    }

    /// Mounts all, all at once.
    fn mount(&self) {
        self.each(TENANTS, |name| self.command(&["mount", "--tenant", name], |command| command));
    }

    fn umount(&self) {
        self.each(TENANTS, |name| self.command(&["umount", "--tenant", name], |command| command));
    }

    fn ok(&self, arguments: &[&str]) -> String {
        let ended = Ended::from(self.command(arguments, |command| command).output().expect("it runs"));
        assert_eq!(ended.code, 0, "{arguments:?}: {ended:?}");
        ended.stdout
    }

    /// Whether each tenant's state is this, in order.
    fn are(&self, state: &str) -> Vec<bool> {
        let rows: Value = serde_json::from_str(&self.ok(&["tenant", "list", "--json"])).expect("JSON");
        rows.as_array().expect("an array").iter().map(|row| row["state"] == state).collect()
    }

    /// How often the vault was asked to unwrap with each tenant's key, answered or not.
    fn asked(&self) -> Vec<u64> {
        let status: Value = serde_json::from_str(&self.vault.run(&["status", "--json"])).expect("JSON");
        let calls = &status["calls"]["keys"];
        self.names.iter().map(|name| calls[name]["unwrapkey"].as_u64().unwrap_or(0)).collect()
    }

    /// Waits until each of these tenants has asked so many times more.
    fn until_asked(&self, tenants: std::ops::Range<usize>, times: u64) {
        let before = self.asked();
        until("each asks the vault", || {
            let now = self.asked();
            tenants.clone().all(|tenant| now[tenant] >= before[tenant] + times)
        });
    }

    /// Each of these tenants reads its first file, which is its own.
    fn read(&self, tenants: std::ops::Range<usize>) -> Outcome {
        for tenant in tenants {
            let content = fs::read(self.mountpoint(&self.names[tenant]).join("file"))?;
            assert!(content == bytes(tenant as u64, 20_000), "tenant {tenant} reads what is not its own");
        }
        Ok(())
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        for mountpoint in self.names.iter().map(|name| self.mountpoint(name)) {
            if mounts.contains(&format!(" {} ", mountpoint.display())) {
                let _ = self.command(&["umount", "--lazy"], |command| command.arg(&mountpoint)).output();
            }
            // It was made unchangeable, and is to go with the directory.
            let _ = std::process::Command::new("chattr").arg("-i").arg(&mountpoint).output();
        }
    }
}

#[test]
fn a_hundred_tenants_live_beside_each_other() -> Outcome {
    let host = Host::new()?;
    host.mount();
    assert_eq!(host.are("unlocked"), [true; TENANTS]);
    for (tenant, name) in host.names.iter().enumerate() {
        fs::write(host.mountpoint(name).join("file"), bytes(tenant as u64, 20_000))?;
    }
    host.read(0..TENANTS)?;

    // Each asks as often as it was told, and not more often.
    let (begin, before) = (Instant::now(), host.asked());
    host.until_asked(0..TENANTS, 3);
    let (after, at_most) = (host.asked(), begin.elapsed().as_secs() / REVALIDATE + 2);
    for (tenant, (before, after)) in before.into_iter().zip(after).enumerate() {
        assert!(after - before <= at_most, "tenant {tenant} asked {} times, not {at_most}", after - before);
    }

    // One key is taken away: one volume is locked.
    let one = 42;
    host.vault.run(&["key", "disable", &host.names[one]]);
    until("the volume is locked", || host.are("locked")[one]);
    assert_eq!(host.are("unlocked").into_iter().filter(|unlocked| *unlocked).count(), TENANTS - 1);
    assert_eq!(number(fs::read(host.mountpoint(&host.names[one]).join("file"))), libc::EKEYREVOKED);
    host.read(0..one)?;
    host.read(one + 1..TENANTS)?;
    host.vault.run(&["key", "enable", &host.names[one]]);
    until("the volume is back", || host.are("unlocked")[one]);
    host.read(one..one + 1)?;

    // The vault does not answer for ten: the others can even be locked and unlocked, which needs it.
    let hung = &host.names[..HUNG];
    hung.iter().for_each(|name| drop(host.vault.run(&["fault", "hang", "--key", name])));
    host.until_asked(0..HUNG, 1);
    let others = &host.names[HUNG..];
    std::thread::scope(|scope| {
        let work = |name: &String| -> Outcome {
            let mountpoint = host.mountpoint(name);
            for file in 0..8 {
                fs::write(mountpoint.join(format!("work-{file}")), bytes(file, 100_000))?;
            }
            for command in ["lock", "unlock"] {
                host.ok(&[command, mountpoint.to_str().ok_or("UTF-8")?]);
            }
            for file in 0..8 {
                assert!(fs::read(mountpoint.join(format!("work-{file}")))? == bytes(file, 100_000), "{name}");
            }
            Ok(())
        };
        let parts = others.chunks(others.len().div_ceil(TOGETHER));
        let threads: Vec<_> = parts
            .map(|names| scope.spawn(move || names.iter().try_for_each(work).map_err(|error| error.to_string())))
            .collect();
        threads.into_iter().try_for_each(|thread| thread.join().expect("a thread ends"))
    })?;
    host.read(HUNG..TENANTS)?;
    // The ten have what they had: a KMS that is silent takes nothing away.
    let silent = |name: &String| -> Outcome<bool> {
        let status = host.ok(&["status", "--json", host.mountpoint(name).to_str().ok_or("UTF-8")?]);
        Ok(!serde_json::from_str::<Value>(&status)?["last_error"].is_null())
    };
    until("the ten have noticed", || hung.iter().all(|name| silent(name).expect("a status")));
    host.read(0..HUNG)?;
    hung.iter().for_each(|name| drop(host.vault.run(&["fault", "none", "--key", name])));
    until("the ten are well", || hung.iter().all(|name| !silent(name).expect("a status")));

    // Every second one is killed, the others end as they should; everything comes back.
    let rows: Value = serde_json::from_str(&host.ok(&["tenant", "list", "--json"]))?;
    for row in rows.as_array().ok_or("rows")?.iter().step_by(2) {
        let process = row["pid"].as_i64().and_then(|pid| rustix::process::Pid::from_raw(i32::try_from(pid).ok()?));
        rustix::process::kill_process(process.ok_or("a process")?, rustix::process::Signal::KILL)?;
    }
    for name in host.names.iter().skip(1).step_by(2) {
        host.ok(&["umount", "--tenant", name]);
    }
    host.vault.run(&["stop"]);
    host.vault.run(&["start"]);
    host.mount();
    assert_eq!(host.are("unlocked"), [true; TENANTS]);
    host.read(0..TENANTS)?;
    host.umount();
    assert_eq!(host.are("not mounted"), [true; TENANTS]);
    Ok(())
}
