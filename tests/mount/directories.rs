//! Listing.

use crate::harness::{Mount, Outcome, python, run};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::{DirEntryExt, MetadataExt};

#[test]
fn a_large_directory_is_listed_while_it_changes() -> Outcome {
    const COUNT: usize = 20_000;
    let mount = Mount::new();
    fs::create_dir(mount.at("d"))?;
    for i in 0..COUNT {
        fs::File::create(mount.at(format!("d/stays-{i}")))?;
    }
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let changes = scope.spawn(|| -> std::io::Result<()> {
            let mut i = 0;
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                let name = format!("d/{}-{i}", "comes".repeat(if i % 2 == 0 { 1 } else { 40 }));
                fs::File::create(mount.at(&name))?;
                fs::rename(mount.at(&name), mount.at("d/goes"))?;
                i += 1;
            }
            Ok(())
        });
        let lists = (|| -> std::io::Result<()> {
            for _ in 0..3 {
                let mut seen = BTreeSet::new();
                for entry in fs::read_dir(mount.at("d"))? {
                    let name = entry?.file_name().into_string().expect("UTF-8");
                    assert!(seen.insert(name.clone()), "twice: {name}");
                }
                assert_eq!(seen.iter().filter(|name| name.starts_with("stays-")).count(), COUNT);
            }
            Ok(())
        })();
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        lists.and(changes.join().expect("no panic"))
    })?;
    assert_eq!(mount.status()["damaged"], 0);
    Ok(())
}

#[test]
fn all_entries_can_be_removed_while_they_are_listed() -> Outcome {
    let mount = Mount::new();
    fs::create_dir(mount.at("d"))?;
    for i in 0..5000 {
        fs::File::create(mount.at(format!("d/{i}")))?;
    }
    for entry in fs::read_dir(mount.at("d"))? {
        fs::remove_file(entry?.path())?;
    }
    fs::remove_dir(mount.at("d"))?;
    Ok(())
}

#[test]
fn positions_in_a_directory_can_be_returned_to() {
    let mount = Mount::new();
    python(
        r"
os.chdir(argv[0])
for i in range(3000):
    open('entry-%d' % i, 'w').close()
class Entry(ctypes.Structure):
    _fields_ = [('ino', ctypes.c_ulong), ('off', ctypes.c_long), ('len', ctypes.c_ushort),
                ('kind', ctypes.c_ubyte), ('name', ctypes.c_char * 256)]
c = ctypes.CDLL(None, use_errno=True)
c.opendir.restype = ctypes.c_void_p
c.readdir.restype = ctypes.POINTER(Entry)
c.telldir.restype = ctypes.c_long
for call, arguments in [(c.readdir, 1), (c.telldir, 1), (c.rewinddir, 1), (c.seekdir, 2)]:
    call.argtypes = [ctypes.c_void_p, ctypes.c_long][:arguments]
d = c.opendir(b'.')
order, places = [], {}
while True:
    place = c.telldir(d)
    entry = c.readdir(d)
    if not entry:
        break
    order.append(entry.contents.name)
    places[entry.contents.name] = place
assert len(order) == 3002 and len(set(order)) == 3002
for name in order[::-211]:
    c.seekdir(d, places[name])
    assert c.readdir(d).contents.name == name
c.rewinddir(d)
assert [c.readdir(d).contents.name for _ in order] == order
open('new', 'w').close()
c.rewinddir(d)
seen = set()
while entry := c.readdir(d):
    seen.add(entry.contents.name)
assert b'new' in seen and len(seen) == 3003
",
        &[&mount.at("")],
    );
}

