//! The tree on a store that loses power: random work, cut after every change, mounted again, and walked. A failure
//! prints the seed of the work and of the cut.

use super::volume::{InitOptions, fill};
use super::*;
use crate::file::crash_tests::Draws;
use crate::format::{ChunkSize, Geometry};
use crate::journal::recovery::{self, Recovery};
use crate::kms::Kms;
use crate::kms::fake::FakeKms;
use crate::store::RenameMode;
use crate::store::fault::{Fault, FaultStore, Faults, Plan};
use crate::store::mem::MemStore;
use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::path::Path;

const LOG_LEN: u64 = 400 * 1024;

fn make() -> MemStore {
    let store = MemStore::default();
    let options = InitOptions { chunk_size: ChunkSize::DEFAULT, files_per_envelope: 1000, plain_names: false };
    fill(&*store.root(), "fake:key", &FakeKms::default(), options).unwrap();
    store
}

fn mount(store: Arc<dyn Store>) -> (Fs, Recovery) {
    let volume = Volume::read(store.root(), Path::new("memory")).unwrap();
    let record = volume.record();
    let (journal, recovery) = recovery::open(&*volume.journal().unwrap(), &*volume.tree().unwrap(), LOG_LEN).unwrap();
    let context = Context {
        volume: record.id,
        geometry: Geometry::new(record.chunk_size),
        kek_floor: record.kek_floor,
        epoch_floor: record.epoch_floor,
        journal: Arc::new(journal),
    };
    let kms = FakeKms::default();
    let key = kms.unwrap(&record.newest().volume_key, record.id).unwrap().secret;
    let leases = Leases::new(Arc::new(kms), record.id, NonZeroUsize::new(100).unwrap());
    (Fs::new(volume, store, Arc::new(context), Arc::new(leases), key, false).unwrap(), recovery)
}

/// Calls again when the key is there, as whoever serves the kernel does.
fn done<T>(fs: &Fs, act: impl Fn() -> Result<T>) -> Result<T> {
    loop {
        match act() {
            Err(Error::NeedKey(need)) => fs.fetch(&need)?,
            other => return other,
        }
    }
}

fn creator(permissions: u32) -> Creator {
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    Creator { uid, gid, permissions, umask: 0 }
}

fn read(fs: &Fs, ino: u64) -> Result<Vec<u8>> {
    let handle = done(fs, || fs.open(ino, false, false))?;
    let mut out = Vec::new();
    let result = fs.read(handle, PlainOffset(0), 1 << 20, &mut out);
    fs.release(handle);
    result.map(|()| out)
}

/// Every file of the tree with its content, by path. Whatever is visible must be readable.
fn walk(fs: &Fs, ino: u64, path: &str, found: &mut BTreeMap<String, Vec<u8>>) -> Result<()> {
    let handle = fs.open_directory(ino)?;
    let mut entries = Vec::new();
    fs.list(handle, 0, false, |listed| {
        entries.push((listed.name.clone(), listed.kind));
        true
    })?;
    fs.release_directory(handle);
    for (name, kind) in entries.into_iter().skip(2) {
        let below = format!("{path}/{}", String::from_utf8_lossy(&name));
        let entry = done(fs, || fs.lookup(ino, &name))?;
        match kind {
            Kind::Directory => walk(fs, entry.stat.ino, &below, found)?,
            Kind::Symlink => assert!(fs.read_symlink(entry.stat.ino)?.starts_with(b"target")),
            _ => {
                let content = read(fs, entry.stat.ino)?;
                assert_eq!(fs.attributes(entry.stat.ino)?.len.0 as usize, content.len(), "{below}: length");
                found.insert(below, content);
            }
        }
    }
    Ok(())
}

#[derive(Default)]
struct Known {
    versions: Vec<Vec<u8>>,
    promised: Option<usize>,
    /// Somebody tried to remove or to replace it.
    removed: bool,
}

/// What there was. Every version of every file begins with the number of the file.
#[derive(Default)]
struct Model {
    files: Vec<Known>,
    /// Path, and the file that is there.
    paths: BTreeMap<String, usize>,
    /// Paths that were promised to exist, and the files that may be there.
    promised: BTreeMap<String, Vec<usize>>,
    directories: Vec<String>,
}

