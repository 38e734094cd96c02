"""Shares of measured times: what each format of each weight adds to the time of a whole artifact."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from qcompile.targets.plans import TensorChoices, TokenTimes


def uniform_plans(choices: Sequence[TensorChoices]) -> dict[str, dict[str, str]]:
    """Return a plan for each format, by its name: all weights have it that can, others their largest."""
    kinds = sorted({format.name for choice in choices for format in choice.formats})
    return {kind: {choice.name: _nearest(choice, kind) for choice in choices} for kind in kinds}


def shared_times(
    numbers: Mapping[str, float],
    choices: Sequence[TensorChoices],
    taken: Mapping[str, float],
) -> TokenTimes:
    """Return times whose sums over plans are what was measured of each uniform plan, or close to it.

    A weight's share of a format's time is that of its numbers; what no format changes is shared out too.

    Args:
        numbers: That are read of each choice's weights.
        choices: What there is to choose.
        taken: Milliseconds of each plan of ``uniform_plans``.
    """
    plans = uniform_plans(choices)
    kinds, whole = list(plans), sum(numbers.values())
    shares = np.zeros((len(kinds), len(kinds)))
    for row, plan in zip(shares, plans.values(), strict=True):
        for name, kind in plan.items():
            row[kinds.index(kind)] += numbers[name] / whole
    measured = np.array([taken[kind] for kind in kinds])
    found = np.linalg.lstsq(shares, measured, rcond=None)[0].clip(min=0.0)
    times = dict(zip(kinds, found.tolist(), strict=True))
    of = {
        c.name: {f.name: times[f.name] * numbers[c.name] / whole for f in c.formats}
        for c in choices
    }
    return TokenTimes(of, 0.0, modelled=False)


def _nearest(choice: TensorChoices, kind: str) -> str:
    names = [format.name for format in choice.formats]
    return kind if kind in names else names[choice.bytes.index(max(choice.bytes))]
