//! A tenant's configuration: TOML whose keys are the options of `kmsfs mount`, by the same names and with the same
//! values, and two tables. It ends as arguments of that command, so nothing is checked in two ways.
//!
//! ```toml
//! volume = "/srv/acme"
//! mountpoint = "/data/acme"
//! options = ["allow_other", "noatime"]     # of -o
//! revalidate = "30s"
//! wait = true
//! [credentials]
//! file = "acme.env"
//! [labels]
//! customer = "Acme Corporation"
//! ```

use super::TenantName;
use crate::failure::{Exit, Failure};
use std::collections::BTreeMap;
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// The keys that are no options of the command.
const PLACES: [&str; 2] = ["volume", "mountpoint"];
const TABLES: [&str; 2] = ["credentials", "labels"];
/// How alike two names are, from 0 to 1, so that one may be meant by the other.
const ALIKE: f64 = 0.7;
/// The longest configuration, in bytes.
const LONGEST: u64 = 64 * 1024;

/// An option of the command that a configuration may set.
#[derive(Clone, Debug)]
pub struct Key {
    /// Its long name.
    pub name: String,
    /// What can follow it.
    pub takes: Takes,
}

/// What an option of the command takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Takes {
    /// Nothing: it is said or not.
    Nothing,
    /// A value, always.
    Value,
    /// A value or none.
    Either,
}

/// What a tenant's file says. That the values are right is for the command to find.
#[derive(Clone, Debug)]
pub struct Config {
    /// The tenant.
    pub name: TenantName,
    /// The file.
    pub file: PathBuf,
    /// The volume's directory.
    pub volume: PathBuf,
    /// Where it is mounted.
    pub mountpoint: PathBuf,
    /// The options as arguments, each with its name and its line.
    pub options: Vec<(String, usize, String)>,
    /// The file of credentials as it is named, and its line.
    pub credentials: Option<(PathBuf, usize)>,
    /// For whoever counts or bills: names and values of any kind.
    pub labels: BTreeMap<String, String>,
}

/// The tenants that have a file in this directory, in order.
///
/// # Errors
/// [`Exit::Config`]: the directory cannot be read, or a file is named as no tenant can be.
pub fn configured(directory: &Path) -> Result<Vec<TenantName>, Failure> {
    let failed = |error: std::io::Error| {
        Failure::new(Exit::Config, format!("{}: {error}", directory.display()))
            .hint("a tenant is a file TENANT.toml there; say where with --config-dir")
    };
    let mut all = Vec::new();
    for entry in std::fs::read_dir(directory).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        if path.extension().is_none_or(|extension| extension != "toml") {
            continue;
        }
        let stem = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
        let name = stem.parse().map_err(|error: String| {
            Failure::new(Exit::Config, format!("{}: {error}", path.display())).hint("rename the file, or remove it")
        })?;
        all.push(name);
    }
    all.sort();
    Ok(all)
}

impl Config {
    /// The file of a tenant.
    pub fn path(directory: &Path, tenant: &TenantName) -> PathBuf {
        directory.join(format!("{tenant}.toml"))
    }

    /// Reads the file of a tenant. `keys` are the options that it may set.
    ///
    /// # Errors
    /// [`Exit::Config`], with the file and the line.
    pub fn read(directory: &Path, tenant: &TenantName, keys: &[Key]) -> Result<Self, Failure> {
        let path = Self::path(directory, tenant);
        let failed = |what: String| Failure::new(Exit::Config, format!("{}: {what}", path.display()));
        let metadata = std::fs::metadata(&path).map_err(|error| {
            let hint = match error.kind() {
                std::io::ErrorKind::NotFound => "kmsfs tenant list names those that are there",
                _ => "run as the user to whom the configuration belongs",
            };
            failed(error.to_string()).hint(hint)
        })?;
        // It says what is run (`cmd:`) and whose credentials go where.
        if let Some(wrong) = trusted(&metadata, 0o022) {
            let hint = format!("chown root {0}; chmod go-w {0}", path.display());
            return Err(failed(format!("a configuration that {wrong}")).hint(hint));
        }
        if metadata.len() > LONGEST {
            return Err(failed(format!("longer than {LONGEST} bytes")).hint("see whether this is the right file"));
        }
        let text =
            std::fs::read_to_string(&path).map_err(|error| failed(error.to_string()).hint("it has to be text"))?;
        Self::parse(tenant, &path, &text, keys)
    }

