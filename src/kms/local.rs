//! A raw 32-byte key in a file as the KEK: for trials, for tests, and for keys that another tool delivers.
//! The file is read anew at every call and the key is in memory for that call only, so to take the file away
//! *is* to revoke the key. Depends on the seam and `crypto`.
//! Invariant: what the file holds is either exactly one key or an error; nothing is stretched or cut.

use super::{CallIds, Facts, KekId, Kms, KmsError, KmsErrorKind, Unwrapped, WrapAlgorithm, Wrapped};
use crate::crypto::Secret32;
use crate::units::VolumeId;
use aes_gcm::aead::{AeadInOut, KeyInit};
use aes_gcm::{Aes256Gcm, Nonce, Tag};
use data_encoding::{BASE64, DecodeKind, HEXLOWER};
use rustix::fs::{Mode, OFlags};
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;
use zeroize::{Zeroize, Zeroizing};

/// Derives the key of one wrap from the KEK and the first half of the wrap's nonce. Frozen.
const WRAP_CONTEXT: &str = "kmsfs 2026 local wrap v1";
/// Derives the public fingerprint of a KEK. Frozen.
const FINGERPRINT_CONTEXT: &str = "kmsfs 2026 local kek fingerprint v1";

const NONCE_LEN: usize = 24;
const SECRET_LEN: usize = 32;
const TAG_LEN: usize = 16;
/// nonce ‖ ciphertext ‖ tag.
const BLOB_LEN: usize = NONCE_LEN + SECRET_LEN + TAG_LEN;
/// 32 bytes in base64, its one `=` included.
const TEXT_LEN: usize = 44;

const HOW_TO_MAKE: &str = "make one with 'kmsfs key generate' or 'openssl rand -base64 32'";

/// The code of a refusal because the file now holds another key than the one that wrapped.
///
/// It is a refusal, not damage: the key that wrapped is gone from where its owner kept it, as when a Key Vault
/// key was deleted and made anew under its old name. Were it damage, whoever overwrites the key to take the
/// data away would wait for the whole offline grace. The exit code is still `WrongKey`.
pub const KEY_REPLACED: &str = "KeyReplaced";
/// The code of a refusal because the file that held the key holds no key any more.
pub const KEY_MALFORMED: &str = "KeyMalformed";

/// The KEK in a file.
#[derive(Debug)]
pub struct LocalKms {
    path: PathBuf,
    /// The path as it is written into a [`KekId`].
    name: String,
}

impl LocalKms {
    /// The key in this file. A file that is there but holds no key is refused now; one that is not there, or
    /// may not be read, is refused when it is needed.
    ///
    /// # Errors
    /// [`KmsErrorKind::Misconfigured`].
    pub fn new(path: &Path) -> Result<Self, KmsError> {
        let name = path.to_str().ok_or_else(|| {
            KmsError::new(KmsErrorKind::Misconfigured, format!("the path '{}' is not UTF-8", path.display()))
                .hint("the key's path is recorded in the volume as text: move the file")
        })?;
        let kms = Self { path: path.to_owned(), name: name.to_owned() };
        match kms.read() {
            Err(error) if error.kind == KmsErrorKind::Misconfigured => Err(error),
            _ => {
                kms.warn_if_others_can_read();
                Ok(kms)
            }
        }
    }

    fn read(&self) -> Result<Secret32, KmsError> {
        read_key(&self.path)
    }

    fn id(&self, kek: &Secret32) -> KekId {
        KekId(format!("file:{}#{}", self.name, fingerprint(kek)))
    }

    fn warn_if_others_can_read(&self) {
        if let Ok(metadata) = std::fs::metadata(&self.path)
            && metadata.mode() & 0o077 != 0
        {
            let mode = format!("{:04o}", metadata.mode() & 0o7777);
            tracing::warn!(path = %self.name, mode, "the key file is open to group or others; chmod 600 it");
        }
    }
}

impl Kms for LocalKms {
    fn wrap(&self, secret: &Secret32, volume: VolumeId) -> Result<Wrapped, KmsError> {
        let kek = self.read()?;
        let mut nonce = [0; NONCE_LEN];
        getrandom::fill(&mut nonce)
            .map_err(|error| KmsError::new(KmsErrorKind::Unreachable, format!("no random bytes: {error}")))?;
        let blob = seal(&kek, nonce, secret, volume)?;
        Ok(Wrapped { kek: self.id(&kek), algorithm: WrapAlgorithm::LocalAes256Gcm, blob })
    }

