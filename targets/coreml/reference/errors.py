"""What the reference interpreter refuses."""

from __future__ import annotations

from qcompile.compiler.ir.errors import QCompileError


class PackageError(QCompileError):
    """A package that cannot be read: damaged, cut off, or no ML Program."""


class ExecutionError(QCompileError):
    """A program that cannot be run: an op that is not known, or values that the op forbids."""
