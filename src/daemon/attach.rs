//! A mount that another process makes. A service that systemd keeps in a mount namespace of its own can mount nothing that
//! others see: so it opens the device, and a process of the host's namespace (`kmsfs tenant attach`, which its unit
//! starts) takes it and mounts it.
//!
//! 1. The service offers the device and how to mount it, on a socket beside its control socket.
//! 2. The other process takes them, mounts, and says so.
//! 3. The service shakes hands with the kernel and serves; its end of the connection shows that it answers.
//!
//! Whoever dies before 3 has the other one fail; a mount that is left has no process, and is taken away like any other
//! dead one.

use super::{control, mountpoint};
use crate::failure::{Exit, Failure};
use crate::fuse::device;
use crate::fuse::flags::Flags;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    recvmsg, sendmsg,
};
use serde::{Deserialize, Serialize};
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The longest description of a mount, in bytes.
const LONGEST: usize = 64 * 1024;
/// How long the other process waits for the offer, and how often it looks.
const PATIENCE: Duration = Duration::from_secs(10);
const LOOK: Duration = Duration::from_millis(10);
const MOUNTED: u8 = b'm';
const ANSWERS: u8 = b'a';

/// How to mount the device.
#[derive(Serialize, Deserialize)]
struct Offer {
    source: String,
    flags: Flags,
    uid: u32,
    gid: u32,
}

/// The connection to the process that made the mount, and waits to be told that it answers.
#[derive(Debug)]
pub struct Attached(UnixStream);

impl Attached {
    /// Tells it.
    pub fn answers(mut self) {
        // Nobody may be waiting any more.
        let _ = self.0.write_all(&[ANSWERS]);
    }
}

fn path(mountpoint: &Path) -> PathBuf {
    control::path(mountpoint).with_extension("attach")
}

/// Offers a device, and comes back when it is mounted. `offered` is called when there is something to take.
///
/// # Errors
/// The system's; `UnexpectedEof` if the other process did not mount it.
pub fn offer(
    mountpoint: &Path,
    source: &Path,
    flags: &Flags,
    offered: impl FnOnce(),
) -> io::Result<(OwnedFd, Attached)> {
    let device = device()?;
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    let offer = Offer { source: source.display().to_string(), flags: *flags, uid, gid };
    let (text, path) = (serde_json::to_vec(&offer)?, path(mountpoint));
    control::make_directory()?;
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => (),
    }
    let listener = UnixListener::bind(&path)?;
    offered();
    let accepted = listener.accept();
    let _ = std::fs::remove_file(&path);
    let (mut stream, _) = accepted?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let fds = [device.as_fd()];
    ancillary.push(SendAncillaryMessage::ScmRights(&fds));
    sendmsg(&stream, &[IoSlice::new(&text)], &mut ancillary, SendFlags::NOSIGNAL)?;
    let mut said = [0];
    stream.read_exact(&mut said)?;
    match said {
        [MOUNTED] => Ok((device, Attached(stream))),
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

/// Takes the device that a service offers for this mountpoint, and mounts it there; comes back when it answers.
///
/// # Errors
/// As for a mount.
pub fn attach(mountpoint: &Path, nonempty: bool) -> Result<(), Failure> {
    let mountpoint = mountpoint::absolute(mountpoint)?;
    mountpoint::check(&mountpoint, nonempty)?;
    mountpoint::protect_if_possible(&mountpoint);
    let failed = |what: &str, error: io::Error| {
        Failure::new(Exit::Mountpoint, format!("{}: {what}: {error}", mountpoint.display()))
            .hint("the log of the service says more: journalctl -u 'kmsfs@*'")
    };
    let begin = Instant::now();
    let mut stream = loop {
        match UnixStream::connect(path(&mountpoint)) {
            Err(error) if begin.elapsed() >= PATIENCE => return Err(failed("no service offers a mount", error)),
            Err(_) => std::thread::sleep(LOOK),
            Ok(stream) => break stream,
        }
    };
    let (device, offer) = take(&stream).map_err(|error| failed("the service's offer cannot be taken", error))?;
    crate::fuse::attach(&device, &mountpoint, &offer.source, &offer.flags, (offer.uid, offer.gid))
        .map_err(|error| failed("the mount failed", error))?;
    drop(device);
    let mut said = [0];
    let answered = stream.write_all(&[MOUNTED]).and_then(|()| stream.read_exact(&mut said));
    match answered {
        Ok(()) if said == [ANSWERS] => Ok(()),
        other => {
            let _ = mountpoint::bury(&mountpoint);
            let error = other.err().unwrap_or_else(|| io::ErrorKind::InvalidData.into());
            Err(failed("the service does not answer", error))
        }
    }
}

fn take(stream: &UnixStream) -> io::Result<(OwnedFd, Offer)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut text = vec![0; LONGEST];
    let received = recvmsg(stream, &mut [IoSliceMut::new(&mut text)], &mut ancillary, RecvFlags::CMSG_CLOEXEC)?.bytes;
    let device = ancillary.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    let device = device.ok_or(io::ErrorKind::UnexpectedEof)?;
    Ok((device, serde_json::from_slice(&text[..received])?))
}
