//! New keys for the files of a volume, while it is in use: every file gets an envelope whose secret nobody has seen before,
//! and all of its chunks are sealed again. Blocks on the KMS: not for a thread that serves the kernel.
//!
//! 1. new files get new envelopes from here on (*a crash: nothing has changed*);
//! 2. the volume's record gets the next epoch, which new files have from here on, and notes what is being done (*a crash:
//!    the same command goes on with that epoch*);
//! 3. whoever was creating a file with an earlier epoch has finished: from here on there are no new ones;
//! 4. each file of an earlier epoch gets a new key, step by step (`file::rekey`; *a crash: each file has its old key, the
//!    new one, or both, and its header says for what*);
//! 5. files that no name leads to any more, but that are open, get theirs too;
//! 6. if everything was to be done: every header is read once more. If one is of an earlier epoch, because it is damaged or
//!    its KEK is refused, it ends here;
//! 7. if everything was to be done: the record's floor is raised, so that a header of before is refused from here on (*a
//!    crash before: the same command finds nothing to do until here; after: it is done*).

mod files;

use super::nodes::Place;
pub use super::renewal::{Left, Stopped};
use super::renewal::{Problem, Work, stopped};
use super::walk::{Seen, there};
use super::*;
use crate::file::{Found, Unverified};
use crate::format::header::Header;
use crate::format::volume::RekeyState;
use crate::units::Epoch;
use files::Files;
use std::io;
use std::time::Duration;

/// What is of an earlier epoch after the first round was put there by nobody we know of; it gets so many rounds in all.
const ROUNDS: usize = 3;

/// What is to be done.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// Only what is at or below this path: names, from the root on.
    pub path: Option<Vec<Vec<u8>>>,
    /// Only files whose key was made before this moment, in seconds since 1970, or of which it is not known.
    pub made_before: Option<u64>,
    /// Files that an earlier rekey has done, which did not come to its end, get a key once more.
    pub anew: bool,
}

/// How far a rekey is; may be looked at while it runs.
#[derive(Debug, Default)]
pub struct Progress {
    /// Names of files that are to be looked at; 0 until they are counted.
    pub total: AtomicU64,
    /// Bytes of these that are not holes.
    pub total_bytes: AtomicU64,
    /// Names of files that were looked at.
    pub files: AtomicU64,
    /// Bytes that were passed: those of files that needed no new key, too.
    pub position: AtomicU64,
    /// Files that got a new key.
    pub rekeyed: AtomicU64,
    /// Bytes that were sealed again.
    pub bytes: AtomicU64,
    /// Secrets that the KMS unwrapped.
    pub unwrapped: AtomicU64,
    /// New envelopes.
    pub wrapped: AtomicU64,
}

/// What came of a rekey.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// Every file of an earlier epoch is refused from now on.
    pub floor_raised: bool,
    /// The first of the files that still have an earlier key.
    pub left: Vec<Left>,
    /// How many there are.
    pub left_count: u64,
}

/// One rekey.
pub struct Rekey<'a> {
    /// The tree.
    pub fs: &'a Fs,
    /// How far it is.
    pub progress: &'a Progress,
    /// Set to end it.
    pub stop: &'a AtomicBool,
    /// Called with each number of bytes that were sealed again; may take its time.
    pub pace: &'a dyn Fn(u64),
    /// Waits for so long, or until it is told to stop.
    pub wait: &'a dyn Fn(Duration),
}

impl Plan {
    /// What the volume's record has to note.
    fn what(&self) -> RekeyState {
        match (&self.path, self.made_before) {
            (None, None) => RekeyState::All,
            (Some(_), None) => RekeyState::Part,
            // It goes on by itself: what was done is new.
            (_, Some(_)) => RekeyState::None,
        }
    }

    /// Whether a file with this header is to have a key of this epoch, at least.
    fn wants(&self, header: &Header, target: Epoch) -> bool {
        let is_old = self.made_before.is_none_or(|moment| header.made < moment);
        header.resealing.is_some() || (header.epoch < target && is_old)
    }
}

