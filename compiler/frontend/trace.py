"""An ``nn.Module`` or an ``ExportedProgram`` -> ``Graph``."""

from __future__ import annotations

import os
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from qcompile.compiler.ir.errors import ModelError
from qcompile.compiler.ir.graph import DynamicDim, Graph, is_dynamic

_FOLDERS = (Path(torch.__file__).parent, Path(__file__).parents[2])
_LIBRARIES = tuple(f"{folder}{os.sep}" for folder in _FOLDERS)
"""Where PyTorch's and our own files begin with."""

Inputs = Mapping[str, Tensor] | Sequence[Tensor] | Tensor


def trace(module: nn.Module, inputs: Inputs, dynamic_shapes: Any = None) -> Graph:
    """Export a module, as it is in eval mode, to the IR.

    Args:
        module: Any module that ``torch.export`` takes. Its training flags are restored afterwards.
        inputs: Example inputs: by name of ``forward``'s argument, in order, or the only one. An example
            of size 1 on a free axis is doubled: ``torch.export`` would fix the axis at 1.
        dynamic_shapes: As ``torch.export.export`` takes it.

    Raises:
        ModelError: ``torch.export`` refuses the module; names the user's source line.
    """
    args, kwargs = _arguments(inputs)
    args, kwargs = _double_free_axes(args, kwargs, dynamic_shapes)
    with _eval_mode(module), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with torch.no_grad():
                module(*args, **kwargs)
        except Exception as error:
            raise ModelError(
                f"the model does not run on its example inputs ({_signature(args, kwargs)}): "
                f"{_first_line(error)}{_user_line(error)}"
            ) from error
        try:
            program = torch.export.export(module, args, kwargs, dynamic_shapes=dynamic_shapes)
        except Exception as error:
            raise ModelError(_export_refusal(error)) from error
    return from_exported(program, _dim_names(program, dynamic_shapes))


def from_exported(
    program: ExportedProgram, names: Mapping[tuple[str, int], str] | None = None
) -> Graph:
    """Return the IR of an exported program.

    Args:
        program: With example inputs.
        names: Names of free axes by input name and axis; others are called ``input_axis``.

    Raises:
        ModelError: The program has no example inputs, changes its buffers or inputs, or takes or
            returns what is no tensor.
    """
    if program.example_inputs is None:
        raise ModelError("the .pt2 program was saved without example inputs; export it with them")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = program.run_decompositions({})
        _refuse_memory(program)
        module = program.module(check_guards=False)
    assert isinstance(module, fx.GraphModule)
    args, kwargs = program.example_inputs
    leaves = pytree.tree_leaves((args, kwargs))
    if bad := [type(leaf).__name__ for leaf in leaves if not isinstance(leaf, Tensor)]:
        raise ModelError(f"inputs must be tensors; got {', '.join(sorted(set(bad)))}")
    placeholders = module.graph.find_nodes(op="placeholder")
    inputs = {str(p.target): leaf for p, leaf in zip(placeholders, leaves, strict=True)}
    outputs = _flatten_outputs(module, program.call_spec.out_spec)
    module.graph.set_codegen(fx.graph.CodeGen())
    plain = fx.GraphModule(module, module.graph)  # without the input checks that export hooks in
    module, placeholders = plain, plain.graph.find_nodes(op="placeholder")
    dynamic = _dynamic_dims(program, placeholders, names or {})
    graph = Graph(module, inputs, outputs, dynamic)
    graph.erase_unused()
    for name in list(graph.weights):
        graph.weights[name] = graph.weights.peek(name).detach()
    for node in module.graph.nodes:
        if node.op == "get_attr":
            graph.infer_constant(node)
        elif "val" not in node.meta and node.op == "call_function":
            graph.infer(node)
    return graph


def _refuse_memory(program: ExportedProgram) -> None:
    """Refuse what an artifact cannot do; only a program without in-place ops says so."""
    if mutated := sorted(program.graph_signature.buffers_to_mutate.values()):
        raise ModelError(
            f"the model changes its buffers while it runs ({', '.join(mutated)}); "
            "an artifact has no memory between calls: pass the state in and return it"
        )
    if mutated := sorted(program.graph_signature.user_inputs_to_mutate.values()):
        raise ModelError(
            f"the model writes into its inputs ({', '.join(mutated)}); "
            "an artifact only returns outputs: change a copy (x = x.clone()) and return it"
        )


def _arguments(inputs: Inputs) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
    if isinstance(inputs, Tensor):
        return (inputs,), {}
    values = list(inputs.values()) if isinstance(inputs, Mapping) else list(inputs)
    if not values or (bad := [type(v).__name__ for v in values if not isinstance(v, Tensor)]):
        kinds = ", ".join(sorted(set(bad))) if values else "nothing"
        raise ModelError(f"inputs() must give tensors, by name or in order; it gave {kinds}")
    if isinstance(inputs, Mapping):
        return (), {
            name: _own(value, index, values) for index, (name, value) in enumerate(inputs.items())
        }
    return tuple(_own(value, index, values) for index, value in enumerate(values)), {}


def _own(value: Tensor, index: int, values: list[Tensor]) -> Tensor:
    """Copy a tensor that stands for an earlier input too: export would take the two for one input."""
    return value.clone() if any(value is other for other in values[:index]) else value


