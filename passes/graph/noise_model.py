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
from qcompile.passes.graph.channel_links import CLAMPS, ChannelLinks, layer_groups
from qcompile.passes.graph.fusion import stored_values
from qcompile.passes.graph.rescale import clamp_bounds

SMALLEST_SHARE = 1e-4
"""A channel is never amplified as if it were quieter than this share of the loudest."""

WORTHWHILE = 0.99
"""Factors change only where they leave at most this share of a stream's noise."""

_EXPONENTS = (0.0, 0.25, 0.5, 0.75, 1.0)
_CHUNK = 1 << 20
"""Elements of what is computed at once for several candidates."""


@dataclass(eq=False)
class _Layer:
    """What the model keeps of one layer.

    Args:
        outputs: Class of each output channel, ``[out]``.
        inputs: Class of each input channel, ``[groups, in / groups]``; ``None`` without classes.
        largest: Largest magnitude over the kernel, ``[groups, out / groups, in / groups]``.
        squares: Sum of squares over kernel and outputs, relative to the power of the output, shaped
            like ``inputs``.
        read: Power of the input that each weight reads, times kernel size, relative likewise, shaped
            like ``largest``.
    """

    outputs: Tensor
    inputs: Tensor | None
    largest: Tensor
    squares: Tensor
    read: Tensor

    def columns(self, factors: Tensor) -> Tensor:
        """Return the factors of the input channels, ``[candidates, groups, in / groups]``."""
        if self.inputs is None:
            return torch.ones(1, *self.squares.shape, dtype=torch.float64)
        return factors[:, self.inputs]


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
        self.peak = self._peaks()
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

    def noise(self, factors: Tensor, stream: _Stream) -> Tensor:
        """Return the relative noise of all that a stream touches.

        Args:
            factors: ``[candidates, classes]``.
            stream: One of the graph's.

        Returns:
            float64 ``[candidates]``.
        """
        gain = self._gains(stream.readers)
        total = torch.zeros(len(factors), dtype=torch.float64)
        for node in stream.values:
            total += self._activation_noise(node, factors, gain)
        for layer in stream.layers:
            total += self._weight_noise(layer, factors, layer in stream.readers)
        return total

    def _improve(self, factors: Tensor, stream: _Stream) -> Tensor:
        candidates = torch.stack(self._candidates(stream.members))
        trials = factors.repeat(1 + len(candidates), 1)
        trials[1:, stream.members] = candidates
        noise = self.noise(trials, stream)
        ties = noise <= noise.min() * (1 + 1e-9)  # the first of them, however sums were rounded
        best = int(ties.nonzero()[0])
        return trials[best] if bool(noise[best] < WORTHWHILE * noise[0]) else factors

    def _candidates(self, members: Tensor) -> list[Tensor]:
        """Return formulas for a stream: 1 / range**a * column**b / row**c, bounded, mean 1."""
        peak = self.peak[members]
        peak = peak.clamp(min=float(peak.max()) * SMALLEST_SHARE + 1e-30)
        ceiling = self.ceiling[members]
        row, column = (m[members].clamp(min=1e-30) for m in self.magnitudes)
        bounded, found = bool(torch.isfinite(ceiling).any()), []
        if bounded:
            found = [torch.where(torch.isfinite(ceiling), ceiling**a, 1.0) for a in _EXPONENTS]
        for a, b, c in itertools.product(_EXPONENTS, _EXPONENTS, (0.0, 0.5)):
            if a + b + c > 1:
                continue
            raw = peak**-a * column**b * row**-c
            if bounded:
                found.append(torch.minimum(ceiling, raw / raw.min()).clamp(min=1.0))
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
        assert isinstance(source, fx.Node)
        groups = layer_groups(node)
        kernels = weight.double().reshape(groups, -1, weight.shape[1], weight[0, 0].numel())
        power = float(self.statistics[node].power.sum()) + 1e-30
        read = torch.full(kernels.shape[:3], kernels.shape[3] / power, dtype=torch.float64)
        inputs = None
        if (ids := self.links.inputs(node)) is not None:
            inputs = ids.reshape(groups, -1)
            read = read * self.statistics[source].power.reshape(groups, 1, -1)
        squares = kernels.square().sum((1, 3)) / power
        return _Layer(self.links.ids[node], inputs, kernels.abs().amax(3), squares, read)

    def _peaks(self) -> Tensor:
        """Return the largest magnitude of each class in what is stored."""
        found = torch.zeros(self.count, dtype=torch.float64)
        for node in self.stored:
            seen = self.statistics[node]
            magnitude = torch.maximum(seen.high, -seen.low)
            found = found.scatter_reduce(0, self.links.ids[node], magnitude, "amax")
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
            row = row.scatter_reduce(0, layer.outputs, layer.largest.amax(2).flatten(), "amax")
            if (ids := layer.inputs) is not None:
                most = layer.largest.amax(1).flatten()
                column = column.scatter_reduce(0, ids.flatten(), most, "amax")
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

    def _gains(self, readers: list[_Layer]) -> Tensor:
        """Return how much noise of variance 1 in a class of factor 1 adds to its readers, relative."""
        gain = torch.zeros(self.count, dtype=torch.float64)
        for layer in readers:
            assert layer.inputs is not None
            gain.index_add_(0, layer.inputs.flatten(), layer.squares.flatten())
        return gain

    def _activation_noise(self, node: fx.Node, factors: Tensor, gain: Tensor) -> Tensor:
        ids, seen = self.links.ids[node], self.statistics[node]
        scale = factors[:, ids]
        low, high = (seen.low * scale).amin(1), (seen.high * scale).amax(1)
        span = high.clamp(min=0) - low.clamp(max=0)
        levels = self.activation.qmax - self.activation.qmin
        passed: Tensor = (gain[ids] / scale**2).sum(1)
        return (span / levels) ** 2 / 12 * passed

    def _weight_noise(self, layer: _Layer, factors: Tensor, reads: bool) -> Tensor:
        columns = layer.columns(factors if reads else factors[:1])
        share = max(1, _CHUNK // layer.largest.numel())
        parts = [(layer.largest * c[:, :, None]).amax(3) for c in columns.reciprocal().split(share)]
        top = torch.cat(parts).flatten(1)
        if self.weight.granularity is Granularity.PER_TENSOR:
            rows = factors[:, layer.outputs]
            top = (top * rows).amax(1, keepdim=True) / rows
        power = torch.einsum("goi,kgi->kgo", layer.read, columns**2).flatten(1)
        noise: Tensor = ((top / self.weight.qmax) ** 2 / 12 * power).sum(1)
        return noise


def _power_of_two_free(factors: Tensor) -> Tensor:
    """Round factors to 16 bits of mantissa: a factor of 1 stays exactly 1."""
    mantissa, exponent = torch.frexp(factors)
    return torch.ldexp((mantissa * 65536).round() / 65536, exponent)
