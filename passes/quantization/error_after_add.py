"""The error of a value's codes where it counts: behind the add and its activation function.

Where y = relu(x + shortcut), what x loses far below zero is lost anyway. Measured there, the range
of x may clip its low side and spend the codes on the rest: half a decibel at a ResNet-20's outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from torch import Tensor, fx

from qcompile.compiler.ir.ops import aten
from qcompile.compiler.ir.quant import QuantParams, QuantSpec
from qcompile.passes.calibration.observers import Measure
from qcompile.passes.calibration.parallel import each, worker_count
from qcompile.passes.calibration.walk import Walk
from qcompile.passes.graph.channel_links import LAYERS
from qcompile.passes.graph.fusion import fused_activation

ELEMENTS = 1 << 22
"""Of each value, on which a build measures."""


def error_after_add(
    walk: Walk, observer: fx.Node, spec: QuantSpec, batches: Sequence[int], elements: int = ELEMENTS
) -> Measure | None:
    """Return how to measure a scale; ``None`` unless all readers are adds with an activation.

    Args:
        walk: Has the observed value, and what it is added to or what that is moved from.
        observer: Of the value.
        spec: Format of the codes.
        batches: Those to measure on.
        elements: That are enough to measure on; whole batches, at least one.
    """
    source, readers = observer.args[0], list(observer.users)
    assert isinstance(source, fx.Node)
    if not readers or not all(_is_hidden_add(walk, user, observer) for user in readers):
        return None
    size = walk.values[source].quantized[batches[0]].numel()
    chosen = batches[: max(1, elements // max(1, size))]
    values = {i: walk.values[source].quantized[i] for i in chosen}
    wanted = {
        (user, i): _after(walk, user, observer, values[i], i) for user in readers for i in chosen
    }

    def error(params: QuantParams, place: tuple[fx.Node, int]) -> float:
        user, i = place
        coded = spec.fake_quantize(values[i], params)
        return float((_after(walk, user, observer, coded, i) - wanted[place]).square().sum())

    def measure(params: QuantParams, enough: float) -> float:
        places, width, total = list(wanted), worker_count(), 0.0
        while places and total < enough:
            total = sum(each(partial(error, params), places[:width]), total)
            places = places[width:]
        return total

    return measure


def _is_hidden_add(walk: Walk, user: fx.Node, observer: fx.Node) -> bool:
    others = [n for n in user.all_input_nodes if n is not observer]
    is_add = user.target == aten.add.Tensor and fused_activation(user) is not None
    return is_add and all(_is_known(walk, other) for other in others)


def _is_known(walk: Walk, node: fx.Node) -> bool:
    """Return whether a value was computed, or is moved from one that was by ops with one input."""
    while node not in walk.values and node.op == "call_function" and node.target not in LAYERS:
        if len(node.all_input_nodes) != 1:
            return False
        (node,) = node.all_input_nodes
    return node in walk.values or node.op == "get_attr"


def _after(walk: Walk, add: fx.Node, observer: fx.Node, x: Tensor, index: int) -> Tensor:
    """Return what the activation function after ``add`` gives when the observed value is ``x``."""

    def value(node: fx.Node) -> Any:
        if node is observer:
            return x
        if node.op == "get_attr":
            return walk.graph.constant(node)
        if node in walk.values:
            return walk.values[node].quantized[index]
        return call(node)

    def call(node: fx.Node) -> Any:
        args, kwargs = fx.map_arg((node.args, node.kwargs), value)
        assert callable(node.target)
        return node.target(*args, **kwargs)

    activation = fused_activation(add)
    assert activation is not None
    bounds = fx.map_arg(activation.args[1:], value)
    assert callable(activation.target)
    return activation.target(call(add), *bounds)  # type: ignore[no-any-return]
