//! Random work on a tree, and what of it may be found after a crash.

use super::*;
use crate::store::{RenameMode, SetXattr};

#[derive(Default)]
pub(super) struct Known {
    pub versions: Vec<Vec<u8>>,
    pub xattrs: Vec<Option<Vec<u8>>>,
    promised: Option<usize>,
    promised_xattr: usize,
    /// Somebody tried to remove its last name, or to put something else in its place.
    removed: bool,
}

/// What there was. Every version of every file begins with the number of the file.
#[derive(Default)]
pub(super) struct Model {
    pub files: Vec<Known>,
    /// Path, and the file that is there.
    pub paths: BTreeMap<String, usize>,
    /// Paths that were promised to exist, and the files that may be there.
    promised: BTreeMap<String, Vec<usize>>,
    directories: Vec<String>,
    /// Handles of files without a name, and what is in them.
    nameless: Vec<(u64, Vec<u8>)>,
}

/// What was promised at one moment.
pub(super) struct Promises {
    files: Vec<(Option<usize>, usize)>,
    paths: BTreeMap<String, Vec<usize>>,
}

fn number(content: &[u8]) -> Option<usize> {
    let text = String::from_utf8_lossy(&content[..content.len().min(20)]).into_owned();
    text.split_once(':').and_then(|(number, _)| number.parse().ok())
}

fn content(number: usize, version: usize, draws: &mut Draws) -> Vec<u8> {
    let mut bytes = format!("{number}:{version}:").into_bytes();
    let len = [10, 500, 4096, 9000, 270_000][draws.below(20).min(4) as usize % 5] + draws.below(300) as usize;
    bytes.resize(bytes.len() + len, (draws.below(200) + 1) as u8);
    bytes
}

fn parent<'a>(fs: &Fs, path: &'a str) -> (u64, &'a [u8]) {
    let (directories, name) = path.rsplit_once('/').unwrap();
    let mut at = ROOT;
    for name in directories.split('/').filter(|name| !name.is_empty()) {
        at = done(fs, || fs.lookup(at, name.as_bytes())).unwrap().stat.ino;
    }
    (at, name.as_bytes())
}

fn inode(fs: &Fs, path: &str) -> u64 {
    let (ino, name) = parent(fs, path);
    done(fs, || fs.lookup(ino, name)).unwrap().stat.ino
}

impl Model {
    pub fn new() -> Self {
        Self { directories: vec![String::new()], ..Self::default() }
    }

    pub fn promises(&self) -> Promises {
        let files = self.files.iter().map(|file| (file.promised, file.promised_xattr)).collect();
        Promises { files, paths: self.promised.clone() }
    }

    /// What holds while an operation is under way that leads from one set of promises to the next.
    pub fn hold_back(&mut self, before: Promises, after: &Promises) {
        let files = before.files.into_iter().chain(std::iter::repeat((None, 0)));
        for (file, (promised, xattr)) in self.files.iter_mut().zip(files) {
            (file.promised, file.promised_xattr) = (promised, xattr);
        }
        self.promised = before.paths.into_iter().filter(|(path, _)| after.paths.contains_key(path)).collect();
        for (path, files) in &mut self.promised {
            files.extend(after.paths[path].iter());
        }
    }

    pub fn restore(&mut self, promises: Promises) {
        self.promised = promises.paths;
        for (file, (promised, xattr)) in self.files.iter_mut().zip(promises.files) {
            (file.promised, file.promised_xattr) = (promised, xattr);
        }
    }

    fn promise(&mut self, path: &str) {
        let number = self.paths[path];
        let file = &mut self.files[number];
        file.promised = Some(file.versions.len() - 1);
        self.promised.insert(path.to_owned(), vec![number]);
    }

