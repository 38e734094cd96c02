"""Turn observers into quantize/dequantize pairs and float weights into codes, in one calibrated walk.

Before:  xo = observe(x, "uint8 ...");  wo = observe(w, "int8 ...");  y = conv2d(xo, wo, b)
After:   q = quantize(x, s, z);  d = dequantize(q, s, z)
         wd = dequantize(w_codes, w_scale, w_zero_point);  y = conv2d(d, wd, b')

When the walk reaches a layer, its inputs are those that the quantized layers before it give. Its weight
is rounded for these inputs; its bias then takes over the mean of the remaining error (bias correction,
Nagel et al. 2019, section 4.2, measured, not modelled). A quarter of the samples is held out: a step
that does not lower the layer's output error there is undone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from qcompile.compiler.ir.errors import CalibrationError
from qcompile.compiler.ir.graph import Graph
from qcompile.compiler.ir.ops import OBSERVE
from qcompile.compiler.stages.cache import NO_CACHE, StageCache
from qcompile.compiler.stages.keys import graph_digest, stage_key
from qcompile.passes.base import Pass
from qcompile.passes.calibration.samples import Samples
from qcompile.passes.calibration.walk import Walk
from qcompile.passes.quantization import decisions
from qcompile.passes.quantization.error_after_add import ELEMENTS
from qcompile.passes.quantization.quantizer import Quantizer
from qcompile.passes.quantization.records import QuantizationLog

MIN_SQNR_DB = 10.0
"""A layer whose weight leaves less of its output has another format, or stays float; not under a plan."""


@dataclass(frozen=True)
class Quantize(Pass):
    """Calibrate and quantize all that is observed.

    Args:
        samples: Calibration data.
        log: Gets a row a layer and an activation.
        rounding: ``nearest``, ``gptq`` or ``adaround``.
        unit_range: Ops whose output is in [0, 1] whatever the data.
        min_layer_sqnr_db: A layer whose own weight leaves less than this stays float.
        elements: Of a value, on which its error behind an add is measured.
        max_bytes: Activations kept in memory.
        on_progress: Told the share that is done.
        stages: Has what was decided for an equal graph and equal samples, which is then not decided again.
    """

    name = "quantize"
    samples: Samples = field(repr=False)
    log: QuantizationLog = field(repr=False)
    rounding: str = "gptq"
    unit_range: frozenset[object] = field(default=frozenset(), repr=False)
    min_layer_sqnr_db: float = MIN_SQNR_DB
    elements: int = ELEMENTS
    max_bytes: int = 1 << 30
    on_progress: Callable[[float], None] = field(default=lambda share: None, repr=False)
    stages: StageCache = field(default=NO_CACHE, repr=False)

    def requires(self, graph: Graph) -> None:
        if not len(self.samples):
            raise CalibrationError("there are no calibration samples")

    def run(self, graph: Graph) -> int:
        observers = len(graph.calls(OBSERVE))
        if not observers:
            return 0
        key = self._key(graph)
        if (known := self.stages.get(self.name, key)) is not None:
            decisions.replay(graph, decisions.unpack(known), self.log)
        else:
            visitor = Quantizer(
                self.log, self.rounding, self.unit_range, self.min_layer_sqnr_db, self.elements
            )
            Walk(graph, self.samples, self.max_bytes, self.on_progress).run(visitor)
            self.stages.put(self.name, key, decisions.pack(visitor.decisions))
        graph.erase_unused()
        return observers

    def _key(self, graph: Graph) -> str:
        if not self.stages:
            return ""
        ops = sorted(map(str, self.unit_range))
        options = [self.rounding, ops, self.min_layer_sqnr_db, self.elements]
        return stage_key(self.name, graph_digest(graph), self.samples.sha256(), options)

    def ensures(self, graph: Graph) -> None:
        assert not graph.calls(OBSERVE), "an observer is left"
