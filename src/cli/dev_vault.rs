//! `kmsfs dev-vault`: the commands of the embedded Key Vault.

use super::{Exit, Failure};
use crate::dev_vault::control::{Answer, Command, Control};
use crate::dev_vault::daemon::{self, Start, StartFailure};
use crate::dev_vault::faults::{Fault, Rule};
use crate::dev_vault::identity::shell_word;
use crate::dev_vault::key::now;
use crate::dev_vault::names::KeyName;
use crate::dev_vault::state::{ENVIRONMENT, StateDir};
use clap::{Args, Subcommand};
use serde_json::Value;
use std::ffi::OsString;
use std::io::Write;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

/// What the embedded Key Vault can be told.
#[derive(Subcommand)]
pub enum DevVault {
    /// Start it in the background, unless it runs; returns once it serves, and prints its URL
    #[command(after_help = CLIENTS)]
    Start(StartArguments),
    /// Stop it; returns once its process has ended
    Stop(State),
    /// Show its address, keys, faults, and how often each operation was called
    Status(StatusArguments),
    /// Make, change and delete keys
    #[command(subcommand)]
    Key(KeyCommand),
    /// Let requests fail, until `fault none`
    Fault(FaultArguments),
}

const CLIENTS: &str = "\
DIR/env is a shell file that exports what clients need: KMSFS_DEV_VAULT_URL, AZURE_TENANT_ID, AZURE_CLIENT_ID, \
AZURE_CLIENT_SECRET, AZURE_AUTHORITY_HOST, and KMSFS_CA_FILE, the certificate to trust (DIR/ca.pem).

For a program that knows only the system's certificates, set SSL_CERT_FILE=\"$KMSFS_CA_FILE\" for that program alone. \
The vault's host, devvault.localhost, has to lead to 127.0.0.1: where the C library does not see to that, put it into \
/etc/hosts.

Keys lie unprotected in DIR: for tests, not for secrets.";

/// Which vault.
#[derive(Args)]
pub struct State {
    /// The directory with everything the vault keeps
    #[arg(long = "state", value_name = "DIR")]
    directory: PathBuf,
}

/// `start`.
#[derive(Args)]
pub struct StartArguments {
    #[command(flatten)]
    state: State,
    /// The loopback address to serve; without it the one of last time, at first a free port
    #[arg(long, value_name = "127.0.0.1:PORT")]
    listen: Option<SocketAddr>,
    /// How long tokens are valid, for instance 90s; kept for later starts [default: 1h]
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    token_lifetime: Option<Duration>,
    /// Stay in the foreground
    #[arg(long)]
    foreground: bool,
    /// The child of a start in the background
    #[arg(long, hide = true)]
    detached: bool,
}

/// `status`.
#[derive(Args)]
pub struct StatusArguments {
    #[command(flatten)]
    state: State,
    /// As one JSON object
    #[arg(long)]
    json: bool,
}

/// `key …`.
#[derive(Subcommand)]
pub enum KeyCommand {
    /// Make a key, or a new version of one, and print its id
    Create {
        /// The key's name
        name: KeyName,
        #[command(flatten)]
        state: State,
        /// RSA, RSA-HSM (which is the same here), or oct-HSM: an AES key, as a Managed HSM has them
        #[arg(long, value_name = "TYPE", default_value = "RSA", value_parser = ["RSA", "RSA-HSM", "oct-HSM"])]
        kty: String,
        /// Bits: 2048, 3072 or 4096 of an RSA modulus, 256 of an AES key [default: 2048, 256]
        #[arg(long, value_name = "BITS", value_parser = ["256", "2048", "3072", "4096"])]
        size: Option<String>,
        /// What the key may be used for (key_ops), for instance wrapKey,unwrapKey [default: everything]
        #[arg(long, value_name = "OPS", value_delimiter = ',')]
        ops: Option<Vec<String>>,
    },
    /// Disable all versions of a key
    #[command(disable_version_flag = true)]
    Disable(VersionArguments),
    /// Enable all versions of a key
    #[command(disable_version_flag = true)]
    Enable(VersionArguments),
    /// Let all versions of a key expire: they wrap nothing more and still unwrap
    #[command(disable_version_flag = true)]
    Expire {
        #[command(flatten)]
        which: VersionArguments,
        /// So long from now
        #[arg(long = "in", value_name = "DURATION", value_parser = humantime::parse_duration, default_value = "0s")]
        after: Duration,
        /// Take the expiry back
        #[arg(long, conflicts_with = "after")]
        never: bool,
    },
    /// Add a version, the newest from now on, and print its id
    Rotate(NameArguments),
    /// Delete a key; it can be recovered
    Delete(NameArguments),
    /// Bring a deleted key back
    Recover(NameArguments),
    /// Destroy a deleted key
    Purge(NameArguments),
    /// Print a key with its versions as JSON
    Show(NameArguments),
    /// List the keys
    List(State),
}

