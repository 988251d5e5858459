//! One file on a store that loses power: random work, cut after every change, recovered, and compared with what the
//! file was at any time. A failure prints the seed of the work and of the cut.

use super::*;
use crate::crypto::Secret32;
use crate::crypto::derive::Dek;
use crate::format::ChunkSize;
use crate::format::header::Envelope;
use crate::format::tags::NO_BLOCK;
use crate::journal::recovery;
use crate::kms::WrapAlgorithm;
use crate::store::fault::{Fault, FaultStore, Faults, Plan};
use crate::store::mem::{MemStore, Snapshot};
use crate::store::{Store, StoreDir};
use crate::units::FileId;

const FILE: FileId = FileId([7; 16]);
const VOLUME: VolumeId = VolumeId([8; 16]);
/// Small, so that the logs take turns often.
const LOG_LEN: u64 = 160 * 1024;
/// Where something is different: ends of chunks, of the header's entries, of the first tag block.
const PLACES: [u64; 7] = [0, 4096, 8192, 20_000, 63 * 4096, 64 * 4096, 320 * 4096];

/// Numbers that look random, again and again the same.
pub(crate) struct Draws(pub u64);

impl Draws {
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % end
    }
}

#[derive(Clone, Debug)]
enum Op {
    Write(u64, usize, u8),
    SetLen(u64),
    Punch(u64, u64),
    Settle,
    Sync(bool),
    Commit,
    Batch,
    Reopen,
    /// The next step to another key, of so many bytes.
    Rekey(u64),
}

fn draw_op(draws: &mut Draws, places: &[u64]) -> Op {
    let place = |draws: &mut Draws| {
        let at = places[draws.below(places.len() as u64) as usize];
        [at, at + draws.below(9000), at.saturating_sub(draws.below(5000))][draws.below(3) as usize]
    };
    match draws.below(24) {
        0..=7 => {
            let len = [1 + draws.below(200), 4096, 1 + draws.below(14_000)][draws.below(3) as usize];
            Op::Write(place(draws), len as usize, draws.below(255) as u8 + 1)
        }
        8..=9 => Op::SetLen(place(draws)),
        10..=11 => {
            let (a, b) = (place(draws), place(draws));
            Op::Punch(a.min(b), a.max(b))
        }
        12..=14 => Op::Sync(draws.below(2) == 0),
        15 => Op::Settle,
        16 => Op::Commit,
        17 => Op::Batch,
        18..=21 => Op::Rekey(1 + draws.below(6 * 4096)),
        _ => Op::Reopen,
    }
}

/// A key of this epoch, of an envelope that it shares with none before.
fn dek(epoch: Epoch) -> Dek {
    let secret = |byte| Secret32::take(&mut [byte; 32]);
    Dek::derive(&secret(1 + epoch.0 as u8), &secret(2), VOLUME, FILE, epoch)
}

fn envelope(epoch: Epoch) -> Envelope {
    let blob = vec![1 + epoch.0 as u8; 72];
    Envelope { kek: KekGeneration(0), algorithm: WrapAlgorithm::LocalAes256Gcm, blob }
}

fn keys(header: &Header) -> Arc<Keys> {
    assert_eq!(header.envelope, envelope(header.epoch));
    Arc::new(Keys::of(dek(header.epoch), VOLUME, header))
}

fn rekey(file: &File, most: u64) -> Result<bool, Error> {
    if !file.is_resealing() {
        let epoch = Epoch(file.header().epoch.0 + 1);
        let new = NewKey { dek: dek(epoch), epoch, envelope: envelope(epoch), recovery: None, made: 7 };
        file.begin_rekey(new)?;
    }
    Ok(file.rekey_step(most)?.done)
}

fn header() -> Header {
    Header {
        chunk_size: ChunkSize::DEFAULT,
        file: FILE,
        epoch: Epoch(0),
        envelope: envelope(Epoch(0)),
        recovery: None,
        len: PlainOffset(0),
        generation: 0,
        batch: 0,
        root: NO_BLOCK,
        made: 0,
        resealing: None,
    }
}

