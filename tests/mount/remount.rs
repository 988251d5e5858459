//! Everything is after a mount as it was before it.

use crate::disk::Disk;
use crate::harness::{FOR_ALL, Mount, Outcome, Volume, bytes, python, run};
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};

#[test]
fn content_owners_modes_and_times_stay() -> Outcome {
    let mount = Mount::for_all();
    for (i, seconds) in [-2_000_000_000, -1, 0, 1, 1_700_000_000, 4_000_000_000_i64].into_iter().enumerate() {
        let path = mount.at(format!("file{i}"));
        fs::write(&path, bytes(i as u64, i * 50_000))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o7000 | i as u32))?;
        std::os::unix::fs::chown(&path, Some(1000 + i as u32), Some(2000 + i as u32))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o6000 | 0o101 << i))?;
        let nanoseconds = seconds * 1_000_000_000 + 123_456_789;
        python("os.utime(argv[0], ns=(int(argv[1]), int(argv[1]) - 7))", &[&path, &nanoseconds.to_string()]);
    }
    let look = |mount: &Mount| -> Outcome<Vec<_>> {
        let look = |i| {
            let found = fs::metadata(mount.at(format!("file{i}")))?;
            let times = (found.atime(), found.atime_nsec(), found.mtime(), found.mtime_nsec());
            Ok((found.mode(), found.uid(), found.gid(), found.len(), found.ino(), found.nlink(), times))
        };
        (0..6).map(look).collect()
    };
    let before = look(&mount)?;
    assert_eq!((before[0].6.0, before[0].6.1, before[0].6.3), (-2_000_000_000, 123_456_789, 123_456_782));
    assert_eq!((before[1].6.0, before[1].6.1, before[1].6.2), (-1, 123_456_789, -1));
    let mount = mount.again(FOR_ALL);
    assert_eq!(look(&mount)?, before);
    for i in 0..6 {
        assert!(fs::read(mount.at(format!("file{i}")))? == bytes(i as u64, i * 50_000));
    }
    Ok(())
}

#[test]
fn times_that_are_set_before_a_file_is_closed_stay() -> Outcome {
    for options in [&[][..], &["-o", "direct_io"]] {
        let mut mount = Volume::new().mount(options);
        for round in 0..2 {
            python(
                r"
for way in range(3):
    fd = os.open('%s/%d' % (argv[0], way), os.O_RDWR | os.O_CREAT)
    os.pwrite(fd, b'x' * 10000, way * 5000)
    if way == 1:
        os.fsync(fd)
        os.pwrite(fd, b'y' * 10000, 100)
    os.utime(fd, ns=(7, 1234567890 + way))
    if way == 2:
        os.fsync(fd)
    assert os.fstat(fd).st_mtime_ns == 1234567890 + way
    os.close(fd)
",
                &[&mount.at("")],
            );
            mount = mount.again(options);
            for way in 0..3 {
                let found = fs::metadata(mount.at(way.to_string()))?;
                assert_eq!((found.mtime(), found.mtime_nsec()), (1, 234_567_890 + way), "{options:?} {round}");
            }
        }
        // And what is written later moves them on.
        let file = fs::OpenOptions::new().write(true).open(mount.at("0"))?;
        file.set_modified(std::time::UNIX_EPOCH)?;
        std::os::unix::fs::FileExt::write_all_at(&file, b"z", 3)?;
        file.sync_all()?;
        assert!(file.metadata()?.mtime() > 1_700_000_000, "{options:?}");
        drop(file);
        let mount = mount.again(options);
        assert!(fs::metadata(mount.at("0"))?.mtime() > 1_700_000_000, "{options:?}");
    }
    Ok(())
}

#[test]
fn a_copy_of_the_volume_without_attributes_is_readable() -> Outcome {
    let mount = Mount::new();
    fs::create_dir(mount.at("d"))?;
    for i in 0..20 {
        fs::write(mount.at(format!("d/{i}")), bytes(i, 10_000 * i as usize))?;
    }
    let volume = mount.unmount();
    let script = r#"
set -e; cd "$1"; mv volume original
cp -r --no-preserve=all original cp; rsync -r --links original/ rsync; mkdir tar; tar -C original -cf - . | tar -C tar -xf -
"#;
    run("sh", &[&"-c", &script, &"sh", &volume.file("")]);
    let mut volume = volume;
    for copy in ["cp", "rsync", "tar"] {
        fs::rename(volume.file(copy), volume.path())?;
        let mount = volume.mount(&[]);
        for i in 0..20 {
            assert!(fs::read(mount.at(format!("d/{i}")))? == bytes(i, 10_000 * i as usize), "{copy} {i}");
        }
        volume = mount.unmount();
        fs::rename(volume.path(), volume.file(copy))?;
    }
    Ok(())
}