    /// Parses what is in a file.
    ///
    /// # Errors
    /// As for [`read`](Self::read).
    pub fn parse(tenant: &TenantName, path: &Path, text: &str, keys: &[Key]) -> Result<Self, Failure> {
        let file = Source { path, text };
        let table = DeTable::parse(text).map_err(|error| {
            let at = error.span().map_or(0, |span| span.start);
            // The library's words may be several lines.
            let what = error.message().lines().collect::<Vec<_>>().join(" ");
            file.wrong(at, &what).hint("it is TOML: NAME = \"VALUE\"")
        })?;
        let mut config = Self {
            name: tenant.clone(),
            file: path.to_owned(),
            volume: PathBuf::new(),
            mountpoint: PathBuf::new(),
            options: Vec::new(),
            credentials: None,
            labels: BTreeMap::new(),
        };
        // In the order of the file, so that the first mistake in it is the one that is told.
        let mut entries: Vec<_> = table.get_ref().iter().collect();
        entries.sort_by_key(|(key, _)| key.span().start);
        for (key, value) in entries {
            let (name, at) = (key.get_ref().as_ref(), key.span().start);
            match name {
                "volume" => config.volume = file.path(name, value)?,
                "mountpoint" => config.mountpoint = file.path(name, value)?,
                "credentials" => config.credentials = Some(file.credentials(value)?),
                "labels" => config.labels = file.labels(value)?,
                _ => match keys.iter().find(|key| key.name == name) {
                    Some(key) => {
                        let arguments = file.arguments(key, value)?;
                        config.options.extend(arguments.into_iter().map(|said| (name.to_owned(), file.line(at), said)));
                    }
                    None => {
                        let known = keys.iter().map(|key| key.name.as_str()).chain(PLACES).chain(TABLES);
                        return Err(file.unknown(at, name, known));
                    }
                },
            }
        }
        for (name, place) in PLACES.into_iter().zip([&config.volume, &config.mountpoint]) {
            if place.as_os_str().is_empty() {
                return Err(file.wrong(0, &format!("'{name}' is missing")).hint(format!("{name} = \"/PATH\"")));
            }
        }
        Ok(config)
    }

    /// The line at which an option is set.
    pub fn line_of(&self, option: &str) -> Option<usize> {
        self.options.iter().find(|(name, ..)| name == option).map(|(_, line, _)| *line)
    }
}

/// What is wrong with the owner or the mode of a file that has to be the operator's own.
pub(super) fn trusted(metadata: &Metadata, forbidden: u32) -> Option<&'static str> {
    let owner = metadata.uid();
    if owner != 0 && owner != rustix::process::geteuid().as_raw() {
        return Some("belongs to somebody else");
    }
    match metadata.mode() & forbidden {
        0 => None,
        mode if mode & 0o022 != 0 => Some("others can change"),
        _ => Some("others can read"),
    }
}

struct Source<'a> {
    path: &'a Path,
    text: &'a str,
}

