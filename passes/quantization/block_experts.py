"""Rounding of one expert's weight: for the tokens that reach it, which may be few or none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, fx

from qcompile.compiler.ir.blocks.format import BlockFormat
from qcompile.passes.calibration.routing import ExpertRows, FloatRows, Routed
from qcompile.passes.calibration.walk import Values, Walk
from qcompile.passes.quantization.block_moments import Moments, fitted, judges, moments
from qcompile.passes.quantization.block_rounding import Blocks, best_rounding, encode
from qcompile.passes.quantization.records import LayerRecord

FEW = 32
"""Tokens. With less no errors are fed back: what they would be fitted to, or judged by, is chance."""


def expert_moments(walk: Walk, node: fx.Node, expert: int) -> tuple[Moments, Moments, int]:
    """Return the moments of an expert's tokens, as ``block_moments.py`` has them, and how many these are.

    Rows are multiplied by the token's share, where the node knows it: an error of the expert's output
    counts as much as it adds to the sum.

    Args:
        walk: At the node.
        node: The experts.
        expert: Number of one.
    """
    exact, prefix = (Routed.of(walk, node, quantized=q) for q in (False, True))
    rows = ExpertRows(prefix, expert)
    floats = rows if exact.same(prefix) else FloatRows(prefix, exact, expert)
    values, count = Values(floats, rows), len(walk.samples)
    fit, judge = moments(values, fitted(count)), moments(values, judges(count), judging=True)
    return fit, judge, fit.tokens + judge.tokens if count > 1 else fit.tokens


def round_expert(
    weight: Tensor,
    format: BlockFormat,
    seen: tuple[Moments, Moments, int],
    record: LayerRecord,
    feedback: bool = True,
) -> Blocks:
    """Return the rounding that is best for an expert's tokens; with few of them, a cautious one.

    Args:
        weight: ``[rows, columns]``, float32.
        format: Of the blocks.
        seen: What ``expert_moments`` gave.
        record: Told what was tried and kept, and of how many tokens.
        feedback: Whether there are candidates with error feedback.
    """
    fit, judge, record.tokens = seen
    if not record.tokens:
        record.add_note("no calibration token reached this expert: rounded without")
        blocks = encode(weight, format, None)
        record.rounding = blocks.method
        return blocks
    if min(fit.tokens, judge.tokens) >= FEW:
        return best_rounding(weight, format, fit, judge, record, feedback)
    record.add_note(f"{record.tokens} calibration tokens reached this expert: no error feedback")
    known = fit if fit.tokens >= judge.tokens else judge
    return best_rounding(weight, format, _cautious(known), known, record, feedback=False)


def seldom_reached(layers: Sequence[LayerRecord]) -> str:
    """Return a sentence on matrices of experts that the calibration data hardly reached; "" for none."""
    counts = [row.tokens for row in layers if row.tokens is not None]
    few = [count for count in counts if count < FEW]
    if not few:
        return ""
    return (
        f"{len(few):,} of {len(counts):,} matrices of experts were reached by fewer than {FEW} calibration "
        f"tokens, {few.count(0):,} of them by none: they are rounded without error feedback; give more text"
    )


def _cautious(known: Moments) -> Moments:
    """Return moments as if tokens that are missing to ``FEW`` had brought all inputs alike."""
    missing = max(0, FEW - known.tokens)
    alike = known.importance.mean() * missing * torch.eye(len(known.hessian))
    return replace(known, tokens=known.tokens + missing, hessian=known.hessian + alike)