#[test]
fn a_listing_says_the_same_as_stat() -> Outcome {
    let mount = Mount::for_all();
    fs::create_dir_all(mount.at("a/b"))?;
    fs::write(mount.at("a/file"), "x")?;
    std::os::unix::fs::symlink("t", mount.at("a/link"))?;
    run("mkfifo", &[&mount.at("a/fifo")]);
    run("mknod", &[&mount.at("a/null"), &"c", &"1", &"3"]);
    for directory in ["", "a", "a/b"] {
        let above = mount.at(directory).join("..");
        // Not std's: that one leaves the two dots out.
        let listed = run("find", &[&mount.at(directory), &"-maxdepth", &"1", &"-printf", &"%y %i %f\\n"]);
        for entry in fs::read_dir(mount.at(directory))? {
            let (entry, attributes) = entry.map(|entry| (entry.path(), entry)).map(|(path, entry)| {
                let attributes = fs::symlink_metadata(path).expect("attributes");
                (entry, attributes)
            })?;
            assert_eq!((entry.ino(), entry.file_type()?), (attributes.ino(), attributes.file_type()));
            let name = entry.file_name().into_string().expect("UTF-8");
            assert!(listed.contains(&format!(" {} {name}\n", attributes.ino())), "{listed}");
        }
        let dots = python(
            r"
class Entry(ctypes.Structure):
    _fields_ = [('ino', ctypes.c_ulong), ('off', ctypes.c_long), ('len', ctypes.c_ushort),
                ('kind', ctypes.c_ubyte), ('name', ctypes.c_char * 256)]
c = ctypes.CDLL(None)
c.opendir.restype, c.readdir.restype = ctypes.c_void_p, ctypes.POINTER(Entry)
c.readdir.argtypes = [ctypes.c_void_p]
d = c.opendir(argv[0].encode())
while entry := c.readdir(d):
    if entry.contents.name in (b'.', b'..'):
        print(entry.contents.name.decode(), entry.contents.ino, entry.contents.kind)
",
            &[&mount.at(directory)],
        );
        let dots: BTreeMap<&str, &str> = dots.lines().filter_map(|line| line.split_once(' ')).collect();
        assert_eq!(dots["."], format!("{} 4", fs::metadata(mount.at(directory))?.ino()));
        // That of the root is the mountpoint's own affair.
        if !directory.is_empty() {
            assert_eq!(dots[".."], format!("{} 4", fs::metadata(above)?.ino()));
        }
    }
    Ok(())
}

#[test]
fn links_and_blocks_are_counted_as_elsewhere() -> Outcome {
    let mount = Mount::new();
    fs::create_dir(mount.at("d"))?;
    assert_eq!(fs::metadata(mount.at("d"))?.nlink(), 2);
    fs::create_dir(mount.at("d/below"))?;
    fs::write(mount.at("d/file"), "x")?;
    assert_eq!(fs::metadata(mount.at("d"))?.nlink(), 3);
    fs::hard_link(mount.at("d/file"), mount.at("d/other"))?;
    assert_eq!(fs::metadata(mount.at("d/file"))?.nlink(), 2);
    assert_eq!(fs::metadata(mount.at("d/other"))?.len(), 1);
    fs::remove_file(mount.at("d/file"))?;
    assert_eq!(fs::metadata(mount.at("d/other"))?.nlink(), 1);
    fs::remove_dir(mount.at("d/below"))?;
    assert_eq!(fs::metadata(mount.at("d"))?.nlink(), 2);
    let file = fs::File::create(mount.at("large"))?;
    std::io::Write::write_all(&mut &file, &[1; 1 << 20])?;
    file.sync_all()?;
    let blocks = file.metadata()?.blocks() * 512;
    assert!((1 << 20..(1 << 20) + (1 << 17)).contains(&blocks), "{blocks} bytes");
    Ok(())
}

#[test]
fn what_the_kernel_forgets_is_forgotten() -> Outcome {
    let mount = Mount::new();
    for i in 0..5000 {
        let path = mount.at(format!("d{}", i % 10));
        fs::create_dir_all(&path)?;
        fs::write(path.join(i.to_string()), "x")?;
    }
    let known = || mount.status()["inodes"].as_u64().expect("a number");
    run("find", &[&mount.at(""), &"-size", &"+1000"]);
    assert!(known() > 100, "{}", known());
    crate::harness::until("the kernel forgets", || {
        fs::write("/proc/sys/vm/drop_caches", "2").expect("root may");
        known() < 50
    });
    assert_eq!(fs::read_dir(mount.at("d3"))?.count(), 500);
    Ok(())
}
