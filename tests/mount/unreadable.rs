//! What was dropped into the backing tree, or damaged there.

use crate::harness::{Mount, Outcome, Volume, number, run};
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

/// What the names of entries begin with whose own names cannot be read.
const PREFIX: &str = ".kmsfs-unreadable-";

fn names(directory: PathBuf) -> Outcome<Vec<OsString>> {
    let mut names =
        fs::read_dir(directory)?.map(|entry| entry.map(|entry| entry.file_name())).collect::<Result<Vec<_>, _>>()?;
    names.sort();
    Ok(names)
}

/// The entries of a stored directory but what kmsfs keeps there.
fn stored(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).expect("a directory").map(|entry| entry.expect("an entry").path());
    entries.filter(|path| !path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."))).collect()
}

#[test]
fn foreign_entries_are_listed_in_an_escaped_form_and_can_be_removed() -> Outcome {
    let volume = Volume::new();
    let tree = volume.path().join("tree");
    let long = "x".repeat(250);
    fs::write(tree.join("a file"), "foreign")?;
    fs::write(tree.join(".hidden"), "foreign")?;
    fs::write(tree.join(&long), "foreign")?;
    fs::create_dir_all(tree.join("dir/below"))?;
    fs::write(tree.join("dir/below/file"), "foreign")?;
    std::os::unix::fs::symlink("/etc/passwd", tree.join("link"))?;
    std::os::unix::fs::symlink("loop", tree.join("loop"))?;
    run("mkfifo", &[&tree.join("fifo")]);
    let foreign = stored(&tree);
    let mount = volume.mount(&[]);
    fs::write(mount.at("own"), "x")?;
    let listed = names(mount.at(""))?;
    assert_eq!(listed.len(), 8, "{listed:?}");
    for name in ["a file", ".hidden", "dir", "link", "loop", "fifo"] {
        let name = format!("{PREFIX}{name}");
        assert!(listed.contains(&OsString::from(&name)), "{name}: {listed:?}");
        fs::symlink_metadata(mount.at(&name))?;
    }
    assert_eq!(number(fs::read(mount.at(format!("{PREFIX}a file")))), libc::EIO);
    assert_eq!(number(fs::read_link(mount.at(format!("{PREFIX}link")))), libc::EIO);
    // What is kmsfs's own cannot be reached this way, nor what can be read.
    assert_eq!(number(fs::symlink_metadata(mount.at(format!("{PREFIX}.id")))), libc::ENOENT);
    let own = stored(&tree).into_iter().find(|path| !foreign.contains(path)).expect("the file's entry");
    let own = own.file_name().expect("a name").to_str().expect("base64url");
    assert_eq!(number(fs::symlink_metadata(mount.at(format!("{PREFIX}{own}")))), libc::ENOENT);
    run("sh", &[&"-c", &"cd $1; rm -rf .kmsfs-unreadable-*", &"sh", &mount.at("")]);
    assert_eq!(names(mount.at(""))?, ["own"]);
    assert_eq!(stored(&tree).len(), 1);
    Ok(())
}

#[test]
fn a_directory_without_an_id_can_be_removed_with_what_is_in_it() -> Outcome {
    let mount = Mount::new();
    fs::create_dir_all(mount.at("d/below"))?;
    fs::write(mount.at("d/file"), "x")?;
    fs::write(mount.at("d/below/file"), "x")?;
    let volume = mount.unmount();
    let [stored] = &stored(&volume.path().join("tree"))[..] else { panic!("one directory") };
    fs::remove_file(stored.join(".id"))?;
    let mount = volume.mount(&[]);
    assert_eq!(names(mount.at(""))?, ["d"]);
    assert_eq!(names(mount.at("d"))?.len(), 2);
    assert_eq!(number(fs::write(mount.at("d/new"), "x")), libc::EIO);
    fs::remove_dir_all(mount.at("d"))?;
    assert!(names(mount.at(""))?.is_empty());
    Ok(())
}

