//! Programs that write, each in a directory of its own, and note what was promised to them: what they were told is
//! durable has to be there after whatever happens, and everything else has to be something that they wrote.

use crate::harness::bytes;
use std::collections::{BTreeMap, HashSet};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;

const PAGE: usize = 4096;
/// Every file begins with its number, in so many bytes.
const LABEL: usize = 24;
const MAX_LEN: usize = 150_000;
/// So much of what was done is remembered, to be told when something is missing.
const HISTORY: usize = 20_000;

/// Numbers that look random, the same for the same seed.
pub struct Draws(pub u64);

impl Draws {
    pub fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)) % end
    }
}

/// A file, by its number.
#[derive(Clone, Default)]
struct Known {
    /// What it was, and was going to be, one after the other.
    versions: Vec<Arc<Vec<u8>>>,
    /// The version that was last acknowledged as durable.
    promised: Option<usize>,
    /// Somebody tried to remove it, or to put another one in its place.
    removed: bool,
}

impl Known {
    fn may_be(&self) -> &[Arc<Vec<u8>>] {
        &self.versions[self.promised.unwrap_or(0)..]
    }

    fn may_be_empty(&self) -> bool {
        self.promised.is_none() || self.may_be().iter().any(|version| version.is_empty())
    }

    /// Every page is that of a version, and the length that of one, or one that it had while it grew.
    fn allows(&self, found: &[u8]) -> bool {
        let versions = self.may_be();
        let lens = || versions.iter().map(|version| version.len());
        let grew = || {
            let (least, most) = (lens().min().unwrap_or(0), lens().max().unwrap_or(0));
            found.len().is_multiple_of(PAGE) && (least..most).contains(&found.len())
        };
        (lens().any(|len| len == found.len()) || grew())
            && found.chunks(PAGE).enumerate().all(|(page, found)| {
                versions.iter().any(|version| {
                    let whole = version.get(page * PAGE..).unwrap_or(&[]);
                    let same = whole.len().min(found.len());
                    found[..same] == whole[..same] && found[same..].iter().all(|byte| *byte == 0)
                })
            })
    }
}

/// The versions of files, and the names, that were promised.
type Promises = (Vec<Option<usize>>, BTreeMap<String, Vec<usize>>);

/// What one program did, and what it was promised.
#[derive(Default)]
struct Record {
    files: Vec<Known>,
    paths: BTreeMap<String, usize>,
    /// Names that were promised to be there, and the files that were under each of them since.
    promised: BTreeMap<String, Vec<usize>>,
    /// Since the moment that counts: names that were taken away, and which files came to be under each name.
    disturbed: HashSet<String>,
    came_to: BTreeMap<String, Vec<usize>>,
    /// A name that is given to a file just now, and the file that had it.
    under_way: Option<(String, Option<usize>)>,
    /// The promises of the moment that counts.
    counts: Option<Promises>,
    /// What was done since the last comparison, with names, in this order.
    history: Vec<String>,
}

impl Record {
    /// From here on nothing more is promised that has to be kept.
    fn freeze(&mut self) {
        self.disturbed.clear();
        self.came_to.clear();
        if let Some((path, None)) = &self.under_way {
            self.disturbed.insert(path.clone());
        }
        self.counts = Some((self.files.iter().map(|file| file.promised).collect(), self.promised.clone()));
    }

    fn note(&mut self, what: String) {
        if self.history.len() >= HISTORY {
            self.history.drain(..HISTORY / 2);
        }
        self.history.push(what);
    }

    /// The last things that were done to a name, to files that were under it, and where it lies.
    fn story(&self, name: &str) -> String {
        let files = self.promised.get(name).map_or(&[][..], |files| files);
        let about = |line: &&String| {
            line.contains(name) || files.iter().any(|file| line.split(' ').any(|word| word == file.to_string()))
        };
        let lines: Vec<_> = self.history.iter().rev().filter(about).take(40).map(String::as_str).collect();
        lines.into_iter().rev().collect::<Vec<_>>().join("\n  ")
    }

    fn place(&mut self, path: &str, number: usize) {
        let before = self.paths.insert(path.to_owned(), number);
        self.under_way = Some((path.to_owned(), before));
        self.came_to.entry(path.to_owned()).or_default().push(number);
        if let Some(files) = self.promised.get_mut(path) {
            files.push(number);
        }
    }

    fn take_away(&mut self, path: &str) -> Option<usize> {
        self.promised.remove(path);
        self.disturbed.insert(path.to_owned());
        self.paths.remove(path)
    }

