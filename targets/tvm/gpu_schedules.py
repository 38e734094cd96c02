"""How TVM's own operators are given to the threads of a GPU: its ready-made rules, in its own pipeline."""

from __future__ import annotations

from typing import Any

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
    ]

    def run(module: Any, context: Any) -> Any:
        with target:
            return tvm.transform.Sequential(passes)(module)

    return tvm.transform.module_pass(run, opt_level=0)


def rules() -> list[Any]:
    """Return TVM's rules in its order, each with one step after the product and none that raises."""
    from tvm.s_tir.dlight import gpu

    first = (gpu.Matmul(), gpu.GEMV(), gpu.Reduction(), gpu.GeneralReduction())
    return [*map(_attempt, first), gpu.Fallback()]


def _attempt(rule: Any) -> Any:
    """Return a rule that leaves to the next what it cannot schedule.

    A rule expects at most one step after a reduction; here steps that follow each other are made one.
    """
    from tvm.s_tir.dlight import ScheduleRule
    from tvm.s_tir.schedule import ScheduleError

    class Attempt(ScheduleRule):  # type: ignore[misc]
        def apply(self, func: Any, target: Any, tunable: bool) -> Any:
            try:
                return rule.apply(_merged(func), target, tunable)
            except ScheduleError:
                return None

    return Attempt()


def _merged(func: Any) -> Any:
    """Return a function whose steps after its only reduction are one step."""
    from tvm import s_tir
    from tvm.s_tir.schedule import ScheduleError

    schedule = s_tir.Schedule(func)
    blocks = schedule.get_child_blocks(schedule.get_sblock("root"))
    steps = [b for b in blocks if all(v.iter_type == v.DataPar for v in schedule.get(b).iter_vars)]
    if len(steps) != len(blocks) - 1:
        return func
    for step in steps:
        if schedule.get_producers(step):
            try:
                schedule.compute_inline(step)
            except ScheduleError:
                continue  # it makes the function's result
    return schedule.mod["main"]
