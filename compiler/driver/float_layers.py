"""Layers of an integer build that stay float, where all in integers miss a limit of quality.

All layers in integers come first: their graph in PyTorch where that misses by far, else the artifact's gates
say whether that holds. If not, one pass forward and back says what the integers of each place cost; then sets
of float layers are put on trial in PyTorch (``float_search.py``). What is found is built; its gates decide.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from qcompile.compiler.driver import weight_plans, weight_trials
from qcompile.compiler.driver.float_search import FloatLayers, smallest
from qcompile.compiler.driver.plan import MEASURES
from qcompile.compiler.driver.weight_damages import some_samples
from qcompile.compiler.driver.weight_trials import QualityLimit
from qcompile.compiler.ir.graph import Graph
from qcompile.passes.base import Pass
from qcompile.passes.calibration.parallel import each
from qcompile.passes.calibration.samples import Samples
from qcompile.passes.graph.channel_links import LAYERS
from qcompile.passes.mixed_precision.float_layers import float_problem
from qcompile.passes.mixed_precision.integer_trial import Prepared, fused
from qcompile.passes.mixed_precision.layer_damage import layer_damages
from qcompile.passes.quantization.insert_observers import InsertObservers
from qcompile.passes.quantization.quantize import Quantize
from qcompile.passes.quantization.records import LayerRecord, sqnr_db
from qcompile.runtime.manifest import Manifest
from qcompile.targets.options import DEFAULT_ACTIVATIONS

if TYPE_CHECKING:
    from qcompile.compiler.driver.build import Build

STAGE = "float layers"
SAMPLES = 256
"""Of the calibration data on which costs and distances are measured."""
TRIAL = 128
"""On which trials are calibrated."""
ROUNDS = 4
"""Builds, each with more float layers than the one before, until the limits hold."""
NEAR_DB = 20.0
"""Of the outputs, above which integers seldom cost what a limit is about: 1 % of their power is error."""


def applies(work: Build) -> bool:
    """Return whether layers may stay float for a limit of quality: integer arithmetic, no plan."""
    scheme, options = work.target.scheme, work.options
    is_integer = scheme.weight is not None and scheme.activation is not None
    return is_integer and options.gated and not options.plans and work.source.checkpoint is None


def kept(work: Build) -> frozenset[str]:
    """Return the weights that stay float, with those that the user named."""
    found = work.float_search
    return work.options.keep_float | (found.kept - found.coded if found else frozenset())


def coded(work: Build) -> frozenset[str]:
    """Return the weights in codes whose layers compute in float."""
    return work.float_search.coded if work.float_search else frozenset()


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


def foreseen(work: Build) -> bool:
    """Keep more layers float if a quantized graph is sure to miss a limit; return whether.

    So no artifact is made of it. Where outputs are near the original's, ``evaluate`` is left to the engine.
    """
    if work.prepared is None or not applies(work):
        return False
    assert work.quantized is not None
    graph, missed = fused(work.quantized), {}
    with work.stage("evaluate"):
        is_near = weight_trials.sqnr(work, graph) >= NEAR_DB
        for limit in weight_trials.limits(work):
            if limit.gate == "max-drop" and is_near:
                continue
            if limit.is_out_of_reach(value := limit.measure(graph)):
                missed[limit.gate] = value
    return bool(missed) and _more(work, work.prepared, missed)


def repair(work: Build, manifest: Manifest) -> bool:
    """Keep more layers float if an artifact misses limits of quality, and nothing else; return whether."""
    failed = {g["gate"]: g["measured"] for g in manifest.gates if not g["passed"]}
    known = failed.keys() <= {"min-sqnr", "max-drop"}
    if not failed or not known or work.prepared is None or not applies(work):
        return False
    return _more(work, work.prepared, failed)


def _more(work: Build, prepared: Prepared, failed: Mapping[str, float]) -> bool:
    with work.stage(STAGE):
        search, least = work.float_search, 1
        if search is None:
            search = _begun(work, prepared, weight_trials.limits(work), failed)
        else:  # with codes fewer there may be enough layers
            least = len(search.kept) + (0 if search.coded else 1)
            search.tighten(failed)
        found = smallest(search, least) if search.builds < ROUNDS else None
    if found is None:
        work.prepared = None  # all has been tried
        return False
    (search.kept, search.coded), work.float_search = found, search
    search.builds += 1
    return True


def said(work: Build) -> str:
    """Return what a user should know of a search that found nothing: a clause, or nothing."""
    if STAGE not in work.seconds or work.float_search is not None:
        return ""
    return "; with layers in float it is missed as long as any is in integers"


def record(work: Build) -> None:
    """Add the float layers to the log of the layers, if there are any by this search."""
    if (search := work.float_search) is None:
        return
    costs, bits = search.problem.costs(search.kept, search.coded), work.target.scheme.float_bits
    what = MEASURES[weight_plans.work_kind(work)]
    for row in work.log.layers:
        if row.name in search.coded:
            cost = f"{costs[row.name]:.2g} of {what}"
            row.add_note(f"computes in float: in integers it would cost {cost}")
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
    graph = prepared.graph
    samples = some_samples(graph, work.samples, SAMPLES)
    damages = layer_damages(
        prepared,
        samples,
        weight_plans.predictions(work).cotangent,
        DEFAULT_ACTIVATIONS if limit is None else limit,
        work.progress.share,
    )
    problem = float_problem(prepared, damages)
    can_decode = work.target.emitter.decodes_weights
    sizes = {name: graph.weights.peek(name).numel() for name in problem.weights if can_decode}
    few = some_samples(graph, work.samples, TRIAL)
    return FloatLayers(
        prepared, few, problem, limits, dict(failed), _distance(work, samples), sizes
    )


def _distance(work: Build, samples: Samples) -> Callable[[Graph], float]:
    """Return how to measure how far a graph's predictions are from the original's, on some samples."""
    assert work.graph is not None
    batches = list(samples)
    references = each(work.graph.run, batches)

    def measure(graph: Graph) -> float:
        pairs = list(zip(references, each(graph.run, batches), strict=True))
        predictions = weight_plans.predictions(work)
        return predictions.compare(pairs).mean if predictions.kind == "kl" else _error(pairs)

    return measure


def _error(pairs: Sequence[tuple[Mapping[str, Tensor], Mapping[str, Tensor]]]) -> float:
    """Return the squared error of float outputs over their power, added up over the outputs."""
    names = [n for n, value in pairs[0][0].items() if value.is_floating_point()]
    found = [sqnr_db((reference[n], value[n]) for reference, value in pairs) for n in names]
    return sum(10 ** (-db / 10) for db in found if db is not None)
