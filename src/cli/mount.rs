//! `kmsfs mount`: in the foreground, or as a process of its own that reports when the mount answers.

pub mod tenant;

use super::{Exit, Failure};
use crate::audit::Limits;
use crate::daemon::guard::{GuardOptions, GuardPlace};
use crate::daemon::log::{Format, Log};
use crate::daemon::{Idle, MountOptions, Service, Stage, serve};
use crate::fuse::flags::Flags;
use crate::http::Address;
use crate::lease::{KMS_RATE, OnRevoked, Policy};
use crate::tenant::TenantName;
use crate::units::VolumeId;
use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

/// As long as a duration can be written.
const FOR_EVER: &str = "1000years";

/// Mounts a volume.
#[derive(Args)]
pub struct Mount {
    /// The volume's directory
    #[arg(required_unless_present = "tenant")]
    volume: Option<PathBuf>,
    /// An empty directory in which the files appear
    #[arg(required_unless_present = "tenant")]
    mountpoint: Option<PathBuf>,
    /// Mount the volume of this tenant, as its configuration says and with its credentials
    #[arg(long, value_name = "TENANT")]
    tenant: Option<TenantName>,
    /// Where the configurations of tenants are, if not in KMSFS_CONFIG_DIR or /etc/kmsfs
    #[arg(long, value_name = "DIR", requires = "tenant")]
    config_dir: Option<PathBuf>,
    /// Mount options: ro, allow_other, dev, suid, noexec, noatime, direct_io (keep nothing in the page cache), nonempty
    #[arg(short = 'o', long, value_name = "OPT,OPT")]
    options: Vec<String>,
    /// How often the KMS is asked whether the key may still be used (at least 1s)
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = humantime::parse_duration)]
    revalidate: Duration,
    /// For how long a KMS that does not answer changes nothing (0s: as soon as it is noticed)
    #[arg(long, value_name = "DURATION", default_value = "10m", value_parser = humantime::parse_duration)]
    offline_grace: Duration,
    /// What a revoked key does: lock (nothing can be read), read-only (nothing can be changed), prevent-new (nothing new
    /// can be opened)
    #[arg(long, value_name = "POLICY", default_value = "lock")]
    on_revoked: OnRevoked,
    /// For how long a lock waits for what was written to be stored
    #[arg(long, value_name = "DURATION", default_value = "3s", value_parser = humantime::parse_duration)]
    drain: Duration,
    /// How often the KMS is asked for keys of files, at most, in calls a second; ten seconds' worth may come at once
    #[arg(long, value_name = "CALLS", default_value_t = KMS_RATE, value_parser = clap::value_parser!(u32).range(1..))]
    kms_rate: u32,
    /// How often the KMS is asked whether the key has a newer version, which new files then use (0s: only at the mount)
    #[arg(long, value_name = "DURATION", default_value = "1h", value_parser = humantime::parse_duration)]
    check_rotation: Duration,
    /// If the KMS refuses the key or does not answer, wait for it, for so long at most if a duration is given
    #[arg(long, value_name = "DURATION", num_args = 0..=1, require_equals = true, default_missing_value = FOR_EVER)]
    wait: Option<humantime::Duration>,
    /// Wipe the keys when nobody has used the mount for so long; whoever does next has it unlocked
    #[arg(long, value_name = "DURATION", value_parser = idle)]
    idle_lock: Option<Duration>,
    /// Unmount when nobody has used the mount for so long, and nothing of it is open
    #[arg(long, value_name = "DURATION", value_parser = idle)]
    idle_unmount: Option<Duration>,
    /// How many files of 4 MiB the audit log keeps, or `all`
    #[arg(long, value_name = "N", default_value = "16", value_parser = audit_keep)]
    audit_keep: AuditKeep,
    /// Refuse any other volume than this one
    #[arg(long, value_name = "ID")]
    volume_id: Option<VolumeId>,
    /// Where the key is now, if not where the volume says: the same key, under another address or path
    #[arg(long)]
    kek: Option<String>,
    /// Notice old versions of files, or of the volume: keep what is known of them in this file, in a file for each
    /// volume in this directory, or in the volume with a counter in the KMS (kms)
    #[arg(long, value_name = "FILE|DIR|kms")]
    rollback_guard: Option<GuardPlace>,
    /// What a volume or file that is older than it was does: refuse, or warn and go on
    #[arg(long, value_name = "POLICY", default_value = "refuse", requires = "rollback_guard")]
    on_rollback: OnRollback,
    /// Open the volume with its recovery key; with -o ro only
    #[arg(long)]
    with_recovery_kek: bool,
    /// Something to know the mount by, in its metrics
    #[arg(long, value_name = "NAME=VALUE", value_parser = label)]
    label: Vec<(String, String)>,
    /// Serve what is counted, /livez and /readyz at this address: unix:PATH, 127.0.0.1:PORT or `[::1]:PORT`
    #[arg(long, value_name = "ADDRESS")]
    metrics: Option<Address>,
    /// How lines of the log look
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    log_format: Format,
    /// Let the log say where damaged files are stored, which tells their names in a volume with --plain-names
    #[arg(long)]
    log_names: bool,
    /// Stay in the foreground and log to standard error
    #[arg(long, short = 'f')]
    foreground: bool,
    /// Append the log of the background process to this file
    #[arg(long, value_name = "FILE", conflicts_with = "foreground")]
    log_file: Option<PathBuf>,
    /// The background process of `mount`, which reports on standard output
    #[arg(long, hide = true)]
    report: bool,
    /// Have `kmsfs tenant attach` make the mount, from outside of the namespace that this process is in
    #[arg(long, hide = true, requires = "foreground")]
    attached: bool,
    /// The process of a tenant, which has its options and its credentials already
    #[arg(long, hide = true, requires = "tenant")]
    expanded: bool,
}