/// A key.
#[derive(Args)]
pub struct NameArguments {
    /// The key's name
    name: KeyName,
    #[command(flatten)]
    state: State,
}

/// A key or one of its versions.
#[derive(Args)]
pub struct VersionArguments {
    #[command(flatten)]
    key: NameArguments,
    /// Only this version
    #[arg(long)]
    version: Option<String>,
}

/// `fault`.
#[derive(Args)]
pub struct FaultArguments {
    /// none, forbid-role, forbid-policy, forbid-firewall, throttle, error, hang, reset, latency=DURATION, or
    /// clock=DURATION: the vault's clock is ahead by so much, or behind with clock=-DURATION
    #[arg(value_name = "FAULT")]
    kind: FaultKind,
    #[command(flatten)]
    state: State,
    /// Only for requests for this key
    #[arg(long, value_name = "NAME")]
    key: Option<KeyName>,
    /// Only for so many requests
    #[arg(long, value_name = "N")]
    count: Option<NonZeroU32>,
    /// With throttle: the Retry-After header, in whole seconds [default: no such header]
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    retry_after: Option<Duration>,
    /// With error: the HTTP status [default: 500]
    #[arg(long, value_parser = clap::value_parser!(u16).range(500..600))]
    status: Option<u16>,
    /// Also for requests for a token
    #[arg(long)]
    also_tokens: bool,
}

#[derive(Clone, Copy, Debug)]
enum FaultKind {
    None,
    ForbidRole,
    ForbidPolicy,
    ForbidFirewall,
    Throttle,
    Error,
    Hang,
    Reset,
    Latency(Duration),
    Clock(i64),
}

impl FromStr for FaultKind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "none" => Ok(Self::None),
            "forbid-role" => Ok(Self::ForbidRole),
            "forbid-policy" => Ok(Self::ForbidPolicy),
            "forbid-firewall" => Ok(Self::ForbidFirewall),
            "throttle" => Ok(Self::Throttle),
            "error" => Ok(Self::Error),
            "hang" => Ok(Self::Hang),
            "reset" => Ok(Self::Reset),
            _ if text.starts_with("clock=") => {
                let apart = text.trim_start_matches("clock=");
                let (sign, apart) = apart.strip_prefix('-').map_or((1, apart), |behind| (-1, behind));
                let apart = humantime::parse_duration(apart).map_err(|error| format!("{error}; for instance clock=-10m"))?;
                let seconds = i64::try_from(apart.as_secs()).map_err(|_| "that is too long".to_owned())?;
                Ok(Self::Clock(sign * seconds))
            }
            _ => match text.strip_prefix("latency=").map(humantime::parse_duration) {
                Some(Ok(latency)) => Ok(Self::Latency(latency)),
                Some(Err(error)) => Err(format!("{error}; for instance latency=200ms")),
                None => Err(
                    "it is one of none, forbid-role, forbid-policy, forbid-firewall, throttle, error, hang, reset, latency=DURATION, clock=DURATION"
                        .into(),
                ),
            },
        }
    }
}

/// Runs one of them.
pub fn run(command: DevVault) -> Result<(), Failure> {
    match command {
        DevVault::Start(arguments) => start(arguments),
        DevVault::Stop(state) => stop(&state),
        DevVault::Status(StatusArguments { state, json }) => {
            let status = state.ask(&Command::Status)?;
            if json { print(&status.to_string()) } else { print(&readable(&status)) }
        }
        DevVault::Key(command) => key(command),
        DevVault::Fault(arguments) => fault(&arguments),
    }
}

fn start(arguments: StartArguments) -> Result<(), Failure> {
    let StartArguments { state: named, listen, token_lifetime, foreground, detached } = arguments;
    if let Some(address) = listen.filter(|address| !address.ip().is_loopback()) {
        return Err(Failure::new(Exit::Usage, format!("{address} is not a loopback address"))
            .hint("the vault's keys are not protected, so it serves this machine only: --listen 127.0.0.1:PORT"));
    }
    let state = StateDir::create(&named.directory).map_err(|error| {
        Failure::new(Exit::Store, format!("cannot use {} as a state directory: {error}", named.directory.display()))
            .hint("--state takes a directory that is empty, new, or was used before")
    })?;
    let start = Start { listen, token_lifetime };
    if detached {
        return Ok(daemon::run_detached(state, &start)?);
    }
    if foreground {
        return Ok(daemon::run_in_foreground(state, &start)?);
    }
    let running = daemon::status_of(&state);
    if let Some(status) = running.map_err(|error| Failure::new(Exit::Failure, error.to_string()))? {
        return joined(&status, &start, &named);
    }
    let mut again: Vec<OsString> = ["dev-vault", "start", "--detached", "--state"].map(OsString::from).to_vec();
    again.push(state.path().into());
    if let Some(address) = listen {
        again.extend(["--listen".into(), address.to_string().into()]);
    }
    if let Some(lifetime) = token_lifetime {
        again.extend(["--token-lifetime".into(), format!("{}s", lifetime.as_secs()).into()]);
    }
    let url = daemon::start_detached(&state, &again)?;
    eprintln!("for clients: . {}", shell_word(&state.file(ENVIRONMENT).to_string_lossy()));
    print(&url)
}

