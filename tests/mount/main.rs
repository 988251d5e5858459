//! Volumes as programs meet them: the real program, the real kernel. Needs root and `/dev/fuse`, and fails without.

mod audit;
mod aws;
mod basics;
mod certify;
#[path = "../clouds/servers.rs"]
mod clouds;
mod command_line;
mod data;
mod directories;
mod disk;
mod file_locks;
mod fstab;
mod full;
mod harness;
mod idle;
mod load;
mod locking;
mod memory;
mod model;
mod names;
#[path = "../openbao/server.rs"]
mod openbao;
mod out_of_space;
mod permissions;
mod power;
mod programs;
mod proof;
mod raw_keys;
mod recovery;
mod rekey;
mod remount;
mod revocation;
mod rewrap;
mod rollback;
mod scrub;
mod service;
mod storms;
mod tamper;
mod tenants;
mod transfer;
mod transit;
mod units;
mod unlinked;
mod unreadable;
mod vault;
mod xattrs;
