//! Random work on a volume against a plain model of a filesystem: the same work on the tree without FUSE, and through a
//! mount, while others read. A failure is shrunk to the least work that shows it.

mod direct;
mod mounted;
mod system;
mod tree;

use parking_lot::RwLock;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicBool, Ordering};
use system::{Allocation, Name, Path, System, observe, snapshot};
use tree::Tree;

use kmsfs::store::{RenameMode, SetXattr};

/// How many files may be open at once.
const SLOTS: usize = 4;
/// Files get about so long, in bytes: beyond the chunks that a header describes.
const LONGEST: u32 = 400_000;

/// The names in use: short ones, one that is stored under a hash, one of other characters.
pub(super) static NAMES: LazyLock<[String; 5]> =
    LazyLock::new(|| ["a", "b", "c", &"long".repeat(50), "\u{e4}\u{2603}"].map(str::to_owned));

/// Which path an operation is about.
#[derive(Clone, Debug)]
enum Where {
    /// One that exists.
    Existing(Index),
    /// A name in a directory, whether it is taken or not.
    Under(Index, usize),
    /// A name below something that need not be a directory.
    Below(Index, usize),
}

#[derive(Clone, Debug)]
enum Op {
    Create(Where, usize),
    Open(Where, bool, usize),
    Close(Index),
    Write(Index, u32, u32, u8),
    Read(Index, u32, u32),
    SetLen(Index, u32),
    Allocate(Index, Allocation, u32, u32),
    Seek(Index, u32, bool),
    Copy(Index, u32, Index, u32, u32),
    MakeDirectory(Where),
    MakeSymlink(Where, u16),
    RemoveDirectory(Where),
    Unlink(Where),
    Link(Where, Where),
    Rename(Where, Where, RenameMode),
    SetXattr(Where, usize, u16, SetXattr),
    RemoveXattr(Where, usize),
    SetPermissions(Where, u32),
    SetMtime(Where, i64, u32),
    List(Where),
    Sync(Index, bool),
    SyncAll,
    /// So many steps of giving all files new keys; where it was not through the last time, it goes on.
    Rekey(u8),
    Remount,
    /// Everything is committed, and then the program ends without having said so.
    Kill(bool),
}

fn place() -> impl Strategy<Value = Where> {
    let name = || 0..NAMES.len();
    prop_oneof![
        4 => any::<Index>().prop_map(Where::Existing),
        5 => (any::<Index>(), name()).prop_map(|(index, name)| Where::Under(index, name)),
        1 => (any::<Index>(), name()).prop_map(|(index, name)| Where::Below(index, name)),
    ]
}

/// Where changes begin and end: also at the borders of chunks.
fn offset() -> impl Strategy<Value = u32> {
    prop_oneof![0..LONGEST, (0..LONGEST / 4096).prop_map(|chunk| chunk * 4096), 0..10_000_u32]
}

fn len() -> impl Strategy<Value = u32> {
    prop_oneof![1..10_000_u32, 1..100_000_u32, (1..20_u32).prop_map(|chunks| chunks * 4096)]
}

