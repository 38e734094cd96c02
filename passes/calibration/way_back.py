"""The way back: what an error of each value does to the outputs, one node at a time.

The graph runs forward on all samples, and its values are kept, on disk beyond ``max_bytes``. Then nodes are
visited from the last to the first: each runs again by itself under autograd, which turns the gradient of its
output into those of its inputs. So weights are read one at a time, as in ``walk.py``, and any op that
PyTorch differentiates is handled.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, fx

from qcompile.compiler.ir.graph import Graph
from qcompile.passes.calibration.parallel import each, total, worker_count
from qcompile.passes.calibration.samples import Samples
from qcompile.passes.calibration.walk import ActivationStore

Cotangent = Callable[[Tensor, int], Tensor]
"""Given an output and a number of its own for each batch, the gradient that the way back begins with."""
Parts = dict[Any, Any]
"""Gradients by what they belong to: ``None`` for a tensor, an index for one part of a tuple."""


Sums = Callable[[Callable[[fx.Node], Tensor], Tensor], tuple[Tensor, ...]]
"""Given what returns the value of an input of a node, and the gradient of its output: what to add up."""


@dataclass(frozen=True)
class Watched:
    """What a visitor may know of a node: all batches of its inputs, and of the gradient of its output.

    Args:
        add_up: Adds up over all batches what a function gives.
        batches: Of the value of an input.
        gradients: Those of a batch, by the part of the output: ``None`` where it is one tensor.
    """

    add_up: Callable[[Sums], list[Tensor]]
    batches: Callable[[fx.Node], Sequence[Tensor]]
    gradients: Callable[[int], Mapping[Any, Tensor]]

    def __call__(self, sums: Sums) -> list[Tensor]:
        """Add up over all batches, as often as it is called."""
        return self.add_up(sums)


class GradientVisitor(Protocol):
    """Sees gradients of the values that it watches."""

    @property
    def watched(self) -> Collection[fx.Node]:
        """Calls whose outputs' gradients it wants."""

    def visit(self, node: fx.Node, over: Watched) -> None:
        """Look at a node."""


