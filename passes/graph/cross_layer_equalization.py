"""Scale linked channels so that the quantization noise of weights and activations together is least.

Before:  x = clamp(conv2d(a, w1, b1), 0, 6);        y = conv2d(x, w2)
After:   x = clamp(conv2d(a, s*w1, s*b1), 0, 6*s);  y = conv2d(x, w2 / s)     s > 0, one a channel

The function stays the same. Links go through ReLU, pools, residual adds, depthwise chains and
concatenations (``channel_links``), so a whole residual stream is scaled at once.

Source: the idea is Nagel et al. 2019 (https://arxiv.org/abs/1906.04721), section 4.1, which equalizes
weight ranges of pairs. Here the factors minimize a noise model of all tensors that a stream touches:
a tensor quantized with step D carries noise of variance D**2 / 12; each layer that reads it passes that
on through its weights, and adds the noise of its own weights; all relative to the power of its output.

ReLU6 (FORMATS B.5): the bound of a scaled channel moves to 6 * s. A channel that reaches the bound
during calibration keeps s = 1, one that does not gets 1 <= s <= 6 / (margin * its largest value), so
no bound falls below 6, and a quantizer that saturates at 6 replaces them all.

Factors change only where a stream's noise drops by 1 % or more, so repeated runs come to rest. A
second run may still find such a drop: it starts from the scales that the first one left, from which
the candidates' formulas lead elsewhere. Run the pass once.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from qcompile.compiler.ir.graph import Graph
from qcompile.compiler.ir.quant import QuantSpec
from qcompile.compiler.stages.cache import NO_CACHE, StageCache
from qcompile.passes.base import Pass
from qcompile.passes.calibration.channel_statistics import channel_statistics
from qcompile.passes.calibration.parallel import each
from qcompile.passes.calibration.samples import Samples
from qcompile.passes.graph.channel_links import find_links
from qcompile.passes.graph.noise_model import NoiseModel
from qcompile.passes.graph.rescale import apply_factors


@dataclass(frozen=True)
class CrossLayerEqualization(Pass):
    """Rescale every stream of linked channels that is not frozen.

    Args:
        samples: Where ranges and powers are measured, on the float graph.
        weight: The format that weights will have: per-tensor weights ask for other factors.
        activation: The format that activations will have.
        margin: How far beyond its calibrated range a channel under a bound may go unclipped.
        sweeps: Rounds over all streams; each stream is solved with the others as they are.
        stages: Where ranges and powers are found that another build has measured.
    """

    name = "cross-layer-equalization"
    samples: Samples = field(repr=False)
    weight: QuantSpec
    activation: QuantSpec
    margin: float = 1.15
    sweeps: int = 2
    stages: StageCache = field(default=NO_CACHE, repr=False)

    def run(self, graph: Graph) -> int:
        links = find_links(graph)
        if bool(links.frozen.all()):
            return 0
        statistics = channel_statistics(graph, self.samples, links.axes, self.stages)

        def solve(sweeps: int) -> Tensor:
            model = NoiseModel(graph, links, statistics, self.weight, self.activation, self.margin)
            return model.solve(sweeps)

        (factors,) = each(solve, [self.sweeps])  # on one thread: then every sum has one order
        return apply_factors(graph, links, factors)
