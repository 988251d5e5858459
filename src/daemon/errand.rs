//! What a mount's process needs from its own mount: a process of its own does it. A thread that waits for an answer of
//! the process it belongs to cannot be killed, and would keep a killed process, and with it the mount, for ever.

use crate::failure::{Exit, Failure};
use rustix::fs::{Mode, OFlags};
use serde::{Deserialize, Serialize};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The hidden command that does an errand.
pub const COMMAND: &str = "errand";

/// How the kernel numbers FUSE among its filesystems (`FUSE_SUPER_MAGIC`).
const FUSE: rustix::fs::FsWord = 0x6573_5546;

/// What is to be done, on standard input as JSON.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Errand {
    /// Where the mount is.
    mountpoint: PathBuf,
    what: What,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
enum What {
    /// See whether it answers.
    Ask,
    /// Make the kernel send its dirty pages.
    Flush,
    /// Write zeros to these files.
    Wash(Vec<String>),
}

impl Errand {
    /// Whether the mount answers.
    pub fn ask(mountpoint: &Path) -> Self {
        Self { mountpoint: mountpoint.to_owned(), what: What::Ask }
    }

    /// Makes the kernel send its dirty pages.
    pub fn flush(mountpoint: &Path) -> Self {
        Self { mountpoint: mountpoint.to_owned(), what: What::Flush }
    }

    /// Writes zeros to these files in the root directory ([`crate::fuse::Wash`]).
    pub fn wash(mountpoint: &Path, names: &[String]) -> Self {
        Self { mountpoint: mountpoint.to_owned(), what: What::Wash(names.to_vec()) }
    }

    /// Sends a process on it, and waits for its end.
    ///
    /// # Errors
    /// The system's, or that the errand failed.
    pub fn run(&self) -> io::Result<()> {
        let mut child = Command::new("/proc/self/exe")
            .arg(COMMAND)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()?;
        let errand = serde_json::to_vec(self)?;
        // A process that does not read it fails, and is waited for like any other.
        let _ = child.stdin.take().map(|mut input| input.write_all(&errand));
        let output = child.wait_with_output()?;
        let reason = String::from_utf8_lossy(&output.stderr);
        if output.status.success() { Ok(()) } else { Err(io::Error::other(reason.trim().to_owned())) }
    }

    /// Does it; in the process that was sent.
    fn act(&self) -> io::Result<()> {
        if let What::Ask = self.what {
            // Of all questions, the one that is answered in every state, and never from the kernel's memory.
            return match rustix::fs::statfs(&self.mountpoint)?.f_type {
                FUSE => Ok(()),
                _ => Err(io::Error::other("it is not mounted")),
            };
        }
        let root = std::fs::File::open(&self.mountpoint)?;
        match &self.what {
            What::Ask => Ok(()),
            What::Flush => Ok(rustix::fs::syncfs(&root)?),
            What::Wash(names) => {
                let flags = OFlags::WRONLY | OFlags::DIRECT | OFlags::CLOEXEC;
                let open = |name: &String| Ok(rustix::fs::openat(&root, name.as_str(), flags, Mode::empty())?);
                crate::fuse::write_zeros(&names.iter().map(open).collect::<io::Result<Vec<_>>>()?)
            }
        }
    }
}

/// Does the errand that standard input names.
///
/// # Errors
/// Whatever keeps it from being done.
pub fn main() -> Result<(), Failure> {
    let failed = |error: io::Error| Failure::new(Exit::Failure, error.to_string());
    let errand: Errand = serde_json::from_reader(io::stdin()).map_err(|error| failed(error.into()))?;
    errand.act().map_err(failed)
}