impl Model {
    fn promise(&mut self, path: &str) {
        let number = self.paths[path];
        let file = &mut self.files[number];
        file.promised = Some(file.versions.len() - 1);
        self.promised.insert(path.to_owned(), vec![number]);
    }

    fn check(&self, found: &BTreeMap<String, Vec<u8>>) -> std::result::Result<(), String> {
        let number = |content: &[u8]| {
            let text = String::from_utf8_lossy(&content[..content.len().min(20)]).into_owned();
            text.split_once(':').and_then(|(number, _)| number.parse::<usize>().ok())
        };
        let mut seen = std::collections::HashSet::new();
        for (path, content) in found {
            if content.is_empty() {
                continue;
            }
            let number = number(content).ok_or_else(|| format!("{path}: nobody wrote this"))?;
            let file = &self.files[number];
            if !file.versions[file.promised.unwrap_or(0)..].contains(content) {
                let version = file.versions.iter().position(|version| version == content);
                return Err(format!("{path}: file {number}, version {version:?}, promised {:?}", file.promised));
            }
            seen.insert(number);
        }
        let lost =
            |(number, file): &(usize, &Known)| file.promised.is_some() && !file.removed && !seen.contains(number);
        if let Some((lost, _)) = self.files.iter().enumerate().find(lost) {
            return Err(format!("file {lost} is gone"));
        }
        for (path, files) in &self.promised {
            let there = found.get(path).and_then(|content| number(content));
            if !there.is_some_and(|number| files.contains(&number)) {
                return Err(format!("{path}: file {there:?}, one of {files:?} was promised"));
            }
        }
        Ok(())
    }
}

fn parent<'a>(fs: &Fs, path: &'a str) -> (u64, &'a [u8]) {
    let (directories, name) = path.rsplit_once('/').unwrap();
    let mut at = ROOT;
    for name in directories.split('/').filter(|name| !name.is_empty()) {
        at = done(fs, || fs.lookup(at, name.as_bytes())).unwrap().stat.ino;
    }
    (at, name.as_bytes())
}

fn content(number: usize, version: usize, draws: &mut Draws) -> Vec<u8> {
    let mut bytes = format!("{number}:{version}:").into_bytes();
    let len = [10, 500, 4096, 9000, 270_000][draws.below(20).min(4) as usize % 5] + draws.below(300) as usize;
    bytes.resize(bytes.len() + len, (draws.below(200) + 1) as u8);
    bytes
}

fn new_path(model: &Model, draws: &mut Draws) -> String {
    let directory = &model.directories[draws.below(model.directories.len() as u64) as usize];
    let long = if draws.below(4) == 0 { "x".repeat(200) } else { String::new() };
    format!("{directory}/{}{long}", draws.below(40))
}

