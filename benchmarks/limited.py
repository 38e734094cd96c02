"""A command in a process of its own under a memory limit: what it took, and by what the limit is enforced.

    python benchmarks/limited.py RESULT LIMIT COMMAND...

LIMIT is in bytes, 0 for none. With cgroups it counts what processes hold in memory, page cache included,
which the kernel takes back where it must: the command is killed only if it needs more for itself.
Without them, RLIMIT_DATA limits what it allocates.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

V1, V2 = Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")
SAMPLE_SECONDS = 0.05
MIB = 1 << 20


@dataclass(frozen=True)
class Cost:
    """What a command took.

    Args:
        seconds: From start to end.
        cpu_seconds: Of all its threads, in user and kernel mode.
        peak_mib: Largest resident set, mapped files included (VmHWM).
        own_mib: Largest sum of memory that is not page cache; with cgroups, else 0.
        reclaimed: How often the limit was reached and page cache given back; with cgroups, else 0.
        limited_by: What enforced the limit.
        output: What it printed on stdout.
    """

    seconds: float
    cpu_seconds: float
    peak_mib: float
    own_mib: float
    reclaimed: int
    limited_by: str
    output: str = ""


def run_limited(command: Sequence[str], limit: int = 0) -> Cost:
    """Run a command under a limit.

    Args:
        command: Program and arguments.
        limit: Bytes; 0 for none.

    Raises:
        RuntimeError: It failed or was killed; with the end of what it printed.
    """
    with tempfile.TemporaryDirectory() as folder:
        result, output = Path(folder) / "result.json", Path(folder) / "output"
        launcher = [sys.executable, __file__, str(result), str(limit), *command]
        with output.open("w") as stream:
            done = subprocess.run(
                launcher, stdout=stream, stderr=subprocess.PIPE, text=True, check=False
            )
        printed = output.read_text()
        if done.returncode:
            raise RuntimeError(f"exit code {done.returncode}: {(printed + done.stderr)[-800:]}")
        return Cost(**json.loads(result.read_text()), output=printed)


def forget(files: Sequence[Path]) -> None:
    """Take files out of the page cache, so that the next process reads them from disk."""
    for file in files:
        with file.open("rb") as stream:
            os.fsync(stream.fileno())
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


class Group:
    """A cgroup that this process joins, and what it says.

    Args:
        folder: Of it.
        limit: Name of the file for the limit.
        stat: Name of the row in ``memory.stat`` that counts what is no page cache.
    """

    def __init__(self, folder: Path, limit: str, stat: str) -> None:
        self.folder, self.limit, self.stat = folder, limit, stat
        self.most = 0
        self._done = threading.Event()
        self._sampler = threading.Thread(target=self._watch, daemon=True)

    def join(self, limit: int) -> None:
        """Make it, limit it, and move this process into it."""
        self.folder.mkdir()
        if limit:
            (self.folder / self.limit).write_text(str(limit))
        (self.folder / "cgroup.procs").write_text(str(os.getpid()))
        self._sampler.start()

    def leave(self) -> None:
        """Go back, and remove it."""
        self._done.set()
        self._sampler.join()
        with suppress(OSError):
            (self.folder.parent / "cgroup.procs").write_text(str(os.getpid()))
            self.folder.rmdir()

    def reached(self) -> int:
        """Return how often the limit was reached."""
        with suppress(OSError):
            return int((self.folder / "memory.failcnt").read_text())
        with suppress(OSError):
            rows = dict(r.split() for r in (self.folder / "memory.events").read_text().splitlines())
            return int(rows["max"])
        return 0

    def _watch(self) -> None:
        while not self._done.wait(SAMPLE_SECONDS):
            with suppress(OSError):
                text = (self.folder / "memory.stat").read_text()
                rows = dict(row.split() for row in text.splitlines())
                self.most = max(self.most, int(rows.get(self.stat, 0)))


@contextmanager
def limited(limit: int) -> Iterator[tuple[str, Group | None]]:
    """Limit this process and its children; give what enforces it."""
    name = f"qcompile-benchmark-{os.getpid()}"
    kinds = (
        (
            "cgroup v1, memory.limit_in_bytes",
            Group(V1 / name, "memory.limit_in_bytes", "total_rss"),
        ),
        ("cgroup v2, memory.max", Group(V2 / name, "memory.max", "anon")),
    )
    for said, group in kinds:
        if not (group.folder.parent / "cgroup.procs").exists():
            continue
        try:
            group.join(limit)
        except OSError:
            with suppress(OSError):
                group.folder.rmdir()
            continue
        try:
            yield (said if limit else "nothing"), group
        finally:
            group.leave()
        return
    if limit:
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    yield ("RLIMIT_DATA" if limit else "nothing"), None


def launch(result: Path, limit: int, command: Sequence[str]) -> int:
    """Run the command, write its cost to the result file, and return its exit code."""
    with limited(limit) as (said, group):
        start = time.perf_counter()
        code = subprocess.run(command, check=False).returncode
        seconds = time.perf_counter() - start
        reached = group.reached() if group else 0
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    unit = MIB if sys.platform == "darwin" else 2**10  # bytes there, KiB elsewhere
    cost = Cost(
        seconds, used.ru_utime + used.ru_stime, used.ru_maxrss / unit,
        group.most / MIB if group else 0.0, reached, said,
    )  # fmt: skip
    found = asdict(cost)
    found.pop("output")
    result.write_text(json.dumps(found))
    return code


if __name__ == "__main__":
    sys.exit(launch(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]))
