"""A build in a process of its own that has at once what this one has loaded: its imports, and the model.

Linux alone forks: elsewhere system libraries do not survive it (Apple's frameworks abort), and a build
runs in the process that loaded its model, which then ends.
"""

from __future__ import annotations

import atexit
import ctypes
import multiprocessing
import os
import select
import shutil
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path

CAN_FORK = sys.platform == "linux"
STOPPED = 130
_PR_SET_PDEATHSIG = 1


@dataclass
class Watch:
    """Ends this process, and what it forked, when whoever asks for its work is gone.

    Args:
        pipe: From that process, which closes it only by its own end.
        temporary: Folder of the work that is under way.
        fork: The process that does it.
    """

    pipe: int
    temporary: Path | None = None
    fork: BaseProcess | None = None

    def start(self) -> None:
        """Begin to watch."""
        threading.Thread(target=self._wait, daemon=True).start()

    def run(self, work: Callable[[], object]) -> int:
        """Do work in a fork; return its exit code, negative for a signal."""
        context = multiprocessing.get_context("fork")
        self.fork = context.Process(target=_child, args=(work, os.getpid()))
        interrupted: list[int] = []
        before = signal.signal(signal.SIGINT, lambda number, frame: interrupted.append(number))
        self.fork.start()
        self.fork.join()
        if interrupted:  # the fork was too, and has tidied up
            os._exit(STOPPED)
        signal.signal(signal.SIGINT, before)
        assert self.fork.exitcode is not None
        return self.fork.exitcode

    def _wait(self) -> None:
        """Wait until the pipe has no writer; what is in it is not read."""
        poll = select.poll()
        poll.register(self.pipe, 0)
        poll.poll()
        if self.fork is not None and self.fork.pid is not None:
            with suppress(ProcessLookupError):
                os.kill(self.fork.pid, signal.SIGKILL)
            wait([self.fork.sentinel])
        if self.temporary is not None:
            shutil.rmtree(self.temporary, ignore_errors=True)
            with suppress(OSError):  # others are in it, which end too: the last one can
                self.temporary.parent.rmdir()
        os._exit(STOPPED)


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
