"""What TVM schedules by itself in a module: which functions, how often they run, which can be tuned."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from qcompile.targets.tvm.tools import load_tvm
from qcompile.targets.tvm.tuning_batch import for_one_image

SCHEDULED = "tirx.is_scheduled"
"""TVM's mark of a function that nothing may schedule again; all kernels of ``kernels/`` have it."""
_BOOKKEEPING = ("global_symbol", "op_pattern")


@dataclass
class Task:
    """One function to tune, for one image, and who calls it.

    Args:
        key: Sixteen digits, the structural hash of the function.
        name: For people: ``conv2d_add_relu 1x16x8x8``.
        function: TIR without a schedule.
        calls: How often the model runs it.
        symbols: Functions of the module that are this one, or it for a free batch.
    """

    key: str
    name: str
    function: Any
    calls: int = 0
    symbols: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Tasks:
    """All that TVM schedules in a module.

    Args:
        tunable: In the order of the calls.
        free: Functions that cannot be tuned, as their sizes are free: calls by name.
    """

    tunable: list[Task]
    free: dict[str, int]

    @property
    def operators(self) -> int:
        """How many operators of the model they are."""
        return sum(task.calls for task in self.tunable) + sum(self.free.values())


def lowered(module: Any, target: Any, *, for_tuning: bool = False) -> Any:
    """Return a Relax module after TVM's own passes up to the TIR of fused operators.

    Args:
        module: As it was imported.
        target: TVM's.
        for_tuning: Mark the constants, which a schedule may have in any order.
    """
    tvm = load_tvm()
    from tvm.relax.backend.cpu_generic import pipeline

    passes = [*pipeline.library_dispatch_passes(target), *pipeline.legalize_passes(target)]
    if for_tuning:
        passes.append(tvm.relax.transform.AttachAttrLayoutFreeBuffers())
    with target:
        return tvm.transform.Sequential(passes)(module)


def tasks_of(module: Any) -> Tasks:
    """Return the tasks of a lowered module; none for what is scheduled by hand or moves no data."""
    found: dict[str, Task] = {}
    free: Counter[str] = Counter()
    for symbol, calls in _calls(module).items():
        function = module[symbol]
        if SCHEDULED in function.attrs or _is_reshape(function):
            continue
        single = for_one_image(function)
        if single is None:
            free[_readable(symbol)] += calls
            continue
        plain = plain_function(single)
        task = found.setdefault(_hash(plain), Task(_hash(plain), _named(symbol, plain), plain))
        task.calls += calls
        task.symbols.append(symbol)
    return Tasks(list(found.values()), dict(free))


def plain_function(function: Any) -> Any:
    """Return a function without what the passes before noted about it."""
    for name in _BOOKKEEPING:
        function = function.without_attr(name)
    return function


def module_of(function: Any) -> Any:
    """Return a module that holds one function, ``main``."""
    return load_tvm().IRModule({"main": function.with_attr("global_symbol", "main")})


def _calls(module: Any) -> dict[str, int]:
    """Return how often each TIR function is called, in the order of the first calls."""
    relax = load_tvm().relax
    counted: dict[str, int] = {}

    def visit(node: Any) -> None:
        if isinstance(node, relax.Call) and getattr(node.op, "name", "") == "relax.call_tir":
            symbol = node.args[0].name_hint
            counted[symbol] = counted.get(symbol, 0) + 1

    for symbol in sorted(module.functions, key=lambda s: s.name_hint):
        if isinstance(module[symbol], relax.Function):
            relax.analysis.post_order_visit(module[symbol], visit)
    return counted


def _is_reshape(function: Any) -> bool:
    return bool(load_tvm().relax.analysis.has_reshape_pattern(function))


def _hash(function: Any) -> str:
    import tvm_ffi

    return f"{tvm_ffi.structural_hash(function) & (1 << 64) - 1:016x}"


def _named(symbol: str, function: Any) -> str:
    shape = "x".join(str(int(size)) for size in function.params[-1].ty.shape)
    return f"{_readable(symbol)} {shape}"


def _readable(symbol: str) -> str:
    return re.sub(r"(?<=[a-z])\d+(?=_|$)", "", symbol.removeprefix("fused_"))
