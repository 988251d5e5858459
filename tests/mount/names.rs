//! Names of every length and every byte, and renaming.

use crate::harness::{Mount, Outcome, Volume, number};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::MetadataExt;

fn names_in(directory: std::path::PathBuf) -> Outcome<BTreeSet<OsString>> {
    Ok(fs::read_dir(directory)?.map(|entry| entry.map(|entry| entry.file_name())).collect::<Result<_, _>>()?)
}

#[test]
fn names_of_every_length_and_of_any_bytes_come_back() -> Outcome {
    let mount = Mount::new();
    let mut names: BTreeSet<OsString> =
        (1..=255).map(|len| OsString::from("n".repeat(len))).chain(["ä".repeat(127).into()]).collect();
    for byte in (1..=255).filter(|byte| *byte != b'/' && *byte != b'.' && *byte != b'n') {
        names.insert(OsString::from_vec(vec![byte]));
    }
    names.insert(OsString::from_vec(vec![0xff; 255]));
    for name in [".id", ".t", ".L", ".N", "...", ".kmsfs", "volume.kmsfs"] {
        names.insert(name.into());
    }
    for name in &names {
        fs::write(mount.at(name), name.as_encoded_bytes())?;
    }
    assert!(names_in(mount.at(""))? == names);
    let mount = mount.again(&[]);
    assert!(names_in(mount.at(""))? == names);
    for name in &names {
        assert!(fs::read(mount.at(name))? == name.as_encoded_bytes(), "{name:?}");
        fs::remove_file(mount.at(name))?;
    }
    assert!(names_in(mount.at(""))?.is_empty());
    // A directory's id, and nothing else.
    assert_eq!(fs::read_dir(mount.volume().path().join("tree"))?.count(), 1);
    Ok(())
}

#[test]
fn a_name_that_is_too_long_is_refused() {
    let mount = Mount::new();
    let name = "n".repeat(256);
    assert_eq!(number(fs::write(mount.at(&name), "")), libc::ENAMETOOLONG);
    assert_eq!(number(fs::create_dir(mount.at(&name))), libc::ENAMETOOLONG);
    assert_eq!(number(fs::metadata(mount.at(&name))), libc::ENAMETOOLONG);
    assert_eq!(number(std::os::unix::fs::symlink("t", mount.at(&name))), libc::ENAMETOOLONG);
    fs::write(mount.at("short"), "").unwrap();
    assert_eq!(number(fs::rename(mount.at("short"), mount.at(&name))), libc::ENAMETOOLONG);
    assert_eq!(number(fs::hard_link(mount.at("short"), mount.at(&name))), libc::ENAMETOOLONG);
}

#[test]
fn renames_do_what_their_flags_say() -> Outcome {
    for options in [&[][..], &["--plain-names"]] {
        let mount = Volume::with(options).mount(&[]);
        let short = |name: &str| name.to_owned();
        let long = |name: &str| name.repeat(200);
        for form in [short, long] {
            let [a, b, c] = ["a", "b", "c"].map(|name| mount.at(form(name)));
            let rename = |from, to, flags| renameat_with(CWD, from, CWD, to, flags);
            fs::write(&a, "a")?;
            fs::write(&b, "b")?;
            assert_eq!(rename(&a, &b, RenameFlags::NOREPLACE), Err(Errno::EXIST));
            rename(&a, &b, RenameFlags::EXCHANGE)?;
            assert_eq!((fs::read(&a)?, fs::read(&b)?), (b"b".to_vec(), b"a".to_vec()));
            rename(&a, &c, RenameFlags::NOREPLACE)?;
            assert_eq!(rename(&a, &c, RenameFlags::empty()), Err(Errno::NOENT));
            assert_eq!(rename(&c, &a, RenameFlags::EXCHANGE), Err(Errno::NOENT));
            assert_eq!(rename(&c, &a, RenameFlags::WHITEOUT), Err(Errno::INVAL));
            rename(&c, &b, RenameFlags::empty())?;
            assert_eq!(fs::read(&b)?, b"b");
            fs::create_dir(&c)?;
            fs::write(c.join("inside"), "x")?;
            rename(&b, &c, RenameFlags::EXCHANGE)?;
            assert_eq!(fs::read(b.join("inside"))?, b"x");
            assert_eq!(rename(&c, &b, RenameFlags::empty()), Err(Errno::ISDIR));
            assert_eq!(rename(&b, &c, RenameFlags::empty()), Err(Errno::NOTDIR));
            fs::create_dir(&a)?;
            assert_eq!(rename(&a, &b, RenameFlags::empty()), Err(Errno::NOTEMPTY));
            rename(&b, &a, RenameFlags::empty())?;
            assert_eq!(fs::read(a.join("inside"))?, b"x");
            assert_eq!(rename(&a, &a.join("inside-itself"), RenameFlags::empty()), Err(Errno::INVAL));
            fs::remove_dir_all(&a)?;
            fs::remove_file(&c)?;
            assert!(names_in(mount.at(""))?.is_empty());
        }
    }
    Ok(())
}