/// What an older version does to a mount.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum OnRollback {
    /// It is not mounted; an older file is not read
    Refuse,
    /// It is mounted and read, and said to be older
    Warn,
}

/// How many files of the audit log are kept; `None` for all.
#[derive(Clone, Copy)]
struct AuditKeep(Option<u32>);

fn audit_keep(text: &str) -> Result<AuditKeep, String> {
    match text.parse() {
        Ok(files) if files >= 2 => Ok(AuditKeep(Some(files))),
        _ if text == "all" => Ok(AuditKeep(None)),
        _ => Err("it is a number of files, 2 at least, or 'all'".into()),
    }
}

/// What the background process tells the command that started it.
#[derive(Serialize, Deserialize)]
enum Report {
    Ready,
    Waiting { why: String },
    Warning { what: String },
    Failed { exit: u8, message: String, hint: Option<String> },
}

pub fn run(arguments: &Mount) -> Result<(), Failure> {
    if let Some(tenant) = arguments.tenant.as_ref().filter(|_| !arguments.expanded) {
        return Err(tenant::become_tenant(tenant, arguments));
    }
    let mut options = arguments.options()?;
    if arguments.report || arguments.foreground {
        options.log = Log::start(arguments.log_format, arguments.log_names);
    }
    if arguments.report {
        return in_background(&options);
    }
    if arguments.foreground {
        let (service, attached) = (options.service, options.attached);
        return serve(&options, |stage| match stage {
            Stage::Waiting(why) => service.waiting(&why),
            Stage::Warned(_) => (),
            Stage::Offered => service.ready("prepared; to be mounted"),
            Stage::Ready if attached => service.status("unlocked"),
            Stage::Ready => service.ready("unlocked"),
        });
    }
    start_background(arguments)
}

impl Mount {
    /// What the mount is told.
    fn options(&self) -> Result<MountOptions, Failure> {
        let usage = |message: String| Failure::new(Exit::Usage, message);
        let flags = Flags::parse(self.options.iter().map(String::as_str))
            .map_err(|message| usage(message).hint("kmsfs mount --help"))?;
        let policy = Policy::new(self.revalidate, self.offline_grace, self.drain)
            .map_err(|message| usage(message).hint("kmsfs mount --help"))?
            .on_revoked(self.on_revoked);
        if self.with_recovery_kek && !flags.read_only {
            let failure = usage("with its recovery key a volume can be mounted to be read only".to_owned());
            return Err(failure.hint(
                "add -o ro; to use it as before, under another key: kmsfs rewrap VOLUME --with-recovery-kek --kek NEW",
            ));
        }
        let (Some(volume), Some(mountpoint)) = (self.volume.clone(), self.mountpoint.clone()) else {
            return Err(usage("a volume and a mountpoint are needed".to_owned()).hint("kmsfs mount --help"));
        };
        if self.attached && self.idle_unmount.is_some() {
            let failure = usage("a service cannot unmount itself when nobody uses it".to_owned());
            return Err(failure.hint("mount it by fstab with x-systemd.automount, or use idle-lock"));
        }
        let guard = self.rollback_guard.clone();
        Ok(MountOptions {
            volume,
            mountpoint,
            tenant: self.tenant.clone(),
            kek: self.kek.clone(),
            policy,
            kms_rate: self.kms_rate,
            check_rotation: Some(self.check_rotation).filter(|every| !every.is_zero()),
            with_recovery_kek: self.with_recovery_kek,
            wait: self.wait.map(Into::into),
            volume_id: self.volume_id,
            flags,
            guard: guard.map(|place| GuardOptions { place, warn: self.on_rollback == OnRollback::Warn }),
            audit: Limits { keep: self.audit_keep.0, ..Limits::default() },
            // In the background it is nobody's service, whoever started the command.
            service: Service::new(self.foreground),
            attached: self.attached,
            idle: Idle { lock: self.idle_lock, unmount: self.idle_unmount },
            labels: self.label.iter().cloned().collect(),
            metrics: self.metrics.clone(),
            log: None,
        })
    }
}

