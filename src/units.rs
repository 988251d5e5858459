//! Identifiers, indices and address spaces, each a type of its own so that the compiler keeps them apart.
//! Depends on nothing. Invariant: a value of these types says in which space it counts.

use std::fmt;

/// An offset or length in a file as applications see it, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PlainOffset(pub u64);

/// An offset or length in a file of the backing directory, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StoredOffset(pub u64);

/// The position of a chunk in its file, from 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChunkIndex(pub u64);

/// How often a file was given a new data key; starts at 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Epoch(pub u32);

/// Which of the volume's KEKs (they are numbered from 0 in the volume record) wrapped a secret.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KekGeneration(pub u32);

macro_rules! random_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub [u8; 16]);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&data_encoding::HEXLOWER.encode(&self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({self})", stringify!($name))
            }
        }

        impl std::str::FromStr for $name {
            type Err = String;

            fn from_str(text: &str) -> Result<Self, String> {
                data_encoding::HEXLOWER_PERMISSIVE
                    .decode(text.as_bytes())
                    .ok()
                    .and_then(|bytes| bytes.try_into().ok())
                    .map($name)
                    .ok_or_else(|| format!("'{text}' is not 32 hexadecimal digits"))
            }
        }
    };
}

random_id!(
    /// 16 random bytes that name a volume.
    VolumeId
);
random_id!(
    /// 16 random bytes that name a file for its whole life, whatever its path.
    FileId
);
random_id!(
    /// 16 random bytes that name a directory; they go into the encryption of the names in it.
    DirId
);
