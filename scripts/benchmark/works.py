"""The rows of the table: what is done in a place, and what is counted."""

import json
import os
import shutil
import time
from dataclasses import dataclass, field

from . import tree
from .system import MANY_FILES, MIB, Trouble, drop_caches, run, touch_memory

SMALL_SIZE = 4096


@dataclass
class Sizes:
    """How much is done."""

    size: int  # MiB of the large file
    seconds: int  # at most so long for a random job
    files: int  # small files
    tree: int  # files of the source tree


FULL = Sizes(size=1024, seconds=10, files=5000, tree=6270)
QUICK = Sizes(size=128, seconds=3, files=1000, tree=700)


@dataclass
class Sample:
    """What one run of a work gave."""

    value: float
    amount: float  # what `cpu` is shared among: GiB or operations
    p99_us: float | None = None
    synced_s: float | None = None  # for how long what it wrote was being stored afterwards
    cpu_s: float | None = None


@dataclass
class Work:
    """A row. `more` tells whether more is better; `goals` what kmsfs must reach against gocryptfs, as a speed-up."""

    key: str
    title: str
    unit: str
    goal: float | None = None
    cpu_goal: float | None = None
    cold: bool = False

    @property
    def more(self):
        return self.unit != "s"

    @property
    def per(self):
        return "GiB" if self.unit == "MiB/s" else "op"

    def prepare(self, place, sizes):
        """Whatever has to be there, and is not part of the work."""

    def make_ready(self, sizes):
        """What has to be done just before."""

    def run(self, place, sizes):
        raise NotImplementedError

    def finish(self, place):
        """Takes away what nobody needs any more; not measured either."""

    def measure(self, place, sizes):
        self.prepare(place, sizes)
        place.settle()
        if self.cold:
            drop_caches()
        self.make_ready(sizes)
        before = place.cpu()
        sample = self.run(place, sizes)
        start = time.perf_counter()
        place.settle()
        sample.synced_s = time.perf_counter() - start
        if before is not None:
            sample.cpu_s = place.cpu() - before
        self.finish(place)
        return sample