#[test]
fn an_entry_that_moved_in_the_store_can_be_moved_to_a_name_and_read() -> Outcome {
    let mount = Mount::new();
    fs::create_dir(mount.at("d"))?;
    fs::write(mount.at("file"), "content")?;
    fs::write(mount.at("n".repeat(200)), "long")?;
    let volume = mount.unmount();
    let tree = volume.path().join("tree");
    let entries = stored(&tree);
    let directory = entries.iter().find(|path| path.is_dir()).expect("a directory");
    let file = entries.iter().find(|path| path.is_file()).expect("a file");
    fs::rename(file, directory.join(file.file_name().expect("a name")))?;
    let side = fs::read_dir(&tree)?.map(|entry| entry.expect("an entry").path());
    let side =
        side.into_iter().find(|path| path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b".N")));
    fs::remove_file(side.expect("the side entry of a long name"))?;
    let mount = volume.mount(&[]);
    // By its name the long one is still found; in a listing it has none.
    assert_eq!(fs::read(mount.at("n".repeat(200)))?, b"long");
    for (directory, content) in [("", "long"), ("d", "content")] {
        let [name] = &names(mount.at(directory))?.into_iter().filter(|name| name != "d").collect::<Vec<_>>()[..] else {
            panic!("one entry in {directory:?}: {:?}", names(mount.at(directory)));
        };
        assert!(name.to_string_lossy().starts_with(PREFIX), "{name:?}");
        fs::rename(mount.at(directory).join(name), mount.at("found"))?;
        assert_eq!(fs::read_to_string(mount.at("found"))?, content);
        fs::remove_file(mount.at("found"))?;
    }
    Ok(())
}

#[test]
fn a_damaged_file_is_an_error_and_nothing_else_is() -> Outcome {
    let mount = Mount::new();
    for name in ["good", "header", "content", "short", "empty"] {
        fs::create_dir(mount.at(name))?;
        fs::write(mount.at(name).join("file"), vec![b'x'; 400_000])?;
    }
    let find = |name: &str| {
        let ino = std::os::unix::fs::MetadataExt::ino(&fs::metadata(mount.at(name).join("file")).expect("attributes"));
        run("find", &[&tree_of(&mount), &"-inum", &ino.to_string()]).trim().to_owned()
    };
    let [header, content, short, empty] = ["header", "content", "short", "empty"].map(find);
    let volume = mount.unmount();
    let flip = |path: &str, at: u64| -> Outcome {
        let file = fs::OpenOptions::new().read(true).write(true).open(path)?;
        let mut byte = [0];
        std::os::unix::fs::FileExt::read_exact_at(&file, &mut byte, at)?;
        std::os::unix::fs::FileExt::write_all_at(&file, &[byte[0] ^ 1], at)?;
        Ok(())
    };
    flip(&header, 100)?;
    flip(&content, 200_000)?;
    fs::OpenOptions::new().write(true).open(&short)?.set_len(300_000)?;
    fs::OpenOptions::new().write(true).open(&empty)?.set_len(0)?;
    let mount = volume.mount(&[]);
    assert!(fs::read(mount.at("good/file"))? == vec![b'x'; 400_000]);
    for name in ["header", "content", "short", "empty"] {
        assert_eq!(number(fs::read(mount.at(name).join("file"))), libc::EIO, "{name}");
        fs::rename(mount.at(name).join("file"), mount.at(name).join("renamed"))?;
        fs::remove_dir_all(mount.at(name))?;
    }
    assert_eq!(names(mount.at(""))?, ["good"]);
    assert!(mount.status()["damaged"].as_u64() >= Some(4));
    Ok(())
}

/// Takes mounts away when the test ends, however it does.
struct Mounted(Vec<PathBuf>);

impl Mounted {
    fn bind(&mut self, what: &Path, place: PathBuf) {
        run("mount", &[&"--bind", &what, &place]);
        self.0.push(place);
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        for place in self.0.iter().rev() {
            let _ = std::process::Command::new("umount").arg("--lazy").arg(place).status();
        }
    }
}

