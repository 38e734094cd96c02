"""The exceptions of qcompile; ``QCompileError`` is the root of all that are meant for users.

QCompileError                 what, all of which, what would be possible, what to do
├── BundleError               a bundle that is truncated, edited, too new, or no bundle
├── InputError                inputs of ``Session.run`` that do not fit the model
└── MissingPackageError       an engine or an extra that is not installed
    (the compiler's own are in ``compiler/ir/errors.py``)
"""

from __future__ import annotations


class QCompileError(Exception):
    """An error that is meant for the user: its text is the whole message."""


class BundleError(QCompileError):
    """A bundle cannot be read or trusted."""


class InputError(QCompileError):
    """Inputs do not fit the model's inputs."""


class MissingPackageError(QCompileError):
    """A package that this step needs is not installed."""

    def __init__(self, package: str, extra: str | None = None) -> None:
        command = f"pip install 'qcompile[{extra}]'" if extra else f"pip install {package}"
        super().__init__(
            f"this step needs the package {package!r}, which is not installed; run: {command}"
        )
        self.package = package
