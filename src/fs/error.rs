//! Why an operation on the tree failed, by what the caller can do about it.

use crate::file;
use crate::kms::{KmsError, KmsErrorKind, Wrapped};
use crate::lease::{LeaseError, LockReason};
use std::io;

/// The result of an operation on the tree.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What is missing before an operation can go on.
#[derive(Debug)]
pub enum Need {
    /// This secret has to be unwrapped.
    Unwrap(Box<Wrapped>),
    /// A new envelope has to be made.
    Envelope,
    /// The volume locked because nobody used it, and has to be unlocked.
    Wake,
}

/// Why an operation on the tree failed.
#[derive(Debug)]
pub enum Error {
    /// Fetch this with [`super::Fs::fetch`] on a thread that may block, and call again.
    NeedKey(Need),
    /// The volume is locked.
    Locked(LockReason),
    /// The volume began to lock while the operation was under way.
    Draining,
    /// A key that is not in memory is needed, and the KMS refuses it.
    Refused,
    /// A key that is not in memory is needed, and the KMS does not answer.
    Unreachable,
    /// What is stored is damaged or was tampered with.
    Damaged,
    /// The inode is not there any more.
    Stale,
    /// What the system, or POSIX, calls it.
    Errno(i32),
}

impl Error {
    /// An error with a number of the system's.
    pub fn errno(number: i32) -> Self {
        Self::Errno(number)
    }
}

impl From<io::Error> for Error {
    fn from(error: io::Error) -> Self {
        Self::Errno(error.raw_os_error().unwrap_or(libc::EIO))
    }
}

impl From<file::Error> for Error {
    fn from(error: file::Error) -> Self {
        match error {
            file::Error::Damaged(_) => Self::Damaged,
            // The key went between the gate and the file: the volume is locking.
            file::Error::Locked => Self::Draining,
            file::Error::TooLong => Self::Errno(libc::EFBIG),
            file::Error::Io(error) => error.into(),
        }
    }
}

impl From<LeaseError> for Error {
    fn from(error: LeaseError) -> Self {
        match error {
            LeaseError::Locked => Self::Draining,
            LeaseError::Kms(error) => error.into(),
        }
    }
}

impl From<KmsError> for Error {
    fn from(error: KmsError) -> Self {
        match error.kind {
            KmsErrorKind::Refused => Self::Refused,
            KmsErrorKind::Unreachable | KmsErrorKind::Misconfigured | KmsErrorKind::Credentials => Self::Unreachable,
            KmsErrorKind::Damaged => Self::Damaged,
        }
    }
}