    fn unwrap(&self, wrapped: &Wrapped, volume: VolumeId) -> Result<Unwrapped, KmsError> {
        let recorded = recorded_fingerprint(wrapped)?;
        let kek = self.read().map_err(|error| match error.kind {
            KmsErrorKind::Misconfigured => {
                KmsError { kind: KmsErrorKind::Refused, code: Some(KEY_MALFORMED.into()), ..error }
            }
            _ => error,
        })?;
        let found = fingerprint(&kek);
        if found != recorded {
            let message = format!("'{}' holds another key ({found}) than the one that wrapped ({recorded})", self.name);
            return Err(KmsError { code: Some(KEY_REPLACED.into()), ..KmsError::new(KmsErrorKind::Refused, message) }
                .hint("put the key that wrapped back into the file, or name the file that holds it"));
        }
        Ok(Unwrapped { secret: open(&kek, &wrapped.blob, volume)?, ids: CallIds::default() })
    }

    fn current(&self) -> Result<KekId, KmsError> {
        Ok(self.id(&self.read()?))
    }

    fn facts(&self) -> Result<Facts, KmsError> {
        Ok(Facts::new(self.current()?, "AES-256"))
    }

    fn deadline(&self) -> Duration {
        // A local file answers at once; one on a hung network filesystem is not waited for any better by this.
        Duration::from_secs(5)
    }
}

fn seal(kek: &Secret32, nonce: [u8; NONCE_LEN], secret: &Secret32, volume: VolumeId) -> Result<Vec<u8>, KmsError> {
    let (salt, gcm_nonce) = halves(&nonce);
    let mut blob = Vec::with_capacity(BLOB_LEN);
    blob.extend_from_slice(&nonce);
    let mut bytes = Zeroizing::new(*secret.expose());
    let tag = cipher(kek, salt)
        .encrypt_inout_detached(&gcm_nonce, &volume.0, bytes.as_mut_slice().into())
        .map_err(|_| KmsError::new(KmsErrorKind::Misconfigured, "32 bytes could not be wrapped"))?;
    blob.extend_from_slice(&bytes[..]);
    blob.extend_from_slice(&tag);
    Ok(blob)
}

fn open(kek: &Secret32, blob: &[u8], volume: VolumeId) -> Result<Secret32, KmsError> {
    let damaged = |what: &str| KmsError::new(KmsErrorKind::Damaged, format!("the wrapped secret {what}"));
    let blob: &[u8; BLOB_LEN] = blob.try_into().map_err(|_| damaged("is not 72 bytes long"))?;
    let (nonce, rest) = blob.split_at(NONCE_LEN);
    let (ciphertext, tag) = rest.split_at(SECRET_LEN);
    let tag = Tag::try_from(tag).map_err(|_| damaged("has no tag"))?;
    let nonce: &[u8; NONCE_LEN] = nonce.try_into().map_err(|_| damaged("has no nonce"))?;
    let (salt, gcm_nonce) = halves(nonce);
    let mut bytes = Zeroizing::new([0; SECRET_LEN]);
    bytes.copy_from_slice(ciphertext);
    cipher(kek, salt)
        .decrypt_inout_detached(&gcm_nonce, &volume.0, bytes.as_mut_slice().into(), &tag)
        .map_err(|_| damaged("does not verify under this key and volume"))?;
    Ok(Secret32::take(&mut bytes))
}

/// The nonce's first half goes into the derivation of the wrap's key, its second is GCM's own.
fn halves(nonce: &[u8; NONCE_LEN]) -> ([u8; 12], Nonce<aes_gcm::aead::consts::U12>) {
    let (mut salt, mut gcm) = ([0; 12], [0; 12]);
    salt.copy_from_slice(&nonce[..12]);
    gcm.copy_from_slice(&nonce[12..]);
    (salt, gcm.into())
}

fn cipher(kek: &Secret32, salt: [u8; 12]) -> Aes256Gcm {
    let mut hasher = blake3::Hasher::new_derive_key(WRAP_CONTEXT);
    hasher.update(kek.expose()).update(&salt);
    let key = Zeroizing::new(*hasher.finalize().as_bytes());
    hasher.zeroize();
    Aes256Gcm::new((&*key).into())
}

/// 16 hexadecimal digits that tell keys apart and give nothing of them away.
fn fingerprint(kek: &Secret32) -> String {
    let mut hasher = blake3::Hasher::new_derive_key(FINGERPRINT_CONTEXT);
    hasher.update(kek.expose());
    let digest = hasher.finalize();
    hasher.zeroize();
    HEXLOWER.encode(&digest.as_bytes()[..8])
}

