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

An expert of a mixture reads the tokens that its router sends to it; the mean is over all tokens, so one that
few tokens reach does little damage.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from qcompile.compiler.ir.blocks.format import BlockFormat
from qcompile.compiler.ir.graph import Graph
from qcompile.compiler.ir.ops import routed_rows
from qcompile.passes.calibration.parallel import each
from qcompile.passes.calibration.way_back import Sums
from qcompile.passes.quantization.block_experts import FEW
from qcompile.passes.quantization.block_feedback import feed_back_rows
from qcompile.passes.quantization.block_layers import Reader, readers, readers_of
from qcompile.passes.quantization.block_moments import DAMPING, Moments
from qcompile.passes.quantization.block_rounding import TABLE_DAMPING, encode, has_feedback

ROWS = 96
"""Of a weight on which formats are tried."""
TABLE_ROWS = 512
Told = Callable[[str, Mapping[str, float]], None]
Value = Callable[[fx.Node], Tensor]
Over = Callable[[Sums], list[Tensor]]


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
        found = {node: [o for o in readers_of(node) if o.name in wanted] for node in graph.nodes}
        self._layers = {node: layers for node, layers in found.items() if layers}
        self._trials: dict[str, _Trials] = {}

    @property
    def weights(self) -> frozenset[str]:
        """The weights that will be tried."""
        return frozenset(layer.name for layers in self._layers.values() for layer in layers)

    @property
    def watched(self) -> Mapping[fx.Node, Sequence[Reader]]:
        """The calls that read the weights."""
        return self._layers

    def visit(self, node: fx.Node, over: Over) -> None:
        """Try the formats when the last reader of a weight comes, and add what each reader says."""
        for layer in self._layers[node]:
            self._visit(layer, over)

    def _visit(self, layer: Reader, over: Over) -> None:
        name, weight = layer.name, self.graph.weights[layer.name].float()
        power = _power(layer, weight, over)
        if name not in self._trials:
            left = readers(self.graph, name)
            tied = len({one.looks_up for one in left}) > 1
            encoder = _Encoder() if layer.looks_up else _Encoder.of(layer, tied, over)
            rows = some_rows(power, TABLE_ROWS if tied else ROWS)
            self._trials[name] = _Trials(weight, rows, self.formats[name], encoder, len(left))
        trials = self._trials[name]
        costs = (_looked_up if layer.looks_up else _product)(layer, trials, over)
        trials.add(costs, power)
        if not trials.readers_left:
            self.found[name] = self._trials.pop(name).damage()
            self.told(name, self.found[name])


