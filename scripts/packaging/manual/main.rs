//! Writes the manual pages of the commands, and the completions for bash, zsh and fish:
//! `manual DIRECTORY YYYY-MM-DD`. The options come from the program itself, the rest from `texts.rs`.
//! It fails if a command has no text, a text no command, or an example is not a command line.

mod config;
mod page;
mod texts;

use clap_complete::{Shell, generate};
use page::Page;
use std::error::Error;
use std::fs::{self, File};
use std::path::Path;
use std::process::ExitCode;
use texts::Text;

/// What can go wrong.
type Outcome = Result<(), Box<dyn Error>>;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [directory, date] = &arguments[..] else {
        eprintln!("Usage: manual DIRECTORY YYYY-MM-DD");
        return ExitCode::from(2);
    };
    match write(Path::new(directory), date) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn write(directory: &Path, date: &str) -> Outcome {
    fs::create_dir_all(directory)?;
    let mut command = visible(&kmsfs::cli::command());
    for (shell, name) in [(Shell::Bash, "kmsfs.bash"), (Shell::Zsh, "_kmsfs"), (Shell::Fish, "kmsfs.fish")] {
        generate(shell, &mut command, "kmsfs", &mut File::create(directory.join(name))?);
    }
    let mut root = kmsfs::cli::command().disable_help_subcommand(true);
    root.build();
    let mut texts: Vec<&Text> = texts::all();
    pages(&root, None, &mut texts, directory, date)?;
    fs::write(directory.join("kmsfs.toml.5"), config::page(&root, date)?)?;
    match texts.first() {
        Some(text) => Err(format!("texts.rs has a text of '{}', which is not a command", text.command).into()),
        None => Ok(()),
    }
}

/// A command without what its help hides: not every shell's completions leave that out.
fn visible(command: &clap::Command) -> clap::Command {
    let name: &'static str = command.get_name().to_owned().leak();
    let mut shown = clap::Command::new(name).disable_help_subcommand(true);
    if let Some(about) = command.get_about() {
        shown = shown.about(about.clone());
    }
    if let Some(version) = command.get_version() {
        let version: &'static str = version.to_owned().leak();
        shown = shown.version(version).propagate_version(true);
    }
    shown
        .disable_version_flag(command.is_disable_version_flag_set())
        .args(command.get_arguments().filter(|argument| !argument.is_hide_set()))
        .subcommands(command.get_subcommands().filter(|other| !other.is_hide_set()).map(visible))
}

/// Writes the page of a command and those of its subcommands, and takes their texts away.
fn pages(
    command: &clap::Command,
    parent: Option<&str>,
    texts: &mut Vec<&Text>,
    directory: &Path,
    date: &str,
) -> Outcome {
    let name = command.get_bin_name().unwrap_or_else(|| command.get_name());
    let at = texts.iter().position(|text| text.command == name);
    let text = texts.remove(at.ok_or_else(|| format!("texts.rs has no text of '{name}'"))?);
    let page = Page { command, parent, text, date };
    fs::write(directory.join(page.file()), page.render()?)?;
    for subcommand in command.get_subcommands().filter(|subcommand| !subcommand.is_hide_set()) {
        pages(subcommand, Some(name), texts, directory, date)?;
    }
    Ok(())
}
