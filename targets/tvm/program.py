"""From a lowered graph to a Relax module, and from that to a library."""

from __future__ import annotations

import warnings
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram

from qcompile.compiler.ir.graph import Graph
from qcompile.targets.order import Order
from qcompile.targets.origin import raised_by
from qcompile.targets.tvm import (
    code_ops,
    cuda,
    gpu_schedules,
    half,
    libraries,
    objects,
    sizes,
    tuning,
)
from qcompile.targets.tvm.converters import Converters
from qcompile.targets.tvm.float_converters import FloatConverters
from qcompile.targets.tvm.machine import Machine
from qcompile.targets.tvm.tools import load_tvm, refusal

REFUSALS = (AssertionError, NotImplementedError, RuntimeError, TypeError, ValueError)
"""What TVM's front end raises for a model that it does not take."""
LIBRARY = "model.so"
LINK = ["-Wl,--build-id=none", "-s"]
"""Nothing that differs from run to run."""


def decomposed(graph: Graph) -> ExportedProgram:
    """Return a graph in Core ATen."""
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        program: ExportedProgram = graph.exported().run_decompositions()
    return program


def imported(program: ExportedProgram, machine: Machine) -> Any:
    """Return the Relax module of a decomposed program, its weights inside.

    Raises:
        UnsupportedError: TVM's front end refuses it, or cannot infer a shape.
    """
    load_tvm()
    from tvm.relax.frontend.torch import from_exported_program

    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            return from_exported_program(
                program,
                custom_convert_map=_converters(program, machine),
                keep_params_as_input=False,
                run_ep_decomposition=False,
            )
    except REFUSALS as error:
        if not raised_by(error, "tvm", "tvm_ffi"):
            raise
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise refusal(reason) from error


def _converters(program: ExportedProgram, machine: Machine) -> dict[str, Any]:
    """Return what is converted otherwise than by TVM's front end."""
    known: dict[str, Any] = {}
    if sizes.is_free(program.graph):
        known.update(sizes.stating(front_end_ops()))
    if any(_is_half(node) for node in program.graph.nodes):
        known.update(half.converters())
    constants = _Constants(program)
    known.update(Converters(constants, machine.kernels).table())
    if machine.vectors is not None:
        known.update(FloatConverters(constants, machine.vectors).table())
    return known


def front_end_ops() -> set[str]:
    """Return the names of all ops that TVM's front end has a converter for."""
    load_tvm()
    from tvm.relax.frontend.torch.exported_program_translator import ExportedProgramImporter

    return set(ExportedProgramImporter().create_convert_map())


def _is_half(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, Tensor) and value.dtype == torch.float16


class _Constants:
    """The constants of a program by the node that stands for them."""

    def __init__(self, program: ExportedProgram) -> None:
        signature = program.graph_signature
        self.names = {
            **signature.inputs_to_parameters,
            **signature.inputs_to_buffers,
            **signature.inputs_to_lifted_tensor_constants,
        }
        self.program = program

    def __call__(self, node: fx.Node) -> Tensor:
        name = self.names[node.name]
        found = self.program.state_dict.get(name)
        value = found if found is not None else self.program.constants[name]
        assert isinstance(value, Tensor)
        return value.detach()


def build_library(
    graph: Graph, machine: Machine, file: Path, order: Order | None = None
) -> tuning.Tuned:
    """Compile a lowered graph into a shared library.

    Args:
        graph: After ``lower``.
        machine: For whom.
        file: The library.
        order: Says what is to be tuned, and whether the objects are wanted; ``None`` for neither.

    Returns:
        What became of the operators that TVM schedules itself.

    Raises:
        UnsupportedError: TVM cannot import it.
        TargetError: A compiler is missing, or refuses what TVM wrote.
        OutputError: The tuning database cannot be written.
    """
    tvm = load_tvm()
    compiler, target = libraries.compiler(machine.arch), machine.target()
    module = imported(decomposed(graph), machine)
    if machine.gpu is None:
        tuned, pack = tuning.apply(module, machine, order), None
        pipeline = tuning.finish(target)
    else:
        tuned, pipeline = tuning.Tuned(module, ()), gpu_schedules.pipeline(target)
        options = [cuda.EXACT] if graph.calls(*code_ops.OPS) else []
        pack = partial(cuda.pack_imports, machine.gpu.arch, options)
    executable = tvm.compile(tuned.module, target, relax_pipeline=pipeline)
    link = partial(objects.link, is_archived=order is not None and order.objects)
    files = {"fcompile": link, "fpack_imports": pack}
    executable.export_library(str(file), cc=compiler, options=LINK, **files)
    return tuned
