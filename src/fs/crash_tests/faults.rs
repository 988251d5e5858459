//! A short day of work on a store of which one operation fails, or all from then on.

use super::*;
use crate::store::fault::{Fault, FaultStore, Faults, Plan};
use crate::store::{RenameMode, SetXattr};

/// Writes a file under a name, which must be new unless `ino` is given.
fn put(fs: &Fs, parent: u64, name: &[u8], ino: Option<u64>, bytes: &[u8], sync: bool) -> Result<()> {
    let handle = match ino {
        Some(ino) => done(fs, || fs.open(ino, true, true))?,
        None => done(fs, || fs.create(parent, name, creator(0o644)))?.1,
    };
    let result = fs.write(handle, PlainOffset(0), bytes, false).and_then(|()| {
        let synced = if sync { fs.sync(handle, false) } else { Ok(()) };
        synced.and_then(|()| fs.flush(handle))
    });
    fs.release(handle);
    result
}

/// A short day of work, of which one operation on the store fails, or all from then on. Returns whether it got so far.
fn fail(plan: Plan) -> bool {
    let store = make(OPTIONS);
    let faults = Faults::default();
    let (fs, _) = mount(Arc::new(FaultStore::new(Arc::new(store.clone()), faults.clone())));
    faults.plan(Some(plan));
    let (a, b, c, d) = (vec![b'a'; 9000], vec![b'b'; 300], vec![b'c'; 5000], vec![b'd'; 4096]);
    // What may be in the file, the last one if nothing else was tried since.
    let mut may: Vec<&[u8]> = vec![b""];
    let mut promised = false;
    let mut errors = 0;
    let mut note = |result: Result<()>| {
        errors += u64::from(result.is_err());
        result.is_ok()
    };
    let long = "n".repeat(200).into_bytes();
    may.push(&a);
    if note(put(&fs, ROOT, b"f", None, &a, true)) {
        (may, promised) = (vec![&a[..]], true);
    }
    let made = note(put(&fs, ROOT, b"new", None, &b, false));
    if made {
        may.push(&b);
        note(fs.rename(ROOT, b"new", ROOT, b"f", RenameMode::Replace));
    }
    let directory = fs.make_directory(ROOT, &long, creator(0o755));
    let below = directory.as_ref().map(|entry| entry.stat.ino).ok();
    note(directory.map(drop));
    if let Some(below) = below {
        note(put(&fs, below, &long, None, &c, false));
    }
    note(fs.commit_all());
    if let Ok(entry) = done(&fs, || fs.lookup(ROOT, b"f")) {
        note(fs.set_xattr(entry.stat.ino, XATTR, b"value", SetXattr::Any));
        note(fs.link(entry.stat.ino, ROOT, b"link").map(drop));
        note(fs.rename(ROOT, b"link", ROOT, b"f", RenameMode::Exchange));
        may.push(b"");
        may.push(&d);
        if note(put(&fs, ROOT, b"f", Some(entry.stat.ino), &d, true)) {
            (may, promised) = (vec![&d[..]], true);
        }
    }
    note(fs.make_symlink(ROOT, b"symlink", &[&b"target"[..], &[b'y'; 3500]].concat(), creator(0o777)).map(drop));
    if let Some(below) = below {
        note(fs.unlink(below, &long));
        note(fs.remove_directory(ROOT, &long));
    }
    note(fs.commit_all());
    let reached = faults.failed() > 0;
    faults.plan(None);
    let look = |fs: &Fs, when: &str, promised: bool| {
        let damaged = fs.counters.damaged.load(Ordering::Relaxed);
        let mut found = Tree::new();
        walk(fs, ROOT, "", &mut found).unwrap_or_else(|error| panic!("{plan:?}, {when}: {error:?}"));
        assert_eq!(fs.counters.damaged.load(Ordering::Relaxed), damaged, "{plan:?}, {when}: damage");
        match found.get("/f") {
            Some((content, _)) => assert!(may.contains(&&content[..]), "{plan:?}, {when}: {} bytes", content.len()),
            None => assert!(!promised, "{plan:?}, {when}: the file is gone"),
        }
    };
    look(&fs, "while mounted", promised);
    for (number, found) in
        [store.snapshot().killed(), store.snapshot().cut(0), store.snapshot().cut(7)].into_iter().enumerate()
    {
        look(&mount(Arc::new(found)).0, ["killed", "cut", "cut"][number], promised);
    }
    if fs.shut_down().is_ok() {
        drop(fs);
        let (fs, _) = mount(Arc::new(store.snapshot().cut(0)));
        look(&fs, "after shutting down", promised);
    }
    reached
}

#[test]
fn whatever_fails_in_the_store_the_tree_is_whole_and_what_was_promised_is_there() {
    let mut failures = 0;
    for (lasting, fault) in [
        (false, Fault::Errno(libc::EIO)),
        (false, Fault::Half(libc::ENOSPC)),
        (true, Fault::Half(libc::EDQUOT)),
        (true, Fault::Errno(libc::EIO)),
        (false, Fault::ShortRead),
    ] {
        let plan = |at| Plan { at, lasting, only_changes: lasting, fault };
        failures += (0..).take_while(|at| fail(plan(*at))).count();
    }
    println!("{failures} failures");
}