fn idle(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(duration) if duration >= Duration::from_secs(1) => Ok(duration),
        Ok(_) => Err("it is 1s at least".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

fn label(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("it is NAME=VALUE")?;
    Ok((name.to_owned(), value.to_owned()))
}

/// Starts this program again, and waits for its report.
fn start_background(arguments: &Mount) -> Result<(), Failure> {
    let failed =
        |error: std::io::Error| Failure::new(Exit::Failure, format!("the mount's process cannot start: {error}"));
    let log = match &arguments.log_file {
        Some(path) => Stdio::from(std::fs::File::options().append(true).create(true).open(path).map_err(|error| {
            Failure::new(Exit::Usage, format!("the log file {} cannot be opened: {error}", path.display()))
        })?),
        None => Stdio::null(),
    };
    let mut child = Command::new(std::env::current_exe().map_err(failed)?)
        .args(std::env::args_os().skip(1))
        .arg("--report")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log)
        .spawn()
        .map_err(failed)?;
    let mut output = child.stdout.take().map(BufReader::new);
    let mut reason = String::new();
    let report = loop {
        let mut line = String::new();
        if let Some(output) = &mut output {
            output.read_line(&mut line).map_err(failed)?;
        }
        match serde_json::from_str(&line) {
            // Once for each reason, however often it is tried.
            Ok(Report::Waiting { why }) if why == reason => (),
            Ok(Report::Waiting { why }) => {
                eprintln!("waiting for the key: {why}");
                reason = why;
            }
            Ok(Report::Warning { what }) => eprintln!("warning: {what}"),
            report => break report,
        }
    };
    match report {
        Ok(Report::Ready | Report::Waiting { .. } | Report::Warning { .. }) => Ok(()),
        Ok(Report::Failed { exit, message, hint }) => {
            let _ = child.wait();
            Err(Failure { exit: Exit::from_code(exit), message, hint })
        }
        Err(_) => {
            let status = child.wait().map_err(failed)?;
            let failure = Failure::new(Exit::Failure, format!("the mount's process ended without a word ({status})"));
            Err(failure.hint("run it with --foreground to see why"))
        }
    }
}

/// Serves as a process of its own, away from the terminal that started it.
fn in_background(options: &MountOptions) -> Result<(), Failure> {
    // Fails if it leads a session already, which is as good.
    let _ = rustix::process::setsid();
    let mut mounted = false;
    let result = serve(options, |stage| {
        match stage {
            Stage::Waiting(why) => return report(&Report::Waiting { why }),
            Stage::Warned(what) => return report(&Report::Warning { what }),
            Stage::Offered => return,
            Stage::Ready => (),
        }
        mounted = true;
        report(&Report::Ready);
        // Whoever reads our output waits for its end.
        if let Ok(null) = std::fs::File::options().write(true).open("/dev/null") {
            let _ = rustix::stdio::dup2_stdout(&null);
        }
        // No directory that somebody may want to unmount is kept busy.
        let _ = std::env::set_current_dir("/");
    });
    if let Err(failure) = &result
        && !mounted
    {
        let (message, hint) = (failure.message.clone(), failure.hint.clone());
        report(&Report::Failed { exit: failure.exit as u8, message, hint });
    }
    result
}

fn report(report: &Report) {
    if let Ok(text) = serde_json::to_string(report) {
        // Nobody may be waiting any more.
        let _ = writeln!(std::io::stdout(), "{text}");
    }
}
