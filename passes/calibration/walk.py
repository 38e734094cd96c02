"""The walk: over a graph's nodes in order, with all calibration samples in flight.

Every value is held twice, as the float graph computes it and as the quantized prefix does, until its
last reader is done. A visitor may take over a node: it sees both versions of the inputs, rewrites the
graph at that place, and returns both versions of the output. So memory is one cut of activations,
whatever the architecture; what exceeds ``max_bytes`` waits on disk.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, fx

from qcompile.compiler.ir.graph import Graph
from qcompile.compiler.ir.ops import EXPERT_LINEAR
from qcompile.passes.calibration.parallel import each, worker_count
from qcompile.passes.calibration.routing import Routed, expert_outputs
from qcompile.passes.calibration.samples import Samples


class Batches(Sequence[Any]):
    """One value for each batch: tensors that may be on disk, or what is no tensor."""

    def __init__(self, store: ActivationStore) -> None:
        self._store = store
        self._items: list[Any] = []

    def append(self, value: Any) -> None:
        """Add the next batch's value."""
        self._items.append(self._store.put(value))

    def __getitem__(self, index: Any) -> Any:
        return self._store.get(self._items[index])

    def __len__(self) -> int:
        return len(self._items)

    def write(self, index: int, where: Tensor, rows: Tensor) -> None:
        """Replace a part of a batch's value, which nothing else holds."""
        self._store.write(self._items[index], where, rows)

    def free(self) -> None:
        """Give up memory and files."""
        for item in self._items:
            self._store.drop(item)
        self._items.clear()


@dataclass(frozen=True)
class _Spilled:
    file: Path
    shape: tuple[int, ...]
    dtype: torch.dtype


