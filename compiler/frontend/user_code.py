"""Where the user's code runs: what torch prints meanwhile, and which line an error is about."""

from __future__ import annotations

import contextlib
import io
import logging
import traceback
from collections.abc import Iterator
from pathlib import Path

import torch

import qcompile

_FOREIGN = tuple(str(Path(str(m.__file__)).parent) for m in (torch, qcompile))


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hold back what torch logs and prints when it refuses something: the error says it."""
    level = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(level)


def describe(error: BaseException) -> str:
    """Return what an error says and the user's line it is about: ``ValueError: no (at m.py:3)``."""
    line = user_line(error)
    place = f" (at {line.filename}:{line.lineno})" if line else ""
    return f"{first_line(error)}{place}"


def first_line(error: BaseException) -> str:
    """Return the kind of an error and the first line of its text."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def user_line(error: BaseException) -> traceback.FrameSummary | None:
    """Return the innermost frame that is neither torch's nor ours."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if not f.filename.startswith((*_FOREIGN, "<")) and f.line]
    return own[-1] if own else None