impl Source<'_> {
    /// The number of the line at this byte, from 1.
    fn line(&self, at: usize) -> usize {
        self.text.as_bytes().iter().take(at).filter(|byte| **byte == b'\n').count() + 1
    }

    fn wrong(&self, at: usize, what: &str) -> Failure {
        Failure::new(Exit::Config, format!("{}:{}: {what}", self.path.display(), self.line(at)))
    }

    fn unknown<'k>(&self, at: usize, name: &str, known: impl Iterator<Item = &'k str>) -> Failure {
        let known: Vec<_> = known.collect();
        // Underscores are what most people mistake.
        let dashed = name.to_lowercase().replace('_', "-");
        let likeness = |known: &str| strsim::jaro_winkler(&dashed, known);
        let nearest = known.iter().max_by(|a, b| likeness(a).total_cmp(&likeness(b)));
        let failure = self.wrong(at, &format!("unknown key '{name}'"));
        match nearest.filter(|nearest| likeness(nearest) >= ALIKE) {
            Some(nearest) => failure.hint(format!("did you mean '{nearest}'?")),
            None => failure.hint(format!("known are {}", known.join(", "))),
        }
    }

    fn string<'v>(&self, name: &str, value: &'v Spanned<DeValue<'_>>) -> Result<&'v str, Failure> {
        value.get_ref().as_str().filter(|text| !text.is_empty()).ok_or_else(|| {
            self.wrong(value.span().start, &format!("'{name}' is a string")).hint(format!("{name} = \"VALUE\""))
        })
    }

    fn path(&self, name: &str, value: &Spanned<DeValue<'_>>) -> Result<PathBuf, Failure> {
        let path = PathBuf::from(self.string(name, value)?);
        if path.is_absolute() {
            return Ok(path);
        }
        let failure = self.wrong(value.span().start, &format!("'{name}' is not an absolute path"));
        Err(failure.hint("it has to be the same wherever it is read: begin with /"))
    }

    /// The arguments that say this.
    fn arguments(&self, key: &Key, value: &Spanned<DeValue<'_>>) -> Result<Vec<String>, Failure> {
        let (name, at) = (&key.name, value.span().start);
        let one = |value: &DeValue<'_>| match value {
            DeValue::String(text) => Some(format!("--{name}={text}")),
            DeValue::Integer(number) => Some(format!("--{name}={number}")),
            _ => None,
        };
        let needs = |what: &str, example: &str| {
            self.wrong(at, &format!("'{name}' is {what}")).hint(format!("{name} = {example}"))
        };
        match (value.get_ref(), key.takes) {
            (DeValue::Boolean(false), Takes::Nothing | Takes::Either) => Ok(Vec::new()),
            (DeValue::Boolean(true), Takes::Nothing | Takes::Either) => Ok(vec![format!("--{name}")]),
            (_, Takes::Nothing) => Err(needs("true or false", "true")),
            (DeValue::Array(values), Takes::Value) => {
                let all: Option<_> = values.iter().map(|value| one(value.get_ref())).collect();
                all.ok_or_else(|| needs("a list of strings", "[\"VALUE\"]"))
            }
            (value, _) => one(value).map(|said| vec![said]).ok_or_else(|| needs("a string", "\"VALUE\"")),
        }
    }

    fn table<'v, 'i>(&self, name: &str, value: &'v Spanned<DeValue<'i>>) -> Result<&'v DeTable<'i>, Failure> {
        value.get_ref().as_table().ok_or_else(|| {
            self.wrong(value.span().start, &format!("'{name}' is a table")).hint(format!("write [{name}] before it"))
        })
    }

    fn credentials(&self, value: &Spanned<DeValue<'_>>) -> Result<(PathBuf, usize), Failure> {
        let mut found = None;
        for (key, value) in self.table("credentials", value)? {
            let name = key.get_ref().as_ref();
            if name != "file" {
                let failure = self.unknown(key.span().start, name, ["file"].into_iter());
                // Somebody may have meant to put a secret here.
                return Err(failure.hint("the only key is file: credentials are never in the configuration itself"));
            }
            let path = PathBuf::from(self.string(name, value)?);
            let is_name = path.components().count() == 1 && path.file_name().is_some();
            if !is_name && !path.is_absolute() {
                let failure = self.wrong(value.span().start, "'file' is an absolute path or the name of a file");
                return Err(failure.hint("file = \"TENANT.env\" is credentials/TENANT.env beside the configuration"));
            }
            found = Some((path, self.line(value.span().start)));
        }
        let missing =
            || self.wrong(value.span().start, "'file' is missing in [credentials]").hint("file = \"TENANT.env\"");
        found.ok_or_else(missing)
    }

    fn labels(&self, value: &Spanned<DeValue<'_>>) -> Result<BTreeMap<String, String>, Failure> {
        let mut labels = BTreeMap::new();
        for (key, value) in self.table("labels", value)? {
            let name = key.get_ref().as_ref();
            let fits = name.starts_with(|first: char| first.is_ascii_alphabetic())
                && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
            if !fits {
                let failure = self.wrong(key.span().start, &format!("a label cannot be called '{name}'"));
                return Err(failure.hint("letters, digits and _, the first one a letter: Prometheus takes no others"));
            }
            labels.insert(name.to_owned(), self.string(name, value)?.to_owned());
        }
        Ok(labels)
    }
}

#[cfg(test)]
mod tests;
