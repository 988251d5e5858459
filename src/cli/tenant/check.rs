//! `kmsfs tenant check`.

use super::*;
use crate::tenant::Credentials;
use serde::Serialize;
use std::collections::HashMap;
use std::process::Stdio;

/// `tenant check`.
#[derive(Args)]
pub struct Check {
    /// Which ones; all of them without a name
    tenants: Vec<TenantName>,
    /// All of them
    #[arg(long, conflicts_with = "tenants")]
    all: bool,
    /// Do not ask any KMS
    #[arg(long)]
    offline: bool,
    #[command(flatten)]
    place: Place,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// What came of checking one tenant. Stable: scripts depend on the names.
#[derive(Serialize)]
struct Checked {
    tenant: TenantName,
    /// Nothing is wrong; there may be warnings.
    ok: bool,
    volume_id: Option<String>,
    findings: Vec<Finding>,
    #[serde(skip)]
    exit: Option<Exit>,
    #[serde(skip)]
    loaded: Option<Loaded>,
}

#[derive(Serialize)]
struct Finding {
    /// `error` or `warning`.
    level: &'static str,
    message: String,
    hint: Option<String>,
}

impl Checked {
    fn error(&mut self, failure: Failure) {
        self.ok = false;
        self.exit = self.exit.or(Some(failure.exit));
        self.findings.push(Finding { level: "error", message: failure.message, hint: failure.hint });
    }

