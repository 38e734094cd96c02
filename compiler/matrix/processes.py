"""Requests to workers, some at a time, each in a process of its own."""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from qcompile.compiler.ir.errors import OutputError

_COMMAND = (sys.executable, "-P", "-m", "qcompile.compiler.matrix.worker")
_SECONDS_TO_END = 10
Told = Callable[[str, Mapping[str, Any]], None]


@dataclass
class _Worker:
    name: str
    process: subprocess.Popen[bytes]
    errors: IO[bytes]
    rest: bytes = b""
    result: dict[str, Any] = field(default_factory=dict)

    def ask(self, request: Mapping[str, Any]) -> None:
        """Send it what is to be done; its stdin stays open, or it would end."""
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):  # it has ended: its exit code will tell
            self.process.stdin.write(json.dumps(request).encode() + b"\n")
            self.process.stdin.flush()

    def take(self, data: bytes, told: Told) -> None:
        """Take what it wrote: reports, and at last the result."""
        *lines, self.rest = (self.rest + data).split(b"\n")
        for line in lines:
            said = json.loads(line)
            if "result" in said:
                self.result = said
            else:
                told(self.name, said)

    def finish(self) -> dict[str, Any]:
        """Return its result; a process that ended without one is a result too."""
        code = self.process.wait()
        assert self.process.stdin is not None
        self.process.stdin.close()
        if not self.result:
            self.result = {
                "result": "failed",
                "error": f"its process ended {_ending(code)}{self._last()}",
            }
        return self.result

    def _last(self) -> str:
        """Return the last line that it wrote to stderr."""
        self.errors.seek(0)
        lines = self.errors.read().decode(errors="replace").split("\n")
        last = next((line.strip() for line in reversed(lines) if line.strip()), "")
        return f": {last}" if last else ""


def run(
    requests: Iterable[tuple[str, Mapping[str, Any]]],
    root: Path,
    *,
    jobs: int,
    told: Told,
    keep_open: Iterable[int] = (),
) -> Generator[tuple[str, dict[str, Any]], None, None]:
    """Give each request's result as it comes.

    Args:
        requests: By name.
        root: Folder that they run in.
        jobs: How many run at once.
        told: Told what workers report, by name.
        keep_open: Files that stay open until the last worker has ended: a lock.

    Raises:
        OutputError: A process cannot be started.
    """
    waiting = list(reversed(list(requests)))
    with selectors.DefaultSelector() as running, ExitStack() as files:
        files.callback(lambda: _stop([key.data for key in running.get_map().values()]))
        while waiting or running.get_map():
            while waiting and len(running.get_map()) < jobs:
                name, request = waiting.pop()
                errors = files.enter_context(tempfile.TemporaryFile())
                worker = _Worker(name, _start(errors, root, jobs, tuple(keep_open)), errors)
                running.register(_pipe(worker), selectors.EVENT_READ, worker)
                worker.ask(request)
                told(name, {"stage": "start"})
            for key, _ in running.select():
                if data := os.read(key.fd, 1 << 16):
                    key.data.take(data, told)
                    continue
                running.unregister(key.fileobj)
                _pipe(key.data).close()
                yield key.data.name, key.data.finish()


def _start(
    errors: IO[bytes], root: Path, jobs: int, keep_open: tuple[int, ...]
) -> subprocess.Popen[bytes]:
    threads = str(max(1, (os.cpu_count() or 1) // jobs))
    pipe = subprocess.PIPE
    try:
        return subprocess.Popen(
            _COMMAND, stdin=pipe, stdout=pipe, stderr=errors, cwd=root, pass_fds=keep_open,
            env={"OMP_NUM_THREADS": threads, **os.environ}, start_new_session=True,
        )  # fmt: skip
    except OSError as error:
        raise OutputError(f"no process can be started: {error.strerror}") from error


def _pipe(worker: _Worker) -> IO[bytes]:
    assert worker.process.stdout is not None
    return worker.process.stdout


def _stop(workers: list[_Worker]) -> None:
    """Interrupt workers, which tidy up; end those that take long."""
    for worker in workers:
        worker.process.send_signal(signal.SIGINT)
    for worker in workers:
        try:
            worker.process.wait(_SECONDS_TO_END)
        except subprocess.TimeoutExpired:
            worker.process.kill()
            worker.process.wait()
        for stream in (worker.process.stdin, worker.process.stdout):
            if stream is not None:
                stream.close()


def _ending(code: int) -> str:
    if code >= 0:
        return f"with code {code}"
    try:
        return f"by {signal.Signals(-code).name}"
    except ValueError:
        return f"by signal {-code}"
