//! What mount(8) and fstab call: this program under the name `mount.kmsfs` or `mount.fuse.kmsfs`. Becomes `kmsfs mount`.

use super::mount::tenant::keys;
use super::{Exit, Failure};
use crate::fuse::flags::Flags;
use crate::tenant::{Config, Takes, TenantName, config_directory};
use std::ffi::{OsStr, OsString};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

const USAGE: &str = "\
Usage: mount.kmsfs VOLUME MOUNTPOINT [-sfnv] [-o OPTION,OPTION]

Options are those of `kmsfs mount -o`, and every long option of `kmsfs mount` without its dashes: revalidate=30s,wait.
tenant=NAME mounts what that tenant's configuration says.";
/// Where programs are, if nobody says.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Whether this is the name of the helper.
pub fn is_called(program: &OsStr) -> bool {
    let name = Path::new(program).file_name().and_then(OsStr::to_str);
    matches!(name, Some("mount.kmsfs" | "mount.fuse.kmsfs"))
}

/// What mount(8) says.
#[derive(Debug, Default, PartialEq, Eq)]
struct Asked {
    volume: PathBuf,
    mountpoint: PathBuf,
    options: Vec<String>,
    fake: bool,
}

/// What is to be run.
#[derive(Debug, PartialEq, Eq)]
enum Run {
    /// `kmsfs` with these arguments.
    Kmsfs(Vec<OsString>),
    /// `mount -i` with these options, on what is mounted.
    Remount(String),
    Nothing,
}

/// Becomes the command that mounts; comes back only without one.
pub fn run(arguments: impl Iterator<Item = OsString>) -> Result<(), Failure> {
    let arguments: Vec<_> = arguments.collect();
    if arguments.iter().any(|argument| argument == "-h" || argument == "--help") {
        println!("{USAGE}");
        return Ok(());
    }
    let asked = parse(arguments.into_iter())?;
    let mut command = match translate(&asked)? {
        Run::Nothing => return Ok(()),
        Run::Remount(options) => {
            let mut command = Command::new("mount");
            command.args(["-i", "-o", &options]).arg(&asked.mountpoint);
            command
        }
        Run::Kmsfs(arguments) => {
            let program = std::env::current_exe();
            let program = program.map_err(|error| Failure::new(Exit::Failure, format!("this program: {error}")))?;
            let mut command = Command::new(program);
            command.args(arguments);
            command
        }
    };
    if std::env::var_os("PATH").is_none_or(|path| path.is_empty()) {
        command.env("PATH", PATH);
    }
    Err(Failure::new(Exit::Failure, format!("the mount's process cannot start: {}", command.exec())))
}

fn usage(message: impl Into<String>) -> Failure {
    Failure::new(Exit::Usage, message).hint("mount.kmsfs --help; kmsfs mount --help has all options")
}

fn parse(mut arguments: impl Iterator<Item = OsString>) -> Result<Asked, Failure> {
    let (mut asked, mut places) = (Asked::default(), Vec::new());
    while let Some(argument) = arguments.next() {
        let text = argument.to_string_lossy().into_owned();
        let Some(letters) = text.strip_prefix('-').filter(|letters| !letters.is_empty()) else {
            places.push(PathBuf::from(argument));
            continue;
        };
        for (at, letter) in letters.char_indices() {
            match letter {
                's' | 'n' | 'v' | 'i' => continue,
                'f' => {
                    asked.fake = true;
                    continue;
                }
                'o' | 't' | 'N' => (),
                _ => return Err(usage(format!("unknown option '-{letter}'"))),
            }
            let rest = &letters[at + letter.len_utf8()..];
            let value = match rest.is_empty() {
                false => Some(rest.to_owned()),
                true => arguments.next().map(|value| value.to_string_lossy().into_owned()),
            };
            let value = value.ok_or_else(|| usage(format!("'-{letter}' needs a value")))?;
            if letter == 'o' {
                asked.options.extend(split(&value));
            }
            break;
        }
    }
    match <[PathBuf; 2]>::try_from(places) {
        Ok([volume, mountpoint]) => Ok(Asked { volume, mountpoint, ..asked }),
        Err(_) => Err(usage("a volume and a mountpoint are needed, and nothing else")),
    }
}

/// Splits at the commas that are not in double quotes.
fn split(list: &str) -> Vec<String> {
    let (mut all, mut quoted) = (vec![String::new()], false);
    for c in list.chars() {
        match (c, all.last_mut()) {
            ('"', _) => quoted = !quoted,
            (',', _) if !quoted => all.push(String::new()),
            (c, Some(last)) => last.push(c),
            (_, None) => (),
        }
    }
    all.retain(|option| !option.is_empty());
    all
}

