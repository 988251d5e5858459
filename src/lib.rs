//! kmsfs: a FUSE filesystem that encrypts each file under a data key of its own, wrapped by a key in a
//! cloud KMS. Whoever owns that key decides whether the files can be read.
//!
//! The modules, lowest layer first; a module uses only the layers above it in this list:
//!
//! | layer | modules | what they are for |
//! |---|---|---|
//! | 0 | [`units`], [`crypto`], `sys` | identifiers and address spaces; keys, ciphers, names; the only unsafe code |
//! | 1 | [`format`](mod@format), [`kms`], [`store`] | bytes ↔ types without I/O; who wraps keys; where bytes are kept |
//! | 2 | [`lease`], [`error`] | unwrapped keys over time; what can go wrong |
//! | 3 | [`file`](mod@file), [`journal`] | one encrypted file; the redo log |
//! | 4 | [`fs`] | the tree in our own types: inodes, handles, names |
//! | 5 | `fuse`, [`daemon`], [`cli`], [`dev_vault`] | the kernel, the process, the commands, the embedded Key Vault |

pub mod cli;
pub mod crypto;
pub mod daemon;
pub mod dev_vault;
pub mod errno;
pub mod file;
pub mod format;
pub mod fs;
pub mod fuse;
pub mod journal;
pub mod kms;
pub mod store;
pub mod lease;
pub mod units;
