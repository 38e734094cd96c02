"""MIL op name -> function. A function takes MIL's input names as keywords and returns the value.

The interpreter gives
- tensors as ``torch.Tensor`` of the dtype that the program says; but floating ones as float32 if the op
  is registered with ``floats="wide"`` (the default), which computes in float32 and is rounded once, to
  the dtype that the program declares for the result, as Core ML's kernels do;
- constant strings as ``str``; constant scalars as 0-d tensors (``int(x)``, ``float(x)``, ``bool(x)``);
- variadic inputs as a list, and no keyword for an input that the program leaves out, so the
  function's default is MIL's default;
- the keyword ``result``, to an op that names it: the declared ``TensorType`` (``dtype``, ``shape`` with
  ``None`` for a size that is not known) of the first output.

It checks dtype and shape of what comes back against what the program declares.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, TypeVar

import qcompile.targets.coreml.reference.ops as families

Function = TypeVar("Function", bound=Callable[..., Any])
Floats = Literal["wide", "as_is"]


@dataclass(frozen=True)
class Op:
    """How one MIL op is computed.

    Args:
        name: MIL's.
        run: The function.
        floats: Whether it gets float16 inputs as float32 (``wide``) or as they are.
        family: The module it stands in, for the table of ops.
        wants_result: Whether it is given the declared type of its result.
    """

    name: str
    run: Callable[..., Any]
    floats: Floats
    family: str
    wants_result: bool


_OPS: dict[str, Op] = {}


def op(*names: str, floats: Floats = "wide") -> Callable[[Function], Function]:
    """Register a function for one or more MIL ops."""

    def register(function: Function) -> Function:
        wants_result = "result" in inspect.signature(function).parameters
        for name in names:
            assert name not in _OPS, f"{name} is registered twice"
            family = function.__module__.rpartition(".")[2]
            _OPS[name] = Op(name, function, floats, family, wants_result)
        return function

    return register


@cache
def operators() -> dict[str, Op]:
    """Return all ops by name; the modules of ``reference/ops`` are found by themselves."""
    for module in pkgutil.iter_modules(families.__path__):
        importlib.import_module(f"{families.__name__}.{module.name}")
    return dict(sorted(_OPS.items()))
