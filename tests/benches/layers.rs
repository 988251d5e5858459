//! What one step of each layer costs, without the kernel and without a disk: `cargo bench`. The store is a directory in
//! memory, so that syncing costs a system call and nothing else.

use divan::counter::BytesCount;
use divan::{Bencher, black_box};
use kmsfs::crypto::Secret32;
use kmsfs::crypto::aad;
use kmsfs::crypto::cipher::{ChunkCipher, NonceAndTag};
use kmsfs::crypto::derive::{Dek, VolumeKeys};
use kmsfs::crypto::names::NameCipher;
use kmsfs::file::{Context, File, Keys};
use kmsfs::format::header::{Envelope, Header, VerifiedPage};
use kmsfs::format::tags::{NO_BLOCK, TagBlock};
use kmsfs::format::{ChunkSize, Geometry};
use kmsfs::journal::{Journal, LOG_LEN, Target, Update, recovery};
use kmsfs::kms::{Facts, KekId, Kms, KmsError, KmsErrorKind, Unwrapped, WrapAlgorithm, Wrapped};
use kmsfs::lease::Leases;
use kmsfs::store::dir::DirStore;
use kmsfs::store::{Store, StoreDir};
use kmsfs::units::{ChunkIndex, DirId, Epoch, FileId, KekGeneration, PlainOffset, StoredOffset, VolumeId};
use std::cell::Cell;
use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

const VOLUME: VolumeId = VolumeId([1; 16]);
const FILE: FileId = FileId([2; 16]);
const CHUNK: usize = 4096;
/// Chunks of the largest request of the kernel.
const BATCH: usize = 256;
/// Bytes of the file that is read and written, in the page cache of the store.
const FILE_LEN: u64 = 64 << 20;

fn main() {
    divan::main();
}

fn secret(byte: u8) -> Secret32 {
    Secret32::take(&mut [byte; 32])
}

/// Numbers below `end` without an order, the same ones each time.
fn scattered(end: u64) -> impl Fn() -> u64 {
    let state = Cell::new(0x9e37_79b9_7f4a_7c15_u64);
    move || {
        let mut number = state.get();
        number ^= number << 13;
        number ^= number >> 7;
        number ^= number << 17;
        state.set(number);
        number % end
    }
}

#[divan::bench]
fn geometry(bencher: Bencher) {
    let geometry = Geometry::new(ChunkSize::DEFAULT);
    let next = scattered(1 << 50);
    bencher.bench_local(|| {
        let offset = PlainOffset(next());
        let chunk = geometry.chunk_of(offset);
        black_box((geometry.stored_chunk(chunk), geometry.entry_place(chunk), geometry.stored_len(offset)))
    });
}

mod chunks {
    use super::*;

    fn aad_of(index: usize) -> [u8; 44] {
        aad::chunk(VOLUME, FILE, Epoch(0), ChunkIndex(index as u64))
    }

    fn seal(cipher: &ChunkCipher, plain: &[u8], sealed: &mut [u8]) -> Vec<NonceAndTag> {
        let batch = cipher.batch(plain.len() / CHUNK);
        let chunks = plain.chunks_exact(CHUNK).zip(sealed.chunks_exact_mut(CHUNK));
        chunks.enumerate().map(|(at, (plain, sealed))| batch.seal(at, &aad_of(at), plain, sealed)).collect()
    }

    #[divan::bench(args = [1, BATCH])]
    fn seal_batch(bencher: Bencher, count: usize) {
        let cipher = ChunkCipher::new(&secret(1));
        let (plain, mut sealed) = (vec![1; count * CHUNK], vec![0; count * CHUNK]);
        bencher.counter(BytesCount::new(plain.len())).bench_local(|| seal(&cipher, &plain, &mut sealed));
    }

    #[divan::bench(args = [1, BATCH])]
    fn open_batch(bencher: Bencher, count: usize) {
        let cipher = ChunkCipher::new(&secret(1));
        let (mut plain, mut sealed) = (vec![1; count * CHUNK], vec![0; count * CHUNK]);
        let entries = seal(&cipher, &plain, &mut sealed);
        bencher.counter(BytesCount::new(plain.len())).bench_local(|| {
            for (at, entry) in entries.iter().enumerate() {
                let range = at * CHUNK..(at + 1) * CHUNK;
                let opened = cipher.open(entry, &aad_of(at), &sealed[range.clone()], &mut plain[range]);
                assert!(opened.is_ok(), "what was sealed is authentic");
            }
        });
    }

