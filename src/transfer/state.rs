//! What an import or export remembers, so that it can go on: a line for each file that is copied, durable and read back.
//! Paths and contents are remembered as keyed hashes, so that the state can lie beside a volume and tell nothing.

use super::content::Hash;
use crate::crypto::Secret32;
use crate::store::{Stat, Timestamp};
use data_encoding::HEXLOWER;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::fmt;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// The file in a volume's directory in which an import remembers how far it is.
pub const IMPORT_STATE: &str = "import.state";
/// The file in the directory of an export.
pub const EXPORT_STATE: &str = ".kmsfs-export.state";
const VERSION: u32 = 1;

/// The first line.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Begin {
    kmsfs: String,
    version: u32,
    volume: String,
}

/// The line of one file.
#[derive(Serialize, Deserialize)]
struct Line {
    path: String,
    file: String,
    hash: String,
}

/// By the hash of its path, what a file looked like and the hash of its content.
type Files = HashMap<Hash, (Hash, Hash)>;

/// The state of one import or export.
pub struct State {
    path: PathBuf,
    key: Secret32,
    /// It was there: something goes on.
    resumed: bool,
    files: Files,
    out: Mutex<io::BufWriter<File>>,
}

/// Why a state cannot be used.
#[derive(Debug)]
pub enum StateError {
    /// It is of something else, or no state.
    Foreign(String),
    /// The system's.
    Io(io::Error),
}

impl fmt::Display for StateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Foreign(what) => f.write_str(what),
            Self::Io(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for StateError {}

impl From<io::Error> for StateError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl State {
    /// Whether there is a state to go on from.
    pub fn exists(path: &Path) -> bool {
        path.symlink_metadata().is_ok()
    }

    /// Begins a state, or goes on with the one that is there. `what` is `import` or `export`, `key` the volume's for this.
    ///
    /// # Errors
    /// [`StateError`]; what is there is not changed then.
    pub fn open(path: &Path, what: &str, volume: String, key: Secret32) -> Result<Self, StateError> {
        let begin = Begin { kmsfs: what.to_owned(), version: VERSION, volume };
        let mut options = File::options();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let mut file = options.custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path)?;
        let (files, whole) = read(&file, &begin)?;
        let resumed = whole > 0;
        // A line that a crash cut off is none.
        file.set_len(whole)?;
        file.seek(SeekFrom::End(0))?;
        let mut out = io::BufWriter::new(file);
        if !resumed {
            write_line(&mut out, &begin)?;
            out.flush()?;
            out.get_ref().sync_all()?;
        }
        Ok(Self { path: path.to_owned(), key, resumed, files, out: Mutex::new(out) })
    }

    /// Whether there was one before.
    pub fn is_resumed(&self) -> bool {
        self.resumed
    }

    /// The key of all hashes.
    pub fn key(&self) -> &Secret32 {
        &self.key
    }

    /// What was remembered of the content at a path, if it was copied; the second: whether the source is still as it was.
    pub fn known(&self, path: &[u8], stat: &Stat) -> Option<(Hash, bool)> {
        let (file, hash) = self.files.get(&self.hash(path))?;
        Some((*hash, *file == self.look(stat)))
    }

    /// Remembers a file that is copied, durable and read back.
    ///
    /// # Errors
    /// The system's.
    pub fn add(&self, path: &[u8], stat: &Stat, hash: &Hash) -> io::Result<()> {
        let line = Line {
            path: HEXLOWER.encode(&self.hash(path)),
            file: HEXLOWER.encode(&self.look(stat)),
            hash: HEXLOWER.encode(hash),
        };
        write_line(&mut *self.out.lock(), &line)
    }

    /// Makes it durable.
    ///
    /// # Errors
    /// The system's.
    pub fn sync(&self) -> io::Result<()> {
        let mut out = self.out.lock();
        out.flush()?;
        out.get_ref().sync_data()
    }

    /// Removes it: everything is done.
    ///
    /// # Errors
    /// The system's.
    pub fn finish(self) -> io::Result<()> {
        std::fs::remove_file(self.path)
    }

    fn hash(&self, bytes: &[u8]) -> Hash {
        *blake3::keyed_hash(self.key.expose(), bytes).as_bytes()
    }

    /// By what it is seen whether a file is still as it was.
    fn look(&self, stat: &Stat) -> Hash {
        let time = |time: Timestamp| (time.seconds, time.nanoseconds);
        self.hash(format!("{} {:?} {:?}", stat.len.0, time(stat.mtime), time(stat.ctime)).as_bytes())
    }
}

