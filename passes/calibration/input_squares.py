"""What an imatrix is made of: sums of squares of each input of matrices, in one walk over the float graph."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from qcompile.compiler.ir.graph import Graph
from qcompile.compiler.ir.ops import aten
from qcompile.passes.calibration.parallel import total
from qcompile.passes.calibration.walk import Values, Walk, needed_for

_INPUT_AND_WEIGHT = {aten.linear.default: (0, 1), aten.addmm.default: (1, 2)}
"""Places of both among the arguments of what multiplies by a matrix."""


@dataclass(frozen=True)
class Squares:
    """Of the inputs of one matrix.

    Args:
        sums: Of ``x^2`` over rows, float64 ``[inputs]``.
        rows: That were summed: tokens.
    """

    sums: Tensor
    rows: int


class InputSquares:
    """A visitor of the walk that sums squares of what matrices are multiplied with.

    Nodes that no watched matrix depends on are not run: neither the last one nor the logits.

    Args:
        graph: Of the walk; it is left as it is.
        names: Of the weights to watch.
    """

    def __init__(self, graph: Graph, names: Collection[str]) -> None:
        self.found: dict[str, Squares] = {}
        self._watched = _readers(graph, names)
        self._needed = needed_for([source for source, _ in self._watched.values()])
        self.watched = frozenset(name for _, name in self._watched.values())
        self._known: tuple[fx.Node, Squares] | None = None

    def visit(self, walk: Walk, node: fx.Node) -> tuple[fx.Node, Values] | None:
        """Look at a watched node's input; leave the node to the walk if others need it."""
        if node in self._watched:
            source, weight = self._watched[node]
            self.found[weight] = self._squares(walk, source)
        return None if node in self._needed else (node, Values((), ()))

    def _squares(self, walk: Walk, source: fx.Node) -> Squares:
        """Return the sums of a value; matrices that read the same one share them."""
        if self._known is None or self._known[0] is not source:
            self._known = source, _sums(walk, source)
        return self._known[1]


def _sums(walk: Walk, source: fx.Node) -> Squares:
    def of(index: int) -> tuple[Tensor, Tensor]:
        rows = walk.values[source].float[index].flatten(0, -2)
        return rows.square().sum(0, dtype=torch.float64), torch.tensor(len(rows))

    sums, rows = total(of, range(len(walk.samples)))
    return Squares(sums, int(rows))


def _readers(graph: Graph, names: Collection[str]) -> Mapping[fx.Node, tuple[fx.Node, str]]:
    """Return the nodes that multiply by watched weights, each with its input and the weight's name."""
    found = {}
    for node in graph.nodes:
        if node.target in _INPUT_AND_WEIGHT:
            source, weight = (node.args[place] for place in _INPUT_AND_WEIGHT[node.target])
            assert isinstance(source, fx.Node)
            if isinstance(weight, fx.Node) and weight.op == "get_attr" and weight.target in names:
                found[node] = source, str(weight.target)
    return found