/// One random thing that an application does.
fn act(fs: &Fs, model: &mut Model, draws: &mut Draws) -> String {
    let paths: Vec<String> = model.paths.keys().cloned().collect();
    let any = |draws: &mut Draws| paths.get(draws.below(paths.len().max(1) as u64) as usize).cloned();
    match draws.below(20) {
        0..=6 => {
            let path = new_path(model, draws);
            if model.paths.contains_key(&path) || model.directories.contains(&path) {
                return "nothing".into();
            }
            let number = model.files.len();
            let bytes = content(number, 0, draws);
            model.files.push(Known { versions: vec![bytes.clone()], ..Known::default() });
            model.paths.insert(path.clone(), number);
            let (ino, name) = parent(fs, &path);
            let (_, handle) = done(fs, || fs.create(ino, name, creator(0o644))).unwrap();
            fs.write(handle, PlainOffset(0), &bytes, false).unwrap();
            let sync = draws.below(3) == 0;
            if sync {
                fs.sync(handle, draws.below(2) == 0).unwrap();
                model.promise(&path);
            }
            fs.release(handle);
            format!("create {path}, sync {sync}")
        }
        7..=10 => {
            let Some(path) = any(draws) else { return "nothing".into() };
            let number = model.paths[&path];
            let bytes = content(number, model.files[number].versions.len(), draws);
            let (ino, name) = parent(fs, &path);
            let ino = fs.lookup(ino, name).unwrap().stat.ino;
            let truncate = draws.below(2) == 0;
            model.files[number].versions.push(bytes.clone());
            let handle = done(fs, || fs.open(ino, true, truncate)).unwrap();
            fs.write(handle, PlainOffset(0), &bytes, false).unwrap();
            fs.change(ino, &Changes { len: Some(PlainOffset(bytes.len() as u64)), ..Changes::default() }).unwrap();
            let sync = draws.below(2) == 0;
            if sync {
                fs.sync(handle, draws.below(2) == 0).unwrap();
                model.promise(&path);
            }
            fs.flush(handle).unwrap();
            fs.release(handle);
            format!("overwrite {path}, truncate {truncate}, sync {sync}")
        }
        11..=13 => {
            let Some(path) = any(draws) else { return "nothing".into() };
            let to = if draws.below(2) == 0 { any(draws).unwrap() } else { new_path(model, draws) };
            if to == path || model.directories.contains(&to) {
                return "nothing".into();
            }
            let number = model.paths.remove(&path).unwrap();
            let replaced = model.paths.insert(to.clone(), number);
            model.promised.remove(&path);
            if let Some(replaced) = replaced {
                model.files[replaced].removed = true;
                if let Some(files) = model.promised.get_mut(&to) {
                    files.push(number);
                }
            }
            let ((from_ino, from_name), (to_ino, to_name)) = (parent(fs, &path), parent(fs, &to));
            done(fs, || fs.rename(from_ino, from_name, to_ino, to_name, RenameMode::Replace)).unwrap();
            format!("rename {path} to {to}")
        }
        14 => {
            let Some(path) = any(draws) else { return "nothing".into() };
            let number = model.paths.remove(&path).unwrap();
            model.files[number].removed = true;
            model.promised.remove(&path);
            let (ino, name) = parent(fs, &path);
            fs.unlink(ino, name).unwrap();
            format!("unlink {path}")
        }
        15..=16 => {
            let path = new_path(model, draws);
            if model.paths.contains_key(&path) || model.directories.contains(&path) || path.matches('/').count() > 3 {
                return "nothing".into();
            }
            let (ino, name) = parent(fs, &path);
            if fs.lookup(ino, name).is_err() {
                done(fs, || fs.make_directory(ino, name, creator(0o755))).unwrap();
                model.directories.push(path.clone());
            }
            format!("mkdir {path}")
        }
        17 => {
            let path = format!("{}/link{}", model.directories[0], draws.below(1000));
            let (ino, name) = parent(fs, &path);
            let target = [&b"target"[..], &vec![b'y'; draws.below(2) as usize * 3500]].concat();
            let _ = done(fs, || fs.make_symlink(ino, name, &target, creator(0o777)));
            format!("symlink {path}")
        }
        18 => {
            let last = model.directories.last().cloned().unwrap_or_default();
            let below = format!("{last}/");
            if last.is_empty() || paths.iter().chain(&model.directories).any(|path| path.starts_with(&below)) {
                return "nothing".into();
            }
            let (ino, name) = parent(fs, &last);
            if fs.remove_directory(ino, name).is_ok() {
                model.directories.pop();
            }
            format!("rmdir {last}")
        }
        _ => {
            fs.commit_all().unwrap();
            for path in paths {
                model.promise(&path);
            }
            "commit all".into()
        }
    }
}

fn check(found: MemStore, model: &Model, cut: u64) {
    let keep = found.clone();
    let (fs, recovery) = mount(Arc::new(found));
    assert!(recovery.damaged_at.is_empty());
    let mut contents = BTreeMap::new();
    walk(&fs, ROOT, "", &mut contents).unwrap_or_else(|error| panic!("cut {cut}: {error:?}"));
    assert_eq!(fs.counters.damaged.load(Ordering::Relaxed), 0, "cut {cut}: damage");
    model.check(&contents).unwrap_or_else(|why| panic!("cut {cut}: {why}"));
    if cut.is_multiple_of(3) {
        // Another crash, or the sweep to its end and a proper one.
        if cut.is_multiple_of(2) {
            fs.sweep(&AtomicBool::new(false)).unwrap_or_else(|error| panic!("cut {cut}: sweep: {error:?}"));
            assert!(!fs.wants_sweep());
            fs.shut_down().unwrap();
        }
        drop(fs);
        let (fs, _) = mount(Arc::new(keep.snapshot().cut(cut)));
        assert!(!cut.is_multiple_of(2) || !fs.wants_sweep());
        let mut again = BTreeMap::new();
        walk(&fs, ROOT, "", &mut again).unwrap_or_else(|error| panic!("cut {cut}, again: {error:?}"));
        model.check(&again).unwrap_or_else(|why| panic!("cut {cut}, again: {why}"));
    }
}

