//! The one table from the errors of the tree to the numbers that applications see.

use crate::fs::Error;
use crate::lease::LockReason;

/// The number for an error; `reason` is why the volume locks, for what was cut off by that.
pub fn of(error: &Error, reason: LockReason) -> i32 {
    match error {
        Error::Locked(reason) => of_reason(*reason),
        Error::Draining => of_reason(reason),
        Error::Refused => libc::EKEYREVOKED,
        Error::Unreachable => libc::EKEYEXPIRED,
        Error::Damaged => libc::EIO,
        // The kernel looks the name up again for this one.
        Error::Stale => libc::ESTALE,
        // Whoever asks again and again for a key that does not stay is not helped by asking once more.
        Error::NeedKey(_) => libc::EKEYEXPIRED,
        Error::Errno(number) => *number,
    }
}

fn of_reason(reason: LockReason) -> i32 {
    match reason {
        LockReason::Revoked => libc::EKEYREVOKED,
        LockReason::Unreachable => libc::EKEYEXPIRED,
        LockReason::Operator | LockReason::Idle => libc::ENOKEY,
    }
}

/// The name of a number; the number itself, if it is none that a filesystem usually gives.
pub fn name(number: i32) -> String {
    macro_rules! names {
        ($($name:ident)*) => { [$((libc::$name, stringify!($name)),)*] };
    }
    let names = names!(
        EPERM ENOENT EINTR EIO ENXIO EBADF EAGAIN ENOMEM EACCES EBUSY EEXIST EXDEV ENODEV ENOTDIR EISDIR EINVAL EMFILE ENFILE EFBIG ENOSPC EROFS EMLINK ERANGE ENAMETOOLONG ENOTEMPTY ELOOP ENODATA EOPNOTSUPP EOVERFLOW ENOSYS ESTALE EDQUOT ENOKEY EKEYEXPIRED EKEYREVOKED EKEYREJECTED ETIMEDOUT
    );
    let found = names.iter().find(|(known, _)| *known == number);
    found.map_or_else(|| number.to_string(), |(_, name)| (*name).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn applications_can_tell_why_they_get_nothing() {
        let of = |error| of(&error, LockReason::Operator);
        assert_eq!(of(Error::Locked(LockReason::Revoked)), libc::EKEYREVOKED);
        assert_eq!(of(Error::Locked(LockReason::Unreachable)), libc::EKEYEXPIRED);
        assert_eq!(of(Error::Locked(LockReason::Operator)), libc::ENOKEY);
        assert_eq!(of(Error::Draining), libc::ENOKEY);
        assert_eq!(of(Error::Refused), libc::EKEYREVOKED);
        assert_eq!(of(Error::Unreachable), libc::EKEYEXPIRED);
        assert_eq!(of(Error::Damaged), libc::EIO);
        assert_eq!(of(Error::Errno(libc::ENOSPC)), libc::ENOSPC);
    }
}
