//! Import and export: what goes in comes out, byte for byte and attribute for attribute, also when it is interrupted.

#![allow(clippy::unwrap_used, reason = "a test ends at the first thing that goes wrong")]

use crate::harness::{Volume, bytes, python, run, until};
use serde_json::Value;
use std::fs;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};

fn text(path: impl AsRef<Path>) -> String {
    path.as_ref().to_str().expect("UTF-8").to_owned()
}

/// A tree with everything that a filesystem can have.
const NASTY: &str = r#"
root = os.fsencode(argv[0])
os.umask(0)
os.mkdir(root)
p = lambda *parts: os.path.join(root, *parts)
def put(path, content, mode=0o644):
    with open(path, "wb") as f: f.write(content)
    os.chmod(path, mode)
put(p(b"empty"), b"")
put(p(b"one"), b"x", 0o4755)
put(p(b"chunks"), bytes(range(256)) * 12345 + b"tail", 0o600)
put(p(b"not UTF-8 \xff\n\x01"), b"strange name")
put(p(b"n" * 255), b"long name")
os.mkdir(p(b"d" * 200), 0o755); os.mkdir(p(b"d" * 200, b"below")); put(p(b"d" * 200, b"below", b"f"), b"deep")
os.mkdir(p(b"empty directory"), 0o2750)
os.mkdir(p(b"closed"), 0o755); put(p(b"closed", b"f"), b"in a closed directory", 0o000)
with open(p(b"sparse"), "wb") as f:
    f.truncate(1 << 40); f.seek(1 << 39); f.write(b"middle"); f.seek(12345); f.write(b"begin")
with open(p(b"zeros"), "wb") as f: f.write(b"\0" * 300000)
os.link(p(b"chunks"), p(b"d" * 200, b"another name")); os.link(p(b"chunks"), p(b"a third"))
os.symlink(b"chunks", p(b"link")); os.symlink(b"x" * 4000, p(b"long link")); os.symlink(b"/nowhere/\xfe", p(b"dangling"))
os.mkfifo(p(b"fifo"), 0o640); os.link(p(b"fifo"), p(b"fifo again"))
os.mknod(p(b"null"), 0o660 | stat.S_IFCHR, os.makedev(1, 3)); os.mknod(p(b"block"), 0o600 | stat.S_IFBLK, os.makedev(7, 200))
os.mknod(p(b"socket"), 0o700 | stat.S_IFSOCK)
os.setxattr(p(b"one"), "user.comment", b"value"); os.setxattr(p(b"one"), "user.empty", b"")
os.setxattr(p(b"one"), "trusted.hidden", b"\0binary\xff"); os.setxattr(p(b"d" * 200), "user.on a directory", b"v" * 1000)
for path, uid in ((b"one", 1000), (b"chunks", 4711), (b"empty directory", 12), (b"fifo", 5), (b"zeros", 65534)):
    os.chown(p(path), uid, uid + 1)
os.lchown(p(b"link"), 33, 44)
os.chmod(p(b"one"), 0o6755)
os.system("setfacl -m u:1234:rw,g:55:r,m::rw %s && setfacl -d -m u:77:rwx %s" % tuple("'" + os.fsdecode(p(n)) + "'" for n in (b"zeros", b"empty directory")))
os.chmod(p(b"closed"), 0o500)
stamp = 0
for directory, names, files in os.walk(root, topdown=False):
    for name in names + files:
        stamp += 1
        os.utime(os.path.join(directory, name), ns=(1000000000123456789 + stamp, 1400000000987654321 + stamp * 1000001), follow_symlinks=False)
os.utime(p(b"empty"), ns=(-5000000001, -86400000000001))
os.utime(root, ns=(1, 2000000000000000003))
"#;

/// Says where two trees differ.
const COMPARE: &str = r#"
import hashlib
one, other = os.fsencode(argv[0]), os.fsencode(argv[1])
ignored = set(os.fsencode(name) for name in argv[2:])
def data(path, size):
    h = hashlib.sha256(); fd = os.open(path, os.O_RDONLY | os.O_NOATIME); at = 0
    while at < size:
        try: at = os.lseek(fd, at, os.SEEK_DATA)
        except OSError: break
        block = os.pread(fd, 1 << 20, at - at % 4096); start = at - at % 4096
        for i in range(0, len(block), 4096):
            part = block[i:i + 4096]
            if part.strip(b"\0"): h.update(b"%d:" % (start + i) + part)
        at = start + len(block)
    os.close(fd)
    return h.hexdigest()