/// A volume of one file that is mounted, as far as files know of mounts.
struct Mount {
    store: Arc<dyn Store>,
    tree: Arc<dyn StoreDir>,
    context: Arc<Context>,
}

impl Mount {
    fn make(store: &dyn Store) {
        for name in [b"tree".as_slice(), b"journal"] {
            store.root().make_dir(name, 0o700).unwrap();
        }
    }

    fn open(store: Arc<dyn Store>) -> io::Result<Self> {
        let tree = store.root().open_dir(b"tree")?;
        let (journal, recovery) = recovery::open(&*store.root().open_dir(b"journal")?, &*tree, LOG_LEN)?;
        assert!(recovery.damaged_at.is_empty(), "a crash looks like damage of the log");
        let context = Context {
            volume: VOLUME,
            geometry: Geometry::new(ChunkSize::DEFAULT),
            kek_floor: KekGeneration(0),
            epoch_floor: Epoch(0),
            journal: Arc::new(journal),
            ledger: std::sync::OnceLock::new(),
            tags: crate::file::TagCache::default(),
        };
        Ok(Self { store, tree, context: Arc::new(context) })
    }

    fn target(store: &dyn StoreFile) -> Result<Target, Error> {
        Ok(Target { file: FILE, ino: store.inode().stat()?.ino, path: b"file".to_vec() })
    }

    fn create(&self) -> Result<File, Error> {
        let store = self.tree.create_file(b"file", 0o600)?;
        let target = Self::target(&*store)?;
        File::create(Arc::clone(&self.context), store, target, header(), keys(&header()))
    }

    /// The file, or `None` if there is none or one of which nothing was ever promised, as the tree decides it.
    fn reopen(&self) -> Result<Option<File>, Error> {
        let store = match self.tree.open_file(b"file", true) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other?,
        };
        let Found::Header(found) = Unverified::read(&*store)? else { return Ok(None) };
        let batch = found.header().batch;
        let (target, keys) = (Self::target(&*store)?, keys(found.header()));
        match File::open(Arc::clone(&self.context), Arc::clone(&store), target, *found, keys) {
            Err(Error::Damaged(_)) if self.context.journal.crashed().contains(batch) => Ok(None),
            other => other.map(Some),
        }
    }

    /// What the tree does every few seconds.
    fn batch(&self, file: &File) -> Result<(), Error> {
        let batch = self.context.journal.begin_batch();
        let prepared = file.prepare_batch(batch)?;
        self.store.sync_all()?;
        prepared.finish()?;
        Ok(self.context.journal.commit_batch(batch)?)
    }
}

fn contents(file: &File) -> Result<Vec<u8>, Error> {
    let mut out = Vec::new();
    file.read(PlainOffset(0), usize::MAX >> 1, &mut out)?;
    Ok(out)
}

/// What the file was, and what of it was promised.
#[derive(Default)]
struct Model {
    versions: Vec<Vec<u8>>,
    /// The version that was last acknowledged as durable.
    promised: Option<usize>,
    /// Versions that somebody tried to commit since.
    tried: Vec<usize>,
    /// Of a file that is fresh: the version that was last put in place whole, if nothing changed since.
    settled: Option<usize>,
}

impl Model {
    fn new() -> Self {
        Self { versions: vec![Vec::new()], ..Self::default() }
    }

    fn now(&self) -> usize {
        self.versions.len() - 1
    }

    fn change(&mut self, act: impl FnOnce(&mut Vec<u8>)) {
        let mut next = self.versions[self.now()].clone();
        act(&mut next);
        self.versions.push(next);
    }

    fn promise(&mut self) {
        self.promised = Some(self.now());
        self.tried.clear();
    }

    /// Whether this may be found after a cut; `None` is a file of which nothing is there.
    fn allows(&self, found: Option<&Vec<u8>>, power: bool) -> Result<(), String> {
        let is = |version: &usize| found == Some(&self.versions[*version]);
        let allowed = match (self.promised, self.settled) {
            (Some(promised), _) => is(&promised) || self.tried.iter().any(is),
            (None, Some(settled)) if !power => is(&settled) || self.tried.iter().any(is),
            _ => found.is_none() || found.is_some_and(|found| found.is_empty() || self.versions.contains(found)),
        };
        if allowed {
            return Ok(());
        }
        let known = found.and_then(|found| self.versions.iter().position(|version| version == found));
        Err(format!(
            "found version {known:?} ({:?} bytes), promised {:?}, tried {:?}, settled {:?}, now {}",
            found.map(Vec::len),
            self.promised,
            self.tried,
            self.settled,
            self.now()
        ))
    }
}

