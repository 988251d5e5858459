//! What every parser of kmsfs has to do with any bytes: not panic, and be the exact inverse of its encoder for what it
//! accepts, so that nothing has two forms. Checksums and MACs are put right first: a fuzzer would hardly guess them.
//! Driven by `tests/parsers.rs` with the stable toolchain, and by libFuzzer with `scripts/fuzz`.

use data_encoding::BASE64;
use kmsfs::audit::{self, Cursor, Head};
use kmsfs::check::Saved;
use kmsfs::crypto::Secret32;
use kmsfs::crypto::cipher::ValueCipher;
use kmsfs::crypto::derive::VolumeKeys;
use kmsfs::crypto::names::{NameCipher, classify};
use kmsfs::daemon::control::{Reply, Request};
use kmsfs::dev_vault::{call::Call, documents};
use kmsfs::format::header::{Envelope, Header, Resealing, SEALED_DEK_LEN, VerifiedPage};
use kmsfs::format::tags::{BLOCK_LEN, CHILDREN_PER_BLOCK, ENTRIES_PER_BLOCK, NO_BLOCK, TagBlock};
use kmsfs::format::volume::{Kek, KekRole, RekeyState, VolumeRecord};
use kmsfs::format::{ChunkSize, PAGE};
use kmsfs::journal::log::{self, State};
use kmsfs::journal::record::{self, HEAD_LEN, Place, Record};
use kmsfs::journal::{Content, Crashed, Target, Update, recovery};
use kmsfs::kms::{KekId, KekRef, LocalKms, WrapAlgorithm, Wrapped};
use kmsfs::ledger::block::{BLOCK, Block, Identity, is_sealed};
use kmsfs::ledger::{Mark, Stamp};
use kmsfs::store::{Store, dir::DirStore};
use kmsfs::units::{DirId, Epoch, FileId, KekGeneration, PlainOffset, StoredOffset, VolumeId};

