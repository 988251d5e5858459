//! A command line as a person writes it, taken apart into words as a POSIX shell would (XCU 2.2), but for everything that
//! a shell *does*: nothing is expanded, and what a shell would act upon is refused unless it is quoted.

use crate::kms::{KmsError, KmsErrorKind};

/// What a shell would act upon.
const ACTS: &[char] = &['|', '&', ';', '<', '>', '(', ')', '$', '`', '*', '?', '[', '~', '#'];

/// The words of a command line; there is one at least.
pub(super) fn split(line: &str) -> Result<Vec<String>, KmsError> {
    let wrong = |what: String| KmsError::new(KmsErrorKind::Misconfigured, format!("the command {what}"));
    let shell = |c: char| {
        wrong(format!("has an unquoted '{c}', and no shell runs it"))
            .hint("quote it, or ask for a shell: --kek \"cmd:sh -c '…'\"")
    };
    let unended = |what: &str| wrong(format!("ends within {what}")).hint("close what was opened");
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut chars = line.chars();
    while let Some(c) = chars.next() {
        match c {
            ' ' | '\t' | '\n' => words.extend(word.take()),
            '\'' => {
                let quoted = word.get_or_insert_default();
                loop {
                    match chars.next() {
                        Some('\'') => break,
                        Some(c) => quoted.push(c),
                        None => return Err(unended("single quotes")),
                    }
                }
            }
            '"' => {
                let quoted = word.get_or_insert_default();
                loop {
                    match chars.next() {
                        Some('"') => break,
                        Some('\\') => match chars.next() {
                            Some(c @ ('$' | '`' | '"' | '\\')) => quoted.push(c),
                            Some(c) => quoted.extend(['\\', c]),
                            None => return Err(unended("double quotes")),
                        },
                        Some(c @ ('$' | '`')) => return Err(shell(c)),
                        Some(c) => quoted.push(c),
                        None => return Err(unended("double quotes")),
                    }
                }
            }
            '\\' => word.get_or_insert_default().push(chars.next().ok_or_else(|| unended("an escape"))?),
            // Within a word it has no meaning.
            '~' | '#' if word.is_some() => word.get_or_insert_default().push(c),
            c if ACTS.contains(&c) => return Err(shell(c)),
            c => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    match words.first() {
        Some(program) if !program.is_empty() => Ok(words),
        _ => Err(wrong("is empty".into()).hint("write it as cmd:PROGRAM ARGUMENTS")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_split_as_a_shell_would() {
        let cases: [(&str, &[&str]); 8] = [
            ("pass show key", &["pass", "show", "key"]),
            ("  a\t b\n", &["a", "b"]),
            ("sh -c 'cat \"$1\" | head -1' sh file", &["sh", "-c", "cat \"$1\" | head -1", "sh", "file"]),
            (r#"a "b c"d\ e"#, &["a", "b cd e"]),
            (r#"a "\$x \"y\" \n""#, &["a", "$x \"y\" \\n"]),
            ("a '' \"\"", &["a", "", ""]),
            ("a b~c d#e", &["a", "b~c", "d#e"]),
            (r"a \|", &["a", "|"]),
        ];
        for (line, words) in cases {
            assert_eq!(split(line).unwrap(), words, "{line}");
        }
    }

    #[test]
    fn what_only_a_shell_could_do_is_refused() {
        for line in [
            "cat key | head",
            "a $HOME",
            "a \"$HOME\"",
            "a `b`",
            "a > b",
            "a; b",
            "a *",
            "~/a",
            "a & b",
            "a 'b",
            "a \"b",
            "a \\",
        ] {
            let error = split(line).expect_err(line);
            assert!(error.kind == KmsErrorKind::Misconfigured && error.hint.is_some(), "{line}");
        }
        assert!(split("").is_err() && split("  ").is_err() && split("''").is_err());
    }
}
