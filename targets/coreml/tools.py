"""coremltools, imported without its noise."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from typing import Any

from qcompile.compiler.ir.errors import MissingPackageError


def load_coremltools() -> Any:
    """Return the module ``coremltools``.

    Raises:
        MissingPackageError: The extra ``coreml`` is not installed.
    """
    try:
        with quiet():
            import coremltools
    except ImportError as error:
        raise MissingPackageError(error.name or "coremltools", "coreml") from error
    return coremltools


@contextmanager
def quiet() -> Iterator[None]:
    """Hold back what coremltools logs, warns about and draws: missing frameworks, versions, bars."""
    disabled = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
