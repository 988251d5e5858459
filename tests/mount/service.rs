//! What a service manager is told, on a socket of the test's own.

use crate::harness::{Outcome, Volume, until};
use std::fs;
use std::os::unix::net::UnixDatagram;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// A mount in the foreground, and what it says.
struct Service {
    volume: Volume,
    socket: UnixDatagram,
    child: Child,
}

impl Service {
    fn start(volume: Volume, options: &[&str], watchdog: Option<Duration>) -> Self {
        let path = volume.file("notify");
        let socket = UnixDatagram::bind(&path).expect("a socket");
        socket.set_read_timeout(Some(Duration::from_secs(60))).expect("a timeout");
        let places = [volume.path(), volume.mountpoint()];
        let mut command = Command::new(env!("CARGO_BIN_EXE_kmsfs"));
        command.arg("mount").args(places).arg("--foreground").args(options);
        command.env("NOTIFY_SOCKET", &path).stderr(Stdio::null());
        if let Some(watchdog) = watchdog {
            command.env("WATCHDOG_USEC", watchdog.as_micros().to_string());
        }
        Self { child: command.spawn().expect("it starts"), volume, socket }
    }

    /// The next message that has this in it.
    fn said(&self, what: &str) -> String {
        let mut buffer = [0; 4096];
        loop {
            let len = self.socket.recv(&mut buffer).unwrap_or_else(|error| panic!("waiting for {what}: {error}"));
            let text = String::from_utf8_lossy(&buffer[..len]).into_owned();
            if text.contains(what) {
                return text;
            }
        }
    }

    fn run(&self, command: &str) {
        self.volume.ok(&[command, self.volume.mountpoint().to_str().expect("UTF-8")]);
    }

    fn end(mut self) -> Outcome {
        rustix::process::kill_process(rustix::process::Pid::from_child(&self.child), rustix::process::Signal::TERM)?;
        self.said("STOPPING=1");
        assert!(self.child.wait()?.success());
        Ok(())
    }
}

#[test]
fn a_service_is_ready_when_its_mount_answers_and_says_how_it_is_until_it_ends() -> Outcome {
    let service = Service::start(Volume::new(), &[], None);
    let said = service.said("READY=1");
    // Without waiting: it is there.
    fs::write(service.volume.mountpoint().join("file"), "x")?;
    assert!(said.contains("STATUS=unlocked"), "{said}");
    service.run("lock");
    service.said("STATUS=locked (operator)");
    service.run("unlock");
    service.said("STATUS=unlocked");
    service.end()
}

#[test]
fn the_watchdog_is_told_while_the_mount_answers_also_when_it_is_locked() -> Outcome {
    let service = Service::start(Volume::new(), &[], Some(Duration::from_millis(300)));
    service.said("READY=1");
    service.said("WATCHDOG=1");
    service.run("lock");
    service.said("STATUS=locked (operator)");
    for _ in 0..3 {
        service.said("WATCHDOG=1");
    }
    service.end()
}

#[test]
fn a_service_that_waits_for_its_key_says_so_and_is_not_given_up() -> Outcome {
    let volume = Volume::new();
    let kek = volume.file("kek");
    fs::rename(&kek, volume.file("away"))?;
    let service = Service::start(volume, &["--wait"], None);
    let said = service.said("STATUS=waiting for the key: ");
    assert!(said.contains("EXTEND_TIMEOUT_USEC="), "{said}");
    fs::rename(service.volume.file("away"), &kek)?;
    service.said("READY=1");
    service.end()
}

#[test]
fn a_mount_in_the_background_is_nobodys_service() -> Outcome {
    let volume = Volume::new();
    let path = volume.file("notify");
    let socket = UnixDatagram::bind(&path)?;
    socket.set_nonblocking(true)?;
    let mountpoint = volume.mountpoint();
    let status = Command::new(env!("CARGO_BIN_EXE_kmsfs"))
        .arg("mount")
        .args([volume.path(), mountpoint.clone()])
        .env("NOTIFY_SOCKET", &path)
        .env("WATCHDOG_USEC", "30000")
        .status()?;
    assert!(status.success());
    volume.ok(&["umount", mountpoint.to_str().expect("UTF-8")]);
    assert_eq!(socket.recv(&mut [0; 16]).map_err(|error| error.kind()), Err(std::io::ErrorKind::WouldBlock));
    until("it is gone", || !mountpoint.join("file").exists());
    Ok(())
}
