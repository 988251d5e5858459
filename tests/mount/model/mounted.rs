//! A volume as programs see it, through the kernel.

use super::Setup;
use super::system::{Allocation, Look, Name, Result, System};
use crate::harness::{Mount, Volume};
use kmsfs::store::{Kind, RenameMode, SetXattr};
use rustix::fs::{AtFlags, CWD, FallocateFlags, RenameFlags, SeekFrom, Timespec, Timestamps, XattrFlags};
use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::PathBuf;

/// A mounted volume.
pub struct Mounted(Mount);

fn number(error: std::io::Error) -> i32 {
    error.raw_os_error().unwrap_or_else(|| panic!("{error}"))
}

fn kind(kind: fs::FileType) -> Kind {
    match (kind.is_dir(), kind.is_symlink()) {
        (true, _) => Kind::Directory,
        (_, true) => Kind::Symlink,
        _ => Kind::File,
    }
}

fn look(found: &fs::Metadata) -> Look {
    let kind = kind(found.file_type());
    let len = if kind == Kind::Directory { 0 } else { found.len() };
    let mtime = Some((found.mtime(), found.mtime_nsec() as u32));
    Look { kind, len, nlink: found.nlink(), permissions: found.mode() & 0o7777, mtime }
}

impl Mounted {
    /// A new volume, mounted.
    pub fn new(setup: Setup) -> Self {
        let chunks = ["--chunk-size", if setup.large_chunks { "64K" } else { "4K" }];
        let names: &[&str] = if setup.plain_names { &["--plain-names"] } else { &[] };
        Self(Volume::with(&[&chunks, names].concat()).mount(&[]))
    }

    fn at(&self, path: &[Name]) -> PathBuf {
        self.0.at(path.join("/"))
    }

    fn options() -> OpenOptions {
        let mut options = OpenOptions::new();
        options.read(true).write(true).mode(0o644).custom_flags(libc::O_NOFOLLOW);
        options
    }
}

impl System for Mounted {
    type Handle = File;

    fn create(&self, path: &[Name]) -> Result<File> {
        Self::options().create_new(true).open(self.at(path)).map_err(number)
    }

    fn open(&self, path: &[Name], truncate: bool) -> Result<File> {
        Self::options().truncate(truncate).open(self.at(path)).map_err(number)
    }

    fn close(&self, file: File) {
        drop(file);
    }

    fn write(&self, file: &File, at: u64, bytes: &[u8]) -> Result {
        file.write_all_at(bytes, at).map_err(number)
    }

    fn read(&self, file: &File, at: u64, len: usize) -> Result<Vec<u8>> {
        let mut out = vec![0; len];
        let mut filled = 0;
        while filled < len {
            match file.read_at(&mut out[filled..], at + filled as u64).map_err(number)? {
                0 => break,
                read => filled += read,
            }
        }
        out.truncate(filled);
        Ok(out)
    }

    fn set_len(&self, file: &File, len: u64) -> Result {
        file.set_len(len).map_err(number)
    }

    fn allocate(&self, file: &File, how: Allocation, at: u64, len: u64) -> Result {
        let flags = match how {
            Allocation::Extend => FallocateFlags::empty(),
            Allocation::Keep => FallocateFlags::KEEP_SIZE,
            Allocation::Punch => FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
            Allocation::Zero => FallocateFlags::ZERO_RANGE,
            Allocation::ZeroKeep => FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE,
        };
        rustix::fs::fallocate(file, flags, at, len).map_err(rustix::io::Errno::raw_os_error)
    }

    fn seek(&self, file: &File, at: u64, data: bool) -> Result<u64> {
        let from = if data { SeekFrom::Data(at) } else { SeekFrom::Hole(at) };
        rustix::fs::seek(file, from).map_err(rustix::io::Errno::raw_os_error)
    }

    fn copy(&self, from: &File, at: u64, to: &File, to_at: u64, len: u64) -> Result {
        // What is there now: in the same file the copy itself may move the end.
        let end = (at + len).min(from.metadata().map_err(number)?.len());
        let (mut at, mut to_at) = (at, to_at);
        while at < end {
            let left = (end - at) as usize;
            let copied = rustix::fs::copy_file_range(from, Some(&mut at), to, Some(&mut to_at), left)
                .map_err(rustix::io::Errno::raw_os_error)?;
            if copied == 0 {
                break;
            }
        }
        Ok(())
    }

    fn look_open(&self, file: &File) -> Result<Look> {
        file.metadata().map(|found| look(&found)).map_err(number)
    }

    fn sync(&self, file: &File, data_only: bool) -> Result {
        if data_only { file.sync_data() } else { file.sync_all() }.map_err(number)
    }

