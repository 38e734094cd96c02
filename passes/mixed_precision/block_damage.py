"""What each block format of each weight would cost in quality, before any is chosen.

To second order, the KL divergence of the predictions that an error ``E`` of a weight ``[rows, columns]``
causes is, per token,

    1/2 mean over tokens of  sum over rows r of  g_r^2 (E_r x)^2,

with ``x`` the layer's inputs and ``g`` the gradient of its output for a label drawn from the model
(``cotangents.py``). The errors are those of the encoders that a build uses, with error feedback where it
lowers them, on some rows of the weight; the rest is scaled by how much those rows matter.

What errors of several weights do is added: the linearity theorem of Malinovskii et al. 2024
(https://arxiv.org/abs/2411.17525); the build measures whether it holds. The sum over rows without their
products leaves out only what rounding errors of two rows have in common, which is nothing on average.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from qcompile.compiler.ir.blocks.format import BlockFormat
from qcompile.compiler.ir.graph import Graph
from qcompile.passes.calibration.parallel import each
from qcompile.passes.calibration.way_back import Sums
from qcompile.passes.quantization.block_feedback import feed_back_rows
from qcompile.passes.quantization.block_layers import Reader, reader, readers
from qcompile.passes.quantization.block_moments import DAMPING, Moments
from qcompile.passes.quantization.block_rounding import TABLE_DAMPING, encode, has_feedback

ROWS = 96
"""Of a weight on which formats are tried."""
TABLE_ROWS = 512
Told = Callable[[str, Mapping[str, float]], None]


class BlockDamage:
    """A visitor of the way back.

    Args:
        graph: Of the way back.
        formats: That each weight may have, by its name.
        known: What is known of weights already, which are not tried again.
        told: Told of each weight as soon as it is known.
    """

    def __init__(
        self,
        graph: Graph,
        formats: Mapping[str, Sequence[BlockFormat]],
        known: Mapping[str, Mapping[str, float]],
        told: Told = lambda name, found: None,
    ) -> None:
        self.graph, self.formats, self.told = graph, formats, told
        self.found: dict[str, Mapping[str, float]] = dict(known)
        wanted = formats.keys() - known.keys()
        layers = [layer for node in graph.nodes if (layer := reader(node)) is not None]
        self._layers = {layer.node: layer for layer in layers if layer.name in wanted}
        self._trials: dict[str, _Trials] = {}

    @property
    def watched(self) -> Mapping[fx.Node, Reader]:
        """The calls that read the weights."""
        return self._layers

    def visit(self, node: fx.Node, over: Callable[[Sums], list[Tensor]]) -> None:
        """Try the formats when the last reader of a weight comes, and add what each reader says."""
        layer = self._layers[node]
        name, weight = layer.name, self.graph.weights[layer.name].float()
        if name not in self._trials:
            left = readers(self.graph, name)
            tied = len({one.looks_up for one in left}) > 1
            encoder = _Encoder() if layer.looks_up else _Encoder.of(layer, tied, over)
            self._trials[name] = _Trials(weight, self.formats[name], encoder, tied, len(left))
        trials = self._trials[name]
        trials.add(_looked_up(layer, trials, over) if layer.looks_up else _product(layer, trials, over))
        if not trials.readers_left:
            self.found[name] = self._trials.pop(name).damage()
            self.told(name, self.found[name])


@dataclass(frozen=True)
class _Encoder:
    """Rounds as a build does: see ``block_rounding.py``.

    Args:
        importance: Of inputs; not of tables.
        upper: For error feedback.
    """

    importance: Tensor | None = None
    upper: Tensor | None = None

    @classmethod
    def of(cls, layer: Reader, tied: bool, over: Callable[[Sums], list[Tensor]]) -> _Encoder:
        """Return what the inputs of a linear layer say."""

        def sums(value: Callable[[fx.Node], Tensor], gradient: Tensor) -> tuple[Tensor, ...]:
            rows = value(layer.source).flatten(0, -2)
            return rows.T @ rows, torch.tensor(len(rows))

        hessian, tokens = over(sums)
        none = hessian.new_zeros(())
        moments = Moments(int(tokens), hessian, none, none)
        upper = moments.upper(TABLE_DAMPING if tied else DAMPING).float()
        return cls(None if tied else moments.importance, upper)

    def decoded(self, rows: Tensor, format: BlockFormat) -> Iterator[Tensor]:
        """Yield what is left of some rows after each way of rounding."""
        yield encode(rows, format, self.importance).decoded
        if self.upper is not None and has_feedback(format):
            yield format.decode(feed_back_rows(rows, self.upper, format))


class _Trials:
    """Errors of some rows in each format, and what they cost so far.

    Args:
        weight: ``[rows, columns]``.
        formats: To try.
        encoder: Rounds.
        tied: Whether it is a table and a matrix.
        readers_left: That have not said what errors cost.
    """

    def __init__(
        self, weight: Tensor, formats: Sequence[BlockFormat], encoder: _Encoder, tied: bool, readers_left: int
    ) -> None:
        self.weight, self.readers_left = weight, readers_left
        self.rows = _some_rows(len(weight), TABLE_ROWS if tied else ROWS)
        some = weight[self.rows]
        found = each(lambda f: [some - decoded for decoded in encoder.decoded(some, f)], formats)
        self._names = [format.name for format in formats for _ in found[formats.index(format)]]
        self.errors = torch.stack([error for errors in found for error in errors])
        self._costs = torch.zeros(len(self.errors), dtype=torch.float64)

    def add(self, costs: Tensor) -> None:
        """Add what a reader says that each of ``errors`` costs."""
        self._costs += costs.double()
        self.readers_left -= 1

    def damage(self) -> dict[str, float]:
        """Return the cost of each format, with the rounding that costs least."""
        found: dict[str, float] = {}
        for name, cost in zip(self._names, self._costs.tolist(), strict=True):
            found[name] = min(cost, found.get(name, cost))
        return found


def _product(layer: Reader, trials: _Trials, over: Callable[[Sums], list[Tensor]]) -> Tensor:
    """Return ``1/2 E[sum g_r^2 (E_r x)^2]`` of each error, as if all rows had been tried."""
    some = trials.errors

    def sums(value: Callable[[fx.Node], Tensor], gradient: Tensor) -> tuple[Tensor, ...]:
        inputs, squares = value(layer.source).flatten(0, -2), gradient.flatten(0, -2).square()
        power = (squares * (inputs @ trials.weight.T).square()).sum(0)
        part = squares[:, trials.rows]
        costs = [(part * (inputs @ error.T).square()).sum() for error in some]
        return power, torch.stack(costs), torch.tensor(len(inputs))

    power, costs, tokens = over(sums)
    return 0.5 * costs / tokens * _rest(power, trials.rows)


def _looked_up(layer: Reader, trials: _Trials, over: Callable[[Sums], list[Tensor]]) -> Tensor:
    """Return ``1/2 E[sum g_c^2 E_tc^2]`` of each error, t the row that a token looks up."""

    def sums(value: Callable[[fx.Node], Tensor], gradient: Tensor) -> tuple[Tensor, ...]:
        tokens = gradient.flatten(0, -2).square()
        into = torch.zeros_like(trials.weight)
        return into.index_add_(0, value(layer.source).flatten(), tokens), torch.tensor(len(tokens))

    squares, tokens = over(sums)
    power = (squares * trials.weight.square()).sum(1)
    costs = (squares[trials.rows] * trials.errors.square()).sum((1, 2))
    return 0.5 * costs / tokens * _rest(power, trials.rows)


def _rest(power: Tensor, rows: Tensor) -> Tensor:
    """Return by what the cost of some rows is multiplied to be that of all."""
    return power.sum() / power[rows].sum().clamp(min=1e-30)


def _some_rows(count: int, wanted: int) -> Tensor:
    """Return rows at equal distances, the first and the last among them."""
    return torch.linspace(0, count - 1, min(count, wanted)).round().long()
