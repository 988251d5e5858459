//! Mounting without a helper, as root may. The FUSE library's own way leaves the type at `fuse`; with `fuse.kmsfs`
//! `findmnt -t`, fstab and our own commands know what it is.

use super::FS_TYPE;
use super::flags::Flags;
use rustix::fs::{Mode, OFlags};
use rustix::mount::{MountFlags, mount as mount_at};
use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

/// The device through which the kernel talks, which is not mounted yet.
pub fn device() -> io::Result<OwnedFd> {
    Ok(rustix::fs::open("/dev/fuse", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?)
}

/// Mounts a device, for the user and group of the process that serves it.
pub fn attach(
    device: &OwnedFd,
    mountpoint: &Path,
    source: &str,
    flags: &Flags,
    (uid, gid): (u32, u32),
) -> io::Result<()> {
    let mut data = format!("fd={},rootmode=40000,user_id={uid},group_id={gid},default_permissions", device.as_raw_fd());
    if flags.allow_other {
        data.push_str(",allow_other");
    }
    let set = [
        (flags.read_only, MountFlags::RDONLY),
        (!flags.dev, MountFlags::NODEV),
        (!flags.suid, MountFlags::NOSUID),
        (flags.no_exec, MountFlags::NOEXEC),
        (flags.no_atime, MountFlags::NOATIME),
    ];
    let flags = set.into_iter().filter(|(on, _)| *on).fold(MountFlags::empty(), |all, (_, flag)| all | flag);
    let data = CString::new(data)?;
    Ok(mount_at(source, mountpoint, FS_TYPE, flags, data.as_c_str())?)
}

/// Mounts, and returns the device.
pub fn mount(mountpoint: &Path, source: &str, flags: &Flags) -> io::Result<OwnedFd> {
    let device = device()?;
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    attach(&device, mountpoint, source, flags, (uid, gid))?;
    Ok(device)
}
