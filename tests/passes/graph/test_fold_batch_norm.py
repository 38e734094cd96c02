"""fold-batch-norm: into every kind of layer, and only where the function stays the same."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from qcompile.compiler.frontend.trace import trace
from qcompile.compiler.ir.graph import Graph
from qcompile.compiler.ir.ops import aten
from qcompile.passes.base import Pass, run
from qcompile.passes.graph.fold_batch_norm import FoldBatchNorm

Rewrite = Callable[[Graph, Pass], int]
NORM = aten._native_batch_norm_legit_no_training.default


class Applies(nn.Module):
    """Layers, and a function of them and the input."""

    def __init__(self, function: Callable[..., Tensor], *layers: nn.Module) -> None:
        super().__init__()
        self.layers, self.function = nn.ModuleList(layers), function
        for tensor in (*self.parameters(), *self.buffers()):
            if tensor.is_floating_point():
                tensor.data.uniform_(0.5, 2).mul_(torch.randn(()).sign().clamp(min=0.5))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, *self.layers)


def chain(x: Tensor, *layers: nn.Module) -> Tensor:
    return nn.Sequential(*layers)(x)


def test_golden(
    golden: Callable[[str, str], None],
    rewrite: Rewrite,
    quarters: Callable[[nn.Module], nn.Module],
) -> None:
    conv, norm = nn.Conv2d(2, 3, 3, bias=False), nn.BatchNorm2d(3)
    net = nn.Sequential(conv, norm, nn.ReLU(), nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2))
    graph = trace(quarters(net), torch.randn(2, 2, 5, 5))
    assert rewrite(graph, FoldBatchNorm()) == 2
    assert not graph.calls(NORM)
    golden("fold_batch_norm.txt", graph.to_text())


@pytest.mark.parametrize(
    ("layer", "norm", "shape"),
    [
        (nn.Conv1d(3, 4, 3), nn.BatchNorm1d(4), (2, 3, 9)),
        (nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), (2, 3, 6, 6)),
        (nn.Conv3d(3, 4, 2), nn.BatchNorm3d(4), (2, 3, 4, 4, 4)),
        (nn.Linear(3, 4), nn.BatchNorm1d(4), (2, 3)),
        (nn.Linear(3, 4, bias=False), nn.BatchNorm1d(4), (2, 3)),
        (nn.ConvTranspose2d(3, 4, 2), nn.BatchNorm2d(4), (2, 3, 4, 4)),
        (nn.ConvTranspose2d(3, 4, 2, bias=False), nn.BatchNorm2d(4, affine=False), (2, 3, 4, 4)),
    ],
)
def test_layers(
    layer: nn.Module, norm: nn.Module, shape: tuple[int, ...], rewrite: Rewrite
) -> None:
    graph = trace(Applies(chain, layer, norm), torch.randn(shape))
    assert rewrite(graph, FoldBatchNorm()) == 1
    assert not graph.calls(NORM)


@settings(max_examples=12, phases=[Phase.generate])  # shrinking takes minutes of exports
@given(
    groups=st.integers(1, 3),
    inputs=st.integers(1, 3),
    outputs=st.integers(1, 3),
    kernel=st.integers(1, 3),
    stride=st.integers(1, 2),
    bias=st.booleans(),
    affine=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_the_function_stays_the_same(
    groups: int,
    inputs: int,
    outputs: int,
    kernel: int,
    stride: int,
    bias: bool,
    affine: bool,
    seed: int,
) -> None:
    torch.manual_seed(seed)
    conv = nn.Conv2d(groups * inputs, groups * outputs, kernel, stride, 1, 1, groups, bias)
    norm = nn.BatchNorm2d(groups * outputs, affine=affine, eps=10.0 ** -(seed % 6))
    net, x = Applies(chain, conv, norm), torch.randn(2, groups * inputs, 5, 5)
    graph = trace(net, x)
    assert run(graph, [FoldBatchNorm()])[0].rewrites == 1
    with torch.no_grad():
        torch.testing.assert_close(graph.run({"x": x})["output"], net.eval()(x))
    assert [n.target for n in graph.nodes if n.op == "call_function"] == [aten.conv2d.default]


def branch(x: Tensor, conv: nn.Module, norm: nn.Module) -> Tensor:
    y = conv(x)
    return F.relu(norm(y)) + y


def computed_weight(x: Tensor, conv: nn.Module, norm: nn.Module) -> Tensor:
    result: Tensor = norm(F.conv2d(x, x[:1, :, :1, :1].repeat(4, 1, 1, 1)))
    return result


def in_training(x: Tensor, conv: nn.Module, norm: nn.Module) -> Tensor:
    return F.batch_norm(conv(x), None, None, training=True)


@pytest.mark.parametrize(
    ("function", "layer"),
    [
        (branch, nn.Conv2d(4, 4, 1)),
        (in_training, nn.Conv2d(4, 4, 1)),
        (lambda x, conv, norm: norm(F.relu(conv(x))), nn.Conv2d(4, 4, 1)),
        (lambda x, conv, norm: conv(norm(x)), nn.Conv2d(4, 4, 1, padding=1)),
        (computed_weight, nn.Identity()),
        (chain, nn.ConvTranspose2d(4, 4, 2, groups=2)),
    ],
)
def test_what_cannot_be_folded_stays(
    function: Callable[..., Tensor], layer: nn.Module, rewrite: Rewrite
) -> None:
    graph = trace(Applies(function, layer, nn.BatchNorm2d(4)), torch.randn(2, 4, 3, 3))
    assert rewrite(graph, FoldBatchNorm()) == 0


def test_a_layer_that_is_an_output_stays(rewrite: Rewrite) -> None:
    layers = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)
    both = Applies(lambda x, conv, norm: (y := conv(x), norm(y)), *layers)
    assert rewrite(trace(both, torch.randn(2, 3, 4, 4)), FoldBatchNorm()) == 0


def test_a_weight_of_two_layers_is_folded_for_one(rewrite: Rewrite) -> None:
    layers = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
    twice = Applies(lambda x, conv, norm: conv(norm(conv(x))), *layers)
    graph = trace(twice, torch.randn(2, 4, 3, 3))
    assert rewrite(graph, FoldBatchNorm()) == 1
    first, second = graph.calls(aten.conv2d.default)
    assert first.args[1].target != second.args[1].target
    assert torch.equal(graph.constant(second.args[1]), twice.layers[0].weight)


def test_a_layer_with_two_norms_in_turn(rewrite: Rewrite) -> None:
    layers = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.BatchNorm2d(4)
    graph = trace(Applies(chain, *layers), torch.randn(2, 3, 4, 4))
    assert rewrite(graph, FoldBatchNorm()) == 2


def test_factors_are_computed_in_double() -> None:
    conv, norm = nn.Conv2d(3, 64, 1), nn.BatchNorm2d(64)
    net = Applies(chain, conv, norm)
    net.requires_grad_(False)
    graph = trace(net, torch.randn(2, 3, 4, 4))
    run(graph, [FoldBatchNorm()])
    assert norm.running_var is not None
    factor = norm.weight.double() / torch.sqrt(norm.running_var.double() + norm.eps)
    expected = (conv.weight.double() * factor.reshape(-1, 1, 1, 1)).float()
    difference = (graph.weights["layers.0.weight"] - expected).abs() / expected.abs()
    assert float(difference.max()) < 2**-23, "one rounding, to float32"
    assert int((difference > 0).sum()) <= 2, "and that the right one, but for a tie"


@pytest.mark.parametrize(
    ("layer", "shape"),
    [(nn.Linear(3, 4), (2, 4, 3)), (nn.Linear(3, 5), (2, 4, 3)), (nn.Conv1d(3, 4, 1), (3, 4))],
    ids=["silent", "crash", "unbatched"],
)
def test_a_norm_over_another_axis_stays(
    layer: nn.Module, shape: tuple[int, ...], rewrite: Rewrite
) -> None:
    graph = trace(Applies(chain, layer, nn.BatchNorm1d(4)), torch.randn(shape))
    assert rewrite(graph, FoldBatchNorm()) == 0


@pytest.mark.parametrize("computed", ["bias", "gamma", "beta"])
def test_what_is_computed_at_run_time_is_not_dropped(computed: str, rewrite: Rewrite) -> None:
    def function(x: Tensor, conv: nn.Conv2d, norm: nn.BatchNorm2d) -> Tensor:
        scale = x.mean()
        bias, gamma, beta = conv.bias, norm.weight, norm.bias
        assert bias is not None
        bias = bias * scale if computed == "bias" else bias
        gamma = gamma * scale if computed == "gamma" else gamma
        beta = beta * scale if computed == "beta" else beta
        y = F.conv2d(x, conv.weight, bias)
        return F.batch_norm(y, norm.running_mean, norm.running_var, gamma, beta)

    net = Applies(function, nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    rewrite(trace(net, torch.randn(2, 3, 4, 4)), FoldBatchNorm())