@dataclass(frozen=True)
class SomeRows:
    """Rows that stand for all.

    Args:
        numbers: Which.
        counts: For how many rows each stands.
    """

    numbers: Tensor
    counts: Tensor


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
    def of(cls, layer: Reader, tied: bool, over: Over) -> _Encoder:
        """Return what the inputs of a linear layer say; of an expert that few tokens reach, little."""

        def sums(value: Value, gradient: Tensor) -> tuple[Tensor, ...]:
            rows = _inputs(layer, value)
            return rows.T @ rows, torch.tensor(len(rows))

        hessian, tokens = over(sums)
        none = hessian.new_zeros(())
        moments = Moments(int(tokens), hessian, none, none)
        if layer.expert is not None and tokens < FEW:
            return cls(moments.importance if tokens else None)
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
        rows: On which formats are tried.
        formats: To try.
        encoder: Rounds.
        readers_left: That have not said what errors cost.
    """

    def __init__(
        self,
        weight: Tensor,
        rows: SomeRows,
        formats: Sequence[BlockFormat],
        encoder: _Encoder,
        readers_left: int,
    ) -> None:
        self.shape, self.rows, self.readers_left = weight.shape, rows, readers_left
        some = weight[rows.numbers]
        found = each(lambda f: [some - decoded for decoded in encoder.decoded(some, f)], formats)
        self._names = [f.name for f, errors in zip(formats, found, strict=True) for _ in errors]
        self.errors = torch.stack([error for errors in found for error in errors])
        self._costs = torch.zeros(len(self.errors), dtype=torch.float64)

    def add(self, costs: Tensor, power: Tensor) -> None:
        """Add what a reader says.

        Args:
            costs: Of each of ``errors`` and each of its rows.
            power: What each row of the weight itself counts, all rows.
        """
        counts = self.rows.counts.double()
        seen = (power[self.rows.numbers].double() * counts).sum().clamp(min=1e-30)
        self._costs += (costs.double() * counts).sum(1) * power.double().sum() / seen
        self.readers_left -= 1

    def damage(self) -> dict[str, float]:
        """Return the cost of each format, with the rounding that costs least."""
        found: dict[str, float] = {}
        for name, cost in zip(self._names, self._costs.tolist(), strict=True):
            found[name] = min(cost, found.get(name, cost))
        return found


def some_rows(power: Tensor, wanted: int) -> SomeRows:
    """Return rows of a weight: those that count more are likelier to be taken.

    Half of the draws go by what rows count, half are even; a row stands for as many as its chance is small
    (systematic sampling; Hansen and Hurwitz 1943). The draw is the same each time.

    Args:
        power: What each row counts.
        wanted: Rows, at most.
    """
    count = len(power)
    if count <= wanted:
        return SomeRows(torch.arange(count), torch.ones(count))
    share = power.double() / power.double().sum().clamp(min=1e-30)
    chance = 0.5 * share + 0.5 / count
    places = (torch.arange(wanted).double() + 0.5) / wanted * chance.sum()
    drawn = torch.searchsorted(chance.cumsum(0), places).clamp(max=count - 1)
    numbers, times = drawn.unique(return_counts=True)
    return SomeRows(numbers, (times / (wanted * chance[numbers])).float())


def _power(layer: Reader, weight: Tensor, over: Over) -> Tensor:
    """Return what an error as large as the weight itself would cost, by row."""
    if layer.looks_up:
        squares, _ = over(_look_ups(layer, weight.shape))
        return (squares * weight.square()).sum(1)

    def sums(value: Value, gradient: Tensor) -> tuple[Tensor, ...]:
        outputs = _inputs(layer, value) @ weight.T
        return ((_gradients(layer, value, gradient) * outputs).square().sum(0),)

    return over(sums)[0]


def _product(layer: Reader, trials: _Trials, over: Over) -> Tensor:
    """Return ``1/2 E[g_r^2 (E_r x)^2]`` of each error and row."""

    def sums(value: Value, gradient: Tensor) -> tuple[Tensor, ...]:
        inputs = _inputs(layer, value)
        part = _gradients(layer, value, gradient)[:, trials.rows.numbers]
        costs = [(part * (inputs @ error.T)).square().sum(0) for error in trials.errors]
        return torch.stack(costs), torch.tensor(_tokens(layer, value))

    costs, tokens = over(sums)
    return 0.5 * costs / tokens


def _inputs(layer: Reader, value: Value) -> Tensor:
    """Return what a weight multiplies, ``[rows, in]``."""
    if layer.expert is None:
        return value(layer.source).flatten(0, -2)
    x, chosen, shares = layer.node.args[:3]
    given = value(shares) if isinstance(shares, fx.Node) else None
    return routed_rows(value(x), value(chosen), given, layer.expert)  # type: ignore[arg-type]


def _gradients(layer: Reader, value: Value, gradient: Tensor) -> Tensor:
    """Return the gradients of what a weight gives, ``[rows, out]``."""
    if layer.expert is None:
        return gradient.flatten(0, -2)
    return gradient[value(layer.node.args[1]) == layer.expert]  # type: ignore[arg-type]


def _tokens(layer: Reader, value: Value) -> int:
    """Return the tokens of a batch, whether or not they reach the weight."""
    if layer.expert is None:
        return value(layer.source)[..., 0].numel()
    return len(value(layer.node.args[1]))  # type: ignore[arg-type]


def _looked_up(layer: Reader, trials: _Trials, over: Over) -> Tensor:
    """Return ``1/2 E[sum over columns of g_c^2 E_rc^2]`` of each error and row."""
    squares, tokens = over(_look_ups(layer, trials.shape))
    return 0.5 * (squares[trials.rows.numbers] * trials.errors.square()).sum(2) / tokens


def _look_ups(layer: Reader, shape: Sequence[int]) -> Sums:
    """Return what sums ``g^2`` over the tokens that look a row up, and counts tokens."""

    def sums(value: Value, gradient: Tensor) -> tuple[Tensor, ...]:
        squares = gradient.flatten(0, -2).square()
        into = torch.zeros(tuple(shape))
        return into.index_add_(0, value(layer.source).flatten(), squares), torch.tensor(
            len(squares)
        )

    return sums
