"""What each expert of a mixture gets to see, and what all of them give, one expert's weight at a time."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx
from torch.nn import functional

from qcompile.compiler.ir.ops import routed_rows
from qcompile.passes.calibration.parallel import each

if TYPE_CHECKING:
    from qcompile.passes.calibration.walk import Batches, Walk


@dataclass(frozen=True)
class Routed:
    """The arguments of ``expert_linear`` in one version of the graph, a batch each.

    Args:
        x: Inputs, ``[tokens, choices or 1, in]``.
        chosen: Experts, ``[tokens, choices]``.
        shares: Of each in the sum; ``None`` where they are multiplied elsewhere.
    """

    x: Sequence[Any]
    chosen: Sequence[Any]
    shares: Sequence[Any] | None

    @classmethod
    def of(cls, walk: Walk, node: fx.Node, *, quantized: bool) -> Routed:
        """Return what a node of the walk reads."""

        def version(argument: Any) -> Any:
            values = walk.values[argument]
            return values.quantized if quantized else values.float

        x, chosen, shares = node.args[:3]
        return cls(version(x), version(chosen), None if shares is None else version(shares))

    def same(self, other: Routed) -> bool:
        """Return whether both versions are one."""
        own = (self.x, self.chosen, self.shares)
        return all(a is b for a, b in zip(own, (other.x, other.chosen, other.shares), strict=True))

    def rows(self, index: int, expert: int) -> Tensor:
        """Return what an expert's matrix multiplies in a batch."""
        shares = None if self.shares is None else self.shares[index]
        return routed_rows(self.x[index], self.chosen[index], shares, expert)

    def tokens(self, index: int, expert: int) -> Tensor:
        """Return the numbers of the tokens that chose an expert, in the order of its rows."""
        found: Tensor = (self.chosen[index] == expert).nonzero()[:, 0]
        return found


class ExpertRows(Sequence[Tensor]):
    """What an expert's matrix multiplies, ``[rows, in]`` a batch.

    Args:
        routed: Of its layer.
        expert: Its number.
    """

    def __init__(self, routed: Routed, expert: int) -> None:
        self.routed, self.expert = routed, expert

    def __getitem__(self, index: Any) -> Any:
        return self.routed.rows(index, self.expert)

    def __len__(self) -> int:
        return len(self.routed.chosen)


class FloatRows(ExpertRows):
    """The float graph's version of the rows that an expert multiplies in the quantized graph.

    Both graphs may choose other experts for a token. One that the float graph sends elsewhere has no float
    output here that could be aimed at: its row is the quantized one.

    Args:
        routed: In the quantized graph.
        exact: In the float graph.
        expert: The number.
    """

    def __init__(self, routed: Routed, exact: Routed, expert: int) -> None:
        super().__init__(routed, expert)
        self.exact = exact

    def __getitem__(self, index: Any) -> Any:
        rows: Tensor = super().__getitem__(index)
        exact = self.exact.rows(index, self.expert)
        wanted = self.routed.tokens(index, self.expert)
        place = torch.full((len(self.routed.chosen[index]),), -1)
        place[self.exact.tokens(index, self.expert)] = torch.arange(len(exact))
        found = place[wanted]
        return rows.index_put(((found >= 0).nonzero()[:, 0],), exact[found[found >= 0]])


def expert_outputs(walk: Walk, routed: Routed, weights: Iterable[Tensor], rows: int) -> Batches:
    """Return what ``expert_linear`` gives for every batch; each weight is read once and dropped.

    Args:
        walk: That keeps the values.
        routed: The op's arguments.
        weights: Of each expert in turn, ``[out, in]``.
        rows: ``out``.
    """
    found = walk.batches(lambda i: routed.x[i].new_zeros((*routed.chosen[i].shape, rows)))

    def fill(index: int, expert: int, weight: Tensor) -> None:
        given = routed.rows(index, expert)
        if len(given):
            chose = routed.chosen[index] == expert
            found.write(index, chose, functional.linear(given, weight))

    for expert, weight in enumerate(weights):
        each(lambda i, e=expert, w=weight: fill(i, e, w), range(len(found)))  # type: ignore[misc]
    return found
