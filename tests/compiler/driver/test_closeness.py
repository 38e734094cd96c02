"""By what predictions are judged, and how far they are from the original's."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from qcompile.compiler.driver.closeness import Predictions, predictions_of
from qcompile.compiler.frontend.trace import trace
from qcompile.compiler.ir.graph import Graph
from qcompile.compiler.ir.interface import Interface


@pytest.fixture(scope="module")
def graph() -> Graph:
    return trace(nn.Linear(4, 3), torch.zeros(2, 4))


def logits(seed: int) -> Tensor:
    return torch.randn(50, 5, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("probabilities", [False, True])
def test_kl_is_that_of_pytorch(probabilities: bool) -> None:
    first, second = logits(1), logits(2)
    expected = functional.kl_div(
        second.log_softmax(-1), first.log_softmax(-1), log_target=True, reduction="batchmean"
    )
    if probabilities:
        first, second = first.softmax(-1), second.softmax(-1)
    found = Predictions("kl", probabilities).compare(
        [({"y": first[:20]}, {"y": second[:20]}), ({"y": first[20:]}, {"y": second[20:]})]
    )

    assert found.mean == pytest.approx(float(expected), rel=1e-4)
    assert found.count == 50
    assert 0 < found.error < found.mean


def test_errors_of_several_outputs_are_relative() -> None:
    a, b = logits(1), 1000 * logits(2)
    found = Predictions("error").compare([({"a": a, "b": b}, {"a": 1.1 * a, "b": 0.8 * b})])

    assert found.mean == pytest.approx(0.1**2 + 0.2**2, rel=1e-4)


def test_what_is_judged_as_classes(graph: Graph) -> None:
    one = {"y": logits(1)}
    labelled = replace(graph, interface=Interface(labels=("a", "b", "c")))

    assert predictions_of(graph, one, [], False).kind == "error"
    assert predictions_of(graph, one, ["loss"], False).kind == "error"
    assert predictions_of(graph, one, ["top1", "loss"], False) == Predictions("kl")
    assert predictions_of(graph, one, ["accuracy"], False) == Predictions("kl")
    assert predictions_of(graph, one, [], True) == Predictions("kl")
    assert predictions_of(labelled, one, [], False) == Predictions("kl")
    probabilities = {"y": logits(1).softmax(-1)}
    assert predictions_of(graph, probabilities, ["top1"], False) == Predictions("kl", True)
    assert predictions_of(graph, one | {"z": logits(2)}, ["top1"], True).kind == "error"
    assert predictions_of(graph, {"y": logits(1)[:, :1]}, ["top1"], False).kind == "error"
