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
fn postgresql_recovers_a_database_after_a_crash_of_its_server() {
    let mount = Mount::for_all();
    // Its server refuses to be root.
    let script = r#"
bin=$(echo /usr/lib/postgresql/*/bin); bin=${bin##* }
mkdir data; chown nobody data; chmod 700 data; chown nobody "$1"
as() { exec setpriv --reuid=nobody --clear-groups env HOME="$1" PATH="$bin:$PATH" LC_ALL=C.UTF-8 "${@:2}"; }
sql() { (as "$1" psql -h "$1" -Atc "$2" postgres); }
# A child of this shell, which sees to it that nothing is left of it.
start() {
    (as "$1" postgres -D data -k "$1" -h '' -c shared_buffers=16MB) >>"$1/log" 2>&1 & server=$!
    until (as "$1" pg_isready -q -h "$1"); do kill -0 $server 2>/dev/null || return 1; done
}
(as "$1" initdb -D data --data-checksums -A trust -U nobody) >/dev/null
start "$1"
sums='select sum(abalance) = (select sum(delta) from pgbench_history), count(*) from pgbench_accounts'
(as "$1" pgbench -h "$1" -i -q -s 2 postgres) >/dev/null 2>&1
(as "$1" pgbench -h "$1" -c 4 -T 60 postgres) >/dev/null 2>&1 & work=$!
until [ "$(sql "$1" 'select count(*) >= 500 from pgbench_history')" = t ]; do :; done
kill -9 $server; wait $server || true; wait $work || true
# Its children end soon after it, and keep the next one from starting until then.
for attempt in $(seq 20); do ! start "$1" || break; done
sql "$1" "$sums"
(as "$1" pg_amcheck -h "$1" --install-missing --heapallindexed -a)
(as "$1" pgbench -h "$1" -n -c 2 -t 100 postgres) >/dev/null 2>&1
sql "$1" "$sums"
kill -INT $server; wait $server
(as "$1" pg_checksums -D data --check) >/dev/null
"#;
    assert_eq!(shell(&mount, script), "t|200000\nt|200000\n");
    assert_eq!(mount.status()["damaged"], 0);
}

#[test]
fn redis_reads_its_log_again_after_a_crash_of_its_server() {
    let mount = Mount::new();
    let script = r#"
start() {
    redis-server --port 0 --unixsocket "$1/socket" --dir "$PWD" --appendonly yes --appendfsync always --daemonize yes \
        --pidfile "$1/pid" --save '' --logfile "$1/log"
    until redis-cli -s "$1/socket" ping 2>/dev/null | grep -q PONG; do :; done
}
start "$1"
for i in $(seq 2000); do echo "set key$i value$i"; done | redis-cli -s "$1/socket" >/dev/null
redis-cli -s "$1/socket" bgrewriteaof >/dev/null
for i in $(seq 2000); do echo "append key$i -more"; done | redis-cli -s "$1/socket" >/dev/null
kill -9 $(cat "$1/pid"); while kill -0 $(cat "$1/pid") 2>/dev/null; do :; done
echo y | redis-check-aof appendonlydir/*.manifest >"$1/check"; grep -q 'All AOF files and manifest are valid' "$1/check"
start "$1"
redis-cli -s "$1/socket" dbsize; redis-cli -s "$1/socket" get key1; redis-cli -s "$1/socket" get key2000
redis-cli -s "$1/socket" shutdown nosave; while kill -0 $(cat "$1/pid") 2>/dev/null; do :; done
"#;
    assert_eq!(shell(&mount, script), "2000\nvalue1-more\nvalue2000-more\n");
}

#[test]
fn cargo_builds_a_crate() -> Outcome {
    let mount = Mount::new();
    let script = "cargo new -q --vcs none tiny 2>&1; cd tiny; unset CARGO_TARGET_DIR; cargo build -q --offline 2>&1; target/debug/tiny";
    assert_eq!(shell(&mount, script), "Hello, world!\n");
    Ok(())
}
