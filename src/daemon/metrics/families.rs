//! The text that Prometheus reads (exposition format 0.0.4). The names are stable: dashboards and alerts depend on them.

use super::Metrics;
use crate::errno;
use crate::metrics::{BOUNDS_US, Counts};
use prometheus::proto::{Bucket, Counter, Gauge, Histogram, LabelPair, Metric, MetricFamily, MetricType};
use prometheus::{Encoder, TextEncoder};
use serde_json::Value;
use std::collections::BTreeMap;

/// The states that a mount can have.
const STATES: [&str; 5] = ["unlocked", "read-only", "prevent-new", "draining", "locked"];
/// Why it is not unlocked.
const REASONS: [&str; 4] = ["revoked", "unreachable", "operator", "idle"];
/// How calls to the KMS fail.
const FAILURES: [&str; 5] = ["refused", "unreachable", "damaged", "misconfigured", "credentials"];

type Labels = Vec<(String, String)>;

/// The metrics of mounts as text. Of no mounts there are none.
pub fn of_all(mounts: &[Metrics]) -> String {
    let mut families = Families::default();
    mounts.iter().for_each(|mount| families.add(mount));
    families.text()
}

/// The same, with how many mounts there are on the host, and how many of them did not answer.
pub fn of_host(mounts: &[Metrics], silent: usize) -> String {
    let mut families = Families::default();
    let mut host = Mount { families: &mut families, labels: Labels::new() };
    host.gauge("kmsfs_mounts", "Mounts of this user that answer.", &[], mounts.len() as f64);
    host.gauge("kmsfs_silent_mounts", "Mounts of this user that do not answer.", &[], silent as f64);
    mounts.iter().for_each(|mount| families.add(mount));
    families.text()
}

/// In the order in which they came.
#[derive(Default)]
struct Families {
    all: Vec<MetricFamily>,
    place: BTreeMap<&'static str, usize>,
}

/// One mount on its way into the families.
struct Mount<'a> {
    families: &'a mut Families,
    labels: Labels,
}

impl Families {
    fn text(&self) -> String {
        let mut text = Vec::new();
        // It fails for a family without metrics only, and there is none; and no writer that could fail.
        if let Err(error) = TextEncoder::new().encode(&self.all, &mut text) {
            tracing::error!("the metrics cannot be written: {error}");
        }
        String::from_utf8_lossy(&text).into_owned()
    }

    fn push(
        &mut self,
        name: &'static str,
        help: &str,
        kind: MetricType,
        labels: &Labels,
        set: impl FnOnce(&mut Metric),
    ) {
        let place = *self.place.entry(name).or_insert_with(|| {
            let mut family = MetricFamily::default();
            family.set_name(name.to_owned());
            family.set_help(help.to_owned());
            family.set_field_type(kind);
            self.all.push(family);
            self.all.len() - 1
        });
        let pair = |(name, value): &(String, String)| {
            let mut pair = LabelPair::default();
            pair.set_name(name.clone());
            pair.set_value(value.clone());
            pair
        };
        let mut metric = Metric::from_label(labels.iter().map(pair).collect());
        set(&mut metric);
        self.all[place].mut_metric().push(metric);
    }

    fn add(&mut self, metrics: &Metrics) {
        let status = &metrics.status;
        let tenant = status.tenant.as_ref().map(ToString::to_string).unwrap_or_default();
        let labels = vec![
            ("tenant".to_owned(), tenant),
            ("volume".to_owned(), status.volume_id.clone()),
            ("mountpoint".to_owned(), status.mountpoint.to_string_lossy().into_owned()),
        ];
        let mut mount = Mount { families: self, labels };
        mount.identity(metrics);
        mount.state(metrics);
        mount.operations(metrics);
        mount.kms(metrics);
        mount.storage(metrics);
        mount.watchfulness(metrics);
    }
}

