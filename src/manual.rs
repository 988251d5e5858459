//! The manual: what the bytes on disk are, what is protected and what not, what applications can rely on, how the
//! program is run and how fast it is. Text only; the same files can be read in `src/manual/`.
//! Invariant: the documents say what this version does, and mark what is planned as not there yet.

/// Every byte that kmsfs keeps in a volume.
pub mod format {
    #![doc = include_str!("manual/format.md")]
}

/// What is protected against whom, and what is not.
pub mod threats {
    #![doc = include_str!("manual/threats.md")]
}

/// What applications can rely on.
pub mod semantics {
    #![doc = include_str!("manual/semantics.md")]
}

/// Running it: commands, exit codes, keys, backups.
pub mod operations {
    #![doc = include_str!("manual/operations.md")]
}

/// Metrics, alerts, and what to do about them; the log.
pub mod monitoring {
    #![doc = include_str!("manual/monitoring.md")]
}

/// How programs talk to a mount.
pub mod control {
    #![doc = include_str!("manual/control.md")]
}

/// What was measured, and what was chosen because of it.
pub mod performance {
    #![doc = include_str!("manual/performance.md")]
}