fn write_line(out: &mut impl Write, line: &impl Serialize) -> io::Result<()> {
    let mut text = serde_json::to_vec(line)?;
    text.push(b'\n');
    out.write_all(&text)
}

/// The files of a state, and up to where it is whole; nothing for an empty one.
fn read(file: &File, begin: &Begin) -> Result<(Files, u64), StateError> {
    let foreign = |what: &str| StateError::Foreign(what.to_owned());
    if !file.metadata()?.is_file() {
        return Err(foreign("it is no file"));
    }
    let mut reader = BufReader::new(file);
    let (mut files, mut whole, mut text) = (HashMap::new(), 0, Vec::new());
    while reader.read_until(b'\n', &mut text)? > 0 {
        if text.last() != Some(&b'\n') {
            break;
        }
        if whole == 0 {
            let found: Begin = serde_json::from_slice(&text).map_err(|_| foreign("it is not the state of anything"))?;
            if found != *begin {
                return Err(foreign("it is the state of something else"));
            }
        } else {
            let line: Line = serde_json::from_slice(&text).map_err(|_| foreign("it is damaged"))?;
            let hash = |text: &str| HEXLOWER.decode(text.as_bytes()).ok()?.try_into().ok();
            let parsed = hash(&line.path).zip(hash(&line.file).zip(hash(&line.hash)));
            let (path, known) = parsed.ok_or_else(|| foreign("it is damaged"))?;
            files.insert(path, known);
        }
        whole += text.len() as u64;
        text.clear();
    }
    Ok((files, whole))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{Store, dir::DirStore};

    fn open(path: &Path) -> Result<State, StateError> {
        State::open(path, "import", "v".into(), Secret32::take(&mut [1; 32]))
    }

    #[test]
    fn what_was_added_is_known_again_and_a_line_that_was_cut_off_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        std::fs::write(dir.path().join("file"), "content").unwrap();
        let stat = DirStore::open(dir.path()).unwrap().root().stat(b"file").unwrap();
        let state = open(&path).unwrap();
        assert!(!state.is_resumed());
        state.add(b"a/secret name", &stat, &[1; 32]).unwrap();
        state.add(b"b", &stat, &[2; 32]).unwrap();
        state.sync().unwrap();
        let text = std::fs::read(&path).unwrap();
        assert!(!String::from_utf8_lossy(&text).contains("secret"));
        std::fs::write(&path, &text[..text.len() - 1]).unwrap();
        let state = open(&path).unwrap();
        assert!(state.is_resumed());
        assert_eq!(state.known(b"a/secret name", &stat), Some(([1; 32], true)));
        let changed = Stat { mtime: Timestamp { nanoseconds: 1, ..stat.mtime }, ..stat };
        assert_eq!(state.known(b"a/secret name", &changed), Some(([1; 32], false)));
        assert_eq!(state.known(b"b", &stat), None);
        state.add(b"b", &stat, &[3; 32]).unwrap();
        state.sync().unwrap();
        assert_eq!(open(&path).unwrap().known(b"b", &stat), Some(([3; 32], true)));
    }

    #[test]
    fn the_state_of_something_else_is_refused_and_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        for text in ["precious data\n", "{\"kmsfs\":\"import\",\"version\":1,\"volume\":\"other\"}\n"] {
            std::fs::write(&path, text).unwrap();
            assert!(matches!(open(&path), Err(StateError::Foreign(_))));
            assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
        }
    }
}
