"""Sets of float layers against all sets, and what they spare against the observers that are placed."""

from __future__ import annotations

import itertools
import random

import pytest
import torch
from torch import nn

from qcompile.compiler.frontend.trace import trace
from qcompile.compiler.ir.ops import OBSERVE
from qcompile.compiler.ir.quant import Granularity, QuantSpec
from qcompile.passes.calibration.observers import choose, histogram
from qcompile.passes.calibration.samples import Samples
from qcompile.passes.mixed_precision.cotangents import relative_error
from qcompile.passes.mixed_precision.float_layers import FloatProblem, float_problem, spared_by
from qcompile.passes.mixed_precision.integer_trial import Prepared
from qcompile.passes.mixed_precision.layer_damage import layer_damages
from qcompile.passes.quantization.insert_observers import InsertObservers
from qcompile.passes.quantization.quantize import Quantize
from qcompile.passes.quantization.records import QuantizationLog
from qcompile.targets.onnx.capabilities import INTEGER_OPS

ACTIVATION = QuantSpec(signed=False, symmetric=False)
WEIGHT = QuantSpec(granularity=Granularity.PER_CHANNEL, axis=0)


class Residual(nn.Module):
    """A sum of two branches: it is in integers next to integers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 1)
        self.left = nn.Conv2d(4, 4, 3, padding=1)
        self.right = nn.Conv2d(4, 4, 1)
        self.last = nn.Linear(4, 3)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.stem(image))
        x = self.right(torch.relu(self.left(x))) + x
        return self.last(torch.sigmoid(x).mean((2, 3)))


@pytest.fixture
def prepared() -> Prepared:
    images = torch.randn(64, 3, 6, 6, generator=torch.Generator().manual_seed(3))
    graph = trace(Residual().eval(), images[:16])
    (name,) = graph.inputs
    samples = Samples([{name: batch} for batch in images.split(16)], 64, "test")
    quantize = Quantize(samples, QuantizationLog(), unit_range=INTEGER_OPS.unit_range)
    return Prepared(graph, InsertObservers(INTEGER_OPS, ACTIVATION, WEIGHT), quantize)


def test_sets_are_the_best_of_their_size() -> None:
    drawn = random.Random(5)
    names = [f"w{i}" for i in range(7)]
    for _ in range(20):
        weights = {n: drawn.random() for n in names}
        groups = [frozenset(drawn.sample(names, drawn.randint(1, 3))) for _ in range(8)]
        values = {f"v{j}": (g, 3 * drawn.random()) for j, g in enumerate(groups)}
        problem = FloatProblem(weights, values)
        for size in (1, 2, 4):
            everything = [frozenset(s) for s in itertools.combinations(names, size)]
            ranked = sorted(everything, key=problem.left)
            first = problem.best(size)
            assert first is not None
            second = problem.best(size, [first])
            assert second is not None
            assert problem.left(first) == pytest.approx(problem.left(ranked[0]))
            assert problem.left(second) == pytest.approx(problem.left(ranked[1]))


def test_there_is_no_set_beyond_all() -> None:
    problem = FloatProblem({"a": 1.0, "b": 2.0}, {"v": (frozenset({"a", "b"}), 1.0)})
    both = frozenset({"a", "b"})

    assert problem.best(2) == both
    assert problem.best(2, [both]) is None
    assert problem.best(1) == {"b"}
    assert problem.left(both) == 0
    assert problem.costs(both) == {"a": 2.0, "b": 3.0}


def test_a_value_is_spared_when_its_layers_are_float(prepared: Prepared) -> None:
    """Compared with the observers that a build would place, for every set of layers."""
    layers = ["stem.weight", "left.weight", "right.weight", "last.weight"]
    groups = spared_by(prepared, layers)

    assert groups
    for size in range(len(layers) + 1):
        for kept in map(frozenset, itertools.combinations(layers, size)):
            graph = prepared.graph.copy()
            prepared.observers_without(kept).run(graph)
            stored = {n.args[0].name for n in graph.calls(OBSERVE) if not n.args[2]}  # type: ignore[union-attr]
            spared = {value for value, group in groups.items() if group <= kept}
            assert spared.isdisjoint(stored)


def test_a_trial_computes_what_a_build_would(prepared: Prepared) -> None:
    """With the same samples and rounding: fused kernels and decoded weights change nothing."""
    kept = frozenset({"left.weight"})
    samples = prepared.quantize.samples
    trial = prepared.trial(kept, samples)
    graph = prepared.graph.copy()
    prepared.observers_without(kept).run(graph)
    Quantize(samples, QuantizationLog(), "nearest", INTEGER_OPS.unit_range).run(graph)

    (batch, *_) = samples.batches
    (expected,), (found,) = graph.run(batch).values(), trial.run(batch).values()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert not trial.calls(OBSERVE)


def test_costs_are_those_that_each_error_has_alone(prepared: Prepared) -> None:
    """The input in codes: what that changes is measured by running the graph on it."""
    batches = list(prepared.quantize.samples.batches)
    found = layer_damages(prepared, Samples(batches * 100, 64 * 100, "repeated"), relative_error)
    (name,) = prepared.graph.inputs
    seen = histogram([batch[name] for batch in batches * 100])
    params = choose(seen, ACTIVATION).params
    cost = 0.0
    for batch in batches:
        coded = ACTIVATION.decode(ACTIVATION.encode(batch[name], params), params)
        (exact,) = prepared.graph.run(batch).values()
        (moved,) = prepared.graph.run({name: coded}).values()
        cost += float((exact - moved).square().sum() / exact.square().sum()) * len(exact)

    assert found.values[name] == pytest.approx(cost / 64, rel=0.15)
    assert set(float_problem(prepared, found).values) <= found.values.keys()
    assert min(found.weights.values()) > 0
