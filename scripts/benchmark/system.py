"""The machine: commands, caches, processes."""

import ctypes
import mmap
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
TARGET = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")).resolve()
RELEASE = TARGET / "release"
MANY_FILES = RELEASE / "examples" / "many_files"
PASSTHROUGH = RELEASE / "examples" / "passthrough"
KMSFS = RELEASE / "kmsfs"
MIB = 1 << 20
TICKS = os.sysconf("SC_CLK_TCK")
SYNCFS = ctypes.CDLL(None, use_errno=True).syncfs


class Trouble(Exception):
    """Nothing can be measured."""

    def __init__(self, message, hint=None):
        super().__init__(message)
        self.hint = hint


def run(*command, **options):
    """Standard output of a command that has to succeed."""
    options = {"capture_output": True, "text": True, **options}
    if "input" not in options:
        options.setdefault("stdin", subprocess.DEVNULL)
    result = subprocess.run([str(word) for word in command], **options)
    if result.returncode != 0:
        said = (result.stderr or result.stdout or "").strip().splitlines()
        raise Trouble(f"{' '.join(map(str, command))} failed: {said[-1] if said else f'status {result.returncode}'}")
    return result.stdout


def packages(*needs):
    if subprocess.run([ROOT / "scripts/packages", *needs], check=False).returncode != 0:
        raise Trouble("what is needed could not be installed")


def build(*what):
    """The release binaries, from the source as it is."""
    command = ["cargo", "build", "--release", "--locked", "--quiet", *what]
    if subprocess.run(command, cwd=ROOT, check=False).returncode != 0:
        raise Trouble("cargo build failed")


def need_root():
    if os.geteuid() != 0:
        raise Trouble("a filesystem is mounted here, and caches are dropped", "run as root, with sudo")


def touch_memory(size):
    """A virtual machine may have to ask its host for each page that was free for a while, at microseconds each, which would
    count as somebody's time. Now so many bytes of them are there."""
    with mmap.mmap(-1, size) as area:
        for at in range(0, size, mmap.PAGESIZE):
            area[at] = 1


def drop_caches():
    """Whether the kernel has forgotten every clean page, entry and inode."""
    try:
        Path("/proc/sys/vm/drop_caches").write_text("3\n")
        return True
    except OSError:
        return False


def syncfs(path):
    handle = os.open(path, os.O_RDONLY)
    try:
        if SYNCFS(handle) != 0:
            raise OSError(ctypes.get_errno(), f"syncfs of {path}")
    finally:
        os.close(handle)


def cpu_seconds(pid):
    """User and system time of a process with all its threads."""
    # The name of the program stands in brackets and may hold anything.
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def memory_mib(pid):
    """(resident, proportional, resident at most) of a process."""
    rollup = fields_of(f"/proc/{pid}/smaps_rollup")
    return rollup["Rss"], rollup["Pss"], fields_of(f"/proc/{pid}/status")["VmHWM"]


def fields_of(path):
    """The lines `Name:  N kB` of a file in /proc, in MiB."""
    fields = {}
    for line in Path(path).read_text().splitlines():
        name, _, value = line.partition(":")
        if value.endswith("kB"):
            fields[name] = int(value.split()[0]) / 1024
    return fields


def allow_many_descriptors():
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def machine():
    """What a figure depends on."""
    model = next((line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
                  if line.startswith("model name")), os.uname().machine)  # fmt: skip
    load = os.getloadavg()[0]
    return {"kernel": os.uname().release, "cores": os.cpu_count(), "processor": model, "load_before": load}


def end_with(main):
    """Runs a script: a failure is one line for a person, and a TERM is as good as a Ctrl-C: everything is taken away."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        sys.exit(main())
    except Trouble as trouble:
        print(f"error: {trouble}" + (f"\nhint: {trouble.hint}" if trouble.hint else ""), file=sys.stderr)
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        print("\nerror: interrupted", file=sys.stderr)
    sys.exit(1)