    fn change(&mut self, number: usize, act: impl FnOnce(&mut Vec<u8>)) -> Arc<Vec<u8>> {
        let mut next = self.files[number].versions.last().map(|last| (**last).clone()).unwrap_or_default();
        act(&mut next);
        let next = Arc::new(next);
        self.files[number].versions.push(Arc::clone(&next));
        next
    }

    fn promise(&mut self, number: usize, version: usize) {
        let frozen = self.counts.is_some();
        let file = &mut self.files[number];
        file.promised = Some(version);
        if !frozen {
            // Older ones may not come back.
            file.versions.drain(..version);
            file.promised = Some(0);
        }
    }

    /// Compares with what is there, and goes on with that.
    fn check(self, directory: &Path) -> Result<Self, String> {
        let mut this = self;
        if let Some((promised, paths)) = this.counts.take() {
            for (file, promised) in this.files.iter_mut().zip(promised.into_iter().chain(std::iter::repeat(None))) {
                file.promised = promised;
            }
            this.promised = paths;
        }
        let mut next = Self::default();
        let mut seen = HashSet::new();
        let mut names = Vec::new();
        list(directory, "", &mut names).map_err(|error| format!("{}: {error}", directory.display()))?;
        for name in names {
            let path = directory.join(&name);
            let content = fs::read(&path).map_err(|error| format!("{}: {error}", path.display()))?;
            let len = fs::metadata(&path).map_err(|error| error.to_string())?.len();
            if len != content.len() as u64 {
                return Err(format!("{}: {} bytes, and its length is {len}", path.display(), content.len()));
            }
            let number = label(&content);
            let mut name_is_promised = false;
            match number {
                None if content.is_empty() => (),
                None => return Err(format!("{}: nobody wrote this", path.display())),
                Some(number) => {
                    let file = this.files.get(number).ok_or_else(|| format!("{}: file {number}?", path.display()))?;
                    if !file.allows(&content) {
                        return Err(format!("{}: file {number}: {}", path.display(), explain(file, &content)));
                    }
                    seen.insert(number);
                }
            }
            if let Some(promised) = this.promised.get(&name)
                && !this.disturbed.contains(&name)
            {
                let came = this.came_to.get(&name).map_or(&[][..], |came| came);
                let may = [&promised[..], came].concat();
                let fits = match number {
                    Some(number) => may.contains(&number),
                    None => may.iter().any(|number| this.files[*number].may_be_empty()),
                };
                if !fits {
                    return Err(format!("{}: file {number:?}, and {may:?} were promised", path.display()));
                }
                name_is_promised = true;
            }
            let promised = number.and_then(|number| this.files[number].promised).map(|_| 0);
            let known = Known { versions: vec![Arc::new(content)], promised, removed: false };
            // Numbers stay what they are; an empty file gets a new one.
            let number = number.unwrap_or_else(|| this.files.len().max(next.files.len()));
            if next.files.len() <= number {
                next.files.resize(number + 1, Known { removed: true, ..Known::default() });
            }
            next.files[number] = known;
            next.place(&name, number);
            if name_is_promised {
                next.promised.insert(name, vec![number]);
            }
        }
        for name in this.promised.keys() {
            if !this.disturbed.contains(name) && !next.paths.contains_key(name) {
                let there: Vec<_> = next.paths.iter().map(|(path, file)| format!("{path} ({file})")).collect();
                let what = format!("{}/{name} was promised, and is not there, but {there:?}", directory.display());
                return Err(format!("{what}; what was done:\n  {}", this.story(name)));
            }
        }
        for (number, file) in this.files.iter().enumerate() {
            if file.promised.is_some() && !file.removed && !file.may_be_empty() && !seen.contains(&number) {
                let name =
                    file.promised.and(this.paths.iter().find(|(_, file)| **file == number)).map(|(name, _)| name);
                let story = this.story(name.map_or("-", |name| name));
                return Err(format!("{}: file {number} is gone; what was done:\n  {story}", directory.display()));
            }
        }
        next.files.resize(next.files.len().max(this.files.len()), Known { removed: true, ..Known::default() });
        next.under_way = None;
        Ok(next)
    }
}

/// The files below a directory, by their paths in it.
fn list(directory: &Path, below: &str, names: &mut Vec<String>) -> io::Result<()> {
    for entry in fs::read_dir(directory.join(below))? {
        let entry = entry?;
        let name = format!("{below}{}", entry.file_name().to_string_lossy());
        if entry.file_type()?.is_dir() { list(directory, &format!("{name}/"), names)? } else { names.push(name) }
    }
    Ok(())
}

fn label(content: &[u8]) -> Option<usize> {
    std::str::from_utf8(content.get(..LABEL)?).ok()?.strip_prefix("file ")?.trim_end().parse().ok()
}

