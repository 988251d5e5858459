//! `kmsfs tenant suspend` and `kmsfs tenant resume`.

use super::*;
use crate::audit::{self, Event, clean};

/// `tenant suspend`.
#[derive(Args)]
pub struct Suspend {
    /// The tenant
    tenant: TenantName,
    /// Why, for whoever sees it: the audit log, tenant list, a mount that is refused
    #[arg(long, value_name = "TEXT")]
    reason: String,
    #[command(flatten)]
    place: Place,
}

/// `tenant resume`.
#[derive(Args)]
pub struct Resume {
    /// The tenant
    tenant: TenantName,
    #[command(flatten)]
    place: Place,
}

/// The order matters: what is written down first holds for a mount that begins meanwhile.
///
/// 1. The suspension is made durable: no mount begins and none is unlocked from here on.
/// 2. A mount that is there is locked. A crash before this leaves it unlocked until it ends, or the command is given again.
pub fn suspend(arguments: &Suspend) -> Result<(), Failure> {
    let (tenant, reason) = (&arguments.tenant, clean(arguments.reason.trim()));
    if reason.is_empty() {
        let failure = Failure::new(Exit::Usage, "the reason is empty");
        return Err(failure.hint("say why: whoever wonders later has nothing else"));
    }
    let config = Config::read(&arguments.place.directory(), tenant, &keys())?;
    let suspension = Suspension::now(&reason);
    suspension.write(&state_directory(tenant)).map_err(|error| of_state(tenant, &error))?;
    note(&config, Event::Suspend { tenant: tenant.to_string(), reason });
    match State::of(&config.mountpoint) {
        State::Mounted(_) => super::super::lock::tell(&config.mountpoint, Command::Lock).map(|()| {
            println!("{tenant} is suspended: its volume is locked");
        }),
        State::NotMounted => {
            println!("{tenant} is suspended: its volume is not mounted");
            Ok(())
        }
        State::Dead => {
            println!("{tenant} is suspended: its mount is dead, and can serve nothing");
            Ok(())
        }
    }
}

pub fn resume(arguments: &Resume) -> Result<(), Failure> {
    let tenant = &arguments.tenant;
    let config = Config::read(&arguments.place.directory(), tenant, &keys())?;
    let directory = state_directory(tenant);
    let suspended = Suspension::read(&directory).map_err(|error| of_state(tenant, &error))?;
    if suspended.is_none() {
        let failure = Failure::new(Exit::Usage, format!("{tenant} is not suspended"));
        return Err(
            failure.hint(format!("kmsfs tenant list; a lock by hand: kmsfs unlock {}", config.mountpoint.display()))
        );
    }
    Suspension::remove(&directory).map_err(|error| of_state(tenant, &error))?;
    note(&config, Event::Resume { tenant: tenant.to_string() });
    match State::of(&config.mountpoint) {
        State::Mounted(_) => super::super::lock::tell(&config.mountpoint, Command::Unlock).map(|()| {
            println!("{tenant} is resumed: its volume is unlocked");
        }),
        _ => {
            println!("{tenant} is resumed; mount it: systemctl start kmsfs@{tenant}, or kmsfs mount --tenant {tenant}");
            Ok(())
        }
    }
}

fn of_state(tenant: &TenantName, error: &std::io::Error) -> Failure {
    let message = format!("{}: {error}", state_directory(tenant).display());
    Failure::new(Exit::Store, message).hint("run as the user to whom the directory belongs")
}

fn note(config: &Config, event: Event) {
    let noted = Volume::open(&config.volume)
        .map_err(|error| error.to_string())
        .and_then(|volume| audit::append(volume.path(), volume.record().id, None, &[event]).map_err(|e| e.to_string()));
    if let Err(error) = noted {
        eprintln!("warning: it could not be noted in the audit log: {error}");
    }
}
