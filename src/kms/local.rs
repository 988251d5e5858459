//! A raw 32-byte key as the KEK: in a file, printed by a command, in an inherited file descriptor, or as a systemd
//! credential. It is asked for anew at every call wherever that is possible and is in memory for that call only, so to
//! take it away *is* to revoke it. Depends on the seam and `crypto`.
//! Invariant: what a source gives is either exactly one key or an error, and a key is the same key wherever it comes from.

mod command;
mod descriptor;
mod file;
mod text;
mod words;
mod wrap;

use super::{CallIds, Facts, KekId, KeyState, Kms, KmsError, KmsErrorKind, Unwrapped, WrapAlgorithm, Wrapped};
use crate::crypto::Secret32;
use crate::units::VolumeId;
use command::Command;
use descriptor::Descriptor;
use std::path::{Path, PathBuf};
use std::time::Duration;
pub(super) use text::looks_like_a_key;
use wrap::{NONCE_LEN, fingerprint, open, seal};

/// The code of a refusal because the source now gives another key than the one that wrapped.
///
/// It is a refusal, not damage: the key that wrapped is gone from where its owner kept it, as when a Key Vault
/// key was deleted and made anew under its old name. Were it damage, whoever overwrites the key to take the
/// data away would wait for the whole offline grace. The exit code is still `WrongKey`.
pub const KEY_REPLACED: &str = "KeyReplaced";
/// The code of a refusal because what gave the key gives no key any more.
pub const KEY_MALFORMED: &str = "KeyMalformed";

/// What the id of a raw key begins with that no place goes with: a command or a descriptor is none.
const ANYWHERE: &str = "raw:";
/// Hexadecimal digits of a fingerprint.
const FINGERPRINT_LEN: usize = 16;

/// A raw key as the KEK.
#[derive(Debug)]
pub struct LocalKms {
    source: Source,
    /// What messages call the source.
    place: String,
    /// What a [`KekId`] begins with: the place of the key, up to its fingerprint.
    prefix: String,
}

