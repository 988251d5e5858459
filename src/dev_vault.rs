//! An embedded server that speaks the Key Vault keys API over TLS on loopback, so that everything can be tried and
//! tested without a cloud: real RSA keys, versions, soft delete, tokens, and outages on command.
//!
//! Microsoft's own clients are the measure: they talk to it as to the real service, with all of their checks on.
//! Nothing here is used by the filesystem itself. Keys lie unprotected on the disk: it is for tests, not for secrets.
//!
//! | modules | what they are for |
//! |---|---|
//! | [`names`], [`rsa`], [`key`], [`keyring`] | keys, what they may be used for, and where they are kept |
//! | [`refusal`], [`documents`], [`listing`], [`call`], [`api`] | the keys API without connections |
//! | [`token`], [`authority`] | the identity provider |
//! | [`faults`], [`calls`], [`vault`], [`reply`], [`server`] | from a connection to an answer |
//! | [`state`], [`identity`], [`tls`], [`control`], [`daemon`] | files, certificates, commands, the process |

pub mod aes;
pub mod api;
pub mod authority;
pub mod call;
pub mod calls;
pub mod control;
pub mod daemon;
pub mod documents;
pub mod faults;
pub mod identity;
pub mod key;
pub mod keyring;
pub mod listing;
pub mod material;
pub mod names;
pub mod refusal;
pub mod reply;
pub mod rsa;
pub mod server;
pub mod state;
pub mod tls;
pub mod token;
pub mod vault;
