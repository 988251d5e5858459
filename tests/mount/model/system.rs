//! What a system under test, and the model, can do: operations by path and by open file, as programs have them.

use kmsfs::store::{Kind, RenameMode, SetXattr};
use std::collections::BTreeMap;

/// What an operation came to; an error is its number.
pub type Result<T = ()> = std::result::Result<T, i32>;
/// A component of a path.
pub type Name = &'static str;
/// A path from the root, which is the empty one.
pub type Path = Vec<Name>;

/// What `fallocate` is asked to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Allocation {
    Extend,
    Keep,
    Punch,
    Zero,
    ZeroKeep,
}

/// What `stat` says, as far as it is the same everywhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Look {
    pub kind: Kind,
    /// Zero for directories.
    pub len: u64,
    pub nlink: u64,
    pub permissions: u32,
    /// Unknown to the model unless somebody has set it.
    pub mtime: Option<(i64, u32)>,
}

impl Look {
    /// Whether a system shows what the model has.
    pub fn check(&self, found: &Self) -> Result {
        let mtime = self.mtime.and(found.mtime);
        assert_eq!(Self { mtime, ..*found }, *self);
        Ok(())
    }
}

/// All that can be seen of something.
pub struct Seen {
    pub look: Look,
    /// Bytes of a file, the target of a link.
    pub content: Vec<u8>,
    pub xattrs: BTreeMap<String, Vec<u8>>,
}

/// A filesystem.
pub trait System: Sized {
    /// An open file.
    type Handle;

    /// A file that must not exist, open for reading and writing.
    fn create(&self, path: &[Name]) -> Result<Self::Handle>;
    /// A file, open for reading and writing; links are not followed.
    fn open(&self, path: &[Name], truncate: bool) -> Result<Self::Handle>;
    fn close(&self, file: Self::Handle);
    fn write(&self, file: &Self::Handle, at: u64, bytes: &[u8]) -> Result;
    fn read(&self, file: &Self::Handle, at: u64, len: usize) -> Result<Vec<u8>>;
    fn set_len(&self, file: &Self::Handle, len: u64) -> Result;
    fn allocate(&self, file: &Self::Handle, how: Allocation, at: u64, len: u64) -> Result;
    /// The next data, or the next hole.
    fn seek(&self, file: &Self::Handle, at: u64, data: bool) -> Result<u64>;
    fn copy(&self, from: &Self::Handle, at: u64, to: &Self::Handle, to_at: u64, len: u64) -> Result;
    fn look_open(&self, file: &Self::Handle) -> Result<Look>;
    fn sync(&self, file: &Self::Handle, data_only: bool) -> Result;

    fn make_directory(&self, path: &[Name]) -> Result;
    fn make_symlink(&self, path: &[Name], target: &[u8]) -> Result;
    fn read_symlink(&self, path: &[Name]) -> Result<Vec<u8>>;
    fn remove_directory(&self, path: &[Name]) -> Result;
    fn unlink(&self, path: &[Name]) -> Result;
    fn link(&self, path: &[Name], to: &[Name]) -> Result;
    fn rename(&self, path: &[Name], to: &[Name], mode: RenameMode) -> Result;
    fn xattrs(&self, path: &[Name]) -> Result<BTreeMap<String, Vec<u8>>>;
    fn set_xattr(&self, path: &[Name], name: &str, value: &[u8], how: SetXattr) -> Result;
    fn remove_xattr(&self, path: &[Name], name: &str) -> Result;
    /// Follows links.
    fn set_permissions(&self, path: &[Name], permissions: u32) -> Result;
    fn set_mtime(&self, path: &[Name], mtime: (i64, u32)) -> Result;
    fn look(&self, path: &[Name]) -> Result<Look>;
    /// Names and kinds.
    fn list(&self, path: &[Name]) -> Result<BTreeMap<String, Kind>>;
    fn sync_all(&self) -> Result;
    /// All files get new keys; where it can be told to, it stops after so many steps.
    fn rekey(&self, steps: u8) -> Result;

    /// Unmounted and mounted again.
    fn again(self) -> Self;
    /// Everything is committed, and then the program ends without having said so; mounted again, where all files are
    /// looked at if it is to `sweep`.
    fn killed(self, sweep: bool) -> Self;
    /// How much damage was found.
    fn damaged(&self) -> u64;
}

/// How often the content says where it belongs.
const PERIOD: u64 = 13;

/// Bytes for this place in a file: each says what its offset is, modulo [`PERIOD`].
pub fn content(at: u64, len: usize, seed: u8) -> Vec<u8> {
    (at..).take(len).map(|at| 1 + (at % PERIOD) as u8 * 19 + seed % 19).collect()
}

/// The first offset from `to` on at which bytes from `from` say the right thing.
pub fn aligned_with(to: u64, from: u64) -> u64 {
    to + (from % PERIOD + PERIOD - to % PERIOD) % PERIOD
}

fn belongs(at: u64, byte: u8) -> bool {
    byte == 0 || u64::from((byte - 1) / 19) == at % PERIOD
}

/// Everything in a system, by path.
pub fn snapshot<S: System>(system: &S) -> Result<BTreeMap<Path, Seen>> {
    let mut found = BTreeMap::new();
    let mut left = vec![Path::new()];
    while let Some(path) = left.pop() {
        let mut look = system.look(&path)?;
        if path.is_empty() {
            // Whoever made the volume chose them.
            look.permissions = 0;
        }
        let mut content = Vec::new();
        match look.kind {
            Kind::Directory => {
                let names = system.list(&path)?;
                left.extend(names.keys().map(|name| [&path[..], &[known(name)]].concat()));
            }
            Kind::Symlink => content = system.read_symlink(&path)?,
            _ => {
                let file = system.open(&path, false)?;
                content = system.read(&file, 0, look.len as usize + 1)?;
                system.close(file);
            }
        }
        let xattrs = if look.kind == Kind::Symlink { BTreeMap::new() } else { system.xattrs(&path)? };
        found.insert(path, Seen { look, content, xattrs });
    }
    Ok(found)
}

/// Looks at everything once while others change it: whatever it finds, it is something that was once there.
pub fn observe<S: System>(system: &S, path: &[Name]) {
    // Gone, or something else, by the time that it is looked at.
    let passing = |error: i32| [libc::ENOENT, libc::ENOTDIR, libc::EISDIR, libc::ELOOP, libc::ESTALE].contains(&error);
    let names = match system.list(path) {
        Ok(names) => names,
        Err(error) => return assert!(passing(error), "{path:?}: {error}"),
    };
    for (name, kind) in names {
        let path = [path, &[known(&name)]].concat();
        match kind {
            Kind::Directory => observe(system, &path),
            Kind::Symlink => match system.read_symlink(&path) {
                Ok(target) => assert!(target.starts_with(b"t")),
                Err(error) => assert!(passing(error) || error == libc::EINVAL, "{path:?}: {error}"),
            },
            _ => match system.open(&path, false) {
                Ok(file) => {
                    let content = system.read(&file, 0, 1 << 20).expect("an open file can be read");
                    system.close(file);
                    let wrong = (0..).zip(&content).find(|(at, byte)| !belongs(*at, **byte));
                    assert!(wrong.is_none(), "{path:?}: nobody wrote {wrong:?}");
                }
                Err(error) => assert!(passing(error), "{path:?}: {error}"),
            },
        }
    }
}

/// A name that was found; no others are in use.
fn known(name: &str) -> Name {
    super::NAMES.iter().find(|known| *known == name).unwrap_or_else(|| panic!("nobody made {name:?}"))
}
