//! What a mount does with the log that it finds: replay it. Needs no key. Replaying is idempotent, and the logs are
//! retired only when everything is durable in place, so recovery may itself be cut at any point.
//!
//! 1. read both logs, older first (a crash: nothing has changed);
//! 2. for each file with updates, put the last version of each byte in place and sync it (a crash: some files are
//!    recovered, and will be once more);
//! 3. begin a new log, in the place of the older one, whose header names the batches that went down (a crash before
//!    it is durable: the newer log is still there, and what the older one held is in place);
//! 4. retire the newer one (a crash before: its records are applied once more, before anything else has changed. Were
//!    the older one the last to go, its versions would come back over newer ones).

use super::log::{self, Log, State};
use super::record::{self, Record};
use super::replay::{replay, there};
use super::{Inner, Journal, MAX_OPEN_BATCHES, Target, Update};
use crate::format::PAGE;
use crate::store::{RenameMode, StoreDir, StoreFile};
use crate::units::{FileId, StoredOffset};
use std::collections::HashMap;
use std::io;
use std::sync::Arc;

const LOG_NAMES: [&[u8]; 2] = [b"log-a", b"log-b"];

/// What recovery found and did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recovery {
    /// The volume had not been unmounted.
    pub crashed: bool,
    /// Updates that were found whole.
    pub updates: u64,
    /// Files that were brought up to date.
    pub files: u64,
    /// Files that are gone or have been replaced since, so that their updates mean nothing any more.
    pub gone: u64,
    /// Position in a log at which a record is damaged although later ones are whole: its changes are lost.
    pub damaged_at: Vec<u64>,
}

/// Opens the log in `dir`, made with two files of `len` bytes if there is none, and replays it into the tree.
///
/// # Errors
/// Those of the store; then nothing is lost and the next attempt starts over.
pub fn open(dir: &dyn StoreDir, tree: &dyn StoreDir, len: u64) -> io::Result<(Journal, Recovery)> {
    for entry in dir.list()? {
        // Left over from a crash while a log was being made.
        if entry.name.ends_with(b".new") {
            dir.unlink(&entry.name)?;
        }
    }
    let mut files = Vec::new();
    for name in LOG_NAMES {
        files.push(open_log(dir, name, len)?);
    }
    let mut found: Vec<(usize, State, Vec<Record>)> = Vec::new();
    let mut recovery = Recovery::default();
    for (which, file) in files.iter().enumerate() {
        found.extend(read_log(file, &mut recovery)?.map(|(state, records)| (which, state, records)));
    }
    found.sort_by_key(|(_, state, _)| state.sequence);
    let newest = found.last().map_or(1, |(which, ..)| *which);
    let mut state = found.last().map_or_else(State::default, |(_, state, _)| state.clone());
    recovery.crashed = !found.is_empty() && !state.clean;
    let mut updates: HashMap<FileId, Vec<(Target, Update)>> = HashMap::new();
    for record in found.into_iter().flat_map(|(.., records)| records) {
        match record {
            Record::Batch(batch) => state.committed_batch = state.committed_batch.max(batch),
            Record::Update(target, update) => {
                recovery.updates += 1;
                updates.entry(target.file).or_default().push((target, update));
            }
        }
    }
    replay(tree, updates, &mut recovery)?;
    if recovery.crashed {
        // Everything younger than the last commit went down: the batch that was being committed, if any, and the one
        // that had begun meanwhile. A batch number is never used twice.
        let first = state.committed_batch + 1;
        state.committed_batch += MAX_OPEN_BATCHES;
        state.crashed.add(first, state.committed_batch);
    }
    state.sequence += 1;
    state.clean = false;
    let mut logs = files.into_iter().map(Log::new).collect::<io::Result<Vec<_>>>()?;
    let active = 1 - newest;
    logs[active].recycle(&state)?;
    logs[newest].retire()?;
    let journal = Journal::of(Inner::of(logs, active, &state), 0);
    Ok((journal, recovery))
}

