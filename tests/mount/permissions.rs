//! Other users, setuid and setgid, sticky directories, ACLs.

use crate::harness::{FOR_ALL, Mount, NOBODY, Outcome, number, python, python_as, run};
use std::ffi::OsStr;
use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};

#[test]
fn permissions_are_those_of_the_calling_user() -> Outcome {
    let mount = Mount::for_all();
    fs::write(mount.at("secret"), "x")?;
    fs::set_permissions(mount.at("secret"), Permissions::from_mode(0o600))?;
    fs::create_dir(mount.at("open"))?;
    fs::set_permissions(mount.at("open"), Permissions::from_mode(0o777))?;
    python_as(
        NOBODY,
        r"
os.chdir(argv[0])
def denied(act):
    try:
        act()
    except PermissionError:
        return
    assert False
denied(lambda: open('secret'))
denied(lambda: open('new', 'w'))
denied(lambda: os.chmod('secret', 0o666))
denied(lambda: os.unlink('secret'))
open('open/mine', 'w').write('x')
os.mkdir('open/directory', 0o700)
os.symlink('t', 'open/link')
os.mkfifo('open/fifo')
denied(lambda: os.chown('open/mine', 0, 0))
",
        &[&mount.at("")],
    );
    for name in ["mine", "directory", "link", "fifo"] {
        let attributes = fs::symlink_metadata(mount.at("open").join(name))?;
        assert_eq!((attributes.uid(), attributes.gid()), (NOBODY, NOBODY), "{name}");
    }
    assert_eq!(fs::metadata(mount.at("open/mine"))?.mode() & 0o7777, 0o644);
    Ok(())
}

#[test]
fn files_belong_to_whoever_made_them_while_others_make_theirs() -> Outcome {
    let mount = Mount::for_all();
    fs::create_dir(mount.at("shared"))?;
    fs::set_permissions(mount.at("shared"), Permissions::from_mode(0o1777))?;
    python(
        r"
os.chdir(argv[0])
children = []
for uid in (0, 1, 65534):
    pid = os.fork()
    if pid == 0:
        os.setgroups([]); os.setgid(uid); os.setuid(uid)
        for i in range(300):
            name = '%d-%d' % (uid, i)
            open(name, 'w').write(name); os.mkdir(name + '-d'); os.symlink(name, name + '-l')
        os._exit(0)
    children.append(pid)
for pid in children:
    assert os.waitpid(pid, 0)[1] == 0
",
        &[&mount.at("shared")],
    );
    let mount = mount.again(FOR_ALL);
    let mut seen = 0;
    for entry in fs::read_dir(mount.at("shared"))? {
        let entry = entry?;
        let name = entry.file_name().into_string().expect("UTF-8");
        let uid: u32 = name.split('-').next().expect("a user").parse()?;
        let attributes = entry.metadata()?;
        assert_eq!((attributes.uid(), attributes.gid()), (uid, uid), "{name}");
        seen += 1;
    }
    assert_eq!(seen, 2700);
    Ok(())
}

#[test]
fn without_allow_other_nobody_else_gets_in() -> Outcome {
    let mount = Mount::new();
    fs::set_permissions(mount.at(""), Permissions::from_mode(0o777))?;
    python_as(
        NOBODY,
        "
try:
    os.listdir(argv[0])
    assert False
except PermissionError:
    pass
",
        &[&mount.at("")],
    );
    Ok(())
}