/// A start of a vault that runs already succeeds, unless it asks for something else.
fn joined(status: &Value, start: &Start, named: &State) -> Result<(), Failure> {
    let other = |what: &str, now: &Value, wanted: String| {
        Err(Failure::new(Exit::Failure, format!("the vault already runs, with {what} {now} and not {wanted}"))
            .hint(named.advice("stop")))
    };
    if let Some(address) = start.listen.filter(|address| address.port() != 0 && status["listen"] != address.to_string())
    {
        return other("--listen", &status["listen"], address.to_string());
    }
    if let Some(lifetime) = start.token_lifetime.filter(|lifetime| status["token_lifetime"] != lifetime.as_secs()) {
        return other("--token-lifetime in seconds", &status["token_lifetime"], lifetime.as_secs().to_string());
    }
    print(status["url"].as_str().unwrap_or_default())
}

fn stop(state: &State) -> Result<(), Failure> {
    let directory = state.open()?;
    let failed = |error: std::io::Error| Failure::new(Exit::Failure, format!("the vault cannot be stopped: {error}"));
    match Control::connect(&directory).map_err(failed)? {
        Some(control) => control.stop(&directory).map_err(failed),
        None => Ok(()),
    }
}

fn key(command: KeyCommand) -> Result<(), Failure> {
    match command {
        KeyCommand::Create { name, state, kty, size, ops } => {
            let bits = size.and_then(|size| size.parse().ok());
            if bits.is_some_and(|bits: u64| (bits == 256) != (kty == "oct-HSM")) {
                return Err(Failure::new(Exit::Usage, format!("a key of type {kty} does not come in that --size"))
                    .hint("RSA keys have 2048, 3072 or 4096 bits, oct-HSM keys 256"));
            }
            print_id(&state.ask(&Command::CreateKey { name, kty, bits, operations: ops })?)
        }
        KeyCommand::Rotate(NameArguments { name, state }) => print_id(&state.ask(&Command::RotateKey { name })?),
        KeyCommand::Disable(which) => enable(which, false),
        KeyCommand::Enable(which) => enable(which, true),
        KeyCommand::Expire { which, after, never } => {
            let VersionArguments { key: NameArguments { name, state }, version } = which;
            let at = (!never).then(|| now() + after.as_secs());
            state.ask(&Command::ExpireKey { name, version, at }).map(drop)
        }
        KeyCommand::Delete(NameArguments { name, state }) => state.ask(&Command::DeleteKey { name }).map(drop),
        KeyCommand::Recover(NameArguments { name, state }) => state.ask(&Command::RecoverKey { name }).map(drop),
        KeyCommand::Purge(NameArguments { name, state }) => state.ask(&Command::PurgeKey { name }).map(drop),
        KeyCommand::Show(NameArguments { name, state }) => {
            let key = state.ask(&Command::ShowKey { name })?;
            print(&format!("{key:#}"))
        }
        KeyCommand::List(state) => print(&key_lines(&state.ask(&Command::Status)?["keys"])),
    }
}

fn enable(which: VersionArguments, enabled: bool) -> Result<(), Failure> {
    let VersionArguments { key: NameArguments { name, state }, version } = which;
    state.ask(&Command::EnableKey { name, version, enabled }).map(drop)
}

