//! Raw keys that a command prints: run at every call, without a shell, for a bounded time, and killed with everything
//! that it started in its process group. Whatever takes the key away from the command revokes it.
//! Invariant: no message repeats what the command printed as a key.

use super::text::ENOUGH;
use super::words;
use crate::kms::{KmsError, KmsErrorKind};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};
use rustix::thread::UnshareFlags;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Stdio};
use std::time::{Duration, Instant};
use zeroize::Zeroizing;

/// The exit code of a command that will give the key later (`EX_TEMPFAIL` of sysexits.h).
const TRY_AGAIN: i32 = 75;
/// What shells end with when a command cannot be run, or is not there.
const NOT_RUN: [i32; 2] = [126, 127];
/// As much of what a command says on standard error as is kept.
const SAID: usize = 8 * 1024;
/// As much of its last line as is shown, in characters.
const SHOWN: usize = 200;
/// A word of so many letters of base64 or hexadecimal digits is not shown.
const LONGEST_WORD: usize = 40;
/// The [`KmsError::code`] of a command that ended in another way than with success.
const REFUSED: &str = "CommandRefused";

/// A command that prints a key.
#[derive(Debug)]
pub(super) struct Command {
    program: PathBuf,
    arguments: Vec<String>,
    /// How long it may take.
    pub bound: Duration,
}

/// How a command ended, and what it printed.
struct Ended {
    /// `None` if it had to be killed.
    status: Option<ExitStatus>,
    output: Zeroizing<Vec<u8>>,
    said: Vec<u8>,
}

/// A command that runs; killed with its process group, whatever happens.
struct Running {
    child: Child,
    group: Pid,
}

impl Drop for Running {
    fn drop(&mut self) {
        // The group is there as long as its leader was not waited for, so that no other one is meant.
        let _ = kill_process_group(self.group, Signal::KILL);
        let _ = self.child.wait();
    }
}

impl Command {
    /// The command of this line. Its program is looked up now, so that it is the same at every call.
    ///
    /// # Errors
    /// [`KmsErrorKind::Misconfigured`] for a line that needs a shell, or a program that is not there.
    pub fn new(line: &str, bound: Duration) -> Result<Self, KmsError> {
        let mut words = words::split(line)?.into_iter();
        let name = words.next().unwrap_or_default();
        let found = if name.contains('/') {
            std::path::absolute(&name).ok().filter(|path| path.is_file())
        } else {
            std::env::var_os("PATH").and_then(|path| {
                std::env::split_paths(&path).map(|directory| directory.join(&name)).find(|path| is_program(path))
            })
        };
        let program = found.ok_or_else(|| {
            KmsError::new(KmsErrorKind::Misconfigured, format!("there is no program '{name}' to print the key"))
                .hint("write its whole path, and see that it can be executed")
        })?;
        Ok(Self { program, arguments: words.collect(), bound })
    }

    /// What messages call it: the program, without its arguments.
    pub fn place(&self) -> String {
        format!("the output of '{}'", self.program.display())
    }

