//! mount(8), fstab, umount(8) and findmnt(8), with this program as their helper; in a mount namespace of its own, where
//! /sbin has it.

use crate::harness::{Ended, Outcome, Volume};
use std::process::Command;

/// Runs a script with the helper in place. `$1` is the volume, `$2` the mountpoint, `$3` a directory.
fn script(volume: &Volume, script: &str) -> Ended {
    let prelude =
        "set -exuo pipefail; fails() { if \"$@\"; then return 1; fi; }; upper=$3/upper work=$3/work; mkdir -p \"$3\"
        findmnt -rno TARGET -t fuse.kmsfs | xargs -r umount -l || true; mount -t tmpfs tmpfs \"$3\"
        mkdir \"$upper\" \"$work\"
        mount -t overlay overlay -o \"lowerdir=/usr/sbin,upperdir=$upper,workdir=$work\" /usr/sbin
        ln -s \"$KMSFS\" /usr/sbin/mount.kmsfs; ln -s \"$KMSFS\" /usr/sbin/mount.fuse.kmsfs
        trap '! mountpoint -q \"$2\" || \"$KMSFS\" umount --force \"$2\"' EXIT\n";
    let mut command = Command::new("unshare");
    command.args(["--mount", "bash", "-c"]).arg(prelude.to_owned() + script).arg("bash");
    command.args([volume.path(), volume.mountpoint(), volume.file("place")]).env("KMSFS", env!("CARGO_BIN_EXE_kmsfs"));
    let ended = Ended::from(command.output().expect("unshare runs"));
    assert_eq!(ended.code, 0, "{}\n{}", ended.stdout, ended.stderr);
    ended
}

#[test]
fn mount_and_umount_and_findmnt_know_a_volume() -> Outcome {
    let volume = Volume::new();
    script(
        &volume,
        "for type in kmsfs fuse.kmsfs; do
            mount -t $type \"$1\" \"$2\" -o allow_other,noexec,revalidate=7s,offline-grace=1m,nofail,_netdev,x-systemd.automount
            echo content >\"$2/file\"
            [[ $(findmnt -no FSTYPE,SOURCE \"$2\") == \"fuse.kmsfs $1\" ]]
            findmnt -no OPTIONS \"$2\" | grep noexec | grep -v nosuid
            \"$KMSFS\" status \"$2\" --json | grep '\"revalidate_s\": 7.0'
            mount -o remount,ro \"$2\"
            fails touch \"$2/new\"
            umount \"$2\"
         done",
    );
    Ok(())
}

#[test]
fn fstab_mounts_what_it_says_and_an_unknown_option_is_an_error() -> Outcome {
    let volume = Volume::new();
    script(
        &volume,
        "echo \"$1 $2 kmsfs nofail,_netdev,allow_other,noatime,x-systemd.requires=network.target,kms-rate=7,wait 0 0\" >\"$3/fstab\"
         mount -T \"$3/fstab\" -a
         findmnt -no FSTYPE \"$2\" | grep -x fuse.kmsfs
         mount -T \"$3/fstab\" -a
         umount \"$2\"
         mount -T \"$3/fstab\" \"$2\"
         umount \"$2\"
         for option in offline_grace=1m allow-other revalidate revalidate=1 wait=soon foreground; do
            fails mount -t kmsfs \"$1\" \"$2\" -o $option 2>\"$3/error\"
            grep -e 'error: ' \"$3/error\"
            grep -e \"${option%%=*}\" \"$3/error\"
            fails mountpoint -q \"$2\"
         done
         mount -f -t kmsfs \"$1\" \"$2\"
         fails mountpoint -q \"$2\"",
    );
    Ok(())
}

#[test]
fn fstab_mounts_a_tenant_by_name() -> Outcome {
    let volume = Volume::new();
    script(
        &volume,
        "export KMSFS_CONFIG_DIR=$3/etc KMSFS_STATE_DIR=$3/state
         mkdir \"$3/etc\"
         printf 'volume = \"%s\"\\nmountpoint = \"%s\"\\nrevalidate = \"9s\"\\n' \"$1\" \"$2\" >\"$3/etc/acme.toml\"
         mount -t kmsfs \"$1\" \"$2\" -o tenant=acme,nofail,x-systemd.automount
         \"$KMSFS\" status \"$2\" --json | grep '\"tenant\": \"acme\"'
         umount \"$2\"
         chattr -i \"$2\"
         fails mount -t kmsfs \"$1\" \"$2\" -o tenant=acme,revalidate=1s 2>\"$3/error\"
         grep 'tenant.s configuration' \"$3/error\"
         fails mount -t kmsfs \"$1\" \"$3\" -o tenant=acme",
    );
    Ok(())
}