fn translate(asked: &Asked) -> Result<Run, Failure> {
    if asked.options.iter().any(|option| option == "remount") {
        return Ok(Run::Remount(asked.options.join(",")));
    }
    let keys: Vec<_> = keys().into_iter().filter(|key| key.name != "options").collect();
    let (mut ours, mut rest, mut tenant, mut directory) = (Vec::new(), Vec::new(), None, None);
    for option in &asked.options {
        let (name, value) = option.split_once('=').map_or((option.as_str(), None), |(name, value)| (name, Some(value)));
        match (name, value) {
            ("tenant", Some(name)) => tenant = Some(name.parse::<TenantName>().map_err(usage)?),
            ("config-dir", Some(path)) => directory = Some(PathBuf::from(path)),
            _ => match keys.iter().find(|key| key.name == name) {
                None => rest.push(option.as_str()),
                Some(key) => match (key.takes, value) {
                    (Takes::Value, None) => return Err(usage(format!("'{name}' needs a value: {name}=VALUE"))),
                    (Takes::Nothing, Some(_)) => return Err(usage(format!("'{name}' takes no value"))),
                    _ => ours.push(format!("--{option}")),
                },
            },
        }
    }
    let flags = Flags::parse(rest.iter().copied()).map_err(usage)?;
    if asked.fake {
        return Ok(Run::Nothing);
    }
    let Some(tenant) = tenant else {
        // As mount(8) means them where nothing else is said.
        let options = ["suid", "dev"].into_iter().chain(rest).collect::<Vec<_>>().join(",");
        let places = [&asked.volume, &asked.mountpoint].map(|path| path.as_os_str().to_owned());
        let ours = ours.into_iter().map(OsString::from);
        let all = [OsString::from("mount")].into_iter().chain(places).chain(["-o".into(), options.into()]).chain(ours);
        return Ok(Run::Kmsfs(all.collect()));
    };
    if !ours.is_empty() || flags != Flags::default() {
        let said = ours.first().map_or("an option of the mount", |said| said.trim_start_matches('-'));
        let failure = Failure::new(Exit::Usage, format!("{said} cannot be given together with tenant={tenant}"));
        return Err(failure.hint("write it into the tenant's configuration"));
    }
    let directory = config_directory(directory);
    let config = Config::read(&directory, &tenant, &super::mount::tenant::keys())?;
    if (&config.volume, &config.mountpoint) != (&asked.volume, &asked.mountpoint) {
        let (volume, mountpoint) = (config.volume.display(), config.mountpoint.display());
        let failure = Failure::new(Exit::Usage, format!("{tenant} has another volume or mountpoint"));
        return Err(failure.hint(format!("{volume} {mountpoint} kmsfs tenant={tenant}")));
    }
    let all = ["mount".into(), "--tenant".into(), tenant.to_string().into(), "--config-dir".into(), directory.into()];
    Ok(Run::Kmsfs(all.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(arguments: &str) -> Result<Run, Failure> {
        translate(&parse(arguments.split(' ').map(OsString::from))?)
    }

    fn kmsfs(arguments: &str) -> Run {
        Run::Kmsfs(arguments.split(' ').map(OsString::from).collect())
    }

    #[test]
    fn options_of_mount_become_those_of_the_command_and_others_programs_are_passed_over() {
        let said = "/v /m -n -o rw,allow_other,offline-grace=5m,wait,nofail,_netdev,x-systemd.automount -t kmsfs";
        let options = "suid,dev,rw,allow_other,nofail,_netdev,x-systemd.automount";
        assert_eq!(run(said).unwrap(), kmsfs(&format!("mount /v /m -o {options} --offline-grace=5m --wait")));
        assert_eq!(run("/v /m -sfo wait").unwrap(), Run::Nothing);
        assert_eq!(run("/v /m -oremount,ro").unwrap(), Run::Remount("remount,ro".to_owned()));
    }

    #[test]
    fn a_comma_in_quotes_belongs_to_the_value() {
        assert_eq!(split("ro,kek=\"cmd:a,b\",,wait"), ["ro", "kek=cmd:a,b", "wait"]);
    }

    #[test]
    fn what_cannot_be_meant_is_an_error() {
        for (said, what) in [
            ("/v /m -o offline_grace=5m", "offline_grace"),
            ("/v /m -o revalidate", "needs a value"),
            ("/v /m -o with-recovery-kek=1", "takes no value"),
            ("/v /m -o foreground", "foreground"),
            ("/v /m -o tenant=a,wait", "together with tenant"),
            ("/v /m -o tenant=a,ro", "together with tenant"),
            ("/v /m -o tenant=../a", "a tenant's name"),
            ("/v -o ro", "a volume and a mountpoint"),
            ("/v /m -x", "'-x'"),
            ("/v /m -o", "needs a value"),
        ] {
            let failure = run(said).unwrap_err();
            assert!(failure.message.contains(what) && failure.hint.is_some(), "{said}: {failure:?}");
        }
    }
}