#[derive(Default)]
struct Tally {
    cuts: u64,
    recoveries_cut: u64,
    /// Files that were found between two keys.
    went_on: u64,
}

/// Recovers and compares. Now and then recovery is cut after each of its own changes, too, and what was found is
/// worked on, so that a version that only looks right does not get away.
fn check(found: MemStore, model: &Model, power: bool, seed: u64, depth: u32, tally: &mut Tally) {
    tally.cuts += 1;
    let again = seed.is_multiple_of(7) && depth == 0;
    if again {
        found.record();
    }
    let context = |what: &str| format!("{what}: cut {seed}, depth {depth}");
    let store = found.clone();
    let result = Mount::open(Arc::new(found)).map_err(Error::from).and_then(|mount| {
        let file = mount.reopen()?;
        let content = file.as_ref().map(contents).transpose()?;
        Ok((mount, file, content))
    });
    let (mount, file, content) = result.unwrap_or_else(|error| panic!("{}", context(&error.to_string())));
    if let Err(why) = model.allows(content.as_ref(), power) {
        panic!("{}", context(&why));
    }
    for (number, snapshot) in store.recorded().into_iter().enumerate() {
        tally.recoveries_cut += 1;
        check(snapshot.cut(seed + number as u64), model, power, seed + 1, depth + 1, tally);
        check(snapshot.killed(), model, power, seed + 2, depth + 1, tally);
    }
    let (Some(file), Some(content)) = (file, content) else { return };
    if seed.is_multiple_of(4) && file.is_resealing() {
        // Whoever goes on with it comes to the end.
        tally.went_on += 1;
        while !rekey(&file, 3 * 4096).unwrap_or_else(|error| panic!("{}", context(&error.to_string()))) {
            file.commit().unwrap();
        }
        file.commit().unwrap();
        assert!(contents(&file).unwrap() == content, "{}", context("another content with another key"));
    }
    if seed.is_multiple_of(3) {
        let mut after = Model { versions: vec![content], ..Model::default() };
        after.versions[0].extend_from_slice(b"more");
        let written = file.write(PlainOffset(after.versions[0].len() as u64 - 4), b"more");
        written.and_then(|()| file.sync(false)).unwrap_or_else(|error| panic!("{}", context(&error.to_string())));
        after.promise();
        drop((file, mount));
        let again = Mount::open(Arc::new(store.snapshot().cut(seed))).unwrap();
        let content = again.reopen().and_then(|file| file.as_ref().map(contents).transpose());
        let content = content.unwrap_or_else(|error| panic!("{}", context(&format!("after more: {error}"))));
        after.allows(content.as_ref(), true).unwrap_or_else(|why| panic!("{}", context(&format!("after more: {why}"))));
    }
}

fn act(mount: &Mount, file: &mut File, model: &mut Model, op: &Op) -> Result<(), Error> {
    match *op {
        Op::Write(at, len, byte) => {
            let data: Vec<u8> = (0..len).map(|n| byte.wrapping_add(n as u8)).collect();
            model.change(|bytes| {
                bytes.resize(bytes.len().max(at as usize + len), 0);
                bytes[at as usize..at as usize + len].copy_from_slice(&data);
            });
            file.write(PlainOffset(at), &data)
        }
        Op::SetLen(len) => {
            model.change(|bytes| bytes.resize(len as usize, 0));
            file.set_len(PlainOffset(len))
        }
        Op::Punch(from, to) => {
            model.change(|bytes| {
                let to = bytes.len().min(to as usize);
                if let Some(hole) = bytes.get_mut(from as usize..to) {
                    hole.fill(0);
                }
            });
            file.punch(PlainOffset(from), PlainOffset(to))
        }
        Op::Settle => file.settle(),
        Op::Sync(attributes) => file.sync(attributes),
        Op::Commit => file.commit(),
        Op::Batch => mount.batch(file),
        Op::Reopen => {
            file.settle()?;
            if file.waits_for_commit() {
                file.commit()?;
            }
            *file = mount.reopen()?.expect("nothing happened to it");
            Ok(())
        }
        Op::Rekey(most) => rekey(file, most).map(drop),
    }
}

