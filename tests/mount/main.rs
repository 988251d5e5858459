//! Volumes as programs meet them: the real program, the real kernel. Needs root and `/dev/fuse`, and fails without.

mod audit;
mod basics;
mod command_line;
mod data;
mod directories;
mod disk;
mod file_locks;
mod harness;
mod load;
mod locking;
mod memory;
mod model;
mod names;
mod permissions;
mod power;
mod programs;
mod proof;
mod recovery;
mod remount;
mod revocation;
mod scrub;
mod storms;
mod unlinked;
mod unreadable;
mod vault;
mod xattrs;