fn recorded_fingerprint(wrapped: &Wrapped) -> Result<&str, KmsError> {
    let fingerprint =
        wrapped.kek.0.strip_prefix("file:").and_then(|rest| rest.rsplit_once('#')).map(|(_, digits)| digits);
    match fingerprint {
        Some(digits) if wrapped.algorithm == WrapAlgorithm::LocalAes256Gcm && digits.len() == 16 => Ok(digits),
        _ => {
            let message = format!("the secret was wrapped by {}, not by a raw key in a file", wrapped.kek);
            Err(KmsError::new(KmsErrorKind::Damaged, message).hint("name the KEK that wrapped it"))
        }
    }
}

/// Reads the one key in a file: 32 bytes in base64, and at most one newline.
fn read_key(path: &Path) -> Result<Secret32, KmsError> {
    let bad = |what: &str| {
        KmsError::new(KmsErrorKind::Misconfigured, format!("the key file '{}' {what}", path.display()))
            .hint(format!("a key file is one line of {TEXT_LEN} characters, 32 random bytes in base64; {HOW_TO_MAKE}"))
    };
    let failed = |error: std::io::Error| io_error(path, &error);
    // Not to hang on a pipe that nobody writes to.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = rustix::fs::open(path, flags, Mode::empty()).map_err(|error| failed(error.into()))?;
    let mut file = File::from(file);
    let metadata = file.metadata().map_err(failed)?;
    if metadata.is_dir() {
        return Err(bad("is a directory"));
    }
    if !metadata.is_file() {
        return Err(bad("is not a regular file, and is read anew at every call"));
    }
    match usize::try_from(metadata.len()) {
        Ok(0) => return Err(bad("is empty")),
        Ok(len) if len <= TEXT_LEN + 1 => {}
        _ => return Err(bad(&format!("is {} bytes long", metadata.len()))),
    }
    let mut text = Zeroizing::new([0; TEXT_LEN + 2]);
    let mut len = 0;
    while len < text.len() {
        match file.read(&mut text[len..]) {
            Ok(0) => break,
            Ok(n) => len += n,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(failed(error)),
        }
    }
    let line = match &text[..len] {
        [line @ .., b'\n'] => line,
        line => line,
    };
    if line.len() != TEXT_LEN {
        return Err(bad(&format!("holds {} characters", line.len())));
    }
    // The decoder takes several encodings one after the other for one.
    if line.iter().skip_while(|byte| **byte != b'=').any(|byte| *byte != b'=') {
        return Err(bad("is not standard base64"));
    }
    // The decoder wants room for 44 characters without padding: 33 bytes.
    let mut bytes = Zeroizing::new([0; TEXT_LEN / 4 * 3]);
    let decoded = BASE64.decode_mut(line, &mut bytes[..]).map_err(|partial| match partial.error.kind {
        DecodeKind::Trailing => bad("is not canonical base64: its last character has bits that mean nothing"),
        _ => bad("is not standard base64"),
    })?;
    if decoded != SECRET_LEN {
        return Err(bad(&format!("holds {decoded} bytes")));
    }
    if bytes.iter().all(|byte| *byte == 0) {
        return Err(bad("holds only zeros, which is not a key"));
    }
    Secret32::from_slice(&bytes[..SECRET_LEN]).ok_or_else(|| bad("holds no key"))
}

