//! kmsfs: a FUSE filesystem that encrypts each file under a data key of its own, wrapped by a key in a
//! cloud KMS. Whoever owns that key decides whether the files can be read.
//!
//! The modules, lowest layer first; a module uses only the layers above it in this list:
//!
//! | layer | modules | what they are for |
//! |---|---|---|
//! | 0 | [`units`], [`crypto`], [`metrics`], [`http`] | identifiers and address spaces; keys, ciphers, names; numbers of what happens; a server for this machine |
//! | 1 | [`format`](mod@format), [`kms`], [`store`] | bytes ↔ types without I/O; who wraps keys; where bytes are kept |
//! | 2 | [`audit`], [`lease`], [`ledger`] | what happened to a volume; unwrapped keys over time; what a volume was last known to be |
//! | 3 | [`journal`], [`file`](mod@file) | the redo log; one encrypted file |
//! | 4 | [`fs`] | the tree in our own types: inodes, handles, names |
//! | 5 | [`errno`], [`failure`], [`check`], [`transfer`], [`certify`], [`dev_vault`], [`tenant`] | what applications and people are told; checking volumes; moving in and out; proving that a key is gone; the embedded Key Vault; who is mounted on this machine |
//! | 6 | [`fuse`] | the kernel |
//! | 7 | [`daemon`] | the process of a mount |
//! | 8 | [`cli`] | the commands |
//! | – | [`manual`] | the byte layout, what is protected, what to expect, how to run it |
//!
//! Nothing in it is `unsafe`, but `daemon/resident.rs`, which lets go of pages: system calls go through `rustix`.

pub mod audit;
pub mod certify;
pub mod check;
pub mod cli;
pub mod crypto;
pub mod daemon;
pub mod dev_vault;
pub mod errno;
pub mod failure;
pub mod file;
pub mod format;
pub mod fs;
pub mod fuse;
pub mod http;
pub mod journal;
pub mod kms;
pub mod lease;
pub mod ledger;
pub mod manual;
pub mod metrics;
pub mod store;
pub mod tenant;
pub mod transfer;
pub mod units;
