"""Directories to measure: as they are, or mounts that are made for it on a disk of their own."""

import fcntl
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

from .system import KMSFS, MIB, PASSTHROUGH, Trouble, cpu_seconds, run, syncfs

OWN_DIRECTORY = ".kmsfs-bench"
MOUNT_SECONDS = 30
UNMOUNT_SECONDS = 120


class Place:
    """A directory that is measured, and the process that serves it if it is known."""

    def __init__(self, name, path, pid=None, disk=None):
        self.name, self.path, self.pid, self.disk = name, Path(path).resolve(), pid, disk
        self.directory = self.path / OWN_DIRECTORY
        # What works have left here for others.
        self.has = set()

    @classmethod
    def given(cls, text):
        """From `[NAME=]DIR`."""
        label, separator, path = text.partition("=")
        place = Path(path if separator else text).resolve()
        if not place.is_dir():
            raise Trouble(f"{place} is not a directory")
        return cls(label if separator else place.name, place)

    def prepare(self, needed):
        shutil.rmtree(self.directory, ignore_errors=True)
        space = os.statvfs(self.path)
        if space.f_bavail * space.f_frsize < needed:
            raise Trouble(f"{self.path} has less than {needed // MIB} MiB free", "--size takes less")
        self.directory.mkdir()
        self.has.clear()

    def clean(self):
        shutil.rmtree(self.directory, ignore_errors=True)

    def settle(self):
        """Everything that was written is on the disk: what is measured next is its own."""
        syncfs(self.path)
        if self.disk:
            syncfs(self.disk)

    def cpu(self):
        return cpu_seconds(self.pid) if self.pid else None


class Disk:
    """A journalled ext4 filesystem in a file, and mounts on it; all of it is taken away at the end."""

    def __init__(self, directory, size):
        self.directory, self.size = Path(directory).resolve(), size
        self.path = self.directory / "disk"
        self.daemons = []

    def __enter__(self):
        self.directory.parent.mkdir(parents=True, exist_ok=True)
        self.lock = open(self.directory.with_suffix(".lock"), "w")
        try:
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise Trouble(f"{self.directory} is in use by another run", "wait for it, or choose another --dir") from None
        if self.directory.exists():
            if not (self.directory / "image").exists():
                raise Trouble(f"{self.directory} exists and is not ours", "choose another --dir")
            # A run that was killed has left it.
            self.take_away()
        try:
            self.path.mkdir(parents=True)
            with open(self.directory / "image", "wb") as image:
                image.truncate(self.size)
            run("mkfs.ext4", "-q", "-F", "-O", "has_journal", "-E", "lazy_itable_init=0,lazy_journal_init=0", self.directory / "image")
            device = run("losetup", "--find", "--show", self.directory / "image").strip()
            try:
                # Past the page cache of what the image lies on, which would read ahead and keep what was written, as no disk
                # does. Not everything can be read so.
                subprocess.run(["losetup", "--direct-io=on", device], check=False, stderr=subprocess.DEVNULL)
                run("mount", device, self.path)
            finally:
                # Not before it is unmounted.
                run("losetup", "--detach", device)
        except BaseException:
            self.take_away()
            raise
        return self

    def __exit__(self, *_):
        # Another Ctrl-C would leave mounts behind.
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        self.take_away()
        self.lock.close()
        signal.signal(signal.SIGINT, before)

    def take_away(self):
        mounted = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
        inside = [path for path in mounted if Path(path).is_relative_to(self.directory) and path != str(self.path)]
        for path in inside:
            subprocess.run(["umount", path], check=False, stderr=subprocess.DEVNULL)
        late = [path for path in inside if os.path.ismount(path)]
        for path in late:
            subprocess.run(["umount", "--lazy", path], check=False)
        for daemon in self.daemons:
            try:
                daemon.wait(timeout=UNMOUNT_SECONDS)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        self.daemons.clear()
        if str(self.path) in mounted:
            # A process that has let go of the last mount may still be closing its files.
            until = time.monotonic() + UNMOUNT_SECONDS
            while subprocess.run(["umount", self.path], check=False, stderr=subprocess.DEVNULL).returncode != 0:
                if time.monotonic() > until:
                    raise Trouble(f"{self.path} cannot be unmounted", f"what uses it: fuser -vm {self.path}")
                time.sleep(0.1)
        # Mountpoints of tenants cannot be changed while nothing is mounted there.
        subprocess.run(["chattr", "-R", "-i", str(self.directory)], check=False, stderr=subprocess.DEVNULL)
        shutil.rmtree(self.directory, ignore_errors=True)

    def serve(self, name, command, environment=None):
        """The place that a process serves, in the foreground, at the mountpoint that ends its command."""
        mountpoint = self.directory / name
        mountpoint.mkdir()
        log = self.directory / f"{name}.log"
        with open(log, "wb") as output:
            # Of a session of its own, so that a key pressed at the terminal reaches only us.
            daemon = subprocess.Popen([*map(str, command), str(mountpoint)], stdin=subprocess.DEVNULL, stdout=output,
                                      stderr=output, start_new_session=True, env=environment)  # fmt: skip
        self.daemons.append(daemon)
        until = time.monotonic() + MOUNT_SECONDS
        while not os.path.ismount(mountpoint):
            if daemon.poll() is not None or time.monotonic() > until:
                said = log.read_text(errors="replace").strip().splitlines()
                raise Trouble(f"{name} does not mount: {said[-1] if said else 'it says nothing'}")
            time.sleep(0.01)
        return Place(name, mountpoint, daemon.pid, self.path)

    def below(self, name):
        backing = self.path / name
        backing.mkdir()
        return backing

    def ext4(self):
        return Place("ext4", self.below("ext4"), disk=self.path)

    def passthrough(self):
        return self.serve("passthrough", [PASSTHROUGH, self.below("passthrough")])

    def gocryptfs(self):
        password = self.directory / "password"
        password.write_text("benchmark\n")
        backing = self.below("gocryptfs")
        run("gocryptfs", "-q", "-init", "-scryptn", "12", "-passfile", password, backing)
        return self.serve("gocryptfs", ["gocryptfs", "-q", "-fg", "-nosyslog", "-passfile", password, backing])

    def kmsfs(self, name="kmsfs", binary=KMSFS, options=(), free_journal=False):
        volume = self.volume(name, binary)
        if free_journal:
            # Everything is written to it, and waited for, as always; that costs the disk nothing.
            run("mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", volume / "journal")
        return self.serve(name, [binary, "mount", "--foreground", *options, volume])

    def volume(self, name, binary=KMSFS):
        """A volume under a key in a file."""
        key = self.directory / "key"
        if not key.exists():
            secret = run(binary, "key", "generate")
            with open(os.open(key, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w") as file:
                file.write(secret)
        run(binary, "init", self.path / name, "--kek", f"file:{key}")
        return self.path / name
