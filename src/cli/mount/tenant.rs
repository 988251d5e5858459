//! `kmsfs mount --tenant`: the configuration of a tenant becomes the arguments of the command, and its credentials the
//! environment of the process.

use super::{Exit, Failure, Mount};
use crate::daemon::MountOptions;
use crate::fs::volume::Volume;
use crate::kms::KekRef;
use crate::tenant::{Config, Credentials, Key, Suspension, Takes, TenantName, config_directory, is_identity};
use clap::error::{ContextKind, ContextValue};
use clap::parser::ValueSource;
use clap::{Args, FromArgMatches};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

/// What belongs to the command and not to the tenant.
const COMMAND_ONLY: [&str; 5] = ["tenant", "config-dir", "foreground", "label", "help"];
/// What can be said beside `--tenant`.
const BESIDE: [&str; 5] = ["tenant", "config_dir", "foreground", "log_file", "attached"];

fn command() -> clap::Command {
    Mount::augment_args(clap::Command::new("mount").no_binary_name(true))
}

/// The options of `kmsfs mount` that a configuration, or fstab, may set.
pub fn keys() -> Vec<Key> {
    let command = command();
    let options = command.get_arguments().filter(|option| !option.is_hide_set());
    options
        .filter_map(|option| {
            let name = option.get_long().filter(|name| !COMMAND_ONLY.contains(name))?.to_owned();
            let takes = match option.get_num_args() {
                _ if !option.get_action().takes_values() => Takes::Nothing,
                Some(count) if count.min_values() == 0 => Takes::Either,
                _ => Takes::Value,
            };
            Some(Key { name, takes })
        })
        .collect()
}

/// What a tenant's configuration says, checked as far as that goes without the volume and the KMS.
pub struct Loaded {
    /// The configuration.
    pub config: Config,
    /// What its mount is told.
    pub options: MountOptions,
    /// Who it is for the KMS; its own file says so.
    pub credentials: Option<Credentials>,
    arguments: Vec<String>,
}

impl Loaded {
    /// Reads the configuration of a tenant and its credentials.
    ///
    /// # Errors
    /// [`Exit::Config`], [`Exit::Credentials`].
    pub fn of(directory: &Path, tenant: &TenantName) -> Result<Self, Failure> {
        let mut loaded = Self::without_credentials(directory, tenant)?;
        if let Some((named, _)) = &loaded.config.credentials {
            loaded.credentials = Some(Credentials::read(&Credentials::find(named, directory))?);
        }
        Ok(loaded)
    }

    /// The same for what needs no KMS.
    ///
    /// # Errors
    /// [`Exit::Config`]
    pub fn without_credentials(directory: &Path, tenant: &TenantName) -> Result<Self, Failure> {
        let config = Config::read(directory, tenant, &keys())?;
        let mut arguments: Vec<_> = config.options.iter().map(|(_, _, argument)| argument.clone()).collect();
        arguments.extend(config.labels.iter().map(|(name, value)| format!("--label={name}={value}")));
        let places = [&config.volume, &config.mountpoint].map(|path| path.as_os_str().to_owned());
        let all = places.into_iter().chain(arguments.iter().map(Into::into));
        let mount = command()
            .try_get_matches_from(all)
            .and_then(|matches| Mount::from_arg_matches(&matches))
            .map_err(|error| of_arguments(&config, &error))?;
        let mut options = mount.options().map_err(|failure| {
            let at =
                [("revalidate", "revalidate is"), ("options", "mount option"), ("with-recovery-kek", "recovery key")];
            let option = at.iter().find(|(_, words)| failure.message.contains(words)).map(|(option, _)| *option);
            let message = format!("{}: {}", place(&config, option), failure.message);
            Failure { exit: Exit::Config, message, hint: failure.hint }
        })?;
        options.tenant = Some(tenant.clone());
        Ok(Self { config, options, credentials: None, arguments })
    }

    /// Where the key of the tenant's volume is, if its configuration or its volume says so.
    pub fn kek(&self) -> Option<String> {
        let recorded = || Some(Volume::open(&self.config.volume).ok()?.record().newest().reference.clone());
        self.options.kek.clone().or_else(recorded)
    }

    /// That the key needs somebody who asks for it, and the tenant does not say who.
    ///
    /// # Errors
    /// [`Exit::Credentials`]
    pub fn check_credentials(&self) -> Result<(), Failure> {
        let asks =
            |kek: &KekRef| matches!(kek, KekRef::Aws(_) | KekRef::Azure(_) | KekRef::Gcp(_) | KekRef::Transit(_));
        let Some(kek) = self.kek().filter(|kek| kek.parse().is_ok_and(|kek| asks(&kek))) else { return Ok(()) };
        if self.credentials.is_some() {
            return Ok(());
        }
        let message = format!("{}: {kek} needs credentials, and this tenant has none", self.config.file.display());
        Err(Failure::new(Exit::Credentials, message).hint(format!(
            "[credentials] file = \"{0}.env\", with the variables of {0}'s own identity in credentials/{0}.env",
            self.config.name
        )))
    }

