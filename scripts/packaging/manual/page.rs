//! One manual page: name, synopsis and options as the program knows them; description, examples, exit codes and
//! references from the text.

use super::texts::Text;
use clap::Command;

use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, roman};
use std::error::Error;

/// The manual of the operators, which has the table of exit codes.
const OPERATIONS: &str = include_str!("../../../src/manual/operations.md");

/// A manual page.
pub struct Page<'a> {
    /// The command.
    pub command: &'a Command,
    /// The command whose subcommand it is, in words: `kmsfs key`.
    pub parent: Option<&'a str>,
    /// What the program does not know itself.
    pub text: &'a Text,
    /// When it was written, as `YYYY-MM-DD`.
    pub date: &'a str,
}

impl Page<'_> {
    /// The name of its file.
    pub fn file(&self) -> String {
        format!("{}.1", hyphenated(self.text.command))
    }

    /// The page in roff.
    ///
    /// # Errors
    /// An example that is not a command line, or an exit code that there is not.
    pub fn render(&self) -> Result<Vec<u8>, Box<dyn Error>> {
        let version = self.command.get_version().unwrap_or(env!("CARGO_PKG_VERSION"));
        // Every option by itself would fill lines.
        let usage = self.command.clone().render_usage().to_string();
        let command = self.command.clone().override_usage(usage.trim_start_matches("Usage: ").to_owned());
        let man = Man::new(command)
            .title(hyphenated(self.text.command).to_uppercase())
            .section("1")
            .date(self.date)
            .source(format!("kmsfs {version}"))
            .manual("kmsfs");
        let mut page = Vec::new();
        let mut options = Vec::new();
        man.render_title(&mut page)?;
        man.render_name_section(&mut page)?;
        man.render_synopsis_section(&mut page)?;
        self.description().to_writer(&mut page)?;
        man.render_options_section(&mut options)?;
        // Breaks around an empty line, which say nothing.
        page.extend(String::from_utf8(options)?.replace(".br\n\n.br\n", "\n").bytes());
        if self.command.has_subcommands() {
            man.render_subcommands_section(&mut page)?;
        }
        self.examples()?.to_writer(&mut page)?;
        self.exit_status()?.to_writer(&mut page)?;
        self.see_also().to_writer(&mut page)?;
        Ok(page)
    }

    fn description(&self) -> Roff {
        let mut roff = Roff::new();
        roff.control("SH", ["DESCRIPTION"]);
        let about = self.command.get_about().map(ToString::to_string).unwrap_or_default();
        roff.text([roman(format!("{}.", about.trim_end_matches('.')))]);
        let more = paragraphs(self.text.about);
        for paragraph in more.into_iter().chain(self.after_help().into_iter().filter(|text| !is_exit_codes(text))) {
            roff.control("PP", []).text([roman(paragraph)]);
        }
        roff
    }

    fn examples(&self) -> Result<Roff, Box<dyn Error>> {
        let mut roff = Roff::new();
        roff.control("SH", ["EXAMPLES"]);
        if self.text.examples.is_empty() {
            return Err(format!("'{}' has no example", self.text.command).into());
        }
        for (at, (what, line)) in self.text.examples.iter().enumerate() {
            check(line).map_err(|error| format!("the example '{line}' of '{}': {error}", self.text.command))?;
            if at > 0 {
                roff.control("PP", []);
            }
            roff.text([roman(format!("{what}:"))]);
            roff.control("PP", []).control("RS", ["4"]).control("EX", []);
            roff.text([roman(*line)]);
            roff.control("EE", []).control("RE", []);
        }
        Ok(roff)
    }

    /// What the command's own help says of its codes; without that, the codes that the text names, in the words of the
    /// operators' manual.
    fn exit_status(&self) -> Result<Roff, Box<dyn Error>> {
        let mut roff = Roff::new();
        roff.control("SH", ["EXIT STATUS"]);
        let own = self.after_help().into_iter().find(|text| is_exit_codes(text));
        match own.as_deref().and_then(|text| text.strip_prefix("Exit codes: ")) {
            Some(text) => {
                roff.text([roman(text)]);
            }
            None => {
                let all = meanings();
                let codes = match self.parent {
                    None => all.iter().map(|(code, _)| *code).collect(),
                    Some(_) => [&[0, 1, 2], self.text.exits].concat(),
                };
                for code in codes {
                    let (_, meaning) = all.iter().find(|(other, _)| *other == code).ok_or(format!("no code {code}"))?;
                    roff.control("TP", []).text([bold(code.to_string())]).text([roman(meaning.replace('`', ""))]);
                }
            }
        }
        if self.parent.is_some() {
            roff.control("PP", []).text([bold("kmsfs"), roman("(1) has all the codes.")]);
        }
        Ok(roff)
    }

    fn see_also(&self) -> Roff {
        let mut names: Vec<String> = self.parent.into_iter().map(|name| format!("{}(1)", hyphenated(name))).collect();
        names.extend(self.text.see.iter().map(|name| match name.contains('(') {
            true => (*name).to_owned(),
            false => format!("{}(1)", hyphenated(name)),
        }));
        let mut roff = Roff::new();
        roff.control("SH", ["SEE ALSO"]);
        let last = names.len().saturating_sub(1);
        for (at, name) in names.iter().enumerate() {
            let (name, section) = name.split_once('(').unwrap_or((name, ""));
            let end = if at == last { "" } else { "," };
            roff.control("BR", [name, &format!("({section}{end}")]);
        }
        roff.control("PP", []).text([roman("The whole manual is in /usr/share/doc/kmsfs/manual.")]);
        roff
    }

    /// The paragraphs of the command's help after its options.
    fn after_help(&self) -> Vec<String> {
        self.command.get_after_help().map(|text| paragraphs(&text.to_string())).unwrap_or_default()
    }
}

/// `kmsfs key test` as `kmsfs-key-test`.
fn hyphenated(name: &str) -> String {
    name.replace(' ', "-")
}

fn is_exit_codes(paragraph: &str) -> bool {
    paragraph.starts_with("Exit codes: ")
}

/// A text's paragraphs, each on one line.
fn paragraphs(text: &str) -> Vec<String> {
    let words = |paragraph: &str| paragraph.split_whitespace().collect::<Vec<_>>().join(" ");
    text.split("\n\n").map(words).filter(|paragraph| !paragraph.is_empty()).collect()
}

/// Each exit code and what it means, from the first table of the operators' manual.
fn meanings() -> Vec<(u8, &'static str)> {
    let rows = OPERATIONS.lines().skip_while(|line| *line != "## Exit codes").skip_while(|line| !line.starts_with('|'));
    rows.take_while(|line| line.starts_with('|'))
        .filter_map(|row| {
            let mut cells = row.trim_matches('|').split('|').map(str::trim);
            Some((cells.next()?.parse().ok()?, cells.next()?))
        })
        .collect()
}

/// Sees that every `kmsfs` in a line of a shell has arguments that the program takes.
fn check(line: &str) -> Result<(), Box<dyn Error>> {
    let mut seen = false;
    for part in line.split('|').flat_map(|part| part.split("&&")) {
        let words: Vec<&str> = part.split_whitespace().take_while(|word| !matches!(*word, ">" | "#" | "&")).collect();
        let Some(at) = words.iter().position(|word| *word == "kmsfs") else { continue };
        seen = true;
        match kmsfs::cli::command().try_get_matches_from(&words[at..]) {
            Err(error) if error.use_stderr() => return Err(error.to_string().into()),
            _ => (),
        }
    }
    if seen { Ok(()) } else { Err("does not run kmsfs".into()) }
}
