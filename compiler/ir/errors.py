"""The compiler's exceptions, each a ``QCompileError`` (``runtime/errors.py`` draws the root).

QCompileError
├── ModelError         MODEL cannot be loaded or exported
├── CalibrationError   calibration data that is missing, wrong or too small
├── TargetError        a target, format or precision that does not exist or does not fit
├── UnsupportedError   ops or dtypes that an emitter cannot store
├── PassError          a pass failed or broke its contract: a defect of qcompile
├── OutputError        the bundle cannot be written where it was asked for
├── RemoteError        a URL that cannot be read
├── ProjectError       qcompile.toml or qcompile.lock is wrong; a line for each thing
└── GateError          a bundle was built, and a gate refused it (exit code 1)
    └── BudgetError    no plan keeps the limits, so nothing was built (exit code 1)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from qcompile.runtime.errors import MissingPackageError, QCompileError

__all__ = [
    "BudgetError",
    "CalibrationError",
    "GateError",
    "MissingPackageError",
    "ModelError",
    "OutputError",
    "PassError",
    "ProjectError",
    "QCompileError",
    "RemoteError",
    "TargetError",
    "UnsupportedError",
]


class ModelError(QCompileError):
    """The model cannot be loaded or exported."""


class CalibrationError(QCompileError):
    """Calibration data is missing, does not fit the model, or means nothing."""


class TargetError(QCompileError):
    """A target, format or precision is unknown or does not fit the others."""


class UnsupportedError(QCompileError):
    """The graph holds something that the emitter cannot store."""


class PassError(QCompileError):
    """A pass failed or broke its contract; the graph's text is attached as a note."""


class OutputError(QCompileError):
    """The bundle cannot be written to the place that was asked for."""


class RemoteError(QCompileError):
    """A URL is of no kind that is known, or what it names cannot be read; the text has no secrets of it."""


class ProjectError(QCompileError):
    """``qcompile.toml`` or ``qcompile.lock`` is wrong; a line for each thing that is."""


class GateError(QCompileError):
    """A bundle was built and a gate refused it; it is kept beside as ``NAME.qc.rejected``.

    Args:
        message: Each gate that failed, and by how much.
        bundle: The rejected ``Bundle``.
    """

    def __init__(self, message: str, bundle: object = None) -> None:
        super().__init__(message)
        self.bundle = bundle


class BudgetError(GateError):
    """No plan keeps the limits that the user gave; nothing was built.

    Args:
        message: What is not possible, and what would be.
        nearest: For each limit, what it would have to be if the others were kept, and a plan that keeps it.
    """

    def __init__(self, message: str, nearest: Sequence[Mapping[str, Any]] = ()) -> None:
        super().__init__(message)
        self.nearest = tuple(nearest)