    /// Runs it; returns what it printed, cut off where it is too much for a key.
    ///
    /// # Errors
    /// By how it ended: 75 is `Unreachable`, and so is one that was killed or took too long; 126 and 127 are
    /// `Misconfigured`; everything else but 0 is `Refused`.
    pub fn run(&self) -> Result<Zeroizing<Vec<u8>>, KmsError> {
        let program = self.program.display();
        let ended = self.run_apart().map_err(|error| match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied => {
                KmsError::new(KmsErrorKind::Misconfigured, format!("'{program}' cannot be run: {error}"))
            }
            _ => KmsError::new(KmsErrorKind::Unreachable, format!("'{program}' cannot be run: {error}")),
        })?;
        let said = shown(&ended.said);
        let failed = |kind, what: String| KmsError::new(kind, format!("'{program}' {what}{said}"));
        let Some(status) = ended.status else {
            let what = format!("did not print the key within {:?}, and was killed", self.bound);
            return Err(failed(KmsErrorKind::Unreachable, what));
        };
        match status.code() {
            Some(0) => Ok(ended.output),
            Some(TRY_AGAIN) => Err(failed(KmsErrorKind::Unreachable, "has no key at the moment (exit code 75)".into())),
            Some(code) if NOT_RUN.contains(&code) => {
                Err(failed(KmsErrorKind::Misconfigured, format!("could not run what it should (exit code {code})")))
            }
            Some(code) => {
                let error = failed(KmsErrorKind::Refused, format!("gives no key (exit code {code})"));
                Err(KmsError { code: Some(REFUSED.to_owned()), ..error }
                    .hint("run it by hand; a command that may give the key later ends with 75"))
            }
            None => Err(failed(KmsErrorKind::Unreachable, "was killed".into())),
        }
    }

    /// Runs it from a thread of its own: files that it makes are for nobody else, though a mount's process, which gives
    /// files the modes that applications ask for, has no umask.
    fn run_apart(&self) -> io::Result<Ended> {
        std::thread::scope(|scope| {
            let runner = std::thread::Builder::new().name("kmsfs-key-command".into()).spawn_scoped(scope, || {
                #[expect(deprecated, reason = "only descriptor tables can be unshared unsafely, and they are not")]
                let apart = rustix::thread::unshare(UnshareFlags::FS);
                if apart.is_ok() {
                    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
                }
                self.run_to_its_end()
            })?;
            runner.join().unwrap_or_else(|_| Err(io::Error::other("the thread that runs it panicked")))
        })
    }

    fn run_to_its_end(&self) -> io::Result<Ended> {
        let until = Instant::now() + self.bound;
        let child = std::process::Command::new(&self.program)
            .args(&self.arguments)
            // The same at every call: a mount's process leaves the directory in which it was started.
            .current_dir("/")
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let group = Pid::from_child(&child);
        let mut running = Running { child, group };
        let ends = pidfd_open(group, PidfdFlags::empty())?;
        let mut output = Pipe::new(running.child.stdout.take().map(OwnedFd::from), ENOUGH)?;
        let mut said = Pipe::new(running.child.stderr.take().map(OwnedFd::from), SAID)?;
        let mut in_time = true;
        while !wait(&ends, [&output, &said], until, &mut in_time)? {
            output.read()?;
            said.read()?;
            if output.is_full() {
                // Whatever it is, it is no key.
                break;
            }
        }
        if !in_time {
            return Ok(Ended { status: None, output: output.bytes, said: said.bytes.to_vec() });
        }
        let full = output.is_full();
        if !full {
            // What it printed is there already; what it left behind and might print is not waited for.
            output.read()?;
            said.read()?;
        }
        kill_process_group(group, Signal::KILL).or_else(|error| match error {
            rustix::io::Errno::SRCH | rustix::io::Errno::PERM => Ok(()),
            other => Err(other),
        })?;
        let status = running.child.wait()?;
        let status = if full { ExitStatus::default() } else { status };
        // It was waited for: there is no group any more that could be killed.
        std::mem::forget(running);
        Ok(Ended { status: Some(status), output: output.bytes, said: said.bytes.to_vec() })
    }
}

/// Waits until the command says something (false) or ends (true), or its time is over (true, and not `in_time`).
fn wait(ends: &OwnedFd, pipes: [&Pipe; 2], until: Instant, in_time: &mut bool) -> io::Result<bool> {
    let mut waited = vec![PollFd::new(ends, PollFlags::IN)];
    waited.extend(pipes.iter().filter_map(|pipe| pipe.file.as_ref()).map(|file| PollFd::new(file, PollFlags::IN)));
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let bound = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) };
        match poll(&mut waited, Some(&bound)) {
            Ok(0) => {
                *in_time = false;
                return Ok(true);
            }
            Ok(_) => return Ok(!waited[0].revents().is_empty()),
            Err(rustix::io::Errno::INTR) => (),
            Err(error) => return Err(error.into()),
        }
    }
}

/// One end of a pipe, what came out of it, and how much of that is kept.
struct Pipe {
    file: Option<File>,
    bytes: Zeroizing<Vec<u8>>,
    room: usize,
}

impl Pipe {
    fn new(end: Option<OwnedFd>, room: usize) -> io::Result<Self> {
        if let Some(end) = &end {
            rustix::io::ioctl_fionbio(end, true)?;
        }
        // As long as it can become: growing would leave copies behind.
        Ok(Self { file: end.map(File::from), bytes: Zeroizing::new(Vec::with_capacity(room)), room })
    }

    fn is_full(&self) -> bool {
        self.bytes.len() == self.room
    }

