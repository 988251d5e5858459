//! What an idle mount keeps in memory: a hundred of them wait on a host, each for one tenant.
//!
//! Most of what a mount has resident after its start is the program itself, of which it will not need most again: TLS, the
//! credentials, JSON. Those pages are the file's and come back from the page cache in microseconds, so a mount that has
//! nothing to do lets go of them, and of the buffers of replies. Only pages with keys or with plaintext are to be kept
//! from swap (`process`), and the program is neither. What the allocator keeps is locked, so that it cannot be let go of.

use crate::fuse::Buffers;
use rustix::time::{ClockId, clock_gettime};
use std::time::Duration;

/// Less than so much of a processor's time in a round is idle: what the round itself takes, and a question to the KMS.
const IDLE: Duration = Duration::from_millis(20);
/// After so many idle rounds in a row a mount is idle.
const ROUNDS: u32 = 3;
/// Nothing is let go of again before so much has been done: less than a question to the KMS takes, and several times what
/// letting go takes.
const WORTH: Duration = Duration::from_millis(2);

/// Watches how much a mount does.
pub struct Resident {
    seen: Duration,
    idle_rounds: u32,
    /// The time at which it was last let go; `None` before the first time.
    let_go: Option<Duration>,
}

impl Resident {
    /// One of a process that has begun.
    pub fn new() -> Self {
        Self { seen: processor_time(), idle_rounds: 0, let_go: None }
    }

    /// Is told that a round has passed; lets go if the mount has become idle, of these buffers as well.
    pub fn round(&mut self, buffers: &Buffers) {
        let now = processor_time();
        let is_idle = now.saturating_sub(self.seen) < IDLE;
        self.seen = now;
        self.idle_rounds = if is_idle { self.idle_rounds.saturating_add(1) } else { 0 };
        if self.idle_rounds >= ROUNDS && self.let_go.is_none_or(|then| now.saturating_sub(then) >= WORTH) {
            buffers.wipe();
            let_go();
            self.let_go = Some(processor_time());
        }
    }
}

fn processor_time() -> Duration {
    Duration::try_from(clock_gettime(ClockId::ProcessCPUTime)).unwrap_or_default()
}

/// Lets go of the program's pages.
fn let_go() {
    let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap_or_default();
    for mapping in program(&smaps) {
        unmap_pages(mapping);
    }
}

/// A range of addresses that maps a part of a file which this process cannot write and has not changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Unchanged {
    start: usize,
    len: usize,
}

/// Those ranges, of `/proc/self/smaps`. Pages that the loader relocated before it took the right to write away count as
/// changed: they are `Anonymous`.
fn program(smaps: &str) -> Vec<Unchanged> {
    let mut found = Vec::new();
    let mut mapping = None;
    for line in smaps.lines() {
        let mut fields = line.split_ascii_whitespace();
        let Some(first) = fields.next() else { continue };
        if let Some((start, end)) = first.split_once('-') {
            let (permissions, inode) = (fields.next(), fields.nth(2));
            let bounds = usize::from_str_radix(start, 16).ok().zip(usize::from_str_radix(end, 16).ok());
            mapping = bounds
                .filter(|_| matches!(permissions, Some("r-xp" | "r--p")) && inode.is_some_and(|inode| inode != "0"))
                .map(|(start, end)| Unchanged { start, len: end.saturating_sub(start) });
        } else if first == "Anonymous:" && fields.next() == Some("0") {
            found.extend(mapping.take());
        }
    }
    found
}

/// Lets go of the pages of a range; the next use of one reads it from the file again.
fn unmap_pages(Unchanged { start, len }: Unchanged) {
    let address = std::ptr::with_exposed_provenance_mut(start);
    #[expect(unsafe_code, reason = "of a private mapping without changes nothing but what is in the file can be lost")]
    // SAFETY: the range is a private mapping of a file, cannot be written, and had no page of its own: every access
    // before and after finds the bytes of the file. A mapping that was replaced meanwhile would be this process's own
    // doing, and it maps no files after its start.
    unsafe {
        // What is locked cannot be let go of. Failing leaves the pages where they are.
        if rustix::mm::munlock(address, len).is_ok() {
            let _ = rustix::mm::madvise(address, len, rustix::mm::Advice::LinuxDontNeed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMAPS: &str = "\
55d000000000-55d000100000 r--p 00000000 fe:00 1234   /usr/bin/kmsfs
Size:               1024 kB
Anonymous:             0 kB
VmFlags: rd mr mw me lo
55d000100000-55d000300000 r-xp 00100000 fe:00 1234   /usr/bin/kmsfs
Anonymous:             0 kB
55d000300000-55d000400000 r--p 00300000 fe:00 1234   /usr/bin/kmsfs
Anonymous:           964 kB
55d000400000-55d000500000 rw-p 00400000 fe:00 1234   /usr/bin/kmsfs
Anonymous:             0 kB
7f0000000000-7f0000100000 r--p 00000000 00:00 0      [vvar]
Anonymous:             0 kB
7f0000200000-7f0000300000 r--s 00000000 fe:00 99     /srv/data
Anonymous:             0 kB
";

    #[test]
    fn only_what_nobody_changed_is_let_go() {
        let expected = [(0x55d0_0000_0000, 0x10_0000), (0x55d0_0010_0000, 0x20_0000)];
        assert_eq!(program(SMAPS), expected.map(|(start, len)| Unchanged { start, len }));
    }

    #[test]
    fn a_process_lives_on_with_fewer_pages() {
        // The dynamic loader's relocations are in there, and every function that this test calls afterwards.
        let_go();
        let text: String = (0..1000).map(|number| number.to_string()).collect();
        assert_eq!(blake3::hash(text.as_bytes()), blake3::hash(text.clone().as_bytes()));
        assert!(!program(&std::fs::read_to_string("/proc/self/smaps").unwrap()).is_empty());
    }
}