    pub fn check(&self, found: &Tree) -> std::result::Result<(), String> {
        let mut seen = std::collections::HashSet::new();
        for (path, (content, xattr)) in found {
            if content.is_empty() {
                continue;
            }
            let number = number(content).ok_or_else(|| format!("{path}: nobody wrote this"))?;
            let file = &self.files[number];
            if !file.versions[file.promised.unwrap_or(0)..].contains(content) {
                let version = file.versions.iter().position(|version| version == content);
                return Err(format!("{path}: file {number}, version {version:?}, promised {:?}", file.promised));
            }
            if !file.xattrs[file.promised_xattr..].contains(xattr) {
                return Err(format!("{path}: attribute {xattr:?} is none since {}", file.promised_xattr));
            }
            seen.insert(number);
        }
        let lost =
            |(number, file): &(usize, &Known)| file.promised.is_some() && !file.removed && !seen.contains(number);
        if let Some((lost, _)) = self.files.iter().enumerate().find(lost) {
            return Err(format!("file {lost} is gone"));
        }
        for (path, files) in &self.promised {
            let there = found.get(path).and_then(|(content, _)| number(content));
            if !there.is_some_and(|number| files.contains(&number)) {
                return Err(format!("{path}: file {there:?}, one of {files:?} was promised"));
            }
        }
        Ok(())
    }

    pub fn close_all(&mut self, fs: &Fs) {
        for (handle, bytes) in self.nameless.drain(..) {
            let mut out = Vec::new();
            fs.read(handle, PlainOffset(0), 1 << 20, &mut out).unwrap();
            assert!(out == bytes, "a file without a name changed");
            fs.flush(handle).unwrap();
            fs.release(handle);
        }
    }

    fn new_path(&self, draws: &mut Draws) -> String {
        let directory = &self.directories[draws.below(self.directories.len() as u64) as usize];
        let long = if draws.below(4) == 0 { "x".repeat(200) } else { String::new() };
        format!("{directory}/{}{long}", draws.below(40))
    }

    fn is_taken(&self, path: &str) -> bool {
        self.paths.contains_key(path) || self.directories.iter().any(|directory| directory == path)
    }

    fn any(&self, draws: &mut Draws) -> Option<String> {
        self.paths.keys().nth(draws.below(self.paths.len().max(1) as u64) as usize).cloned()
    }

    /// A name goes; what was known by it does too if it was the last one.
    fn lose(&mut self, path: &str) -> usize {
        let number = self.paths.remove(path).unwrap();
        self.promised.remove(path);
        self.files[number].removed |= !self.paths.values().any(|other| *other == number);
        number
    }

    /// One random thing that an application does.
    pub fn act(&mut self, fs: &Fs, draws: &mut Draws) -> String {
        let done = match draws.below(28) {
            0..=6 => self.create(fs, draws),
            7..=10 => self.overwrite(fs, draws),
            11..=13 => self.rename(fs, draws),
            14 => self.unlink(fs, draws),
            15..=16 => self.make_directory(fs, draws),
            17 => self.make_symlink(fs, draws),
            18 => self.remove_directory(fs),
            19..=20 => self.link(fs, draws),
            21..=22 => self.set_xattr(fs, draws),
            23 => self.exchange(fs, draws),
            24 => self.without_a_name(fs, draws),
            25 => self.rename_directory(fs, draws),
            _ => {
                fs.commit_all().unwrap();
                // Content, and new files; where a name leads that changed is up to the backing filesystem.
                for number in self.paths.values() {
                    let file = &mut self.files[*number];
                    file.promised = Some(file.versions.len() - 1);
                }
                Some("commit all".into())
            }
        };
        done.unwrap_or_else(|| "nothing".into())
    }

    fn create(&mut self, fs: &Fs, draws: &mut Draws) -> Option<String> {
        let path = self.new_path(draws);
        if self.is_taken(&path) {
            return None;
        }
        let number = self.files.len();
        let bytes = content(number, 0, draws);
        self.files.push(Known { versions: vec![bytes.clone()], xattrs: vec![None], ..Known::default() });
        self.paths.insert(path.clone(), number);
        let (ino, name) = parent(fs, &path);
        let (_, handle) = done(fs, || fs.create(ino, name, creator(0o644))).unwrap();
        fs.write(handle, PlainOffset(0), &bytes, false).unwrap();
        let sync = draws.below(3) == 0;
        if sync {
            fs.sync(handle, draws.below(2) == 0).unwrap();
            self.promise(&path);
        }
        fs.release(handle);
        Some(format!("create {path}, sync {sync}"))
    }