fn op() -> impl Strategy<Value = Op> {
    let open = any::<Index>;
    let allocation = prop::sample::select(vec![
        Allocation::Extend,
        Allocation::Keep,
        Allocation::Punch,
        Allocation::Zero,
        Allocation::ZeroKeep,
    ]);
    let mode = prop::sample::select(vec![
        RenameMode::Replace,
        RenameMode::Replace,
        RenameMode::NoReplace,
        RenameMode::Exchange,
    ]);
    let how = prop::sample::select(vec![SetXattr::Any, SetXattr::Create, SetXattr::Replace]);
    let seconds = prop::sample::select(vec![-2_000_000_000_i64, -1, 0, 1, 1_700_000_000, 4_000_000_000]);
    let slot = || 0..SLOTS;
    prop_oneof![
        6 => (place(), slot()).prop_map(|(at, slot)| Op::Create(at, slot)),
        4 => (place(), any::<bool>(), slot()).prop_map(|(at, truncate, slot)| Op::Open(at, truncate, slot)),
        2 => open().prop_map(Op::Close),
        8 => (open(), offset(), len(), any::<u8>()).prop_map(|(file, at, len, seed)| Op::Write(file, at, len, seed)),
        3 => (open(), offset(), len()).prop_map(|(file, at, len)| Op::Read(file, at, len)),
        3 => (open(), offset()).prop_map(|(file, len)| Op::SetLen(file, len)),
        4 => (open(), allocation, offset(), len()).prop_map(|(file, how, at, len)| Op::Allocate(file, how, at, len)),
        2 => (open(), offset(), any::<bool>()).prop_map(|(file, at, data)| Op::Seek(file, at, data)),
        3 => (open(), offset(), open(), offset(), len()).prop_map(|(a, at, b, to, len)| Op::Copy(a, at, b, to, len)),
        4 => place().prop_map(Op::MakeDirectory),
        2 => (place(), prop_oneof![1..100_u16, 700..1200_u16, 2900..4095_u16])
            .prop_map(|(at, len)| Op::MakeSymlink(at, len)),
        2 => place().prop_map(Op::RemoveDirectory),
        3 => place().prop_map(Op::Unlink),
        3 => (place(), place()).prop_map(|(from, to)| Op::Link(from, to)),
        6 => (place(), place(), mode).prop_map(|(from, to, mode)| Op::Rename(from, to, mode)),
        3 => (place(), 0..3_usize, 0..300_u16, how).prop_map(|(at, name, len, how)| Op::SetXattr(at, name, len, how)),
        1 => (place(), 0..3_usize).prop_map(|(at, name)| Op::RemoveXattr(at, name)),
        2 => (place(), 0..0o1000_u32).prop_map(|(at, permissions)| Op::SetPermissions(at, permissions)),
        2 => (place(), seconds, 0..1_000_000_000_u32).prop_map(|(at, s, ns)| Op::SetMtime(at, s, ns)),
        2 => place().prop_map(Op::List),
        2 => (open(), any::<bool>()).prop_map(|(file, data_only)| Op::Sync(file, data_only)),
        1 => Just(Op::SyncAll),
        2 => (1..40_u8).prop_map(Op::Rekey),
        1 => Just(Op::Remount),
        1 => any::<bool>().prop_map(Op::Kill),
    ]
}

/// How a volume is made and used.
#[derive(Clone, Copy, Debug)]
pub(super) struct Setup {
    pub plain_names: bool,
    pub large_chunks: bool,
    /// Whether what was looked up is forgotten at once, where the kernel does not decide that.
    pub forgetful: bool,
}

fn setup() -> impl Strategy<Value = Setup> {
    (prop::bool::weighted(0.2), prop::bool::weighted(0.2), any::<bool>())
        .prop_map(|(plain_names, large_chunks, forgetful)| Setup { plain_names, large_chunks, forgetful })
}

/// The model, the system, and what both have open.
struct Work<'a, S: System> {
    model: Tree,
    system: &'a RwLock<Option<S>>,
    slots: [Option<(<Tree as System>::Handle, S::Handle)>; SLOTS],
}

