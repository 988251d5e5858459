//! Manual pages and completions.

use crate::{Ended, Outcome, manual};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;

const SECTIONS: [&str; 6] = ["NAME", "SYNOPSIS", "DESCRIPTION", "EXAMPLES", "EXIT STATUS", "SEE ALSO"];

fn written() -> TempDir {
    let directory = TempDir::new().expect("a temporary directory");
    Ended::of(Command::new(manual()).arg(directory.path()).arg("2026-11-29")).ok();
    directory
}

/// The names of all commands that are not hidden, as their pages are called.
fn names(command: &clap::Command, name: &str, out: &mut Vec<String>) {
    out.push(name.to_owned());
    for subcommand in command.get_subcommands().filter(|subcommand| !subcommand.is_hide_set()) {
        names(subcommand, &format!("{name}-{}", subcommand.get_name()), out);
    }
}

/// The page as text, without bold letters.
fn shown(page: &Path) -> String {
    Ended::of(Command::new("mandoc").args(["-T", "utf8", "-O", "width=1000"]).arg(page)).ok().chars().fold(
        String::new(),
        |mut text, letter| {
            match letter {
                '\u{8}' => drop(text.pop()),
                _ => text.push(letter),
            }
            text
        },
    )
}

#[test]
fn every_command_has_a_page_with_examples_exit_codes_and_references() -> Outcome {
    let directory = written();
    let mut all = Vec::new();
    names(&kmsfs::cli::command(), "kmsfs", &mut all);
    assert!(all.len() > 30, "{all:?}");
    for name in &all {
        let text = shown(&directory.path().join(format!("{name}.1")));
        for section in SECTIONS {
            assert!(text.lines().any(|line| line == section), "{name} has no {section}:\n{text}");
        }
    }
    let pages = fs::read_dir(&directory)?.filter(|entry| {
        entry.as_ref().is_ok_and(|entry| entry.path().extension().is_some_and(|extension| extension == "1"))
    });
    assert_eq!(pages.count(), all.len());
    Ok(())
}

#[test]
fn what_a_page_refers_to_is_there() -> Outcome {
    let directory = written();
    for entry in fs::read_dir(&directory)? {
        let path = entry?.path();
        if path.extension().is_none_or(|extension| extension != "1") {
            continue;
        }
        let text = shown(&path);
        let (_, references) = text.split_once("\nSEE ALSO\n").expect("a section");
        for reference in references.split([',', '\n']).map(str::trim) {
            let Some((name, section)) = reference.strip_suffix(')').and_then(|reference| reference.split_once('('))
            else {
                continue;
            };
            // The last line of a page is its own name, after a date.
            if !name.starts_with("kmsfs") || name.contains(' ') {
                continue;
            }
            assert!(directory.path().join(format!("{name}.{section}")).exists(), "{}: {reference}", path.display());
        }
    }
    Ok(())
}

#[test]
fn neither_mandoc_nor_groff_has_anything_to_say_about_a_page() -> Outcome {
    let directory = written();
    let packaging = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/packaging");
    let is_page =
        |path: &PathBuf| path.extension().is_some_and(|extension| matches!(extension.to_str(), Some("1" | "5" | "8")));
    let mut pages = Vec::new();
    for place in [directory.path(), &packaging] {
        pages.extend(fs::read_dir(place)?.filter_map(Result::ok).map(|entry| entry.path()).filter(is_page));
    }
    for page in pages {
        let lint = Ended::of(Command::new("mandoc").args(["-T", "lint", "-W", "warning"]).arg(&page));
        assert_eq!((lint.code, lint.text.as_str()), (0, ""), "{}", page.display());
        let groff = "LC_ALL=C.UTF-8 MANROFFSEQ= man --warnings --encoding=UTF-8 --local-file --troff-device=utf8 --ditroff \"$1\" >/dev/null";
        let groff = Ended::of(Command::new("sh").args(["-euc", groff, "sh"]).arg(&page));
        assert_eq!((groff.code, groff.text.as_str()), (0, ""), "{}", page.display());
    }
    Ok(())
}

#[test]
fn shells_complete_commands_and_options_but_nothing_hidden() {
    let directory = written();
    let complete = |shell: &str, script: &str, file: &str, line: &str| {
        let path = directory.path().join(file);
        let text = Ended::of(Command::new(shell).args(["-c", script]).args([&path]).arg(line)).ok();
        text.split_whitespace().map(str::to_owned).collect::<Vec<_>>()
    };
    let bash = r#". "$0"; COMP_WORDS=($1); COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); COMP_LINE=$1
        _kmsfs kmsfs "${COMP_WORDS[-1]}" "${COMP_WORDS[-2]}"; echo "${COMPREPLY[@]}""#;
    let fish = r#"source $argv[1]; complete --do-complete $argv[2] | string replace --regex '\t.*' ''; true"#;
    for (shell, script, file) in [("bash", bash, "kmsfs.bash"), ("fish", fish, "kmsfs.fish")] {
        assert_eq!(complete(shell, script, file, "kmsfs moun"), ["mount"], "{shell}");
        assert_eq!(complete(shell, script, file, "kmsfs mount --revalid"), ["--revalidate"], "{shell}");
        assert_eq!(complete(shell, script, file, "kmsfs dev-vault key rot"), ["rotate"], "{shell}");
        assert_eq!(complete(shell, script, file, "kmsfs mount --repor"), [""; 0], "{shell}");
        assert_eq!(complete(shell, script, file, "kmsfs erran"), [""; 0], "{shell}");
    }
    // zsh completes in a terminal only; its file is loaded as zsh itself loads it.
    let zsh =
        r#"autoload -Uz compinit && compinit -u -D; fpath=("$0:h" $fpath); autoload -Uz +X _kmsfs && whence -w _kmsfs"#;
    assert_eq!(complete("zsh", zsh, "_kmsfs", ""), ["_kmsfs:", "function"]);
}