    fn overwrite(&mut self, fs: &Fs, draws: &mut Draws) -> Option<String> {
        let path = self.any(draws)?;
        let number = self.paths[&path];
        let bytes = content(number, self.files[number].versions.len(), draws);
        let ino = inode(fs, &path);
        let truncate = draws.below(2) == 0;
        self.files[number].versions.push(bytes.clone());
        let handle = done(fs, || fs.open(ino, true, truncate)).unwrap();
        fs.write(handle, PlainOffset(0), &bytes, false).unwrap();
        fs.change(ino, &Changes { len: Some(PlainOffset(bytes.len() as u64)), ..Changes::default() }).unwrap();
        let sync = draws.below(2) == 0;
        if sync {
            let data_only = draws.below(2) == 0;
            fs.sync(handle, data_only).unwrap();
            let file = &mut self.files[number];
            file.promised = Some(file.versions.len() - 1);
            if !data_only {
                // With its attributes, and every name that it has.
                file.promised_xattr = file.xattrs.len() - 1;
                self.promise(&path);
            }
        }
        fs.flush(handle).unwrap();
        fs.release(handle);
        Some(format!("overwrite {path}, truncate {truncate}, sync {sync}"))
    }

    fn rename(&mut self, fs: &Fs, draws: &mut Draws) -> Option<String> {
        let path = self.any(draws)?;
        let to = if draws.below(2) == 0 { self.any(draws)? } else { self.new_path(draws) };
        let number = self.paths[&path];
        // Two names of one file: nothing happens.
        if self.directories.contains(&to) || self.paths.get(&to) == Some(&number) {
            return None;
        }
        let promised = self.promised.remove(&to);
        if self.paths.contains_key(&to) {
            self.lose(&to);
        }
        self.paths.remove(&path);
        self.promised.remove(&path);
        self.paths.insert(to.clone(), number);
        if let Some(mut files) = promised {
            files.push(number);
            self.promised.insert(to.clone(), files);
        }
        let ((from_ino, from_name), (to_ino, to_name)) = (parent(fs, &path), parent(fs, &to));
        done(fs, || fs.rename(from_ino, from_name, to_ino, to_name, RenameMode::Replace)).unwrap();
        Some(format!("rename {path} to {to}"))
    }

    fn exchange(&mut self, fs: &Fs, draws: &mut Draws) -> Option<String> {
        let (a, b) = (self.any(draws)?, self.any(draws)?);
        let (number_a, number_b) = (self.paths[&a], self.paths[&b]);
        if number_a == number_b {
            return None;
        }
        for (path, other) in [(&a, number_b), (&b, number_a)] {
            self.paths.insert(path.clone(), other);
            if let Some(files) = self.promised.get_mut(path) {
                files.push(other);
            }
        }
        let ((a_ino, a_name), (b_ino, b_name)) = (parent(fs, &a), parent(fs, &b));
        done(fs, || fs.rename(a_ino, a_name, b_ino, b_name, RenameMode::Exchange)).unwrap();
        Some(format!("exchange {a} and {b}"))
    }

    fn unlink(&mut self, fs: &Fs, draws: &mut Draws) -> Option<String> {
        let path = self.any(draws)?;
        self.lose(&path);
        let (ino, name) = parent(fs, &path);
        fs.unlink(ino, name).unwrap();
        Some(format!("unlink {path}"))
    }

    /// A file that loses its last name while it is open, and is used on.
    fn without_a_name(&mut self, fs: &Fs, draws: &mut Draws) -> Option<String> {
        if self.nameless.len() >= 3 {
            self.close_all(fs);
        }
        let path = self.any(draws)?;
        let number = self.lose(&path);
        if !self.files[number].removed {
            self.paths.insert(path, number);
            return None;
        }
        let (ino, name) = parent(fs, &path);
        let handle = done(fs, || fs.open(inode(fs, &path), true, false)).unwrap();
        fs.unlink(ino, name).unwrap();
        let bytes = content(number, 999, draws);
        // A crash may bring its name back, and what was written since with it.
        self.files[number].versions.push(bytes.clone());
        let file = fs.change(inode_of(fs, handle), &Changes { len: Some(PlainOffset(0)), ..Changes::default() });
        file.unwrap();
        fs.write(handle, PlainOffset(0), &bytes, false).unwrap();
        if draws.below(2) == 0 {
            fs.sync(handle, false).unwrap();
        }
        self.nameless.push((handle, bytes));
        Some(format!("unlink {path}, and go on with it"))
    }

