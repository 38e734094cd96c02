"""Imports of TVM, which takes seconds and is an extra: first when something is compiled."""

from __future__ import annotations

from typing import Any

from qcompile.compiler.ir.errors import MissingPackageError, UnsupportedError


def load_tvm() -> Any:
    """Return the package with the compiler in it.

    Raises:
        MissingPackageError: It is not installed.
    """
    try:
        import tvm
        import tvm.relax
        import tvm.s_tir
    except ImportError as error:
        raise MissingPackageError("apache-tvm", "tvm") from error
    return tvm


def refusal(reason: str) -> UnsupportedError:
    """Return the error of a model that TVM, or a converter of ours for it, does not take."""
    return UnsupportedError(
        f"TVM cannot import this model: {reason}; use --format onnx, or fix its free axes"
    )


def tir() -> Any:
    """Return the module whose functions make TIR while an ``IRBuilder`` is active."""
    load_tvm()
    from tvm.script.ir_builder import tirx

    return tirx