    fn make_directory(&self, path: &[Name]) -> Result {
        fs::create_dir(self.at(path)).map_err(number)
    }

    fn make_symlink(&self, path: &[Name], target: &[u8]) -> Result {
        let target = std::ffi::OsString::from_vec(target.to_vec());
        std::os::unix::fs::symlink(target, self.at(path)).map_err(number)
    }

    fn read_symlink(&self, path: &[Name]) -> Result<Vec<u8>> {
        fs::read_link(self.at(path)).map(|target| target.into_os_string().into_vec()).map_err(number)
    }

    fn remove_directory(&self, path: &[Name]) -> Result {
        fs::remove_dir(self.at(path)).map_err(number)
    }

    fn unlink(&self, path: &[Name]) -> Result {
        fs::remove_file(self.at(path)).map_err(number)
    }

    fn link(&self, path: &[Name], to: &[Name]) -> Result {
        fs::hard_link(self.at(path), self.at(to)).map_err(number)
    }

    fn rename(&self, path: &[Name], to: &[Name], mode: RenameMode) -> Result {
        let flags = match mode {
            RenameMode::Replace => RenameFlags::empty(),
            RenameMode::NoReplace => RenameFlags::NOREPLACE,
            RenameMode::Exchange => RenameFlags::EXCHANGE,
        };
        rustix::fs::renameat_with(CWD, self.at(path), CWD, self.at(to), flags).map_err(rustix::io::Errno::raw_os_error)
    }

    fn xattrs(&self, path: &[Name]) -> Result<BTreeMap<String, Vec<u8>>> {
        let (path, mut buffer) = (self.at(path), vec![0; 65536]);
        let error = rustix::io::Errno::raw_os_error;
        let len = rustix::fs::listxattr(&path, &mut buffer[..]).map_err(error)?;
        let names = String::from_utf8(buffer[..len].to_vec()).expect("UTF-8");
        let value = |name: &str| {
            let len = rustix::fs::getxattr(&path, name, &mut buffer[..]).map_err(error)?;
            Ok((name.to_owned(), buffer[..len].to_vec()))
        };
        names.split_terminator('\0').map(value).collect()
    }

    fn set_xattr(&self, path: &[Name], name: &str, value: &[u8], how: SetXattr) -> Result {
        let flags = match how {
            SetXattr::Any => XattrFlags::empty(),
            SetXattr::Create => XattrFlags::CREATE,
            SetXattr::Replace => XattrFlags::REPLACE,
        };
        rustix::fs::lsetxattr(self.at(path), name, value, flags).map_err(rustix::io::Errno::raw_os_error)
    }

    fn remove_xattr(&self, path: &[Name], name: &str) -> Result {
        rustix::fs::lremovexattr(self.at(path), name).map_err(rustix::io::Errno::raw_os_error)
    }

    fn set_permissions(&self, path: &[Name], permissions: u32) -> Result {
        fs::set_permissions(self.at(path), fs::Permissions::from_mode(permissions)).map_err(number)
    }

    fn set_mtime(&self, path: &[Name], (seconds, nanoseconds): (i64, u32)) -> Result {
        let times = Timestamps {
            last_access: Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_OMIT },
            last_modification: Timespec { tv_sec: seconds, tv_nsec: nanoseconds.into() },
        };
        rustix::fs::utimensat(CWD, self.at(path), &times, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(rustix::io::Errno::raw_os_error)
    }

    fn look(&self, path: &[Name]) -> Result<Look> {
        fs::symlink_metadata(self.at(path)).map(|found| look(&found)).map_err(number)
    }

    fn list(&self, path: &[Name]) -> Result<BTreeMap<String, Kind>> {
        let entries = fs::read_dir(self.at(path)).map_err(number)?;
        let named = |entry: std::io::Result<fs::DirEntry>| {
            let entry = entry.map_err(number)?;
            let name = entry.file_name().into_string().expect("a name of ours");
            Ok((name, kind(entry.file_type().map_err(number)?)))
        };
        entries.map(named).collect()
    }

    fn sync_all(&self) -> Result {
        let root = File::open(self.0.at("")).map_err(number)?;
        rustix::fs::syncfs(root).map_err(rustix::io::Errno::raw_os_error)
    }

    fn rekey(&self, _steps: u8) -> Result {
        self.0.volume().ok(&["rekey", self.0.at("").to_str().expect("UTF-8")]);
        Ok(())
    }

    fn again(self) -> Self {
        Self(self.0.again(&[]))
    }

    fn killed(self, _sweep: bool) -> Self {
        // What the kernel has not been told to sync may be gone then.
        self.again()
    }

    fn damaged(&self) -> u64 {
        self.0.status()["damaged"].as_u64().expect("a number")
    }
}
