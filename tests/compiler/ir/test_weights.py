"""Weights: in memory or read from safetensors on demand, the same to whoever reads them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from qcompile.compiler.frontend.trace import trace
from qcompile.compiler.ir.graph import Graph
from qcompile.compiler.ir.ops import aten
from qcompile.compiler.ir.stored import StoredTensor, stored_tensors
from qcompile.compiler.ir.weights import Weights


@pytest.fixture(scope="module")
def traced() -> Graph:
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    return trace(net.eval(), torch.randn(3, 4))


@pytest.fixture
def graph(traced: Graph) -> Graph:
    return traced.copy()


@pytest.fixture
def stored(traced: Graph, tmp_path: Path) -> tuple[Graph, Graph]:
    """The same graph twice: with its weights in memory, and on ``meta`` with a file of them."""
    in_memory, graph = traced.copy(), traced.copy()
    file = tmp_path / "model.safetensors"
    save_file(dict(in_memory.weights), file)
    for name in list(graph.weights):
        graph.weights[name] = graph.weights[name].to("meta")
    graph.weights = Weights(graph.module, stored_tensors(file))
    return in_memory, graph


def test_listing_reads_nothing(
    stored: tuple[Graph, Graph], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, graph = stored
    monkeypatch.setattr(StoredTensor, "load", lambda self: pytest.fail("a tensor was read"))
    assert list(graph.weights) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert len(graph.weights) == 4
    assert graph.weights.peek("0.weight").is_meta
    assert graph.weights.peek("0.weight").shape == (8, 4)
    assert graph.copy().weights.peek("0.weight").is_meta


def test_each_look_up_reads_one_tensor(
    stored: tuple[Graph, Graph], monkeypatch: pytest.MonkeyPatch
) -> None:
    in_memory, graph = stored
    read: list[str] = []
    load = StoredTensor.load

    def spy(self: StoredTensor) -> Tensor:
        read.append(self.key)
        return load(self)

    monkeypatch.setattr(StoredTensor, "load", spy)
    assert torch.equal(graph.weights["2.weight"], in_memory.weights["2.weight"])
    assert read == ["2.weight"]
    assert graph.weights.peek("2.weight").is_meta, "nothing keeps what was read"


def test_runs_as_in_memory(stored: tuple[Graph, Graph]) -> None:
    in_memory, graph = stored
    assert torch.equal(graph.run(graph.inputs)["output"], in_memory.run(in_memory.inputs)["output"])
    assert torch.equal(
        graph.copy().run(graph.inputs)["output"], in_memory.run(in_memory.inputs)["output"]
    )


def test_digests_and_text_are_those_of_the_tensors_in_memory(stored: tuple[Graph, Graph]) -> None:
    in_memory, graph = stored
    for name in in_memory.weights:
        assert graph.weights.digest(name) == in_memory.weights.digest(name)
    assert graph.to_text() == in_memory.to_text()


def test_a_tensor_that_is_set_is_no_longer_read(stored: tuple[Graph, Graph]) -> None:
    _, graph = stored
    twin = graph.copy()
    graph.weights["0.bias"] = torch.ones(8)
    assert torch.equal(graph.weights["0.bias"], torch.ones(8))
    assert "0.bias" not in graph.weights.stored
    assert twin.weights.peek("0.bias").is_meta
    assert not torch.equal(twin.weights["0.bias"], torch.ones(8))


@pytest.mark.parametrize("shift", [0.0, 1.0])
def test_scaled_in_a_file_as_in_memory(stored: tuple[Graph, Graph], shift: float) -> None:
    in_memory, graph = stored
    rows, columns = torch.rand(8).double() + 0.5, torch.rand(4).double() + 0.5
    exact = (in_memory.weights["0.weight"].double() + shift) * rows[:, None] - shift
    exact = (exact + shift) * columns - shift
    for weights in (in_memory.weights, graph.weights):
        weights.scale("0.weight", rows, 0, shift)
        weights.scale("0.weight", columns, 1, shift)
        assert weights["0.weight"].dtype == torch.float32
        torch.testing.assert_close(weights["0.weight"], exact.float())
    assert graph.weights.peek("0.weight").is_meta
    assert graph.weights.stored["0.weight"].shape() == (8, 4)
    assert torch.equal(graph.weights["0.weight"], in_memory.weights["0.weight"])
    assert graph.weights.digest("0.weight") == in_memory.weights.digest("0.weight")


def test_scaling_a_copy_leaves_the_graph(stored: tuple[Graph, Graph]) -> None:
    for graph in stored:
        before = graph.weights["0.weight"]
        graph.copy().weights.scale("0.weight", torch.full((8,), 2.0), 0)
        assert torch.equal(graph.weights["0.weight"], before)


def test_meta_without_a_file_has_no_digest(graph: Graph) -> None:
    graph.weights["0.bias"] = torch.empty(8, device="meta")
    assert graph.weights.digest("0.bias") == "meta"


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float16, torch.int8, torch.int64, torch.bool]
)
def test_digest_is_of_the_values(graph: Graph, dtype: torch.dtype) -> None:
    name, digests = "0.bias", []
    matrix = torch.tensor([[0, 1, 1, 0], [1, 1, 0, 0]]).to(dtype)
    for tensor in (matrix, matrix.clone(), matrix.t().contiguous().t(), matrix * 0, matrix[0, 0]):
        graph.weights[name] = tensor
        digests.append(graph.weights.digest(name))
    assert digests[0] == digests[1] == digests[2]
    assert len(set(digests)) == 3
    assert all(len(digest) == 8 for digest in digests)


def test_names_with_dots_make_their_modules(graph: Graph) -> None:
    first = graph.calls(aten.linear.default)[0]
    with graph.before(first):
        node = graph.add_constant("a.new.place.bias", torch.ones(8))
    first.args = (*first.args[:2], node)
    assert "a.new.place.bias" in graph.weights
    assert torch.equal(graph.copy().weights["a.new.place.bias"], torch.ones(8))
    graph.module.graph.lint()


@pytest.mark.parametrize("name", ["3.weight", "0.nothing", "nothing"])
def test_an_unknown_name_is_a_key_error(graph: Graph, name: str) -> None:
    with pytest.raises(KeyError, match=name):
        graph.weights[name]


def test_deleting_an_unknown_name_is_a_key_error(graph: Graph) -> None:
    with pytest.raises(KeyError):
        del graph.weights["0.nothing"]


def test_deleted_is_gone(graph: Graph) -> None:
    del graph.weights["0.bias"]
    with pytest.raises(KeyError):
        graph.weights["0.bias"]
