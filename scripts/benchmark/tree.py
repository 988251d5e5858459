"""A source tree in an archive: some thousands of text files in a git repository, the same ones each time."""

import os
import random
import shutil
import subprocess

from .system import TARGET, run

SEED = 5
TEXT_LEN = 4 << 20
# Changes whenever what is made changes.
VERSION = 1

GIT = {
    **os.environ,
    "HOME": "/nonexistent",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_COUNT": "2",
    "GIT_CONFIG_KEY_0": "safe.directory",
    "GIT_CONFIG_VALUE_0": "*",
    "GIT_CONFIG_KEY_1": "gc.auto",
    "GIT_CONFIG_VALUE_1": "0",
    "GIT_AUTHOR_NAME": "nobody",
    "GIT_AUTHOR_EMAIL": "nobody@localhost",
    "GIT_AUTHOR_DATE": "2024-01-01T00:00:00Z",
    "GIT_COMMITTER_NAME": "nobody",
    "GIT_COMMITTER_EMAIL": "nobody@localhost",
    "GIT_COMMITTER_DATE": "2024-01-01T00:00:00Z",
    "GIT_OPTIONAL_LOCKS": "0",
}


def archive(files):
    """Path of an archive with so many files, in a directory `tree`. It is made once."""
    path = TARGET / "bench-data" / f"tree-{VERSION}-{files}.tar"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        work = path.with_suffix(".making")
        shutil.rmtree(work, ignore_errors=True)
        write_files(work / "tree", files)
        for command in (["init", "-q", "-b", "main"], ["add", "-A"], ["commit", "-q", "-m", "all"],
                        ["repack", "-adq", "--window=0"], ["prune-packed", "-q"]):  # fmt: skip
            run("git", *command, cwd=work / "tree", env=GIT)
        # It tells inodes and times, which are others wherever the archive is unpacked.
        (work / "tree/.git/index").unlink()
        shutil.rmtree(work / "tree/.git/hooks", ignore_errors=True)
        partial = path.with_suffix(".part")
        run("tar", "--sort=name", "--mtime=@0", "--owner=0", "--group=0", "-cf", partial, "-C", work, "tree")
        shutil.rmtree(work)
        partial.rename(path)
    return path


def write_files(tree, files):
    rng = random.Random(SEED)
    letters = "abcdefghijklmnopqrstuvwxyz_"
    words = ["".join(rng.choices(letters, k=rng.randint(2, 12))) for _ in range(4000)]
    text, length = [], 0
    while length < TEXT_LEN:
        line = " " * rng.choice((0, 0, 4, 4, 8, 12)) + " ".join(rng.choices(words, k=rng.randint(1, 14))) + "\n"
        text.append(line)
        length += len(line)
    text = "".join(text).encode()
    for number in range(files):
        # Most files are a few KiB, some are long, and the mean is about 14 KiB.
        size = min(int(rng.lognormvariate(8.8, 1.25)), TEXT_LEN // 2)
        start = rng.randrange(TEXT_LEN - size)
        directory = tree / f"part-{number // 400:02}" / f"{words[number // 20 % len(words)]}-{number // 20}"
        directory.mkdir(parents=True, exist_ok=True)
        (directory / f"{words[number % len(words)]}-{number:05}.txt").write_bytes(text[start : start + size])


def adopt(tree):
    """Makes git know the files of an unpacked tree as they are."""
    run("git", "reset", "-q", cwd=tree, env=GIT)


def status(tree):
    """What git says about the files; nothing if all are what they were."""
    return run("git", "status", "--porcelain", cwd=tree, env=GIT)


def read_all(tree):
    """tar notices if its output is /dev/null, and reads nothing then."""
    reader = subprocess.Popen(["tar", "-cf", "-", "-C", tree.parent, tree.name], stdout=subprocess.PIPE)
    total = 0
    with reader:
        while data := reader.stdout.read1(1 << 20):
            total += len(data)
    if reader.returncode != 0:
        raise OSError(f"tar could not read {tree}")
    return total