impl<S: System> Work<'_, S> {
    fn path(&self, place: &Where) -> Path {
        let name = |name: &usize| -> Name { &NAMES[*name] };
        let (existing, directories) = self.model.paths();
        let below = |mut path: Path, last: &usize| {
            path.push(name(last));
            path
        };
        match place {
            Where::Existing(index) if !existing.is_empty() => index.get(&existing).clone(),
            Where::Existing(_) => vec![name(&0)],
            Where::Under(index, last) => below(index.get(&directories).clone(), last),
            Where::Below(_, last) if existing.is_empty() => below(Vec::new(), last),
            Where::Below(index, last) => below(index.get(&existing).clone(), last),
        }
    }

    fn slot(&self, index: &Index) -> Option<usize> {
        let open: Vec<usize> = (0..SLOTS).filter(|slot| self.slots[*slot].is_some()).collect();
        if open.is_empty() { None } else { Some(*index.get(&open)) }
    }

    fn fill(&mut self, slot: usize, opened: (system::Result<usize>, system::Result<S::Handle>)) {
        match opened {
            (Ok(model), Ok(real)) => {
                self.close(slot);
                self.slots[slot] = Some((model, real));
            }
            (model, real) => assert_eq!(model.err(), real.err()),
        }
    }

    fn close(&mut self, slot: usize) {
        if let Some((model, real)) = self.slots[slot].take() {
            self.model.close(model);
            self.system.read().as_ref().expect("mounted").close(real);
        }
    }

    /// The same on both; the answers have to be the same.
    fn both<T: PartialEq + std::fmt::Debug>(&self, on_model: impl FnOnce(&Tree) -> T, on_system: impl FnOnce(&S) -> T) {
        let expected = on_model(&self.model);
        let found = on_system(self.system.read().as_ref().expect("mounted"));
        assert!(found == expected, "expected {}, found {}", short(&expected), short(&found));
    }

    fn on_open<T: PartialEq + std::fmt::Debug>(
        &self,
        index: &Index,
        on_model: impl FnOnce(&Tree, &usize) -> T,
        on_system: impl FnOnce(&S, &S::Handle) -> T,
    ) {
        let Some(slot) = self.slot(index) else { return };
        let (model, real) = self.slots[slot].as_ref().expect("open");
        self.both(|tree| on_model(tree, model), |system| on_system(system, real));
    }

    fn act(&mut self, op: &Op) {
        match op {
            Op::Create(at, slot) | Op::Open(at, _, slot) => {
                let path = self.path(at);
                let opened = {
                    let system = self.system.read();
                    let system = system.as_ref().expect("mounted");
                    match op {
                        Op::Open(_, truncate, _) => (self.model.open(&path, *truncate), system.open(&path, *truncate)),
                        _ => (self.model.create(&path), system.create(&path)),
                    }
                };
                self.fill(*slot, opened);
            }
            Op::Close(index) => {
                if let Some(slot) = self.slot(index) {
                    self.close(slot);
                }
            }
            Op::Write(index, at, len, seed) => {
                let bytes = system::content(u64::from(*at), *len as usize, *seed);
                let at = u64::from(*at);
                self.on_open(index, |tree, file| tree.write(file, at, &bytes), |s, file| s.write(file, at, &bytes));
            }
            Op::Read(index, at, len) => {
                let (at, len) = (u64::from(*at), *len as usize);
                self.on_open(index, |tree, file| tree.read(file, at, len), |s, file| s.read(file, at, len));
            }
            Op::SetLen(index, len) => {
                let len = u64::from(*len);
                self.on_open(index, |tree, file| tree.set_len(file, len), |s, file| s.set_len(file, len));
            }
            Op::Allocate(index, how, at, len) => {
                let (at, len) = (u64::from(*at), u64::from(*len));
                self.on_open(
                    index,
                    |tree, file| tree.allocate(file, *how, at, len),
                    |s, file| s.allocate(file, *how, at, len),
                );
            }
            Op::Seek(index, at, data) => self.seek(index, u64::from(*at), *data),
            Op::Copy(from, at, to, to_at, len) => self.copy(from, *at, to, *to_at, *len),
            Op::MakeDirectory(at) => {
                let path = self.path(at);
                self.both(|tree| tree.make_directory(&path), |s| s.make_directory(&path));
            }
            Op::MakeSymlink(at, len) => {
                // Its first component is a name that is never used.
                let target: Vec<u8> = b"t/".iter().copied().cycle().take(usize::from(*len)).collect();
                let path = self.path(at);
                self.both(|tree| tree.make_symlink(&path, &target), |s| s.make_symlink(&path, &target));
            }
            Op::RemoveDirectory(at) => {
                let path = self.path(at);
                self.both(|tree| tree.remove_directory(&path), |s| s.remove_directory(&path));
            }
            Op::Unlink(at) => {
                let path = self.path(at);
                self.both(|tree| tree.unlink(&path), |s| s.unlink(&path));
            }
            Op::Link(from, to) => {
                let (from, to) = (self.path(from), self.path(to));
                self.both(|tree| tree.link(&from, &to), |s| s.link(&from, &to));
            }
            Op::Rename(from, to, mode) => {
                let (from, to) = (self.path(from), self.path(to));
                self.both(|tree| tree.rename(&from, &to, *mode), |s| s.rename(&from, &to, *mode));
            }
            Op::SetXattr(at, name, len, how) => {
                let (path, name) = (self.path(at), format!("user.{name}"));
                let value = vec![*len as u8; usize::from(*len)];
                self.both(
                    |tree| tree.set_xattr(&path, &name, &value, *how),
                    |s| s.set_xattr(&path, &name, &value, *how),
                );
            }
            Op::RemoveXattr(at, name) => {
                let (path, name) = (self.path(at), format!("user.{name}"));
                self.both(|tree| tree.remove_xattr(&path, &name), |s| s.remove_xattr(&path, &name));
            }
            Op::SetPermissions(at, permissions) => {
                let path = self.path(at);
                self.both(|tree| tree.set_permissions(&path, *permissions), |s| s.set_permissions(&path, *permissions));
            }
            Op::SetMtime(at, seconds, nanoseconds) => {
                let (path, time) = (self.path(at), (*seconds, *nanoseconds));
                self.both(|tree| tree.set_mtime(&path, time), |s| s.set_mtime(&path, time));
            }
            Op::List(at) => {
                let path = self.path(at);
                self.both(|tree| tree.list(&path), |s| s.list(&path));
            }
            Op::Sync(index, data_only) => {
                self.on_open(index, |tree, file| tree.sync(file, *data_only), |s, file| s.sync(file, *data_only));
            }
            Op::SyncAll => self.both(Tree::sync_all, S::sync_all),
            Op::Rekey(steps) => self.both(|_| Ok(()), |system| system.rekey(*steps)),
            Op::Remount => self.again(S::again),
            Op::Kill(sweep) => self.again(|system| system.killed(*sweep)),
        }
        for (model, real) in self.slots.iter().flatten() {
            self.both(|_| Ok(()), |s| self.model.look_open(model)?.check(&s.look_open(real)?));
        }
    }

    /// Holes may be smaller than the model has them, and begin and end elsewhere; but no data may be in one.
    fn seek(&self, index: &Index, at: u64, data: bool) {
        let Some(slot) = self.slot(index) else { return };
        let (model, real) = self.slots[slot].as_ref().expect("open");
        let content = self.model.read(model, 0, usize::MAX).expect("the model can be read");
        let found = self.system.read().as_ref().expect("mounted").seek(real, at, data);
        let len = content.len() as u64;
        let is_zero = |from: u64, to: u64| content[from as usize..to as usize].iter().all(|byte| *byte == 0);
        match found {
            Err(error) => {
                assert_eq!(error, libc::ENXIO);
                assert!(at >= len || data && is_zero(at, len), "no data from {at} of {len}");
            }
            Ok(found) => {
                assert!(found >= at && found <= len, "{found} for {at} of {len}");
                let hole = if data { is_zero(at, found) } else { found == len || is_zero(found, found + 1) };
                assert!(hole, "{found} for {at} of {len}");
            }
        }
    }

    fn copy(&self, from: &Index, at: u32, to: &Index, to_at: u32, len: u32) {
        let (Some(from), Some(to)) = (self.slot(from), self.slot(to)) else { return };
        let ((from, real_from), (to, real_to)) =
            (self.slots[from].as_ref().expect("open"), self.slots[to].as_ref().expect("open"));
        // What is copied still says where it belongs.
        let to_at = system::aligned_with(u64::from(to_at), u64::from(at));
        let (at, len) = (u64::from(at), u64::from(len));
        self.both(|tree| tree.copy(from, at, to, to_at, len), |s| s.copy(real_from, at, real_to, to_at, len));
    }

    fn again(&mut self, act: impl FnOnce(S) -> S) {
        for slot in 0..SLOTS {
            self.close(slot);
        }
        let mut system = self.system.write();
        *system = system.take().map(act);
        drop(system);
        self.compare();
    }

    /// All that there is, is the same in both.
    fn compare(&self) {
        let system = self.system.read();
        let system = system.as_ref().expect("mounted");
        let (expected, found) = (snapshot(&self.model).expect("a model"), snapshot(system).expect("all can be read"));
        assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
        for (path, expected) in expected {
            let found = &found[&path];
            assert_eq!(expected.look.check(&found.look), Ok(()), "{path:?}");
            assert_eq!(found.xattrs, expected.xattrs, "{path:?}");
            assert!(found.content == expected.content, "{path:?}: content");
        }
        assert_eq!(system.damaged(), 0);
    }
}