def _double_free_axes(args: Any, kwargs: Any, dynamic_shapes: Any) -> tuple[Any, Any]:
    if dynamic_shapes is None:
        return args, kwargs

    def double(tensor: Tensor, dims: Any) -> Tensor:
        items = dims.items() if isinstance(dims, Mapping) else enumerate(dims or ())
        for axis, dim in items:
            if dim is not None and not isinstance(dim, int) and tensor.shape[axis] == 1:
                tensor = torch.cat([tensor, tensor], dim=axis)
        return tensor

    if isinstance(dynamic_shapes, Mapping):
        if args and len(args) == len(dynamic_shapes):
            pairs = zip(args, dynamic_shapes.values(), strict=True)
            return tuple(double(t, d) for t, d in pairs), kwargs
        return args, {k: double(t, dynamic_shapes.get(k)) for k, t in kwargs.items()}
    if len(dynamic_shapes) == len(args):
        return tuple(double(t, d) for t, d in zip(args, dynamic_shapes, strict=True)), kwargs
    return args, kwargs


@contextmanager
def _eval_mode(module: nn.Module) -> Iterator[None]:
    training = [m for m in module.modules() if m.training]
    module.eval()
    try:
        yield
    finally:
        for part in training:
            part.training = True


def _flatten_outputs(module: fx.GraphModule, spec: pytree.TreeSpec) -> tuple[str, ...]:
    (output,) = module.graph.find_nodes(op="output")
    flat = pytree.tree_leaves(output.args[0])
    paths = pytree.tree_flatten_with_path(pytree.tree_unflatten(range(len(flat)), spec))[0]
    names = [_output_name(path, len(flat)) for path, _ in paths]
    if twice := sorted({n for n in names if names.count(n) > 1}):
        raise ModelError(f"two outputs are called {', '.join(twice)}; give their keys other names")
    keep = [(n, v) for n, v in zip(names, flat, strict=True) if v is not None]
    if bad := [n for n, v in keep if not isinstance(v, fx.Node)]:
        raise ModelError(f"outputs must be tensors; {', '.join(bad)} are not")
    output.args = (tuple(v for _, v in keep),)
    return tuple(n for n, _ in keep)


def _output_name(path: Any, count: int) -> str:
    """Join keys, names and indices: ``{"levels": [a, b]}`` gives levels_0 and levels_1."""
    parts = [str(getattr(p, "key", getattr(p, "name", getattr(p, "idx", "")))) for p in path]
    if count == 1 and all(part.isdigit() for part in parts):
        return "output"
    return "_".join(parts if parts and not parts[0].isdigit() else ["output", *parts])


def _dim_names(program: ExportedProgram, dynamic_shapes: Any) -> dict[tuple[str, int], str]:
    if dynamic_shapes is None:
        return {}
    names = list(program.graph_signature.user_inputs)
    if isinstance(dynamic_shapes, Mapping):
        pairs = list(dynamic_shapes.items())
    else:
        pairs = list(zip(names, dynamic_shapes, strict=False))
    found = {}
    for name, dims in pairs:
        items = dims.items() if isinstance(dims, Mapping) else enumerate(dims or ())
        for axis, dim in items:
            if isinstance(dim, torch.export.Dim):
                found[str(name), int(axis)] = dim.__name__
    return found


def _dynamic_dims(
    program: ExportedProgram, placeholders: Any, names: Mapping[tuple[str, int], str]
) -> dict[str, dict[int, DynamicDim]]:
    symbols: dict[str, str] = {}
    found: dict[str, dict[int, DynamicDim]] = {}
    for node in placeholders:
        for axis, size in enumerate(node.meta["val"].shape):
            if not is_dynamic(size):
                continue
            name = str(node.target)
            wanted = names.get((name, axis), f"{name}_{axis}")
            label = symbols.setdefault(str(size), wanted)
            bounds = program.range_constraints.get(size.node.expr)
            low = int(bounds.lower) if bounds is not None else 1
            high = None if bounds is None or bounds.upper > 2**31 else int(bounds.upper)
            found.setdefault(name, {})[axis] = DynamicDim(label, low, high)
    return found


def _signature(args: Any, kwargs: Any) -> str:
    shapes = [f"{tuple(a.shape)}" for a in args]
    return ", ".join(shapes + [f"{k}={tuple(v.shape)}" for k, v in kwargs.items()])


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _export_refusal(error: BaseException) -> str:
    text = str(error)
    if not text.startswith("Constraints violated") or "Suggested fixes:" not in text:
        return (
            f"torch.export refuses the model: {_first_line(error)}{_user_line(error)}; "
            "rewrite that line without branching on tensor values "
            "(torch.where, torch.cond), or name the axes that vary in dynamic_shapes()"
        )
    reasons, rest = text.split("Suggested fixes:")
    reason = reasons.splitlines()[1].strip(" -").split(". ")[0].rstrip(".")
    fixes = [line.strip() for line in rest.strip().split("\n\n")[0].splitlines()]
    return (
        f"torch.export cannot leave the axes free as dynamic_shapes() asks: {reason}; "
        f"it suggests: {', '.join(fixes)}"
    )


def _user_line(error: BaseException) -> str:
    """Return `` (at FILE:LINE: source)`` of the innermost frame that is not PyTorch's or ours."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if not f.filename.startswith(("<", *_LIBRARIES))]
    if not own:
        return ""
    return f" (at {own[-1].filename}:{own[-1].lineno}: {own[-1].line})"
