"""The search for layers that compute in float: sets on trial, the best of each size by predicted costs first.

A trial's predictions are compared with the original's on calibration data, which takes a fraction of what
``evaluate`` does. A trial that is farther from them than one that missed a limit is taken to miss it too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from qcompile.compiler.driver.weight_trials import QualityLimit
from qcompile.compiler.ir.graph import Graph
from qcompile.passes.calibration.samples import Samples
from qcompile.passes.mixed_precision.float_layers import FloatProblem, Layers
from qcompile.passes.mixed_precision.integer_trial import Prepared

SEVERAL = 2
"""Sets of one layer fewer that are put on trial: so many of the best, and so many of the present one."""
SLACK = 1.25
"""Times what is predicted to be left of a set that missed: another with more is not put on trial."""
NONE: Layers = frozenset()
Pick = tuple[Layers, Layers]
"""Layers that compute in float, and those of them whose weights are in codes."""


@dataclass(frozen=True)
class Trial:
    """What is known of a pick.

    Args:
        distance: How far its predictions are from the original's.
        figures: What the limits are of, up to the first that is missed; none where the distance decided.
        holds: Whether the limits are kept.
    """

    distance: float
    figures: Mapping[str, float]
    holds: bool


@dataclass
class FloatLayers:
    """The search, and what it has found.

    Args:
        prepared: What trials are made of.
        samples: That trials are calibrated on.
        problem: What float layers would spare.
        limits: Of quality, those of trials: an engine that loses more than a trial makes them tighter.
        measured: What all layers in integers gave, by the name of the limit.
        distance: Of a graph's predictions from the original's.
        sizes: Elements of each weight that may be in codes where its layer is float; empty if none may.
        kept: Layers that stay float now.
        coded: Those of them whose weights are in codes.
        builds: Calibrations of the whole graph so far.
        tried: Picks that were on trial, for the present limits.
        trials: How many there were for all limits.
    """

    prepared: Prepared
    samples: Samples
    problem: FloatProblem
    limits: list[QualityLimit]
    measured: Mapping[str, float]
    distance: Callable[[Graph], float]
    sizes: Mapping[str, int] = field(default_factory=dict)
    kept: Layers = NONE
    coded: Layers = NONE
    builds: int = 1
    tried: dict[Pick, Trial] = field(default_factory=dict)
    trials: int = 0

    def keeps(self, layers: Layers, coded: Layers = NONE) -> bool:
        """Return whether the limits hold on trial.

        Args:
            layers: That compute in float.
            coded: Those of them whose weights are in codes.
        """
        if (layers, coded) not in self.tried:
            self.tried[layers, coded] = self._trial(layers, coded)
        return self.tried[layers, coded].holds

    def least_missed(self) -> float:
        """Return the least that is predicted to be left of picks that missed, none in float among them."""
        missed = [self.problem.left(*pick) for pick, t in self.tried.items() if not t.holds]
        return min(missed, default=self.problem.left(NONE))

    def tighten(self, failed: Mapping[str, float]) -> None:
        """Ask trials for as much more as the present pick was worse than its trial; forget all others."""
        last = self.tried[self.kept, self.coded]
        limits = []
        for limit in self.limits:
            if limit.gate in failed and limit.gate in last.figures:
                worse = failed[limit.gate] - last.figures[limit.gate]
                limit = replace(limit, limit=limit.limit - worse)
            limits.append(limit)
        self.limits = limits
        self.tried = {(self.kept, self.coded): Trial(last.distance, last.figures, False)}

    def as_json(self, kind: str) -> dict[str, Any]:
        """Return plain data for the manifest."""
        costs = self.problem.costs(self.kept, self.coded)
        names = sorted(costs, key=lambda n: -costs[n])
        return {
            "float_layers": [
                {"layer": n, "damage": costs[n], "weight_in_codes": n in self.coded} for n in names
            ],
            "layers": len(self.problem.weights),
            "measure": kind,
            "all_in_integers": dict(self.measured),
            "trials": self.trials,
            "builds": self.builds,
        }

    def _trial(self, layers: Layers, coded: Layers) -> Trial:
        self.trials += 1
        graph = self.prepared.trial(layers, self.samples, coded)
        distance, figures = self.distance(graph), dict[str, float]()
        if any(distance >= t.distance for t in self.tried.values() if not t.holds):
            return Trial(distance, figures, False)
        for limit in self.limits:
            figures[limit.gate] = limit.measure(graph)
            if limit.misses(figures[limit.gate]) > 1:
                return Trial(distance, figures, False)
        return Trial(distance, figures, True)


def smallest(search: FloatLayers, least: int = 1) -> Pick | None:
    """Return a small set of float layers that keeps the limits; ``None`` unless a layer can be in integers.

    Args:
        search: What is on trial.
        least: How many float layers there must be.
    """
    most = len(search.problem.weights) - 1
    if least > most or not search.keeps(frozenset(search.problem.weights)):
        return None
    found = _few(search, least, most)
    return None if found is None else (found, _in_codes(search, found))


def _few(search: FloatLayers, least: int, most: int) -> Layers | None:
    """Return a set that holds.

    Sizes double until the best set of one holds, and are then halved; those whose best set would leave much
    of what missed are not tried. Then layers are put back, and other sets of one layer fewer tried, as long
    as one holds.
    """
    low, size = least - 1, least
    while (found := _better(search, size)) is None and size < most:
        low, size = size, min(2 * size, most)
    if found is None:
        return None
    while size - low > 1:
        middle = (low + size) // 2
        if (smaller := _best(search, middle)) is None:
            low = middle
        else:
            found, size = smaller, middle
    while len(found) > least and (fewer := _one_fewer(search, found)) is not None:
        found = fewer
    return found


def _best(search: FloatLayers, size: int) -> Layers | None:
    found = search.problem.best(size)
    return found if found is not None and search.keeps(found) else None


def _better(search: FloatLayers, size: int) -> Layers | None:
    """Return the best set if it holds, and leaves much less than what missed or all layers but one."""
    found, last = search.problem.best(size), size == len(search.problem.weights) - 1
    if found is None or (not last and SLACK * search.problem.left(found) > search.least_missed()):
        return None
    return _best(search, size)


def _one_fewer(search: FloatLayers, found: Layers) -> Layers | None:
    problem = search.problem
    others: list[Layers] = []
    while len(others) < SEVERAL and (other := problem.best(len(found) - 1, others)) is not None:
        others.append(other)
    costs = problem.costs(found)
    cheapest = sorted(found, key=lambda n: (costs[n], n))[:SEVERAL]
    others += [found - {name} for name in cheapest]
    most = SLACK * search.least_missed()
    likely = [other for other in dict.fromkeys(others) if problem.left(other) <= most]
    return next((other for other in likely if search.keeps(other)), None)


def _in_codes(search: FloatLayers, found: Layers) -> Layers:
    """Return the layers whose weights may be in codes: as many as hold, least damage a byte first."""
    damages, sizes = search.problem.weights, search.sizes
    order: Sequence[str] = sorted(found & sizes.keys(), key=lambda n: (damages[n] / sizes[n], n))
    low, high = 0, len(order) + 1
    middle = len(order)
    while high - low > 1:
        if search.keeps(found, frozenset(order[:middle])):
            low = middle
        else:
            high = middle
        middle = (low + high) // 2
    return frozenset(order[:low])