#[test]
fn a_write_by_another_user_clears_setuid_and_setgid() -> Outcome {
    let mount = Mount::for_all();
    let fallocate =
        "ctypes.CDLL(None).fallocate(os.open(argv[0], os.O_WRONLY), {}, ctypes.c_long(0), ctypes.c_long(4096))";
    let punch = format!("assert {} == 0", fallocate.replace("{}", "3"));
    let extend = format!("assert {} == 0", fallocate.replace("{}", "0"));
    let acts = ["os.write(os.open(argv[0], os.O_WRONLY), b'x')", "os.truncate(argv[0], 1)", &punch, &extend];
    for act in acts {
        // Setgid means something else where the group may not execute, and is kept by its members.
        for (mode, group, expected) in
            [(0o6777, 0, 0o777), (0o6666, 0, 0o666), (0o6666, NOBODY, 0o2666), (0o6676, NOBODY, 0o676)]
        {
            fs::write(mount.at("file"), "content")?;
            std::os::unix::fs::chown(mount.at("file"), None, Some(group))?;
            fs::set_permissions(mount.at("file"), Permissions::from_mode(mode))?;
            python_as(NOBODY, act, &[&mount.at("file")]);
            assert_eq!(fs::metadata(mount.at("file"))?.mode() & 0o7777, expected, "{act}: {mode:o} of {group}");
        }
    }
    fs::set_permissions(mount.at("file"), Permissions::from_mode(0o6777))?;
    std::os::unix::fs::chown(mount.at("file"), Some(NOBODY), None)?;
    assert_eq!(fs::metadata(mount.at("file"))?.mode() & 0o7777, 0o777);
    Ok(())
}

#[test]
fn whether_truncating_clears_setuid_is_a_matter_of_a_capability_not_of_being_root() -> Outcome {
    let mount = Mount::for_all();
    let (bare, with) = ("--bounding-set=-fsetid", ["--inh-caps=+fsetid", "--ambient-caps=+fsetid"]);
    let cases: [(&[&str], u32); 4] = [
        (&[], 0o6777),
        (&[bare], 0o777),
        (&["--reuid=nobody", "--regid=nogroup", "--clear-groups"], 0o777),
        (&["--reuid=nobody", "--regid=nogroup", "--clear-groups", with[0], with[1]], 0o6777),
    ];
    for (caller, expected) in cases {
        for act in ["exec truncate --no-create --size=1 $1", ": >$1"] {
            let file = mount.at("file");
            fs::write(&file, "content")?;
            fs::set_permissions(&file, Permissions::from_mode(0o6777))?;
            let mut command: Vec<&dyn AsRef<OsStr>> = caller.iter().map(|option| option as &dyn AsRef<OsStr>).collect();
            command.extend([&"sh" as &dyn AsRef<OsStr>, &"-c", &act, &"sh", &file]);
            run("setpriv", &command);
            assert_eq!(fs::metadata(&file)?.mode() & 0o7777, expected, "{caller:?}: {act}");
        }
    }
    Ok(())
}

#[test]
fn changing_an_acl_clears_setgid_for_an_owner_who_is_not_of_the_group() -> Outcome {
    let mount = Mount::for_all();
    let cases: [(&[&str], u32); 3] = [
        (&[], 0o2771),
        (&["--reuid=nobody", "--regid=nogroup", "--clear-groups"], 0o771),
        (&["--reuid=nobody", "--regid=nogroup", "--groups=1234"], 0o2771),
    ];
    for (caller, expected) in cases {
        let file = mount.at("file");
        fs::write(&file, "content")?;
        std::os::unix::fs::chown(&file, Some(NOBODY), Some(1234))?;
        fs::set_permissions(&file, Permissions::from_mode(0o2771))?;
        let mut command: Vec<&dyn AsRef<OsStr>> = caller.iter().map(|option| option as &dyn AsRef<OsStr>).collect();
        command.extend([&"setfacl" as &dyn AsRef<OsStr>, &"-m", &"u:1000:r", &file]);
        run("setpriv", &command);
        assert_eq!(fs::metadata(&file)?.mode() & 0o7777, expected, "{caller:?}");
        fs::remove_file(&file)?;
    }
    Ok(())
}

#[test]
fn a_write_takes_file_capabilities_away() -> Outcome {
    let mount = Mount::for_all();
    fs::write(mount.at("file"), "content")?;
    run("setcap", &[&"cap_net_raw+ep", &mount.at("file")]);
    let mount = mount.again(FOR_ALL);
    assert!(run("getcap", &[&mount.at("file")]).contains("cap_net_raw"));
    fs::write(mount.at("file"), "changed")?;
    assert_eq!(run("getcap", &[&mount.at("file")]), "");
    Ok(())
}

