use super::*;

fn store() -> (tempfile::TempDir, DirStore) {
    let dir = tempfile::tempdir().unwrap();
    let store = DirStore::open(dir.path()).unwrap();
    (dir, store)
}

#[test]
fn names_of_more_than_one_component_are_refused() {
    let (_keep, store) = store();
    let root = store.root();
    for name in [&b""[..], b".", b"..", b"a/b", b"/etc"] {
        assert_eq!(root.stat(name).unwrap_err().raw_os_error(), Some(libc::EINVAL));
        assert!(root.open_file(name, false).is_err());
        assert!(root.make_dir(name, 0o755).is_err());
    }
}

#[test]
fn a_planted_symbolic_link_is_never_followed() {
    let (keep, store) = store();
    let outside = tempfile::NamedTempFile::new().unwrap();
    std::os::unix::fs::symlink(outside.path(), keep.path().join("file")).unwrap();
    std::os::unix::fs::symlink("/", keep.path().join("dir")).unwrap();
    let root = store.root();
    assert!(root.open_file(b"file", true).is_err());
    assert!(root.open_dir(b"dir").is_err());
    assert!(root.create_file(b"file", 0o644).is_err());
    let before = std::fs::metadata(outside.path()).unwrap().permissions();
    let _ = root.entry(b"file").unwrap().set_permissions(0o777);
    assert_eq!(std::fs::metadata(outside.path()).unwrap().permissions(), before);
    assert_eq!(root.stat(b"file").unwrap().kind, Kind::Symlink);
}

#[test]
fn extended_attributes_of_any_length_come_back() {
    let (_keep, store) = store();
    let file = store.root().create_file(b"name", 0o600).unwrap();
    let inode = file.inode();
    assert_eq!(inode.xattr(b"user.none").unwrap(), None);
    for len in [0, 1, 511, 512, 513, 3000] {
        inode.set_xattr(b"user.a", &vec![7; len], SetXattr::Any).unwrap();
        assert_eq!(inode.xattr(b"user.a").unwrap(), Some(vec![7; len]));
    }
    inode.set_xattr(b"user.b", b"", SetXattr::Create).unwrap();
    let mut names = store.root().entry(b"name").unwrap().xattr_names().unwrap();
    names.sort();
    assert_eq!(names, [b"user.a", b"user.b"]);
    inode.remove_xattr(b"user.a").unwrap();
    assert_eq!(inode.xattr_names().unwrap(), [b"user.b"]);
}

#[test]
fn replacing_a_file_leaves_no_other_file_behind() {
    let (_keep, store) = store();
    let root = store.root();
    for content in [&b"one"[..], b"two, longer", b""] {
        replace(&*root, content);
        let mut read = vec![0; 100];
        let len = root.open_file(b"name", false).unwrap().read_at(&mut read, StoredOffset(0)).unwrap();
        assert_eq!(&read[..len], content);
        assert_eq!(root.list().unwrap().len(), 1);
    }
    fn replace(root: &dyn StoreDir, content: &[u8]) {
        super::super::replace_file(root, b"name", content, 0o600).unwrap();
    }
}

#[test]
fn extended_attributes_come_back_whole_through_either_kind_of_descriptor() {
    let (_keep, store) = store();
    let root = store.root();
    let file = root.create_file(b"file", 0o644).unwrap();
    let by_path = root.entry(b"file").unwrap();
    for inode in [file.inode(), &*by_path, root.inode()] {
        assert_eq!(inode.xattr(b"user.long").unwrap(), None);
        assert!(inode.xattr_names().unwrap().is_empty());
        inode.set_xattr(b"user.long", &[7; 300], SetXattr::Create).unwrap();
        inode.set_xattr(b"user.empty", b"", SetXattr::Any).unwrap();
        assert_eq!(inode.xattr(b"user.long").unwrap(), Some(vec![7; 300]));
        assert_eq!(inode.xattr(b"user.empty").unwrap(), Some(vec![]));
        let mut names = inode.xattr_names().unwrap();
        names.sort();
        assert_eq!(names, [&b"user.empty"[..], b"user.long"]);
        inode.remove_xattr(b"user.long").unwrap();
        inode.remove_xattr(b"user.empty").unwrap();
    }
}

#[test]
fn access_times_are_left_if_that_is_wanted() {
    let dir = tempfile::tempdir().unwrap();
    let atimes = || ["file", "sub"].map(|name| std::fs::metadata(dir.path().join(name)).unwrap().accessed().unwrap());
    std::fs::write(dir.path().join("file"), "content").unwrap();
    std::fs::create_dir(dir.path().join("sub")).unwrap();
    let long_ago = SetTime::At(Timestamp { seconds: 1, nanoseconds: 0 });
    let read = |access_times| {
        let root = DirStore::open_with(dir.path(), access_times).unwrap().root();
        for name in [b"file".as_slice(), b"sub"] {
            root.entry(name).unwrap().set_times(long_ago, SetTime::Now).unwrap();
        }
        let before = atimes();
        root.open_file(b"file", false).unwrap().read_at(&mut [0; 7], StoredOffset(0)).unwrap();
        root.open_dir(b"sub").unwrap().list().unwrap();
        atimes() == before
    };
    assert!(read(AccessTimes::Left));
    let mounted_so =
        || rustix::fs::statvfs(dir.path()).unwrap().f_flag.contains(rustix::fs::StatVfsMountFlags::NOATIME);
    assert!(mounted_so() || !read(AccessTimes::Kept));
}
