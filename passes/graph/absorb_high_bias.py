"""Move what a ReLU always lets through from the layer before it to the layers after it.

Before:  y = relu(conv2d(x, w1, b1));             z = conv2d(y, w2, b2)
After:   y = relu(conv2d(x, w1, b1 - c));         z = conv2d(y, w2, b2 + w2 @ c)
         (of clamp(..., 0, u): clamp(..., 0, u - c), a bound a channel)

A channel whose pre-activation was never below m > 0 spends codes on [0, m] that it does not use;
with c = m * (1 - margin) taken away, the value's range is smaller. Inputs whose pre-activations
stay >= c give the same z: relu(p - c) = p - c = relu(p) - c, and the readers add w2 @ c. Where one
falls below c, y stays at 0, which stands for c.

All readers must be layers without padding (a padded 0 would stand for c), reached directly or
through what maps a constant to itself: pooling, flatten. Done only where the largest value of the
whole tensor drops, for the tensor has one scale. No bound falls below that value, so a quantizer
that covers it still does the work of the clamp (``fold-activation``).

Source: Nagel et al. 2019, section 4.1.3 (https://arxiv.org/abs/1906.04721), where m is the batch
norm's mean less three deviations; here it is measured.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from qcompile.compiler.ir.graph import Graph, is_dynamic
from qcompile.compiler.ir.ops import aten
from qcompile.compiler.stages.cache import NO_CACHE, StageCache
from qcompile.passes.base import Pass
from qcompile.passes.calibration.channel_statistics import ChannelStatistics, channel_statistics
from qcompile.passes.calibration.samples import Samples
from qcompile.passes.graph.channel_links import CONVOLUTIONS, LAYERS
from qcompile.passes.graph.fusion import fused_activation
from qcompile.passes.graph.rescale import clamp_bounds, input_columns, set_upper_bound

_POOLS = (aten.adaptive_avg_pool2d.default, aten.avg_pool2d.default, aten.max_pool2d.default)
_RESHAPES = (aten.flatten.using_ints, aten.view.default, aten.reshape.default)
_Reader = tuple[fx.Node, int]
"""A layer that reads a value, and how often each channel repeats on the way."""


@dataclass(frozen=True)
class AbsorbHighBias(Pass):
    """Subtract from a layer's bias what its ReLU always passes, and add it to the readers' biases.

    Args:
        samples: Where each pre-activation's smallest value is measured.
        margin: Share of that value which stays, for inputs that go lower.
        stages: Where values are found that another build has measured.
    """

    name = "absorb-high-bias"
    samples: Samples = field(repr=False)
    margin: float = 0.1
    stages: StageCache = field(default=NO_CACHE, repr=False)

    def run(self, graph: Graph) -> int:
        found = {n: r for n in graph.calls(*LAYERS) if (r := _readers_of_activation(graph, n))}
        if not found:
            return 0
        seen = channel_statistics(
            graph, self.samples, {n: _channel_axis(n) for n in found}, self.stages
        )
        return sum(self._absorb(graph, n, seen[n], found[n]) for n in found if n in seen)

    def _absorb(
        self, graph: Graph, layer: fx.Node, seen: ChannelStatistics, readers: list[_Reader]
    ) -> int:
        activation = fused_activation(layer)
        assert activation is not None
        bound = _bound(graph, activation).expand(len(seen.high))
        high = torch.minimum(seen.high, bound).clamp(min=0)
        shift = seen.low.clamp(min=0) * (1 - self.margin)
        top = (high - shift).max().clamp(min=0)
        if not bool(top < high.max()):
            return 0
        shift = torch.minimum(shift, (bound - top).clamp(min=0))  # more would not lower the top
        _add_to_bias(graph, layer, -shift)
        for reader, repeats in readers:
            weight = _weight(graph, reader)
            kernel = weight.double().reshape(*weight.shape[:2], -1).sum(2)
            columns = shift.repeat_interleave(repeats)[input_columns(reader, weight)]
            _add_to_bias(graph, reader, (kernel * columns).sum(1))
        if bool(torch.isfinite(bound).any()):
            after_channels = layer.meta["val"].dim() - 1 - _channel_axis(layer)
            set_upper_bound(graph, activation, (bound - shift).reshape(-1, *[1] * after_channels))
        return 1


def _channel_axis(layer: fx.Node) -> int:
    return 1 if layer.target in CONVOLUTIONS else layer.meta["val"].dim() - 1


def _weight(graph: Graph, layer: fx.Node) -> Tensor:
    weight = graph.constant(layer.args[1])
    assert weight is not None
    return weight


def _readers_of_activation(graph: Graph, layer: fx.Node) -> list[_Reader]:
    """Return the layers that read a layer's ReLU; none if anything else does."""
    activation = fused_activation(layer)
    if activation is None or not _is_constant_layer(graph, layer):
        return []
    axis = _channel_axis(layer)
    if activation.target != aten.relu.default and not _clamps_channels(graph, activation, axis):
        return []
    return _readers(graph, activation, axis, 1) or []