#[derive(Debug)]
enum Source {
    File(PathBuf),
    Command(Command),
    Descriptor(Descriptor),
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
        Self::tried(Source::File(path.to_owned()), format!("the key file '{name}'"), format!("file:{name}#"))
    }

    /// The systemd credential of this name, in the directory that the service manager gave.
    ///
    /// # Errors
    /// [`KmsErrorKind::Misconfigured`], also if there is no such directory.
    pub fn credential(name: &str, directory: Option<&Path>) -> Result<Self, KmsError> {
        let directory = directory.ok_or_else(|| {
            let message = format!("the credential '{name}' cannot be looked up: CREDENTIALS_DIRECTORY is not set");
            KmsError::new(KmsErrorKind::Misconfigured, message).hint(
                "run kmsfs as a service with LoadCredential= or LoadCredentialEncrypted=, or name the key elsewhere",
            )
        })?;
        let place = format!("the credential '{name}'");
        Self::tried(Source::File(directory.join(name)), place, format!("credential:{name}#"))
    }

    /// The key that a command prints, each time within `bound`. It is run for the first time when it is needed.
    ///
    /// # Errors
    /// [`KmsErrorKind::Misconfigured`].
    pub fn command(line: &str, bound: Duration) -> Result<Self, KmsError> {
        let command = Command::new(line, bound)?;
        let place = command.place();
        Ok(Self { source: Source::Command(command), place, prefix: ANYWHERE.to_owned() })
    }

    /// The key in the file descriptor of this number, which this process has inherited.
    ///
    /// # Errors
    /// [`KmsErrorKind::Misconfigured`].
    pub fn descriptor(number: u32, bound: Duration) -> Result<Self, KmsError> {
        let place = format!("file descriptor {number}");
        let descriptor = Descriptor::take(number, &place, bound)?;
        Self::tried(Source::Descriptor(descriptor), place, ANYWHERE.to_owned())
    }

    /// Refuses what is there and holds no key.
    fn tried(source: Source, place: String, prefix: String) -> Result<Self, KmsError> {
        let kms = Self { source, place, prefix };
        match kms.read() {
            Err(error) if error.kind == KmsErrorKind::Misconfigured => Err(error),
            _ => Ok(kms),
        }
    }

    fn read(&self) -> Result<Secret32, KmsError> {
        match &self.source {
            Source::File(path) => file::read(&self.place, path),
            Source::Command(command) => text::parse(&self.place, &command.run()?),
            Source::Descriptor(descriptor) => descriptor.read(&self.place),
        }
    }

    /// The key, from a source that has given it before: one that gives something else now has lost it.
    fn read_again(&self) -> Result<Secret32, KmsError> {
        let lost = |error: KmsError| match error.kind {
            KmsErrorKind::Misconfigured => {
                KmsError { kind: KmsErrorKind::Refused, code: Some(KEY_MALFORMED.into()), ..error }
            }
            _ => error,
        };
        match &self.source {
            // What keeps a command from being run says nothing about the key.
            Source::Command(command) => text::parse(&self.place, &command.run()?).map_err(lost),
            _ => self.read().map_err(lost),
        }
    }

    fn id(&self, kek: &Secret32) -> KekId {
        KekId(format!("{}{}", self.prefix, fingerprint(kek)))
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
        let kek = self.read_again()?;
        let found = fingerprint(&kek);
        if found != recorded {
            let message = format!("{} is another key ({found}) than the one that wrapped ({recorded})", self.place);
            return Err(KmsError { code: Some(KEY_REPLACED.into()), ..KmsError::new(KmsErrorKind::Refused, message) }
                .hint("put the key that wrapped back, or say with --kek where it is"));
        }
        Ok(Unwrapped { secret: open(&kek, &wrapped.blob, volume)?, ids: CallIds::default() })
    }

    fn current(&self) -> Result<KekId, KmsError> {
        Ok(self.id(&self.read()?))
    }

    fn facts(&self) -> Result<Facts, KmsError> {
        Ok(Facts::new(self.current()?, "AES-256"))
    }

    fn key_state(&self, key: &KekId) -> KeyState {
        match self.current() {
            Ok(found) if found.is_same_key(key) => KeyState::Usable,
            Ok(_) => KeyState::NotShown(format!("{} is another key now; {OTHER_COPIES}", self.place)),
            Err(error) => KeyState::NotShown(format!("{error}; {OTHER_COPIES}")),
        }
    }

    fn warnings(&self) -> Vec<String> {
        match &self.source {
            Source::File(path) => file::open_to_others(&self.place, path).into_iter().collect(),
            Source::Command(_) => Vec::new(),
            Source::Descriptor(descriptor) => vec![descriptor.warning(&self.place)],
        }
    }

    fn forget(&self) {
        if let Source::Descriptor(descriptor) = &self.source {
            descriptor.forget();
        }
    }

    fn deadline(&self) -> Duration {
        match &self.source {
            Source::Command(command) => command.bound,
            // It answers at once; one on a hung network filesystem is not waited for any better by this.
            _ => Duration::from_secs(5),
        }
    }
}

/// What can never be known of a raw key.
const OTHER_COPIES: &str = "kmsfs cannot know whether other copies of a raw key exist";

/// The fingerprint in the id of a raw key, `None` for the id of any other key.
pub(super) fn fingerprint_of(id: &KekId) -> Option<&str> {
    let digits = match id.0.strip_prefix(ANYWHERE) {
        Some(digits) => digits,
        None => {
            let place = id.0.strip_prefix("file:").or_else(|| id.0.strip_prefix("credential:"))?;
            place.rsplit_once('#')?.1
        }
    };
    (digits.len() == FINGERPRINT_LEN).then_some(digits)
}