/// Random work of this seed. Each change of the store is followed by `cuts` power cuts and one kill.
fn crash(seed: u64, places: &[u64], ops: usize, cuts: u64, tally: &mut Tally) {
    let store = MemStore::default();
    Mount::make(&store);
    let mount = Mount::open(Arc::new(store.clone())).unwrap();
    store.sync_all().unwrap();
    store.record();
    let mut draws = Draws(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
    let mut model = Model::new();
    let mut file = mount.create().unwrap();
    let mut cut = seed << 20;
    let mut look = |model: &Model, store: &MemStore, op: &dyn fmt::Debug| {
        let snapshots: Vec<Snapshot> = store.recorded();
        let count = snapshots.len();
        for (number, snapshot) in snapshots.into_iter().enumerate() {
            let context = format!("work {seed}: {op:?}, after {} ({number} of {count})", snapshot.after);
            let checked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                for _ in 0..cuts {
                    cut += 1;
                    check(snapshot.cut(cut), model, true, cut, 0, tally);
                }
                check(snapshot.killed(), model, false, cut, 0, tally);
            }));
            assert!(checked.is_ok(), "{context}");
        }
    };
    look(&model, &store, &"create");
    for number in 0..ops {
        let op = draw_op(&mut draws, places);
        let fresh = file.state.read().mode == Mode::Fresh;
        let committed = matches!(op, Op::Sync(_) | Op::Commit | Op::Batch)
            || (matches!(op, Op::Reopen) && !fresh && file.waits_for_commit())
            // It has to be durable before it gets another key.
            || (matches!(op, Op::Rekey(_)) && fresh);
        model.tried.extend(committed.then_some(model.now()));
        if fresh && matches!(op, Op::Write(..) | Op::SetLen(_) | Op::Punch(..)) {
            model.settled = None;
        }
        act(&mount, &mut file, &mut model, &op).unwrap_or_else(|error| panic!("work {seed}, {number} {op:?}: {error}"));
        look(&model, &store, &(number, &op));
        if committed {
            model.promise();
        } else if fresh && matches!(op, Op::Settle | Op::Reopen) {
            model.settled = Some(model.now());
        }
        assert!(contents(&file).unwrap() == model.versions[model.now()], "work {seed}, {number} {op:?}: differs");
    }
    model.tried.push(model.now());
    mount.batch(&file).unwrap();
    look(&model, &store, &"last batch");
    model.promise();
    mount.context.journal.close().unwrap();
    look(&model, &store, &"close");
}

fn many(seeds: std::ops::Range<u64>, places: &[u64], ops: usize, cuts: u64) {
    let mut tally = Tally::default();
    for seed in seeds {
        crash(seed, places, ops, cuts, &mut tally);
    }
    let Tally { cuts, recoveries_cut, went_on } = tally;
    println!("{cuts} cuts, {recoveries_cut} of them of a recovery, {went_on} went on to the other key");
    assert!(went_on > 0);
}

#[test]
fn a_small_file_is_one_of_its_versions_after_every_cut_and_never_an_older_one_than_promised() {
    many(1..18, &PLACES[..4], 40, 2);
}

#[test]
fn a_file_with_tag_blocks_is_too() {
    many(1000..1012, &PLACES, 30, 2);
}

/// Whether every byte is the old or the new one, or zero where the file grew.
fn is_mixture(found: &[u8], old: &[u8], new: &[u8]) -> bool {
    let least = old.len().min(new.len());
    let byte = |bytes: &[u8], at: usize| bytes.get(at).copied().unwrap_or(0);
    found.len() >= least
        && found.len() <= old.len().max(new.len()).next_multiple_of(4096)
        && found.iter().enumerate().all(|(at, found)| *found == byte(old, at) || *found == byte(new, at))
}

