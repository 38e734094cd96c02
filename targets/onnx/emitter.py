"""The emitter for ONNX: INT8 as q/dq pairs that ONNX Runtime fuses, int8 weights alone, fp16, fp32."""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import fx

from qcompile.compiler.ir.errors import MissingPackageError
from qcompile.compiler.ir.graph import Graph
from qcompile.compiler.ir.quant import QuantSpec
from qcompile.passes.base import Pass
from qcompile.passes.graph.convert_to_half import ConvertToHalf
from qcompile.passes.graph.decompose_attention import DecomposeAttention
from qcompile.passes.graph.eliminate_dead_code import EliminateDeadCode
from qcompile.passes.graph.flatten_linear import FlattenLinear
from qcompile.passes.graph.fold_activation import FoldActivation
from qcompile.passes.graph.fold_scaling import FoldScaling
from qcompile.passes.graph.use_integer_hard_swish import UseIntegerHardSwish
from qcompile.passes.quantization.quantize_stored_weights import QuantizeStoredWeights
from qcompile.targets.base import Emitter
from qcompile.targets.converted import converted
from qcompile.targets.device import Device
from qcompile.targets.integer_scheme import equalized, integer_weight, quantized, refuse_groups
from qcompile.targets.onnx import blocks, choices, compare, optimized, planning
from qcompile.targets.onnx.capabilities import INTEGER_OPS
from qcompile.targets.onnx.export import export
from qcompile.targets.onnx.registry import OPSET, registry
from qcompile.targets.options import DEFAULT_WEIGHTS, WeightOptions
from qcompile.targets.order import Emitted, Order, Recipe, Scheme
from qcompile.targets.plans import NodePlan, TensorChoices

MINIMUM = "1.23"
"""The first that makes an integer convolution of one with a float bias: 1.22.1 leaves it float, 1.23.2,
1.24.4, 1.26.0 and 1.31.1 do not (measured on MobileNetV2)."""
MINIMUM_OF_TWO_BITS = "1.31"
"""The one in which codes of 2 bits were tried; they are of opset 25."""
ARTIFACT = "model.onnx"
_PACKAGES = ("onnx", "onnx-ir", "onnxruntime", "onnxscript")
_MODULES = ("onnx", "onnx_ir", "onnxruntime", "onnxscript", "torch.onnx")
_OPTIONS = {
    # Weight-only MatMul computes in float32, not in int8 with dynamic activations (FORMATS 0.4).
    "session.qdq_matmulnbits_accuracy_level": "1",
}
_SIGNED_OPTIONS = {**_OPTIONS, "session.qdqisint8allowed": "1"}


class OnnxEmitter(Emitter):
    """Writes ``model.onnx``."""

    name = "onnx"
    description = "ONNX for ONNX Runtime on CPUs"
    decodes_weights = True

    def scheme(
        self, precision: str, device: Device, options: WeightOptions = DEFAULT_WEIGHTS
    ) -> Scheme:
        """Return the formats (FORMATS A.7, "S8S8 vs U8S8").

        x86 multiplies uint8 by int8; without VNNI or AMX it adds pairs in 16 bits, which 7-bit weights
        cannot overflow. Arm multiplies int8 by int8.
        """
        refuse_groups(self.name, precision, options)
        if precision in ("fp32", "fp16"):
            return Scheme(precision, None, None, int(precision[2:]))
        sums_in_16_bits = device.arch == "x86_64" and not any(
            feature in device.isa for feature in ("avx512vnni", "avxvnni", "amx-int8")
        )
        bits = 7 if sums_in_16_bits and precision == "int8" else 8
        weight = integer_weight(bits, options)
        if precision == "w8a16":
            return Scheme(precision, weight, None)
        signed = device.arch == "aarch64"
        return Scheme(precision, weight, QuantSpec(signed=signed, symmetric=False))

    def mixed_scheme(self, device: Device) -> Scheme:
        """Return float arithmetic on weights of many formats."""
        return choices.mixed_scheme()

    def weight_choices(
        self,
        graph: Graph,
        device: Device,
        pins: Sequence[tuple[str, str]] = (),
        keep_float: frozenset[str] = frozenset(),
    ) -> Sequence[TensorChoices]:
        """Return int8, blocks of int4 and of 2 bits, and float32."""
        return choices.onnx_choices(graph, pins, keep_float)

    def runs_here(self, device: Device) -> bool:
        """Return True: ONNX Runtime takes a file on any machine."""
        return True

    def preload(self) -> None:
        for module in _MODULES:
            importlib.import_module(module)
        registry()
        planning.decomposed()

    def check(self, graph: Graph, device: Device) -> None:
        for package in _PACKAGES:
            try:
                importlib.metadata.version(package)
            except importlib.metadata.PackageNotFoundError as error:
                raise MissingPackageError(package, "onnx") from error
        planning.refuse_unsupported(graph)

    def plan(self, graph: Graph, scheme: Scheme, device: Device) -> list[NodePlan]:
        return planning.plan(graph, scheme, device)

    def passes(self, recipe: Recipe) -> list[Pass]:
        scheme = recipe.scheme
        if scheme.weight is None:
            return [ConvertToHalf()] if scheme.float_bits == 16 else []
        stored = QuantizeStoredWeights(
            recipe.log, keep_float=recipe.keep_float, formats=recipe.formats
        )
        if scheme.activation is None:
            return [stored, *quantized(recipe, INTEGER_OPS), EliminateDeadCode()]
        return [
            DecomposeAttention(),  # its products and softmax have integer kernels, attention has none
            *equalized(recipe),
            stored,
            FlattenLinear(),
            UseIntegerHardSwish(signed=scheme.activation.signed),
            *quantized(recipe, INTEGER_OPS),
            FoldActivation(),  # needs the final ranges
            FoldScaling(),
            EliminateDeadCode(),
        ]

    def emit(self, graph: Graph, folder: Path, order: Order) -> Emitted:
        artifact = folder / ARTIFACT

        def write() -> None:
            import onnx_ir

            onnx_ir.save(export(graph), artifact)

        converted(order.stages, "onnx", graph, artifact, write, packages=_PACKAGES)
        options = _SIGNED_OPTIONS if _has_signed_activations(graph) else _OPTIONS
        minimum = MINIMUM_OF_TWO_BITS if blocks.needed_opset(graph) > OPSET else MINIMUM
        engine = {"name": "onnxruntime", "minimum": minimum, "options": options}
        floats = optimized.float_ops(artifact, options)
        tools = {package: importlib.metadata.version(package) for package in _PACKAGES}
        return Emitted(ARTIFACT, (ARTIFACT,), engine, tuple(floats), tools)

    def engine_errors(
        self, graph: Graph, folder: Path, emitted: Emitted, inputs: Mapping[str, Any]
    ) -> list[dict[str, Any]]:
        return compare.engine_errors(graph, folder / emitted.artifact, emitted.engine, inputs)


def _has_signed_activations(graph: Graph) -> bool:
    from qcompile.compiler.ir.ops import QUANTIZE

    nodes: list[fx.Node] = graph.calls(QUANTIZE)
    return any(int(n.args[3]) < 0 for n in nodes)  # type: ignore[arg-type]


EMITTER = OnnxEmitter()
