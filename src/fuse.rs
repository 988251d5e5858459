//! The kernel: how a volume is mounted, and its requests ([`requests`]). The only place that names `fuser`. What needs a
//! key that is not in memory is handed, with its reply, to a thread that may wait for the KMS ([`workers`]); the threads
//! that serve the kernel never do.

mod buffers;
mod cached;
mod caller;
mod convert;
mod direct;
pub mod flags;
pub mod forget;
mod requests;
pub mod synced;
mod wash;
mod workers;

use crate::errno;
use crate::fs::{Creator, Error, Fs, Keeps, Result};
use crate::metrics::{Operation, Timed};
pub use buffers::Buffers;
use cached::Cached;
use convert::attr_of;
pub use direct::{attach, device};
use flags::Flags;
use forget::Forgetter;
use fuser::{
    Errno, FopenFlags, Generation, MountOption, ReplyEmpty, ReplyEntry, ReplyWrite, ReplyXattr, Request, SessionACL,
};
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use synced::Synced;
pub use wash::{Wash, write_zeros};
use workers::Workers;

/// The type by which the mounts of kmsfs are known.
pub const FS_TYPE: &str = "fuse.kmsfs";
/// For how long the kernel may rely on names and attributes. The volume is held by one mount alone, so nobody else
/// changes them; a lock invalidates them one by one.
const TTL: Duration = Duration::from_secs(3600);
/// The largest request, in bytes: the kernel's own limit.
const MAX_REQUEST: u32 = 1 << 20;
/// More threads than this only wait for each other.
const MAX_THREADS: usize = 16;
/// So many more than there are processors: while some wait for the disk, others serve.
const SPARE_THREADS: usize = 2;

/// What the kernel talks to.
pub struct Kernel {
    fs: Arc<Fs>,
    buffers: Arc<Buffers>,
    wash: Arc<Wash>,
    workers: Workers,
    /// Somebody who serves the kernel waits for the disk.
    syncing: AtomicBool,
    /// There once it is mounted.
    forgetter: Arc<OnceLock<Forgetter>>,
    cached: Arc<Cached>,
    synced: Arc<Synced>,
    /// Nothing of a file's content is kept in the page cache.
    direct_io: bool,
}

impl Kernel {
    /// Serves a mounted volume. `buffers` hold the plaintext on its way to the kernel.
    pub fn new(fs: Arc<Fs>, buffers: Arc<Buffers>, direct_io: bool) -> Self {
        let wash = Arc::new(Wash::new(threads()));
        let workers = Workers::new(Arc::clone(&fs));
        let (syncing, forgetter, cached, synced) =
            (AtomicBool::new(false), Arc::default(), Arc::default(), Arc::default());
        Self { workers, fs, buffers, wash, syncing, forgetter, cached, synced, direct_io }
    }

    /// Of which files the kernel is to be told from time to time.
    pub fn synced(&self) -> Arc<Synced> {
        Arc::clone(&self.synced)
    }

    /// What wipes the buffers of the threads that serve the kernel.
    pub fn wash(&self) -> Arc<Wash> {
        Arc::clone(&self.wash)
    }

    fn number(&self, error: &Error) -> Errno {
        number_of(&self.fs, error)
    }

    /// An operation begins.
    fn timed(&self, operation: Operation) -> Timed {
        self.fs.counters.meter.begin(operation)
    }

