//! Outages and refusals on command: which fault a request meets.
//!
//! A fault is for the whole vault or for one key; the key's own comes first. It is looked up when a request arrives,
//! so it holds at once on every connection that is already open.

use super::names::KeyName;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::time::Duration;

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fault {
    /// 403 with the inner code `ForbiddenByRbac`: the role is gone.
    ForbidRole,
    /// 403 with the inner code `AccessDenied`: a vault with access policies, and the caller's is gone.
    ForbidPolicy,
    /// 403 with the inner code `ForbiddenByFirewall`.
    ForbidFirewall,
    /// 429, with `Retry-After` in seconds where one is given.
    Throttle {
        /// What the header says.
        retry_after: Option<u64>,
    },
    /// A server error with this status.
    Error {
        /// 500 to 599.
        status: u16,
    },
    /// The request is taken and never answered.
    Hang,
    /// The connection is reset.
    Reset,
    /// The answer is late by so much.
    Latency(Duration),
    /// The vault's clock is ahead by so many seconds; behind, if negative. Requests are answered as they would be.
    Clock {
        /// Seconds.
        ahead: i64,
    },
}

impl Fault {
    /// Whether it comes before anybody looks at the token: the service is not there, so it knows no caller.
    pub fn is_outage(self) -> bool {
        !self.is_refusal() && !matches!(self, Self::Clock { .. })
    }

    /// Whether it comes after the token: the service knows the caller, and says no.
    pub fn is_refusal(self) -> bool {
        matches!(self, Self::ForbidRole | Self::ForbidPolicy | Self::ForbidFirewall | Self::Throttle { .. })
    }
}

/// A fault and how long it lasts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rule {
    /// What goes wrong.
    pub fault: Fault,
    /// For how many more requests; without one, until it is taken back.
    pub remaining: Option<NonZeroU32>,
    /// Whether the token endpoint has it too.
    pub also_tokens: bool,
}

/// The faults that are set now.
#[derive(Debug, Default)]
pub struct Faults {
    rules: Mutex<Rules>,
}

/// What is set, for the status.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Rules {
    vault: Option<Rule>,
    keys: BTreeMap<KeyName, Rule>,
}

impl Faults {
    /// Sets the fault of one key, or of the vault.
    pub fn set(&self, key: Option<KeyName>, rule: Rule) {
        let mut rules = self.rules.lock();
        match key {
            Some(key) => drop(rules.keys.insert(key, rule)),
            None => rules.vault = Some(rule),
        }
    }

    /// Takes back the fault of one key, or all of them.
    pub fn clear(&self, key: Option<&KeyName>) {
        let mut rules = self.rules.lock();
        match key {
            Some(key) => drop(rules.keys.remove(key)),
            None => *rules = Rules::default(),
        }
    }

    /// By how many seconds the vault's clock is ahead.
    pub fn clock(&self) -> Option<i64> {
        match self.rules.lock().vault.as_ref()?.fault {
            Fault::Clock { ahead } => Some(ahead),
            _ => None,
        }
    }

    /// What is set now.
    pub fn rules(&self) -> Rules {
        self.rules.lock().clone()
    }

    /// The fault that a request for this key (or for no single key) meets among those that `applies` takes, counted.
    pub fn take(&self, key: Option<&KeyName>, applies: impl Fn(Fault) -> bool) -> Option<Fault> {
        let mut rules = self.rules.lock();
        if let Some(key) = key
            && rules.keys.get(key).is_some_and(|rule| applies(rule.fault))
        {
            let (fault, spent) = use_once(rules.keys.get_mut(key)?);
            if spent {
                rules.keys.remove(key);
            }
            return Some(fault);
        }
        let (fault, spent) = use_once(rules.vault.as_mut().filter(|rule| applies(rule.fault))?);
        if spent {
            rules.vault = None;
        }
        Some(fault)
    }

    /// The fault that a request for a token meets, counted.
    pub fn take_for_token(&self) -> Option<Fault> {
        let mut rules = self.rules.lock();
        let (fault, spent) = use_once(rules.vault.as_mut().filter(|rule| rule.also_tokens)?);
        if spent {
            rules.vault = None;
        }
        Some(fault)
    }
}

/// One use of the rule, and whether it was the last.
fn use_once(rule: &mut Rule) -> (Fault, bool) {
    let Some(remaining) = rule.remaining else { return (rule.fault, false) };
    rule.remaining = NonZeroU32::new(remaining.get() - 1);
    (rule.fault, rule.remaining.is_none())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(fault: Fault, remaining: u32) -> Rule {
        Rule { fault, remaining: NonZeroU32::new(remaining), also_tokens: false }
    }

    #[test]
    fn a_counted_fault_ends_after_its_last_request() {
        let faults = Faults::default();
        faults.set(None, rule(Fault::Hang, 2));
        let met: Vec<_> = (0..3).map(|_| faults.take(None, |_| true)).collect();
        assert_eq!(met, [Some(Fault::Hang), Some(Fault::Hang), None]);
    }

    #[test]
    fn a_fault_of_one_key_leaves_the_others_alone() {
        let (faults, one, other) = (Faults::default(), KeyName::known("one"), KeyName::known("other"));
        faults.set(Some(one.clone()), rule(Fault::Reset, 0));
        assert_eq!(faults.take(Some(&one), |_| true), Some(Fault::Reset));
        assert_eq!(faults.take(Some(&other), |_| true), None);
        assert_eq!(faults.take(None, |_| true), None);
        faults.clear(Some(&one));
        assert_eq!(faults.take(Some(&one), |_| true), None);
    }

    #[test]
    fn the_token_endpoint_has_only_the_faults_that_say_so() {
        let faults = Faults::default();
        faults.set(None, rule(Fault::Hang, 0));
        assert_eq!(faults.take_for_token(), None);
        faults.set(None, Rule { also_tokens: true, ..rule(Fault::Hang, 0) });
        assert_eq!(faults.take_for_token(), Some(Fault::Hang));
    }
}
