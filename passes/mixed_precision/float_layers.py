"""Which layers of an integer graph stay float: the sets of each size that spare the outputs most.

A layer in float spares the error of its weight. A stored value is spared only once every layer that wants
it in integers is float: those that read it, the one that gives it where the engine needs its output in
integers, and what lies beyond sums, which are integer beside integer neighbours. So layers pay in groups,
and the best set of a size is a small mixed-integer program, solved by HiGHS (Huangfu and Hall 2018,
through SciPy) to proven optimality.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from qcompile.passes.mixed_precision.integer_trial import Prepared
from qcompile.passes.mixed_precision.layer_damage import LayerDamages

RUINED = 100.0
"""A larger cost says no more than this: predictions are lost."""
_GAP = 1e-9
Layers = frozenset[str]


@dataclass(frozen=True)
class FloatProblem:
    """What float layers would spare.

    Args:
        weights: Cost of each layer's weight in codes, by its name.
        values: Of each stored value: the layers that must all be float to spare it, and its cost.
    """

    weights: Mapping[str, float]
    values: Mapping[str, tuple[Layers, float]]

    def left(self, kept: Layers, coded: Layers = frozenset()) -> float:
        """Return the cost that is left with some layers float, some of these with their weights in codes."""
        values = sum(cost for group, cost in self.values.values() if not group <= kept)
        plain = kept - coded
        return values + sum(cost for name, cost in self.weights.items() if name not in plain)

    def costs(self, kept: Layers, coded: Layers = frozenset()) -> dict[str, float]:
        """Return what each float layer would cost in integers beside the others."""
        left = self.left(kept, coded)
        return {name: self.left(kept - {name}, coded) - left for name in sorted(kept)}

    def best(self, size: int, others: Collection[Layers] = ()) -> Layers | None:
        """Return the set of a size that leaves least and is none of the others; ``None`` if none is left."""
        from scipy.optimize import Bounds, LinearConstraint, milp
        from scipy.sparse import csr_array

        names = list(self.weights)
        place = {name: i for i, name in enumerate(names)}
        groups = [(sorted(place[n] for n in group), cost) for group, cost in self.values.values()]
        count = len(names) + len(groups)
        gain = np.minimum([*self.weights.values(), *(cost for _, cost in groups)], RUINED)
        is_layer = np.arange(count) < len(names)
        rules = [LinearConstraint(is_layer[None].astype(float), size, size)]
        pairs = [(len(names) + j, i) for j, (group, _) in enumerate(groups) for i in group]
        if pairs:  # a value is spared only if each layer of its group is float
            rows = np.arange(len(pairs))
            values, layers = np.array(pairs).T
            ones = np.ones(len(pairs))
            places = (np.tile(rows, 2), np.concatenate([values, layers]))
            matrix = csr_array((np.concatenate([ones, -ones]), places), (len(pairs), count))
            rules.append(LinearConstraint(matrix, -np.inf, 0))
        for other in others:
            same = np.array([name in other for name in names] + [False] * len(groups), float)
            rules.append(LinearConstraint(same[None], 0, size - 1))
        found = milp(
            -gain / (gain.max() or 1.0), integrality=is_layer.astype(int), bounds=Bounds(0, 1),
            constraints=rules, options={"mip_rel_gap": _GAP},
        )  # fmt: skip
        if found.x is None:
            return None
        return frozenset(name for name, x in zip(names, found.x, strict=False) if x > 0.5)


def float_problem(prepared: Prepared, damages: LayerDamages) -> FloatProblem:
    """Return what float layers would spare.

    Args:
        prepared: What would be in integers.
        damages: Of all that is.
    """
    groups = spared_by(prepared, list(damages.weights))
    values = {name: (groups[name], cost) for name, cost in damages.values.items() if name in groups}
    return FloatProblem(damages.weights, values)


def spared_by(prepared: Prepared, layers: Sequence[str]) -> dict[str, Layers]:
    """Return for each stored value the layers that must be float for it to be float, as few as possible.

    Values that stay in integers whatever layers are float, as between products, are left out.
    """
    everything = frozenset(layers)

    def stored(kept: Layers) -> set[str]:
        nodes = prepared.observers_without(kept).stored_values(prepared.graph)
        return {node.name for node in nodes}

    by_one = {name: stored(everything - {name}) for name in layers}
    found = {}
    for value in sorted(stored(frozenset()) - stored(everything)):
        needed = frozenset(name for name in layers if value in by_one[name])
        if value in stored(needed):  # a sum beside it is in integers, unless more layers are float
            needed = everything
            for name in layers:  # from which none can be taken; the first are taken out first
                if value not in stored(needed - {name}):
                    needed -= {name}
        found[value] = needed
    return found
