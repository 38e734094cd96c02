"""Predicted damage against the KL divergence that is measured when a weight is really replaced."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from qcompile.compiler.frontend.trace import trace
from qcompile.compiler.ir.blocks.catalog import BLOCK_FORMATS
from qcompile.compiler.ir.graph import Graph
from qcompile.passes.calibration.samples import Samples
from qcompile.passes.calibration.way_back import WayBack
from qcompile.passes.mixed_precision import block_damage
from qcompile.passes.mixed_precision.block_damage import BlockDamage
from qcompile.passes.mixed_precision.cotangents import drawn_labels
from qcompile.passes.quantization.block_rounding import encode

NAMES = ("Q4_0", "Q5_0", "Q8_0")
WIDTH, WORDS = 64, 80


class Model(nn.Module):
    """A look-up, two layers that read one value, a residual, and the table again as output layer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.table = nn.Embedding(WORDS, WIDTH)
        self.gate = nn.Linear(WIDTH, WIDTH, bias=False)
        self.up = nn.Linear(WIDTH, WIDTH, bias=False)
        self.scales = nn.Parameter(torch.logspace(-1, 0.5, WIDTH))
        for part in (self.gate, self.up):
            nn.init.normal_(part.weight, std=WIDTH**-0.5)
        nn.init.normal_(self.table.weight, std=0.25)

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.table(input_ids)
        y = functional.layer_norm(x, (WIDTH,)) * self.scales
        z = x + 0.3 * functional.silu(self.gate(y)) * self.up(y)
        return functional.linear(functional.layer_norm(z, (WIDTH,)), self.table.weight)


@pytest.fixture(scope="module")
def graph() -> Graph:
    return trace(Model(), torch.zeros(2, 6, dtype=torch.int64))


@pytest.fixture(scope="module")
def samples() -> Samples:
    seeded = torch.Generator().manual_seed(0)
    # Some words are frequent, so that rows of the table matter unequally.
    frequency = torch.arange(1, WORDS + 1).float().reciprocal()
    batches = [
        {"input_ids": torch.multinomial(frequency, 1200, True, generator=seeded).reshape(2, 600)}
        for _ in range(8)
    ]
    return Samples(batches, 16, "test")


def damage(graph: Graph, samples: Samples) -> Mapping[str, Mapping[str, float]]:
    names = ("table.weight", "gate.weight", "up.weight")
    found = BlockDamage(graph, {name: [BLOCK_FORMATS[f] for f in NAMES] for name in names}, {})
    WayBack(graph, samples, drawn_labels).run(found)
    return found.found


def measured(graph: Graph, samples: Samples, name: str, decoded: Tensor) -> float:
    """Return the KL divergence per token of the graph with another weight."""
    changed = graph.copy()
    for node in changed.nodes:
        if node.op == "get_attr" and node.target == name:
            changed.weights[name] = decoded
    total = 0.0
    for batch in samples:
        p, q = (g.run(batch)["output"].log_softmax(-1) for g in (graph, changed))
        total += float((p.exp() * (p - q)).sum(-1).mean())
    return total / len(samples)


def inputs(graph: Graph, samples: Samples, name: str) -> Tensor | None:
    """Return the mean squares of what a layer reads; of a table nothing."""
    if name == "table.weight":
        return None
    module = Model()
    rows = torch.cat([module.table(batch["input_ids"]).flatten(0, 1) for batch in samples])
    found: Tensor = (
        (functional.layer_norm(rows, (WIDTH,)) * module.scales).square().mean(0).detach()
    )
    return found