fn short(value: &impl std::fmt::Debug) -> String {
    format!("{value:?}").chars().take(200).collect()
}

/// Does the work on a new system and on the model, while others read.
fn run<S: System + Send + Sync>(system: S, ops: &[Op]) {
    let system = RwLock::new(Some(system));
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                observe(system.read().as_ref().expect("mounted"), &[]);
            }
        });
        // However it ends, the reader ends too.
        let worked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let mut work = Work { model: Tree::default(), system: &system, slots: Default::default() };
            for op in ops {
                work.act(op);
            }
            work.compare();
            for slot in 0..SLOTS {
                work.close(slot);
            }
        }));
        done.store(true, Ordering::Relaxed);
        let read = reader.join();
        if let Err(panic) = worked.and(read) {
            std::panic::resume_unwind(panic);
        }
    });
    drop(system.into_inner().map(S::again));
}

/// So many cases, or as many as `PROPTEST_CASES` says.
fn config(cases: u32, max_shrink_iters: u32) -> ProptestConfig {
    let wanted = std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok());
    ProptestConfig {
        max_shrink_iters,
        failure_persistence: None,
        ..ProptestConfig::with_cases(wanted.unwrap_or(cases))
    }
}

proptest! {
    #![proptest_config(config(2000, 500))]

    #[test]
    fn the_tree_does_what_a_model_does(setup in setup(), ops in vec(op(), 1..60)) {
        run(direct::Direct::new(setup), &ops);
    }
}

proptest! {
    #![proptest_config(config(60, 60))]

    #[test]
    fn a_mount_does_what_a_model_does(setup in setup(), ops in vec(op(), 1..100)) {
        run(mounted::Mounted::new(setup), &ops);
    }
}
