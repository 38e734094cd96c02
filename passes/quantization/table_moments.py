"""Moments of what output layers read, kept on disk: the walk that collects them is not repeated."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from qcompile.passes.quantization.block_moments import Moments
from qcompile.passes.quantization.step_store import StepStore

_STEP = "what-tables-give"
_SUMS = ("hessian", "drift", "gap")
_Both = tuple[Moments, Moments]


def keep_moments(store: StepStore | None, found: Mapping[str, _Both]) -> None:
    """Keep the moments of each table: those that roundings are fitted to, and those that judge."""
    if store is None:
        return
    tensors, tokens = {}, {}
    for table, both in found.items():
        tokens[table] = [moments.tokens for moments in both]
        for place, moments in enumerate(both):
            for name in _SUMS:
                tensors[f"{table} {place} {name}"] = _small(getattr(moments, name))
    store.put(_STEP, tensors, tokens)


def kept_moments(store: StepStore | None) -> dict[str, _Both] | None:
    """Return what was kept; ``None`` if nothing was."""
    kept = None if store is None else store.get(_STEP)
    if kept is None:
        return None
    tensors, tokens = kept

    def moments(table: str, place: int) -> Moments:
        hessian, drift, gap = (tensors[f"{table} {place} {name}"] for name in _SUMS)
        count = tokens[table][place]
        return Moments(count, hessian, drift.expand_as(hessian), gap.expand_as(hessian))

    return {table: (moments(table, 0), moments(table, 1)) for table in tokens}


def _small(sums: Tensor) -> Tensor:
    """Return one number of a matrix that is one number everywhere and takes the memory of one."""
    return sums[0, 0].clone() if not any(sums.stride()) else sums