/// Random work, of which one operation on the store fails, or all from then on. Returns whether
/// the work got so far.
fn fail(seed: u64, plan: Plan) -> bool {
    let context = format!("work {seed}, {plan:?}");
    let store = MemStore::default();
    Mount::make(&store);
    let faults = Faults::default();
    let mount = Mount::open(Arc::new(FaultStore::new(Arc::new(store.clone()), faults.clone()))).unwrap();
    store.sync_all().unwrap();
    let mut draws = Draws(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
    let mut model = Model::new();
    let mut file = mount.create().unwrap();
    let mut fine = true;
    faults.plan(Some(plan));
    for number in 0..14 {
        let op = match draw_op(&mut draws, &PLACES[..5]) {
            Op::Reopen => Op::Settle,
            op => op,
        };
        let before = model.versions[model.now()].clone();
        let fresh = file.is_fresh();
        let failed = faults.failed();
        let result = act(&mount, &mut file, &mut model, &op);
        assert!(result.is_ok() || faults.failed() > failed || !fine, "{context}: {number} {op:?} fails for no reason");
        if let Err(error) = &result {
            fine = false;
            let not_found = Error::Damaged(Damage::Length).to_string();
            assert!(error.to_string() != not_found, "{context}: {number} {op:?}: {error}");
        }
        let commits = matches!(op, Op::Sync(_) | Op::Commit | Op::Batch) || (fresh && matches!(op, Op::Rekey(_)));
        // What is readable now, once the disk is well again, is what counts.
        faults.pause(true);
        let now = contents(&file).unwrap_or_else(|error| panic!("{context}: {number} {op:?}: unreadable: {error}"));
        let expected = &model.versions[model.now()];
        let right = if result.is_ok() { now == *expected } else { is_mixture(&now, &before, expected) };
        assert!(
            right,
            "{context}: {number} {op:?}: {} bytes, were {}, wanted {}",
            now.len(),
            before.len(),
            expected.len()
        );
        let last = model.now();
        model.versions[last] = now;
        if commits && result.is_ok() {
            model.promise();
        } else if commits {
            model.tried.push(last);
        }
        faults.pause(false);
    }
    let reached = faults.failed() > 0;
    faults.plan(None);
    let now = model.versions[model.now()].clone();
    let result = mount.batch(&file);
    model.tried.push(model.now());
    if result.is_ok() {
        model.promise();
    }
    assert!(contents(&file).unwrap() == now, "{context}: at the end");
    drop(file);
    if result.is_ok() && mount.context.journal.close().is_ok() {
        let mount = Mount::open(Arc::new(store.snapshot().killed())).unwrap();
        let file = mount.reopen().unwrap_or_else(|error| panic!("{context}: after closing: {error}"));
        assert!(file.is_some_and(|file| contents(&file).unwrap() == now), "{context}: after closing");
    }
    for cut in 0..2 {
        check(store.snapshot().cut(cut), &model, true, 1, 0, &mut Tally::default());
    }
    check(store.snapshot().killed(), &model, false, 1, 0, &mut Tally::default());
    reached
}

/// Lets every operation of the work fail in turn.
fn fail_everywhere(seeds: std::ops::Range<u64>, lasting: bool, only_changes: bool, fault: Fault) {
    let mut failures = 0;
    for seed in seeds {
        failures += (0..).take_while(|at| fail(seed, Plan { at: *at, lasting, only_changes, fault })).count();
    }
    println!("{failures} failures");
}

#[test]
fn no_operation_that_fails_once_costs_a_byte_that_was_readable() {
    fail_everywhere(1..12, false, false, Fault::Errno(libc::EIO));
    fail_everywhere(20..30, false, true, Fault::Half(libc::ENOSPC));
    fail_everywhere(40..44, false, false, Fault::ShortRead);
}

#[test]
fn nor_does_a_disk_that_stays_full_or_broken() {
    fail_everywhere(1..12, true, true, Fault::Errno(libc::ENOSPC));
    fail_everywhere(20..30, true, true, Fault::Half(libc::EDQUOT));
    fail_everywhere(40..50, true, true, Fault::Errno(libc::EIO));
}
