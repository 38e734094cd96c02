"""A module without weights and a file with them: the graph, and the package, of the usual way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from qcompile.compiler.frontend.stored import trace_stored
from qcompile.compiler.frontend.trace import trace
from qcompile.compiler.ir.errors import ModelError, UnsupportedError
from qcompile.compiler.ir.graph import Graph
from qcompile.passes.base import run
from qcompile.passes.graph.round_constants_to_half import RoundConstantsToHalf
from qcompile.targets.coreml.emitter import EMITTER
from qcompile.targets.coreml.stream import write_stored_weights
from qcompile.targets.device import load_device
from qcompile.targets.order import Order, Scheme

X = torch.linspace(-1, 1, 48).reshape(1, 3, 4, 4)


class Net(nn.Module):
    """Weights of one shape, which coremltools must not take for equal; a buffer; whole numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 1)
        self.third = nn.Conv2d(16, 16, 1)
        self.register_buffer("mean", torch.randn(1, 16, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(self.first(x).relu()).relu()
        return self.third(x).relu() - self.mean  # type: ignore[no-any-return]


def stored(net: nn.Module, folder: Path) -> Graph:
    """Return the graph of the net's structure and a file with its weights."""
    file = folder / "net.safetensors"
    save_file(net.state_dict(), file)
    with torch.device("meta"):
        empty = Net()
    return trace_stored(empty, file, X)


def package(graph: Graph, folder: Path) -> Path:
    """Round a graph to float16 and emit it."""
    run(graph, [RoundConstantsToHalf()])
    folder.mkdir()
    order = Order("net", load_device("apple-a14"), Scheme("fp16", None, None, 16))
    EMITTER.emit(graph, folder, order)
    return folder / "model.mlpackage"


def test_the_same_graph(tmp_path: Path) -> None:
    """In text, in numbers and in digests; and no weight is in memory."""
    net = Net().eval()
    graph, usual = stored(net, tmp_path), trace(net, X)
    assert graph.to_text() == usual.to_text()
    assert set(graph.weights.stored) == set(usual.weights)
    assert all(graph.weights.peek(name).is_meta for name in graph.weights)
    expected = usual.run({"x": X})["output"]
    torch.testing.assert_close(graph.run({"x": X})["output"], expected, rtol=0, atol=0)


def test_halves_in_the_file_are_float32_when_they_are_read(tmp_path: Path) -> None:
    net = Net().bfloat16()
    file = tmp_path / "net.safetensors"
    save_file(net.state_dict(), file)
    with torch.device("meta"):
        empty = Net().bfloat16()
    graph = trace_stored(empty, file, X)
    for name in graph.weights:
        assert graph.weights.peek(name).dtype == graph.weights[name].dtype == torch.float32
        assert torch.equal(graph.weights[name], net.state_dict()[name].float())


def test_the_same_package(tmp_path: Path) -> None:
    """Every file is the same, bit for bit: the weights arrive although coremltools saw zeros."""
    net = Net().eval()
    streamed = package(stored(net, tmp_path), tmp_path / "streamed")
    usual = package(trace(net, X), tmp_path / "usual")
    files = sorted(f.relative_to(usual) for f in usual.rglob("*") if f.is_file())
    assert files == sorted(f.relative_to(streamed) for f in streamed.rglob("*") if f.is_file())
    weights = [f for f in files if f.name == "weight.bin"]
    assert len(weights) == 1
    for name in files:
        assert (streamed / name).read_bytes() == (usual / name).read_bytes(), name
    half = net.second.weight.detach().half().numpy().tobytes()
    assert half in (streamed / weights[0]).read_bytes()


def test_a_graph_in_memory_writes_nothing(tmp_path: Path) -> None:
    assert write_stored_weights(trace(Net(), X), tmp_path / "none", {}) == 0


def test_weights_that_have_no_place_are_all_named(tmp_path: Path) -> None:
    graph = stored(Net(), tmp_path)
    usual = package(trace(Net(), X), tmp_path / "usual")
    with pytest.raises(UnsupportedError, match=r"stores 7 weight\(s\) in another form") as error:
        write_stored_weights(graph, usual, {})
    assert "first.weight" in str(error.value)
    assert "mean" in str(error.value)


def refusal(tensors: dict[str, Any], tmp_path: Path) -> str:
    file = tmp_path / "bad.safetensors"
    save_file(tensors, file)
    with torch.device("meta"):
        empty = Net()
    with pytest.raises(ModelError) as error:
        trace_stored(empty, file, X)
    return str(error.value).replace(str(file), "FILE")


def test_tensors_that_the_file_lacks_are_all_named(tmp_path: Path) -> None:
    tensors = {n: t for n, t in Net().state_dict().items() if n not in ("mean", "first.bias")}
    assert refusal(tensors, tmp_path) == "FILE lacks 2 tensor(s): first.bias, mean"


def test_shapes_that_do_not_fit_are_all_named(tmp_path: Path) -> None:
    other = {"mean": torch.zeros(16), "third.bias": torch.zeros(2)}
    assert refusal({**Net().state_dict(), **other}, tmp_path) == (
        "FILE does not fit the model: third.bias is [2], not [16]; mean is [16], not [1, 16, 1, 1]"
    )