#[test]
fn what_is_made_in_a_setgid_directory_gets_its_group() -> Outcome {
    let mount = Mount::for_all();
    for group in [0, 1234] {
        let directory = mount.at(format!("of-{group}"));
        fs::create_dir(&directory)?;
        std::os::unix::fs::chown(&directory, None, Some(group))?;
        fs::set_permissions(&directory, Permissions::from_mode(0o2777))?;
        python_as(
            NOBODY,
            "os.chdir(argv[0]); open('file', 'w').close(); os.mkdir('directory'); os.symlink('t', 'link')",
            &[&directory],
        );
        for (name, mode) in [("file", 0o644), ("directory", 0o2755), ("link", 0o777)] {
            let attributes = fs::symlink_metadata(directory.join(name))?;
            let seen = (attributes.uid(), attributes.gid(), attributes.mode() & 0o7777);
            assert_eq!(seen, (NOBODY, group, mode), "{name} of {group}");
        }
    }
    Ok(())
}

#[test]
fn in_a_sticky_directory_only_owners_remove() -> Outcome {
    let mount = Mount::for_all();
    fs::create_dir(mount.at("tmp"))?;
    fs::set_permissions(mount.at("tmp"), Permissions::from_mode(0o1777))?;
    fs::write(mount.at("tmp/root"), "x")?;
    python_as(
        NOBODY,
        r"
os.chdir(argv[0])
open('mine', 'w').close()
for act in [lambda: os.unlink('root'), lambda: os.rename('root', 'r'), lambda: os.rename('mine', 'root')]:
    try:
        act()
        assert False
    except PermissionError:
        pass
os.unlink('mine')
",
        &[&mount.at("tmp")],
    );
    Ok(())
}

#[test]
fn access_control_lists_are_obeyed_inherited_and_kept() -> Outcome {
    let mount = Mount::for_all();
    fs::write(mount.at("file"), "x")?;
    fs::set_permissions(mount.at("file"), Permissions::from_mode(0o600))?;
    run("setfacl", &[&"-m", &"u:nobody:rw", &mount.at("file")]);
    python_as(NOBODY, "open(argv[0], 'a').write('y')", &[&mount.at("file")]);
    fs::create_dir(mount.at("d"))?;
    run("setfacl", &[&"-d", &"-m", &"u:nobody:rwx,g::r-x,o::---,m::rwx", &mount.at("d")]);
    run("sh", &[&"-c", &"umask 077; echo x > $1/file; mkdir $1/below", &"sh", &mount.at("d")]);
    let mount = mount.again(FOR_ALL);
    let acl = |path: &str| run("getfacl", &[&"-cpE", &mount.at(path)]);
    assert_eq!(acl("file"), "user::rw-\nuser:nobody:rw-\ngroup::---\nmask::rw-\nother::---\n\n");
    assert_eq!(acl("d/file"), "user::rw-\nuser:nobody:rwx\ngroup::r-x\nmask::rw-\nother::---\n\n");
    let below = acl("d/below");
    assert!(below.starts_with("user::rwx\nuser:nobody:rwx\ngroup::r-x\nmask::rwx\nother::---\n"), "{below}");
    assert!(below.contains("default:user:nobody:rwx\n"), "{below}");
    assert_eq!(fs::metadata(mount.at("d/file"))?.mode() & 0o7777, 0o660);
    fs::set_permissions(mount.at("d/file"), Permissions::from_mode(0o640))?;
    assert!(acl("d/file").contains("mask::r--\n"));
    run("setfacl", &[&"-b", &mount.at("d/file")]);
    assert_eq!(acl("d/file"), "user::rw-\ngroup::r--\nother::---\n\n");
    Ok(())
}

#[test]
fn device_nodes_work_only_where_they_are_allowed() -> Outcome {
    let mount = Mount::for_all();
    run("mknod", &[&mount.at("null"), &"c", &"1", &"3"]);
    fs::write(mount.at("null"), "x")?;
    let mount = mount.again(&[]);
    assert_eq!(number(fs::write(mount.at("null"), "x")), libc::EACCES);
    Ok(())
}