impl Rekey<'_> {
    /// Does it.
    ///
    /// # Errors
    /// [`Stopped`]: everything can be read, and the same goes on later.
    pub fn run(&self, plan: &Plan) -> Result<Outcome, Stopped> {
        let fs = self.fs;
        let mut held = Vec::new();
        let done = self.find(plan, &mut held).and_then(|below| self.below(plan, below.as_ref()));
        held.into_iter().for_each(|ino| fs.forget(ino, 1));
        done
    }

    fn below(&self, plan: &Plan, below: Option<&Place>) -> Result<Outcome, Stopped> {
        let (fs, what) = (self.fs, plan.what());
        fs.sweep_first(self.stop, self.wait)?;
        fs.envelopes.renew();
        let target = fs.volume.begin_rekey(what, plan.anew, &fs.copy_of_volume_key()?)?;
        fs.note_record();
        // Whoever had read the epoch before has finished when this is granted.
        drop(fs.namespace.write());
        self.count(below)?;
        let mut outcome = Outcome::default();
        for _ in 0..ROUNDS {
            let mut files = Files::new(self, plan, target);
            fs.round(below, self.stop, &mut |seen| {
                self.progress.files.fetch_add(1, Ordering::Relaxed);
                files.look(seen)
            })?;
            files.finish()?;
            let before = files.take_before();
            let found = files.into_left();
            outcome = Outcome { left: found.left, left_count: found.left_count, floor_raised: false };
            let older = if what == RekeyState::All { self.look_once_more(target)? } else { 0 };
            if older == 0 && outcome.left_count == 0 {
                fs.volume.end_rekey(what, target, &fs.copy_of_volume_key()?)?;
                fs.note_record();
                outcome.floor_raised = what == RekeyState::All;
                if outcome.floor_raised {
                    // The secrets of before are no use to anybody but whoever has an old copy.
                    before.iter().for_each(|(wrapped, ())| fs.leases.forget(wrapped));
                }
                return Ok(outcome);
            }
            if older <= outcome.left_count {
                return Ok(outcome);
            }
        }
        outcome.left_count = outcome.left_count.max(1);
        Ok(outcome)
    }

    /// Where the path of the plan leads. `held`: the inodes on the way, each to be forgotten once.
    fn find(&self, plan: &Plan, held: &mut Vec<u64>) -> Result<Option<Place>, Stopped> {
        let fs = self.fs;
        let Some((last, above)) = plan.path.as_deref().and_then(|path| path.split_last()) else { return Ok(None) };
        let mut work = Work::new(fs, self.stop, self.wait, &self.progress.unwrapped);
        let mut parent = ROOT;
        for name in above.iter().chain([last]) {
            let entry = match work.until_there(|_| match fs.lookup(parent, name) {
                Err(Error::Errno(libc::ENOENT | libc::ENOTDIR)) => Ok(None),
                other => other.map(Some),
            }) {
                Ok(Some(entry)) => entry,
                Ok(None) => {
                    let message = format!("the volume has no {}", String::from_utf8_lossy(name).escape_debug());
                    return Err(io::Error::new(io::ErrorKind::NotFound, message).into());
                }
                Err(Problem::All(stopped)) => return Err(stopped),
                Err(Problem::File(why) | Problem::Refused(why)) => return Err(io::Error::other(why).into()),
            };
            held.push(entry.stat.ino);
            parent = entry.stat.ino;
        }
        let place = fs.nodes.place(parent).map_err(|error| stopped(self.stop, error))?;
        Ok(Some(place))
    }

    fn count(&self, below: Option<&Place>) -> Result<(), Stopped> {
        self.fs.round(below, self.stop, &mut |seen| {
            self.progress.total.fetch_add(1, Ordering::Relaxed);
            self.progress.total_bytes.fetch_add(size(&seen.stat), Ordering::Relaxed);
            Ok(())
        })
    }

    /// Step 6: how many headers are of an earlier epoch, or between two.
    fn look_once_more(&self, target: Epoch) -> Result<u64, Stopped> {
        let (mut older, mut linked) = (0, HashSet::new());
        self.fs.round(None, self.stop, &mut |seen: &Seen<'_>| {
            if seen.stat.nlink > 1 && !linked.insert(seen.stat.ino) {
                return Ok(());
            }
            let store = match there(seen.directory.open_file(seen.entry, false)) {
                Ok(Some(store)) => store,
                Ok(None) => return Ok(()),
                Err(error) => return Err(stopped(self.stop, error)),
            };
            match Unverified::read(&*store) {
                Ok(Found::Header(found)) => older += u64::from(!is_done(found.header(), target)),
                // Damage has been met before; or it is just being made, or has just gone.
                _ if store.inode().stat().is_ok_and(|stat| stat.nlink == 0) => (),
                _ => older += u64::from(self.fs.open_file(seen.stat.ino).is_none()),
            }
            Ok(())
        })?;
        Ok(older)
    }
}

/// Whether everything in the file with this header is of this epoch, or a later one.
fn is_done(header: &Header, target: Epoch) -> bool {
    header.epoch >= target && header.resealing.is_none()
}

/// Bytes of a stored file that are not holes, about.
fn size(stat: &Stat) -> u64 {
    stat.len.0.min(stat.blocks * 512)
}