fn explain(file: &Known, found: &[u8]) -> String {
    let lens: Vec<usize> = file.versions.iter().map(|version| version.len()).collect();
    let page = found.chunks(PAGE).enumerate().position(|(page, found)| {
        !file.may_be().iter().any(|version| version.get(page * PAGE..).is_some_and(|whole| whole.starts_with(found)))
    });
    format!("{} bytes, page {page:?} is of no version of {lens:?}, {:?} was promised", found.len(), file.promised)
}

/// The programs.
pub struct Load {
    records: Vec<Arc<Mutex<Record>>>,
    directories: Vec<PathBuf>,
    ending: Arc<AtomicBool>,
    /// How often something was acknowledged as durable.
    pub promises: Arc<AtomicU64>,
    programs: Vec<JoinHandle<()>>,
}

impl Load {
    /// So many of them, below a directory, none of them at work yet.
    pub fn new(below: &Path, programs: usize) -> io::Result<Self> {
        let directories: Vec<PathBuf> = (0..programs).map(|program| below.join(program.to_string())).collect();
        directories.iter().try_for_each(fs::create_dir)?;
        File::open(below)?.sync_all()?;
        Ok(Self {
            records: directories.iter().map(|_| Arc::default()).collect(),
            directories,
            ending: Arc::default(),
            promises: Arc::default(),
            programs: Vec::new(),
        })
    }

    /// Lets them work until [`end`](Self::end).
    pub fn start(&mut self, seed: u64) {
        self.ending.store(false, Ordering::SeqCst);
        for (number, (record, directory)) in self.records.iter().zip(&self.directories).enumerate() {
            let draws = Draws(seed << 8 | number as u64);
            let (record, directory) = (Arc::clone(record), directory.clone());
            let (ending, promises) = (Arc::clone(&self.ending), Arc::clone(&self.promises));
            self.programs.push(std::thread::spawn(move || {
                let mut program = Program { record, directory, draws, promises };
                while !ending.load(Ordering::SeqCst) {
                    match program.act() {
                        Ok(()) => (),
                        Err(_) if ending.load(Ordering::SeqCst) => return,
                        Err(error) => {
                            panic!("program {number}: {error}, after {:?}", lock(&program.record).history.last())
                        }
                    }
                }
            }));
        }
    }

    /// What was promised up to now has to be kept, and nothing that is promised later.
    pub fn freeze(&self) {
        self.records.iter().for_each(|record| lock(record).freeze());
        self.ending.store(true, Ordering::SeqCst);
    }

    /// Waits until all of them have ended.
    pub fn end(&mut self) {
        for program in self.programs.drain(..) {
            program.join().expect("a program failed");
        }
    }

    /// Compares what is there with what has to be, and goes on from that.
    pub fn check(&mut self) -> Result<(), String> {
        for (record, directory) in self.records.iter().zip(&self.directories) {
            let before = std::mem::take(&mut *lock(record));
            *lock(record) = before.check(directory)?;
        }
        Ok(())
    }
}

fn lock(record: &Mutex<Record>) -> MutexGuard<'_, Record> {
    record.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

struct Program {
    record: Arc<Mutex<Record>>,
    directory: PathBuf,
    draws: Draws,
    promises: Arc<AtomicU64>,
}

impl Program {
    fn act(&mut self) -> io::Result<()> {
        let any = self.any();
        match (self.draws.below(20), any) {
            (0..=4, _) | (_, None) => self.create(),
            (5..=12, Some((path, number))) => self.change(&path, number),
            (13..=15, Some((path, number))) => self.rename(&path, number),
            (16..=17, Some((path, number))) => {
                let mut record = lock(&self.record);
                record.files[number].removed = true;
                record.take_away(&path);
                record.note(format!("remove {path} : {number}"));
                drop(record);
                fs::remove_file(self.directory.join(path))
            }
            _ => {
                let names: Vec<String> =
                    lock(&self.record).paths.keys().filter(|name| !name.contains('/')).cloned().collect();
                File::open(&self.directory)?.sync_all()?;
                let mut record = lock(&self.record);
                let promised: Vec<_> =
                    names.into_iter().map(|name| (name.clone(), vec![record.paths[&name]])).collect();
                record.promised.extend(promised);
                record.note("the directory was acknowledged, with".into());
                Ok(())
            }
        }
    }

    fn any(&mut self) -> Option<(String, usize)> {
        let record = lock(&self.record);
        let at = self.draws.below(record.paths.len().max(1) as u64) as usize;
        record.paths.iter().nth(at).map(|(path, number)| (path.clone(), *number))
    }

