"""A module without weights and a safetensors file with them -> a graph that reads them one at a time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from qcompile.compiler.frontend.trace import Inputs, trace
from qcompile.compiler.ir.errors import ModelError
from qcompile.compiler.ir.graph import Graph
from qcompile.compiler.ir.stored import StoredTensor, stored_tensors
from qcompile.compiler.ir.weights import Weights, stand_in


def trace_stored(module: nn.Module, file: Path, inputs: Inputs) -> Graph:
    """Export a module on ``meta``; its parameters stay in the file and are float32 when they are read.

    Args:
        module: On the ``meta`` device; it is given tensors that take no memory.
        file: A safetensors file with a tensor for each parameter and buffer, by its name.
        inputs: Example inputs.

    Raises:
        ModelError: The file lacks a tensor, or one has another shape; names all. Or the export fails.
    """
    found = stored_tensors(file)
    tensors = dict([*module.named_parameters(), *module.named_buffers()])
    _refuse_misfits(tensors, found, file)
    for name, tensor in tensors.items():
        owner, _, attribute = name.rpartition(".")
        holder = module.get_submodule(owner)
        value = stand_in(tuple(tensor.shape), _widened(tensor.dtype))
        is_parameter = attribute in holder._parameters
        setattr(
            holder, attribute, nn.Parameter(value, requires_grad=False) if is_parameter else value
        )
    graph = trace(module.eval(), inputs)
    stored = {
        name: replace(found[name], dtype=_widened(tensors[name].dtype))
        for name in graph.weights
        if name in found
    }
    for name in stored:
        graph.weights[name] = graph.weights.peek(name).to("meta")
    graph.weights = Weights(graph.module, stored)
    return graph


def _widened(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype.is_floating_point else dtype


def _refuse_misfits(
    tensors: Mapping[str, Tensor], found: Mapping[str, StoredTensor], file: Path
) -> None:
    missing = [name for name in tensors if name not in found]
    if missing:
        raise ModelError(f"{file} lacks {len(missing)} tensor(s): {', '.join(missing)}")
    shapes = {name: found[name].shape() for name in tensors}
    wrong = [
        f"{name} is {list(shapes[name])}, not {list(tensor.shape)}"
        for name, tensor in tensors.items()
        if shapes[name] != tuple(tensor.shape)
    ]
    if wrong:
        raise ModelError(f"{file} does not fit the model: {'; '.join(wrong)}")
