"""The emitter for TVM: a shared library of integer or float kernels, and a C++ program that runs it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from qcompile.compiler.ir.errors import TargetError
from qcompile.compiler.ir.graph import Graph
from qcompile.passes.base import Pass
from qcompile.passes.graph.convert_to_half import ConvertToHalf
from qcompile.passes.graph.decompose_attention import DecomposeAttention
from qcompile.passes.graph.eliminate_dead_code import EliminateDeadCode
from qcompile.passes.graph.flatten_linear import FlattenLinear
from qcompile.passes.graph.fold_activation import FoldActivation
from qcompile.passes.graph.fold_scaling import FoldScaling
from qcompile.passes.quantization.quantize_stored_weights import QuantizeStoredWeights
from qcompile.runtime.session import Engine
from qcompile.targets.base import Emitter
from qcompile.targets.device import HOST, Device
from qcompile.targets.integer_scheme import equalized, quantized
from qcompile.targets.options import DEFAULT_WEIGHTS, Tuning, WeightOptions
from qcompile.targets.order import Emitted, Order, Recipe, Scheme
from qcompile.targets.plans import NodePlan, TensorChoices
from qcompile.targets.tvm import (
    choices,
    cuda,
    libraries,
    native,
    planning,
    precisions,
    probe,
    program,
    stand_in,
)
from qcompile.targets.tvm.capabilities import INTEGER_OPS
from qcompile.targets.tvm.engine import VerifyingEngine
from qcompile.targets.tvm.float_lower import lower_floats
from qcompile.targets.tvm.lower import lower
from qcompile.targets.tvm.machine import Machine
from qcompile.targets.tvm.tools import load_tvm
from qcompile.targets.tvm.tuning import check as check_tuning

EMULATED_PROOF = {
    "engine": "the bundle's program under qemu-user",
    "proves": "the library, run by the program that ships with it, computes what the quantized graph does",
    "does_not_prove": "how fast it is on the device; run the bundle's program there",
}


class TvmEmitter(Emitter):
    """Writes ``model.so``, TVM's runtime libraries, and a C++ program."""

    name = "tvm"
    description = "a library compiled by TVM, with a C++ runtime"
    has_objects = True
    has_kernels = True

    def scheme(
        self, precision: str, device: Device, options: WeightOptions = DEFAULT_WEIGHTS
    ) -> Scheme:
        return precisions.scheme(precision, device, options)

    def mixed_scheme(self, device: Device) -> Scheme:
        return choices.mixed_scheme(device)

    def weight_choices(
        self,
        graph: Graph,
        device: Device,
        pins: Sequence[tuple[str, str]] = (),
        keep_float: frozenset[str] = frozenset(),
    ) -> Sequence[TensorChoices]:
        """Return int8, int4 in groups or a channel, and float32, where a kernel decodes them."""
        return choices.tvm_choices(graph, device, pins, keep_float)

    def runs_here(self, device: Device) -> bool:
        """Return whether the device is this machine, whose CPU runs the library without an emulator."""
        return device.name == HOST and Machine.of(device).gpu is None

    def check_machine(self, device: Device) -> None:
        load_tvm()
        needs: list[Callable[[str], object]] = [libraries.compiler, native.emulator]
        if device.cuda_arch is not None:
            needs += [lambda arch: cuda.compiler(), libraries.check_cuda]
        missing = []
        for need in needs:
            try:
                need(device.arch)
            except TargetError as error:
                missing.append(str(error))
        if missing:
            raise TargetError("; ".join(missing))

    def check_tuning(self, tuning: Tuning, device: Device) -> None:
        check_tuning(tuning, device)

    def preload(self) -> None:
        load_tvm()

    def check(self, graph: Graph, device: Device) -> None:
        planning.refuse_unsupported(graph, Machine.of(device))

    def plan(self, graph: Graph, scheme: Scheme, device: Device) -> list[NodePlan]:
        return planning.plan(graph, scheme, device)

    def passes(self, recipe: Recipe) -> list[Pass]:
        if recipe.scheme.weight is None:
            return [ConvertToHalf()] if recipe.scheme.float_bits == 16 else []
        if recipe.scheme.activation is None:
            tables = QuantizeStoredWeights(
                recipe.log,
                keep_float=recipe.keep_float,
                recurrent=False,
                formats=recipe.formats,
            )
            return [tables, *quantized(recipe, INTEGER_OPS), EliminateDeadCode()]
        return [
            DecomposeAttention(),
            *equalized(recipe),
            FlattenLinear(),
            *quantized(recipe, INTEGER_OPS),
            FoldActivation(),  # needs the final ranges
            FoldScaling(),
            EliminateDeadCode(),
        ]

    def artifact_bytes(self, graph: Graph, order: Order) -> int:
        machine = Machine.of(order.device)
        with TemporaryDirectory(prefix="qcompile-") as name:
            library = Path(name) / program.LIBRARY
            program.build_library(_lowered(graph, order)[0], machine, library)
            return library.stat().st_size

    def emit(self, graph: Graph, folder: Path, order: Order) -> Emitted:
        machine, (lowered, floats) = Machine.of(order.device), _lowered(graph, order)
        tuned = program.build_library(lowered, machine, folder / program.LIBRARY, order)
        if machine.gpu is not None:
            stand_in.build(lowered, machine.stand_in, folder)
        native.build_program(folder, machine.arch, has_cuda=machine.gpu is not None)
        files = sorted(f for f in folder.rglob("*") if f.is_file())
        version = libraries.versions()
        measured = {"tuning": tuned.facts} if tuned.facts else {}
        engine = {"name": "tvm", "minimum": "0.27", "options": machine.options(), **measured}
        return Emitted(
            program.LIBRARY,
            tuple(f.relative_to(folder).as_posix() for f in files),
            engine,
            tuple(floats),
            {"apache-tvm": version[0], "apache-tvm-ffi": version[1]},
            notes=tuned.notes,
        )

    def engine_class(self) -> type[Engine] | None:
        return VerifyingEngine

    def proof(self, device: Device) -> Mapping[str, str]:
        if device.cuda_arch is not None and not cuda.has_gpu():
            return stand_in.PROOF
        if libraries.is_native(device.arch):
            return {"engine": "TVM's virtual machine"}
        return EMULATED_PROOF

    def engine_errors(
        self, graph: Graph, folder: Path, emitted: Emitted, inputs: Mapping[str, Any]
    ) -> list[dict[str, Any]]:
        return probe.engine_errors(graph, Machine.read(emitted.engine["options"]), folder, inputs)


def _lowered(graph: Graph, order: Order) -> tuple[Graph, list[dict[str, Any]]]:
    """Return a copy whose layers are what kernels compute, and what stays float; see ``Emitted``."""
    found = graph.copy()
    lower(found)
    floats = planning.floats(found)
    if Machine.of(order.device).vectors is not None:
        lower_floats(found)
        if order.scheme.activation is None:
            floats = planning.slow_floats(found)
    return found, floats


EMITTER = TvmEmitter()
