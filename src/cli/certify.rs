//! `kmsfs certify`: what became of a volume's keys, as a signed file and a page to print.

use super::fsck::{bar, stop_on_signals};
use super::key::write_new;
use super::{Exit, Failure};
use crate::audit::clean;
use crate::certify::{self, Evidence, Mounted, NotSigned, SigningKey, Verdict, fingerprint};
use crate::daemon::control::{self, Command, Reply};
use crate::fs::volume::{Holding, Volume};
use crate::kms::ConnectOptions;
use clap::Args;
use serde_json::Value;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// How often the progress is shown.
const SHOWN_EVERY: Duration = Duration::from_millis(200);
/// How many places that are not ciphertext are printed.
const SHOWN: usize = 20;

/// Certifies what became of the keys of a volume, or checks a certificate.
#[derive(Args)]
#[command(
    after_help = "Exit codes: 0 no key of the volume is given (the certificate says what became of them), 1 a key is still \
    given, 7 it was not shown of every key,\n14 something in the store is not ciphertext, or the certificate is not what \
    was signed."
)]
pub struct Certify {
    /// The volume's directory; with --verify, optional: its headers are compared with the certificate
    #[arg(required_unless_present = "verify")]
    volume: Option<PathBuf>,
    /// Check the signature of this certificate instead of making one
    #[arg(long, value_name = "FILE", conflicts_with_all = ["output", "signing_key", "threads"])]
    verify: Option<PathBuf>,
    /// With --verify: the public key that has to have signed it, in base64
    #[arg(long, value_name = "KEY", requires = "verify")]
    public_key: Option<String>,
    /// Write NAME.json and NAME.html [default: certificate-VOLUME_ID, in the current directory]
    #[arg(long, value_name = "NAME")]
    output: Option<PathBuf>,
    /// The Ed25519 key to sign with, as PKCS#8 in PEM; made if it is not there [default: kmsfs/certificates.pem in the
    /// user's data directory]
    #[arg(long, value_name = "FILE")]
    signing_key: Option<PathBuf>,
    /// How many threads look at the store, by default as many as there are processors
    #[arg(long, value_name = "N")]
    threads: Option<NonZeroUsize>,
    /// Print the certificate, or what --verify found, as JSON
    #[arg(long)]
    json: bool,
}

pub fn run(arguments: &Certify) -> Result<(), Failure> {
    if let Some(file) = &arguments.verify {
        return verify(arguments, file);
    }
    let path = arguments.volume.clone().unwrap_or_default();
    let volume = Volume::open(&path).map_err(|error| Failure::of_volume(&path, error))?;
    let base = arguments.output.clone().unwrap_or_else(|| format!("certificate-{}", volume.record().id).into());
    let (json, html) = (with_end(&base, ".json"), with_end(&base, ".html"));
    for file in [&json, &html] {
        if file.symlink_metadata().is_ok() {
            let message = format!("{} exists already", file.display());
            return Err(Failure::new(Exit::Usage, message).hint("give another name with --output"));
        }
    }
    let key = signing_key(arguments)?;
    let Some(evidence) = gather(arguments, &volume)? else {
        return Err(Failure::new(Exit::Interrupted, "interrupted: there is no certificate"));
    };
    let certificate = evidence.certificate(&volume);
    let name = json.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let page = certify::page(&certificate, &key.public(), &name);
    let signed = key.sign(certificate);
    for (file, content) in [(&json, &signed), (&html, &page)] {
        std::fs::write(file, content)
            .map_err(|error| Failure::new(Exit::Store, format!("{} cannot be written: {error}", file.display())))?;
    }
    if arguments.json {
        print!("{signed}");
    } else {
        let verdict = evidence.verdict();
        println!("{}: {}", verdict.name(), clean(&certificate_statement(&signed)));
        for found in evidence.scan.foreign.iter().take(SHOWN) {
            println!("not ciphertext: {}: {}", found.path, clean(&found.what));
        }
        println!("signed by {} (fingerprint {})", key.public(), fingerprint(&key.public()));
        println!("written: {} and, to be printed, {}", json.display(), html.display());
    }
    judge(&evidence)
}

fn certificate_statement(signed: &str) -> String {
    let parsed: Value = serde_json::from_str(signed).unwrap_or_default();
    parsed["certificate"]["statement"].as_str().unwrap_or_default().to_owned()
}

fn judge(evidence: &Evidence) -> Result<(), Failure> {
    match evidence.verdict() {
        Verdict::Readable => Err(Failure::new(Exit::Failure, "the volume can still be read: a key of it is given")
            .hint("unmount it, and have its owner disable or delete the key; then certify again")),
        Verdict::NotShown => Err(Failure::new(Exit::KmsUnreachable, "it was not shown of every key what became of it")
            .hint("the certificate says what is missing; mend that, and certify again")),
        _ if evidence.scan.foreign_count > 0 => {
            let message = format!("places in the store that are not ciphertext: {}", evidence.scan.foreign_count);
            Err(Failure::new(Exit::Damage, message).hint("look at each; what is nobody's can be removed"))
        }
        _ => Ok(()),
    }
}