/// A parser: its name, what is tried with it, and valid input to begin with.
pub type Parser = (&'static str, fn(&[u8]), fn() -> Vec<Vec<u8>>);

/// All parsers.
pub const PARSERS: &[Parser] = &[
    ("header", header, header_seeds),
    ("tag_block", tag_block, || vec![vec![0; BLOCK_LEN], (0..BLOCK_LEN).map(|n| n as u8).collect()]),
    ("volume_record", volume_record, volume_record_seeds),
    ("journal_header", journal_header, journal_header_seeds),
    ("journal_record", journal_record, journal_record_seeds),
    ("ledger", ledger, ledger_seeds),
    ("names", names, name_seeds),
    ("values", values, || vec![ValueCipher::new(&key()).seal(b"context", b"value")]),
    ("kek_reference", kek_reference, kek_reference_seeds),
    ("key_file", key_file, || {
        vec![BASE64.encode(&[7; 32]).into_bytes(), [BASE64.encode(&[9; 32]), "\n".into()].concat().into()]
    }),
    ("control_request", control_request, || vec![br#"{"version":1,"command":"status"}"#.to_vec()]),
    ("control_reply", control_reply, || {
        vec![br#""done""#.to_vec(), br#"{"failed":{"kind":"busy","message":"m","hint":null}}"#.to_vec()]
    }),
    ("audit_log", audit_log, || vec![audit_lines(), audit_lines()[..300].to_vec()]),
    ("journal_logs", journal_logs, journal_logs_seeds),
    ("saved_check", saved_check, saved_check_seeds),
    ("vault_request", vault_request, vault_request_seeds),
    ("ids", ids, || vec![FileId([0xA5; 16]).to_string().into_bytes()]),
];

fn key() -> Secret32 {
    Secret32::take(&mut [3; 32])
}

fn envelope() -> Envelope {
    Envelope { kek: KekGeneration(2), algorithm: WrapAlgorithm::LocalAes256Gcm, blob: vec![5; 72] }
}

fn padded<const LEN: usize>(data: &[u8]) -> Box<[u8; LEN]> {
    let mut bytes = Box::new([0; LEN]);
    let len = data.len().min(LEN);
    bytes[..len].copy_from_slice(&data[..len]);
    bytes
}

const MAC: std::ops::Range<usize> = 1504..1536;

fn header(data: &[u8]) {
    let mut page = padded::<PAGE>(data);
    page[..10].copy_from_slice(b"kmsfs/F\0\x01\0");
    let Ok(parsed) = Header::parse(&page) else { return };
    let mut without = page.clone();
    without[MAC].fill(0);
    let mac = blake3::keyed_hash(key().expose(), &without[..]);
    let is_right = page[MAC] == mac.as_bytes()[..];
    assert_eq!(parsed.clone().verify(&key(), page.clone()).is_ok(), is_right, "a MAC that nobody made");
    page[MAC].copy_from_slice(mac.as_bytes());
    let mut verified = parsed.clone().verify(&key(), page.clone()).expect("the right MAC");
    for number in 0..64 {
        let entry = verified.entry(number);
        verified.set_entry(number, entry.as_ref());
    }
    assert!(verified.seal(&key())[..] == page[..], "encoded, it is something else");
    let mut new = VerifiedPage::new(parsed.clone());
    assert_eq!(Header::parse(new.seal(&key())), Ok(parsed));
}

const LEDGER: Identity = Identity { volume: VolumeId([1; 16]), ledger: [2; 16] };

fn ledger(data: &[u8]) {
    let block = padded::<BLOCK>(data);
    let mac = BLOCK - 32;
    if let Ok(identity) = Identity::decode(&block) {
        let encoded = identity.encode(&key());
        assert!(encoded[..mac] == block[..mac], "encoded, it is something else");
        assert_eq!(is_sealed(&block, &identity, 0, &key()), encoded == *block, "a MAC that nobody made");
    }
    if let Some(parsed) = Block::decode(&block, &LEDGER, 7, None) {
        let encoded = parsed.encode(&LEDGER, 7, &key());
        assert!(encoded[..mac] == block[..mac], "encoded, it is something else");
        assert_eq!(
            Block::decode(&block, &LEDGER, 7, Some(&key())).is_some(),
            encoded == *block,
            "a MAC that nobody made"
        );
        assert_eq!(Block::decode(&encoded, &LEDGER, 7, Some(&key())), Some(parsed));
    }
}

fn ledger_seeds() -> Vec<Vec<u8>> {
    let stamp = Stamp { epoch: 1, generation: 2, mac: [3; 4] };
    let entries = vec![(FileId([4; 16]), Some(stamp)), (FileId([5; 16]), None)];
    let block = Block { mark: Mark { counter: 6, record: 7, suspect: true }, synced: 8, entries };
    vec![LEDGER.encode(&key()).to_vec(), block.encode(&LEDGER, 7, &key()).to_vec()]
}

fn header_seeds() -> Vec<Vec<u8>> {
    let header = |recovery: Option<Envelope>, root| Header {
        chunk_size: ChunkSize::DEFAULT,
        file: FileId([1; 16]),
        epoch: Epoch(3),
        envelope: envelope(),
        recovery,
        len: PlainOffset(123_456_789),
        generation: 7,
        batch: 9,
        root,
        made: 0,
        resealing: None,
    };
    let resealing = Resealing { from: 5, to: 90, epoch: Epoch(2), sealed: [4; SEALED_DEK_LEN] };
    let between = Header { made: 1_796_000_000, resealing: Some(Box::new(resealing)), ..header(None, NO_BLOCK) };
    [header(None, NO_BLOCK), header(Some(envelope()), [8; 32]), between]
        .map(|header| VerifiedPage::new(header).seal(&key()).to_vec())
        .to_vec()
}

fn tag_block(data: &[u8]) {
    let bytes = padded::<BLOCK_LEN>(data);
    let block = u64::from(data.last().copied().unwrap_or(0));
    assert!(TagBlock::verify(&key(), block, bytes.clone(), &[1; 32]).is_err(), "a MAC that nobody made");
    let mac = *blake3::Hasher::new_keyed(key().expose())
        .update(&bytes[..])
        .update(&block.to_le_bytes())
        .finalize()
        .as_bytes();
    let mut parsed = TagBlock::verify(&key(), block, bytes.clone(), &mac).expect("the right MAC");
    assert!(TagBlock::verify(&key(), block + 1, bytes.clone(), &mac).is_err(), "the MAC of another block");
    for number in 0..ENTRIES_PER_BLOCK {
        let entry = parsed.entry(number);
        parsed.set_entry(number, entry.as_ref());
    }
    for position in 0..CHILDREN_PER_BLOCK {
        let child = parsed.child(position);
        parsed.set_child(position, &child);
    }
    assert!(parsed.bytes() == &*bytes, "encoded, it is something else");
}

fn volume_record(data: &[u8]) {
    let Ok(parsed) = VolumeRecord::parse(data) else { return };
    let encoded = parsed.encode(&key());
    let end = data.len() - 32;
    assert!(encoded[..end] == data[..end] && encoded.len() == data.len(), "encoded, it is something else");
    assert_eq!(VolumeRecord::parse(&encoded), Ok(parsed));
    assert_eq!(VolumeRecord::verify(&encoded, &key()), Ok(()));
    assert!(encoded[end..] == data[end..] || VolumeRecord::verify(data, &key()).is_err(), "a MAC that nobody made");
}

fn volume_record_seeds() -> Vec<Vec<u8>> {
    let kek = |generation, role| Kek {
        generation: KekGeneration(generation),
        role,
        reference: "file:/etc/kmsfs/volume.key".into(),
        volume_key: Wrapped {
            kek: KekId("file:/etc/kmsfs/volume.key#0011223344556677".into()),
            algorithm: WrapAlgorithm::LocalAes256Gcm,
            blob: vec![4; 72],
        },
    };
    let record = |plain_names, keks| VolumeRecord {
        id: VolumeId([6; 16]),
        plain_names,
        chunk_size: ChunkSize::DEFAULT,
        files_per_envelope: 1000,
        kek_floor: KekGeneration(0),
        epoch_floor: Epoch(0),
        epoch: Epoch(1),
        rekey: RekeyState::All,
        generation: 1,
        keks,
    };
    let two = vec![kek(1, KekRole::Recovery), kek(5, KekRole::Primary)];
    vec![record(false, vec![kek(0, KekRole::Primary)]).encode(&key()), record(true, two).encode(&key())]
}

fn journal_header(data: &[u8]) {
    let mut page = padded::<PAGE>(data);
    assert!(log::decode(&page).is_err() || page[..8] != *b"kmsfs/J\0" || log::decode(&page).is_ok());
    page[..10].copy_from_slice(b"kmsfs/J\0\x02\0");
    let checksum = blake3::hash(&page[..PAGE - 32]);
    page[PAGE - 32..].copy_from_slice(checksum.as_bytes());
    if let Ok(parsed) = log::decode(&page) {
        let state = parsed.expect("the checksum is right");
        assert!(log::encode(&state) == *page, "encoded, it is something else");
    }
}

fn journal_header_seeds() -> Vec<Vec<u8>> {
    let crashed = Crashed::from_ranges(vec![(3, 4), (9, 12)]).expect("ranges");
    let state = State { sequence: 8, clean: true, committed_batch: 20, crashed };
    vec![log::encode(&state).to_vec(), log::encode(&State::default()).to_vec()]
}

fn journal_record(data: &[u8]) {
    assert!(record::decode(data).is_none() || data.len() >= HEAD_LEN);
    if data.len() < HEAD_LEN {
        return;
    }
    let mut bytes = data.to_vec();
    bytes[..4].copy_from_slice(&record::MAGIC);
    let len = (bytes.len() - HEAD_LEN) as u64;
    bytes[8..16].copy_from_slice(&len.to_le_bytes());
    let hash = blake3::Hasher::new().update(&bytes[..40]).update(&bytes[HEAD_LEN..]).finalize();
    bytes[40..HEAD_LEN].copy_from_slice(&hash.as_bytes()[..24]);
    let Some((parsed, place, end)) = record::decode(&bytes) else { return };
    let mut encoded = Vec::new();
    match parsed {
        Record::Batch(batch) => record::encode_batch(batch, &place, &mut encoded),
        Record::Update(target, update) => {
            assert_eq!(record::update_len(&target, &update), end);
            record::encode_update(&target, &update, &place, &mut encoded);
        }
    }
    assert!(encoded.len() == end && encoded.starts_with(&bytes), "encoded, it is something else");
}

fn journal_record_seeds() -> Vec<Vec<u8>> {
    let place = Place { sequence: 4, position: 8192, synced: 4096 };
    let target = Target { file: FileId([1; 16]), ino: 12, path: b"ab/cd".to_vec() };
    let update = Update {
        stored_len: StoredOffset(9000),
        writes: vec![
            (StoredOffset(0), b"fields"[..].into()),
            (StoredOffset(4096), [7; 40][..].into()),
            (StoredOffset(6000), Content::Zeros(50)),
        ],
        voids: vec![(StoredOffset(8192), 808)],
    };
    let (mut first, mut second) = (Vec::new(), Vec::new());
    record::encode_batch(77, &place, &mut first);
    record::encode_update(&target, &update, &place, &mut second);
    // Without what fills them up.
    first.truncate(HEAD_LEN + 8);
    second.truncate(HEAD_LEN + 16 + 8 + 8 + 12 + 5 + 16 + 12 + 6 + 12 + 40 + 12);
    vec![first, second]
}

fn names(data: &[u8]) {
    let keys = VolumeKeys::from(&key());
    let _ = classify(data);
    for cipher in [NameCipher::new(&keys), NameCipher::for_xattrs(&keys)] {
        if let Ok(name) = cipher.open_full(b"context", data) {
            assert_eq!(cipher.seal_full(b"context", &name), data, "two forms of one name");
        }
        let sealed = cipher.seal_full(b"context", data);
        if !data.is_empty() {
            assert_eq!(cipher.open_full(b"context", &sealed).ok().as_deref(), Some(data));
        }
        assert!(cipher.open_full(b"another", &sealed).is_err(), "moved elsewhere, it still opens");
    }
    let (cipher, directory) = (NameCipher::new(&keys), DirId([9; 16]));
    let is_name = (1..=255).contains(&data.len()) && !data.iter().any(|byte| [0, b'/'].contains(byte));
    if is_name && data != b"." && data != b".." {
        let stored = cipher.seal(directory, data);
        assert!(stored.entry.len() <= 255);
        let full = stored.side.as_ref().map_or(&stored.entry, |side| &side.target);
        assert_eq!(cipher.open(directory, full).ok().as_deref(), Some(data));
        assert!(stored.side.is_none_or(|side| cipher.side_entry_matches(&side.entry, &side.target)));
    }
}

fn name_seeds() -> Vec<Vec<u8>> {
    let cipher = NameCipher::new(&VolumeKeys::from(&key()));
    let long = cipher.seal(DirId([9; 16]), &[b'n'; 200]);
    vec![b"name".to_vec(), vec![b'n'; 255], cipher.seal_full(b"context", b"name"), long.entry, b".id".to_vec()]
}

fn values(data: &[u8]) {
    let cipher = ValueCipher::new(&key());
    if cipher.open(b"context", data).is_ok() {
        assert!(cipher.open(b"another", data).is_err(), "moved elsewhere, it still opens");
    }
    let mut sealed = cipher.seal(b"context", data);
    assert_eq!(cipher.open(b"context", &sealed).ok().as_deref(), Some(data));
    let at = data.len() % sealed.len();
    sealed[at] ^= 1;
    assert!(cipher.open(b"context", &sealed).is_err(), "changed, it still opens");
}

fn kek_reference(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(parsed) = text.parse::<KekRef>() {
        let written = parsed.to_string();
        assert_eq!(written.parse::<KekRef>().ok(), Some(parsed), "{written} is another key than {text}");
    }
}

fn kek_reference_seeds() -> Vec<Vec<u8>> {
    [
        "file:/etc/kmsfs/volume.key",
        "https://name.vault.azure.net/keys/key",
        "https://127.0.0.1:8443/keys/key/0123456789abcdef0123456789abcdef",
        "cmd:pass show 'tenant a'",
        "fd:3",
        "credential:kmsfs.key",
    ]
    .map(|text| text.as_bytes().to_vec())
    .to_vec()
}

fn key_file(data: &[u8]) {
    let file = tempfile::NamedTempFile::with_prefix("kmsfs-key-").expect("a temporary file");
    std::fs::write(file.path(), data).expect("written");
    if LocalKms::new(file.path()).is_ok() {
        let text = data.strip_suffix(b"\n").unwrap_or(data);
        let key = BASE64.decode(text).expect("a key is in base64");
        assert!(key.len() == 32 && BASE64.encode(&key).as_bytes() == text, "two forms of one key");
    }
}

fn control_request(data: &[u8]) {
    if let Ok(parsed) = serde_json::from_slice::<Request>(data) {
        let written = serde_json::to_vec(&parsed).expect("JSON");
        let again: Request = serde_json::from_slice(&written).expect("what was written can be read");
        assert_eq!(serde_json::to_vec(&again).expect("JSON"), written);
    }
}

fn ids(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(id) = text.parse::<VolumeId>() {
        assert_eq!(id.to_string().parse().ok(), Some(id));
    }
    if let Ok(id) = text.parse::<DirId>() {
        assert_eq!(id.to_string().parse().ok(), Some(id));
    }
}

fn control_reply(data: &[u8]) {
    if let Ok(parsed) = serde_json::from_slice::<Reply>(data) {
        let written = serde_json::to_vec(&parsed).expect("JSON");
        let again: Reply = serde_json::from_slice(&written).expect("what was written can be read");
        assert_eq!(serde_json::to_vec(&again).expect("JSON"), written);
    }
}

const VOLUME: VolumeId = VolumeId([6; 16]);

/// A log of four lines, as format.md describes it, whose third and fourth are checkpoints.
fn audit_lines() -> Vec<u8> {
    let (mut out, mut head) = (Vec::new(), Head::default());
    let time = "2026-11-14T22:13:20.123Z";
    for event in ["unlock", "lock", "checkpoint", "checkpoint"] {
        let mac = audit::mac(&key(), VOLUME, "main", &head, time);
        let mac = if event == "checkpoint" { format!(r#""mac":"{mac}","#) } else { String::new() };
        let (seq, prev) = (head.seq + 1, audit::hex(&head.hash));
        let line = format!(r#"{{"seq":{seq},"time":"{time}","event":"{event}",{mac}"prev":"{prev}"}}"#);
        head = Head { seq, hash: *blake3::hash(line.as_bytes()).as_bytes() };
        out.extend_from_slice(line.as_bytes());
        out.push(b'\n');
    }
    out
}

/// Whatever is in a log, the lines before a checkpoint that is confirmed are what was written.
fn audit_log(data: &[u8]) {
    let directory = tempfile::tempdir().expect("a directory");
    std::fs::write(directory.path().join("main.00000001.jsonl"), data).expect("written");
    let root = DirStore::open(directory.path()).expect("opened").root();
    let verdicts = audit::verify(&*root, VOLUME, Some(&key()), None).expect("a verdict");
    let [verdict] = &verdicts[..] else { panic!("one series") };
    let tail = audit::tail(&*root, &mut Cursor::default()).expect("the lines");
    assert_eq!(tail.len() as u64, verdict.lines);
    assert!(verdict.torn_bytes <= data.len() as u64);
    if let (1, Some(seq)) = (verdict.first_seq, verdict.authenticated_to) {
        let lines = audit_lines();
        let written = lines.split_inclusive(|byte| *byte == b'\n').take(seq as usize - 1).collect::<Vec<_>>().concat();
        assert!(seq >= 3 && data.starts_with(&written), "checkpoint {seq} confirms what nobody wrote");
    }
    if let Some(line) = tail.into_iter().find_map(|line| line.read) {
        let again = audit::Read::parse(&serde_json::to_vec(&line.value).expect("JSON")).expect("a line");
        assert!((again.seq, again.prev, again.event) == (line.seq, line.prev, line.event));
    }
}

/// Gives a log a header and records that look whole, as far as they can: checksums, positions and lengths.
fn whole_log(data: &[u8]) -> Vec<u8> {
    let mut log = data.to_vec();
    let Some((page, rest)) = log.split_first_chunk_mut::<PAGE>() else { return log };
    page[..10].copy_from_slice(b"kmsfs/J\0\x02\0");
    let checksum = blake3::hash(&page[..PAGE - 32]);
    page[PAGE - 32..].copy_from_slice(checksum.as_bytes());
    let mut at = 0;
    while let Some(record) = rest.get_mut(at..).filter(|record| record.len() >= HEAD_LEN) {
        if record[..4] != record::MAGIC {
            at += record::ALIGN;
            continue;
        }
        let wanted = u64::from_le_bytes(record[8..16].try_into().expect("8 bytes"));
        let len = wanted.min((record.len() - HEAD_LEN) as u64);
        record[8..16].copy_from_slice(&len.to_le_bytes());
        record[16..24].copy_from_slice(&page[16..24]);
        record[24..32].copy_from_slice(&((PAGE + at) as u64).to_le_bytes());
        let end = HEAD_LEN + len as usize;
        let hash = blake3::Hasher::new().update(&record[..40]).update(&record[HEAD_LEN..end]).finalize();
        record[40..HEAD_LEN].copy_from_slice(&hash.as_bytes()[..24]);
        at += end.next_multiple_of(record::ALIGN);
    }
    log
}

/// Whatever is in the two logs, recovery comes to an end, and a second one finds nothing to do.
fn journal_logs(data: &[u8]) {
    let directory = tempfile::tempdir().expect("a directory");
    let path = |name: &str| directory.path().join(name);
    for name in ["journal", "tree"] {
        std::fs::create_dir(path(name)).expect("a directory");
    }
    for (name, log) in ["journal/log-a", "journal/log-b"].into_iter().zip(data.chunks(data.len().div_ceil(2).max(1))) {
        std::fs::write(path(name), whole_log(log)).expect("written");
    }
    let mut file = vec![0; 8192];
    file[16..32].fill(1);
    std::fs::write(path("tree/file"), &file).expect("written");
    let root = DirStore::open(directory.path()).expect("opened").root();
    let [logs, tree] = [b"journal".as_slice(), b"tree"].map(|name| root.open_dir(name).expect("opened"));
    let start = || {
        let file = tree.open_file(b"file", false).expect("it is still there");
        let mut bytes = vec![0; 1 << 16];
        let len = file.read_at(&mut bytes, StoredOffset(0)).expect("read");
        bytes.truncate(len);
        (bytes, file.inode().stat().expect("attributes").len)
    };
    // What cannot be put in place, such as a file that is longer than any, is refused.
    let Ok((journal, _)) = recovery::open(&*logs, &*tree, 64 << 10) else { return };
    drop(journal);
    let recovered = start();
    let (_, again) = recovery::open(&*logs, &*tree, 64 << 10).expect("what was recovered can be opened");
    assert_eq!((again.updates, again.damaged_at.len()), (0, 0), "recovered, and not done with");
    assert!(start() == recovered, "a second recovery changes something");
}

fn journal_logs_seeds() -> Vec<Vec<u8>> {
    let target = Target { file: FileId([1; 16]), ino: 12, path: b"file".to_vec() };
    let write = |at, len: usize| (StoredOffset(at), vec![at as u8; len][..].into());
    let log = |sequence, stored_len| {
        let mut log = log::encode(&State { sequence, ..State::default() }).to_vec();
        let mut records = Vec::new();
        for at in [4096, 5000, 4100] {
            let place = Place { sequence, position: (PAGE + records.len()) as u64, synced: PAGE as u64 };
            let voids = vec![(StoredOffset(at + 1), 10)];
            let update =
                Update { stored_len: StoredOffset(stored_len), writes: vec![write(at, 50), write(0, 8)], voids };
            record::encode_update(&target, &update, &place, &mut records);
        }
        record::encode_batch(
            sequence,
            &Place { sequence, position: (PAGE + records.len()) as u64, synced: 0 },
            &mut records,
        );
        records.resize(2048, 0);
        log.extend(records);
        log
    };
    vec![[log(1, 8192), log(2, 6000)].concat(), [log(9, 20_000), vec![0; PAGE + 2048]].concat()]
}

fn saved_check(data: &[u8]) {
    let file = tempfile::NamedTempFile::with_prefix("kmsfs-saved-").expect("a temporary file");
    std::fs::write(file.path(), data).expect("written");
    if let Ok(Some(saved)) = Saved::read(file.path(), "volume", 7) {
        saved.write(file.path()).expect("written");
        assert_eq!(Saved::read(file.path(), "volume", 7), Ok(Some(saved)));
    }
}

fn saved_check_seeds() -> Vec<Vec<u8>> {
    let mut saved = Saved::new("volume".into(), 7);
    let new = serde_json::to_vec(&saved).expect("JSON");
    saved.passed = Some(b"a/b".to_vec());
    let finding = br#"{"kind":"chunk","severity":"damage","path":"f","stored":"tree/f","what":"w","chunks":[[1,2]]}"#;
    let with_finding = String::from_utf8(serde_json::to_vec(&saved).expect("JSON")).expect("UTF-8");
    let with_finding =
        with_finding.replace(r#""findings":[]"#, &format!(r#""findings":[{}]"#, String::from_utf8_lossy(finding)));
    vec![new, with_finding.into_bytes()]
}

/// A line with method and path, and a body.
fn vault_request(data: &[u8]) {
    let mut lines = data.splitn(2, |byte| *byte == b'\n');
    let (line, body) = (lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
    if let Some((method, path)) = std::str::from_utf8(line).ok().and_then(|line| line.split_once(' '))
        && let Ok(method) = method.parse()
        && let Ok(call) = Call::parse(&method, path)
    {
        assert_eq!(Call::parse(&method, &format!("/{}/", path.trim_matches('/'))).ok(), Some(call), "{path}");
    }
    let _ = serde_json::from_slice::<documents::CreateBody>(body);
    let _ = serde_json::from_slice::<documents::UpdateBody>(body);
    let _ = serde_json::from_slice::<documents::BlockBody>(body);
    let _ = std::str::from_utf8(body).map(documents::decode_base64);
}

fn vault_request_seeds() -> Vec<Vec<u8>> {
    [
        "POST /keys/name/create\n{\"kty\":\"RSA\",\"key_size\":2048,\"attributes\":{\"enabled\":true,\"exp\":9}}",
        "POST /keys/name/0123456789abcdef0123456789abcdef/unwrapkey\n{\"alg\":\"RSA-OAEP-256\",\"value\":\"AA_-\"}",
        "POST /deletedkeys/name/recover\nAAEC",
    ]
    .map(|text| text.as_bytes().to_vec())
    .to_vec()
}
