//! Where a volume appears: what may be there before, what is mounted there, and taking it away.

use crate::failure::{Exit, Failure};
use rustix::fs::IFlags;
use rustix::mount::UnmountFlags;
use std::collections::HashSet;
use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// For how long a program that has just ended may still hold what it used.
const LETTING_GO: std::time::Duration = std::time::Duration::from_millis(500);

pub use crate::fuse::FS_TYPE;

/// A mount as the kernel lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mounted {
    /// The number of the filesystem, as `major:minor`.
    pub device: String,
    /// Where.
    pub mountpoint: PathBuf,
    /// What type.
    pub fs_type: String,
    /// What of.
    pub source: String,
    /// The user whose process serves it, if it is a filesystem of FUSE.
    pub user: Option<u32>,
}

/// The mounts of this process's namespace, in the order in which they were made.
///
/// # Errors
/// If the kernel does not list them.
pub fn mounts() -> io::Result<Vec<Mounted>> {
    mounts_of("self")
}

fn mounts_of(process: &str) -> io::Result<Vec<Mounted>> {
    let list = std::fs::read(format!("/proc/{process}/mountinfo"))?;
    Ok(list.split(|byte| *byte == b'\n').filter_map(parse).collect())
}

/// Whether a process of this host that has served a mount there is still ending: the mount is not there any more, or the
/// process was killed and its last threads are not gone yet.
pub fn is_ending(process: u32, mountpoint: &Path) -> bool {
    let is_there = |mounted: &Mounted| mounted.fs_type == FS_TYPE && mounted.mountpoint == mountpoint;
    match mounts_of(&process.to_string()) {
        Ok(mounts) => !mounts.iter().any(is_there),
        Err(_) => super::process::is_dead(process),
    }
}

/// A process, and its program's name, in whose mount namespace a filesystem is still mounted though it is not in ours.
pub fn elsewhere(device: &str) -> Option<(u32, String)> {
    let namespace = |process: &str| std::fs::read_link(format!("/proc/{process}/ns/mnt")).ok();
    let mut seen = HashSet::from([namespace("self")?]);
    std::fs::read_dir("/proc").ok()?.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).find_map(
        |process| {
            let id = process.parse().ok()?;
            let is_new = seen.insert(namespace(&process)?);
            let is_there = |mounted: &Mounted| mounted.fs_type == FS_TYPE && mounted.device == device;
            (is_new && mounts_of(&process).ok()?.iter().any(is_there)).then(|| {
                (id, std::fs::read_to_string(format!("/proc/{process}/comm")).unwrap_or_default().trim().to_owned())
            })
        },
    )
}

/// The same, for a moment: a namespace that has just been made may be about to let go of what it does not need.
pub fn lastingly_elsewhere(device: &str) -> Option<(u32, String)> {
    let until = std::time::Instant::now() + LETTING_GO;
    loop {
        match elsewhere(device) {
            Some(_) if std::time::Instant::now() < until => std::thread::sleep(LETTING_GO / 10),
            found => return found,
        }
    }
}

fn parse(line: &[u8]) -> Option<Mounted> {
    let fields: Vec<&[u8]> = line.split(|byte| *byte == b' ').collect();
    let separator = fields.iter().position(|field| *field == b"-")?;
    Some(Mounted {
        device: String::from_utf8_lossy(fields.get(2)?).into_owned(),
        mountpoint: PathBuf::from(OsString::from_vec(unescape(fields.get(4)?))),
        fs_type: String::from_utf8_lossy(fields.get(separator + 1)?).into_owned(),
        source: String::from_utf8_lossy(&unescape(fields.get(separator + 2)?)).into_owned(),
        user: fields.get(separator + 3).and_then(|options| {
            let options = std::str::from_utf8(options).ok()?;
            options.split(',').find_map(|option| option.strip_prefix("user_id=")?.parse().ok())
        }),
    })
}

/// The kernel writes blanks and the like as a backslash and three octal digits.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, tail)) = rest.split_first() {
        let octal = tail.get(..3).filter(|_| *first == b'\\');
        let code = octal.and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        match code {
            Some(code) => {
                out.push(code);
                rest = &tail[3..];
            }
            None => {
                out.push(*first);
                rest = tail;
            }
        }
    }
    out
}

/// What is mounted at exactly this place, the topmost if several are.
///
/// # Errors
/// If the kernel does not list the mounts.
pub fn mounted_at(mountpoint: &Path) -> io::Result<Option<Mounted>> {
    Ok(mounts()?.into_iter().rfind(|mounted| mounted.mountpoint == mountpoint))
}

/// The absolute path of a mountpoint, without asking the filesystem that is mounted there, which may be dead.
///
/// # Errors
/// [`Exit::Mountpoint`] if it has no parent directory.
pub fn absolute(mountpoint: &Path) -> Result<PathBuf, Failure> {
    let missing = |error: io::Error| {
        Failure::new(Exit::Mountpoint, format!("the mountpoint {} cannot be found: {error}", mountpoint.display()))
    };
    let path = std::path::absolute(mountpoint).map_err(missing)?;
    match (path.parent(), path.file_name()) {
        (Some(parent), Some(name)) => Ok(parent.canonicalize().map_err(missing)?.join(name)),
        _ => path.canonicalize().map_err(missing),
    }
}