/// The log of a mount that changes nothing, and whether the volume was unmounted: if not, it has to be recovered first.
/// Nothing can be appended to it.
///
/// # Errors
/// Those of the store.
pub fn read_only(dir: &dyn StoreDir) -> io::Result<(Journal, bool)> {
    let mut found = Vec::new();
    let mut logs = Vec::new();
    for name in LOG_NAMES {
        // A volume that was never mounted has none.
        let Some(file) = there(dir.open_file(name, false))? else { continue };
        found.extend(read_header(&*file)?);
        logs.push(Log::new(file)?);
    }
    let state = found.into_iter().max_by_key(|state| state.sequence);
    let clean = state.as_ref().is_none_or(|state| state.clean);
    let state = state.unwrap_or_default();
    Ok((Journal::of(Inner::of(logs, 0, &state), libc::EROFS), clean))
}

/// The last batch that was committed, as the logs say before anything is recovered; 0 if they say nothing.
///
/// # Errors
/// Those of the store.
pub fn committed(dir: &dyn StoreDir) -> io::Result<u64> {
    let mut committed = 0;
    for name in LOG_NAMES {
        let Some(file) = there(dir.open_file(name, false))? else { continue };
        let Some((state, records)) = read_log(&file, &mut Recovery::default())? else { continue };
        committed = committed.max(state.committed_batch);
        for record in records {
            committed = committed.max(if let Record::Batch(batch) = record { batch } else { 0 });
        }
    }
    Ok(committed)
}

/// What the logs look like, without their records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inspection {
    /// The volume was unmounted, or never mounted: there is nothing to be recovered.
    pub clean: bool,
    /// There are logs that were in use, and none has a header that can be read: nobody can tell what they held.
    pub damaged: bool,
    /// Grows with each mount that can write.
    pub sequence: u64,
}

/// Looks at the logs and changes nothing.
///
/// # Errors
/// Those of the store.
pub fn inspect(dir: &dyn StoreDir) -> io::Result<Inspection> {
    let mut newest: Option<State> = None;
    let mut damaged = false;
    for name in LOG_NAMES {
        let Some(file) = there(dir.open_file(name, false))? else { continue };
        match read_header(&*file)? {
            Some(state) if newest.as_ref().is_none_or(|newest| state.sequence > newest.sequence) => {
                newest = Some(state);
            }
            Some(_) => (),
            None => {
                let mut page = [0; PAGE];
                file.read_at(&mut page, StoredOffset(0))?;
                // One that is retired, or was never used, is zeros. A torn one beside a whole one is what a crash leaves.
                damaged |= page != [0; PAGE];
            }
        }
    }
    Ok(match newest {
        Some(state) => Inspection { clean: state.clean, damaged: false, sequence: state.sequence },
        None => Inspection { clean: true, damaged, sequence: 0 },
    })
}

/// Opens a log file; a missing one is made under another name first, so that a short one is never found.
fn open_log(dir: &dyn StoreDir, name: &[u8], len: u64) -> io::Result<Arc<dyn StoreFile>> {
    match dir.open_file(name, true) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let making = [name, b".new"].concat();
            log::create(dir, &making, len)?;
            dir.rename(&making, dir, name, RenameMode::NoReplace)?;
            dir.sync()?;
            dir.open_file(name, true)
        }
        other => other,
    }
}

fn read_header(file: &dyn StoreFile) -> io::Result<Option<State>> {
    let mut page = [0; PAGE];
    let read = file.read_at(&mut page, StoredOffset(0))?;
    if read == PAGE { log::decode(&page) } else { Ok(None) }
}

/// The header and the records of one log, `None` if it is empty.
fn read_log(file: &Arc<dyn StoreFile>, recovery: &mut Recovery) -> io::Result<Option<(State, Vec<Record>)>> {
    let Some(state) = read_header(&**file)? else { return Ok(None) };
    if state.clean {
        // There is nothing behind the header, and a mount should not have to read all of it to see that.
        return Ok(Some((state, Vec::new())));
    }
    let len = usize::try_from(file.inode().stat()?.len.0).map_err(|_| io::ErrorKind::FileTooLarge)?;
    let mut bytes = vec![0; len];
    let len = file.read_at(&mut bytes, StoredOffset(0))?;
    bytes.truncate(len);
    let mut records = Vec::new();
    let mut position = PAGE;
    while let Some((record, len)) = record_at(&bytes, position, state.sequence) {
        records.push(record.0);
        position += len;
    }
    if let Some(later) = first_record_after(&bytes, position, state.sequence) {
        // A record beyond the gap says how much of the log was durable when it was appended. A gap before that
        // was made by damage, not by a crash; what lies beyond it is still good.
        let mut next = later;
        let mut damaged = false;
        let mut beyond = Vec::new();
        while let Some((record, len)) = record_at(&bytes, next, state.sequence) {
            damaged |= record.1.synced > position as u64;
            beyond.push(record.0);
            next += len;
        }
        if damaged {
            records.extend(beyond);
            recovery.damaged_at.push(position as u64);
        }
    }
    Ok(Some((state, records)))
}

