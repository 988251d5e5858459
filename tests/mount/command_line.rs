//! What goes wrong at the command line: each with its exit code, an error and a hint, and nothing changed.

use crate::harness::{Mount, Outcome, Volume, run};
use std::fs;

const VOLUME: i32 = 3;
const MOUNTPOINT: i32 = 4;
const ALREADY_MOUNTED: i32 = 9;
const BUSY: i32 = 10;
const WRONG_KEY: i32 = 11;
const STORE: i32 = 13;

fn text(path: &std::path::Path) -> &str {
    path.to_str().expect("UTF-8")
}

#[test]
fn a_second_mount_is_refused_and_the_holder_named() -> Outcome {
    let mount = Mount::new();
    let volume = mount.volume();
    let elsewhere = volume.file("elsewhere");
    fs::create_dir(&elsewhere)?;
    let error = volume.fails(&["mount", text(&volume.path()), text(&elsewhere)], ALREADY_MOUNTED);
    assert!(error.contains(text(&volume.mountpoint())), "{error}");
    let error = volume.mount_fails(&[], ALREADY_MOUNTED);
    assert!(error.contains(text(&volume.path())), "{error}");
    fs::write(mount.at("file"), "still works")?;
    Ok(())
}

#[test]
fn a_volume_can_be_mounted_again_as_soon_as_the_systems_own_umount_returns() -> Outcome {
    let mut mount = Mount::new();
    for round in 0..5_u64 {
        fs::write(mount.at("file"), crate::harness::bytes(round, 3_000_000))?;
        let volume = mount.into_dead();
        run("umount", &[&volume.mountpoint()]);
        mount = volume.mount(&[]);
        assert!(fs::read(mount.at("file"))? == crate::harness::bytes(round, 3_000_000));
    }
    Ok(())
}

#[test]
fn an_unmount_says_who_has_the_mount_in_a_namespace_of_its_own() -> Outcome {
    let mount = Mount::new();
    let mountpoint = mount.volume().mountpoint();
    let mut other = std::process::Command::new("unshare")
        .args(["--mount", "sh", "-c", "echo; exec cat"])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()?;
    std::io::Read::read_exact(other.stdout.as_mut().expect("a pipe"), &mut [0])?;
    let volume = mount.into_dead();
    let error = volume.fails(&["umount", text(&mountpoint)], BUSY);
    assert!(error.contains(&format!("process {} (cat)", other.id())), "{error}");
    drop(other.stdin.take());
    other.wait()?;
    // Its process ends by itself now, and who mounts again waits for that.
    volume.mount(&[]);
    Ok(())
}

#[test]
fn a_volume_that_cannot_be_written_to_can_be_mounted_read_only() -> Outcome {
    let mount = Mount::new();
    fs::write(mount.at("file"), "content")?;
    let volume = mount.unmount();
    let (path, elsewhere) = (volume.path(), volume.file("elsewhere"));
    fs::create_dir(&elsewhere)?;
    for without_lock_file in [false, true] {
        if without_lock_file {
            fs::remove_file(path.join("lock"))?;
        }
        run("mount", &[&"--bind", &path, &path]);
        run("mount", &[&"-o", &"remount,bind,ro", &path]);
        let arguments = ["mount", text(&path), text(&elsewhere)];
        let read_only = volume.run(&[&arguments[..], &["-o", "ro"]].concat());
        let content = fs::read_to_string(elsewhere.join("file"));
        let unmounted = volume.run(&["umount", text(&elsewhere)]);
        let writable = volume.run(&arguments);
        run("umount", &[&path]);
        assert_eq!((read_only.code, unmounted.code), (0, 0), "{read_only:?} {unmounted:?}");
        assert_eq!(content?, "content");
        assert_eq!(writable.code, STORE, "{writable:?}");
    }
    Ok(())
}

#[test]
fn a_mount_in_use_is_not_unmounted() -> Outcome {
    let mount = Mount::new();
    let mountpoint = mount.volume().mountpoint();
    let file = fs::File::create(mount.at("file"))?;
    mount.volume().fails(&["umount", text(&mountpoint)], BUSY);
    fs::write(mount.at("other"), "still works")?;
    drop(file);
    fs::create_dir(mount.at("d"))?;
    let mut child =
        std::process::Command::new("cat").current_dir(mount.at("d")).stdin(std::process::Stdio::piped()).spawn()?;
    mount.volume().fails(&["umount", text(&mountpoint)], BUSY);
    drop(child.stdin.take());
    child.wait()?;
    // A mapping counts too, when the file itself is closed.
    fs::write(mount.at("mapped"), "x")?;
    let script = "import mmap, sys\nf = open(sys.argv[1], 'r+b'); m = mmap.mmap(f.fileno(), 1); f.close(); print(m[:], flush=True); sys.stdin.read()";
    let mut child = std::process::Command::new("python3")
        .args(["-c", script])
        .arg(mount.at("mapped"))
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()?;
    let mut said = [0; 5];
    std::io::Read::read_exact(child.stdout.as_mut().expect("a pipe"), &mut said)?;
    mount.volume().fails(&["umount", text(&mountpoint)], BUSY);
    drop(child.stdin.take());
    child.wait()?;
    let volume = mount.unmount();
    volume.fails(&["umount", text(&mountpoint)], MOUNTPOINT);
    Ok(())
}

