"""How TVM's own operators are given to the threads of a GPU: its ready-made rules, in its own pipeline."""

from __future__ import annotations

import importlib
import inspect
from typing import Any

from qcompile.targets.tvm import shape_functions
from qcompile.targets.tvm.tools import load_tvm


def pipeline(target: Any) -> Any:
    """Return the pass that takes a Relax module to what the virtual machine runs on a GPU.

    Args:
        target: TVM's target, with the limits of the GPU.
    """
    tvm = load_tvm()
    from tvm.relax.backend.cuda import pipeline as cuda
    from tvm.s_tir import dlight

    transform = tvm.relax.transform
    passes = [
        *cuda.library_dispatch_passes(target),
        transform.LegalizeOps(),
        transform.AnnotateTIROpPattern(),
        transform.FoldConstant(),
        transform.FuseOps(),
        transform.FuseTIR(),
        dlight.ApplyDefaultSchedule(*rules()),
        *cuda.dataflow_lower_passes(target),
        *cuda.finalize_passes(target),
        shape_functions.in_order(),
    ]

    def run(module: Any, context: Any) -> Any:
        with target:
            return tvm.transform.Sequential(passes)(module)

    return tvm.transform.module_pass(run, opt_level=0)


def rules() -> list[Any]:
    """Return TVM's rules in its order, none of which raises."""
    _import_intrinsics()
    from tvm.s_tir.dlight import gpu

    first = (gpu.Matmul(), gpu.GEMV(), gpu.Reduction(), gpu.GeneralReduction())
    return [*map(_attempt, first), gpu.Fallback()]


def _attempt(rule: Any) -> Any:
    """Return a rule that leaves to the next what it cannot schedule."""
    from tvm.s_tir.dlight import ScheduleRule
    from tvm.s_tir.schedule import ScheduleError

    class Attempt(ScheduleRule):  # type: ignore[misc]
        def apply(self, func: Any, target: Any, tunable: bool) -> Any:
            try:
                return rule.apply(func, target, tunable)
            except ScheduleError:
                return None

    return Attempt()


def _import_intrinsics() -> None:
    """Import the instructions of tensor cores, which the rule for products asks for, in seconds.

    TVM asks ``inspect`` for the stack at each of them, and ``inspect`` tries all modules for each frame:
    half a minute where PyTorch is loaded. Meanwhile the module of a file is looked for once.
    """
    real: Any = inspect.getmodule
    known: dict[str, Any] = {}

    def remembered(thing: Any, file: str | None = None) -> Any:
        key = file or (thing.f_code.co_filename if inspect.isframe(thing) else None)
        if key is None:
            return real(thing, file)
        if key not in known:
            known[key] = real(thing, file)
        return known[key]

    inspect.getmodule = remembered  # type: ignore[assignment]
    try:
        importlib.import_module("tvm.s_tir.tensor_intrin.cuda")
    finally:
        inspect.getmodule = real