fn record_at(bytes: &[u8], position: usize, sequence: u64) -> Option<((Record, record::Place), usize)> {
    let (record, place, len) = record::decode(bytes.get(position..)?)?;
    (place.sequence == sequence && place.position == position as u64).then_some(((record, place), len))
}

fn first_record_after(bytes: &[u8], position: usize, sequence: u64) -> Option<usize> {
    (position + record::ALIGN..bytes.len())
        .step_by(record::ALIGN)
        .find(|at| bytes[*at..].starts_with(&record::MAGIC) && record_at(bytes, *at, sequence).is_some())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Store;
    use crate::store::dir::DirStore;

    struct Volume {
        _keep: tempfile::TempDir,
        root: Arc<dyn StoreDir>,
    }

    impl Volume {
        fn new() -> Self {
            let keep = tempfile::tempdir().unwrap();
            let root = DirStore::open(keep.path()).unwrap().root();
            root.make_dir(b"journal", 0o700).unwrap();
            root.make_dir(b"tree", 0o700).unwrap();
            Self { _keep: keep, root }
        }

        fn open(&self) -> (Journal, Recovery) {
            let tree = self.root.open_dir(b"tree").unwrap();
            open(&*self.root.open_dir(b"journal").unwrap(), &*tree, 4 << 20).unwrap()
        }

        fn file(&self, name: &[u8], id: u8, len: usize) -> (Arc<dyn StoreFile>, Target) {
            let file = self.root.open_dir(b"tree").unwrap().create_file(name, 0o600).unwrap();
            file.write_at(&vec![0; len], StoredOffset(0)).unwrap();
            file.write_at(&[id; 16], StoredOffset(16)).unwrap();
            let ino = file.inode().stat().unwrap().ino;
            (file, Target { file: FileId([id; 16]), ino, path: name.to_vec() })
        }
    }

    fn write(at: u64, bytes: &[u8], stored_len: u64) -> Update {
        Update { stored_len: StoredOffset(stored_len), writes: vec![(StoredOffset(at), bytes.into())], voids: vec![] }
    }

    fn read(file: &dyn StoreFile) -> Vec<u8> {
        let mut bytes = vec![0; 1 << 16];
        let len = file.read_at(&mut bytes, StoredOffset(0)).unwrap();
        bytes.truncate(len);
        bytes
    }

    fn commit(journal: &Journal, target: &Target, update: &Update) -> super::super::Appended {
        let appended = journal.append(target, update).unwrap();
        journal.sync_appended(&appended).unwrap();
        appended
    }

    #[test]
    fn durable_updates_are_replayed_and_a_second_recovery_finds_nothing() {
        let volume = Volume::new();
        let (file, target) = volume.file(b"f", 1, 8192);
        let (journal, first) = volume.open();
        assert_eq!(first, Recovery::default());
        // Dropped without having been applied: the crash.
        let _ = commit(&journal, &target, &write(4096, b"new", 8192));
        drop(journal);
        let (journal, recovery) = volume.open();
        assert_eq!((recovery.crashed, recovery.updates, recovery.files), (true, 1, 1));
        assert_eq!(&read(&*file)[4096..4099], b"new");
        assert_eq!(journal.crashed().ranges(), [(1, 2)]);
        assert_eq!(journal.batch(), 3);
        journal.close().unwrap();
        let (journal, recovery) = volume.open();
        assert_eq!((recovery.crashed, recovery.updates), (false, 0));
        assert_eq!(journal.crashed().ranges(), [(1, 2)], "remembered until the files are checked");
    }

    #[test]
    fn later_updates_win_and_what_was_cut_off_or_voided_stays_away() {
        let volume = Volume::new();
        let (file, target) = volume.file(b"f", 1, 12_288);
        file.write_at(b"fresh", StoredOffset(8192)).unwrap();
        file.write_at(b"fresh", StoredOffset(4096)).unwrap();
        let (journal, _) = volume.open();
        let _ = commit(&journal, &target, &write(4096, b"one!!", 12_288));
        let _ = commit(&journal, &target, &write(8192, b"cut!!", 12_288));
        let _ = commit(&journal, &target, &write(100, b"two", 8192));
        let void = Update { voids: vec![(StoredOffset(4096), 4096)], ..write(101, b"W", 12_288) };
        let _ = commit(&journal, &target, &void);
        drop(journal);
        volume.open();
        let bytes = read(&*file);
        assert_eq!(&bytes[100..103], b"tWo");
        assert_eq!(&bytes[4096..4101], b"fresh", "an earlier write into a voided range is not replayed");
        assert_eq!(&bytes[8192..8197], b"fresh", "an earlier write beyond a cut is not replayed");
        assert_eq!(bytes.len(), 12_288);
    }

    #[test]
    fn renamed_files_are_found_and_replaced_ones_left_alone() {
        let volume = Volume::new();
        let (moved, moved_target) = volume.file(b"moved", 1, 8192);
        let (_, gone_target) = volume.file(b"gone", 2, 8192);
        let (journal, _) = volume.open();
        let _ = commit(&journal, &moved_target, &write(4096, b"new", 8192));
        let _ = commit(&journal, &gone_target, &write(4096, b"new", 8192));
        let tree = volume.root.open_dir(b"tree").unwrap();
        tree.make_dir(b"below", 0o700).unwrap();
        let below = tree.open_dir(b"below").unwrap();
        tree.rename(b"moved", &*below, b"elsewhere", RenameMode::Replace).unwrap();
        tree.unlink(b"gone").unwrap();
        let (other, _) = volume.file(b"gone", 3, 8192);
        drop(journal);
        let (_, recovery) = volume.open();
        assert_eq!((recovery.files, recovery.gone), (1, 1));
        assert_eq!(&read(&*moved)[4096..4099], b"new");
        assert_eq!(&read(&*other)[4096..4099], [0; 3]);
    }

    #[test]
    fn a_torn_tail_is_cut_and_a_damaged_middle_is_reported() {
        for (torn, damaged) in [(2, false), (0, true)] {
            let volume = Volume::new();
            let (file, target) = volume.file(b"f", 1, 8192);
            let (journal, _) = volume.open();
            for number in 0..3_u8 {
                let _ = commit(&journal, &target, &write(4096 + u64::from(number), &[number + 1], 8192));
            }
            drop(journal);
            let len = record::update_len(&target, &write(4096, &[1], 8192)) as u64;
            let log = volume.root.open_dir(b"journal").unwrap().open_file(b"log-a", true).unwrap();
            log.write_at(&[0xFF], StoredOffset(PAGE as u64 + torn * len + 70)).unwrap();
            let (_, recovery) = volume.open();
            assert_eq!(!recovery.damaged_at.is_empty(), damaged);
            let expected: &[u8] = if damaged { &[0, 2, 3] } else { &[1, 2, 0] };
            assert_eq!(&read(&*file)[4096..4099], expected);
        }
    }

    #[test]
    fn a_file_that_was_made_read_only_is_recovered_and_stays_read_only() {
        let volume = Volume::new();
        let (file, target) = volume.file(b"f", 1, 8192);
        let (journal, _) = volume.open();
        let _ = commit(&journal, &target, &write(4096, b"new", 8192));
        file.inode().set_permissions(0o400).unwrap();
        drop(journal);
        let (_, recovery) = volume.open();
        assert_eq!((recovery.files, recovery.gone), (1, 0));
        assert_eq!(&read(&*file)[4096..4099], b"new");
        assert_eq!(file.inode().stat().unwrap().permissions, 0o400);
    }

    #[test]
    fn recovery_that_fails_anywhere_gives_up_no_update() {
        use crate::store::fault::{Fault, FaultStore, Faults, Plan};
        for at in 0.. {
            let store = crate::store::mem::MemStore::default();
            for name in [b"journal".as_slice(), b"tree"] {
                store.root().make_dir(name, 0o700).unwrap();
            }
            let attempt = |store: &dyn Store| {
                let root = store.root();
                open(&*root.open_dir(b"journal")?, &*root.open_dir(b"tree")?, 256 << 10)
            };
            let tree = store.root().open_dir(b"tree").unwrap();
            tree.make_dir(b"d", 0o700).unwrap();
            let file = tree.open_dir(b"d").unwrap().create_file(b"f", 0o600).unwrap();
            file.write_at(&[1; 8192], StoredOffset(0)).unwrap();
            let ino = file.inode().stat().unwrap().ino;
            let target = Target { file: FileId([1; 16]), ino, path: b"d/old".to_vec() };
            let (journal, _) = attempt(&store).unwrap();
            let _ = commit(&journal, &target, &write(4096, b"new", 8192));
            drop(journal);
            let faults = Faults::default();
            let faulty = FaultStore::new(Arc::new(store.clone()), faults.clone());
            let fault = Fault::Errno(libc::EIO);
            faults.plan(Some(Plan { at, lasting: false, only_changes: false, fault }));
            let first = attempt(&faulty);
            if faults.failed() == 0 {
                assert!(at > 15, "{at} operations only");
                return;
            }
            assert!(first.is_err(), "operation {at} failed, and nobody was told");
            let (_, recovery) = attempt(&store).unwrap();
            assert!(recovery.files == 1 || read(&*file)[4096..4099] == *b"new", "operation {at}");
            assert_eq!(&read(&*file)[4096..4099], b"new", "operation {at}");
        }
    }

    #[test]
    fn the_log_is_recycled_again_and_again_and_nothing_is_lost() {
        let volume = Volume::new();
        let (file, target) = volume.file(b"f", 1, 8192);
        let (journal, _) = volume.open();
        let journal = Arc::new(journal);
        let payload = vec![5; 1 << 20];
        // Several times both logs, from several threads.
        std::thread::scope(|scope| {
            for thread in 0..4_u64 {
                let (journal, file, target, payload) = (&journal, &file, &target, &payload);
                scope.spawn(move || {
                    for _ in 0..20 {
                        let at = 8192 + thread * (1 << 20);
                        let update = write(at, payload, 8192 + (4 << 20));
                        let appended = commit(journal, target, &update);
                        file.write_at(payload, StoredOffset(at)).unwrap();
                        journal.applied(appended, target.ino, Some(file));
                    }
                });
            }
        });
        let last = commit(&journal, &target, &write(4096, b"last", 8192 + (4 << 20)));
        let _ = last;
        drop(journal);
        let (_, recovery) = volume.open();
        assert_eq!(recovery.files, 1);
        assert_eq!(&read(&*file)[4096..4100], b"last");
        assert_eq!(file.inode().stat().unwrap().len.0, 8192 + (4 << 20));
    }

    #[test]
    fn the_two_batches_that_may_be_in_use_are_crashed_whatever_became_of_them() {
        let volume = Volume::new();
        let (journal, _) = volume.open();
        journal.commit_batch(journal.begin_batch()).unwrap();
        // The second one could not be committed, and is begun anew.
        assert_eq!((journal.begin_batch(), journal.begin_batch(), journal.batch()), (2, 2, 3));
        drop(journal);
        let (journal, _) = volume.open();
        assert_eq!((journal.crashed().ranges(), journal.batch()), (&[(2, 3)][..], 4));
        assert!(journal.is_committed(1) && !journal.is_committed(2) && !journal.is_committed(3));
    }

    #[test]
    fn a_new_header_that_is_torn_leaves_the_old_one() {
        for close in [false, true] {
            let volume = Volume::new();
            let logs = volume.root.open_dir(b"journal").unwrap();
            let page = |which: usize| {
                let mut page = [0; PAGE];
                logs.open_file(LOG_NAMES[which], true).unwrap().read_at(&mut page, StoredOffset(0)).unwrap();
                page
            };
            let put = |which: usize, page: &[u8]| {
                logs.open_file(LOG_NAMES[which], true).unwrap().write_at(page, StoredOffset(0)).unwrap();
            };
            // Twice, so that there are crashed batches to be remembered.
            drop(volume.open());
            let (journal, _) = volume.open();
            let before = [page(0), page(1)];
            if close {
                journal.close().unwrap();
            } else {
                drop(journal);
                drop(volume.open());
            }
            // Only a part of the header that was written first reached the disk, and nothing that came after.
            let new = if page(0) == [0; PAGE] { 1 } else { 0 };
            let torn = [&page(new)[..512], &before[new][512..]].concat();
            put(new, &torn);
            put(1 - new, &before[1 - new]);
            let (journal, recovery) = volume.open();
            assert!(recovery.crashed);
            assert!(journal.crashed().contains(1) && journal.crashed().contains(2));
        }
    }
}
