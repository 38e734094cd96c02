"""Which formats each weight of a graph may have: what a plan under a budget chooses from."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence

from torch import fx

from qcompile.compiler.ir.errors import TargetError
from qcompile.compiler.ir.graph import Graph
from qcompile.compiler.ir.ops import aten
from qcompile.compiler.ir.quant import FloatSpec, WeightFormat
from qcompile.passes.quantization.quantize_stored_weights import RECURRENT
from qcompile.targets.plans import TensorChoices

LAYERS = (aten.conv1d.default, aten.conv2d.default, aten.linear.default)
SMALLEST_TABLE = 1024
"""Elements of a table or a recurrent weight below which ``QuantizeStoredWeights`` leaves it float."""
Shape = tuple[int, ...]
Offer = Callable[[Sequence[fx.Node], Shape], Sequence[WeightFormat]]
"""Given the calls that read a weight, and its shape: the formats beside float that the engine can read."""
Bytes = Callable[[Sequence[fx.Node], WeightFormat, Shape], int]
"""Given the same and a format: what the weight takes in the artifact, with all that belongs to it."""


def weight_choices(
    graph: Graph,
    offer: Offer,
    stored_bytes: Bytes,
    plain: FloatSpec,
    pins: Sequence[tuple[str, str]],
    keep_float: frozenset[str],
) -> tuple[TensorChoices, ...]:
    """Return what there is to choose for each weight of layers, tables and recurrent layers, in graph order.

    Args:
        graph: The float graph.
        offer: The emitter's formats.
        stored_bytes: The emitter's sizes.
        plain: What a weight is that has no other format.
        pins: Regular expressions of names, each with the name of a format.
        keep_float: Weights that stay float.

    Raises:
        TargetError: A pin names no weight, or no format that its weight can have; names all of them.
    """
    floats = WeightFormat(str(plain), plain)
    found: list[TensorChoices] = []
    wrong: dict[str, list[str]] = {}
    used: set[str] = set()
    for name, users in weight_readers(graph).items():
        shape = tuple(graph.weights.peek(name).shape)
        float_bytes = stored_bytes(users, floats, shape)
        formats = [] if name in keep_float else list(offer(users, shape))
        formats = [f for f in formats if stored_bytes(users, f, shape) < float_bytes] + [floats]
        if (pin := _pinned(name, pins)) is not None:
            used.add(pin[0])
            possible = formats
            formats = [f for f in possible if f.name == pin[1]]
            if not formats:
                reason = f"can be {', '.join(f.name for f in possible)}, not {pin[1]}"
                wrong.setdefault(reason, []).append(name)
        sizes = tuple(stored_bytes(users, f, shape) for f in formats)
        found.append(TensorChoices({name: shape}, (name,), tuple(formats), sizes, float_bytes))
    said = [f"{', '.join(names)} {reason}" for reason, names in wrong.items()]
    said += [f"no weight has {pattern} in its name" for pattern, _ in pins if pattern not in used]
    if said:
        raise TargetError(f"--tensor-type: {'; '.join(said)}")
    return tuple(found)


def weight_readers(graph: Graph) -> Mapping[str, list[fx.Node]]:
    """Return the calls that read each weight which may be stored in codes, by its name, in graph order."""
    found: dict[str, list[fx.Node]] = {}
    for node in graph.nodes:
        for constant in _weights(node):
            weight = graph.weights.peek(str(constant.target))
            is_layer = node.target in LAYERS
            large = weight.dim() == 2 and weight.numel() >= SMALLEST_TABLE
            if weight.is_floating_point() and weight.dim() > 1 and (is_layer or large):
                found.setdefault(str(constant.target), []).append(node)
    return {n: users for n, users in found.items() if len(users) == _all_readers(graph, n)}


def _weights(node: fx.Node) -> Iterable[fx.Node]:
    if node.target in LAYERS:
        given: Iterable[object] = node.args[1:2]
    elif node.target == aten.embedding.default:
        given = node.args[:1]
    elif node.target in RECURRENT:
        given = node.all_input_nodes
    else:
        given = ()
    return [n for n in given if isinstance(n, fx.Node) and n.op == "get_attr"]


def _all_readers(graph: Graph, name: str) -> int:
    constants = [n for n in graph.module.graph.find_nodes(op="get_attr") if n.target == name]
    return sum(len(node.users) for node in constants)


def _pinned(name: str, pins: Sequence[tuple[str, str]]) -> tuple[str, str] | None:
    """Return the first pin whose expression is in a name."""
    return next((pin for pin in pins if re.search(pin[0], name)), None)
