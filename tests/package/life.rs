//! The package from its installation to its end.

use crate::debian::Debian;
use crate::{Outcome, package};
use std::fs;
use std::os::unix::fs::PermissionsExt;

/// Files of kmsfs, but for volumes, and what apt and dpkg note of every package that ever was.
const LEFT: &str = "find / -xdev -name '*kmsfs*' -not -path '/proc/*' -not -path '/srv/*' -not -path '/packages*' \
    -not -path '/var/log/*' -not -path '/var/cache/*' | sort";

/// The process that serves a mount, and its program.
fn served_by(debian: &Debian, mountpoint: &str) -> (String, String) {
    let process = debian.ok(&format!("kmsfs status --json {mountpoint} | sed -n 's/.*\"pid\": *\\([0-9]*\\).*/\\1/p'"));
    let process = process.trim().to_owned();
    let program = debian.ok(&format!("readlink /proc/{process}/exe")).trim().to_owned();
    (process, program)
}

#[test]
fn a_package_is_installed_used_upgraded_removed_and_purged_on_debian_12() -> Outcome {
    let debian = Debian::new();
    let packages = debian.path("packages");
    for (name, version) in [("old.deb", "0.0.1-1"), ("new.deb", "99.0-1")] {
        fs::create_dir_all(&packages)?;
        fs::rename(package(version, &packages), packages.join(name))?;
    }
    let install =
        |name: &str| debian.ok(&format!("apt-get --yes --no-install-recommends install /packages/{name} 2>&1"));

    install("old.deb");
    assert!(debian.ok("kmsfs --version").starts_with("kmsfs "));
    assert!(debian.ok("dpkg --verify kmsfs").is_empty());
    assert!(debian.ok("dpkg --status fuse3").contains("install ok installed"));
    for (path, mode) in [("etc/kmsfs", 0o750), ("etc/kmsfs/credentials", 0o700), ("var/lib/kmsfs", 0o700)] {
        assert_eq!(fs::metadata(debian.path(path))?.permissions().mode() & 0o7777, mode, "{path}");
    }
    for (page, words) in [
        ("kmsfs-mount", "EXIT STATUS"),
        ("kmsfs.toml", "mountpoint"),
        ("mount.kmsfs", "fstab"),
        ("mount.fuse.kmsfs", "fstab"),
    ] {
        assert!(debian.ok(&format!("man {page} 2>&1")).contains(words), "{page}");
    }

    let wanted = debian.path("etc/systemd/system/multi-user.target.wants/kmsfs.target");
    assert_eq!(fs::read_link(&wanted)?.to_str(), Some("/lib/systemd/system/kmsfs.target"));
    // The example is a configuration that only lacks its volume.
    debian.ok("cp /usr/share/kmsfs/examples/tenant.toml /etc/kmsfs/acme.toml");
    let said = debian.run("kmsfs tenant check acme --offline");
    assert!(said.code != 0 && said.text.contains("credentials/acme.env"), "{said:?}");
    debian.ok("rm /etc/kmsfs/acme.toml");

    // A volume under the embedded vault, mounted by the program, and another under a raw key, mounted by mount(8).
    debian.ok("kmsfs dev-vault start --state /srv/vault
        kmsfs dev-vault key create demo --state /srv/vault
        . /srv/vault/env
        mkdir /mnt/one /mnt/two
        kmsfs init /srv/one --kek \"$KMSFS_DEV_VAULT_URL/keys/demo\"
        kmsfs mount /srv/one /mnt/one
        kmsfs key generate --output /srv/key
        kmsfs init /srv/two --kek file:/srv/key
        mount -t kmsfs /srv/two /mnt/two
        echo before >/mnt/one/file
        echo before >/mnt/two/file");
    let (old, program) = served_by(&debian, "/mnt/one");
    assert_eq!(program, "/usr/bin/kmsfs");

    let said = install("new.deb");
    assert!(said.contains("goes on with version 0.0.1-1"), "{said}");
    assert!(debian.ok("dpkg-query --show --showformat '${Version}' kmsfs").contains("99.0-1"));
    assert_eq!(served_by(&debian, "/mnt/one"), (old.clone(), "/usr/bin/kmsfs (deleted)".to_owned()));
    debian.ok("for mountpoint in /mnt/one /mnt/two; do
            grep -qx before $mountpoint/file
            echo after >$mountpoint/file
            kmsfs lock $mountpoint
            if cat $mountpoint/file; then exit 1; fi
            kmsfs unlock $mountpoint
            grep -qx after $mountpoint/file
        done
        . /srv/vault/env
        kmsfs umount /mnt/one
        kmsfs mount /srv/one /mnt/one
        grep -qx after /mnt/one/file");
    let (new, program) = served_by(&debian, "/mnt/one");
    assert_eq!(program, "/usr/bin/kmsfs");
    assert_ne!(new, old);

    let said = debian.ok("apt-get --yes remove kmsfs 2>&1");
    assert!(said.contains("/mnt/one") && said.contains("/mnt/two"), "{said}");
    debian.ok("echo removed >/mnt/one/file; grep -qx removed /mnt/one/file; umount /mnt/one /mnt/two");

    // What the administrator made stays, and is named.
    install("new.deb");
    fs::write(debian.path("etc/kmsfs/tenant-a.toml"), "")?;
    fs::write(debian.path("etc/kmsfs/credentials/tenant-a"), "")?;
    let said = debian.ok("apt-get --yes purge kmsfs 2>&1");
    for directory in ["/etc/kmsfs", "/etc/kmsfs/credentials"] {
        assert!(said.contains(&format!("kmsfs: {directory} is not empty")), "{said}");
    }
    assert_eq!(debian.ok(LEFT), "/etc/kmsfs\n");
    assert!(debian.path("etc/kmsfs/credentials/tenant-a").exists());

    install("new.deb");
    debian.ok(". /srv/vault/env
        kmsfs mount /srv/one /mnt/one
        grep -qx removed /mnt/one/file
        kmsfs umount /mnt/one
        kmsfs dev-vault stop --state /srv/vault");
    fs::remove_file(debian.path("etc/kmsfs/tenant-a.toml"))?;
    fs::remove_file(debian.path("etc/kmsfs/credentials/tenant-a"))?;
    debian.ok("apt-get --yes purge kmsfs 2>&1");
    assert_eq!(debian.ok(LEFT), "");
    assert!(fs::symlink_metadata(&wanted).is_err());
    assert!(debian.path("srv/one/volume.kmsfs").exists());
    Ok(())
}
