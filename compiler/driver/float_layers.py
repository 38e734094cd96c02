"""Layers of an integer build that stay float, where all in integers miss a limit of quality.

The first artifact has all layers in integers, and its gates say whether that holds. If not, one pass
forward and back says what the integers of each place cost; then sets of float layers are put on trial in
PyTorch, the best of each size by these costs, until the smallest is found that keeps the limits. It is
built as ``--ignore`` would build it, and its gates decide.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from qcompile.compiler.driver import weight_plans, weight_trials
from qcompile.compiler.driver.plan import MEASURES
from qcompile.compiler.driver.weight_damages import some_samples
from qcompile.compiler.driver.weight_trials import QualityLimit
from qcompile.passes.base import Pass
from qcompile.passes.calibration.samples import Samples
from qcompile.passes.graph.channel_links import LAYERS
from qcompile.passes.mixed_precision.float_layers import FloatProblem, Layers, float_problem
from qcompile.passes.mixed_precision.integer_trial import Prepared
from qcompile.passes.mixed_precision.layer_damage import layer_damages
from qcompile.passes.quantization.insert_observers import InsertObservers
from qcompile.passes.quantization.quantize import Quantize
from qcompile.passes.quantization.records import LayerRecord
from qcompile.runtime.manifest import Manifest
from qcompile.targets.options import DEFAULT_ACTIVATIONS

if TYPE_CHECKING:
    from qcompile.compiler.driver.build import Build

STAGE = "float layers"
SAMPLES = 256
"""Of the calibration data on which costs are measured."""
SEVERAL = 4
"""Sets of one layer fewer that are put on trial: so many of the best, and so many of the present one."""
ROUNDS = 4
"""Builds, each with more float layers than the one before, until the limits hold."""


@dataclass
class FloatLayers:
    """The search, and what it has found.

    Args:
        prepared: What trials are made of.
        samples: That trials are calibrated on.
        problem: What float layers would spare.
        limits: Of quality, those of trials: an engine that loses more than a trial makes them tighter.
        kept: Layers that stay float now.
        measured: What the first artifact's gates measured, by name.
        builds: Artifacts so far.
        tried: What each limit's figure was for each set, and whether all were kept.
    """

    prepared: Prepared
    samples: Samples
    problem: FloatProblem
    limits: list[QualityLimit]
    measured: Mapping[str, float]
    kept: Layers = frozenset()
    builds: int = 1
    tried: dict[Layers, tuple[bool, dict[str, float]]] = field(default_factory=dict)

    def keeps(self, layers: Layers) -> bool:
        """Return whether the limits hold on trial."""
        if layers not in self.tried:
            graph = self.prepared.trial(layers, self.samples)
            figures: dict[str, float] = {}
            holds = True
            for limit in self.limits:
                figures[limit.gate] = limit.measure(graph)
                if not (holds := limit.misses(figures[limit.gate]) <= 1):
                    break
            self.tried[layers] = holds, figures
        return self.tried[layers][0]

    def as_json(self, kind: str) -> dict[str, Any]:
        """Return plain data for the manifest."""
        costs = self.problem.costs(self.kept)
        rows = [{"layer": n, "damage": costs[n]} for n in sorted(costs, key=lambda n: -costs[n])]
        return {
            "float_layers": rows,
            "layers": len(self.problem.weights),
            "measure": kind,
            "all_in_integers": dict(self.measured),
            "trials": len(self.tried),
            "builds": self.builds,
        }


def applies(work: Build) -> bool:
    """Return whether layers may stay float for a limit of quality: integer arithmetic, no plan."""
    scheme, options = work.target.scheme, work.options
    is_integer = scheme.weight is not None and scheme.activation is not None
    return is_integer and options.gated and not options.plans and work.source.checkpoint is None


def kept(work: Build) -> frozenset[str]:
    """Return the weights whose layers stay float, with those that the user named."""
    found = work.float_search
    return work.options.keep_float | (found.kept if found else frozenset())


def watching(work: Build, passes: Sequence[Pass]) -> Callable[[str], None]:
    """Return what is told of each pass before it runs: it keeps what float layers would be chosen on."""

    def started(name: str) -> None:
        work.progress.stage(name)
        if name == InsertObservers.name and work.prepared is None and applies(work):
            assert work.quantized is not None
            (observers,) = (p for p in passes if isinstance(p, InsertObservers))
            (quantize,) = (p for p in passes if isinstance(p, Quantize))
            work.prepared = Prepared(work.quantized.copy(), observers, quantize)

    return started


def repair(work: Build, manifest: Manifest) -> bool:
    """Keep more layers float if an artifact misses limits of quality, and nothing else; return whether."""
    failed = {g["gate"]: g["measured"] for g in manifest.gates if not g["passed"]}
    known = failed.keys() <= {"min-sqnr", "max-drop"}
    if not failed or not known or work.prepared is None or not applies(work):
        return False
    with work.stage(STAGE):
        return _more(work, work.prepared, failed)


def _more(work: Build, prepared: Prepared, failed: Mapping[str, float]) -> bool:
    search, least = work.float_search, 1
    if search is None:
        search = _begun(work, prepared, weight_trials.limits(work), failed)
    else:
        least = len(search.kept) + 1
        _tighten(search, failed)
    found = smallest(search, least) if search.builds < ROUNDS else None
    if found is None:
        return False
    search.kept, search.builds, work.float_search = found, search.builds + 1, search
    return True


def smallest(search: FloatLayers, least: int = 1) -> Layers | None:
    """Return a small set of float layers that keeps the limits; ``None`` unless a layer can be in integers.

    Sizes double until the best set of one holds, and are then halved; then layers are put back, and other
    sets of one layer fewer tried, as long as one holds.

    Args:
        search: What is on trial.
        least: How many float layers there must be.
    """
    most = len(search.problem.weights) - 1
    if least > most or not search.keeps(frozenset(search.problem.weights)):
        return None
    low, size = least - 1, least
    while (found := _best(search, size)) is None and size < most:
        low, size = size, min(2 * size, most)
    if found is None:
        return None
    while size - low > 1:
        middle = (low + size) // 2
        if (smaller := _best(search, middle)) is None:
            low = middle
        else:
            found, size = smaller, middle
    return _fewer(search, found, least)


def _best(search: FloatLayers, size: int) -> Layers | None:
    found = search.problem.best(size)
    return found if found is not None and search.keeps(found) else None


def _fewer(search: FloatLayers, found: Layers, least: int) -> Layers:
    """Return a set that holds with one layer fewer, again and again."""
    while len(found) > least and (fewer := _one_fewer(search, found)) is not None:
        found = fewer
    return found


def _one_fewer(search: FloatLayers, found: Layers) -> Layers | None:
    problem = search.problem
    others: list[Layers] = []
    while len(others) < SEVERAL and (other := problem.best(len(found) - 1, others)) is not None:
        others.append(other)
    costs = problem.costs(found)
    cheapest = sorted(found, key=lambda n: (costs[n], n))[:SEVERAL]
    others += [found - {name} for name in cheapest]
    return next((other for other in dict.fromkeys(others) if search.keeps(other)), None)


def said(work: Build) -> str:
    """Return what a user should know of a search that found nothing: a clause, or nothing."""
    if STAGE not in work.seconds or work.float_search is not None:
        return ""
    return "; with layers in float it is missed as long as any is in integers"


def record(work: Build) -> None:
    """Add the float layers to the log of the layers, if there are any by this search."""
    if (search := work.float_search) is None:
        return
    costs, bits = search.problem.costs(search.kept), work.target.scheme.float_bits
    what = MEASURES[weight_plans.work_kind(work)]
    weights = search.prepared.graph.weights
    for node in search.prepared.graph.calls(*LAYERS):
        name = str(getattr(node.args[1], "target", ""))
        if name not in {row.name for row in work.log.layers} and name in search.kept:
            size, op = weights.peek(name).numel(), str(node.target).split(".")[1]
            note = f"stays float: in integers it would cost {costs[name]:.2g} of {what}"
            row = LayerRecord(name, op, f"fp{bits}", size, size * bits // 8, note=note)
            work.log.layers.append(row)


def _begun(
    work: Build, prepared: Prepared, limits: list[QualityLimit], failed: Mapping[str, float]
) -> FloatLayers:
    """Measure what integers cost, place by place."""
    assert work.samples is not None
    limit = work.options.max_host_ram
    samples = some_samples(prepared.graph, work.samples, SAMPLES)
    damages = layer_damages(
        prepared,
        samples,
        weight_plans.predictions(work).cotangent,
        DEFAULT_ACTIVATIONS if limit is None else limit,
        work.progress.share,
    )
    problem = float_problem(prepared, damages)
    return FloatLayers(prepared, samples, problem, limits, dict(failed))


def _tighten(search: FloatLayers, failed: Mapping[str, float]) -> None:
    """Ask trials for as much more as the artifact was worse than its trial."""
    _, figures = search.tried.pop(search.kept)
    limits = []
    for limit in search.limits:
        if limit.gate in failed and limit.gate in figures:
            worse = failed[limit.gate] - figures[limit.gate]
            limit = replace(limit, limit=limit.limit - worse)
        limits.append(limit)
    search.limits = limits
    search.tried.clear()
