use crate::harness::{FOR_ALL, Mount, Outcome, number, python, run};
use rustix::fs::{XattrFlags, getxattr, listxattr, removexattr, setxattr};
use rustix::io::Errno;
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

fn list(path: &Path) -> Outcome<BTreeSet<String>> {
    let mut buffer = vec![0; 65536];
    let len = listxattr(path, &mut buffer[..])?;
    let names = std::str::from_utf8(&buffer[..len])?;
    Ok(names.split_terminator('\0').map(str::to_owned).collect())
}

#[test]
fn extended_attributes_are_set_listed_removed_and_stay() -> Outcome {
    let mount = Mount::new();
    fs::write(mount.at("file"), "x")?;
    fs::create_dir(mount.at("directory"))?;
    for name in ["file", "directory"] {
        let path = mount.at(name);
        setxattr(&path, "user.one", b"1", XattrFlags::empty())?;
        assert_eq!(setxattr(&path, "user.one", b"2", XattrFlags::CREATE), Err(Errno::EXIST));
        assert_eq!(setxattr(&path, "user.two", b"2", XattrFlags::REPLACE), Err(Errno::NODATA));
        setxattr(&path, "user.one", b"replaced", XattrFlags::REPLACE)?;
        setxattr(&path, "user.empty", b"", XattrFlags::empty())?;
        setxattr(&path, "user.large", &[7; 3000], XattrFlags::empty())?;
        setxattr(&path, "trusted.of-root", &[0, 1, 255], XattrFlags::empty())?;
    }
    let mount = mount.again(&[]);
    for name in ["file", "directory"] {
        let path = mount.at(name);
        let all = ["user.one", "user.empty", "user.large", "trusted.of-root"];
        assert_eq!(list(&path)?, all.map(str::to_owned).into());
        let mut buffer = [0; 4096];
        assert_eq!(getxattr(&path, "user.one", &mut buffer[..])?, 8);
        assert_eq!(&buffer[..8], b"replaced");
        assert_eq!(getxattr(&path, "user.empty", &mut buffer[..])?, 0);
        assert_eq!(getxattr(&path, "user.large", &mut buffer[..])?, 3000);
        assert_eq!(getxattr(&path, "user.large", &mut buffer[..2999]), Err(Errno::RANGE));
        assert_eq!(getxattr(&path, "user.none", &mut buffer[..]), Err(Errno::NODATA));
        removexattr(&path, "user.one")?;
        assert_eq!(removexattr(&path, "user.one"), Err(Errno::NODATA));
        assert_eq!(list(&path)?.len(), 3);
    }
    Ok(())
}

#[test]
fn attributes_that_are_too_large_are_refused_and_change_nothing() -> Outcome {
    let mount = Mount::new();
    fs::write(mount.at("file"), "x")?;
    setxattr(mount.at("file"), "user.name", b"old", XattrFlags::empty())?;
    assert!(setxattr(mount.at("file"), "user.name", &vec![1; 65536], XattrFlags::empty()).is_err());
    assert!(setxattr(mount.at("file"), format!("user.{}", "n".repeat(251)), b"x", XattrFlags::empty()).is_err());
    let mut buffer = [0; 16];
    assert_eq!(getxattr(mount.at("file"), "user.name", &mut buffer[..])?, 3);
    Ok(())
}

#[test]
fn attributes_of_the_trusted_kind_are_hidden_from_others() -> Outcome {
    let mount = Mount::for_all();
    fs::write(mount.at("file"), "x")?;
    setxattr(mount.at("file"), "trusted.hidden", b"1", XattrFlags::empty())?;
    setxattr(mount.at("file"), "user.shown", b"1", XattrFlags::empty())?;
    crate::harness::python_as(
        crate::harness::NOBODY,
        "assert os.listxattr(argv[0]) == ['user.shown'], os.listxattr(argv[0])",
        &[&mount.at("file")],
    );
    Ok(())
}

#[test]
fn only_files_and_directories_have_attributes_of_the_user() -> Outcome {
    let mount = Mount::new();
    run("mkfifo", &[&mount.at("fifo")]);
    assert_eq!(setxattr(mount.at("fifo"), "user.a", b"1", XattrFlags::empty()), Err(Errno::PERM));
    std::os::unix::fs::symlink("t", mount.at("link"))?;
    python("assert os.listxattr(argv[0], follow_symlinks=False) == []", &[&mount.at("link")]);
    assert_eq!(number(fs::read(mount.at("link"))), libc::ENOENT);
    Ok(())
}

#[test]
fn links_and_special_files_have_attributes_of_the_other_kinds() {
    let mount = Mount::for_all();
    let script = r"
os.chdir(argv[0])
kinds = ['link', 'fifo', 'null']
values = {'trusted.a': b'1', 'security.b': b'2' * 1000, 'trusted.empty': b''}
if argv[1] == 'set':
    os.symlink('nowhere', 'link'); os.mkfifo('fifo'); os.mknod('null', stat.S_IFCHR | 0o666, os.makedev(1, 3))
    for kind in kinds:
        for name, value in values.items():
            os.setxattr(kind, name, value, follow_symlinks=False)
        os.setxattr(kind, 'trusted.gone', b'x', follow_symlinks=False)
        os.removexattr(kind, 'trusted.gone', follow_symlinks=False)
for kind in kinds:
    assert sorted(os.listxattr(kind, follow_symlinks=False)) == sorted(values), os.listxattr(kind, follow_symlinks=False)
    for name, value in values.items():
        assert os.getxattr(kind, name, follow_symlinks=False) == value
    try:
        os.setxattr(kind, 'user.a', b'1', follow_symlinks=False)
        assert False, kind
    except OSError as error:
        assert error.errno == errno.EPERM
";
    python(script, &[&mount.at(""), &"set"]);
    let mount = mount.again(FOR_ALL);
    python(script, &[&mount.at(""), &"see"]);
    let tree = mount.volume().path().join("tree");
    let stored = run("getfattr", &[&"--recursive", &"--no-dereference", &"--dump", &"--match=-", &tree]);
    assert!(stored.contains("trusted.kmsfs.") && !stored.contains("security.b"), "{stored}");
}
