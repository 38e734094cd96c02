"""A program that measures candidates: JSON lines in, JSON lines out; started by ``tuning_measure.py``.

It is a process of its own because a candidate may take minutes to compile, or crash. It imports nothing of
qcompile, and ends when its parent does.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
from collections.abc import Sequence
from typing import Any

MIN_REPEAT_MS = 20
REPEAT = 3


def main() -> None:
    """Answer each line of stdin until it ends."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        import tvm
        import tvm.s_tir

        answers.write("{}\n")
        answers.flush()
        for line in sys.stdin:
            answers.write(json.dumps(_answer(tvm, json.loads(line))) + "\n")
            answers.flush()


def _answer(tvm: Any, request: dict[str, Any]) -> dict[str, Any]:
    try:
        return {"seconds": measure(tvm, request["module"], request["target"])}
    except Exception as error:  # a candidate may fail in any way
        return {"error": (str(error).splitlines() or [type(error).__name__])[0]}


def measure(tvm: Any, text: str, target: str) -> float:
    """Return the median of the seconds that a module's ``main`` takes.

    Args:
        tvm: The package.
        text: The module as TVM's JSON.
        target: As JSON.
    """
    prepacked = tvm.s_tir.transform.RemoveWeightLayoutRewriteBlock(skip_tensor_rewrite=True)
    module = prepacked(tvm.ir.load_json(text))
    arguments = _arguments(tvm, module["main"])
    library = tvm.tirx.build(module, tvm.target.Target(json.loads(target)))
    timed = (
        tvm.runtime.Executable(library)
        .jit()
        .time_evaluator("main", tvm.cpu(), number=1, repeat=REPEAT, min_repeat_ms=MIN_REPEAT_MS)
    )
    return float(sorted(timed(*arguments).results)[REPEAT // 2])


def _arguments(tvm: Any, function: Any) -> Sequence[Any]:
    """Return values: random in float, zero otherwise, as integers may be indices."""
    import numpy as np

    random = np.random.default_rng(0)
    found = []
    for parameter in function.params:
        shape, dtype = [int(s) for s in parameter.ty.shape], str(parameter.ty.dtype.dtype)
        is_float = dtype.startswith("float")
        values = random.standard_normal(shape) if is_float else np.zeros(shape)
        found.append(tvm.runtime.tensor(values.astype(dtype)))
    return found


if __name__ == "__main__":
    main()
