//! Moving in and out: an existing tree into a volume (import), and a volume into a directory (export), without a mount.
//! Both are one copy from a tree to a tree ([`struct@Copy`]): the one of the host is a [`crate::store::dir::DirStore`], and the
//! volume's is seen as another one ([`plain`]), so that what is kept is the same in both directions.
//! Invariant: what counts as copied is durable, was read back, and is what was read from the source.

mod content;
mod copy;
mod file;
mod inode;
mod open;
mod plain;
mod pool;
mod state;

pub use copy::{Copy, Ended, Note, NoteKind, Progress, Totals};
pub use open::{Opened, export_from, import_into};
pub use plain::{KeyGone, Plain};
pub use state::{EXPORT_STATE, IMPORT_STATE, State, StateError};
