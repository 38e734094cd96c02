"""Which rounding a layer gets: each candidate's output is measured on held-out samples, the best stays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from qcompile.compiler.ir.quant import WeightSpec
from qcompile.passes.calibration.parallel import each
from qcompile.passes.calibration.walk import Values
from qcompile.passes.quantization.adaround import adaround
from qcompile.passes.quantization.gptq import MAX_COLUMNS, Moments, gptaq, gptq, moments
from qcompile.passes.quantization.layer import Layer
from qcompile.passes.quantization.palette_feedback import feedback, refit
from qcompile.passes.quantization.palettize import code_weight
from qcompile.passes.quantization.records import LayerRecord, sqnr_db
from qcompile.passes.quantization.rounding import Coded, Palettized, Rounded


def held_out(count: int) -> list[int]:
    """Return the batches that judge: every fourth, or the only one."""
    return list(range(3, count, 4)) or [count - 1]


def fitted(count: int) -> list[int]:
    """Return the batches that are fitted to: the others."""
    judges = set(held_out(count))
    return [i for i in range(count) if i not in judges] or [0]


@dataclass(frozen=True)
class LayerData:
    """A layer with its inputs and the float graph's output, a batch each.

    Without ``drifts`` nothing before the layer is quantized, so that ``gptaq`` is ``gptq`` and is left out.
    """

    layer: Layer
    spec: WeightSpec
    inputs: Values
    reference: Sequence[Tensor]
    drifts: bool = True

    @property
    def fitted(self) -> list[int]:
        """Batches to fit to."""
        return fitted(len(self.reference))

    @property
    def judges(self) -> list[int]:
        """Batches to judge on."""
        return held_out(len(self.reference))


@dataclass(frozen=True)
class Trial:
    """One rounding.

    Args:
        rounded: Its codes.
        bias: The bias that suits it: the layer's own, or with the mean of the error taken over.
        error: Squared output error on held-out samples, with that bias.
        shifted: Whether the bias changed.
    """

    rounded: Coded
    bias: Tensor | None
    error: float
    shifted: bool


def best_trial(data: LayerData, method: str, record: LayerRecord) -> Trial:
    """Return the best of rounding to nearest and the method asked for.

    Args:
        data: The layer.
        method: ``nearest``, ``gptq`` (with ``gptaq`` beside it) or ``adaround`` (with both). Palettes
            know no rounding up or down: there ``adaround`` is ``gptq``, which also fits the tables.
        record: Told what was tried and kept.
    """
    layer, spec = data.layer, data.spec
    importance = layer.importance([data.inputs.quantized[i] for i in data.fitted])
    start = code_weight(layer.weight, spec, importance)
    trials = [try_rounding(data, start)]
    if (seen := _seen(data, method, record)) is not None:
        if isinstance(start, Palettized):
            trials += _palette_trials(data, start, seen)
        else:
            trials += _grid_trials(data, start, seen, method)
    best = min(trials, key=lambda t: t.error)
    base = trials[0].error or 1e-30
    record.rounding, record.bias_corrected = best.rounded.method, best.shifted
    record.tried = {t.rounded.method: round(t.error / base, 4) for t in trials[1:]}
    record.weight_sqnr_db = _weight_sqnr(data, best.rounded)
    return best


def _seen(data: LayerData, method: str, record: LayerRecord) -> Moments | None:
    """Return what error feedback needs; ``None`` without it."""
    layer = data.layer
    columns = layer.weight[0].numel()
    if method != "nearest" and columns > MAX_COLUMNS:
        record.add_note(
            f"rounded to nearest: {method} is for up to {MAX_COLUMNS} inputs, here {columns}"
        )
        return None
    if method == "nearest" or layer.weight.dim() > 4:
        return None
    seen = moments(layer, [(data.inputs.float[i], data.inputs.quantized[i]) for i in data.fitted])
    assert seen.upper.shape == seen.hessian.shape  # made once, before two threads ask for it
    return seen


def _grid_trials(data: LayerData, start: Rounded, seen: Moments, method: str) -> list[Trial]:
    layer, spec = data.layer, start.spec
    methods = (gptq, gptaq) if data.drifts else (gptq,)
    rounded = each(lambda f: f(layer, spec, start.params, seen), methods)
    trials = [try_rounding(data, r) for r in rounded]
    if method == "adaround":
        moved = data.drifts and trials[1].error < trials[0].error
        learned = adaround(layer, spec, start.params, seen, moved=moved)
        trials.append(try_rounding(data, learned))
    return trials


def _palette_trials(data: LayerData, start: Palettized, seen: Moments) -> list[Trial]:
    """Return trials of feedback onto the tables, then of tables fitted to the better one's indices."""
    layer = data.layer
    ways = (False, True) if data.drifts else (False,)
    found = each(lambda moved: feedback(layer, start, seen, moved=moved), ways)
    trials = [try_rounding(data, f) for f in found]
    moved = data.drifts and trials[1].error < trials[0].error
    fitted_tables = refit(layer, found[int(moved)], seen, moved=moved)
    if fitted_tables is not None:
        trials.append(try_rounding(data, fitted_tables))
    return trials


def try_rounding(data: LayerData, rounded: Coded) -> Trial:
    """Return the error of a rounding with the bias that suits it.

    Bias correction (Nagel et al. 2019, section 4.2) is kept only where it lowers the error.
    """
    layer = data.layer
    decoded = rounded.decoded

    def difference(i: int) -> Tensor:
        return data.reference[i] - layer(data.inputs.quantized[i], decoded, layer.bias)  # type: ignore[no-any-return]

    def mean(i: int) -> tuple[Tensor, int]:
        return layer.channel_means(difference(i)), len(data.reference[i])

    shift = _mean(each(mean, data.fitted))

    def errors(i: int) -> tuple[float, float]:
        left = difference(i)
        moved = left - layer.per_channel(shift)
        return float(left.square().sum()), float(moved.square().sum())

    judged = each(errors, data.judges)
    plain, corrected = sum(p for p, _ in judged), sum(c for _, c in judged)
    if corrected >= plain:
        return Trial(rounded, layer.bias, plain, False)
    bias = shift if layer.bias is None else layer.bias + shift
    return Trial(rounded, bias, corrected, True)


def _weight_sqnr(data: LayerData, rounded: Coded) -> float | None:
    layer, decoded = data.layer, rounded.decoded

    def pair(i: int) -> tuple[Tensor, Tensor]:
        x = data.inputs.quantized[i]
        return layer(x, layer.weight, None), layer(x, decoded, None)

    return sqnr_db(each(pair, data.judges))


def _mean(batches: Sequence[tuple[Tensor, int]]) -> Tensor:
    """Return the mean over batches of different sizes, float32."""
    total = torch.zeros((), dtype=torch.float64)
    for mean, size in batches:
        total = total + mean * size
    return (total / sum(size for _, size in batches)).float()