    /// Takes what is there.
    fn read(&mut self) -> io::Result<()> {
        let mut buffer = Zeroizing::new([0; 4096]);
        while let Some(file) = &mut self.file {
            match file.read(&mut buffer[..]) {
                Ok(0) => self.file = None,
                Ok(count) => {
                    let kept = count.min(self.room - self.bytes.len());
                    self.bytes.extend_from_slice(&buffer[..kept]);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => (),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// The last line of what a command said, without what steers a terminal and without words that may be keys.
fn shown(said: &[u8]) -> String {
    let text = String::from_utf8_lossy(said);
    let Some(line) = text.lines().map(str::trim).rfind(|line| !line.is_empty()) else { return String::new() };
    let in_word = |c: char| c.is_ascii_alphanumeric() || matches!(c, '+' | '/' | '-' | '_' | '=');
    let mut out = String::new();
    let mut rest = line;
    while !rest.is_empty() {
        let word = rest.find(|c| !in_word(c)).unwrap_or(rest.len());
        out.push_str(if word >= LONGEST_WORD { "[not shown]" } else { &rest[..word] });
        let other = rest[word..].find(in_word).map_or(rest.len(), |at| word + at);
        out.extend(rest[word..other].chars().map(|c| if c.is_control() { ' ' } else { c }));
        rest = &rest[other..];
    }
    format!("; it said: {}", out.chars().take(SHOWN).collect::<String>())
}

fn is_program(path: &Path) -> bool {
    path.is_file() && rustix::fs::access(path, rustix::fs::Access::EXEC_OK).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kms::local::tests::KEY;

    /// A generous bound: these commands end by themselves.
    const LONG: Duration = Duration::from_secs(60);

    fn sh(script: &str, bound: Duration) -> Result<Zeroizing<Vec<u8>>, KmsError> {
        Command::new(&format!("sh -c '{script}'"), bound).unwrap().run()
    }

    fn kind(script: &str) -> KmsErrorKind {
        sh(script, LONG).expect_err(script).kind
    }

    #[test]
    fn what_a_command_prints_comes_back() {
        let line = format!("{KEY}\n");
        assert_eq!(&sh(&format!("echo {KEY}"), LONG).unwrap()[..], line.as_bytes());
        let printf = Command::new(&format!("printf %s {KEY}"), LONG).unwrap();
        assert_eq!(&printf.run().unwrap()[..], KEY.as_bytes());
    }

    #[test]
    fn exit_codes_tell_a_refusal_from_silence_and_from_a_wrong_setting() {
        assert_eq!(kind("exit 75"), KmsErrorKind::Unreachable);
        assert_eq!(kind("kill -9 $$"), KmsErrorKind::Unreachable);
        assert_eq!(kind("exit 1"), KmsErrorKind::Refused);
        assert_eq!(kind("exit 2"), KmsErrorKind::Refused);
        assert_eq!(kind("exec /nonexistent/program"), KmsErrorKind::Misconfigured);
        let missing = Command::new("kmsfs-no-such-program x", LONG).unwrap_err();
        assert_eq!(missing.kind, KmsErrorKind::Misconfigured);
    }

    #[test]
    fn a_command_that_hangs_is_killed_with_its_children() {
        let dir = tempfile::tempdir().unwrap();
        let pipe = dir.path().join("pipe");
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, rustix::fs::Mode::RWXU, 0).unwrap();
        // Whoever holds the pipe for writing lives; this end reads its end when nobody does any more.
        let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::NONBLOCK;
        let watched = File::from(rustix::fs::open(&pipe, flags, rustix::fs::Mode::empty()).unwrap());
        let script = format!("exec 9>\"{0}\"; echo up >&9; sleep 1000 & sleep 1000", pipe.display());
        let error = sh(&script, Duration::from_secs(2)).unwrap_err();
        assert_eq!(error.kind, KmsErrorKind::Unreachable);
        assert!(error.message.contains("was killed"), "{error}");
        rustix::io::ioctl_fionbio(&watched, false).unwrap();
        let mut seen = String::new();
        (&watched).read_to_string(&mut seen).unwrap();
        assert_eq!(seen, "up\n");
    }

    #[test]
    fn what_a_command_leaves_running_is_not_waited_for() {
        assert_eq!(&sh(&format!("sleep 1000 & echo {KEY}"), LONG).unwrap()[..44], KEY.as_bytes());
    }

    #[test]
    fn endless_output_is_cut_off_and_is_no_key() {
        let output = Command::new("yes", LONG).unwrap().run().unwrap();
        assert_eq!(output.len(), ENOUGH);
        assert!(super::super::text::parse("it", &output).is_err());
    }

    #[test]
    fn what_it_said_is_shown_without_what_may_be_a_key() {
        let error = sh(&format!("echo first >&2; printf \"no \\033[2J{KEY} today\\n\" >&2; exit 1"), LONG).unwrap_err();
        assert!(error.message.contains("no") && error.message.contains("today"), "{error}");
        assert!(!error.message.contains(&KEY[..20]) && !error.message.contains('\u{1b}'), "{error}");
    }

    #[test]
    fn files_that_it_makes_are_for_nobody_else() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("made");
        sh(&format!(": >\"{}\"; pwd", file.display()), LONG).unwrap();
        let mode = std::os::unix::fs::MetadataExt::mode(&std::fs::metadata(file).unwrap());
        assert_eq!(mode & 0o777, 0o600);
    }
}
