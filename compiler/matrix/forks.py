"""A build in a process of its own that has at once what this one has loaded: its imports, and the model.

Linux alone forks: elsewhere system libraries do not survive it (Apple's frameworks abort), and a build
runs in the process that loaded its model, which then ends.
"""

from __future__ import annotations

import atexit
import ctypes
import multiprocessing
import os
import selectors
import signal
import sys
import threading
from collections.abc import Callable

CAN_FORK = sys.platform == "linux"
STOPPED = 130
_PR_SET_PDEATHSIG = 1
_BLOCK = 1 << 16


class Requests:
    """Lines of a pipe; its end is the end of all work.

    Args:
        pipe: Its file descriptor.
    """

    def __init__(self, pipe: int) -> None:
        self.pipe = pipe
        self._rest = b""

    def next(self) -> bytes | None:
        """Wait for a line and return it; ``None`` at the end."""
        while b"\n" not in self._rest:
            if not self.read():
                return None
        line, _, self._rest = self._rest.partition(b"\n")
        return line

    def read(self) -> bool:
        """Read what there is; return whether the pipe is open."""
        data = os.read(self.pipe, _BLOCK)
        self._rest += data
        return bool(data)


def run(work: Callable[[], object], requests: Requests, tidy: Callable[[], None]) -> int:
    """Do work in a process that ends with this one; return its exit code, negative for a signal.

    Args:
        work: Done in the other process.
        requests: At the end of which this process ends, and the other.
        tidy: Called before that.
    """
    process = multiprocessing.get_context("fork").Process(target=_child, args=(work, os.getpid()))
    interrupted: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: interrupted.append(number))
    process.start()
    with selectors.DefaultSelector() as waited:
        waited.register(process.sentinel, selectors.EVENT_READ)
        waited.register(requests.pipe, selectors.EVENT_READ)
        while process.is_alive():
            for key, _ in waited.select():
                if key.fd == requests.pipe and not requests.read():
                    process.kill()
                    process.join()
                    tidy()
                    os._exit(STOPPED)
    process.join()
    if interrupted:  # the other was too, and has tidied up
        os._exit(STOPPED)
    signal.signal(signal.SIGINT, before)
    assert process.exitcode is not None
    return process.exitcode


def end_with(requests: Requests, tidy: Callable[[], None]) -> None:
    """Let this process tidy up and end when its requests do."""

    def wait() -> None:
        while requests.read():
            pass
        tidy()
        os._exit(STOPPED)

    threading.Thread(target=wait, daemon=True).start()


def _child(work: Callable[[], object], parent: int) -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before that
        os._exit(STOPPED)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        work()
    except KeyboardInterrupt:
        sys.exit(STOPPED)
    finally:
        atexit._run_exitfuncs()  # multiprocessing runs none: temporary folders would stay