    fn warn(&mut self, message: String, hint: &str) {
        self.findings.push(Finding { level: "warning", message, hint: Some(hint.to_owned()) });
    }
}

pub fn run(arguments: &Check) -> Result<(), Failure> {
    let directory = arguments.place.directory();
    let all = configured(&directory);
    // Those that nobody asked for matter too: two tenants may share what they must not.
    let asked = if arguments.tenants.is_empty() { all? } else { arguments.tenants.clone() };
    let others = configured(&directory).unwrap_or_default().into_iter().filter(|tenant| !asked.contains(tenant));
    let mut checked: Vec<_> = asked.iter().map(|tenant| one(&directory, tenant)).collect();
    let others: Vec<_> = others.filter_map(|tenant| Loaded::of(&directory, &tenant).ok()).collect();
    apart(&mut checked, &others);
    if !arguments.offline {
        checked.iter_mut().for_each(ask_kms);
    }
    if arguments.json {
        println!("{}", serde_json::to_string_pretty(&checked).unwrap_or_default());
    } else {
        checked.iter().for_each(print);
    }
    let wrong = checked.iter().filter(|checked| !checked.ok).count();
    match checked.iter().find_map(|checked| checked.exit) {
        None => Ok(()),
        Some(exit) => {
            Err(Failure::new(exit, format!("{wrong} of {} tenants cannot be mounted as they are", checked.len()))
                .hint("mend what is said above, and check again"))
        }
    }
}

fn print(checked: &Checked) {
    let state = if checked.ok { "ok" } else { "wrong" };
    println!("{:<22} {state}", checked.tenant);
    for Finding { level, message, hint } in &checked.findings {
        println!("  {level}: {message}");
        if let Some(hint) = hint {
            println!("  hint: {hint}");
        }
    }
}

/// What can be seen of one tenant by itself.
fn one(directory: &Path, tenant: &TenantName) -> Checked {
    let mut checked =
        Checked { tenant: tenant.clone(), ok: true, volume_id: None, findings: Vec::new(), exit: None, loaded: None };
    let loaded = match Loaded::of(directory, tenant) {
        Ok(loaded) => loaded,
        Err(failure) => {
            checked.error(failure);
            return checked;
        }
    };
    match Volume::open(&loaded.config.volume) {
        Ok(volume) => {
            let id = volume.record().id;
            match loaded.options.volume_id {
                Some(expected) if expected != id => {
                    let message = format!("{} is volume {id}, not {expected}", loaded.config.volume.display());
                    checked.error(
                        Failure::new(Exit::WrongKey, message).hint("somebody may have put another volume in its place"),
                    );
                }
                None => checked.warn(
                    format!("any volume in {} would be mounted", loaded.config.volume.display()),
                    &format!("volume-id = \"{id}\" refuses every other one"),
                ),
                Some(_) => (),
            }
            checked.volume_id = Some(id.to_string());
        }
        Err(error) => checked.error(Failure::of_volume(&loaded.config.volume, error)),
    }
    let state = State::of(&loaded.config.mountpoint);
    match &state {
        State::NotMounted => {
            let flags = &loaded.options.flags;
            match mountpoint::absolute(&loaded.config.mountpoint).and_then(|at| mountpoint::check(&at, flags.nonempty))
            {
                Ok(()) => (),
                Err(failure) => checked.error(failure),
            }
        }
        State::Dead => checked.warn(
            format!("the process of its mount at {} is gone", loaded.config.mountpoint.display()),
            "the next start takes the mount away, and recovers",
        ),
        State::Mounted(status) if Some(&status.volume_id) != checked.volume_id.as_ref() => {
            let message =
                format!("another volume is mounted at {}: {}", status.mountpoint.display(), status.volume.display());
            checked
                .error(Failure::new(Exit::AlreadyMounted, message).hint("unmount that, or choose another mountpoint"));
        }
        State::Mounted(_) => (),
    }
    if let Err(failure) = loaded.check_credentials() {
        checked.error(failure);
    }
    match Suspension::read(&state_directory(tenant)) {
        Ok(None) => (),
        Ok(Some(suspension)) => checked.warn(
            format!("it is suspended since {}: {}", suspension.since, suspension.reason),
            &format!("kmsfs tenant resume {tenant}"),
        ),
        Err(error) => checked.error(
            Failure::new(Exit::Failure, format!("{}: {error}", state_directory(tenant).display()))
                .hint("run as the user to whom the directory belongs"),
        ),
    }
    checked.loaded = Some(loaded);
    checked
}

/// What two tenants must not share: volume and mountpoint; and what they should not: who they are for the KMS.
fn apart(checked: &mut [Checked], others: &[Loaded]) {
    let real = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let place = |path: &Path| mountpoint::absolute(path).unwrap_or_else(|_| path.to_owned());
    let mut paths: HashMap<(&'static str, PathBuf), Vec<TenantName>> = HashMap::new();
    let mut identities: Vec<(&Credentials, Vec<TenantName>)> = Vec::new();
    for loaded in checked.iter().filter_map(|checked| checked.loaded.as_ref()).chain(others) {
        let config = &loaded.config;
        paths.entry(("volume", real(&config.volume))).or_default().push(config.name.clone());
        paths.entry(("mountpoint", place(&config.mountpoint))).or_default().push(config.name.clone());
        let Some(credentials) = &loaded.credentials else { continue };
        match identities.iter_mut().find(|(known, _)| known.is_same_identity(credentials)) {
            Some((_, tenants)) => tenants.push(config.name.clone()),
            None => identities.push((credentials, vec![config.name.clone()])),
        }
    }
    let identities: Vec<_> = identities.into_iter().map(|(_, tenants)| tenants).collect();
    for checked in checked {
        let with = |tenants: &[TenantName]| {
            let others: Vec<_> =
                tenants.iter().filter(|other| **other != checked.tenant).map(TenantName::as_str).collect();
            (tenants.contains(&checked.tenant) && !others.is_empty()).then(|| others.join(", "))
        };
        let shared: Vec<_> = paths
            .iter()
            .filter_map(|((what, path), tenants)| Some((*what, path.display().to_string(), with(tenants)?)))
            .collect();
        let same: Vec<_> = identities.iter().filter_map(|tenants| with(tenants)).collect();
        for (what, path, others) in shared {
            let message = format!("the {what} {path} is also that of {others}");
            checked.error(
                Failure::new(Exit::Config, message).hint("every tenant needs a volume and a mountpoint of its own"),
            );
        }
        for others in same {
            let message = format!("its credentials are the same as those of {others}");
            checked.warn(
                message,
                "give each tenant an identity of its own: one that is taken away takes no other one along",
            );
        }
    }
}

/// Asks the KMS for the volume's own key, in a process that is this tenant's.
fn ask_kms(checked: &mut Checked) {
    let Some(loaded) = checked.loaded.as_ref().filter(|_| checked.ok) else { return };
    let volume = loaded.config.volume.to_string_lossy().into_owned();
    let mut words = vec!["key".to_owned(), "test".to_owned(), "--volume".to_owned(), volume];
    words.extend(loaded.options.kek.clone());
    let output = loaded
        .command(words)
        .and_then(|mut command| command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).output());
    let result = output
        .map_err(|error| Failure::new(Exit::Failure, format!("the test of its key cannot start: {error}")))
        .and_then(|output| succeeded(&output));
    if let Err(failure) = result {
        checked.error(failure);
    }
}
