//! What a caller may do, as far as the kernel says it in a field that the library does not pass on.

use crate::fs::Keeps;
use fuser::Request;

/// Whoever has it keeps setuid and setgid of what it changes.
const CAP_FSETID: u32 = 4;

/// Who sent a request.
#[derive(Clone, Copy)]
pub struct Caller {
    thread: u32,
    uid: u32,
    gid: u32,
}

impl Caller {
    /// The caller of this request.
    pub fn of(request: &Request) -> Self {
        Self { thread: request.pid(), uid: request.uid(), gid: request.gid() }
    }

    /// Whether it keeps setuid and setgid of what it changes: a matter of a capability in the user namespace of the mount,
    /// not of being root. Of a caller that is gone or cannot be seen, its user decides.
    fn is_privileged(self) -> bool {
        has_capability(&self.thread.to_string(), CAP_FSETID).unwrap_or(self.uid == 0)
    }

    fn is_of(self, group: u32) -> bool {
        self.gid == group || is_member(&self.thread.to_string(), group)
    }

    /// What stays when it changes the content of a file of this group.
    pub fn keeps(self, group: u32) -> Keeps {
        if self.is_privileged() { Keeps::All } else { self.keeps_unprivileged(group) }
    }

    /// The same where the kernel said that it has no privilege.
    pub fn keeps_unprivileged(self, group: u32) -> Keeps {
        if self.is_of(group) { Keeps::SetgidAlone } else { Keeps::Nothing }
    }

    /// Whether setgid stays when it changes the ACL of what is of this group.
    pub fn keeps_setgid(self, group: u32) -> bool {
        self.is_of(group) || self.is_privileged()
    }
}

/// The value of a line of a thread's status.
fn status(thread: &str, name: &str) -> Option<String> {
    let status = std::fs::read_to_string(format!("/proc/{thread}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix(name)).map(str::to_owned)
}

fn is_member(thread: &str, group: u32) -> bool {
    status(thread, "Groups:").is_some_and(|groups| groups.split_whitespace().any(|one| one.parse() == Ok(group)))
}

fn has_capability(thread: &str, capability: u32) -> Option<bool> {
    let namespace = |thread: &str| std::fs::read_link(format!("/proc/{thread}/ns/user")).ok();
    let effective = u64::from_str_radix(status(thread, "CapEff:")?.trim(), 16).ok()?;
    Some(effective & 1 << capability != 0 && namespace(thread)? == namespace("self")?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_keeps_setid_and_who_cannot_be_seen_is_judged_by_its_user() {
        let is_root = rustix::process::geteuid().is_root();
        assert_eq!(has_capability("self", CAP_FSETID), Some(is_root));
        assert_eq!(Caller { thread: 0, uid: 0, gid: 0 }.keeps(7), Keeps::All);
        let other = Caller { thread: 0, uid: 1000, gid: 1000 };
        assert_eq!((other.keeps(1000), other.keeps(1001)), (Keeps::SetgidAlone, Keeps::Nothing));
        assert!(other.keeps_setgid(1000) && !other.keeps_setgid(1001));
    }
}
