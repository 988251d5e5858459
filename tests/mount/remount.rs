//! Everything is after a mount as it was before it.

use crate::harness::{FOR_ALL, Mount, Outcome, bytes, python, run};
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
    for i in 0..3000_u64 {
        let directory = mount.at(format!("d{}/e{}", i % 7, i % 5));
        fs::create_dir_all(&directory)?;
        fs::write(directory.join(i.to_string()), bytes(i, (i * 37 % 9000) as usize))?;
    }
    let mount = mount.again(&[]);
    for i in 0..3000_u64 {
        let path = mount.at(format!("d{}/e{}/{i}", i % 7, i % 5));
        assert!(fs::read(path)? == bytes(i, (i * 37 % 9000) as usize), "{i}");
    }
    Ok(())
}
