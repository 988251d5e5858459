//! What every parser of kmsfs has to do with any bytes: not panic, and be the exact inverse of its encoder for what it
//! accepts, so that nothing has two forms. Checksums and MACs are put right first: a fuzzer would hardly guess them.
//! Driven by `tests/parsers.rs` with the stable toolchain, and by libFuzzer with `scripts/fuzz`.

use data_encoding::BASE64;
use kmsfs::crypto::Secret32;
use kmsfs::crypto::cipher::ValueCipher;
use kmsfs::crypto::derive::VolumeKeys;
use kmsfs::crypto::names::{NameCipher, classify};
use kmsfs::daemon::control::Request;
use kmsfs::format::header::{Envelope, Header, VerifiedPage};
use kmsfs::format::tags::{BLOCK_LEN, CHILDREN_PER_BLOCK, ENTRIES_PER_BLOCK, NO_BLOCK, TagBlock};
use kmsfs::format::volume::{Kek, KekRole, VolumeRecord};
use kmsfs::format::{ChunkSize, PAGE};
use kmsfs::journal::log::{self, State};
use kmsfs::journal::record::{self, HEAD_LEN, Place, Record};
use kmsfs::journal::{Crashed, Target, Update};
use kmsfs::kms::{KekId, KekRef, LocalKms, WrapAlgorithm, Wrapped};
use kmsfs::units::{DirId, Epoch, FileId, KekGeneration, PlainOffset, StoredOffset, VolumeId};
use std::sync::Arc;

/// A parser: its name, what is tried with it, and valid input to begin with.
pub type Parser = (&'static str, fn(&[u8]), fn() -> Vec<Vec<u8>>);

/// All parsers.
pub const PARSERS: &[Parser] = &[
    ("header", header, header_seeds),
    ("tag_block", tag_block, || vec![vec![0; BLOCK_LEN], (0..BLOCK_LEN).map(|n| n as u8).collect()]),
    ("volume_record", volume_record, volume_record_seeds),
    ("journal_header", journal_header, journal_header_seeds),
    ("journal_record", journal_record, journal_record_seeds),
    ("names", names, name_seeds),
    ("values", values, || vec![ValueCipher::new(&key()).seal(b"context", b"value")]),
    ("kek_reference", kek_reference, kek_reference_seeds),
    ("key_file", key_file, || {
        vec![BASE64.encode(&[7; 32]).into_bytes(), [BASE64.encode(&[9; 32]), "\n".into()].concat().into()]
    }),
    ("control_request", control_request, || vec![br#"{"version":1,"command":"status"}"#.to_vec()]),
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
    let mac = blake3::Hasher::new_keyed(key().expose()).update(&page[..MAC.start]).update(&page[MAC.end..]).finalize();
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
    };
    [header(None, NO_BLOCK), header(Some(envelope()), [8; 32])]
        .map(|header| VerifiedPage::new(header).seal(&key()).to_vec())
        .to_vec()
}

fn tag_block(data: &[u8]) {
    let bytes = padded::<BLOCK_LEN>(data);
    let block = u64::from(data.last().copied().unwrap_or(0));
    assert!(TagBlock::verify(&key(), block, bytes.clone(), &[1; 32]).is_err(), "a MAC that nobody made");
    let mac = *blake3::Hasher::new_keyed(key().expose())
        .update(&block.to_le_bytes())
        .update(&bytes[..])
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
        generation: 1,
        keks,
    };
    let two = vec![kek(1, KekRole::Recovery), kek(5, KekRole::Primary)];
    vec![record(false, vec![kek(0, KekRole::Primary)]).encode(&key()), record(true, two).encode(&key())]
}

fn journal_header(data: &[u8]) {
    let mut page = padded::<PAGE>(data);
    assert!(log::decode(&page).is_err() || page[..8] != *b"kmsfs/J\0" || log::decode(&page).is_ok());
    page[..10].copy_from_slice(b"kmsfs/J\0\x01\0");
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
        writes: vec![(StoredOffset(0), Arc::from(&b"fields"[..])), (StoredOffset(4096), Arc::from(&[7; 40][..]))],
        voids: vec![(StoredOffset(8192), 808)],
    };
    let (mut first, mut second) = (Vec::new(), Vec::new());
    record::encode_batch(77, &place, &mut first);
    record::encode_update(&target, &update, &place, &mut second);
    // Without what fills them up.
    first.truncate(HEAD_LEN + 8);
    second.truncate(HEAD_LEN + 16 + 8 + 8 + 12 + 5 + 16 + 12 + 6 + 12 + 40);
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
