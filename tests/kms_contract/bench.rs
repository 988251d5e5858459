//! What the contract needs of a provider, to put it through everything: a service that can be told to misbehave.

use kmsfs::kms::{ConnectOptions, Kms, WrapAlgorithm, connect};
use std::collections::HashMap;
use std::ops::RangeInclusive;
use std::sync::Arc;

/// What a provider's service can show. What it cannot is said, and is not the same as nothing to show.
pub enum Shown<T> {
    Yes(T),
    /// Why not.
    No(&'static str),
}

impl<T> Shown<T> {
    /// What there is to show; otherwise the reason is printed, and the clause ends.
    pub fn or_say(self, bench: &str, what: &str) -> Option<T> {
        match self {
            Self::Yes(shown) => Some(shown),
            Self::No(why) => {
                println!("{bench}: {what}: not shown: {why}");
                None
            }
        }
    }
}

/// Something that is done to the service, and undone.
pub struct Change<'a> {
    pub name: &'static str,
    pub set: Box<dyn Fn() + 'a>,
    pub unset: Box<dyn Fn() + 'a>,
    /// The code that the provider gives it; `None` if it has none.
    pub code: Option<&'static str>,
}

impl<'a> Change<'a> {
    pub fn new(name: &'static str, set: impl Fn() + 'a, unset: impl Fn() + 'a) -> Self {
        Self { name, set: Box::new(set), unset: Box::new(unset), code: None }
    }

    pub fn code(self, code: &'static str) -> Self {
        Self { code: Some(code), ..self }
    }
}

/// How often the service was asked to do this.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Calls {
    pub wraps: u64,
    pub unwraps: u64,
}

/// One provider with a key at a service of its own.
pub trait Bench {
    /// Its name in messages.
    fn name(&self) -> &'static str;

    /// The key, as `--kek` names it.
    fn reference(&self) -> String;

    /// Another key of the same service.
    fn other_reference(&self) -> String;

    /// What the program's environment has to have.
    fn environment(&self) -> HashMap<String, String>;

    /// How it wraps.
    fn algorithm(&self) -> WrapAlgorithm;

    /// How long its wrapped secrets are.
    fn blob_len(&self) -> RangeInclusive<usize>;

    /// Whether a wrapped secret is bound to its volume.
    fn binds_volume(&self) -> bool;

    /// Whether the service is told by which version to unwrap, and does not find it in the blob by itself.
    fn is_told_the_version(&self) -> bool {
        true
    }

    /// Whether the service can wrap again without giving the secret away.
    fn rewraps(&self) -> bool {
        false
    }

    /// How often it was asked.
    fn calls(&self) -> Shown<Calls>;

    /// How many calls one wrap is.
    fn calls_for_a_wrap(&self) -> u64;

    /// Adds a version to the key.
    fn rotate(&self) -> Shown<()>;

    /// The key with its oldest version pinned, if versions can be named.
    fn pinned(&self, kek: &str) -> String {
        kek.to_owned()
    }

    /// Every way to revoke it.
    fn refusals(&self) -> Vec<Change<'_>>;

    /// Every way not to answer.
    fn silences(&self) -> Shown<Vec<Change<'_>>>;

    /// To have too much to do.
    fn throttle(&self) -> Shown<Change<'_>>;

    /// Keys that cannot work, with a word of the hint.
    fn misconfigured(&self) -> Vec<(String, &'static str)>;

    /// An environment whose identity is not accepted.
    fn strangers(&self) -> Shown<Vec<HashMap<String, String>>>;

    /// The options for this environment.
    fn options(&self) -> ConnectOptions {
        options(&self.environment())
    }

    /// A provider that knows nothing yet.
    fn kms(&self) -> Arc<dyn Kms> {
        connect(&self.reference(), &self.options()).expect("a provider")
    }
}

/// The options that this environment, and nothing else, describes.
pub fn options(environment: &HashMap<String, String>) -> ConnectOptions {
    ConnectOptions::from_variables(|name| environment.get(name).cloned())
}