@pytest.mark.parametrize(
    ("name", "within"), [("table.weight", 0.6), ("gate.weight", 0.35), ("up.weight", 0.35)]
)
def test_prediction_is_what_is_measured(
    graph: Graph, samples: Samples, name: str, within: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To second order, and but for what the errors of 64 rows happen to have in common."""
    monkeypatch.setattr(block_damage, "has_feedback", lambda format: False)
    predicted = damage(graph, samples)[name]

    for kind in NAMES:
        weight, format = graph.weights[name], BLOCK_FORMATS[kind]
        decoded = encode(weight, format, inputs(graph, samples, name)).decoded
        assert predicted[kind] == pytest.approx(measured(graph, samples, name, decoded), rel=within)


def test_some_rows_stand_for_all(
    graph: Graph, samples: Samples, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = damage(graph, samples)
    monkeypatch.setattr(block_damage, "ROWS", 24)
    monkeypatch.setattr(block_damage, "TABLE_ROWS", 40)

    part = damage(graph, samples)

    for name, found in part.items():
        for kind, value in found.items():
            assert value == pytest.approx(whole[name][kind], rel=0.5)
            assert value != whole[name][kind]


def test_error_feedback_counts_where_it_helps(
    graph: Graph, samples: Samples, monkeypatch: pytest.MonkeyPatch
) -> None:
    best = damage(graph, samples)
    monkeypatch.setattr(block_damage, "has_feedback", lambda format: False)
    plain = damage(graph, samples)

    assert all(best[n][k] <= plain[n][k] for n in best for k in NAMES)
    assert any(best[n][k] < 0.9 * plain[n][k] for n in best for k in NAMES)


def test_what_is_known_is_not_tried_again(graph: Graph, samples: Samples) -> None:
    known = {"gate.weight": {"Q4_0": 1.0}}
    told: list[str] = []
    formats = {name: [BLOCK_FORMATS["Q4_0"]] for name in ("gate.weight", "up.weight")}
    visitor = BlockDamage(graph, formats, known, lambda name, found: told.append(name))

    WayBack(graph, samples, drawn_labels).run(visitor)

    assert told == ["up.weight"]
    assert visitor.found["gate.weight"] == {"Q4_0": 1.0}


@given(st.lists(st.floats(0, 1e3), min_size=1, max_size=200), st.integers(1, 64))
@settings(max_examples=30, deadline=None)
def test_rows_that_are_drawn_stand_for_all(power: list[float], wanted: int) -> None:
    """What is proportional to what rows count is estimated well, and no row stands for less than nothing."""
    rows = block_damage.some_rows(torch.tensor(power), wanted)

    assert len(rows.numbers) <= max(wanted, 1) or len(rows.numbers) == len(power)
    assert len(set(rows.numbers.tolist())) == len(rows.numbers)
    assert bool((rows.counts > 0).all())
    if len(power) <= wanted:
        assert rows.counts.tolist() == [1.0] * len(power)


def test_rows_that_count_most_are_among_them() -> None:
    power = torch.ones(1000)
    power[[3, 700]] = 500.0

    rows = block_damage.some_rows(power, 20)

    assert {3, 700} <= set(rows.numbers.tolist())
    assert float((rows.counts * power[rows.numbers]).sum()) == pytest.approx(
        float(power.sum()), rel=0.2
    )


class Mixture(nn.Module):
    """Two of four experts for each word, one of them for few words; shares weigh their outputs."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.table = nn.Embedding(WORDS, WIDTH)
        self.router = nn.Linear(WIDTH, 4)
        self.experts = nn.ModuleList(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(4))
        self.out = nn.Linear(WIDTH, WORDS, bias=False)
        nn.init.normal_(self.table.weight)
        with torch.no_grad():
            self.router.bias.copy_(torch.tensor([0.0, 0.3, -0.3, -1.0]))

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.table(input_ids).flatten(0, 1)
        shares, chosen = self.router(x).softmax(-1).topk(2)
        weights = [expert.weight for expert in self.experts]
        y = torch.ops.qcompile.expert_linear(x[:, None], chosen, shares, weights).sum(1)
        return self.out(functional.layer_norm(x + 3 * y, (WIDTH,))).reshape(*input_ids.shape, WORDS)


def test_experts(samples: Samples, monkeypatch: pytest.MonkeyPatch) -> None:
    """The prediction is what is measured, and one that few tokens reach does less."""
    monkeypatch.setattr(block_damage, "has_feedback", lambda format: False)
    graph = trace(Mixture(), samples.batches[0]["input_ids"])
    names = [f"experts.{i}.weight" for i in range(4)]
    found = BlockDamage(graph, {name: [BLOCK_FORMATS["Q4_0"]] for name in names}, {})
    WayBack(graph, samples, drawn_labels).run(found)
    predicted = [found.found[name]["Q4_0"] for name in names]

    for name, damage in zip(names, predicted, strict=True):
        decoded = encode(graph.weights[name], BLOCK_FORMATS["Q4_0"], None).decoded
        assert damage == pytest.approx(measured(graph, samples, name, decoded), rel=0.5)
    assert predicted[3] < 0.5 * max(predicted)


def test_gradients_of_experts() -> None:
    """Those of what the op computes, written out."""
    torch.manual_seed(3)
    chosen = torch.tensor([[0, 2], [2, 1], [1, 0], [3, 2]])
    weights = [torch.randn(5, 6) for _ in range(4)]
    for width in (1, 2):
        leaves = [torch.randn(4, width, 6).requires_grad_(), torch.rand(4, 2).requires_grad_()]
        x, shares = leaves
        found = torch.ops.qcompile.expert_linear(x, chosen, shares, weights)
        stacked = torch.stack(weights)[chosen]
        expected = torch.einsum("tcoi,tci->tco", stacked, x.expand(4, 2, 6) * shares[..., None])
        seen = torch.randn(4, 2, 5)
        torch.testing.assert_close(found, expected)
        for own, wanted in zip(
            torch.autograd.grad(found, leaves, seen),
            torch.autograd.grad(expected, leaves, seen),
            strict=True,
        ):
            torch.testing.assert_close(own, wanted)