fn fault(arguments: &FaultArguments) -> Result<(), Failure> {
    let FaultArguments { kind, state, key, count, retry_after, status, also_tokens } = arguments;
    let usage = |message: &str| Err(Failure::new(Exit::Usage, message));
    if retry_after.is_some() && !matches!(kind, FaultKind::Throttle) {
        return usage("--retry-after goes with throttle only");
    }
    if status.is_some() && !matches!(kind, FaultKind::Error) {
        return usage("--status goes with error only");
    }
    if *also_tokens
        && (key.is_some()
            || matches!(kind, FaultKind::ForbidRole | FaultKind::ForbidPolicy | FaultKind::ForbidFirewall))
    {
        return usage("--also-tokens goes with neither --key nor forbid-*");
    }
    let fault = match *kind {
        FaultKind::None => {
            if count.is_some() || *also_tokens {
                return usage("none takes back what was set, without --count or --also-tokens");
            }
            return state.ask(&Command::ClearFault { key: key.clone() }).map(drop);
        }
        FaultKind::ForbidRole => Fault::ForbidRole,
        FaultKind::ForbidPolicy => Fault::ForbidPolicy,
        FaultKind::ForbidFirewall => Fault::ForbidFirewall,
        FaultKind::Throttle => Fault::Throttle { retry_after: retry_after.map(|wait| wait.as_secs()) },
        FaultKind::Error => Fault::Error { status: status.unwrap_or(500) },
        FaultKind::Hang => Fault::Hang,
        FaultKind::Reset => Fault::Reset,
        FaultKind::Latency(latency) => Fault::Latency(latency),
        FaultKind::Clock(_) if key.is_some() || count.is_some() || *also_tokens => {
            return usage("clock is for the whole vault: without --key, --count and --also-tokens");
        }
        FaultKind::Clock(ahead) => Fault::Clock { ahead },
    };
    let rule = Rule { fault, remaining: *count, also_tokens: *also_tokens };
    state.ask(&Command::SetFault { key: key.clone(), rule }).map(drop)
}

impl State {
    fn open(&self) -> Result<StateDir, Failure> {
        StateDir::open(&self.directory).ok_or_else(|| {
            Failure::new(Exit::Failure, format!("there is no vault in {}", self.directory.display()))
                .hint(self.advice("start"))
        })
    }

    fn ask(&self, command: &Command) -> Result<Value, Failure> {
        let directory = self.open()?;
        let failed = |error: std::io::Error| Failure::new(Exit::Failure, format!("the vault does not answer: {error}"));
        let Some(mut control) = Control::connect(&directory).map_err(failed)? else {
            return Err(Failure::new(
                Exit::Failure,
                format!("the vault of {} is not running", self.directory.display()),
            )
            .hint(self.advice("start")));
        };
        match control.ask(command).map_err(failed)? {
            Answer::Done(value) => Ok(value),
            Answer::Failed { message, code } => Err(self.refused(&message, &code)),
        }
    }

    /// A command for this directory, ready for a shell.
    fn advice(&self, command: &str) -> String {
        format!("kmsfs dev-vault {command} --state {}", shell_word(&self.directory.to_string_lossy()))
    }

    fn refused(&self, message: &str, code: &str) -> Failure {
        let failure = Failure::new(Exit::Failure, message);
        match code {
            "ObjectIsDeletedButRecoverable" => failure.hint(self.advice("key recover|purge NAME")),
            "KeyNotFound" => failure.hint(self.advice("key list")),
            _ => failure,
        }
    }
}

impl From<StartFailure> for Failure {
    fn from(failure: StartFailure) -> Self {
        Self { exit: Exit::Failure, message: failure.message, hint: failure.hint }
    }
}

fn print_id(key: &Value) -> Result<(), Failure> {
    print(key["kid"].as_str().unwrap_or_default())
}

fn print(text: &str) -> Result<(), Failure> {
    writeln!(std::io::stdout(), "{}", text.trim_end())
        .map_err(|error| Failure::new(Exit::Failure, format!("cannot write to standard output: {error}")))
}

fn readable(status: &Value) -> String {
    let mut text = format!("url   {}\npid   {}\n", status["url"].as_str().unwrap_or_default(), status["pid"]);
    for (title, value) in [("fault", &status["faults"]), ("calls", &status["calls"]["calls"])] {
        text.push_str(&format!("{title} {value}\n"));
    }
    text + &key_lines(&status["keys"])
}

fn key_lines(keys: &Value) -> String {
    let mut text = String::new();
    for key in keys.as_array().into_iter().flatten() {
        let versions = key["versions"].as_array().map_or(0, Vec::len);
        let disabled = key["versions"].as_array().into_iter().flatten();
        let disabled = disabled.filter(|version| version["attributes"]["enabled"] == false).count();
        let state = match (key["deleted"] == true, disabled) {
            (true, _) => "deleted".to_owned(),
            (false, 0) => "enabled".to_owned(),
            (false, some) if some == versions => "disabled".to_owned(),
            (false, some) => format!("{some} of {versions} versions disabled"),
        };
        let name = key["name"].as_str().unwrap_or_default();
        text.push_str(&format!("{name}\t{state}\t{versions}\t{}\n", key["kid"].as_str().unwrap_or_default()));
    }
    text
}