def lay_data(place, sizes):
    """The large file, if it is not there."""
    if "data" not in place.has:
        block = bytes(range(256)) * (MIB // 256)
        with open(place.directory / "data", "wb", buffering=0) as file:
            for _ in range(sizes.size):
                file.write(block)
        place.has.add("data")


def run_fio(options, unit):
    """What one job of fio gave, in MiB/s or IOPS."""
    output = run("fio", "--output-format=json", *(f"--{name}={value}" for name, value in options.items()))
    # Messages may stand before the JSON.
    result = json.loads(output[output.index("{\n") :])["jobs"][0]
    job = result["write" if "write" in options["rw"] else "read"]
    # With the time of the final fsync: what the page cache took in is no throughput.
    seconds = max(job["runtime"], 1) / 1000
    latencies = result["sync"]["lat_ns"] if "fdatasync" in options else job["clat_ns"]
    p99 = latencies.get("percentile", {}).get("99.000000")
    mib, operations = job["io_bytes"] / MIB, job["total_ios"]
    if unit == "MiB/s":
        return Sample(mib / seconds, mib / 1024, p99 and p99 / 1000)
    return Sample(operations / seconds, operations, p99 and p99 / 1000)


@dataclass
class Fio(Work):
    """A job of fio."""

    options: dict = field(default_factory=dict)
    warm: bool = False
    share: float = 1.0
    jobs: int = 1

    def prepare(self, place, sizes):
        if self.key == "seq-append":
            # To a file that is committed: what is in its place counts, whatever happens.
            (place.directory / "data").unlink(missing_ok=True)
            place.has.discard("data")
            lay_data(place, sizes)
            with open(place.directory / "data", "rb") as file:
                os.fsync(file)
        elif self.key == "seq-write":
            (place.directory / "data").unlink(missing_ok=True)
            place.has.add("data")
        elif self.options.get("fdatasync") is None:
            lay_data(place, sizes)
        if self.warm:
            with open(place.directory / "data", "rb", buffering=0) as file:
                while file.read(MIB):
                    pass

    def run(self, place, sizes):
        size = sizes.size * MIB
        options = {
            "name": "job",
            "filename": place.directory / ("log" if "fdatasync" in self.options else "data"),
            "size": size // self.jobs,
            "io_size": int(size * self.share) // self.jobs // 4096 * 4096,
            "numjobs": self.jobs,
            "ioengine": "psync",
            "fallocate": "none",
            "invalidate": int(self.cold),
            "randrepeat": 0,
            "group_reporting": 1,
            "thread": 1,
            **self.options,
        }
        if self.jobs > 1:
            options["offset_increment"] = size // self.jobs
        if self.share < 1:
            options["runtime"] = sizes.seconds
        return run_fio(options, self.unit)

    def make_ready(self, sizes):
        if self.key in ("seq-write", "seq-append"):
            # Once in the page cache of the mount, and once in that of the disk.
            touch_memory(5 * sizes.size * MIB // 2)

    def finish(self, place):
        if "fdatasync" in self.options:
            (place.directory / "log").unlink()
        if self.key == "seq-append":
            (place.directory / "data").unlink()
            place.has.discard("data")


@dataclass
class Files(Work):
    """Many small files, by the tool that is written for it."""

    act: str = ""
    threads: int = 1

    def tool(self, act, place, sizes):
        return json.loads(run(MANY_FILES, act, place.directory / "small", sizes.files, SMALL_SIZE, self.threads))

    def prepare(self, place, sizes):
        if self.act == "create" and "small" in place.has:
            self.tool("delete", place, sizes)
            place.has.discard("small")
        elif self.act != "create" and "small" not in place.has:
            self.tool("create", place, sizes)
            place.has.add("small")

    def run(self, place, sizes):
        result = self.tool(self.act, place, sizes)
        (place.has.add if self.act == "create" else place.has.discard if self.act == "delete" else id)("small")
        return Sample(result["seconds"], sizes.files, result["p99_us"])


@dataclass
class Tree(Work):
    """A program at work on a source tree."""

    act: str = ""

    def prepare(self, place, sizes):
        unpacked = place.directory / "tree"
        archive = tree.archive(sizes.tree)
        if self.act == "untar":
            shutil.rmtree(unpacked, ignore_errors=True)
            place.has.discard("tree")
            # In memory: it is not the disk's turn.
            archive.read_bytes()
            return
        if "tree" not in place.has:
            run("tar", "-xf", archive, "-C", place.directory)
            place.has.add("tree")
        if self.act == "git-status" and "adopted" not in place.has:
            tree.adopt(unpacked)
            place.has.add("adopted")

    def run(self, place, sizes):
        unpacked = place.directory / "tree"
        start = time.perf_counter()
        if self.act == "untar":
            run("tar", "-xf", tree.archive(sizes.tree), "-C", place.directory)
            place.has.add("tree")
            place.has.discard("adopted")
        elif self.act == "cp":
            run("cp", "-r", unpacked, place.directory / "copy")
        elif self.act == "git-status":
            changed = tree.status(unpacked)
            if changed:
                raise Trouble(f"{place.name}: files are not what they were: {changed.splitlines()[0]}")
        else:
            tree.read_all(unpacked)
        return Sample(time.perf_counter() - start, sizes.tree)

    def finish(self, place):
        if self.act == "cp":
            shutil.rmtree(place.directory / "copy")


def all_works(sizes):
    sequential = {"bs": "1M"}
    small = {"bs": "4k"}
    direct = {"bs": "4k", "direct": 1, "ioengine": "libaio", "iodepth": 8}
    many, source = f"{sizes.files:,} files of 4 KiB", f"{sizes.tree:,} source files"
    return [
        Fio("seq-write", "sequential write 1 MiB + fsync", "MiB/s", 1.6, 1.8, options={**sequential, "rw": "write", "end_fsync": 1}),
        Fio("seq-append", "append 1 MiB to a file that is there + fsync", "MiB/s", options={**sequential, "rw": "write", "end_fsync": 1, "file_append": 1}),
        Fio("seq-read", "sequential read, cold", "MiB/s", 1.3, cold=True, options={**sequential, "rw": "read"}),
        Fio("seq-read-warm", "sequential read, warm", "MiB/s", 4.5, options={**sequential, "rw": "read"}, warm=True),
        Fio("rand-read", "random read 4 KiB, cold", "IOPS", 1.1, cold=True, options={**small, "rw": "randread"}, share=1 / 8),
        Fio("rand-read-4", "random read 4 KiB, cold, 4 jobs", "IOPS", 1.2, cold=True, options={**small, "rw": "randread"}, share=1 / 8, jobs=4),
        Fio("rand-write", "random write 4 KiB, then fsync", "IOPS", 3.5, options={**small, "rw": "randwrite", "end_fsync": 1}, share=1 / 8),
        Fio("direct-read", "random read 4 KiB, O_DIRECT, QD 8", "IOPS", 3.0, options={**direct, "rw": "randread"}, share=1 / 8),
        Fio("direct-write", "random write 4 KiB, O_DIRECT, QD 8", "IOPS", 4.0, options={**direct, "rw": "randwrite"}, share=1 / 8),
        Fio("fdatasync", "write 4 KiB + fdatasync", "IOPS", 1.5, options={**small, "rw": "write", "fdatasync": 1}, share=1 / 32),
        Files("create", f"create {many}", "s", 2.0, act="create"),
        Files("stat", f"stat {many}, cold", "s", 1.5, cold=True, act="stat"),
        Files("read", f"read {many}, cold", "s", 1.4, cold=True, act="read"),
        Files("delete", f"delete {many}, cold", "s", 1.3, cold=True, act="delete"),
        Tree("untar", f"untar {source}", "s", 1.8, act="untar"),
        Tree("cp", f"cp -r of {source}", "s", 2.0, act="cp"),
        Tree("git-status", "git status of them, cold", "s", 1.3, cold=True, act="git-status"),
        Tree("tar-read", "tar of them, cold", "s", 1.4, cold=True, act="tar"),
    ]  # fmt: skip


def chosen(works, only):
    """Those whose keys are named, in the order of the table; all without names."""
    if not only:
        return works
    keys = {work.key for work in works}
    if unknown := [key for key in only if key not in keys]:
        raise Trouble(f"there is no row {unknown[0]}", f"there are {', '.join(work.key for work in works)}")
    return [work for work in works if work.key in only]
