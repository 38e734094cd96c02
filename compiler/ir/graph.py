"""Graph: the IR. An unlifted ``torch.fx.GraphModule`` of ATen ops, with inputs, outputs and weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export import ExportedProgram
from torch.fx.experimental.symbolic_shapes import free_symbols

from qcompile.compiler.ir.interface import Interface
from qcompile.compiler.ir.interpret import ConstantReader
from qcompile.compiler.ir.text import graph_text
from qcompile.compiler.ir.weights import Weights

Target = Callable[..., Any]


@dataclass(frozen=True)
class DynamicDim:
    """An axis of an input whose size is free.

    Args:
        name: Axes of the same name have the same size.
        min: Smallest size.
        max: Largest size, or ``None``.
    """

    name: str
    min: int = 1
    max: int | None = None


@dataclass
class Graph:
    """The IR that every pass rewrites and every emitter reads.

    Args:
        module: Flat graph: one placeholder an input, one tuple of tensors as output.
        inputs: Example inputs by name, in order.
        outputs: Names of the outputs, in order.
        dynamic: Free axes by input name and axis.
        weights: The constants by name; made from ``module`` if not given.
        interface: What the model file says of its inputs and outputs beyond shapes.
    """

    module: fx.GraphModule
    inputs: dict[str, Tensor]
    outputs: tuple[str, ...]
    dynamic: dict[str, dict[int, DynamicDim]] = field(default_factory=dict)
    weights: Weights = field(default=None)  # type: ignore[assignment]
    interface: Interface = field(default_factory=Interface)

    def __post_init__(self) -> None:
        if self.weights is None:
            self.weights = Weights(self.module)

    @property
    def nodes(self) -> list[fx.Node]:
        """All nodes in order; a list, so that a pass may erase while it walks."""
        return list(self.module.graph.nodes)

    def calls(self, *targets: Target) -> list[fx.Node]:
        """Return the calls of any of these ops, in order."""
        return [n for n in self.nodes if n.op == "call_function" and n.target in targets]

    def constant(self, node: Any) -> Tensor | None:
        """Return the tensor that a ``get_attr`` node names, ``None`` for any other argument."""
        if isinstance(node, fx.Node) and node.op == "get_attr":
            return self.weights[str(node.target)]
        return None

    def set_constant(self, node: fx.Node, tensor: Tensor) -> None:
        """Give a ``get_attr`` node another value; a constant with other users is split off first."""
        name = str(node.target)
        others = [
            n for n in self.nodes if n.op == "get_attr" and n.target == name and n is not node
        ]
        if others:
            node.target = name = self.fresh_name(f"{name}_{node.name}")
        self.weights[name] = tensor
        node.meta["val"] = self._fake(tensor)

    def fresh_name(self, name: str) -> str:
        """Return ``name``, or the first ``name_2``, ``name_3``, ... that no constant has."""
        taken = set(self.weights)
        names = (name if i == 1 else f"{name}_{i}" for i in range(1, len(taken) + 3))
        return next(n for n in names if n not in taken)

    @contextmanager
    def before(self, node: fx.Node) -> Iterator[None]:
        """Insert what is added in this block before ``node``."""
        with self.module.graph.inserting_before(node):
            yield

    @contextmanager
    def after(self, node: fx.Node) -> Iterator[None]:
        """Insert what is added in this block after ``node``."""
        following = node.next
        while following.op in ("placeholder",):
            following = following.next
        with self.module.graph.inserting_before(following):
            yield

    def add_constant(self, name: str, tensor: Tensor) -> fx.Node:
        """Add a constant at the place set by ``before`` or ``after``; return its node."""
        name = self.fresh_name(name)
        self.weights[name] = tensor
        node = self.module.graph.create_node("get_attr", name, name=name.replace(".", "_"))
        node.meta["val"] = self._fake(tensor)
        return node

    def add_call(
        self, target: Target, *args: Any, name: str | None = None, like: fx.Node | None = None
    ) -> fx.Node:
        """Add a call at the place set by ``before`` or ``after``; return its node.

        Args:
            target: What is called.
            args: With what.
            name: Of the node.
            like: A node whose value has the shape and dtype of the result, which are not inferred then.
        """
        node = self.module.graph.create_node("call_function", target, args, name=name)
        if like is None:
            self.infer(node)
        else:
            node.meta["val"] = self._value(like)
        return node

    def infer(self, node: fx.Node) -> None:
        """Compute ``node.meta["val"]`` from its arguments' shapes and dtypes."""
        mode = self._mode
        args, kwargs = fx.map_arg((node.args, node.kwargs), self._value)
        with mode if mode is not None else torch.device("meta"):
            assert callable(node.target)
            node.meta["val"] = node.target(*args, **kwargs)

    def infer_constant(self, node: fx.Node) -> None:
        """Set ``node.meta["val"]`` of a ``get_attr`` node."""
        node.meta["val"] = self._fake(self.weights.peek(str(node.target)))

    def replace(self, old: fx.Node, new: fx.Node) -> None:
        """Let every user of ``old`` use ``new``, then erase ``old``."""
        old.replace_all_uses_with(new)
        self.module.graph.erase_node(old)

    def erase_unused(self) -> int:
        """Erase calls and constants without users; return how many."""
        before = len(self.nodes)
        for node in reversed(self.nodes):
            if node.op not in ("placeholder", "output") and not node.users and _is_pure(node):
                self.module.graph.erase_node(node)
        return before - len(self.nodes)

    def channels(self, node: fx.Node, axis: int) -> int:
        """Return the size of one axis of a node's value."""
        return int(node.meta["val"].shape[axis])

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Run the graph in eager mode.

        Args:
            inputs: By name, all of them.

        Returns:
            The outputs by name.
        """
        with torch.no_grad():
            run = ConstantReader(self.module, self.weights).run
            values = run(*(inputs[name] for name in self.inputs))
        return dict(zip(self.outputs, values, strict=True))

    def copy(self) -> Graph:
        """Return a graph of its own that shares the tensors, which passes replace and never modify."""
        new = fx.Graph()
        mapping: dict[fx.Node, fx.Node] = {}
        new.output(new.graph_copy(self.module.graph, mapping))
        for node, twin in mapping.items():
            twin.meta = dict(node.meta)
        module = fx.GraphModule(self.module, new)
        weights = Weights(module, self.weights.stored)
        return Graph(
            module, dict(self.inputs), self.outputs, dict(self.dynamic), weights, self.interface
        )

    def exported(self) -> ExportedProgram:
        """Return the graph as an ``ExportedProgram``, dynamic axes included."""
        dims: dict[str, Any] = {}
        shapes = tuple(
            {
                axis: dims.setdefault(d.name, torch.export.Dim(d.name, min=d.min, max=d.max))
                for axis, d in self.dynamic.get(name, {}).items()
            }
            for name in self.inputs
        )
        self.module.recompile()
        return torch.export.export(self.module, tuple(self.inputs.values()), dynamic_shapes=shapes)

    def to_text(self) -> str:
        """Return the IR text: a line a node, with shapes and a digest of every constant."""
        return graph_text(self.module.graph, self.weights, self.outputs, self.dynamic)

    @property
    def _mode(self) -> FakeTensorMode | None:
        for node in self.module.graph.nodes:
            if isinstance(mode := getattr(node.meta.get("val"), "fake_mode", None), FakeTensorMode):
                return mode
        return None

    def _fake(self, tensor: Tensor) -> Tensor:
        mode = self._mode
        return tensor.to("meta") if mode is None else mode.from_tensor(tensor, static_shapes=True)

    def _value(self, node: fx.Node) -> Any:
        if "val" not in node.meta and node.op == "get_attr":
            self.infer_constant(node)
        return node.meta.get("val")


def is_dynamic(size: Any) -> bool:
    """Return whether a size is symbolic."""
    return isinstance(size, torch.SymInt) and bool(free_symbols(size))


def _is_pure(node: fx.Node) -> bool:
    return not node.is_impure()
