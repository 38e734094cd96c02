"""Calibration data as the user gives it -> ``Samples``; names, shapes, dtypes and values are checked.

``calibration_tables.py`` reads it. The manifest says where it is from, ``random`` too; files are read batch
by batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qcompile.compiler.frontend.calibration_tables import Rows, Table, read_table
from qcompile.compiler.ir.errors import CalibrationError
from qcompile.compiler.ir.graph import Graph
from qcompile.passes.calibration.samples import Batch, Samples

BATCH = 32
MINIMUM = 8


def load_samples(
    graph: Graph,
    given: str | Path | Any,
    *,
    num_samples: int | None = None,
    seed: int = 0,
) -> Samples:
    """Return checked samples for a graph.

    Args:
        graph: Whose inputs they must fit.
        given: A path, ``random``, or what ``calibration()`` returns.
        num_samples: Take so many, chosen by ``seed``, in their order; all by default.
        seed: For the choice, and for random data.

    Raises:
        CalibrationError: Says all that does not fit.
    """
    if num_samples is not None and num_samples < MINIMUM:
        raise CalibrationError(
            f"--num-samples {num_samples} is below {MINIMUM}, too few to mean anything"
        )
    table = read_table(graph, given, num_samples, seed)
    _check_number(table, num_samples)
    chosen = _choose(table.count, num_samples, seed)
    size = _batch_size(graph)
    if _fixed_batch(graph) and (rest := len(chosen) % size):
        raise CalibrationError(
            f"{table.source}: {len(chosen)} samples do not fill batches of {size}, the model's "
            f"fixed batch size; give a multiple (--num-samples {len(chosen) - rest or size}) or a "
            "free batch axis (dynamic_shapes())"
        )
    groups = [chosen[i : i + size] for i in range(0, len(chosen), size)]
    batches = _Batches(table.rows, groups)
    _check(graph, batches, table.source)
    return Samples(batches, len(chosen), table.source)


class _Batches(Sequence[Batch]):
    """Reads a batch at each look-up."""

    def __init__(self, rows: Rows, groups: Sequence[Sequence[int]]) -> None:
        self._rows, self._groups = rows, groups

    def __getitem__(self, index: Any) -> Any:
        return self._rows(self._groups[index])

    def __len__(self) -> int:
        return len(self._groups)


def _check_number(table: Table, wanted: int | None) -> None:
    if table.count == 0:
        raise CalibrationError(f"{table.source} holds no samples")
    if table.count < MINIMUM:
        raise CalibrationError(
            f"{table.source} holds {table.count} sample(s); ranges from fewer than {MINIMUM} mean "
            "nothing: give some hundred that are like what the model will see"
        )
    if wanted is not None and wanted > table.count:
        raise CalibrationError(f"--num-samples {wanted}, but {table.source} holds {table.count}")


def _check(graph: Graph, batches: Sequence[Batch], source: str) -> None:
    for index in range(len(batches)):
        found = [_problem(graph, name, value) for name, value in batches[index].items()]
        if problems := [p for p in found if p]:
            raise CalibrationError(
                f"{source} does not fit the model: {'; '.join(problems)} (batch {index})"
            )


def _problem(graph: Graph, name: str, value: Tensor) -> str | None:
    example, free = graph.inputs[name], graph.dynamic.get(name, {})
    if value.dim() != example.dim() or any(
        value.shape[a] != example.shape[a] and a not in free for a in range(1, value.dim())
    ):
        sizes = [free[a].name if a in free else str(s) for a, s in enumerate(example.shape)][1:]
        shape = "x".join(map(str, value.shape[1:])) or "()"
        return f"a sample of {name} is {shape}, the model takes {'x'.join(sizes) or '()'}"
    if value.dtype != example.dtype:
        return f"{name} is {_dtype(value)}, the model takes {_dtype(example)}"
    if value.is_floating_point() and not bool(torch.isfinite(value).all()):
        return f"{name} has NaN or infinite values"
    return None


def _dtype(value: Tensor) -> str:
    return str(value.dtype).removeprefix("torch.")


def _choose(count: int, wanted: int | None, seed: int) -> list[int]:
    if wanted is None or wanted == count:
        return list(range(count))
    picked = np.random.default_rng(seed).choice(count, wanted, replace=False)
    return sorted(int(i) for i in picked)


def _fixed_batch(graph: Graph) -> bool:
    return not all(0 in graph.dynamic.get(name, {}) for name in graph.inputs)


def _batch_size(graph: Graph) -> int:
    if _fixed_batch(graph):
        return int(next(iter(graph.inputs.values())).shape[0])
    limits = [graph.dynamic[name][0].max or BATCH for name in graph.inputs]
    return min(BATCH, *limits)