    fn name(&mut self) -> String {
        let long = if self.draws.below(4) == 0 { "long".repeat(50) } else { String::new() };
        let below = [String::new(), format!("sub{}{long}/", self.draws.below(3))];
        format!("{}{}{long}", below[self.draws.below(2) as usize], self.draws.below(8))
    }

    /// Makes the directory that a name needs.
    fn make_room(&self, name: &str) -> io::Result<()> {
        let Some((below, _)) = name.split_once('/') else { return Ok(()) };
        match fs::create_dir(self.directory.join(below)) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
            _ => Ok(()),
        }
    }

    fn noise(&mut self, most: u64) -> Vec<u8> {
        let len = 1 + self.draws.below(most) as usize;
        bytes(self.draws.below(u64::MAX), len)
    }

    fn acknowledged(&self, number: usize, version: &Arc<Vec<u8>>, name: Option<&str>) {
        let mut record = lock(&self.record);
        let at = record.files[number].versions.iter().rposition(|known| Arc::ptr_eq(known, version));
        let late = if record.counts.is_some() { ", too late" } else { "" };
        record.note(format!("{number} was acknowledged{late}"));
        record.promise(number, at.expect("a version"));
        record.promised.extend(name.map(|name| (name.to_owned(), vec![number])));
        drop(record);
        self.promises.fetch_add(1, Ordering::Relaxed);
    }

    fn create(&mut self) -> io::Result<()> {
        let name = self.name();
        let mut content = self.noise(60_000);
        self.make_room(&name)?;
        let mut record = lock(&self.record);
        if record.paths.contains_key(&name) {
            return Ok(());
        }
        let number = record.files.len();
        content.splice(..0, format!("{:LABEL$}", format!("file {number}")).into_bytes());
        record.files.push(Known { versions: vec![Arc::default()], ..Known::default() });
        record.place(&name, number);
        record.note(format!("create {name} : {number}"));
        let version = record.change(number, |bytes| *bytes = content);
        drop(record);
        let file = OpenOptions::new().write(true).create_new(true).open(self.directory.join(&name))?;
        lock(&self.record).under_way = None;
        file.write_all_at(&version, 0)?;
        if self.draws.below(3) == 0 {
            if self.draws.below(2) == 0 {
                file.sync_all()?
            } else {
                file.sync_data()?
            }
            self.acknowledged(number, &version, Some(&name));
        }
        Ok(())
    }

    fn change(&mut self, name: &str, number: usize) -> io::Result<()> {
        let file = OpenOptions::new().write(true).open(self.directory.join(name))?;
        for _ in 0..=self.draws.below(3) {
            let len = lock(&self.record).files[number].versions.last().map_or(0, |last| last.len());
            if len < LABEL {
                // Nothing is left of it, as nothing was promised of it.
                return Ok(());
            }
            let most = [100, PAGE as u64, 20_000][self.draws.below(3) as usize];
            let piece = self.noise(most);
            let version = match self.draws.below(8) {
                0 => {
                    let to = LABEL + self.draws.below((len - LABEL) as u64 + 1) as usize;
                    let version = lock(&self.record).change(number, |bytes| bytes.truncate(to));
                    file.set_len(to as u64)?;
                    version
                }
                1..=3 if len < MAX_LEN => {
                    let version = lock(&self.record).change(number, |bytes| bytes.extend_from_slice(&piece));
                    file.write_all_at(&piece, len as u64)?;
                    version
                }
                _ => {
                    let at = LABEL + self.draws.below((len - LABEL) as u64 + 1) as usize;
                    let version = lock(&self.record).change(number, |bytes| {
                        bytes.resize(len.max(at + piece.len()), 0);
                        bytes[at..at + piece.len()].copy_from_slice(&piece);
                    });
                    file.write_all_at(&piece, at as u64)?;
                    version
                }
            };
            match self.draws.below(4) {
                0 => file.sync_all()?,
                1 => file.sync_data()?,
                _ => continue,
            }
            self.acknowledged(number, &version, None);
        }
        Ok(())
    }

    fn rename(&mut self, name: &str, number: usize) -> io::Result<()> {
        let to = self.name();
        if to == name {
            return Ok(());
        }
        self.make_room(&to)?;
        let mut record = lock(&self.record);
        if let Some(replaced) = record.paths.get(&to).copied() {
            record.files[replaced].removed = true;
        } else {
            record.disturbed.insert(to.clone());
        }
        record.take_away(name);
        record.place(&to, number);
        record.note(format!("rename {name} to {to} : {number}"));
        drop(record);
        fs::rename(self.directory.join(name), self.directory.join(&to))?;
        let mut record = lock(&self.record);
        record.under_way = None;
        record.note(format!("renamed {name} to {to} : {number}"));
        Ok(())
    }
}
