"""Requests to workers, some at a time: a process a model, which forks for each request (``worker.py``)."""

from __future__ import annotations

import json
import os
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from qcompile.compiler.ir.errors import OutputError
from qcompile.compiler.matrix.worker import END

SECONDS_TO_END = 10
_COMMAND = (sys.executable, "-P", "-m", "qcompile.compiler.matrix.worker")
_SECONDS_BETWEEN = 0.5  # Ray interrupts a task between two steps of Python, and no call that waits
Told = Callable[[str, Mapping[str, Any]], None]
Named = tuple[str, Mapping[str, Any]]


@dataclass
class _Worker:
    """A process and what it has to do.

    Args:
        process: With pipes.
        errors: Gets its stderr.
        queue: Requests about one model; the first is under way.
        temporary: Folder for temporary folders of requests.
        folder: That of the first request.
        rest: Of a line that it has not finished.
        result: Of the first request.
        start: Length of ``errors`` when that began.
    """

    process: subprocess.Popen[bytes]
    errors: IO[bytes]
    queue: deque[Named]
    temporary: str
    folder: str = ""
    rest: bytes = b""
    result: dict[str, Any] = field(default_factory=dict)
    start: int = 0

    def ask(self, told: Told) -> None:
        """Send it the first request; its stdin stays open, or it would end."""
        name, request = self.queue[0]
        self.start = os.fstat(self.errors.fileno()).st_size
        self.folder = tempfile.mkdtemp(dir=self.temporary)
        told(name, {"stage": "start"})
        self._send({**request, "temporary": self.folder})

    def take(self, data: bytes, told: Told) -> int | None:
        """Take what it wrote: reports, the result, and at last the exit code, which is returned."""
        *lines, self.rest = (self.rest + data).split(b"\n")
        code = None
        for line in lines:
            said = json.loads(line)
            if "ended" in said:
                code = int(said["ended"])
            elif "result" in said:
                self.result = said
            else:
                told(self.queue[0][0], said)
        return code

    def finish(self, code: int) -> tuple[str, dict[str, Any]]:
        """Return the name and result of a request that is done; one without a result failed."""
        name, _ = self.queue.popleft()
        result, self.result = self.result, {}
        shutil.rmtree(self.folder, ignore_errors=True)
        if not result:
            error = f"its process ended {_ending(code)}{self._last()}"
            result = {"result": "failed", "error": error, "killed": code == -signal.SIGKILL}
        return name, result

    def end(self) -> None:
        """Let it end, and wait for that."""
        self._send({"verb": END})
        self.process.wait()
        self.close()

    def close(self) -> None:
        """Close its pipes."""
        for stream in (self.process.stdin, self.process.stdout):
            assert stream is not None
            with suppress(BrokenPipeError):
                stream.close()

    def _send(self, request: Mapping[str, Any]) -> None:
        pipe = self.process.stdin
        assert pipe is not None
        with suppress(BrokenPipeError):  # it has ended: its exit code will tell
            pipe.write(json.dumps(request).encode() + b"\n")
            pipe.flush()

    def _last(self) -> str:
        """Return the last line that it wrote to stderr for the request."""
        self.errors.seek(self.start)
        lines = self.errors.read().decode(errors="replace").split("\n")
        last = next((line.strip() for line in reversed(lines) if line.strip()), "")
        return f": {last}" if last else ""


def run(
    requests: Iterable[Named],
    root: Path,
    *,
    jobs: int,
    told: Told,
    keep_open: Iterable[int] = (),
) -> Generator[tuple[str, dict[str, Any]], None, None]:
    """Give each request's result as it comes; what workers leave in the temporary folder is removed.

    Args:
        requests: By name; those of one ``path``, a model, share a process.
        root: Folder that they run in.
        jobs: How many run at once.
        told: Told what workers report, by name.
        keep_open: Files that stay open until the last worker has ended: a lock.

    Raises:
        OutputError: A process cannot be started.
    """
    with selectors.DefaultSelector() as running, ExitStack() as files:
        temporary = files.enter_context(_temporary())
        pool = _Pool(
            root, jobs, told, tuple(keep_open), temporary, files, running, _by_model(requests)
        )
        files.callback(pool.stop)
        while pool.start():
            for key, _ in running.select(_SECONDS_BETWEEN):
                worker: _Worker = key.data
                data = os.read(key.fd, 1 << 16)
                code = worker.take(data, told) if data else worker.process.wait()
                if code is not None:
                    yield worker.finish(code)
                    pool.go_on(worker, alive=bool(data))


@dataclass
class _Pool:
    root: Path
    jobs: int
    told: Told
    keep_open: tuple[int, ...]
    temporary: str
    files: ExitStack
    running: selectors.BaseSelector
    waiting: deque[deque[Named]]

    @property
    def workers(self) -> list[_Worker]:
        return [key.data for key in self.running.get_map().values()]

    def start(self) -> bool:
        """Start as many workers as there may be; return whether any run."""
        while len(self.workers) < self.jobs and (queue := self._next()):
            worker = _Worker(*self._process(), queue, self.temporary)
            assert worker.process.stdout is not None
            self.running.register(worker.process.stdout, selectors.EVENT_READ, worker)
            worker.ask(self.told)
        return bool(self.workers)

    def go_on(self, worker: _Worker, *, alive: bool) -> None:
        """Give a worker its next request, if it has ended to another one; without any let it end."""
        if alive and worker.queue:
            worker.ask(self.told)
            return
        assert worker.process.stdout is not None
        self.running.unregister(worker.process.stdout)
        worker.end()
        if worker.queue:
            self.waiting.appendleft(worker.queue)

    def stop(self) -> None:
        """Interrupt workers and their forks, which tidy up; end those that take long."""
        for worker in self.workers:
            with suppress(ProcessLookupError):
                os.killpg(worker.process.pid, signal.SIGINT)
        for worker in self.workers:
            try:
                worker.process.wait(SECONDS_TO_END)
            except subprocess.TimeoutExpired:
                worker.process.kill()
                worker.process.wait()
            worker.close()

    def _process(self) -> tuple[subprocess.Popen[bytes], IO[bytes]]:
        errors = self.files.enter_context(tempfile.TemporaryFile())  # noqa: SIM115  (it is one)
        threads, pipe = str(max(1, (os.cpu_count() or 1) // self.jobs)), subprocess.PIPE
        try:
            return subprocess.Popen(
                _COMMAND, stdin=pipe, stdout=pipe, stderr=errors, cwd=self.root,
                pass_fds=self.keep_open, env={"OMP_NUM_THREADS": threads, **os.environ},
                start_new_session=True,
            ), errors  # fmt: skip
        except OSError as error:
            raise OutputError(f"no process can be started: {error.strerror}") from error

    def _next(self) -> deque[Named] | None:
        """Return what a new worker has to do: a model, or half of what the longest queue waits for."""
        if self.waiting:
            return self.waiting.popleft()
        longest = max((w.queue for w in self.workers), key=len, default=deque())
        taken = [longest.pop() for _ in range(len(longest) // 2)]
        return deque(reversed(taken)) or None


def _temporary() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="qcompile-", ignore_cleanup_errors=True)


def _by_model(requests: Iterable[Named]) -> deque[deque[Named]]:
    found: dict[str, deque[Named]] = {}
    for name, request in requests:
        found.setdefault(request["path"], deque()).append((name, request))
    return deque(found.values())


def _ending(code: int) -> str:
    if code >= 0:
        return f"with code {code}"
    try:
        return f"by {signal.Signals(-code).name}"
    except ValueError:
        return f"by signal {-code}"
