"""Which rounding a weight gets in a block format: the candidates are judged on held-out tokens."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import reduce
from typing import TypeGuard

import torch
from torch import Tensor

from qcompile.compiler.ir.blocks.affine import AffineFormat
from qcompile.compiler.ir.blocks.format import BlockFormat
from qcompile.compiler.ir.blocks.joint_search import encode_jointly, improvable
from qcompile.compiler.ir.blocks.lattice import LatticeFormat
from qcompile.compiler.ir.errors import ModelError
from qcompile.compiler.ir.stored import Part, parts_of
from qcompile.passes.calibration.parallel import each
from qcompile.passes.quantization.block_feedback import feed_back
from qcompile.passes.quantization.block_moments import Judgement, Moments
from qcompile.passes.quantization.ggml_encoder import ggml_encode
from qcompile.passes.quantization.records import LayerRecord

TABLE_DAMPING = 1.0
ROWS = 256
"""Rows that are encoded at once; the next on another core."""
JUDGED_ROWS = 1024
"""Rows whose error is measured at once."""
EXACT_BITS = 16
"""Formats with so many bits or more are no quantization: they are rounded to nearest."""


@dataclass(frozen=True)
class Blocks:
    """A weight in blocks.

    Args:
        format: Of the blocks.
        data: uint8 ``[rows, bytes]``.
        method: How it was rounded.
    """

    format: BlockFormat
    data: Tensor
    method: str

    @property
    def decoded(self) -> Tensor:
        """The real values, float32."""
        return self.format.decode(self.data)


def encode(
    weight: Tensor, format: BlockFormat, importance: Tensor | None, *, by_ggml: bool = False
) -> Blocks:
    """Return the weight in blocks, each value by itself.

    Args:
        weight: ``[rows, columns]``.
        format: Of the blocks.
        importance: ``E[x^2]`` of each input, if it is known.
        by_ggml: Let llama.cpp's library encode it.
    """
    return encode_parts(parts_of(weight, ROWS), format, importance, by_ggml=by_ggml)


def encode_parts(
    parts: Sequence[Part],
    format: BlockFormat,
    importance: Tensor | None,
    *,
    by_ggml: bool = False,
) -> Blocks:
    """Return what ``encode`` returns of a weight whose rows are read as they are encoded.

    Args:
        parts: Give some rows each, one after the other.
        format: Of the blocks.
        importance: As above.
        by_ggml: As above.
    """
    if importance is not None and _bits(format) >= EXACT_BITS:
        importance = None
    method, encoder = _encoder(format, importance, by_ggml)
    data = each(lambda part: encoder(part()), parts)
    return Blocks(format, torch.cat(data), method)


def _encoder(
    format: BlockFormat, importance: Tensor | None, by_ggml: bool
) -> tuple[str, Callable[[Tensor], Tensor]]:
    """Return how rows are rounded, and what does it."""
    method = "nearest" if importance is None else "importance"
    if by_ggml:
        return f"{method}, by ggml", lambda rows: ggml_encode(rows, format, importance)
    if importance is None and improvable(format):
        return "joint", lambda rows: encode_jointly(format, rows)
    return method, lambda rows: format.encode(rows, importance)


def best_rounding(
    weight: Tensor,
    format: BlockFormat,
    fit: Moments,
    judge: Moments,
    record: LayerRecord,
    feedback: bool = True,
) -> Blocks:
    """Return the candidate with the least output error on held-out tokens.

    Candidates are the encoder weighted by importance, error feedback, and error feedback on a weight that
    was first moved to make the float output from the quantized input (``gptq.py``).

    Args:
        weight: ``[rows, columns]``, float32.
        format: Of the blocks.
        fit: Moments of the tokens that roundings are fitted to.
        judge: Of the others.
        record: Told what was tried and kept.
        feedback: Whether there are candidates with error feedback.
    """
    found = [encode(weight, format, fit.importance)]
    if feedback and has_feedback(format):
        upper = fit.upper()
        found.append(Blocks(format, feed_back(weight, upper, format), "gptq"))
        if bool(fit.drift.any()):
            data = feed_back(fit.moved(weight), upper, format)
            found.append(Blocks(format, data, "gptaq"))
    return _best(found, weight, judge, record)


def round_table(
    weight: Tensor,
    format: BlockFormat,
    fit: Moments,
    judge: Moments,
    record: LayerRecord,
    feedback: bool = True,
) -> Blocks:
    """Return the candidate for a table that is looked up and that the output layer reads.

    Rows that are looked up are inputs of the model as they are. So error feedback is damped by all of the
    mean of H, which keeps it from making single values worse.

    Args:
        weight: ``[rows, columns]``, float32.
        format: Of the blocks.
        fit: Moments of what the output layer reads.
        judge: Of held-out tokens.
        record: Told what was tried and kept.
        feedback: Whether there are candidates with error feedback.
    """
    found = [encode(weight, format, None)]
    if feedback and has_feedback(format):
        data = feed_back(weight, fit.upper(TABLE_DAMPING), format)
        found.append(Blocks(format, data, "gptq"))
    return _best(found, weight, judge, record)


@contextmanager
def naming(name: str) -> Iterator[None]:
    """Say which weight it is that an encoder refuses.

    Raises:
        ModelError: Instead of the encoder's ``ValueError``.
    """
    try:
        yield
    except ValueError as error:
        raise ModelError(f"{name} cannot be stored: {error}") from error


def has_feedback(format: BlockFormat) -> TypeGuard[AffineFormat | LatticeFormat]:
    """Return whether error feedback can round into a format."""
    return isinstance(format, AffineFormat | LatticeFormat) and _bits(format) < EXACT_BITS


def _bits(format: BlockFormat) -> float:
    return format.bits_per_weight((1, format.block))


def _best(found: Sequence[Blocks], weight: Tensor, judge: Moments, record: LayerRecord) -> Blocks:
    judged = _judged(found, weight, judge)
    best = min(range(len(found)), key=judged.errors.__getitem__)
    base = judged.errors[0] or 1e-30
    record.rounding = found[best].method
    record.tried = {
        b.method: round(e / base, 4) for b, e in zip(found[1:], judged.errors[1:], strict=True)
    }
    record.weight_sqnr_db = _db(judged.power, judged.own[best])
    record.output_sqnr_db = _db(judged.power, judged.errors[best])
    return found[best]


def _judged(found: Sequence[Blocks], weight: Tensor, judge: Moments) -> Judgement:
    """Return what all rows say; some rows are decoded at a time."""

    def of(parts: tuple[Tensor, ...]) -> Judgement:
        rows, *data = parts
        decoded = (b.format.decode(d) for b, d in zip(found, data, strict=True))
        return judge.judge(rows, decoded)

    splits = (t.split(JUDGED_ROWS) for t in (weight, *(b.data for b in found)))
    return reduce(operator.add, each(of, zip(*splits, strict=True)))


def _db(power: float, error: float) -> float | None:
    if power <= 0:
        return None
    return math.inf if error <= 0 else 10 * math.log10(power / error)