/// Checks that a volume can be mounted there. A mount of ours whose process died is taken away.
///
/// # Errors
/// [`Exit::Mountpoint`], [`Exit::AlreadyMounted`].
pub fn check(mountpoint: &Path, nonempty: bool) -> Result<(), Failure> {
    let io_failure = |error: io::Error| Failure::new(Exit::Mountpoint, format!("{}: {error}", mountpoint.display()));
    if let Some(mounted) = mounted_at(mountpoint).map_err(io_failure)?
        && mounted.fs_type == FS_TYPE
    {
        if !is_dead(mountpoint) {
            let message = format!("{} is a mount of {} already", mountpoint.display(), mounted.source);
            let hint = format!("kmsfs umount {}", mountpoint.display());
            return Err(Failure::new(Exit::AlreadyMounted, message).hint(hint));
        }
        bury(mountpoint).map_err(io_failure)?;
    }
    let metadata = std::fs::metadata(mountpoint).map_err(|error| {
        let failure = io_failure(error);
        failure.hint(format!("make it first: mkdir {}", mountpoint.display()))
    })?;
    if !metadata.is_dir() {
        return Err(Failure::new(Exit::Mountpoint, format!("{} is not a directory", mountpoint.display())));
    }
    if !nonempty && std::fs::read_dir(mountpoint).map_err(io_failure)?.next().is_some() {
        let failure = Failure::new(Exit::Mountpoint, format!("{} is not empty", mountpoint.display()));
        return Err(failure.hint("what is in it would be hidden; choose another one, or mount with -o nonempty"));
    }
    Ok(())
}

/// Makes an empty directory unchangeable (`chattr +i`), for root too: while nothing is mounted there, nobody can put files
/// into it that were meant for the volume. Does nothing to a mount.
///
/// # Errors
/// The system's: not every filesystem knows this, and not everybody may.
pub fn protect(mountpoint: &Path) -> io::Result<()> {
    let directory = std::fs::File::open(mountpoint)?;
    let flags = rustix::fs::ioctl_getflags(&directory)?;
    if flags.contains(IFlags::IMMUTABLE) {
        return Ok(());
    }
    Ok(rustix::fs::ioctl_setflags(&directory, flags | IFlags::IMMUTABLE)?)
}

/// The same for who can go on without it, but for a warning.
pub fn protect_if_possible(mountpoint: &Path) {
    if let Err(error) = protect(mountpoint) {
        tracing::warn!("while nothing is mounted there, {} can be written to: {error}", mountpoint.display());
    }
}

/// Whether the process that served a mount is gone.
pub fn is_dead(mountpoint: &Path) -> bool {
    // It would not answer, not even this.
    if super::control::is_stuck(mountpoint) {
        return true;
    }
    // Not `stat`: what the kernel has cached outlives the process.
    rustix::fs::statfs(mountpoint).is_err_and(|error| error == rustix::io::Errno::NOTCONN)
}

/// Takes a mount away that nobody uses.
///
/// # Errors
/// `EBUSY` if somebody does.
pub fn unmount(mountpoint: &Path) -> io::Result<()> {
    take_away(mountpoint, UnmountFlags::empty(), "-u")
}

/// The same, for somebody who has just seen the last user end: what such a program began to start, or is still closing,
/// keeps the mount busy for a moment longer.
///
/// # Errors
/// As for [`unmount`].
pub fn unmount_soon(mountpoint: &Path) -> io::Result<()> {
    let until = std::time::Instant::now() + LETTING_GO;
    loop {
        match unmount(mountpoint) {
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) && std::time::Instant::now() < until => {
                std::thread::sleep(LETTING_GO / 10);
            }
            other => return other,
        }
    }
}

/// Takes a mount out of the tree at once; who uses it still does.
///
/// # Errors
/// The system's.
pub fn detach(mountpoint: &Path) -> io::Result<()> {
    take_away(mountpoint, UnmountFlags::DETACH, "-uz")
}

/// Takes a mount away whose process is dead. Whoever still waits for it is told.
///
/// # Errors
/// The system's.
pub fn bury(mountpoint: &Path) -> io::Result<()> {
    // Force alone ends the connection to the kernel, and then finds that it is still in use.
    let _ = rustix::mount::unmount(mountpoint, UnmountFlags::FORCE);
    if mounted_at(mountpoint)?.is_some_and(|mounted| mounted.fs_type == FS_TYPE) { detach(mountpoint) } else { Ok(()) }
}

fn take_away(mountpoint: &Path, flags: UnmountFlags, helper_flag: &str) -> io::Result<()> {
    match rustix::mount::unmount(mountpoint, flags) {
        Err(rustix::io::Errno::PERM) => (),
        other => return Ok(other?),
    }
    // An ordinary user takes its own mounts away with the helper of FUSE.
    let output =
        Command::new("fusermount3").arg(helper_flag).arg("--").arg(mountpoint).stdin(Stdio::null()).output()?;
    if output.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(if text.contains("busy") { io::Error::from_raw_os_error(libc::EBUSY) } else { io::Error::other(text) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_are_parsed_with_their_blanks() {
        let line = b"36 35 0:31 / /mnt/with\\040blank rw,nosuid shared:1 - fuse.kmsfs /v\\134x rw,user_id=0";
        let mounted = parse(line).unwrap();
        assert_eq!(mounted.mountpoint, Path::new("/mnt/with blank"));
        assert_eq!((mounted.device.as_str(), mounted.user), ("0:31", Some(0)));
        assert_eq!((mounted.fs_type.as_str(), mounted.source.as_str()), ("fuse.kmsfs", "/v\\x"));
        assert!(parse(b"").is_none() && parse(b"36 35 - x").is_none());
    }

    #[test]
    fn the_root_is_mounted_and_a_missing_mountpoint_is_told() {
        assert!(mounted_at(Path::new("/")).unwrap().is_some());
        assert_eq!(check(Path::new("/nowhere/at/all"), false).unwrap_err().exit, Exit::Mountpoint);
        assert_eq!(check(Path::new("/etc/passwd"), false).unwrap_err().exit, Exit::Mountpoint);
        assert_eq!(check(Path::new("/etc"), false).unwrap_err().exit, Exit::Mountpoint);
    }
}