fn crash(seed: u64, ops: usize) -> u64 {
    let store = make();
    store.sync_all().unwrap();
    let (fs, _) = mount(Arc::new(store.clone()));
    store.record();
    let mut draws = Draws(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
    let mut model = Model { directories: vec![String::new()], ..Model::default() };
    let mut cut = seed << 20;
    for number in 0..ops {
        // What is promised by this operation is not before it returns.
        let before: Vec<_> = model.files.iter().map(|file| file.promised).collect();
        let promised = model.promised.clone();
        let what = act(&fs, &mut model, &mut draws);
        let snapshots = store.recorded();
        let (after, files) = (model.promised.clone(), model.files.iter().map(|file| file.promised).collect::<Vec<_>>());
        for (file, before) in model.files.iter_mut().zip(before.into_iter().chain(std::iter::repeat(None))) {
            file.promised = before;
        }
        model.promised = promised.into_iter().filter(|(path, _)| after.contains_key(path)).collect();
        for (path, files) in &mut model.promised {
            files.extend(after[path].iter());
        }
        let count = snapshots.len();
        for (position, snapshot) in snapshots.into_iter().enumerate() {
            cut += 1;
            let checked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                check(if cut.is_multiple_of(5) { snapshot.killed() } else { snapshot.cut(cut) }, &model, cut);
            }));
            assert!(checked.is_ok(), "work {seed}: {number} {what}, after {} ({position} of {count})", snapshot.after);
        }
        model.promised = after;
        for (file, promised) in model.files.iter_mut().zip(files) {
            file.promised = promised;
        }
    }
    fs.shut_down().unwrap();
    drop(fs);
    let (fs, recovery) = mount(Arc::new(store.snapshot().cut(0)));
    assert!(!recovery.crashed && !fs.wants_sweep());
    let mut contents = BTreeMap::new();
    walk(&fs, ROOT, "", &mut contents).unwrap();
    for (path, number) in &model.paths {
        assert!(contents.get(path) == model.files[*number].versions.last(), "work {seed}: {path} after shutting down");
    }
    cut - (seed << 20)
}

#[test]
fn after_every_cut_the_tree_is_whole_and_what_was_promised_is_there() {
    let cuts: u64 = (1..6).map(|seed| crash(seed, 32)).sum();
    println!("{cuts} cuts");
}

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
    let store = make();
    store.sync_all().unwrap();
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
        may.push(b"");
        may.push(&d);
        if note(put(&fs, ROOT, b"f", Some(entry.stat.ino), &d, true)) {
            (may, promised) = (vec![&d[..]], true);
        }
    }
    if let Some(below) = below {
        note(fs.unlink(below, &long));
        note(fs.remove_directory(ROOT, &long));
    }
    note(fs.commit_all());
    let reached = faults.failed() > 0;
    faults.plan(None);
    let look = |fs: &Fs, when: &str, promised: bool| {
        let damaged = fs.counters.damaged.load(Ordering::Relaxed);
        let mut found = BTreeMap::new();
        walk(fs, ROOT, "", &mut found).unwrap_or_else(|error| panic!("{plan:?}, {when}: {error:?}"));
        assert_eq!(fs.counters.damaged.load(Ordering::Relaxed), damaged, "{plan:?}, {when}: damage");
        match found.get("/f") {
            Some(content) => assert!(may.contains(&&content[..]), "{plan:?}, {when}: {} bytes", content.len()),
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
    ] {
        let plan = |at| Plan { at, lasting, only_changes: lasting, fault };
        failures += (0..).take_while(|at| fail(plan(*at))).count();
    }
    println!("{failures} failures");
}