/// Collects the evidence, and shows how far that is.
fn gather(arguments: &Certify, volume: &Volume) -> Result<Option<Evidence>, Failure> {
    let of_store = |error: std::io::Error| Failure::of_store(volume.path(), &error);
    let mounted = mounted(volume).map_err(of_store)?;
    let options = ConnectOptions {
        mount: Some(volume.record().id.to_string()),
        ..ConnectOptions::from_variables(|name| std::env::var(name).ok())
    };
    let threads = arguments.threads.or_else(|| std::thread::available_parallelism().ok()).map_or(1, NonZeroUsize::get);
    let (stop, read) = (Arc::new(AtomicBool::new(false)), AtomicU64::new(0));
    stop_on_signals(&stop).map_err(of_store)?;
    let bar = bar(0);
    let (done, ended) = std::sync::mpsc::channel();
    let (options, read, stop) = (&options, &read, &*stop);
    let evidence = std::thread::scope(|scope| {
        // Whoever waits is there until then.
        scope.spawn(move || {
            let _ = done.send(certify::gather(volume, options, mounted, threads, read, stop));
        });
        loop {
            match ended.recv_timeout(SHOWN_EVERY) {
                Ok(evidence) => break evidence,
                Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => {
                    break Err(std::io::Error::other("a thread that looks at the store panicked"));
                }
                Err(std::sync::mpsc::RecvTimeoutError::Timeout) => bar.set_position(read.load(Relaxed)),
            }
        }
    });
    bar.finish_and_clear();
    evidence.map_err(of_store)
}

/// Who has the volume mounted, and whether that mount has wiped its keys.
fn mounted(volume: &Volume) -> std::io::Result<Option<Mounted>> {
    let Err(holder) = Holding::look(volume.path())? else { return Ok(None) };
    let holder = holder.unwrap_or_else(|| crate::fs::volume::Holder {
        pid: 0,
        mountpoint: "unknown".into(),
        host: "unknown".into(),
        answers: false,
    });
    let locked = match control::ask(Path::new(&holder.mountpoint), Command::Status) {
        Ok((Reply::Status(status), _)) => Some(status.state == "locked"),
        _ => None,
    };
    Ok(Some(Mounted { holder, locked }))
}

/// The key to sign with; made if there is none yet.
fn signing_key(arguments: &Certify) -> Result<SigningKey, Failure> {
    let path = match &arguments.signing_key {
        Some(path) => path.clone(),
        None => default_key()?,
    };
    let failed = |what: String| {
        Failure::new(Exit::Usage, format!("the signing key {}: {what}", path.display()))
            .hint("make one: openssl genpkey -algorithm ed25519 -out FILE, or name a file that is not there yet")
    };
    if path.symlink_metadata().is_err() {
        if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            std::fs::create_dir_all(parent).map_err(|error| failed(error.to_string()))?;
        }
        let pem = SigningKey::generate().map_err(failed)?;
        write_new(&path, pem.as_bytes()).map_err(|error| failed(error.to_string()))?;
        eprintln!("made a signing key in {}: keep it, and give its public half to whoever verifies", path.display());
    }
    let pem = std::fs::read_to_string(&path).map(zeroize::Zeroizing::new).map_err(|error| failed(error.to_string()))?;
    let mode = std::fs::metadata(&path).map(|metadata| std::os::unix::fs::MetadataExt::mode(&metadata)).unwrap_or(0);
    if mode & 0o077 != 0 {
        eprintln!("warning: the signing key {} is open to group or others: chmod 600 it", path.display());
    }
    SigningKey::parse(&pem).map_err(failed)
}

fn default_key() -> Result<PathBuf, Failure> {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let data = set("XDG_DATA_HOME").or_else(|| set("HOME").map(|home| home.join(".local/share")));
    data.map(|data| data.join("kmsfs/certificates.pem")).ok_or_else(|| {
        Failure::new(Exit::Usage, "there is no place for a signing key: HOME is not set")
            .hint("give --signing-key FILE")
    })
}

fn with_end(base: &Path, end: &str) -> PathBuf {
    let mut name = base.as_os_str().to_owned();
    name.push(end);
    name.into()
}

fn verify(arguments: &Certify, file: &Path) -> Result<(), Failure> {
    let text = std::fs::read_to_string(file)
        .map_err(|error| Failure::new(Exit::Usage, format!("{} cannot be read: {error}", file.display())))?;
    let wrong = |what: &str| Failure::new(Exit::Damage, format!("{}: {what}", file.display()));
    let (certificate, public) = certify::verify(&text).map_err(|error| match error {
        NotSigned::Changed => wrong("it is not what was signed").hint("somebody changed it; ask for it again"),
        NotSigned::Malformed(what) => wrong(&format!("it is no certificate: {}", clean(&what))),
    })?;
    if certificate["kind"].as_str() != Some(certify::KIND) {
        return Err(wrong("something else was signed"));
    }
    if arguments.public_key.as_ref().is_some_and(|expected| *expected != public) {
        return Err(wrong(&format!("it is signed by another key: {}", clean(&public)))
            .hint("ask whoever made it for the right public key, by another way than the certificate came"));
    }
    if let Some(path) = &arguments.volume {
        let volume = Volume::open(path).map_err(|error| Failure::of_volume(path, error))?;
        let root = certify::root_now(&volume).map_err(|error| Failure::of_store(path, &error))?;
        if certificate["volume"]["id"].as_str() != Some(&volume.record().id.to_string()) {
            return Err(wrong("it is about another volume"));
        }
        if certificate["headers"]["root"].as_str() != Some(&root) {
            return Err(wrong("the headers of the volume are not those of the certificate: it was changed since"));
        }
    }
    if arguments.json {
        println!("{:#}", serde_json::json!({"certificate": certificate, "public_key": public, "valid": true}));
        return Ok(());
    }
    let field = |name: &str| clean(certificate[name].as_str().unwrap_or("?"));
    println!("valid: what follows was signed by {} (fingerprint {})", clean(&public), fingerprint(&public));
    if arguments.public_key.is_none() {
        println!("whose key that is was not checked: --public-key");
    }
    println!("volume {}, {}", clean(certificate["volume"]["id"].as_str().unwrap_or("?")), field("made"));
    println!("{}: {}", field("verdict"), field("statement"));
    Ok(())
}
