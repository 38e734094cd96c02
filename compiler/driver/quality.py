"""The model file's own ``evaluate``, on PyTorch and on the artifact in its engine, and its gate."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from qcompile.compiler.driver import parity
from qcompile.compiler.frontend.load import Source
from qcompile.compiler.ir.errors import ModelError, QCompileError
from qcompile.compiler.ir.graph import Graph, is_dynamic
from qcompile.passes.calibration.parallel import each
from qcompile.runtime.manifest import Manifest
from qcompile.runtime.session import Session

if TYPE_CHECKING:
    from qcompile.compiler.driver.build import Build

Predict = Callable[[Mapping[str, Any]], Mapping[str, Any]]
PART = 32
"""Samples that one worker runs at a time, whatever the number of workers."""


def check_options(source: Source, max_drop: float | None, evaluate: bool) -> None:
    """Refuse a gate that cannot be measured.

    Raises:
        ModelError: ``--max-drop`` without an ``evaluate``.
    """
    if max_drop is not None and (source.evaluate is None or not evaluate):
        missing = (
            "--no-evaluate is given" if source.evaluate else f"{source.where} has no evaluate()"
        )
        raise ModelError(f"--max-drop needs evaluate(predict) in the model file, and {missing}")


def check_noise(work: Build) -> None:
    """Refuse a gate that two runs of ``evaluate`` on the same model do not keep.

    Raises:
        ModelError: Says what the runs gave.
    """
    limit = work.options.max_drop
    assert limit is not None
    first, second = before(work), metrics(work.source, float_predict(work))
    check_names(work.source, first, second)
    name = next(iter(first))
    if (apart := abs(first[name] - second[name])) > max(limit, 0.0):
        raise ModelError(
            f"evaluate() of {work.source.where} gave {name} {first[name]:g} and then {second[name]:g} "
            f"for the same float model: {apart:g} apart, more than --max-drop {limit:g} can tell; seed "
            "what is random in it, or judge more samples"
        )


def evaluate(work: Build, stage: Path, manifest: Manifest) -> Manifest:
    """Return the manifest with quality before and after, if the model can be evaluated."""
    if work.source.evaluate is None or not work.options.evaluate:
        return manifest
    first = before(work)
    after = metrics(work.source, engine_predict(work, stage))
    check_names(work.source, first, after)
    rows = {name: {"before": first[name], "after": after[name]} for name in first}
    gates = list(manifest.gates)
    if work.options.max_drop is not None:
        name = next(iter(rows))
        gates.append(_drop_gate(name, rows[name], work.options.max_drop))
    return dataclasses.replace(manifest, quality=rows, gates=tuple(gates))


def before(work: Build) -> Mapping[str, float]:
    """Return what the model's ``evaluate`` gives for PyTorch's own model; it is measured once a model."""
    if work.source.figures is None:
        work.source.figures = metrics(work.source, float_predict(work))
    return work.source.figures


def graph_predict(graph: Graph) -> Predict:
    """Return a graph in PyTorch as numpy in, numpy out."""

    def predict(arrays: Mapping[str, Any]) -> Mapping[str, Any]:
        inputs = {n: torch.from_numpy(np.ascontiguousarray(arrays[n])) for n in graph.inputs}
        first, *others = each(graph.run, _parts(graph, inputs))
        whole = {
            n: torch.cat([v, *(o[n] for o in others)]) if others else v for n, v in first.items()
        }
        return {name: value.numpy() for name, value in whole.items()}

    return predict


def _parts(graph: Graph, inputs: Mapping[str, torch.Tensor]) -> list[Mapping[str, torch.Tensor]]:
    """Return a batch in parts, one for each worker's turn, if inputs and outputs have a free first axis."""
    (last,) = graph.module.graph.find_nodes(op="output")
    outputs = [n.meta["val"].shape for n in last.all_input_nodes]
    dims = {graph.dynamic[n].get(0) if n in graph.dynamic else None for n in graph.inputs}
    is_free = len(dims) == 1 and None not in dims
    if not is_free or not all(shape and is_dynamic(shape[0]) for shape in outputs):
        return [inputs]
    split = [value.split(PART) for value in inputs.values()]
    return [dict(zip(inputs, part, strict=True)) for part in zip(*split, strict=True)]


def float_predict(work: Build) -> Predict:
    """Return PyTorch's own model as numpy in, numpy out."""

    def predict(arrays: Mapping[str, Any]) -> Mapping[str, Any]:
        inputs = {n: torch.from_numpy(np.ascontiguousarray(v)) for n, v in arrays.items()}
        outputs = parity.reference_outputs(work.source.module, work.source.graph, inputs)
        return {name: value.numpy() for name, value in outputs.items()}

    return predict


def engine_predict(work: Build, stage: Path) -> Predict:
    """Return the artifact in its engine as a function of the model's own inputs."""
    assert work.graph is not None
    graph, emitter = work.graph, work.target.emitter
    session = Session(stage, check_files=False, engine=emitter.engine_class())

    def predict(arrays: Mapping[str, Any]) -> Mapping[str, Any]:
        inputs = {n: torch.from_numpy(np.ascontiguousarray(arrays[n])) for n in graph.inputs}
        found = parity.engine_outputs(session, emitter.to_engine(graph, inputs), graph.outputs)
        return {name: value.numpy() for name, value in found.items()}

    return predict


def metrics(source: Source, predict: Predict) -> dict[str, float]:
    """Return what ``evaluate`` measures, by name.

    Raises:
        ModelError: It raises, or gives no finite number.
    """
    assert source.evaluate is not None
    try:
        found = source.evaluate(predict)
    except QCompileError:
        raise
    except Exception as error:
        raise ModelError(
            f"evaluate() of {source.where} fails: {type(error).__name__}: {error}"
        ) from error
    named = dict(found) if isinstance(found, Mapping) else {"metric": found}
    bad = [n for n, v in named.items() if not _is_finite(v)]
    if bad or not named:
        raise ModelError(
            f"evaluate() of {source.where} must return finite numbers; "
            f"{', '.join(f'{n} is {named[n]!r}' for n in bad) or 'it returned none'}"
        )
    return {str(n): round(float(v), 6) for n, v in named.items()}


def check_names(source: Source, first: Mapping[str, float], second: Mapping[str, float]) -> None:
    """Refuse figures that cannot be compared.

    Raises:
        ModelError: They have other names.
    """
    if first.keys() != second.keys():
        raise ModelError(
            f"evaluate() of {source.where} must measure the same each time; it gave {', '.join(first)}, and "
            f"then {', '.join(second)}"
        )


def _is_finite(value: Any) -> bool:
    try:
        return math.isfinite(float(value))
    except (TypeError, ValueError):
        return False


def _drop_gate(name: str, row: Mapping[str, float], limit: float) -> dict[str, Any]:
    drop = round(row["before"] - row["after"], 6)
    change = f"{row['before']:.2f} to {row['after']:.2f}"
    message = f"{name} fell by {drop:.2f} ({change}), the limit is {limit:g}"
    return {
        "gate": "max-drop", "limit": limit, "measured": drop,
        "passed": drop <= limit, "message": message,
    }  # fmt: skip