    /// What opening a file costs before its first chunk.
    #[divan::bench]
    fn derive_the_keys_of_a_file() -> Keys {
        Keys::new(Dek::derive(black_box(&secret(1)), &secret(2), VOLUME, FILE, Epoch(0)), Epoch(0))
    }
}

mod metadata {
    use super::*;

    #[divan::bench]
    fn tag_block_mac(bencher: Bencher) {
        let (key, block) = (secret(1), TagBlock::empty());
        bencher.counter(BytesCount::new(block.bytes().len())).bench_local(|| block.mac(&key, black_box(7)));
    }

    #[divan::bench]
    fn tag_block_verify(bencher: Bencher) {
        let key = secret(1);
        let mac = TagBlock::empty().mac(&key, 7);
        bencher
            .with_inputs(|| Box::new(*TagBlock::empty().bytes()))
            .bench_local_values(|bytes| TagBlock::verify(&key, 7, bytes, &mac).is_ok());
    }

    #[divan::bench]
    fn header_parse_and_verify(bencher: Bencher) {
        let key = secret(3);
        let page = *VerifiedPage::new(header(ChunkSize::DEFAULT)).seal(&key);
        bencher.with_inputs(|| Box::new(page)).bench_local_values(|page| {
            let verified = Header::parse(&page).and_then(|header| header.verify(&key, page));
            assert!(verified.is_ok(), "what was sealed is authentic");
            verified
        });
    }

    #[divan::bench]
    fn header_seal(bencher: Bencher) {
        let key = secret(3);
        let mut page = VerifiedPage::new(header(ChunkSize::DEFAULT));
        bencher.bench_local(|| {
            page.header_mut().generation += 1;
            black_box(page.seal(&key));
        });
    }

    #[divan::bench(args = [8, 32, 175, 255])]
    fn name_seal(bencher: Bencher, len: usize) {
        let (cipher, name) = (NameCipher::new(&VolumeKeys::from(&secret(4))), vec![b'n'; len]);
        bencher.bench_local(|| cipher.seal(DirId([5; 16]), black_box(&name)));
    }

    #[divan::bench(args = [8, 32, 175])]
    fn name_open(bencher: Bencher, len: usize) {
        let cipher = NameCipher::new(&VolumeKeys::from(&secret(4)));
        let stored = cipher.seal(DirId([5; 16]), &vec![b'n'; len]).entry;
        bencher.bench_local(|| {
            let name = cipher.open(DirId([5; 16]), black_box(&stored));
            assert!(name.is_ok(), "what was sealed is authentic");
            name
        });
    }
}

fn header(chunk_size: ChunkSize) -> Header {
    Header {
        chunk_size,
        file: FILE,
        epoch: Epoch(0),
        envelope: Envelope { kek: KekGeneration(0), algorithm: WrapAlgorithm::RsaOaep256, blob: vec![6; 256] },
        recovery: None,
        len: PlainOffset(0),
        generation: 0,
        batch: 0,
        root: NO_BLOCK,
        made: 0,
        resealing: None,
    }
}

/// A volume's directory in memory, with its log.
struct Bench {
    tree: Arc<dyn StoreDir>,
    context: Arc<Context>,
    _keep: tempfile::TempDir,
}

impl Bench {
    fn new() -> std::io::Result<Self> {
        let memory = Path::new("/dev/shm");
        let keep = if memory.is_dir() { tempfile::tempdir_in(memory)? } else { tempfile::tempdir()? };
        for name in ["tree", "journal"] {
            std::fs::create_dir(keep.path().join(name))?;
        }
        let root = DirStore::open(keep.path())?.root();
        let tree = root.open_dir(b"tree")?;
        let (journal, _) = recovery::open(&*root.open_dir(b"journal")?, &*tree, LOG_LEN)?;
        let context = Context {
            volume: VOLUME,
            geometry: Geometry::new(ChunkSize::DEFAULT),
            kek_floor: KekGeneration(0),
            epoch_floor: Epoch(0),
            journal: Arc::new(journal),
            ledger: std::sync::OnceLock::new(),
            tags: kmsfs::file::TagCache::default(),
        };
        Ok(Self { tree, context: Arc::new(context), _keep: keep })
    }

    /// A committed file of [`FILE_LEN`].
    fn file(&self) -> Result<File, kmsfs::file::Error> {
        let store = self.tree.create_file(b"file", 0o600)?;
        let target = Target { file: FILE, ino: store.inode().stat()?.ino, path: b"file".to_vec() };
        let keys = Arc::new(Keys::new(Dek::derive(&secret(1), &secret(2), VOLUME, FILE, Epoch(0)), Epoch(0)));
        let header = header(self.context.geometry.chunk_size());
        let file = File::create(Arc::clone(&self.context), store, target, header, keys)?;
        let data = vec![7; 1 << 20];
        for at in (0..FILE_LEN).step_by(data.len()) {
            file.write(PlainOffset(at), &data)?;
        }
        file.sync(true)?;
        Ok(file)
    }
}