class WayBack:
    """One pass forward and one back.

    Args:
        graph: It is left as it is.
        samples: All in flight.
        cotangent: Of each output that is a float tensor.
        max_bytes: Values in memory.
        on_node: Told the share that is done, 0 to 1.
    """

    def __init__(
        self,
        graph: Graph,
        samples: Samples,
        cotangent: Cotangent,
        max_bytes: int = 1 << 30,
        on_node: Callable[[float], None] = lambda share: None,
    ) -> None:
        self.graph, self.samples, self.cotangent, self.on_node = graph, samples, cotangent, on_node
        self._store = ActivationStore(max_bytes)
        self._values: dict[fx.Node, list[Any]] = {}
        self._gradients: dict[fx.Node, list[Parts]] = {}
        self._held: dict[fx.Node, Tensor] = {}
        (last,) = graph.module.graph.find_nodes(op="output")
        self._outputs = {node: place for place, node in enumerate(last.all_input_nodes)}

    def run(self, visitor: GradientVisitor) -> None:
        """Visit every watched node, the last one first."""
        behind = _behind(self.graph, visitor.watched)
        calls = [n for n in self.graph.nodes if n.op in ("placeholder", "call_function")]
        steps = 2 * len(calls)
        try:
            for index, node in enumerate(calls):
                self._forward(node)
                self.on_node((index + 1) / steps)
            for index, node in enumerate(reversed(calls)):
                self._back(node, visitor, behind)
                self.on_node((len(calls) + index + 1) / steps)
        finally:
            self._store.close()

    def _forward(self, node: fx.Node) -> None:
        if self._is_last(node):
            return  # logits are large: the way back computes them a batch at a time
        self._hold(node)
        self._values[node] = self._stored(lambda i: self._value_of(node, i))
        self._held = {}

    def _value_of(self, node: fx.Node, index: int) -> Any:
        if node.op == "placeholder":
            return self.samples.batches[index][str(node.target)]
        with torch.no_grad():
            return self._call(node, lambda source: self._value(source, index))

    def _back(self, node: fx.Node, visitor: GradientVisitor, behind: set[fx.Node]) -> None:
        if node in behind and node.op == "call_function" and self._has_gradient(node):
            self._hold(node)
            if node in visitor.watched:
                over = partial(self._over, node)
                visitor.visit(
                    node, Watched(over, partial(_Values, self), partial(self._gradient, node))
                )
            if sources := [n for n in node.all_input_nodes if n in behind]:
                self._pass_on(node, sources)
            self._held = {}
        self._drop(node)

    def _over(self, node: fx.Node, sums: Sums) -> list[Tensor]:
        def of(index: int) -> tuple[Tensor, ...]:
            gradient = self._gradient(node, index)[None]
            return sums(lambda source: self._value(source, index), gradient)

        return total(of, range(len(self.samples)))

    def _pass_on(self, node: fx.Node, sources: Sequence[fx.Node]) -> None:
        """Give the node's inputs their gradients."""
        width, count = worker_count(), len(self.samples)
        for start in range(0, count, width):
            numbers = range(start, min(start + width, count))
            for index, found in zip(
                numbers, each(lambda i: self._inputs(node, sources, i), numbers), strict=True
            ):
                for source, (part, gradient) in zip(sources, found, strict=True):
                    self._add(source, index, part, gradient)

    def _inputs(
        self, node: fx.Node, sources: Sequence[fx.Node], index: int
    ) -> list[tuple[Any, Tensor | None]]:
        """Return the gradient of each of some inputs, and to which part of it it belongs."""
        given = self._gradient(node, index)
        if node.target is operator.getitem:
            return [(node.args[1], given[None])]
        leaves = {n: self._value(n, index).detach().requires_grad_() for n in sources}
        with torch.enable_grad():
            found = self._call(node, lambda n: leaves.get(n, self._value(n, index)))
        wanted = [(found if part is None else found[part], g) for part, g in given.items()]
        wanted = [(value, g) for value, g in wanted if value.requires_grad]
        if not wanted:
            return [(None, None) for _ in sources]
        values, gradients = zip(*wanted, strict=True)
        parts = torch.autograd.grad(values, list(leaves.values()), gradients, allow_unused=True)
        return [(None, part) for part in parts]

    def _gradient(self, node: fx.Node, index: int) -> Parts:
        stored = self._gradients[node][index] if node in self._gradients else {}
        parts = {part: self._store.get(item) for part, item in stored.items()}
        if node in self._outputs:
            kept = self._value(node, index) if node in self._values else self._value_of(node, index)
            own = self.cotangent(kept, index + len(self.samples) * self._outputs[node])
            parts[None] = parts[None] + own if None in parts else own
        return parts

    def _add(self, node: fx.Node, index: int, part: Any, gradient: Tensor | None) -> None:
        if gradient is None:
            return
        stored = self._gradients.setdefault(node, [{} for _ in range(len(self.samples))])[index]
        if part in stored:
            before = stored.pop(part)
            gradient = gradient + self._store.get(before)
            self._store.drop(before)
        stored[part] = self._store.put(gradient)

    def _has_gradient(self, node: fx.Node) -> bool:
        return node in self._gradients or (node in self._outputs and _is_float(node))

    def _is_last(self, node: fx.Node) -> bool:
        return node in self._outputs and all(user.op == "output" for user in node.users)

    def _hold(self, node: fx.Node) -> None:
        """Read the constants of a node once for all batches."""
        constants = [n for n in node.all_input_nodes if n.op == "get_attr"]
        self._held = {n: self.graph.weights[str(n.target)] for n in constants}

    def _value(self, node: fx.Node, index: int) -> Any:
        return (
            self._held[node] if node in self._held else self._store.get(self._values[node][index])
        )

    def _call(self, node: fx.Node, value: Callable[[fx.Node], Any]) -> Any:
        args, kwargs = fx.map_arg((node.args, node.kwargs), value)
        assert callable(node.target)
        return node.target(*args, **kwargs)

    def _stored(self, compute: Callable[[int], Any]) -> list[Any]:
        found: list[Any] = []
        width, count = worker_count(), len(self.samples)
        for start in range(0, count, width):
            numbers = range(start, min(start + width, count))
            found += [self._store.put(value) for value in each(compute, numbers)]
        return found

    def _drop(self, node: fx.Node) -> None:
        for item in self._values.pop(node, []):
            self._store.drop(item)
        for parts in self._gradients.pop(node, []):
            for item in parts.values():
                self._store.drop(item)


class _Values(Sequence[Tensor]):
    """The values of a node, read at each look-up."""

    def __init__(self, way: WayBack, source: fx.Node) -> None:
        self._way, self._source = way, source

    def __getitem__(self, index: Any) -> Any:
        return self._way._value(self._source, index)

    def __len__(self) -> int:
        return len(self._way.samples)


def _behind(graph: Graph, watched: Collection[fx.Node]) -> set[fx.Node]:
    """Return the watched nodes and all float values that depend on them."""
    found: set[fx.Node] = set()
    for node in graph.nodes:
        depends = node in watched or any(n in found for n in node.all_input_nodes)
        if depends and node.op == "call_function" and _is_float(node):
            found.add(node)
    return found


def _is_float(node: fx.Node) -> bool:
    value = node.meta.get("val")
    values = value if isinstance(value, list | tuple) else [value]
    return all(isinstance(v, Tensor) and v.is_floating_point() for v in values)
