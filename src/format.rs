//! The bytes on disk ↔ types, without I/O: the volume record, a file's header page and tag blocks, and the
//! geometry that says where they lie. `manual/format.md` owns the layout; the code refers to its sections.
//! Depends on `units`, `crypto` and the plain types of `kms`. Invariant: what these parsers return is well
//! formed, and nothing that came from disk makes them panic.

pub mod geometry;
pub mod header;
pub mod tags;
pub mod volume;

pub use geometry::{ChunkSize, Geometry};

/// Bytes of the page in which a file's header lies, and the alignment of everything in a stored file.
pub const PAGE: usize = 4096;

/// Why bytes from disk are not what they should be. Each names what is wrong, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Malformed {
    /// Not the magic number of this structure.
    Magic,
    /// A version that this program does not know.
    Version(u16),
    /// Feature bits that this program does not know.
    Features(u32),
    /// A field has a value that it cannot have.
    Field(&'static str),
    /// Fewer or more bytes than the structure has.
    Length,
    /// The MAC does not match: changed, or made with another key.
    Mac,
}

impl std::fmt::Display for Malformed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Magic => f.write_str("it does not begin with the right magic number"),
            Self::Version(version) => write!(f, "it has format version {version}, which this kmsfs does not know"),
            Self::Features(bits) => write!(f, "it uses features that this kmsfs does not know (bits {bits:#x})"),
            Self::Field(name) => write!(f, "its field '{name}' has an impossible value"),
            Self::Length => f.write_str("it has the wrong length"),
            Self::Mac => f.write_str("its MAC does not match: it was changed, or belongs to another key"),
        }
    }
}

/// Reads fixed-width little-endian fields from a buffer, one after the other.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn bytes(&mut self, count: usize) -> Result<&'a [u8], Malformed> {
        let (head, tail) = self.0.split_at_checked(count).ok_or(Malformed::Length)?;
        self.0 = tail;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (head, tail) = self.0.split_first_chunk::<N>().ok_or(Malformed::Length)?;
        self.0 = tail;
        Ok(*head)
    }

    fn u8(&mut self) -> Result<u8, Malformed> {
        self.array::<1>().map(|[byte]| byte)
    }

    fn u16(&mut self) -> Result<u16, Malformed> {
        self.array().map(u16::from_le_bytes)
    }

    fn u32(&mut self) -> Result<u32, Malformed> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, Malformed> {
        self.array().map(u64::from_le_bytes)
    }

    fn zeros(&mut self, count: usize, field: &'static str) -> Result<(), Malformed> {
        if self.bytes(count)?.iter().all(|byte| *byte == 0) { Ok(()) } else { Err(Malformed::Field(field)) }
    }
}