    fn link(&mut self, fs: &Fs, draws: &mut Draws) -> Option<String> {
        let (path, to) = (self.any(draws)?, self.new_path(draws));
        if self.is_taken(&to) {
            return None;
        }
        self.paths.insert(to.clone(), self.paths[&path]);
        let (to_ino, to_name) = parent(fs, &to);
        let ino = inode(fs, &path);
        done(fs, || fs.link(ino, to_ino, to_name)).unwrap();
        Some(format!("link {path} as {to}"))
    }

    fn set_xattr(&mut self, fs: &Fs, draws: &mut Draws) -> Option<String> {
        let path = self.any(draws)?;
        let file = &mut self.files[self.paths[&path]];
        let ino = inode(fs, &path);
        if draws.below(4) == 0 && file.xattrs.last().is_some_and(Option::is_some) {
            file.xattrs.push(None);
            fs.remove_xattr(ino, XATTR).unwrap();
            return Some(format!("remove the attribute of {path}"));
        }
        let value = format!("{} {}", file.xattrs.len(), "v".repeat(draws.below(300) as usize)).into_bytes();
        file.xattrs.push(Some(value.clone()));
        fs.set_xattr(ino, XATTR, &value, SetXattr::Any).unwrap();
        Some(format!("set the attribute of {path}"))
    }

    fn make_directory(&mut self, fs: &Fs, draws: &mut Draws) -> Option<String> {
        let path = self.new_path(draws);
        if self.is_taken(&path) || path.matches('/').count() > 3 {
            return None;
        }
        let (ino, name) = parent(fs, &path);
        done(fs, || fs.make_directory(ino, name, creator(0o755))).unwrap();
        self.directories.push(path.clone());
        Some(format!("mkdir {path}"))
    }

    fn remove_directory(&mut self, fs: &Fs) -> Option<String> {
        let last = self.directories.last().filter(|last| !last.is_empty())?.clone();
        let (ino, name) = parent(fs, &last);
        if fs.remove_directory(ino, name).is_ok() {
            self.directories.pop();
        }
        Some(format!("rmdir {last}"))
    }

    fn rename_directory(&mut self, fs: &Fs, draws: &mut Draws) -> Option<String> {
        let last = self.directories.last().filter(|last| !last.is_empty())?.clone();
        let to = self.new_path(draws);
        let below = format!("{last}/");
        if self.is_taken(&to) || to.starts_with(&below) || to.matches('/').count() > 3 {
            return None;
        }
        let ((from_ino, from_name), (to_ino, to_name)) = (parent(fs, &last), parent(fs, &to));
        done(fs, || fs.rename(from_ino, from_name, to_ino, to_name, RenameMode::NoReplace)).unwrap();
        self.promised.retain(|path, _| !path.starts_with(&below));
        let renamed = |path: String| match path.strip_prefix(&below) {
            Some(rest) => format!("{to}/{rest}"),
            None => path,
        };
        self.paths = std::mem::take(&mut self.paths).into_iter().map(|(path, file)| (renamed(path), file)).collect();
        self.directories.pop();
        self.directories.push(to.clone());
        Some(format!("rename directory {last} to {to}"))
    }

    fn make_symlink(&mut self, fs: &Fs, draws: &mut Draws) -> Option<String> {
        let path = format!("/link{}", draws.below(1000));
        let (ino, name) = parent(fs, &path);
        let target = [&b"target"[..], &vec![b'y'; draws.below(2) as usize * 3500]].concat();
        let _ = done(fs, || fs.make_symlink(ino, name, &target, creator(0o777)));
        Some(format!("symlink {path}"))
    }
}

fn inode_of(fs: &Fs, handle: u64) -> u64 {
    match fs.handles.read().get(&handle) {
        Some(Handle::File { ino, .. }) => *ino,
        _ => panic!("no handle of a file"),
    }
}