#[expect(clippy::expect_used, reason = "a measurement that cannot begin is no measurement")]
mod storage {
    use super::*;

    fn commit(journal: &Journal, target: &Target, update: &Update) -> std::io::Result<()> {
        let appended = journal.append(target, update)?;
        journal.sync_appended(&appended)?;
        journal.applied(appended, target.ino, None);
        Ok(())
    }

    /// One chunk and its tags, as an overwrite with `fsync` puts them into the log.
    #[divan::bench]
    fn journal_commit(bencher: Bencher) {
        let bench = Bench::new().expect("a directory");
        let target = Target { file: FILE, ino: 1, path: b"directory/file".to_vec() };
        let writes = [(0, CHUNK), (1 << 20, CHUNK)].map(|(at, len)| (StoredOffset(at), vec![8; len][..].into()));
        let update = Update { stored_len: StoredOffset(2 << 20), writes: writes.to_vec(), voids: Vec::new() };
        bencher.bench_local(|| commit(&bench.context.journal, &target, &update).expect("a log in memory"));
    }

    #[divan::bench(args = [CHUNK, 128 << 10, 1 << 20])]
    fn file_read(bencher: Bencher, len: usize) {
        let bench = Bench::new().expect("a directory");
        let file = bench.file().expect("a file");
        let (next, mut out) = (scattered(FILE_LEN / len as u64), Vec::with_capacity(len));
        bencher.counter(BytesCount::new(len)).bench_local(|| {
            out.clear();
            file.read(PlainOffset(next() * len as u64), len, &mut out).expect("what was written");
        });
    }

    /// With the commits that become due meanwhile.
    #[divan::bench(args = [CHUNK, 1 << 20])]
    fn file_overwrite(bencher: Bencher, len: usize) {
        let bench = Bench::new().expect("a directory");
        let file = bench.file().expect("a file");
        let (next, data) = (scattered(FILE_LEN / len as u64), vec![9; len]);
        bencher
            .counter(BytesCount::new(len))
            .bench_local(|| file.write(PlainOffset(next() * len as u64), &data).expect("room for it"));
    }

    #[divan::bench]
    fn file_overwrite_4k_and_sync(bencher: Bencher) {
        let bench = Bench::new().expect("a directory");
        let file = bench.file().expect("a file");
        let (next, data) = (scattered(FILE_LEN / CHUNK as u64), vec![9; CHUNK]);
        bencher.bench_local(|| {
            file.write(PlainOffset(next() * CHUNK as u64), &data).expect("room for it");
            file.sync(true).expect("a disk in memory");
        });
    }
}

/// A KMS that is never asked.
struct Silent;

impl Kms for Silent {
    fn wrap(&self, _secret: &Secret32, _volume: VolumeId) -> Result<Wrapped, KmsError> {
        Err(KmsError::new(KmsErrorKind::Damaged, "not asked for"))
    }

    fn unwrap(&self, _wrapped: &Wrapped, _volume: VolumeId) -> Result<Unwrapped, KmsError> {
        Err(KmsError::new(KmsErrorKind::Damaged, "not asked for"))
    }

    fn current(&self) -> Result<KekId, KmsError> {
        Ok(KekId("silent".into()))
    }

    fn facts(&self) -> Result<Facts, KmsError> {
        Ok(Facts::new(self.current()?, "silent"))
    }

    fn deadline(&self) -> Duration {
        Duration::from_secs(1)
    }
}

/// One of a thousand secrets that are in memory; on several threads too, as they share a lock.
#[divan::bench(threads = [1, 4])]
fn lease_lookup(bencher: Bencher) {
    let leases = Leases::new(Arc::new(Silent), VOLUME, NonZeroUsize::MIN.saturating_add(1023));
    let wrapped: Vec<Wrapped> = (0..1000_u32)
        .map(|number| {
            let mut blob = vec![0; 256];
            blob[..4].copy_from_slice(&number.to_le_bytes());
            Wrapped { kek: KekId("silent".into()), algorithm: WrapAlgorithm::RsaOaep256, blob }
        })
        .collect();
    for wrapped in &wrapped {
        assert!(leases.insert(wrapped, secret(1)).is_ok(), "the leases are open");
    }
    bencher.bench(|| assert!(leases.cached(black_box(&wrapped[500])).is_some(), "it is in memory"));
}