#[test]
fn links_and_special_files_stay() -> Outcome {
    let mount = Mount::for_all();
    fs::write(mount.at("file"), "x")?;
    fs::hard_link(mount.at("file"), mount.at("hard"))?;
    for len in [1, 100, 3000, 3031, 3032, 3033, 3060, 4095] {
        std::os::unix::fs::symlink("t".repeat(len), mount.at(format!("soft{len}")))?;
    }
    std::os::unix::net::UnixListener::bind(mount.at("socket"))?;
    run("mkfifo", &[&mount.at("fifo")]);
    run("mknod", &[&mount.at("null"), &"c", &"1", &"3"]);
    run("mknod", &[&mount.at("block"), &"b", &"4000", &"70000"]);
    let mount = mount.again(FOR_ALL);
    let (file, hard) = (fs::metadata(mount.at("file"))?, fs::metadata(mount.at("hard"))?);
    assert_eq!((file.ino(), file.nlink(), hard.nlink()), (hard.ino(), 2, 2));
    for len in [1, 100, 3000, 3031, 3032, 3033, 3060, 4095] {
        let link = mount.at(format!("soft{len}"));
        assert_eq!(fs::symlink_metadata(&link)?.len(), len as u64);
        assert_eq!(fs::read_link(&link)?.as_os_str().len(), len);
        fs::remove_file(link)?;
    }
    assert_eq!(fs::read_dir(mount.volume().path().join("links"))?.count(), 0);
    assert!(fs::symlink_metadata(mount.at("socket"))?.file_type().is_socket());
    assert!(fs::symlink_metadata(mount.at("fifo"))?.file_type().is_fifo());
    assert_eq!(fs::metadata(mount.at("null"))?.rdev(), rustix::fs::makedev(1, 3));
    assert_eq!(fs::metadata(mount.at("block"))?.rdev(), rustix::fs::makedev(4000, 70000));
    fs::write(mount.at("null"), "x")?;
    Ok(())
}

#[test]
fn a_tree_of_many_small_files_stays() -> Outcome {
    let mount = Mount::new();
    for i in 0..10_000_u64 {
        let directory = mount.at(format!("d{}/e{}", i % 7, i % 5));
        fs::create_dir_all(&directory)?;
        fs::write(directory.join(i.to_string()), bytes(i, (i * 37 % 9000) as usize))?;
    }
    let mount = mount.again(&[]);
    for i in 0..10_000_u64 {
        let path = mount.at(format!("d{}/e{}/{i}", i % 7, i % 5));
        assert!(fs::read(path)? == bytes(i, (i * 37 % 9000) as usize), "{i}");
    }
    Ok(())
}

/// XFS has shorter links than others.
#[test]
fn on_xfs_links_of_every_length_stay() -> Outcome {
    let disk = Disk::new("xfs")?;
    let mount = Volume::at(&disk.path().join("volume")).mount(&[]);
    let lengths = [1, 700, 720, 727, 728, 729, 1023, 1024, 3032, 4095];
    for len in lengths {
        std::os::unix::fs::symlink("t".repeat(len), mount.at(format!("soft{len}")))?;
    }
    let links = mount.volume().path().join("links");
    let long = fs::read_dir(&links)?.count();
    assert!((1..lengths.len()).contains(&long), "{long}");
    let mount = mount.again(&[]);
    for len in lengths {
        let link = mount.at(format!("soft{len}"));
        assert_eq!(fs::symlink_metadata(&link)?.len(), len as u64);
        assert_eq!(fs::read_link(&link)?.as_os_str().len(), len);
        fs::remove_file(link)?;
    }
    assert_eq!(fs::read_dir(links)?.count(), 0);
    mount.unmount();
    Ok(())
}
