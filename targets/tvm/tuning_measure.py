"""Starts ``tuning_worker.py``, hands it candidates, and replaces it where it hangs or dies."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any

from qcompile.compiler.ir.errors import TargetError

START_S = 120.0
LIMIT_S = 20.0
"""Seconds for building and measuring one candidate; what takes longer is no good one."""
_PROGRAM = Path(__file__).with_name("tuning_worker.py")


class Measurer:
    """Measures modules one at a time, on one thread; a context that leaves no process behind.

    Args:
        target: TVM's, as JSON.
    """

    def __init__(self, target: str) -> None:
        self.target = target
        self.error = "it takes too long"
        self._process: subprocess.Popen[bytes] | None = None
        self._read = b""

    def __enter__(self) -> Measurer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stop()

    def measure(self, module: str) -> float | None:
        """Return the seconds of a call, or ``None`` if the candidate fails or takes too long.

        Args:
            module: TVM's JSON of a module with ``main``.

        Raises:
            TargetError: The program that measures cannot be started.
        """
        process = self._process or self._start()
        assert process.stdin is not None
        request = json.dumps({"module": module, "target": self.target}) + "\n"
        try:
            process.stdin.write(request.encode())
            process.stdin.flush()
        except OSError:
            self._stop()
            return None
        answer = self._answer(process, LIMIT_S)
        if answer is None:
            self._stop()
            return None
        self.error = answer.get("error", self.error)
        seconds = answer.get("seconds")
        return float(seconds) if seconds else None

    def _start(self) -> subprocess.Popen[bytes]:
        # A session of its own: Ctrl-C in the terminal reaches the compiler alone, which ends this one.
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(_PROGRAM)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            env={**os.environ, "TVM_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
        )
        self._read = b""
        if self._answer(self._process, START_S) is None:
            self._stop()
            raise TargetError(f"{_PROGRAM.name}, which measures for --tune, cannot start TVM here")
        return self._process

    def _answer(self, process: subprocess.Popen[bytes], limit: float) -> dict[str, Any] | None:
        """Return the next line, or ``None`` if the process ends or the time is over."""
        assert process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            while b"\n" not in self._read:
                if not selector.select(limit):
                    return None
                part = os.read(process.stdout.fileno(), 65536)
                if not part:
                    return None
                self._read += part
        line, _, self._read = self._read.partition(b"\n")
        found: dict[str, Any] = json.loads(line)
        return found

    def _stop(self) -> None:
        if self._process is None:
            return
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                _close(stream)
        self._process = None


def _close(stream: Any) -> None:
    with contextlib.suppress(OSError):  # what a dead worker did not read
        stream.close()