def _clamps_channels(graph: Graph, clamp: fx.Node, axis: int) -> bool:
    """Return whether a clamp is from 0 to a constant, or to one constant a channel."""
    low, high = (*clamp.args[1:], None, None)[:2]
    if any(isinstance(b, fx.Node) and graph.constant(b) is None for b in (low, high)):
        return False
    low = graph.constant(low) if isinstance(low, fx.Node) else low
    if low is None or bool(torch.as_tensor(low).any()):
        return False
    bound = clamp_bounds(graph, clamp)
    if bound is None or bound.numel() == 1:
        return True
    from_last = clamp.meta["val"].dim() - axis
    on_axis = bound.dim() >= from_last and bound.shape[-from_last] == bound.numel()
    return on_axis and bound.numel() == graph.channels(clamp, axis)


def _bound(graph: Graph, activation: fx.Node) -> Tensor:
    """Return the upper bound of all channels, ``[1]``, or of each; infinite without."""
    bound = None if activation.target == aten.relu.default else clamp_bounds(graph, activation)
    return torch.tensor([torch.inf]).double() if bound is None else bound.flatten()


def _is_constant_layer(graph: Graph, layer: fx.Node) -> bool:
    """Return whether weight and bias are constants, and the input has a batch axis."""
    weight, bias = layer.args[1], layer.args[2] if len(layer.args) > 2 else None
    if graph.constant(weight) is None or (bias is not None and graph.constant(bias) is None):
        return False
    rank: int = layer.meta["val"].dim()
    return rank > 1 if layer.target == aten.linear.default else rank == _weight(graph, layer).dim()


def _readers(graph: Graph, value: fx.Node, axis: int, repeats: int) -> list[_Reader] | None:
    """Return the layers that read a value; ``None`` if one reader is something else."""
    found: list[_Reader] = []
    for user in value.users:
        if user.target in LAYERS:
            more = [(user, repeats)] if _takes_shift(graph, user, value, axis) else None
        elif user.target in _POOLS and axis == 1 and _keeps_constants(user):
            more = _readers(graph, user, axis, repeats)
        elif size := _flattened(user, axis):
            more = _readers(graph, user, axis, repeats * size)
        else:
            more = None
        if more is None:
            return None
        found += more
    return found


def _takes_shift(graph: Graph, layer: fx.Node, value: fx.Node, axis: int) -> bool:
    if layer.args[0] is not value or not _is_constant_layer(graph, layer):
        return False
    if layer.target == aten.linear.default:
        return bool(axis == value.meta["val"].dim() - 1)
    padding: Any = layer.args[4] if len(layer.args) > 4 else [0]
    return axis == 1 and not any([padding] if isinstance(padding, int) else padding)


def _keeps_constants(pool: fx.Node) -> bool:
    """Return whether a pool maps an image of one value to that value, whatever is around it."""
    if pool.target != aten.avg_pool2d.default:
        return True  # a maximum pads with -inf, the adaptive ones not at all
    padding: Any = pool.args[3] if len(pool.args) > 3 else [0]
    divisor = pool.args[6] if len(pool.args) > 6 else None
    return divisor is None and not any([padding] if isinstance(padding, int) else padding)


def _flattened(node: fx.Node, axis: int) -> int:
    """Return how many positions of a channel ``flatten(x, 1)`` puts in a row, 0 if not that."""
    source = node.args[0]
    if node.target not in _RESHAPES or axis != 1 or not isinstance(source, fx.Node):
        return 0
    before, after = source.meta["val"].shape, node.meta["val"].shape
    if len(after) != 2 or str(before[0]) != str(after[0]) or any(map(is_dynamic, before[1:])):
        return 0
    return int(after[1]) // int(before[1])


def _add_to_bias(graph: Graph, layer: fx.Node, shift: Tensor) -> None:
    """Add ``[out]`` to a layer's bias, which becomes its own."""
    args = [*layer.args, None][: max(3, len(layer.args))]
    weight, node = args[1:3]
    assert isinstance(weight, fx.Node)
    bias = graph.constant(node)
    total = (
        (shift if bias is None else bias.double() + shift).to(_weight(graph, layer).dtype).detach()
    )
    if isinstance(node, fx.Node) and len(node.users) == 1:
        graph.set_constant(node, total)
        return
    with graph.before(layer):
        name = str(weight.target).removesuffix("weight") + "bias"
        args[2] = graph.add_constant(name, total)
    layer.args = tuple(args)
