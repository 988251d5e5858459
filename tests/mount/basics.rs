use crate::harness::{Mount, Outcome, bytes, number, run};
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;

#[test]
fn a_file_holds_what_was_written_to_it() -> Outcome {
    let mount = Mount::new();
    for len in [0, 1, 4095, 4096, 4097, 300_000, 3 << 20] {
        let content = bytes(len as u64, len);
        fs::write(mount.at("file"), &content)?;
        assert_eq!(fs::metadata(mount.at("file"))?.len(), len as u64);
        assert!(fs::read(mount.at("file"))? == content, "{len}");
    }
    Ok(())
}

#[test]
fn nothing_in_the_backing_directory_says_what_is_in_the_mount() -> Outcome {
    let mount = Mount::new();
    fs::create_dir(mount.at("directory-with-a-name"))?;
    fs::write(mount.at("directory-with-a-name/file-with-a-name"), "content to be seen by nobody".repeat(1000))?;
    std::os::unix::fs::symlink("target-to-be-seen-by-nobody", mount.at("link-with-a-name"))?;
    let volume = mount.unmount();
    let found = run(
        "sh",
        &[
            &"-c",
            &r#"grep -rEa "with-a-name|seen by nobody|seen-by-nobody" "$1" | wc -l; find "$1" | grep -c with-a-name || true; find "$1" -type l -printf '%l\n' | grep -c nobody || true"#,
            &"sh",
            &volume.path(),
        ],
    );
    assert_eq!(found, "0\n0\n0\n");
    Ok(())
}

#[test]
fn names_come_and_go() -> Outcome {
    let mount = Mount::new();
    fs::create_dir_all(mount.at("a/b/c"))?;
    fs::write(mount.at("a/b/c/file"), "x")?;
    assert_eq!(number(fs::remove_dir(mount.at("a/b/c"))), libc::ENOTEMPTY);
    assert_eq!(number(fs::create_dir(mount.at("a/b"))), libc::EEXIST);
    assert_eq!(fs::read(mount.at("nothing")).unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(number(fs::read(mount.at("a/b/c/file/below"))), libc::ENOTDIR);
    assert_eq!(number(fs::write(mount.at("a/b"), "x")), libc::EISDIR);
    fs::rename(mount.at("a/b/c"), mount.at("d"))?;
    assert_eq!(fs::read(mount.at("d/file"))?, b"x");
    assert!(!mount.at("a/b/c").exists());
    fs::remove_file(mount.at("d/file"))?;
    fs::remove_dir(mount.at("d"))?;
    assert_eq!(fs::read_dir(mount.at(""))?.count(), 1);
    fs::remove_dir_all(mount.at("a"))?;
    assert_eq!(fs::read_dir(mount.at(""))?.count(), 0);
    Ok(())
}

#[test]
fn the_space_is_that_of_the_backing_filesystem() -> Outcome {
    let mount = Mount::new();
    let (shown, real) = (rustix::fs::statvfs(mount.at(""))?, rustix::fs::statvfs(mount.volume().path())?);
    assert_eq!((shown.f_frsize, shown.f_blocks, shown.f_files), (real.f_frsize, real.f_blocks, real.f_files));
    assert_eq!(shown.f_namemax, 255);
    assert!(shown.f_bavail > 0 && shown.f_bavail <= shown.f_blocks);
    Ok(())
}

#[test]
fn syncing_a_file_a_directory_and_the_filesystem_works() -> Outcome {
    let mount = Mount::new();
    let file = fs::File::create(mount.at("file"))?;
    std::io::Write::write_all(&mut &file, b"content")?;
    file.sync_data()?;
    file.sync_all()?;
    fs::File::open(mount.at(""))?.sync_all()?;
    rustix::fs::syncfs(&file)?;
    Ok(())
}

#[test]
fn a_read_only_mount_changes_nothing() -> Outcome {
    let mount = Mount::new();
    fs::write(mount.at("file"), "content")?;
    let mount = mount.again(&["-o", "ro"]);
    assert_eq!(fs::read(mount.at("file"))?, b"content");
    assert_eq!(number(fs::write(mount.at("file"), "x")), libc::EROFS);
    assert_eq!(number(fs::create_dir(mount.at("d"))), libc::EROFS);
    assert_eq!(number(fs::remove_file(mount.at("file"))), libc::EROFS);
    Ok(())
}

#[test]
fn every_kind_of_volume_works() -> Outcome {
    for options in
        [&["--plain-names"][..], &["--chunk-size", "4K"], &["--chunk-size", "1M"], &["--files-per-envelope", "1"]]
    {
        let mut mount = crate::harness::Volume::with(options).mount(&[]);
        for i in 0..20 {
            fs::create_dir(mount.at(format!("d{i}")))?;
            fs::write(mount.at(format!("d{i}/f")), bytes(i, 100_000 + i as usize))?;
        }
        mount = mount.again(&["-o", "direct_io"]);
        for i in 0..20 {
            assert!(fs::read(mount.at(format!("d{i}/f")))? == bytes(i, 100_000 + i as usize), "{options:?} {i}");
            assert_eq!(fs::metadata(mount.at(format!("d{i}/f")))?.nlink(), 1);
        }
    }
    Ok(())
}
