//! What a caller may do, as far as the kernel says it in a field that the library does not pass on.

use fuser::Request;

/// Whoever has it keeps setuid and setgid of what it changes.
const CAP_FSETID: u32 = 4;

/// Who sent a request.
#[derive(Clone, Copy)]
pub struct Caller {
    thread: u32,
    uid: u32,
}

impl Caller {
    /// The caller of this request.
    pub fn of(request: &Request) -> Self {
        Self { thread: request.pid(), uid: request.uid() }
    }

    /// Whether setuid and setgid of a file stay when it truncates it: a matter of a capability in the user namespace of
    /// the mount, not of being root. Of a caller that is gone or cannot be seen, its user decides.
    pub fn keeps_setid(self) -> bool {
        has_capability(&self.thread.to_string(), CAP_FSETID).unwrap_or(self.uid == 0)
    }
}

fn has_capability(thread: &str, capability: u32) -> Option<bool> {
    let namespace = |thread: &str| std::fs::read_link(format!("/proc/{thread}/ns/user")).ok();
    let status = std::fs::read_to_string(format!("/proc/{thread}/status")).ok()?;
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    let effective = u64::from_str_radix(effective.trim(), 16).ok()?;
    Some(effective & 1 << capability != 0 && namespace(thread)? == namespace("self")?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_keeps_setid_and_who_cannot_be_seen_is_judged_by_its_user() {
        let is_root = rustix::process::geteuid().is_root();
        assert_eq!(has_capability("self", CAP_FSETID), Some(is_root));
        assert!(Caller { thread: 0, uid: 0 }.keeps_setid());
        assert!(!Caller { thread: 0, uid: 1000 }.keeps_setid());
    }
}
