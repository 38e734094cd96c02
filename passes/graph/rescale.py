"""Multiply linked channels by factors without changing the function: what equalization applies.

A layer's output channel o times s: row o of its weight and its bias times s. A layer's input channel c
times s: column c of its weight divided by s. An upper bound of a clamp in between: times s, a channel.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from qcompile.compiler.ir.graph import Graph
from qcompile.compiler.ir.ops import aten
from qcompile.passes.graph.channel_links import CLAMPS, ChannelLinks, layer_groups


def apply_factors(graph: Graph, links: ChannelLinks, factors: Tensor) -> int:
    """Scale every class of linked channels by its factor.

    Args:
        graph: Changed in place.
        links: Of this graph.
        factors: float64 ``[classes]``, positive, 1 where frozen.

    Returns:
        How many layers and clamps changed.
    """
    assert bool((factors[links.frozen] == 1).all()), "a frozen channel keeps its scale"
    changed = sum(_scale_layer(graph, links, layer, factors) for layer in links.layers)
    for node in [n for n in links.ids if n.target in CLAMPS]:
        changed += _scale_clamp(graph, links.axes[node], node, factors[links.ids[node]])
    return changed


def input_columns(layer: fx.Node, weight: Tensor) -> Tensor:
    """Return, for each entry ``[out, in / groups]`` of a weight, its input channel, int64."""
    out, per_group = weight.shape[:2]
    group = torch.arange(out) // (out // layer_groups(layer))
    return group[:, None] * per_group + torch.arange(per_group)


def clamp_bounds(graph: Graph, clamp: fx.Node) -> Tensor | None:
    """Return the constant upper bound of a clamp, float64, a scalar or one that broadcasts."""
    high: Any = clamp.args[2] if len(clamp.args) > 2 else None
    if isinstance(high, fx.Node):
        high = graph.constant(high)
    return None if high is None else torch.as_tensor(high, dtype=torch.float64)


def _scale_layer(graph: Graph, links: ChannelLinks, layer: fx.Node, factors: Tensor) -> int:
    weight_node, bias_node = layer.args[1], layer.args[2] if len(layer.args) > 2 else None
    assert isinstance(weight_node, fx.Node)
    weight = graph.constant(weight_node)
    assert weight is not None
    rows = factors[links.ids[layer]]
    scale = rows[:, None].expand(weight.shape[:2])
    if (inputs := links.inputs(layer)) is not None:
        scale = scale / factors[inputs][input_columns(layer, weight)]
    if bool((scale == 1).all() and (rows == 1).all()):
        return 0
    extra = [1] * (weight.dim() - 2)
    new = weight.double() * scale.reshape(*weight.shape[:2], *extra)
    graph.set_constant(weight_node, new.to(weight.dtype))
    if (bias := graph.constant(bias_node)) is not None:
        assert isinstance(bias_node, fx.Node)
        graph.set_constant(bias_node, (bias.double() * rows).to(bias.dtype))
    return 1


def _scale_clamp(graph: Graph, axis: int, clamp: fx.Node, factors: Tensor) -> int:
    high = clamp_bounds(graph, clamp)
    if high is None or bool((factors == 1).all()):
        return 0
    behind = clamp.meta["val"].dim() - 1 - axis
    set_upper_bound(graph, clamp, high * factors.reshape(-1, *[1] * behind))
    return 1


def set_upper_bound(graph: Graph, clamp: fx.Node, high: Tensor) -> None:
    """Give a clamp an upper bound a channel, a tensor that broadcasts against its input."""
    low: Any = clamp.args[1]
    with graph.before(clamp):
        if isinstance(low, int | float):
            low = graph.add_constant(f"{clamp.name}_min", torch.tensor(float(low)))
        bound = graph.add_constant(f"{clamp.name}_max", high.float())
        new = graph.add_call(aten.clamp.Tensor, clamp.args[0], low, bound)
    graph.replace(clamp, new)
    graph.erase_unused()
