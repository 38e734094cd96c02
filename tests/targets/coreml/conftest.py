"""Programs made with coremltools' builder, saved, read back and run by the reference interpreter."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from qcompile.compiler.driver.parity import engine_gate
from qcompile.compiler.frontend.trace import trace
from qcompile.compiler.ir.graph import Graph
from qcompile.compiler.ir.interface import Interface
from qcompile.passes.base import run as run_passes
from qcompile.passes.graph.round_constants_to_half import RoundConstantsToHalf
from qcompile.passes.pipelines import float_pipeline
from qcompile.targets.coreml.emitter import EMITTER
from qcompile.targets.coreml.reference.interpreter import Interpreter
from qcompile.targets.coreml.reference.package import Package, read_package
from qcompile.targets.coreml.reference.program import Operation
from qcompile.targets.coreml.session import ReferenceEngine
from qcompile.targets.coreml.tools import load_coremltools, quiet
from qcompile.targets.device import load_device
from qcompile.targets.order import Emitted, Order, Scheme

ct = load_coremltools()
Array = NDArray[Any]
Build = Callable[..., Any]


def _program(build: Build, inputs: Mapping[str, Array], opset: str) -> Any:
    from coremltools.converters.mil.mil import Builder, Function, Program, types

    kinds = {np.dtype("float32"): types.fp32, np.dtype("float16"): types.fp16,
             np.dtype("int32"): types.int32}  # fmt: skip
    specs = {
        n: Builder.placeholder(shape=v.shape, dtype=kinds.get(v.dtype, types.int32))
        for n, v in inputs.items()
    }
    with quiet(), Function(specs, opset_version=getattr(ct.target, opset)) as function:
        given = {}
        for name, var in function.inputs.items():
            needs = inputs[name].dtype
            given[name] = var if needs in kinds else Builder.cast(x=var, dtype=str(needs))
        found = build(Builder, **given)
        outputs = list(found) if isinstance(found, tuple | list) else [found]
        function.set_outputs(outputs)
    program = Program()
    program.add_function("main", function)
    return program, [v.name for v in outputs]


def save_mil(folder: Path, build: Build, inputs: Mapping[str, Array], opset: str) -> list[str]:
    """Save a program without any optimization; return the names of its outputs."""
    program, _ = _program(build, inputs, opset)
    with quiet():
        pipeline = ct.PassPipeline.EMPTY
        model = ct.convert(
            program, convert_to="mlprogram", pass_pipeline=pipeline, skip_model_load=True,
            minimum_deployment_target=getattr(ct.target, opset),
            compute_precision=ct.precision.FLOAT32,
        )  # fmt: skip
        model.save(str(folder))
    return [o.name for o in model.get_spec().description.output]


@pytest.fixture(scope="module", autouse=True)
def _frozen() -> None:
    """Spare the garbage collector what other tests have imported; see ``tests/conftest.py``."""
    gc.freeze()


@pytest.fixture(scope="session")
def run_mil(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., list[Array]]:
    """Give ``run_mil(build, inputs, opset="iOS18")``: outputs of the saved program as arrays."""

    def run(build: Build, inputs: Mapping[str, Array], opset: str = "iOS18") -> list[Array]:
        folder = tmp_path_factory.mktemp("mil") / "model.mlpackage"
        save_mil(folder, build, inputs, opset)
        interpreter = Interpreter(read_package(folder))
        tensors = {
            name: torch.from_numpy(np.ascontiguousarray(inputs[name])).to(kind.dtype)
            for name, kind in interpreter.inputs
        }
        found = interpreter.run(tensors)
        return [v.numpy() if isinstance(v, torch.Tensor) else v for v in found.values()]

    return run


@pytest.fixture(scope="session")
def fold_mil() -> Callable[..., list[Array | None]]:
    """Give ``fold_mil(build, constants, opset="iOS18")``: what coremltools folds; ``None`` if nothing."""

    def fold(
        build: Build, constants: Mapping[str, Array], opset: str = "iOS18"
    ) -> list[Array | None]:
        found: list[Any] = []

        def body(mb: Any, x: Any) -> Any:
            given = {name: mb.const(val=value) for name, value in constants.items()}
            result = build(mb, **given)
            results = list(result) if isinstance(result, tuple | list) else [result]
            found.extend(None if r.val is None else np.asarray(r.val) for r in results)
            return mb.identity(x=x)

        _program(body, {"x": np.zeros(1, np.float32)}, opset)
        return found

    return fold


@dataclass
class Emission:
    """A net as a package on disk.

    Args:
        source: The float graph, after the float pipeline.
        graph: What was emitted.
        folder: Holds ``model.mlpackage``.
        emitted: What ``emit`` returned.
        inputs: The graph's inputs.
        float_bits: Of the program.
    """

    source: Graph
    graph: Graph
    folder: Path
    emitted: Emitted
    inputs: dict[str, Tensor]
    float_bits: int

    @property
    def package(self) -> Package:
        """The package, read by the reference reader."""
        return read_package(self.folder / self.emitted.artifact)

    @property
    def arrays(self) -> dict[str, Any]:
        """The package's inputs."""
        return EMITTER.to_engine(self.graph, self.inputs)

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The rows of ``engine_errors``."""
        return EMITTER.engine_errors(self.graph, self.folder, self.emitted, self.arrays)

    def gate(self) -> dict[str, Any]:
        """Return the engine gate, as a build applies it."""
        return engine_gate(self.rows, self.float_bits)

    def run(self) -> dict[str, Any]:
        """Return the package's outputs by the graph's names, from the reference interpreter."""
        artifact = self.folder / self.emitted.artifact
        engine = ReferenceEngine(artifact, self.emitted.engine["options"], 1)
        found = engine.run(list(self.arrays.values()))
        return dict(zip(self.graph.outputs, found, strict=True))

    def operations(self, *kinds: str) -> list[Operation]:
        """Return the ops of these types, or all, in order."""
        block = self.package.program.functions["main"].block
        return [o for o in block.operations if not kinds or o.type in kinds]


def emit_net(
    folder: Path, module: nn.Module | Graph, *inputs: Tensor, change: Any = None, ios: int = 18,
    float_bits: int = 16, dynamic: Any = None, interface: Interface | None = None,
) -> Emission:  # fmt: skip
    """Trace, change and emit a net.

    Args:
        folder: Must not exist.
        module: The net, or its float graph.
        inputs: Example inputs; more than an input holds are not needed.
        change: Rewrites the graph that is emitted: puts codes into it.
        ios: 16, 17 or 18: the opset.
        float_bits: In which the program computes.
        dynamic: As ``trace`` takes it.
        interface: What a model file would say.
    """
    source = module if isinstance(module, Graph) else trace(module.eval(), inputs, dynamic)
    run_passes(source, float_pipeline())
    source.interface = interface or source.interface
    graph = source.copy()
    if float_bits == 16:
        run_passes(graph, [RoundConstantsToHalf()])
    if change is not None:
        change(graph)
        graph.erase_unused()
    device = load_device("apple-a14").with_os_minimum(str(ios))
    scheme = Scheme("test", None, None, float_bits)
    folder.mkdir(parents=True)
    emitted = EMITTER.emit(graph, folder, Order("net", device, scheme))
    values = dict(zip(source.inputs, inputs, strict=True))
    return Emission(source, graph, folder, emitted, values, float_bits)


@pytest.fixture
def emit(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Emission]:
    """Give ``emit(module, *inputs, **options)``: see ``emit_net``."""

    def call(module: nn.Module | Graph, *inputs: Tensor, **options: Any) -> Emission:
        return emit_net(tmp_path_factory.mktemp("net") / "bundle", module, *inputs, **options)

    return call