/// The tree itself in the tree, so that it has no end; a file over a file; another filesystem, with numbers of its own.
#[test]
fn what_is_mounted_in_the_store_is_never_entered() -> Outcome {
    let mount = Volume::with(&["--plain-names"]).mount(&[]);
    for name in ["loop", "other", "d"] {
        fs::create_dir(mount.at(name))?;
    }
    for name in ["d/file", "covered", "below"] {
        fs::write(mount.at(name), name)?;
    }
    let volume = mount.unmount();
    let tree = volume.path().join("tree");
    let mut mounted = Mounted(Vec::new());
    mounted.bind(&tree, tree.join("loop"));
    mounted.bind(&tree.join("below"), tree.join("covered"));
    mounted.bind(Path::new("/proc"), tree.join("other"));
    let mount = volume.mount(&[]);
    for name in ["loop", "other", "covered", "loop/d", "other/self"] {
        assert_eq!(number(fs::symlink_metadata(mount.at(name))), libc::EXDEV, "{name}");
    }
    assert_eq!(number(fs::write(mount.at("covered"), "x")), libc::EXDEV);
    assert_eq!(fs::read_to_string(mount.at("d/file"))?, "d/file");
    assert_eq!(fs::read_to_string(mount.at("below"))?, "below");
    let found = run("sh", &[&"-c", &"find $1 -type f 2>/dev/null | wc -l", &"sh", &mount.at("")]);
    assert_eq!(found.trim(), "2");
    assert!(mount.volume().log().contains("something is mounted"), "{}", mount.volume().log());
    drop(mounted);
    let mount = mount.again(&[]);
    assert_eq!(fs::read_to_string(mount.at("covered"))?, "covered");
    assert_eq!(fs::read_dir(mount.at("loop"))?.count(), 0);
    Ok(())
}

/// What the backing filesystem does not let even root read or change.
#[test]
fn an_entry_that_cannot_be_changed_in_the_store_is_an_error_by_itself() -> Outcome {
    let mount = Mount::new();
    fs::create_dir(mount.at("d"))?;
    fs::write(mount.at("d/file"), "content")?;
    fs::write(mount.at("good"), "content")?;
    let ino = std::os::unix::fs::MetadataExt::ino(&fs::metadata(mount.at("d/file"))?).to_string();
    let stored = run("find", &[&tree_of(&mount), &"-inum", &ino]).trim().to_owned();
    let mount = mount.again(&[]);
    run("chattr", &[&"+i", &stored]);
    let read = fs::read_to_string(mount.at("d/file"));
    let removed = fs::remove_file(mount.at("d/file"));
    run("chattr", &[&"-i", &stored]);
    assert_eq!(read?, "content");
    assert_eq!(number(removed), libc::EPERM);
    assert_eq!(fs::read_to_string(mount.at("good"))?, "content");
    fs::write(mount.at("d/file"), "changed")?;
    assert_eq!(fs::read_to_string(mount.at("d/file"))?, "changed");
    fs::remove_dir_all(mount.at("d"))?;
    Ok(())
}

/// Ids of directories that are no ids, each in its way; and names in the place of the files that belong to kmsfs.
#[test]
fn a_directory_id_of_the_wrong_kind_is_as_good_as_none() -> Outcome {
    let mount = Mount::new();
    let kinds = ["empty", "file", "short", "long", "loop", "directory", "fifo"];
    for kind in kinds {
        fs::create_dir(mount.at(kind))?;
        fs::write(mount.at(kind).join("file"), "x")?;
    }
    let find = |kind: &str| {
        let ino = std::os::unix::fs::MetadataExt::ino(&fs::metadata(mount.at(kind)).expect("attributes")).to_string();
        PathBuf::from(run("find", &[&tree_of(&mount), &"-inum", &ino]).trim()).join(".id")
    };
    let ids = kinds.map(find);
    let volume = mount.unmount();
    for (kind, id) in kinds.into_iter().zip(&ids) {
        fs::remove_file(id)?;
        match kind {
            "empty" => fs::write(id, "")?,
            "file" => fs::write(id, "0".repeat(32))?,
            "short" => std::os::unix::fs::symlink("0123", id)?,
            "long" => std::os::unix::fs::symlink("0".repeat(33), id)?,
            "loop" => std::os::unix::fs::symlink(".id", id)?,
            "directory" => fs::create_dir(id)?,
            _ => drop(run("mkfifo", &[&id])),
        }
    }
    let mount = volume.mount(&[]);
    for kind in kinds {
        let [name] = &names(mount.at(kind))?[..] else { panic!("{kind}: {:?}", names(mount.at(kind))) };
        assert!(name.to_string_lossy().starts_with(PREFIX), "{kind}: {name:?}");
        assert_eq!(number(fs::write(mount.at(kind).join("new"), "x")), libc::EIO, "{kind}");
        fs::remove_dir_all(mount.at(kind)).unwrap_or_else(|error| panic!("{kind}: {error}"));
    }
    assert!(names(mount.at(""))?.is_empty());
    Ok(())
}

fn tree_of(mount: &Mount) -> PathBuf {
    mount.volume().path().join("tree")
}