def tree(root):
    out, inodes = {}, {}
    def add(path):
        s = os.lstat(path); rel = os.path.relpath(path, root)
        entry = [stat.S_IFMT(s.st_mode), stat.S_IMODE(s.st_mode), s.st_uid, s.st_gid, s.st_mtime_ns, s.st_rdev]
        # Whoever reads something changes the time of the last access, of the source and of what is stored, too.
        unread = not (stat.S_ISDIR(s.st_mode) or stat.S_ISLNK(s.st_mode) or stat.S_ISREG(s.st_mode))
        entry.append(s.st_atime_ns if unread else None)
        if stat.S_ISDIR(s.st_mode): entry.append("directory")
        else: entry += [s.st_nlink, s.st_size]
        if stat.S_ISLNK(s.st_mode): entry.append(os.readlink(path))
        else: entry.append(sorted((n, os.getxattr(path, n)) for n in os.listxattr(path) if not n.startswith("security.selinux")))
        if stat.S_ISREG(s.st_mode):
            entry.append(data(path, s.st_size))
            # Where there is a hole of terabytes, there is one.
            entry.append(s.st_blocks * 512 < (1 << 24) if s.st_size > 1 << 30 else None)
        inodes.setdefault(s.st_ino, []).append(rel)
        out[rel] = entry
        if stat.S_ISDIR(s.st_mode):
            for name in sorted(os.listdir(path)):
                if not (path == root and name in ignored): add(os.path.join(path, name))
    add(root)
    return out, sorted(sorted(names) for names in inodes.values())
(a, inodes_a), (b, inodes_b) = tree(one), tree(other)
for path in sorted(set(a) | set(b)):
    if a.get(path) != b.get(path): print(path, a.get(path), b.get(path), sep="\n   ")
if inodes_a != inodes_b: print("hard links differ")
"#;

fn same(one: &Path, other: &Path) {
    let differences = python(COMPARE, &[&one, &other]);
    assert!(differences.is_empty(), "{differences}");
}

/// So many small files.
fn many(root: &Path, count: usize) {
    for number in 0..count {
        let directory = root.join(format!("d{}", number % 50));
        fs::create_dir_all(&directory).unwrap();
        fs::write(directory.join(format!("file {number}")), bytes(number as u64, 3000 + number % 4000)).unwrap();
    }
}

fn report(volume: &Volume, arguments: &[&str], code: i32) -> Value {
    let ended = volume.run(&[arguments, &["--json"]].concat());
    assert_eq!(ended.code, code, "{arguments:?}: {ended:?}");
    serde_json::from_str(&ended.stdout).unwrap_or_else(|error| panic!("{error}: {ended:?}"))
}

fn import(volume: &Volume, from: &Path, code: i32) -> Value {
    report(volume, &["import", &text(from), &text(volume.path())], code)
}

fn export(volume: &Volume, to: &Path, code: i32) -> Value {
    report(volume, &["export", &text(volume.path()), &text(to)], code)
}

/// Runs a command until a file is longer than this, and kills it.
fn kill_when(volume: &Volume, arguments: &[&str], grows: &Path, beyond: u64) {
    let mut child = volume.command(arguments).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    until("it has begun", || fs::metadata(grows).is_ok_and(|metadata| metadata.len() > beyond));
    child.kill().unwrap();
    assert!(!child.wait().unwrap().success(), "it ended before it was killed");
}

#[test]
fn a_nasty_tree_goes_in_and_comes_out_as_it_was() {
    for options in [&[][..], &["--plain-names", "--chunk-size", "64K"]] {
        let volume = Volume::with(options);
        let (source, back) = (volume.file("source"), volume.file("back"));
        python(NASTY, &[&source]);
        // What is long when it is sealed, and plain names, are as the backing filesystem has them.
        let imported = import(&volume, &source, 0);
        assert_eq!(
            (&imported["complete"], &imported["notes"]),
            (&Value::from(true), &Value::from(Vec::<Value>::new()))
        );
        assert_eq!(imported["totals"]["hard_links"], 3);
        assert!(!volume.path().join("import.state").exists());
        let checked = volume.run(&["fsck", "--deep", "--json", &text(volume.path())]);
        assert_eq!(checked.code, 0, "{checked:?}");
        let exported = export(&volume, &back, 0);
        assert_eq!(exported["totals"]["files"], imported["totals"]["files"]);
        same(&source, &back);
        run(
            "diff",
            &[
                &"-r",
                &"--no-dereference",
                &"--exclude=sparse",
                &"--exclude=fifo*",
                &"--exclude=null",
                &"--exclude=block",
                &"--exclude=socket",
                &source,
                &back,
            ],
        );
        let log = volume.ok(&["audit", "show", &text(volume.path())]);
        assert!(log.contains("import") && log.contains("export") && log.contains("device "), "{log}");
        assert_eq!(volume.run(&["audit", "verify", "--deep", &text(volume.path())]).code, 0);
        let mount = volume.mount(&["-o", "suid,dev,noatime"]);
        same(&source, &mount.at(""));
    }
}

