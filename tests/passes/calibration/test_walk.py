"""The walk: both streams are what the graphs compute, and memory is bounded."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, fx, nn

from qcompile.compiler.frontend.trace import trace
from qcompile.compiler.ir.graph import Graph
from qcompile.compiler.ir.ops import OBSERVE, aten
from qcompile.compiler.ir.quant import Granularity, QuantSpec
from qcompile.passes.base import run
from qcompile.passes.calibration.samples import Samples
from qcompile.passes.calibration.walk import ActivationStore, Values, Walk
from qcompile.passes.quantization.insert_observers import InsertObservers
from qcompile.passes.quantization.integer_ops import IntegerOps
from qcompile.passes.quantization.quantizer import Quantizer
from qcompile.passes.quantization.records import QuantizationLog

OPS = IntegerOps(
    layers=frozenset({aten.conv2d.default, aten.linear.default}),
    needs_output=frozenset({aten.conv2d.default}),
    arithmetic=frozenset({aten.add.Tensor}),
    products=frozenset(),
    moves=frozenset({aten.view.default, aten.flatten.using_ints}),
    unit_range=frozenset(),
)
UINT8 = QuantSpec(signed=False, symmetric=False)
INT8 = QuantSpec(granularity=Granularity.PER_CHANNEL, axis=0)


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.second = nn.Conv2d(4, 4, 3, padding=1)
        self.head = nn.Linear(4 * 16, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.first(x))
        z: Tensor = self.head(torch.relu(self.second(y) + y).flatten(1))
        return z


class Ignore:
    """Takes over nothing."""

    def visit(self, walk: Walk, node: fx.Node) -> tuple[fx.Node, Values] | None:
        return None


class Fail(Ignore):
    """Fails at the last layer."""

    def visit(self, walk: Walk, node: fx.Node) -> tuple[fx.Node, Values] | None:
        if node.target == aten.linear.default:
            assert walk.store.spilled
            raise RuntimeError("on purpose")
        return None


@pytest.fixture
def graph() -> Graph:
    return trace(Residual(), torch.randn(2, 3, 4, 4))


@pytest.fixture
def samples() -> Samples:
    return Samples([{"x": torch.randn(2, 3, 4, 4)} for _ in range(5)], 10, "random")


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which temporary folders are made."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def outputs(
    graph: Graph, walk: Walk, visitor: Ignore | Quantizer
) -> tuple[list[Tensor], list[Tensor]]:
    """Run a walk; return both versions of the graph's output."""
    exact: list[Tensor] = []
    quantized: list[Tensor] = []

    def keep(share: float) -> None:
        (last,) = graph.nodes[-1].all_input_nodes
        if last in walk.values and not exact:
            values = walk.values[last]
            exact.extend(v.clone() for v in values.float)
            quantized.extend(v.clone() for v in values.quantized)

    walk.on_node = keep
    walk.run(visitor)
    return exact, quantized


def test_float_stream_is_the_graph(graph: Graph, samples: Samples) -> None:
    exact, quantized = outputs(graph, Walk(graph, samples), Ignore())
    for batch, got, same in zip(samples, exact, quantized, strict=True):
        assert torch.equal(got, graph.run(batch)["output"])
        assert same is got or torch.equal(same, got)


@pytest.mark.parametrize("rounding", ["nearest", "gptq"])
def test_quantized_stream_is_the_quantized_graph(
    graph: Graph, samples: Samples, rounding: str
) -> None:
    float_outputs = [graph.run(batch)["output"] for batch in samples]
    run(graph, [InsertObservers(OPS, UINT8, INT8)])
    visitor = Quantizer(QuantizationLog(), rounding, frozenset(), 10.0)
    exact, quantized = outputs(graph, Walk(graph, samples), visitor)
    assert not graph.calls(OBSERVE)
    graph.erase_unused()
    for batch, reference, want, got in zip(samples, float_outputs, exact, quantized, strict=True):
        assert torch.equal(want, reference)
        assert torch.equal(got, graph.run(batch)["output"])
        assert not torch.equal(got, want)


def test_every_value_is_dropped(graph: Graph, samples: Samples) -> None:
    walk = Walk(graph, samples)
    walk.run(Ignore())
    assert not walk.values
    assert walk.store.used == 0


@pytest.mark.parametrize("max_bytes", [0, 1000, 1 << 20])
def test_memory_is_bounded_and_results_are_equal(
    graph: Graph, samples: Samples, temporary: Path, max_bytes: int
) -> None:
    expected, _ = outputs(graph, Walk(graph, samples), Ignore())
    walk = Walk(graph, samples, max_bytes)
    highest = 0

    class Watch(Ignore):
        def visit(self, walk: Walk, node: fx.Node) -> tuple[fx.Node, Values] | None:
            nonlocal highest
            highest = max(highest, walk.store.used)
            return None

    got, _ = outputs(graph, walk, Watch())
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
    assert highest <= max_bytes
    assert bool(walk.store.spilled) == (max_bytes < 1 << 20)
    assert not list(temporary.iterdir())


def test_folder_is_removed_when_a_visitor_fails(
    graph: Graph, samples: Samples, temporary: Path
) -> None:
    with pytest.raises(RuntimeError, match="on purpose"):
        Walk(graph, samples, 0).run(Fail())
    assert not list(temporary.iterdir())


DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool]


@given(
    shapes=st.lists(st.lists(st.integers(0, 5), max_size=3), min_size=1, max_size=12),
    dtype=st.sampled_from(DTYPES),
    max_bytes=st.integers(0, 400),
    drops=st.sets(st.integers(0, 11)),
)
def test_store_gives_back_what_it_took(
    shapes: list[list[int]], dtype: torch.dtype, max_bytes: int, drops: set[int]
) -> None:
    store = ActivationStore(max_bytes)
    held: list[tuple[Tensor, object]] = []
    for index, shape in enumerate(shapes):
        value = (torch.rand(shape) * 3).to(dtype)
        value = value.transpose(0, -1) if value.dim() > 1 else value
        held.append((value, store.put(value)))
        assert store.used <= max_bytes
        if index in drops:
            store.drop(held.pop()[1])
    for value, item in held:
        back = store.get(item)
        assert back.dtype == dtype
        assert torch.equal(back, value)
        store.drop(item)
    assert store.used == 0
    store.close()


def test_what_is_no_tensor_is_kept() -> None:
    store = ActivationStore(0)
    assert store.get(store.put(7)) == 7
    assert store.get(store.put((1, 2))) == (1, 2)