#[test]
fn only_an_empty_directory_becomes_a_volume() -> Outcome {
    let volume = Volume::nothing();
    volume.make_key("kek");
    let (path, kek) = (volume.path(), volume.kek("kek"));
    fs::create_dir(&path)?;
    fs::write(path.join("file"), "mine")?;
    volume.fails(&["init", text(&path), "--kek", &kek], VOLUME);
    assert_eq!(fs::read_dir(&path)?.count(), 1);
    fs::remove_file(path.join("file"))?;
    volume.ok(&["init", text(&path), "--kek", &kek]);
    let record = fs::read(path.join("volume.kmsfs"))?;
    let error = volume.fails(&["init", text(&path), "--kek", &kek], VOLUME);
    assert!(error.contains("already"), "{error}");
    assert_eq!(fs::read(path.join("volume.kmsfs"))?, record);
    Ok(())
}

#[test]
fn a_key_that_is_none_makes_no_volume() -> Outcome {
    let volume = Volume::nothing();
    fs::write(volume.file("short"), "AAAA\n")?;
    fs::set_permissions(volume.file("short"), std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
    for (kek, code) in [(volume.kek("short"), 12), (volume.kek("missing"), 6), ("nonsense".to_owned(), 12)] {
        volume.fails(&["init", text(&volume.path()), "--kek", &kek], code);
        assert!(!volume.path().exists(), "{kek}");
    }
    Ok(())
}

#[test]
fn what_is_no_volume_is_not_mounted() -> Outcome {
    let volume = Volume::nothing();
    volume.mount_fails(&[], VOLUME);
    fs::create_dir(volume.path())?;
    volume.mount_fails(&[], VOLUME);
    fs::write(volume.path().join("volume.kmsfs"), "")?;
    volume.mount_fails(&[], VOLUME);
    Ok(())
}

#[test]
fn a_record_with_any_byte_changed_is_refused() -> Outcome {
    let volume = Volume::new();
    let record = volume.path().join("volume.kmsfs");
    let good = fs::read(&record)?;
    for at in (0..good.len()).step_by(good.len() / 12) {
        let mut bad = good.clone();
        bad[at] ^= 1;
        fs::write(&record, bad)?;
        let arguments = volume.mount_arguments(&[]);
        let ended = volume.run(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
        assert!(matches!(ended.code, VOLUME | 6 | WRONG_KEY | 12), "byte {at}: {ended:?}");
        assert!(ended.stderr.contains("\nhint: "), "byte {at}: {ended:?}");
    }
    fs::write(&record, &good[..good.len() - 1])?;
    volume.mount_fails(&[], VOLUME);
    fs::write(&record, good)?;
    volume.mount(&[]);
    Ok(())
}

#[test]
fn a_wrong_key_or_volume_is_refused() -> Outcome {
    let volume = Volume::new();
    volume.make_key("other");
    let other = volume.kek("other");
    volume.mount_fails(&["--kek", &other], WRONG_KEY);
    let key = fs::read(volume.file("kek"))?;
    fs::copy(volume.file("other"), volume.file("kek"))?;
    volume.mount_fails(&[], WRONG_KEY);
    fs::write(volume.file("kek"), key)?;
    volume.mount_fails(&["--volume-id", &"0".repeat(32)], WRONG_KEY);
    let info: serde_json::Value = serde_json::from_str(&volume.ok(&["info", "--json", text(&volume.path())]))?;
    let id = info["volume_id"].as_str().expect("an id").to_owned();
    volume.mount(&["--volume-id", &id]);
    Ok(())
}

#[test]
fn a_mountpoint_has_to_be_an_empty_directory() -> Outcome {
    let volume = Volume::new();
    fs::write(volume.mountpoint().join("file"), "x")?;
    volume.mount_fails(&[], MOUNTPOINT);
    let volume = volume.mount(&["-o", "nonempty"]).unmount();
    assert_eq!(fs::read(volume.mountpoint().join("file"))?, b"x");
    fs::remove_file(volume.mountpoint().join("file"))?;
    fs::remove_dir(volume.mountpoint())?;
    volume.mount_fails(&[], MOUNTPOINT);
    fs::write(volume.mountpoint(), "")?;
    let arguments = volume.mount_arguments(&[]);
    assert_eq!(volume.run(&arguments.iter().map(String::as_str).collect::<Vec<_>>()).code, MOUNTPOINT);
    Ok(())
}

#[test]
fn a_name_with_a_comma_or_a_space_is_mounted_like_any_other() -> Outcome {
    let volume = Volume::new();
    for name in ["with,comma", "with space", "back\\slash", "\u{e4}\u{2603}"] {
        let (path, mountpoint) = (volume.file(name), volume.file(&format!("mnt {name}")));
        fs::rename(volume.path(), &path)?;
        fs::create_dir(&mountpoint)?;
        volume.ok(&["mount", text(&path), text(&mountpoint)]);
        fs::write(mountpoint.join(name), name)?;
        let status: serde_json::Value = serde_json::from_str(&volume.ok(&["status", "--json", text(&mountpoint)]))?;
        assert_eq!(status["damaged"], 0);
        volume.ok(&["umount", text(&mountpoint)]);
        assert_eq!(fs::read_dir(&mountpoint)?.count(), 0);
        fs::rename(&path, volume.path())?;
    }
    Ok(())
}

#[test]
fn a_mount_over_the_mountpoint_hides_it_and_no_more() -> Outcome {
    let mount = Mount::new();
    fs::write(mount.at("file"), "below")?;
    let mountpoint = mount.volume().mountpoint();
    crate::harness::run("mount", &[&"-t", &"tmpfs", &"tmpfs", &mountpoint]);
    let above = fs::read_dir(&mountpoint).map(Iterator::count);
    crate::harness::run("umount", &[&mountpoint]);
    assert_eq!(above?, 0);
    assert_eq!(fs::read(mount.at("file"))?, b"below");
    Ok(())
}

#[test]
fn an_unknown_option_is_named() {
    let volume = Volume::new();
    let error = volume.mount_fails(&["-o", "allow-other"], 2);
    assert!(error.contains("'allow-other'"), "{error}");
}