fn recorded_fingerprint(wrapped: &Wrapped) -> Result<&str, KmsError> {
    let fingerprint = fingerprint_of(&wrapped.kek);
    fingerprint.filter(|_| wrapped.algorithm == WrapAlgorithm::LocalAes256Gcm).ok_or_else(|| {
        let message = format!("the secret was wrapped by {}, not by a raw key", wrapped.kek);
        KmsError::new(KmsErrorKind::Damaged, message).hint("name the KEK that wrapped it")
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use data_encoding::BASE64;
    use std::fs;
    use tempfile::TempDir;

    pub(super) const KEY: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
    const VOLUME: VolumeId = VolumeId([9; 16]);

    pub(super) fn holding(content: &[u8]) -> (TempDir, PathBuf) {
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
    fn a_secret_that_another_provider_wrapped_is_damage() {
        let (_dir, path) = holding(KEY.as_bytes());
        let kms = LocalKms::new(&path).unwrap();
        let mut wrapped = kms.wrap(&secret(), VOLUME).unwrap();
        wrapped.kek = KekId("https://v.vault.azure.net/keys/k/0123456789abcdef0123456789abcdef".into());
        assert_eq!(kms.unwrap(&wrapped, VOLUME).unwrap_err().kind, KmsErrorKind::Damaged);
    }

    #[test]
    fn a_key_is_the_same_key_wherever_it_comes_from() {
        let (dir, path) = holding(KEY.as_bytes());
        let file = LocalKms::new(&path).unwrap();
        let command = LocalKms::command(&format!("cat {}", path.display()), Duration::from_secs(60)).unwrap();
        let credential = LocalKms::credential("key", Some(dir.path())).unwrap();
        let all: [&LocalKms; 3] = [&file, &command, &credential];
        for one in all {
            let wrapped = one.wrap(&secret(), VOLUME).unwrap();
            for other in all {
                assert_eq!(other.unwrap(&wrapped, VOLUME).unwrap().secret.expose(), secret().expose());
                assert!(other.current().unwrap().is_same_key(&wrapped.kek));
                assert_eq!(other.key_state(&wrapped.kek), KeyState::Usable);
            }
        }
        assert_eq!(command.current().unwrap().0, "raw:4bdf1f1e32b85eb3");
        assert_eq!(credential.current().unwrap().0, "credential:key#4bdf1f1e32b85eb3");
    }

    #[test]
    fn a_command_that_gives_no_key_any_more_revokes_and_one_that_cannot_be_run_does_not() {
        let (dir, path) = holding(KEY.as_bytes());
        let script = dir.path().join("script");
        let write = |text: &str| {
            // Replaced as a whole: a script that is being written cannot be run.
            let new = dir.path().join("new");
            fs::write(&new, text).unwrap();
            fs::set_permissions(&new, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
            fs::rename(&new, &script).unwrap();
        };
        write(&format!("#!/bin/sh\ncat {}\n", path.display()));
        let kms = LocalKms::command(script.to_str().unwrap(), Duration::from_secs(60)).unwrap();
        let wrapped = kms.wrap(&secret(), VOLUME).unwrap();
        let kind = || kms.unwrap(&wrapped, VOLUME).expect_err("no key").kind;
        write("#!/bin/sh\n");
        assert_eq!(kind(), KmsErrorKind::Refused);
        write("#!/bin/sh\nexit 75\n");
        assert_eq!(kind(), KmsErrorKind::Unreachable);
        fs::remove_file(&script).unwrap();
        assert_eq!(kind(), KmsErrorKind::Misconfigured);
        write(&format!("#!/bin/sh\ncat {}\n", path.display()));
        assert!(kms.unwrap(&wrapped, VOLUME).is_ok());
    }

    #[test]
    fn the_state_of_a_raw_key_that_is_away_is_never_shown() {
        let (_dir, path) = holding(KEY.as_bytes());
        let kms = LocalKms::new(&path).unwrap();
        let key = kms.current().unwrap();
        fs::write(&path, BASE64.encode(&[1; 32])).unwrap();
        assert!(matches!(kms.key_state(&key), KeyState::NotShown(why) if why.contains("other copies")));
        fs::remove_file(&path).unwrap();
        assert!(matches!(kms.key_state(&key), KeyState::NotShown(why) if why.contains("other copies")));
    }

    #[test]
    fn a_key_that_others_may_read_is_warned_of() {
        let (_dir, path) = holding(KEY.as_bytes());
        let mode = |mode| fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
        mode(0o640);
        assert!(LocalKms::new(&path).unwrap().warnings()[0].contains("0640"));
        mode(0o400);
        assert_eq!(LocalKms::new(&path).unwrap().warnings(), Vec::<String>::new());
    }

    #[test]
    fn ids_that_only_look_like_those_of_raw_keys_have_no_fingerprint() {
        for id in ["file:/k", "file:/k#1", "raw:", "raw:xyz", "https://v/keys/k#0123456789abcdef", "0123456789abcdef"] {
            assert_eq!(fingerprint_of(&KekId(id.into())), None, "{id}");
        }
        assert!(KekId("raw:0123456789abcdef".into()).is_same_key(&KekId("file:/a#b#0123456789abcdef".into())));
        assert!(!KekId("raw:0123456789abcdee".into()).is_same_key(&KekId("file:/a#0123456789abcdef".into())));
    }
}
