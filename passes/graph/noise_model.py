"""The noise that int8 would add to a network, as a function of its channels' scales.

All powers are relative to the power of the output of the layer that reads the noise, so that terms of
different layers add up. Factors are powers of candidates' formulas, clipped to what bounds allow.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from qcompile.compiler.ir.graph import Graph
from qcompile.compiler.ir.quant import Granularity, QuantSpec
from qcompile.passes.calibration.channel_statistics import ChannelStatistics
from qcompile.passes.graph.channel_links import CLAMPS, ChannelLinks
from qcompile.passes.graph.fusion import stored_values
from qcompile.passes.graph.rescale import clamp_bounds, input_columns

SMALLEST_SHARE = 1e-4
"""A channel is never amplified as if it were quieter than this share of the loudest."""

_EXPONENTS = (0.0, 0.25, 0.5, 0.75, 1.0)


@dataclass(eq=False)
class _Layer:
    """What the model keeps of one layer; ``[out, in / groups]`` but for ``outputs``.

    Args:
        outputs: Class of each output channel, ``[out]``.
        inputs: Class of each weight's input channel; ``None`` where the input is in no class.
        largest: Largest magnitude over the kernel.
        squares: Sum of squares over the kernel, relative to the power of the output.
        read: Power of the input that this weight reads, times kernel size, relative likewise.
    """

    outputs: Tensor
    inputs: Tensor | None
    largest: Tensor
    squares: Tensor
    read: Tensor


@dataclass(frozen=True)
class _Stream:
    """Classes that meet in values, the stored values, the layers that read, all layers that touch."""

    members: Tensor
    values: list[fx.Node]
    readers: list[_Layer]
    layers: list[_Layer]


class NoiseModel:
    """Finds the factors for ``CrossLayerEqualization``.

    Args:
        graph: The float graph.
        links: Its classes of linked channels.
        statistics: Of every value in ``links.axes``.
        weight: The format of weights.
        activation: The format of activations.
        margin: See the pass.
    """

    def __init__(
        self,
        graph: Graph,
        links: ChannelLinks,
        statistics: dict[fx.Node, ChannelStatistics],
        weight: QuantSpec,
        activation: QuantSpec,
        margin: float,
    ) -> None:
        self.graph, self.links, self.statistics = graph, links, statistics
        self.weight, self.activation = weight, activation
        self.count = len(links.frozen)
        self.stored = [n for n in stored_values(graph) if n in links.ids]
        self.layers = [self._layer(n) for n in links.layers]
        self.peak = self._largest_of(lambda s: torch.maximum(s.high, -s.low))
        self.ceiling = self._ceilings(margin)
        self.magnitudes = self._magnitudes()

    def solve(self, sweeps: int) -> Tensor:
        """Return the factor of each class, float64 ``[classes]``."""
        factors = torch.ones(self.count, dtype=torch.float64)
        streams = [self._stream(members) for members in self._streams()]
        for _ in range(sweeps):
            for stream in streams:
                factors = self._improve(factors, stream)
        return factors

    def noise(self, factors: Tensor, stream: _Stream) -> float:
        """Return the relative noise of all that a stream touches."""
        gain = self._gains(factors, stream.readers)
        total = sum(self._activation_noise(n, factors, gain) for n in stream.values)
        total += sum(self._weight_noise(layer, factors) for layer in stream.layers)
        return float(total)

    def _improve(self, factors: Tensor, stream: _Stream) -> Tensor:
        best, least = factors, self.noise(factors, stream)
        for candidate in self._candidates(stream.members):
            trial = factors.clone()
            trial[stream.members] = candidate
            if (noise := self.noise(trial, stream)) < least * (1 - 1e-6):
                best, least = trial, noise
        return best

    def _candidates(self, members: Tensor) -> list[Tensor]:
        """Return formulas for a stream: 1 / range**a * column**b / row**c, bounded, mean 1."""
        peak = self.peak[members]
        peak = peak.clamp(min=float(peak.max()) * SMALLEST_SHARE + 1e-30)
        ceiling = self.ceiling[members]
        row, column = (m[members].clamp(min=1e-30) for m in self.magnitudes)
        found = []
        for a, b, c in itertools.product(_EXPONENTS, _EXPONENTS, (0.0, 0.5)):
            if a + b + c > 1:
                continue
            raw = peak**-a * column**b * row**-c
            if bool(torch.isfinite(ceiling).any()):
                found.append(torch.minimum(ceiling, raw / raw.min()).clamp(min=1.0))
                found.append(torch.where(torch.isfinite(ceiling), ceiling**a, 1.0))
            else:
                found.append(raw / raw.log().mean().exp())
        return [_power_of_two_free(f) for f in found]

    def _streams(self) -> list[Tensor]:
        """Return the free classes, grouped by the values in which they meet."""
        parent = list(range(self.count))

        def root(i: int) -> int:
            while parent[i] != i:
                parent[i] = parent[parent[i]]
                i = parent[i]
            return i

        for ids in self.links.ids.values():
            members = sorted({root(int(i)) for i in ids})
            for other in members[1:]:
                parent[other] = members[0]
        groups: dict[int, list[int]] = {}
        for index in range(self.count):
            if not bool(self.links.frozen[index]):
                groups.setdefault(root(index), []).append(index)
        return [torch.tensor(g) for g in groups.values()]

    def _layer(self, node: fx.Node) -> _Layer:
        weight, source = self.graph.constant(node.args[1]), node.args[0]
        assert weight is not None
        flat = weight.double().reshape(*weight.shape[:2], -1)
        power = float(self.statistics[node].power.sum()) + 1e-30
        read = torch.full(weight.shape[:2], flat.shape[2] / power, dtype=torch.float64)
        inputs = None
        if source in self.links.ids:
            columns = input_columns(node, weight)
            inputs = self.links.ids[source][columns]
            read = read * self.statistics[source].power[columns]
        squares = flat.square().sum(2) / power
        return _Layer(self.links.ids[node], inputs, flat.abs().amax(2), squares, read)

    def _largest_of(self, of) -> Tensor:  # type: ignore[no-untyped-def]
        found = torch.zeros(self.count, dtype=torch.float64)
        for node in self.stored:
            ids = self.links.ids[node]
            found = found.scatter_reduce(0, ids, of(self.statistics[node]), "amax")
        return found

    def _ceilings(self, margin: float) -> Tensor:
        """Return the largest factor that a bound allows each class; infinite without a bound."""
        found = torch.full((self.count,), torch.inf, dtype=torch.float64)
        for clamp in [n for n in self.links.ids if n.target in CLAMPS]:
            if (bound := clamp_bounds(self.graph, clamp)) is None:
                continue
            source = clamp.args[0]
            assert isinstance(source, fx.Node)
            ids = self.links.ids[clamp]
            seen = self.statistics[source].high.clamp(min=1e-30)
            lowest = float(bound.min())
            room = (lowest / (seen * margin)).clamp(1.0, 1.0 / SMALLEST_SHARE)
            found = found.scatter_reduce(0, ids, room, "amin")
        return found

    def _magnitudes(self) -> tuple[Tensor, Tensor]:
        """Return the largest weight in each class's rows and columns."""
        row = torch.zeros(self.count, dtype=torch.float64)
        column = torch.zeros(self.count, dtype=torch.float64)
        for layer in self.layers:
            row = row.scatter_reduce(0, layer.outputs, layer.largest.amax(1), "amax")
            if (ids := layer.inputs) is not None:
                column = column.scatter_reduce(0, ids.flatten(), layer.largest.flatten(), "amax")
        return row, column

    def _stream(self, members: Tensor) -> _Stream:
        inside = torch.zeros(self.count, dtype=torch.bool)
        inside[members] = True
        values = [n for n in self.stored if bool(inside[self.links.ids[n]].any())]
        readers = [la for la in self.layers if la.inputs is not None and inside[la.inputs].any()]
        layers = list(readers)
        if self.weight.granularity is Granularity.PER_TENSOR:
            written = [la for la in self.layers if inside[la.outputs].any()]
            layers += [la for la in written if la not in readers]
        return _Stream(members, values, readers, layers)

    def _gains(self, factors: Tensor, readers: list[_Layer]) -> Tensor:
        """Return how much noise of variance 1 in a class adds to its readers, relative."""
        gain = torch.zeros(self.count, dtype=torch.float64)
        for layer in readers:
            assert layer.inputs is not None
            share = layer.squares / factors[layer.inputs] ** 2
            gain.index_add_(0, layer.inputs.flatten(), share.flatten())
        return gain

    def _activation_noise(self, node: fx.Node, factors: Tensor, gain: Tensor) -> float:
        ids = self.links.ids[node]
        seen = self.statistics[node].scaled(factors[ids])
        low, high = float(seen.low.min()), float(seen.high.max())
        span = max(high, 0.0) - min(low, 0.0)
        levels = self.activation.qmax - self.activation.qmin
        return (span / levels) ** 2 / 12 * float(gain[ids].sum())

    def _weight_noise(self, layer: _Layer, factors: Tensor) -> float:
        rows = factors[layer.outputs]
        columns = torch.ones(()) if layer.inputs is None else factors[layer.inputs]
        scaled = layer.largest / columns
        if self.weight.granularity is Granularity.PER_TENSOR:
            top = (scaled * rows[:, None]).amax() / rows
        else:
            top = scaled.amax(1)
        step = (top / self.weight.qmax) ** 2 / 12
        return float((step * (layer.read * columns**2).sum(1)).sum())


def _power_of_two_free(factors: Tensor) -> Tensor:
    """Round factors to 16 bits of mantissa: a factor of 1 stays exactly 1."""
    mantissa, exponent = torch.frexp(factors)
    return torch.ldexp((mantissa * 65536).round() / 65536, exponent)