#[test]
fn an_import_that_is_killed_goes_on_and_keeps_what_was_complete() {
    let volume = Volume::new();
    let source = volume.file("source");
    many(&source, 4000);
    let state = volume.path().join("import.state");
    kill_when(&volume, &["import", &text(&source), &text(volume.path())], &state, 40_000);
    // Something of both kinds changes meanwhile.
    let (changed, touched) = (source.join("d0/file 0"), source.join("d1/file 1"));
    fs::write(&changed, "other content").unwrap();
    fs::File::options().write(true).open(&touched).unwrap().set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
    let again = import(&volume, &source, 0);
    let kept = again["totals"]["kept"].as_u64().unwrap();
    assert!(again["totals"]["files"] == 4000 && kept > 100 && kept < 4000, "{again}");
    assert_eq!(volume.run(&["fsck", "--deep", &text(volume.path())]).code, 0);
    let mount = volume.mount(&["-o", "noatime"]);
    same(&source, &mount.at(""));
}

#[test]
fn an_export_that_is_killed_goes_on_and_one_that_finds_damage_says_where() {
    let volume = Volume::new();
    let (source, back) = (volume.file("source"), volume.file("back"));
    many(&source, 4000);
    fs::write(source.join("large"), bytes(1, 2_000_000)).unwrap();
    fs::hard_link(source.join("large"), source.join("large again")).unwrap();
    import(&volume, &source, 0);
    let state = back.join(".kmsfs-export.state");
    kill_when(&volume, &["export", &text(volume.path()), &text(&back)], &state, 40_000);
    let again = export(&volume, &back, 0);
    let kept = again["totals"]["kept"].as_u64().unwrap();
    assert!(again["totals"]["files"] == 4001 && kept > 100 && kept < 4001, "{again}");
    same(&source, &back);
    // The largest file of the store is the large one.
    let stored = python(
        "print(max((os.path.join(d, f) for d, _, fs in os.walk(argv[0]) for f in fs), key=lambda p: os.lstat(p).st_size))",
        &[&volume.path().join("tree")],
    );
    let file = fs::File::options().read(true).write(true).open(PathBuf::from(stored.trim())).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, 1_500_000).unwrap();
    file.write_all_at(&[byte[0] ^ 1], 1_500_000).unwrap();
    let target = volume.file("target");
    let damaged = export(&volume, &target, 14);
    let notes = damaged["notes"].as_array().unwrap();
    assert!(
        notes.iter().any(|note| note["path"].as_str().unwrap().starts_with("large") && note["kind"] == "damaged"),
        "{damaged}"
    );
    assert!(!target.join("large").exists() && !target.join("large again").exists());
    assert_eq!(damaged["totals"]["files"], 4000);
    let differences = python(COMPARE, &[&source, &target, &"large", &"large again", &".kmsfs-export.state"]);
    let differences: Vec<_> =
        differences.lines().filter(|line| !line.starts_with("b'.'") && !line.starts_with(' ')).collect();
    assert!(differences.is_empty(), "{differences:#?}");
}

#[test]
fn what_changes_while_it_is_imported_is_named() {
    let volume = Volume::new();
    let source = volume.file("source");
    fs::create_dir(&source).unwrap();
    fs::write(source.join("still"), "still").unwrap();
    let moving = source.join("moving");
    fs::write(&moving, bytes(1, 8 << 20)).unwrap();
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut file = fs::File::options().append(true).open(&moving).unwrap();
            while !over.load(Ordering::Relaxed) {
                file.write_all(b"x").unwrap();
            }
        });
        let report = import(&volume, &source, 1);
        over.store(true, Ordering::Relaxed);
        assert_eq!((&report["notes"][0]["path"], &report["notes"][0]["kind"]), (&"moving".into(), &"changed".into()));
    });
    let again = import(&volume, &source, 0);
    assert_eq!(again["totals"]["kept"], 1);
    let mount = volume.mount(&[]);
    assert_eq!(fs::read(mount.at("moving")).unwrap(), fs::read(&moving).unwrap());
}

#[test]
fn what_would_mix_two_things_up_is_refused() {
    let volume = Volume::new();
    let source = volume.file("source");
    fs::create_dir(&source).unwrap();
    fs::write(source.join("file"), "content").unwrap();
    let (from, place) = (text(&source), text(volume.path()));
    import(&volume, &source, 0);
    assert!(volume.fails(&["import", &from, &place], 2).contains("not empty"));
    assert!(volume.fails(&["import", &text(volume.path().join("tree")), &place], 2).contains("lie in each other"));
    fs::create_dir(volume.file("full")).unwrap();
    fs::write(volume.file("full").join("precious"), "").unwrap();
    assert!(volume.fails(&["export", &place, &text(volume.file("full"))], 2).contains("not empty"));
    assert!(volume.fails(&["export", &place, &text(volume.path().join("x"))], 2).contains("lie in each other"));
    let mount = volume.mount(&[]);
    let (volume, mountpoint) = (mount.volume(), text(mount.at("")));
    assert!(volume.fails(&["import", &from, &mountpoint], 2).contains("rsync"));
    assert!(volume.fails(&["import", &from, &place], 9).contains("rsync"));
    assert!(volume.fails(&["export", &place, &text(volume.file("new"))], 9).contains("rsync"));
}
