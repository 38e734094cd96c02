"""A graph in an artifact's place while ``evaluate`` runs: in parts where samples are free, else whole."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from qcompile.compiler.driver import quality
from qcompile.compiler.frontend.trace import trace
from qcompile.compiler.ir.graph import Graph

FREE = {"x": {0: torch.export.Dim("batch", min=1, max=512)}}


class Layer(nn.Module):
    """A linear layer, and the mean of all that it gives if that is asked for."""

    def __init__(self, mean: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear, self.mean = nn.Linear(3, 2), mean

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.linear(x)
        return y.mean() if self.mean else y


@pytest.fixture
def sizes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many samples each run of a graph had."""
    found, run = [], Graph.run

    def counted(graph: Graph, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        found.append(len(inputs["x"]))
        return run(graph, inputs)

    monkeypatch.setattr(Graph, "run", counted)
    return found


@pytest.mark.parametrize("count", [1, 32, 75])
def test_parts_give_what_the_whole_gives(count: int, sizes: list[int]) -> None:
    module, x = Layer(mean=False).eval(), torch.randn(count, 3)
    graph = trace(module, {"x": torch.zeros(4, 3)}, dynamic_shapes=FREE)
    (found,) = quality.graph_predict(graph)({"x": x.numpy()}).values()

    np.testing.assert_allclose(found, module(x).detach().numpy(), rtol=1e-6)
    assert sorted(sizes) == sorted(len(part) for part in x.split(quality.PART))


@pytest.mark.parametrize(("mean", "free"), [(True, True), (True, False), (False, False)])
def test_what_has_no_free_axis_is_run_whole(mean: bool, free: bool, sizes: list[int]) -> None:
    """An output without samples, or a fixed number of them."""
    module, x = Layer(mean).eval(), torch.randn(70, 3)
    graph = trace(module, {"x": x[:70]}, dynamic_shapes=FREE if free else None)
    (found,) = quality.graph_predict(graph)({"x": x.numpy()}).values()

    np.testing.assert_allclose(found, module(x).detach().numpy(), rtol=1e-5)
    assert sizes == [70]
