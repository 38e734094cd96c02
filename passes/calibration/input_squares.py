"""What an imatrix is made of: sums of squares of each input of matrices, in one walk over the float graph."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from qcompile.compiler.ir.graph import Graph
from qcompile.compiler.ir.ops import EXPERT_LINEAR, aten
from qcompile.passes.calibration.parallel import total
from qcompile.passes.calibration.walk import Values, Walk, needed_for

_INPUT_AND_WEIGHT = {aten.linear.default: (0, 1), aten.addmm.default: (1, 2)}
"""Places of both among the arguments of what multiplies by a matrix."""
_Place = tuple[fx.Node, fx.Node | None]
"""An input, and which expert each of its tokens goes to, if there are several."""


@dataclass(frozen=True)
class Squares:
    """Of the inputs of one matrix.

    Args:
        sums: Of ``x^2`` over rows, float64 ``[inputs]``.
        rows: That were summed: tokens; of an expert those that chose it.
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
        read = [source for place, _ in self._watched.values() for source in place if source]
        self._needed = needed_for(read)
        self.watched = frozenset(n for _, names in self._watched.values() for n in names)
        self._known: tuple[_Place, list[Squares]] | None = None

    def visit(self, walk: Walk, node: fx.Node) -> tuple[fx.Node, Values] | None:
        """Look at a watched node's input; leave the node to the walk if others need it."""
        if node in self._watched:
            place, weights = self._watched[node]
            self.found |= dict(zip(weights, self._squares(walk, place, len(weights)), strict=True))
        return None if node in self._needed else (node, Values((), ()))

    def _squares(self, walk: Walk, place: _Place, count: int) -> list[Squares]:
        """Return the sums of a value; matrices that read the same one share them."""
        if self._known is None or self._known[0] != place:
            source, chosen = place
            found = (
                [_sums(walk, source)] if chosen is None else _routed(walk, source, chosen, count)
            )
            self._known = place, found
        return self._known[1]


def _sums(walk: Walk, source: fx.Node) -> Squares:
    def of(index: int) -> tuple[Tensor, Tensor]:
        rows = walk.values[source].float[index].flatten(0, -2)
        return rows.square().sum(0, dtype=torch.float64), torch.tensor(len(rows))

    sums, rows = total(of, range(len(walk.samples)))
    return Squares(sums, int(rows))


def _routed(walk: Walk, source: fx.Node, chosen: fx.Node, experts: int) -> list[Squares]:
    """Return the sums of each expert's rows: a token counts once for each choice, as in llama-imatrix."""

    def of(index: int) -> tuple[Tensor, Tensor]:
        x, choices = walk.values[source].float[index], walk.values[chosen].float[index]
        sums = torch.zeros(experts, x.shape[-1], dtype=torch.float64)
        for choice in range(choices.shape[1]):
            rows = x[:, choice if x.shape[1] > 1 else 0]
            sums.index_add_(0, choices[:, choice], rows.double().square())
        return sums, torch.bincount(choices.flatten(), minlength=experts)

    sums, rows = total(of, range(len(walk.samples)))
    return [Squares(own, int(count)) for own, count in zip(sums, rows, strict=True)]


def _readers(
    graph: Graph, names: Collection[str]
) -> Mapping[fx.Node, tuple[_Place, tuple[str, ...]]]:
    """Return the nodes that multiply by watched weights, each with what it reads and the weights' names."""
    found = {}
    for node in graph.nodes:
        place, weights = _read(node)
        known = [w.target for w in weights if isinstance(w, fx.Node) and w.op == "get_attr"]
        if known and len(known) == len(weights) and set(known) <= set(names):
            found[node] = place, tuple(map(str, known))
    return found


def _read(node: fx.Node) -> tuple[_Place, Sequence[Any]]:
    """Return what a node multiplies, and by which weights."""
    if node.target == EXPERT_LINEAR:
        source, chosen, _, weights = node.args
        return (source, chosen), weights  # type: ignore[return-value]
    if node.target not in _INPUT_AND_WEIGHT:
        return (node, None), ()
    source, weight = (node.args[place] for place in _INPUT_AND_WEIGHT[node.target])
    return (source, None), (weight,)  # type: ignore[return-value]
