"""The emitter for TVM: a shared library of integer kernels, and a C++ program that runs it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from qcompile.compiler.ir.errors import TargetError
from qcompile.compiler.ir.graph import Graph
from qcompile.compiler.ir.quant import Granularity, QuantSpec
from qcompile.passes.base import Pass
from qcompile.passes.graph.absorb_high_bias import AbsorbHighBias
from qcompile.passes.graph.cross_layer_equalization import CrossLayerEqualization
from qcompile.passes.graph.decompose_attention import DecomposeAttention
from qcompile.passes.graph.eliminate_dead_code import EliminateDeadCode
from qcompile.passes.graph.flatten_linear import FlattenLinear
from qcompile.passes.graph.fold_activation import FoldActivation
from qcompile.passes.graph.fold_scaling import FoldScaling
from qcompile.passes.quantization.insert_observers import InsertObservers
from qcompile.passes.quantization.quantize import Quantize
from qcompile.runtime.session import Engine
from qcompile.targets.base import (
    DEFAULT_WEIGHTS,
    Emitted,
    Emitter,
    Order,
    Recipe,
    Scheme,
    WeightOptions,
)
from qcompile.targets.device import Device
from qcompile.targets.plans import NodePlan
from qcompile.targets.tvm import libraries, native, planning, probe, program
from qcompile.targets.tvm.capabilities import INTEGER_OPS
from qcompile.targets.tvm.engine import VerifyingEngine
from qcompile.targets.tvm.lower import lower
from qcompile.targets.tvm.machine import Machine
from qcompile.targets.tvm.tools import load_tvm

ARTIFACT = "model.so"
EMULATED_PROOF = {
    "engine": "the bundle's program under qemu-user",
    "proves": "the library, run by the program that ships with it, computes what the quantized graph does",
    "does_not_prove": "how fast it is on the device; run the bundle's program there",
}


class TvmEmitter(Emitter):
    """Writes ``model.so``, TVM's runtime libraries, and a C++ program."""

    name = "tvm"
    description = "a library compiled by TVM, with a C++ runtime"

    def precisions(self, device: Device) -> Sequence[str]:
        return tuple(device.facts(self.name))

    def scheme(
        self, precision: str, device: Device, options: WeightOptions = DEFAULT_WEIGHTS
    ) -> Scheme:
        if options.granularity == "per-group" or options.group_size or options.channel_scales:
            raise TargetError(
                f"{precision} in tvm has scales per channel or per tensor: "
                "use --granularity per-channel or per-tensor, without groups or channel scales"
            )
        if precision == "fp32":
            return Scheme(precision, None, None, 32)
        per_tensor = options.granularity == "per-tensor"
        instructions = Machine.of(device).instructions
        weight = QuantSpec(
            bits=instructions.weight_bits,
            granularity=Granularity.PER_TENSOR if per_tensor else Granularity.PER_CHANNEL,
            axis=None if per_tensor else 0,
        )
        return Scheme(precision, weight, QuantSpec(signed=instructions.signed, symmetric=False))

    def check_machine(self, device: Device) -> None:
        load_tvm()
        libraries.compiler(device.arch)
        native.emulator(device.arch)

    def check(self, graph: Graph) -> None:
        planning.refuse_unsupported(graph)

    def plan(self, graph: Graph, scheme: Scheme, device: Device) -> list[NodePlan]:
        return planning.plan(graph, scheme, device)

    def passes(self, recipe: Recipe) -> list[Pass]:
        scheme = recipe.scheme
        if scheme.weight is None:
            return []
        assert recipe.samples is not None
        assert isinstance(scheme.weight, QuantSpec)
        assert scheme.activation is not None
        return [
            DecomposeAttention(),
            CrossLayerEqualization(recipe.samples, scheme.weight, scheme.activation),
            AbsorbHighBias(recipe.samples),  # after equalization: it compares across channels
            FlattenLinear(),
            InsertObservers(INTEGER_OPS, scheme.activation, scheme.weight, recipe.keep_float),
            Quantize(
                recipe.samples,
                recipe.log,
                recipe.rounding,
                INTEGER_OPS.unit_range,
                max_bytes=recipe.max_bytes,
                on_progress=recipe.on_progress,
            ),
            FoldActivation(),  # needs the final ranges
            FoldScaling(),
            EliminateDeadCode(),
        ]

    def emit(self, graph: Graph, folder: Path, order: Order) -> Emitted:
        lowered = graph.copy()
        lower(lowered)
        machine = Machine.of(order.device)
        program.build_library(lowered, machine, folder / ARTIFACT)
        native.build_program(folder, machine.arch)
        files = sorted(f for f in folder.rglob("*") if f.is_file())
        version = libraries.versions()
        engine = {"name": "tvm", "minimum": "0.27", "options": machine.options()}
        return Emitted(
            ARTIFACT,
            tuple(f.relative_to(folder).as_posix() for f in files),
            engine,
            tuple(planning.floats(lowered)),
            {"apache-tvm": version[0], "apache-tvm-ffi": version[1]},
        )

    def engine_class(self) -> type[Engine] | None:
        return VerifyingEngine

    def proof(self, device: Device) -> Mapping[str, str]:
        if libraries.is_native(device.arch):
            return {"engine": "TVM's virtual machine"}
        return EMULATED_PROOF

    def engine_errors(
        self, graph: Graph, folder: Path, emitted: Emitted, inputs: Mapping[str, Any]
    ) -> list[dict[str, Any]]:
        return probe.engine_errors(graph, Machine.read(emitted.engine["options"]), folder, inputs)


EMITTER = TvmEmitter()
