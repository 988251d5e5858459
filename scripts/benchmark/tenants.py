"""The tenants of one machine: each with a configuration, credentials, and a key of its own in one embedded vault."""

import json
import os
import statistics
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor

from . import system
from .places import Place
from .system import Trouble, run

# So many commands, or writers, at once.
TOGETHER = 16
WRITERS = 8
# What a writer writes and reads back, in bytes, for each operation.
PIECE = 64 * 1024


class Tenants:
    """All of them on a disk; their mounts go with the disk, the vault at the end of the block."""

    def __init__(self, disk, count, binary, revalidate):
        self.disk, self.binary, self.revalidate = disk, binary, revalidate
        self.names = [f"tenant-{number:03}" for number in range(count)]
        self.vault = disk.directory / "vault"
        self.places = []

    def __enter__(self):
        run(self.binary, "dev-vault", "start", "--state", self.vault)
        try:
            self.configure()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        run(self.binary, "dev-vault", "stop", "--state", self.vault)

    def configure(self):
        shell = run("sh", "-euc", '. "$1/env"; env -0', "sh", self.vault)
        environment = dict(pair.split("=", 1) for pair in shell.split("\0") if "=" in pair)
        identity = "".join(f"{name}={value}\n" for name, value in environment.items() if name.startswith("AZURE_") or name == "KMSFS_CA_FILE")
        etc = self.disk.directory / "etc"
        (etc / "credentials").mkdir(parents=True, mode=0o700)
        self.environment = {**os.environ, "KMSFS_CONFIG_DIR": str(etc), "KMSFS_STATE_DIR": str(self.disk.directory / "state")}

        def one(name):
            self.tell("key", "create", name)
            kek = f"{environment['KMSFS_DEV_VAULT_URL']}/keys/{name}"
            run(self.binary, "init", self.disk.path / name, "--kek", kek, env=environment)
            self.mountpoint(name).mkdir(parents=True)
            for path, text in (
                (etc / f"{name}.toml", f'volume = "{self.disk.path / name}"\nmountpoint = "{self.mountpoint(name)}"\n'
                 f'revalidate = "{self.revalidate}s"\n[credentials]\nfile = "{name}.env"\n'),
                (etc / "credentials" / f"{name}.env", identity),
            ):  # fmt: skip
                with open(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w") as file:
                    file.write(text)

        self.together(one)

    def mountpoint(self, name):
        return self.disk.directory / "mnt" / name

    def together(self, act):
        """The same for each of them, and the results in order."""
        with ThreadPoolExecutor(TOGETHER) as pool:
            return list(pool.map(act, self.names))

    def tell(self, *arguments):
        """The vault."""
        return run(self.binary, "dev-vault", *arguments, "--state", self.vault)

    def kmsfs(self, *arguments):
        return run(self.binary, *arguments, env=self.environment)

    def start(self):
        """Mounts all, all at once; returns how long it took until each answered."""
        begin = time.perf_counter()
        command = [str(self.binary), "mount", "--tenant"]
        starting = [subprocess.Popen([*command, name], env=self.environment, stdin=subprocess.DEVNULL) for name in self.names]
        failed = [name for name, process in zip(self.names, starting) if process.wait() != 0]
        if failed:
            raise Trouble(f"{len(failed)} of {len(self.names)} tenants could not be mounted, {failed[0]} among them")
        took = time.perf_counter() - begin
        rows = json.loads(self.kmsfs("tenant", "list", "--json"))
        self.places = [Place(row["tenant"], self.mountpoint(row["tenant"]), row["pid"]) for row in rows]
        return took

    def stop(self):
        begin = time.perf_counter()
        self.together(lambda name: self.kmsfs("umount", "--tenant", name))
        return time.perf_counter() - begin

    def asked(self):
        """How often the vault was asked to unwrap, by each tenant."""
        keys = json.loads(self.tell("status", "--json"))["calls"]["keys"]
        return [keys.get(name, {}).get("unwrapkey", 0) for name in self.names]

    def throughput(self, names, seconds):
        """Pieces a second that are written to new files and read back past the page cache, in all of these together."""
        end = time.perf_counter() + seconds
        data = os.urandom(PIECE)
        done = []

        def writer(mine):
            count = 0
            while time.perf_counter() < end:
                path = self.mountpoint(mine[count % len(mine)]) / f"piece-{count % 64}"
                with open(path, "wb") as file:
                    file.write(data)
                    file.flush()
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                if path.read_bytes() != data:
                    raise Trouble(f"{path} is not what was written")
                count += 1
            done.append(count)

        threads = [threading.Thread(target=writer, args=(names[at::WRITERS],)) for at in range(WRITERS) if names[at::WRITERS]]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if len(done) < len(threads):
            raise Trouble("a writer failed")
        return sum(done) / seconds


def measure(disk, arguments, show, say, revalidate, goal):
    """Mounting, idling, a vault that hangs for a tenth of them, and starting again."""
    count = arguments.mounts
    say(f"making {count} tenants")
    with Tenants(disk, count, arguments.kmsfs, revalidate) as tenants:
        mounting = tenants.start()
        say(f"watching {count} tenants for {arguments.idle:.0f} s")
        begin, asked, used = time.perf_counter(), sum(tenants.asked()), sum(place.cpu() for place in tenants.places)
        # The measured time itself.
        time.sleep(arguments.idle)
        used = sum(place.cpu() for place in tenants.places) - used
        asked, watched = sum(tenants.asked()) - asked, time.perf_counter() - begin
        memory = [system.memory_mib(place.pid) for place in tenants.places]

        silent, others = tenants.names[: count // 10], tenants.names[count // 10 :]
        rounds = []
        for number in range(1 if arguments.quick else 3):
            say(f"a vault that hangs for {len(silent)} of them, round {number + 1}")
            before = tenants.throughput(others, arguments.idle / 3)
            for name in silent:
                tenants.tell("fault", "hang", "--key", name)
            met = tenants.asked()
            while any(now == then for now, then in zip(tenants.asked()[: len(silent)], met)):
                time.sleep(0.1)
            hanging = tenants.throughput(others, arguments.idle / 3)
            tenants.tell("fault", "none")
            after = tenants.throughput(others, arguments.idle / 3)
            # What comes before and what comes after, so that a machine that changes its pace does not count.
            rounds.append((hanging, (before + after) / 2))
        say("all of them end, and come back")
        ending, again = tenants.stop(), tenants.start()
        tenants.stop()
        say("")
    facts = {
        "tenants": count,
        "mount_all_s": mounting,
        "rss_mib": statistics.median(rss for rss, _, _ in memory),
        "rss_most_mib": max(rss for rss, _, _ in memory),
        "pss_mib": statistics.median(pss for _, pss, _ in memory),
        "pss_all_mib": sum(pss for _, pss, _ in memory),
        "cpu_share_all": used / watched,
        "kms_calls_per_minute": 60 * asked / watched / count,
        "kms_calls_configured": 60 / revalidate,
        "pieces_per_s": statistics.median(answering for _, answering in rounds),
        "pieces_per_s_hanging": statistics.median(hanging for hanging, _ in rounds),
        "hanging_ratio": statistics.median(hanging / answering for hanging, answering in rounds),
        "umount_all_s": ending,
        "mount_all_again_s": again,
    }
    show(
        f"{count} tenants mount together in {mounting:.1f} s, end in {ending:.1f} s and are back in {again:.1f} s",
        f"each, idle: {facts['rss_mib']:.1f} MiB resident (most {facts['rss_most_mib']:.1f}; below {goal}: "
        f"{'✓' if facts['rss_most_mib'] < goal else '✗'}), {facts['pss_mib']:.1f} MiB of its own share; all: {facts['pss_all_mib']:.0f} MiB",
        f"all, idle: {facts['cpu_share_all']:.2%} of a core; each asks the vault {facts['kms_calls_per_minute']:.2f} times a minute "
        f"(configured: {facts['kms_calls_configured']:.2f})",
        f"while the vault hangs for {len(silent)}, the other {len(others)} write and read {facts['pieces_per_s_hanging']:.0f} pieces of "
        f"{PIECE // 1024} KiB a second, {facts['hanging_ratio']:.2f} of the {facts['pieces_per_s']:.0f} before and after",
    )  # fmt: skip
    return facts
