//! Raw keys in files, and in the files of systemd credentials. A file is read anew at every call, so to take it away *is*
//! to revoke the key.

use super::text::{self, HOW_TO_MAKE, TEXT_LEN, malformed};
use crate::crypto::Secret32;
use crate::kms::{KmsError, KmsErrorKind};
use rustix::fs::{Mode, OFlags};
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use zeroize::Zeroizing;

/// Reads the one key in the file at a path, which messages call `place`.
pub(super) fn read(place: &str, path: &Path) -> Result<Secret32, KmsError> {
    let failed = |error: std::io::Error| io_error(place, path, &error);
    // Not to hang on a pipe that nobody writes to.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = rustix::fs::open(path, flags, Mode::empty()).map_err(|error| failed(error.into()))?;
    read_open(place, &File::from(file), &failed)
}

/// Reads the one key in an open file, from its beginning.
pub(super) fn read_open(
    place: &str,
    file: &File,
    failed: &dyn Fn(std::io::Error) -> KmsError,
) -> Result<Secret32, KmsError> {
    let metadata = file.metadata().map_err(failed)?;
    if metadata.is_dir() {
        return Err(malformed(place, "is a directory"));
    }
    if !metadata.is_file() {
        return Err(malformed(place, "is not a regular file, and is read anew at every call"));
    }
    match usize::try_from(metadata.len()) {
        Ok(0) => return Err(malformed(place, "is empty")),
        Ok(len) if len <= TEXT_LEN + 1 => {}
        _ => return Err(malformed(place, &format!("is {} bytes long", metadata.len()))),
    }
    let mut content = Zeroizing::new([0; text::ENOUGH]);
    let mut len = 0;
    while len < content.len() {
        match file.read_at(&mut content[len..], len as u64) {
            Ok(0) => break,
            Ok(n) => len += n,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(failed(error)),
        }
    }
    text::parse(place, &content[..len])
}

/// Reads what a pipe or a socket has, until its end, or until it is too much for a key.
pub(super) fn read_stream(
    place: &str,
    stream: &mut impl Read,
    failed: &dyn Fn(std::io::Error) -> KmsError,
) -> Result<Secret32, KmsError> {
    let mut content = Zeroizing::new([0; text::ENOUGH]);
    let mut len = 0;
    while len < content.len() {
        match stream.read(&mut content[len..]) {
            Ok(0) => break,
            Ok(n) => len += n,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(failed(error)),
        }
    }
    text::parse(place, &content[..len])
}

/// Who else may read a key file, in words.
pub(super) fn open_to_others(place: &str, path: &Path) -> Option<String> {
    let mode = std::fs::metadata(path).ok()?.mode() & 0o7777;
    (mode & 0o077 != 0).then(|| format!("{place} is open to group or others (mode {mode:04o}): chmod 600 it"))
}

/// Absent or forbidden is the owner's will; everything else is the disk's.
fn io_error(place: &str, path: &Path, error: &std::io::Error) -> KmsError {
    let path = path.display();
    let refused = |code: &str, what: &str| KmsError {
        code: Some(code.to_owned()),
        ..KmsError::new(KmsErrorKind::Refused, format!("{place} {what}"))
    };
    match error.kind() {
        ErrorKind::NotFound | ErrorKind::NotADirectory => refused("KeyNotFound", "does not exist")
            .hint(format!("put the key back into '{path}'; a new one: {HOW_TO_MAKE}")),
        ErrorKind::PermissionDenied => {
            refused("AccessDenied", "may not be read").hint(format!("see who may read it: ls -l '{path}'"))
        }
        _ if error.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error()) => {
            KmsError::new(KmsErrorKind::Misconfigured, format!("{place} is a symbolic link to itself"))
        }
        _ => KmsError::new(KmsErrorKind::Unreachable, format!("{place} cannot be read: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kms::local::tests::{KEY, holding};
    use crate::kms::{Kms, LocalKms};
    use data_encoding::BASE64;
    use proptest::prelude::*;
    use tempfile::TempDir;

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
            ("BwcHBwcHBwc=HBwcHBBwcHBwHBwcHBwcHwcHBwcHBwc2", "not standard base64"),
            ("AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHhg_", "not standard base64"),
            ("AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8f", "holds 33 bytes"),
            ("AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHg==", "holds 31 bytes"),
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
    fn an_absent_file_and_a_forbidden_one_are_refusals_and_a_broken_disk_is_not() {
        let kind = |errno: rustix::io::Errno| io_error("it", Path::new("/k"), &errno.into()).kind;
        assert_eq!(kind(rustix::io::Errno::NOENT), KmsErrorKind::Refused);
        assert_eq!(kind(rustix::io::Errno::NOTDIR), KmsErrorKind::Refused);
        assert_eq!(kind(rustix::io::Errno::ACCESS), KmsErrorKind::Refused);
        assert_eq!(kind(rustix::io::Errno::PERM), KmsErrorKind::Refused);
        assert_eq!(kind(rustix::io::Errno::IO), KmsErrorKind::Unreachable);
        assert_eq!(kind(rustix::io::Errno::STALE), KmsErrorKind::Unreachable);
        assert_eq!(kind(rustix::io::Errno::MFILE), KmsErrorKind::Unreachable);
    }
    proptest! {
        #[test]
        fn no_content_makes_the_reader_panic_or_take_another_key(content in proptest::collection::vec(any::<u8>(), 0..60)) {
            let (_dir, path) = holding(&content);
            if let Ok(key) = read("it", &path) {
                let text = BASE64.encode(key.expose());
                let line = content.strip_suffix(b"\n").unwrap_or(&content);
                prop_assert_eq!(line, text.as_bytes());
            }
        }
    }
}