/// Absent or forbidden is the owner's will; everything else is the disk's.
fn io_error(path: &Path, error: &std::io::Error) -> KmsError {
    let path = path.display();
    let refused = |code: &str, what: &str| KmsError {
        code: Some(code.to_owned()),
        ..KmsError::new(KmsErrorKind::Refused, format!("the key file '{path}' {what}"))
    };
    match error.kind() {
        ErrorKind::NotFound | ErrorKind::NotADirectory => refused("KeyNotFound", "does not exist")
            .hint(format!("put the key back into '{path}'; a new one: {HOW_TO_MAKE}")),
        ErrorKind::PermissionDenied => {
            refused("AccessDenied", "may not be read").hint(format!("see who may read it: ls -l '{path}'"))
        }
        _ if error.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error()) => {
            KmsError::new(KmsErrorKind::Misconfigured, format!("the key file '{path}' is a symbolic link to itself"))
        }
        _ => KmsError::new(KmsErrorKind::Unreachable, format!("the key file '{path}' cannot be read: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::fs;
    use tempfile::TempDir;

    const KEY: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
    const VOLUME: VolumeId = VolumeId([9; 16]);

    fn holding(content: &[u8]) -> (TempDir, PathBuf) {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("key");
        fs::write(&path, content).unwrap();
        (dir, path)
    }

    fn secret() -> Secret32 {
        Secret32::take(&mut [0x5A; 32])
    }

    #[test]
    fn a_wrapped_secret_comes_back() {
        let (_dir, path) = holding(KEY.as_bytes());
        let kms = LocalKms::new(&path).unwrap();
        let wrapped = kms.wrap(&secret(), VOLUME).unwrap();
        assert_eq!((wrapped.blob.len(), &wrapped.kek), (72, &kms.current().unwrap()));
        assert_eq!(kms.unwrap(&wrapped, VOLUME).unwrap().secret.expose(), secret().expose());
    }

    #[test]
    fn the_format_of_a_wrapped_secret_is_frozen() {
        let (_dir, path) = holding(KEY.as_bytes());
        let kek = read_key(&path).unwrap();
        let nonce: [u8; 24] = std::array::from_fn(|i| i as u8);
        let blob = seal(&kek, nonce, &secret(), VOLUME).unwrap();
        assert_eq!(HEXLOWER.encode(&blob), FROZEN_BLOB);
        assert_eq!(fingerprint(&kek), FROZEN_FINGERPRINT);
    }
    const FROZEN_BLOB: &str = concat!(
        "000102030405060708090a0b0c0d0e0f1011121314151617",
        "ea3f38394a2e1539600fb928e1cdae09b0cfe3f439fe080d71601b90ebe33242",
        "9d386c86ad5cdcf8217cce7fe5cef6e4"
    );
    const FROZEN_FINGERPRINT: &str = "4bdf1f1e32b85eb3";

    #[test]
    fn a_second_implementation_unwraps_the_frozen_blob() {
        use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
        let blob = HEXLOWER.decode(FROZEN_BLOB.as_bytes()).unwrap();
        let mut material = BASE64.decode(KEY.as_bytes()).unwrap();
        material.extend_from_slice(&blob[..12]);
        let key =
            LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &blake3::derive_key(WRAP_CONTEXT, &material)).unwrap());
        let nonce = Nonce::try_assume_unique_for_key(&blob[12..24]).unwrap();
        let mut rest = blob[24..].to_vec();
        assert_eq!(key.open_in_place(nonce, Aad::from(VOLUME.0), &mut rest).unwrap(), secret().expose());
    }

    #[test]
    fn two_wraps_of_one_secret_differ() {
        let (_dir, path) = holding(KEY.as_bytes());
        let kms = LocalKms::new(&path).unwrap();
        assert_ne!(kms.wrap(&secret(), VOLUME).unwrap().blob, kms.wrap(&secret(), VOLUME).unwrap().blob);
    }

    #[test]
    fn any_flipped_bit_another_length_and_another_volume_are_damage() {
        let (_dir, path) = holding(KEY.as_bytes());
        let kms = LocalKms::new(&path).unwrap();
        let wrapped = kms.wrap(&secret(), VOLUME).unwrap();
        let damage = |wrapped: &Wrapped, volume| kms.unwrap(wrapped, volume).expect_err("it unwrapped").kind;
        for bit in 0..72 * 8 {
            let mut flipped = wrapped.clone();
            flipped.blob[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(damage(&flipped, VOLUME), KmsErrorKind::Damaged, "bit {bit}");
        }
        for len in [0, 24, 71] {
            let cut = Wrapped { blob: wrapped.blob[..len].to_vec(), ..wrapped.clone() };
            assert_eq!(damage(&cut, VOLUME), KmsErrorKind::Damaged, "{len} bytes");
        }
        assert_eq!(damage(&wrapped, VolumeId([8; 16])), KmsErrorKind::Damaged);
    }

    #[test]
    fn a_file_that_is_not_one_key_is_refused_with_a_hint() {
        let too_long = "A".repeat(1 << 20);
        let cases = [
            ("", "empty"),
            ("\n", "holds 0 characters"),
            ("AAECAwQFBgcICQoLDA0ODw==", "holds 24 characters"),
            ("AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=\n\n", "46 bytes long"),
            ("AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=\r\n", "46 bytes long"),
            ("AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8= ", "holds 45 characters"),
            ("AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8", "holds 43 characters"),
            ("AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh9=", "not canonical"),
            ("AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHhg_", "not standard base64"),
            ("AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8f", "holds 33 bytes"),
            ("AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHg==", "holds 31 bytes"),
            ("BwcHBwcHBwc=HBwcHBBwcHBwHBwcHBwcHwcHBwcHBwc2", "not standard base64"),
            ("AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=", "only zeros"),
            (too_long.as_str(), "1048576 bytes long"),
        ];
        for (content, what) in cases {
            let (_dir, path) = holding(content.as_bytes());
            let error = LocalKms::new(&path).expect_err(what);
            assert_eq!(error.kind, KmsErrorKind::Misconfigured, "{content:.50}");
            assert!(error.message.contains(what), "{content:.50}: {}", error.message);
            assert!(error.hint.unwrap().contains("kmsfs key generate"), "{content:.50}");
            assert!(content.len() < 8 || !error.message.contains(&content[..8]), "the message shows the content");
        }
    }

    #[test]
    fn a_directory_and_a_pipe_without_a_writer_are_refused_at_once() {
        let dir = TempDir::new().unwrap();
        assert!(LocalKms::new(dir.path()).unwrap_err().message.contains("is a directory"));
        let pipe = dir.path().join("pipe");
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, Mode::RWXU, 0).unwrap();
        assert!(LocalKms::new(&pipe).unwrap_err().message.contains("not a regular file"));
    }

    #[test]
    fn a_symbolic_link_and_one_newline_are_fine() {
        let (dir, path) = holding(format!("{KEY}\n").as_bytes());
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        let kms = LocalKms::new(&link).unwrap();
        assert!(kms.current().unwrap().0.starts_with(&format!("file:{}#", link.display())));
    }

    #[test]
    fn a_removed_file_is_a_revocation_and_putting_it_back_ends_it() {
        let (dir, path) = holding(KEY.as_bytes());
        let kms = LocalKms::new(&path).unwrap();
        let wrapped = kms.wrap(&secret(), VOLUME).unwrap();
        let away = dir.path().join("away");
        fs::rename(&path, &away).unwrap();
        assert_eq!(kms.unwrap(&wrapped, VOLUME).unwrap_err().kind, KmsErrorKind::Refused);
        fs::rename(&away, &path).unwrap();
        assert!(kms.unwrap(&wrapped, VOLUME).is_ok());
    }

    #[test]
    fn another_key_or_no_key_in_the_file_is_a_revocation_too() {
        let (_dir, path) = holding(KEY.as_bytes());
        let kms = LocalKms::new(&path).unwrap();
        let wrapped = kms.wrap(&secret(), VOLUME).unwrap();
        let other = BASE64.encode(&[1; 32]);
        for (content, code) in [(other.as_str(), KEY_REPLACED), ("", KEY_MALFORMED)] {
            fs::write(&path, content).unwrap();
            let error = kms.unwrap(&wrapped, VOLUME).unwrap_err();
            assert_eq!((error.kind, error.code.as_deref()), (KmsErrorKind::Refused, Some(code)));
        }
    }

    #[test]
    fn an_absent_file_and_a_forbidden_one_are_refusals_and_a_broken_disk_is_not() {
        let kind = |errno: rustix::io::Errno| io_error(Path::new("/k"), &errno.into()).kind;
        assert_eq!(kind(rustix::io::Errno::NOENT), KmsErrorKind::Refused);
        assert_eq!(kind(rustix::io::Errno::NOTDIR), KmsErrorKind::Refused);
        assert_eq!(kind(rustix::io::Errno::ACCESS), KmsErrorKind::Refused);
        assert_eq!(kind(rustix::io::Errno::PERM), KmsErrorKind::Refused);
        assert_eq!(kind(rustix::io::Errno::IO), KmsErrorKind::Unreachable);
        assert_eq!(kind(rustix::io::Errno::STALE), KmsErrorKind::Unreachable);
        assert_eq!(kind(rustix::io::Errno::MFILE), KmsErrorKind::Unreachable);
    }

    #[test]
    fn a_secret_that_another_provider_wrapped_is_damage() {
        let (_dir, path) = holding(KEY.as_bytes());
        let kms = LocalKms::new(&path).unwrap();
        let mut wrapped = kms.wrap(&secret(), VOLUME).unwrap();
        wrapped.kek = KekId("https://v.vault.azure.net/keys/k/0123456789abcdef0123456789abcdef".into());
        assert_eq!(kms.unwrap(&wrapped, VOLUME).unwrap_err().kind, KmsErrorKind::Damaged);
    }

    proptest! {
        #[test]
        fn no_content_makes_the_reader_panic_or_take_another_key(content in proptest::collection::vec(any::<u8>(), 0..60)) {
            let (_dir, path) = holding(&content);
            if let Ok(key) = read_key(&path) {
                let text = BASE64.encode(key.expose());
                let line = content.strip_suffix(b"\n").unwrap_or(&content);
                prop_assert_eq!(line, text.as_bytes());
            }
        }
    }
}
