"""The emitter for Core ML: an ML Program with our integers and palettes in it, verified without a Mac."""

from __future__ import annotations

import gc
import importlib.metadata
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from qcompile.compiler.ir.graph import Graph
from qcompile.passes.base import Pass
from qcompile.passes.graph.eliminate_dead_code import EliminateDeadCode
from qcompile.passes.graph.fold_activation import FoldActivation
from qcompile.passes.graph.round_constants_to_half import RoundConstantsToHalf
from qcompile.passes.quantization.quantize_stored_weights import QuantizeStoredWeights
from qcompile.runtime.manifest import TensorInfo
from qcompile.runtime.session import Engine
from qcompile.targets.base import Emitter
from qcompile.targets.converted import converted
from qcompile.targets.coreml import (
    choices,
    compare,
    deployment,
    features,
    foreign,
    names,
    planning,
    precisions,
)
from qcompile.targets.coreml.capabilities import INTEGER_OPS
from qcompile.targets.coreml.convert import convert, lower
from qcompile.targets.coreml.reference.package import read_package
from qcompile.targets.coreml.session import ReferenceEngine
from qcompile.targets.coreml.stream import write_stored_weights
from qcompile.targets.coreml.swift import write_swift_package
from qcompile.targets.coreml.tools import load_coremltools
from qcompile.targets.coreml.write import rewrite_package
from qcompile.targets.device import Device
from qcompile.targets.integer_scheme import equalized, quantized
from qcompile.targets.options import DEFAULT_WEIGHTS, WeightOptions
from qcompile.targets.order import Emitted, Order, Recipe, Scheme
from qcompile.targets.plans import NodePlan, Probe, TensorChoices, UnitPlan

ARTIFACT = "model.mlpackage"
PROOF = {
    "engine": "reference interpreter",
    "proves": "the package on disk, read and run op by op with Core ML's types, computes what the "
    "quantized graph does, and its compressed weights are equal to the graph's in every value",
    "does_not_prove": "how a device orders its sums, what it keeps in which precision inside of an op, "
    "and which compute unit it chooses; run the Swift package's test or `qcompile verify` on a Mac for that",
}


class CoremlEmitter(Emitter):
    """Writes ``model.mlpackage``."""

    name = "coreml"
    decodes_weights = True
    neural_engine = True
    description = "Core ML ML Programs for Apple Silicon"
    bare_device = "apple-m1"

    def scheme(
        self, precision: str, device: Device, options: WeightOptions = DEFAULT_WEIGHTS
    ) -> Scheme:
        return precisions.scheme(precision, device, options)

    def mixed_scheme(self, device: Device) -> Scheme:
        """Return float16 arithmetic on weights of many formats."""
        return choices.mixed_scheme()

    def weight_choices(
        self,
        graph: Graph,
        device: Device,
        pins: Sequence[tuple[str, str]] = (),
        keep_float: frozenset[str] = frozenset(),
    ) -> Sequence[TensorChoices]:
        """Return palettes, int4 blocks, int8 and float16, as far as the device's oldest system loads them."""
        return choices.coreml_choices(graph, device, pins, keep_float)

    def preload(self) -> None:
        load_coremltools()

    def check(self, graph: Graph, device: Device) -> None:
        load_coremltools()
        features.refuse_misfits(graph)
        planning.refuse_unsupported(graph)

    def plan(self, graph: Graph, scheme: Scheme, device: Device) -> list[NodePlan]:
        return planning.plan(graph, scheme, device)

    def passes(self, recipe: Recipe) -> list[Pass]:
        scheme = recipe.scheme
        last: list[Pass] = [EliminateDeadCode()]
        if scheme.float_bits == 16:
            last = [RoundConstantsToHalf(), *last]
        if scheme.weight is None:
            return last
        first: list[Pass] = []
        if scheme.activation is not None:
            first = equalized(recipe)
            last = [FoldActivation(), *last]  # needs the final ranges
        stored = QuantizeStoredWeights(
            recipe.log,
            keep_float=recipe.keep_float,
            weight=scheme.weight,
            whole_table=True,
            formats=recipe.formats,
        )
        return [*first, stored, *quantized(recipe, INTEGER_OPS), *last]

    def emit(self, graph: Graph, folder: Path, order: Order) -> Emitted:
        opset = deployment.opset(order.device)
        bits = order.scheme.float_bits
        package = folder / ARTIFACT

        def write() -> dict[str, Any]:
            lowered = lower(graph)
            spec = convert(graph, lowered, opset, bits, names.feature_names(graph), package)
            files = rewrite_package(spec, package, graph.interface.metadata)
            gc.collect()  # coremltools' programs are cycles, and hold the weights
            write_stored_weights(graph, package, lowered.origins)
            return {"files": files, "origins": dict(lowered.origins)}

        written = converted(
            order.stages, "coreml", graph, package, write,
            packages=("coremltools",), options=[opset, bits],
        )  # fmt: skip
        engine = {
            "name": self.name,
            "minimum": str(deployment.macos_equivalent(order.device)),
            "options": {"float_bits": bits, **features.options(graph)},
        }
        tools = {"coremltools": importlib.metadata.version("coremltools")}
        return Emitted(
            ARTIFACT,
            tuple(f"{ARTIFACT}/{f}" for f in written["files"]),
            engine,
            (),
            tools,
            features.notes(graph),
            written["origins"],
        )

    def companions(self, graph: Graph, folder: Path, order: Order, vectors_limit_db: float) -> None:
        ios, macos = (
            f(order.device) for f in (deployment.ios_equivalent, deployment.macos_equivalent)
        )
        write_swift_package(
            folder,
            name=order.name,
            inputs=features.inputs(graph),
            outputs=features.outputs(graph),
            images=features.options(graph).get("images", {}),
            labels=graph.interface.labels or None,
            minimum_os=(f"{macos}.0", f"{ios}.0"),
            vectors_limit_db=vectors_limit_db,
        )

    def inspect(self, artifact: Path, device: Device) -> tuple[list[UnitPlan], list[str]]:
        return foreign.predicted_units(read_package(artifact), device)

    def probe(self, artifact: Path) -> Probe | None:
        return foreign.probe(artifact) if artifact.suffix == ".mlpackage" else None

    def inputs(self, graph: Graph) -> tuple[TensorInfo, ...]:
        return features.inputs(graph)

    def outputs(self, graph: Graph) -> tuple[TensorInfo, ...]:
        return features.outputs(graph)

    def to_engine(self, graph: Graph, inputs: Mapping[str, Tensor]) -> dict[str, Any]:
        return features.to_engine(graph, inputs)

    def from_engine(self, graph: Graph, arrays: Mapping[str, Any]) -> dict[str, Tensor]:
        return features.from_engine(graph, arrays)

    def engine_class(self) -> type[Engine] | None:
        return None if sys.platform == "darwin" else ReferenceEngine

    def proof(self, device: Device) -> Mapping[str, str]:
        return {"engine": "Core ML"} if sys.platform == "darwin" else PROOF

    def engine_errors(
        self, graph: Graph, folder: Path, emitted: Emitted, inputs: Mapping[str, Any]
    ) -> list[dict[str, Any]]:
        package = folder / emitted.artifact
        given = self.from_engine(graph, inputs)
        return compare.engine_errors(graph, package, emitted, inputs, given)


EMITTER = CoremlEmitter()
