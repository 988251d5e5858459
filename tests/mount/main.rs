//! Volumes as programs meet them: the real program, the real kernel. Needs root and `/dev/fuse`, and fails without.

mod audit;
mod aws;
mod basics;
mod certify;
#[path = "../clouds/servers.rs"]
mod clouds;
mod command_line;
mod control;
mod data;
mod directories;
mod disk;
mod file_locks;
mod full;
mod harness;
mod load;
mod locking;
mod logs;
mod memory;
mod metrics;
mod model;
mod names;
#[path = "../openbao/server.rs"]
mod openbao;
mod out_of_space;
mod page;
mod permissions;
mod power;
mod programs;
mod proof;
mod raw_keys;
mod recovery;
mod remount;
mod revocation;
mod rewrap;
mod rollback;
mod scrub;
mod status;
mod storms;
mod tamper;
mod tenants;
mod transfer;
mod transit;
mod unlinked;
mod unreadable;
mod vault;
mod xattrs;