    /// `kmsfs` with these arguments, as this tenant: with its credentials, and nobody else's.
    pub fn command(&self, arguments: impl IntoIterator<Item = String>) -> std::io::Result<Command> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(arguments);
        std::env::vars_os().filter(|(name, _)| name.to_str().is_some_and(is_identity)).for_each(|(name, _)| {
            command.env_remove(name);
        });
        command.envs(self.credentials.iter().flat_map(Credentials::variables));
        Ok(command)
    }

    /// The command that mounts it.
    ///
    /// # Errors
    /// If this program cannot be found.
    pub fn mount_command(&self, directory: &Path, foreground: bool) -> std::io::Result<Command> {
        let path = |path: &Path| path.to_string_lossy().into_owned();
        let places = [&self.config.volume, &self.config.mountpoint].map(|place| path(place));
        // A log file is for a process in the background.
        let options = self.arguments.iter().filter(|argument| !foreground || !argument.starts_with("--log-file="));
        let whose = ["--tenant".to_owned(), self.config.name.to_string(), "--config-dir".to_owned(), path(directory)];
        let mut arguments = vec!["mount".to_owned()];
        arguments.extend(places.into_iter().chain(options.cloned()).chain(whose).chain(["--expanded".to_owned()]));
        arguments.extend(foreground.then(|| "--foreground".to_owned()));
        self.command(arguments)
    }
}

/// Becomes the process that mounts a tenant's volume; comes back only if that fails.
pub fn become_tenant(tenant: &TenantName, arguments: &Mount) -> Failure {
    let directory = config_directory(arguments.config_dir.clone());
    let command = only_beside()
        .and_then(|()| Suspension::forbids(tenant))
        .and_then(|()| Loaded::of(&directory, tenant))
        .and_then(|loaded| loaded.check_credentials().map(|()| loaded))
        .and_then(|loaded| {
            let log = arguments.log_file.iter().map(|log| format!("--log-file={}", log.display()));
            let attached = arguments.attached.then(|| "--attached".to_owned());
            loaded
                .mount_command(&directory, arguments.foreground)
                .map(|mut command| {
                    command.args(log.chain(attached));
                    command
                })
                .map_err(|error| Failure::new(Exit::Failure, format!("this program cannot be found: {error}")))
        });
    match command {
        Ok(mut command) => {
            let error = command.exec();
            Failure::new(Exit::Failure, format!("the mount's process cannot start: {error}"))
        }
        Err(failure) => failure,
    }
}

/// A tenant is mounted as its configuration says, not a little differently.
fn only_beside() -> Result<(), Failure> {
    let Ok(matches) = command().try_get_matches_from(std::env::args_os().skip(2)) else { return Ok(()) };
    let is_said = |id: &str| matches.value_source(id) == Some(ValueSource::CommandLine);
    let command = command();
    let mut others =
        command.get_arguments().map(|argument| argument.get_id().as_str()).filter(|id| !BESIDE.contains(id));
    match others.find(|id| is_said(id)) {
        None => Ok(()),
        Some(id) => {
            let message = format!("'{}' cannot be given together with --tenant", id.replace('_', "-"));
            Err(Failure::new(Exit::Usage, message).hint("write it into the tenant's configuration"))
        }
    }
}

/// The file, and the line if an option is known.
fn place(config: &Config, option: Option<&str>) -> String {
    match option.and_then(|option| config.line_of(option)) {
        Some(line) => format!("{}:{line}", config.file.display()),
        None => config.file.display().to_string(),
    }
}

/// What the command line says of an option, as a mistake in the file.
fn of_arguments(config: &Config, error: &clap::Error) -> Failure {
    let option = match error.get(ContextKind::InvalidArg) {
        Some(ContextValue::String(option)) => option.trim_start_matches('-').split([' ', '=', '[']).next(),
        _ => None,
    };
    let text = error.render().to_string();
    let first = text.lines().next().unwrap_or_default();
    let message = first.strip_prefix("error: ").unwrap_or(first).trim_end_matches(':').replace("--", "");
    let missing = text.lines().filter_map(|line| line.trim().strip_prefix("--")).next();
    let hint =
        missing.map_or_else(|| "kmsfs mount --help says what it can be".to_owned(), |name| format!("add: {name}"));
    Failure::new(Exit::Config, format!("{}: {message}", place(config, option))).hint(hint)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_option_of_the_command_is_a_key_except_what_belongs_to_the_command() {
        let keys = keys();
        let takes = |name: &str| keys.iter().find(|key| key.name == name).map(|key| key.takes);
        assert_eq!(takes("options"), Some(Takes::Value));
        assert_eq!(takes("offline-grace"), Some(Takes::Value));
        assert_eq!(takes("wait"), Some(Takes::Either));
        assert_eq!(takes("with-recovery-kek"), Some(Takes::Nothing));
        for name in ["tenant", "foreground", "report", "expanded", "config-dir", "help"] {
            assert_eq!(takes(name), None, "{name}");
        }
    }
}