    /// Gives the result of an operation to `reply`; if a key is missing, once `again` was called with it there.
    fn finish<T: 'static>(
        &self,
        timed: Timed,
        result: Result<T>,
        again: impl Fn(&Fs) -> Result<T> + Send + 'static,
        reply: impl FnOnce(std::result::Result<T, Errno>) + Send + 'static,
    ) {
        self.note_request();
        let reply = move |result| {
            let _timed = timed;
            reply(result);
        };
        match result {
            Err(Error::NeedKey(need)) => {
                self.workers.run(move |_| Err(Error::NeedKey(need)), again, Self::numbered(reply));
            }
            other => reply(other.map_err(|error| self.number(&error))),
        }
    }

    /// For what tells something of the volume: an operation may have taken so long that it was locked meanwhile.
    fn unless_closed<T>(fs: &Fs, result: Result<T>) -> Result<T> {
        if result.is_ok() && !fs.is_open() { Err(fs.locked()) } else { result }
    }

    /// Somebody uses the volume.
    fn note_request(&self) {
        self.fs.counters.requests.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    }

    /// For a reply that is given where this kernel's own tree is not at hand.
    fn numbered<T>(reply: impl FnOnce(std::result::Result<T, Errno>)) -> impl FnOnce(&Fs, Result<T>) {
        move |fs, result| reply(result.map_err(|error| number_of(fs, &error)))
    }

    fn creator(request: &Request, mode: u32, umask: u32) -> Creator {
        Creator { uid: request.uid(), gid: request.gid(), permissions: mode & 0o7777, umask }
    }

    /// Takes setuid and setgid away where the kernel does not expect the mode to change.
    fn dropping(
        &self,
        ino: u64,
        keeps: impl Fn(u32) -> Keeps + Send + 'static,
    ) -> impl Fn(&Fs) -> Result<()> + Send + 'static {
        let forgetter = Arc::clone(&self.forgetter);
        move |fs| {
            if fs.drop_privileges(ino, &keeps)?
                && let Some(forgetter) = forgetter.get()
            {
                forgetter.forget_attributes(ino);
            }
            Ok(())
        }
    }

    fn open_flags(&self) -> FopenFlags {
        let flags = FopenFlags::FOPEN_PARALLEL_DIRECT_WRITES;
        flags | if self.direct_io { FopenFlags::FOPEN_DIRECT_IO } else { FopenFlags::FOPEN_KEEP_CACHE }
    }

    /// Does what ends with an entry.
    fn entry(&self, timed: Timed, act: impl Fn(&Fs) -> Result<crate::fs::Entry> + Send + 'static, reply: ReplyEntry) {
        self.finish(timed, act(&self.fs), act, move |result| give_entry(result, reply));
    }

    /// Does what ends with nothing.
    fn empty(&self, timed: Timed, act: impl Fn(&Fs) -> Result<()> + Send + 'static, reply: ReplyEmpty) {
        self.finish(timed, act(&self.fs), act, move |result| match result {
            Ok(()) => reply.ok(),
            Err(number) => reply.error(number),
        });
    }
}

/// How many threads serve the kernel.
fn threads() -> usize {
    std::thread::available_parallelism()
        .map_or(2, std::num::NonZero::get)
        .saturating_add(SPARE_THREADS)
        .min(MAX_THREADS)
}

/// Mounts, unless `attached` is a device that is mounted already, and shakes hands with the kernel. Threads serve it once
/// the session runs.
///
/// # Errors
/// The system's.
pub fn mount(
    kernel: Kernel,
    mountpoint: &Path,
    source: &Path,
    flags: &Flags,
    attached: Option<std::os::fd::OwnedFd>,
) -> std::io::Result<fuser::Session<Kernel>> {
    let mut config = fuser::Config::default();
    let choose = |set: bool, yes, no| if set { yes } else { no };
    config.mount_options = vec![
        // A comma would end the option, in whatever way it is passed on.
        MountOption::FSName(source.display().to_string().replace(',', "_")),
        MountOption::Subtype("kmsfs".into()),
        MountOption::DefaultPermissions,
        choose(flags.read_only, MountOption::RO, MountOption::RW),
        choose(flags.dev, MountOption::Dev, MountOption::NoDev),
        choose(flags.suid, MountOption::Suid, MountOption::NoSuid),
        choose(flags.no_exec, MountOption::NoExec, MountOption::Exec),
    ];
    if flags.no_atime {
        config.mount_options.push(MountOption::NoAtime);
    }
    config.acl = if flags.allow_other { SessionACL::All } else { SessionACL::Owner };
    config.n_threads = Some(threads());
    config.clone_fd = true;
    let forgetter = Arc::clone(&kernel.forgetter);
    let session = if let Some(device) = attached {
        fuser::Session::from_fd(kernel, device, config.acl, config)?
    } else if rustix::process::geteuid().is_root() {
        let device = direct::mount(mountpoint, &source.display().to_string(), flags)?;
        fuser::Session::from_fd(kernel, device, config.acl, config).inspect_err(|_| {
            let _ = rustix::mount::unmount(mountpoint, rustix::mount::UnmountFlags::DETACH);
        })?
    } else {
        fuser::Session::new(kernel, mountpoint, &config)?
    };
    forgetter.get_or_init(|| Forgetter::new(session.notifier()));
    Ok(session)
}

/// The number for an error, which counts.
fn number_of(fs: &Fs, error: &Error) -> Errno {
    let number = errno::of(error, fs.reason());
    fs.counters.meter.failed(number);
    Errno::from_i32(number)
}

fn give_entry(result: std::result::Result<crate::fs::Entry, Errno>, reply: ReplyEntry) {
    match result {
        Ok(entry) => reply.entry(&TTL, &attr_of(&entry), Generation(entry.generation)),
        Err(number) => reply.error(number),
    }
}

fn give_written(result: std::result::Result<u32, Errno>, reply: ReplyWrite) {
    match result {
        Ok(written) => reply.written(written),
        Err(number) => reply.error(number),
    }
}

fn reply_xattr(value: &[u8], size: u32, reply: ReplyXattr) {
    if size == 0 {
        reply.size(value.len() as u32);
    } else if value.len() > size as usize {
        reply.error(Errno::ERANGE);
    } else {
        reply.data(value);
    }
}