class ActivationStore:
    """Keeps tensors in memory up to a limit and in files of a temporary folder beyond.

    Args:
        max_bytes: The limit.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.used = 0
        self.spilled = 0
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._files = 0

    def put(self, value: Any) -> Any:
        """Store a value; return what ``get`` and ``drop`` take."""
        if not isinstance(value, Tensor):
            return value
        if self.used + value.nbytes <= self.max_bytes:
            self.used += value.nbytes
            whole = value.untyped_storage().nbytes()
            return value.clone() if whole > value.nbytes else value  # a view keeps all it looks at
        return self._spill(value)

    def get(self, item: Any) -> Any:
        """Return a stored value."""
        if not isinstance(item, _Spilled):
            return item
        data = np.fromfile(item.file, dtype=np.uint8)
        return torch.from_numpy(data).view(item.dtype).reshape(item.shape)

    def write(self, item: Any, where: Tensor, rows: Tensor) -> None:
        """Replace the entries of a stored tensor that a mask names."""
        if isinstance(item, _Spilled):
            data = torch.from_numpy(np.memmap(item.file, dtype=np.uint8, mode="r+"))
            item = data.view(item.dtype).reshape(item.shape)
        item[where] = rows

    def drop(self, item: Any) -> None:
        """Forget a stored value."""
        if isinstance(item, _Spilled):
            item.file.unlink()
        elif isinstance(item, Tensor):
            self.used -= item.nbytes

    def close(self) -> None:
        """Remove the files."""
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    def _spill(self, value: Tensor) -> _Spilled:
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="qcompile-")
        file = Path(self._folder.name) / f"{self._files}.bin"
        self._files += 1
        self.spilled += value.nbytes
        value.contiguous().flatten().view(torch.uint8).numpy().tofile(file)
        return _Spilled(file, tuple(value.shape), value.dtype)


@dataclass(frozen=True)
class Values:
    """Both versions of one value; the same object where they do not differ yet.

    Args:
        float: As the float graph computes it, a batch each.
        quantized: As the quantized prefix does.
    """

    float: Sequence[Any]
    quantized: Sequence[Any]


class Visitor(Protocol):
    """Takes over nodes of the walk."""

    def visit(self, walk: Walk, node: fx.Node) -> tuple[fx.Node, Values] | None:
        """Return the node that now holds the value, and the value; ``None`` to let the walk run it."""


class Walk:
    """One pass over a graph.

    Args:
        graph: May be rewritten by the visitor behind the current node.
        samples: All in flight.
        max_bytes: Activations in memory.
        on_node: Told the share that is done, 0 to 1.
    """

    def __init__(
        self,
        graph: Graph,
        samples: Samples,
        max_bytes: int = 1 << 30,
        on_node: Callable[[float], None] = lambda share: None,
    ) -> None:
        self.graph, self.samples, self.on_node = graph, samples, on_node
        self.store = ActivationStore(max_bytes)
        self.values: dict[fx.Node, Values] = {}
        self._held: dict[fx.Node, Any] = {}

    def run(self, visitor: Visitor) -> None:
        """Visit every node."""
        nodes = self.graph.nodes
        waiting = set(nodes)
        try:
            with torch.no_grad():
                for index, node in enumerate(nodes):
                    self._step(visitor, node)
                    waiting.discard(node)
                    self._free(waiting)
                    self.on_node((index + 1) / len(nodes))
        finally:
            self.store.close()

    def constant(self, argument: Any) -> bool:
        """Return whether an argument is the same for all batches."""
        return not isinstance(argument, fx.Node) or argument.op == "get_attr"

    def batches(self, compute: Callable[[int], Any]) -> Batches:
        """Return the values of ``compute(batch)`` for every batch, stored."""
        found = Batches(self.store)
        width, count = worker_count(), len(self.samples)
        for start in range(0, count, width):  # what is done waits in the store, not in a list
            for value in each(compute, range(start, min(start + width, count))):
                found.append(value)
        return found

    def call(self, node: fx.Node, index: int, *, quantized: bool) -> Any:
        """Return what the node's op gives for one batch of one version of its inputs."""

        def value(source: fx.Node) -> Any:
            if source.op == "get_attr":
                held = self._held.get(source)
                return self.graph.weights[str(source.target)] if held is None else held
            values = self.values[source]
            return (values.quantized if quantized else values.float)[index]

        args, kwargs = fx.map_arg((node.args, node.kwargs), value)
        assert callable(node.target)
        return node.target(*args, **kwargs)

    def _step(self, visitor: Visitor, node: fx.Node) -> None:
        if node.op in ("output", "get_attr"):
            return
        if node.op == "placeholder":
            found = self.batches(lambda i: self.samples.batches[i][str(node.target)])
            self.values[node] = Values(found, found)
            return
        taken = visitor.visit(self, node)
        if taken is not None:
            holder, values = taken
            self.values[holder] = values
            return
        if node.target == EXPERT_LINEAR and all(n.op == "get_attr" for n in node.args[3]):  # type: ignore[union-attr]
            self.values[node] = self._experts(node)
            return
        constants = [n for n in node.all_input_nodes if n.op == "get_attr"]
        self._held = {n: self.graph.weights[str(n.target)] for n in constants}  # read once
        same = all(
            self.values[n].float is self.values[n].quantized
            for n in node.all_input_nodes
            if n.op != "get_attr"
        )
        found = self.batches(lambda i: self.call(node, i, quantized=False))
        quantized = found if same else self.batches(lambda i: self.call(node, i, quantized=True))
        self.values[node] = Values(found, quantized)
        self._held = {}

    def _experts(self, node: fx.Node) -> Values:
        """Return what the experts of a layer give; one weight is in memory at a time."""
        names = [str(weight.target) for weight in node.args[3]]  # type: ignore[union-attr]
        rows = self.graph.weights.peek(names[0]).shape[0]
        exact, prefix = (Routed.of(self, node, quantized=q) for q in (False, True))

        def outputs(routed: Routed) -> Batches:
            weights = (self.graph.weights[name] for name in names)
            return expert_outputs(self, routed, weights, rows)

        found = outputs(exact)
        return Values(found, found if exact.same(prefix) else outputs(prefix))

    def _free(self, waiting: set[fx.Node]) -> None:
        for node in list(self.values):
            if not any(user in waiting for user in node.users):
                values = self.values.pop(node)
                kept = [v for w in self.values.values() for v in (w.float, w.quantized)]
                for version in {id(v): v for v in (values.float, values.quantized)}.values():
                    if isinstance(version, Batches) and not any(version is k for k in kept):
                        version.free()


def needed_for(nodes: Iterable[fx.Node]) -> set[fx.Node]:
    """Return nodes and all that they are computed from."""
    found: set[fx.Node] = set()
    left = list(nodes)
    while left:
        node = left.pop()
        if node not in found:
            found.add(node)
            left += node.all_input_nodes
    return found