impl Mount<'_> {
    fn with(&self, more: &[(&str, &str)]) -> Labels {
        let more = more.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        self.labels.iter().cloned().chain(more).collect()
    }

    fn gauge(&mut self, name: &'static str, help: &str, more: &[(&str, &str)], value: f64) {
        let mut gauge = Gauge::default();
        gauge.set_value(value);
        let labels = self.with(more);
        self.families.push(name, help, MetricType::GAUGE, &labels, |metric| metric.set_gauge(gauge));
    }

    fn counter(&mut self, name: &'static str, help: &str, more: &[(&str, &str)], value: u64) {
        let mut counter = Counter::default();
        counter.set_value(value as f64);
        let labels = self.with(more);
        self.families.push(name, help, MetricType::COUNTER, &labels, |metric| metric.set_counter(counter));
    }

    fn histogram(&mut self, name: &'static str, help: &str, more: &[(&str, &str)], counts: &Counts) {
        let mut so_far = 0;
        let buckets = BOUNDS_US.iter().zip(&counts.buckets).map(|(bound, count)| {
            so_far += count;
            let mut bucket = Bucket::default();
            bucket.set_cumulative_count(so_far);
            bucket.set_upper_bound(*bound as f64 / 1e6);
            bucket
        });
        let mut histogram = Histogram::default();
        histogram.set_bucket(buckets.collect());
        histogram.set_sample_count(counts.count());
        histogram.set_sample_sum(counts.sum_s);
        let labels = self.with(more);
        self.families.push(name, help, MetricType::HISTOGRAM, &labels, |metric| metric.set_histogram(histogram));
    }

    fn identity(&mut self, metrics: &Metrics) {
        let status = &metrics.status;
        let path = status.volume.to_string_lossy();
        let mut more = vec![("kek", status.kek.as_str()), ("path", &path), ("version", &metrics.version)];
        let own: Vec<_> = status.labels.iter().map(|(name, value)| (label_name(name), value)).collect();
        more.extend(own.iter().map(|(name, value)| (name.as_str(), value.as_str())));
        self.gauge("kmsfs_mount_info", "What the mount is; always 1.", &more, 1.0);
    }

    fn state(&mut self, metrics: &Metrics) {
        let status = &metrics.status;
        for state in STATES {
            let value = f64::from(status.state == state);
            self.gauge(
                "kmsfs_state",
                "1 for the state that the mount has, 0 for the others.",
                &[("state", state)],
                value,
            );
        }
        for reason in REASONS {
            let value = f64::from(status.reason.as_deref() == Some(reason));
            let help = "1 for the reason for which the mount is not unlocked, 0 for the others.";
            self.gauge("kmsfs_state_reason", help, &[("reason", reason)], value);
        }
        self.gauge("kmsfs_state_seconds", "For how long the mount has had its state.", &[], status.since_s);
        let help = "1 if the mount is unlocked or rests, and the KMS granted its key the last time that it was asked.";
        self.gauge("kmsfs_ready", help, &[], f64::from(status.is_granted()));
        let help = "For how long keys may be used without another answer of the KMS; 0 if locked.";
        self.gauge("kmsfs_lease_remaining_seconds", help, &[], status.lease_remaining_s);
        self.gauge("kmsfs_lease_age_seconds", "How long ago the KMS last granted the key.", &[], status.last_granted_s);
        self.gauge("kmsfs_revalidate_seconds", "How often the KMS is asked.", &[], status.revalidate_s);
        let help = "For how long a KMS that does not answer changes nothing.";
        self.gauge("kmsfs_offline_grace_seconds", help, &[], status.offline_grace_s);
        let help = "How long locks took, from the decision until every key was wiped.";
        self.histogram("kmsfs_lock_duration_seconds", help, &[], &metrics.locks);
    }

    fn operations(&mut self, metrics: &Metrics) {
        for (operation, counts) in &metrics.operations {
            let help = "How long operations took, by what the kernel asked for.";
            self.histogram("kmsfs_operation_duration_seconds", help, &[("operation", operation)], counts);
        }
        for (number, count) in &metrics.errors {
            let name = errno::name(*number);
            self.counter("kmsfs_errors_total", "Operations that failed, by the error.", &[("errno", &name)], *count);
        }
        let status = &metrics.status;
        let help = "Bytes that applications read, without what came from the page cache.";
        self.counter("kmsfs_read_bytes_total", help, &[], status.bytes_read);
        self.counter("kmsfs_written_bytes_total", "Bytes that applications wrote.", &[], status.bytes_written);
        let help = "Chunks that did not authenticate.";
        self.counter("kmsfs_failed_chunks_total", help, &[], metrics.failed_chunks);
        self.counter("kmsfs_damage_total", "Damage that was found, of any kind.", &[], status.damaged);
    }

    fn kms(&mut self, metrics: &Metrics) {
        let kms = &metrics.status.kms;
        let number = |name: &str| kms.get(name).and_then(Value::as_u64).unwrap_or_default();
        self.counter("kmsfs_kms_calls_total", "Calls to the KMS, probes included.", &[], number("calls"));
        for kind in FAILURES {
            let help = "Calls to the KMS that gave no key, by what came of them.";
            self.counter("kmsfs_kms_failures_total", help, &[("kind", kind)], number(kind));
        }
        let help = "Calls for which the KMS had too much to do; they are among those that are unreachable.";
        self.counter("kmsfs_kms_throttled_total", help, &[], number("throttled"));
        let help = "Calls that had to wait, because the mount had used up its own budget (--kms-rate).";
        self.counter("kmsfs_kms_delayed_total", help, &[], number("delayed"));
        let help = "Requests that were turned away because the KMS had not answered the calls before.";
        self.counter("kmsfs_kms_spared_total", help, &[], number("spared"));
        self.gauge("kmsfs_kms_calls_in_flight", "Calls that have not come back yet.", &[], number("in_flight") as f64);
        self.histogram("kmsfs_kms_duration_seconds", "How long calls to the KMS took.", &[], &metrics.kms_latency);
        let help = "Keys of files that were in memory when asked for.";
        self.counter("kmsfs_envelope_cache_hits_total", help, &[], number("hits"));
        let help = "Keys of files that were not in memory when asked for.";
        self.counter("kmsfs_envelope_cache_misses_total", help, &[], number("misses"));
        self.gauge("kmsfs_envelopes_held", "Keys of files that are in memory.", &[], number("held") as f64);
        let Some(rewrap) = &metrics.status.rewrap else { return };
        for count in &rewrap.keys {
            let (generation, kek) = (count.generation.to_string(), count.kek.as_deref().unwrap_or_default());
            let help = "Files under each version of the key, as the last rewrap of this mount has counted them.";
            let more = [("generation", generation.as_str()), ("kek", kek)];
            self.gauge("kmsfs_files_by_key", help, &more, count.files as f64);
        }
        let help = "How old that count is.";
        self.gauge("kmsfs_files_by_key_age_seconds", help, &[], rewrap.ended_s.unwrap_or_default());
    }

    fn storage(&mut self, metrics: &Metrics) {
        let (status, journal) = (&metrics.status, &metrics.journal);
        self.gauge("kmsfs_dirty_files", "Files with changes that are not committed.", &[], metrics.dirty_files as f64);
        let help = "Bytes at most that are not committed, without what is in the page cache.";
        self.gauge("kmsfs_dirty_bytes", help, &[], metrics.dirty_bytes as f64);
        let help = "For how long changes have waited to be committed; a few seconds are usual.";
        self.gauge("kmsfs_uncommitted_seconds", help, &[], metrics.uncommitted_s);
        let help = "Files whose last changes could not be stored before a lock.";
        self.counter("kmsfs_lost_files_total", help, &[], status.uncommitted_at_lock);
        let help = "Bytes at most of those changes.";
        self.counter("kmsfs_lost_bytes_total", help, &[], metrics.lost_bytes);
        self.gauge("kmsfs_journal_bytes", "What a crash would have replayed.", &[], journal.bytes as f64);
        self.gauge("kmsfs_journal_capacity_bytes", "What the journal has room for.", &[], journal.capacity as f64);
        let help = "The age of the oldest record in the journal; it may be old on a mount with little to do.";
        self.gauge("kmsfs_journal_age_seconds", help, &[], journal.oldest_s);
        let help = "1 if the journal cannot be written any more: nothing is committed before the next mount.";
        self.gauge("kmsfs_journal_broken", help, &[], f64::from(journal.is_broken));
        self.gauge("kmsfs_open_files", "Files that are open, or wait to be committed.", &[], status.open_files as f64);
        self.gauge("kmsfs_inodes", "Inodes that the kernel knows.", &[], status.inodes as f64);
        let help = "Memory of the process that serves the mount.";
        self.gauge("kmsfs_memory_resident_bytes", help, &[], metrics.resident_bytes as f64);
    }

    fn watchfulness(&mut self, metrics: &Metrics) {
        let status = &metrics.status;
        if let Some(audit) = &status.audit {
            let help = "Events that wait to be written to the audit log.";
            self.gauge("kmsfs_audit_waiting_events", help, &[], audit.waiting as f64);
            let help = "Events that could not be written to the audit log, ever.";
            self.counter("kmsfs_audit_lost_events_total", help, &[], audit.lost);
            let help = "1 if the audit log cannot be written at the moment.";
            self.gauge("kmsfs_audit_failing", help, &[], f64::from(audit.error.is_some()));
        }
        if let Some(guard) = &status.rollback_guard {
            let help = "1 if a rollback was seen that nobody accepted.";
            self.gauge("kmsfs_rollback_suspected", help, &[], f64::from(guard.suspect));
            let help = "1 if the rollback guard could not be written the last time.";
            self.gauge("kmsfs_rollback_guard_failing", help, &[], f64::from(guard.error.is_some()));
        }
        let help = "1 if a crash was recovered and not every file has been looked at since.";
        self.gauge("kmsfs_recovering", help, &[], f64::from(status.recovering));
    }
}

/// A label of the operator's own: it must not be one of ours, and has to be made of letters, digits and underscores.
fn label_name(name: &str) -> String {
    let clean = |letter: char| if letter.is_ascii_alphanumeric() { letter } else { '_' };
    format!("label_{}", name.chars().map(clean).collect::<String>())
}
