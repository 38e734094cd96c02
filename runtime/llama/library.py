"""The library itself: loaded once, and silent but for reasons of failures and sizes that are asked for."""

from __future__ import annotations

import ctypes
import functools
from collections import deque
from typing import Any

from qcompile.runtime.errors import MissingPackageError

PACKAGE = "llama-cpp-python"
_ERROR = 4
"""ggml's log level of errors; 5 goes on with the line before."""
_SIZE = "size ="
_said: deque[str] = deque(maxlen=8)
_sizes: deque[str] = deque(maxlen=64)


@functools.cache
def library() -> Any:
    """Return the module of C functions; llama.cpp prints nothing from then on.

    Raises:
        MissingPackageError: llama-cpp-python is not installed, or its library does not load.
    """
    try:
        from llama_cpp import llama_cpp as functions
    except (ImportError, OSError, RuntimeError) as error:
        raise MissingPackageError(PACKAGE, "gguf") from error
    functions.llama_log_set(_listener(functions), ctypes.c_void_p(0))
    functions.llama_backend_init()
    return functions


def listen() -> None:
    """Hear llama.cpp's errors of the next call, whoever else in this process listened before.

    It prints nothing, and what it said before is forgotten.
    """
    functions = library()
    functions.llama_log_set(_listener(functions), ctypes.c_void_p(0))
    _said.clear()
    _sizes.clear()


def version() -> str:
    """Return the version of llama-cpp-python, which stands for that of llama.cpp in it."""
    import llama_cpp

    return str(llama_cpp.__version__)


@functools.cache
def _listener(functions: Any) -> Any:
    """Return a callback, which must outlive the library, that keeps the errors and sizes it is told."""

    def keep(level: int, text: bytes, _: Any) -> None:
        line = text.decode("utf-8", "replace").strip()
        if level == _ERROR:
            _said.append(line)
        elif _SIZE in line:
            _sizes.append(line)

    return functions.llama_log_callback(keep)


def reason() -> str:
    """Return why the last call failed, in llama.cpp's words: the first error that it logged."""
    words = (line.rpartition("error loading model: ")[2] for line in _said)
    return next(filter(None, words), "no reason given")


def sizes() -> list[str]:
    """Return the lines of llama.cpp's log that told a size since ``listen``."""
    return list(_sizes)