#[test]
fn a_renamed_directory_is_where_it_went_for_those_who_are_in_it() -> Outcome {
    let mount = Mount::new();
    fs::create_dir_all(mount.at("a/b"))?;
    fs::write(mount.at("a/b/file"), "x")?;
    let inside = fs::File::open(mount.at("a/b"))?;
    fs::create_dir(mount.at("c"))?;
    fs::rename(mount.at("a"), mount.at("c/d"))?;
    let above = rustix::fs::openat(&inside, "..", rustix::fs::OFlags::DIRECTORY, rustix::fs::Mode::empty())?;
    assert_eq!(rustix::fs::fstat(&above)?.st_ino, fs::metadata(mount.at("c/d"))?.ino());
    fs::write(mount.at("c/d/b/file"), "y")?;
    let file = rustix::fs::openat(&inside, "file", rustix::fs::OFlags::RDONLY, rustix::fs::Mode::empty())?;
    let mut read = [0; 2];
    assert_eq!(rustix::io::read(&file, &mut read)?, 1);
    assert_eq!(read[0], b'y');
    Ok(())
}

#[test]
fn renaming_a_file_to_its_other_name_does_nothing() -> Outcome {
    let mount = Mount::new();
    fs::write(mount.at("a"), "x")?;
    fs::hard_link(mount.at("a"), mount.at("b"))?;
    fs::rename(mount.at("a"), mount.at("b"))?;
    assert_eq!(fs::metadata(mount.at("a"))?.nlink(), 2);
    assert_eq!(fs::read(mount.at("b"))?, b"x");
    Ok(())
}

#[test]
fn renaming_touches_neither_content_nor_header() -> Outcome {
    let mount = Mount::new();
    fs::create_dir(mount.at("d"))?;
    fs::write(mount.at("file"), crate::harness::bytes(1, 300_000))?;
    fs::File::open(mount.at("file"))?.sync_all()?;
    let ino = std::os::unix::fs::MetadataExt::ino(&fs::metadata(mount.at("file"))?).to_string();
    let tree = mount.volume().path().join("tree");
    let stored = || {
        let path = crate::harness::run("find", &[&tree, &"-inum", &ino]).trim().to_owned();
        let metadata = fs::metadata(&path).expect("the stored file");
        (fs::read(&path).expect("the stored file"), metadata.modified().expect("a time"), path)
    };
    let before = stored();
    let mut paths = vec![before.2];
    let long = "n".repeat(250);
    let names = ["file", "other", "d/file", &long, "file"];
    for (from, name) in names.into_iter().zip(&names[1..]) {
        fs::rename(mount.at(from), mount.at(name))?;
        let (content, modified, path) = stored();
        assert!(content == before.0 && modified == before.1, "{name}");
        paths.push(path);
    }
    assert_eq!(paths.first(), paths.last());
    paths.dedup();
    assert_eq!(paths.len(), 5);
    Ok(())
}
