//! Programs that people use, on a mount.

use crate::harness::{FOR_ALL, Mount, Outcome, run};
use std::path::Path;

/// Runs a script in the mount; `$1` is a directory on another filesystem.
fn shell(mount: &Mount, script: &str) -> String {
    let script = format!("set -eu; cd \"$2\"; {script}");
    let elsewhere = mount.volume().file("elsewhere");
    std::fs::create_dir_all(&elsewhere).expect("a directory");
    run("bash", &[&"-c", &script, &"bash", &elsewhere, &mount.at("")])
}

/// The sources of this package: a tree of real files.
fn sources() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn git_keeps_a_repository() {
    let mount = Mount::new();
    let script = r#"
export GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a@b GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=a@b GIT_CONFIG_GLOBAL=/dev/null
git init -q repository
cd repository
cp -r SOURCES/src SOURCES/tests .
git add .; git commit -qm one
git mv src moved; git commit -qm two
git gc -q; git fsck --strict 2>&1
cd ..
git clone -q repository linked; git clone -q --no-hardlinks repository copied
git -C copied fsck 2>&1; git -C copied status --short
diff -r repository/moved copied/moved; diff -r SOURCES/src linked/moved
"#;
    let said = shell(&mount, &script.replace("SOURCES", &sources().display().to_string()));
    assert!(said.is_empty(), "{said}");
    let mount = mount.again(&[]);
    let said = shell(&mount, "git -C repository status --short; git -C repository fsck 2>&1");
    assert!(said.is_empty(), "{said}");
}

/// Makes a tree with everything that a copy may forget.
const TREE: &str = r#"
mkdir -p "$1/tree"; cp -r SOURCES/src "$1/tree/"
cd "$1/tree"
ln src/lib.rs hard; ln -s target soft; mkfifo fifo; mknod null c 1 3
setfattr -n user.a -v b src/lib.rs; setfacl -m u:nobody:r src/lib.rs; setfacl -d -m g:1234:rx src
touch -d 1960-01-01T00:00:00.123456789 src/main.rs; chmod 4755 src/cli.rs; chown -h 1234:5678 soft src/fs.rs
truncate -s 10M sparse
cd "$2"
same() { rsync -aHAX --checksum --delete --itemize-changes --dry-run "$1/" "$2/"; }
"#;

#[test]
fn rsync_copies_everything_there_and_back() {
    let mount = Mount::for_all();
    let script = TREE.replace("SOURCES", &sources().display().to_string())
        + r#"
rsync -aHAX "$1/tree/" copy/; same "$1/tree" copy
rsync -aHAX copy/ "$1/back/"; same "$1/tree" "$1/back"
"#;
    assert_eq!(shell(&mount, &script), "");
    let mount = mount.again(FOR_ALL);
    let said = shell(&mount, r#"rsync -aHAX --checksum --delete --itemize-changes --dry-run "$1/tree/" copy/"#);
    assert_eq!(said, "");
}

#[test]
fn tar_copies_everything_there_and_back() {
    let mount = Mount::for_all();
    let script = TREE.replace("SOURCES", &sources().display().to_string())
        + r#"
mkdir copy "$1/back"
tar --xattrs --acls --sparse -cf archive -C "$1/tree" . 2>&1; tar --xattrs --acls -xpf archive -C copy 2>/dev/null
same "$1/tree" copy
tar --xattrs --acls --sparse -cf "$1/archive" -C copy . 2>&1; tar --xattrs --acls -xpf "$1/archive" -C "$1/back" 2>/dev/null
same "$1/tree" "$1/back"
"#;
    assert_eq!(shell(&mount, &script), "");
}

#[test]
fn sqlite_keeps_a_database_that_several_processes_write() {
    let mount = Mount::new();
    let script = r#"
for mode in wal delete; do
    rm -f db*
    sqlite3 db "pragma journal_mode=$mode; create table t(a integer primary key, b);" >"$1/out"
    for writer in 1 2 3; do
        for transaction in $(seq 15); do
            sqlite3 -cmd ".timeout 60000" db \
                "begin immediate; insert into t(b) select randomblob(500) from generate_series(1, 50); commit;"
        done &
    done
    wait
    sqlite3 db "pragma integrity_check; select count(*) from t;"
done
"#;
    assert_eq!(shell(&mount, script), "ok\n2250\nok\n2250\n");
    let mount = mount.again(&[]);
    assert_eq!(shell(&mount, "sqlite3 db 'pragma integrity_check; select count(*) from t'"), "ok\n2250\n");
}

#[test]
fn cargo_builds_a_crate() -> Outcome {
    let mount = Mount::new();
    let script = "cargo new -q --vcs none tiny 2>&1; cd tiny; unset CARGO_TARGET_DIR; cargo build -q --offline 2>&1; target/debug/tiny";
    assert_eq!(shell(&mount, script), "Hello, world!\n");
    Ok(())
}
