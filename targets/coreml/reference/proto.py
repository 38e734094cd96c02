"""Reads a program from the protobuf of a saved package, which may have been made by anyone."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

from torch import Tensor

from qcompile.targets.coreml.reference.errors import PackageError
from qcompile.targets.coreml.reference.program import (
    Argument,
    Block,
    Function,
    Name,
    Operation,
    Program,
    Stored,
)
from qcompile.targets.coreml.reference.proto_values import value, value_type
from qcompile.targets.coreml.reference.types import TensorType

MAX_DEPTH = 32
"""Of blocks in blocks."""
OPSETS = {"CoreML5": "15", "CoreML6": "16", "CoreML7": "17", "CoreML8": "18", "CoreML9": "26"}
"""Name -> the iOS that it came with (coremltools, ``_OPSET``). iOS 26 has new types of inputs, no new ops."""
VARIADIC = frozenset(("values", "loop_vars"))
"""Inputs that are a list even with one element (``concat``, ``stack``, ``einsum``, ``while_loop``)."""
_TYPE = re.compile(r"[\w.:]{1,100}", re.ASCII)


def read_program(proto: Any) -> Program:
    """Return the program of a ``MIL_pb2.Program``.

    Raises:
        PackageError: It is damaged or of an unknown kind.
    """
    functions = {}
    for name, function in sorted(proto.functions.items()):
        _refuse_opset(name, function)
        body = _block(function.block_specializations[function.opset], 0)
        inputs = tuple((i.name, value_type(i.type)) for i in function.inputs)
        block = Block(inputs, body.operations, body.outputs)
        _refuse_repeated(name, block)
        functions[name] = Function(function.opset, block)
    if not functions:
        raise PackageError("the program has no function")
    return Program(functions)


def _refuse_opset(name: str, function: Any) -> None:
    if function.opset not in OPSETS:
        raise PackageError(
            f"function {name!r} has the opset {function.opset!r}, which is not known; "
            f"known are {', '.join(OPSETS)}"
        )
    if function.opset not in function.block_specializations:
        raise PackageError(f"function {name!r} has no block for its opset {function.opset!r}")


def _refuse_repeated(function: str, block: Block) -> None:
    """A name that stands for two values could be read as either; coremltools makes each unique."""
    counts = Counter(_defined(block))
    counts.update(name for name, _ in block.inputs)
    if repeated := sorted(name for name, count in counts.items() if count > 1):
        raise PackageError(
            f"function {function!r} gives {len(repeated)} name(s) to more than one value, "
            f"{repeated[0]!r} among them"
        )


def _defined(block: Block) -> Iterator[str]:
    for operation in block.operations:
        yield from (name for name, _ in operation.outputs)
        for inner in operation.blocks:
            yield from _defined(inner)


def _block(proto: Any, depth: int) -> Block:
    if depth > MAX_DEPTH:
        raise PackageError(f"blocks are nested more than {MAX_DEPTH} deep")
    return Block(
        tuple((i.name, value_type(i.type)) for i in proto.inputs),
        tuple(_operation(o, depth) for o in proto.operations),
        tuple(proto.outputs),
    )


def _operation(proto: Any, depth: int) -> Operation:
    """Return an op; ``constexpr`` ops of iOS 16 keep their inputs as attributes, later ones do not."""
    if not _TYPE.fullmatch(proto.type):
        raise PackageError(f"an op has the type {proto.type[:100]!r}, which is no name of an op")
    inputs: dict[str, Any] = {k: value(v) for k, v in proto.attributes.items() if k != "name"}
    for key, argument in proto.inputs.items():
        found = [_binding(b) for b in argument.arguments]
        inputs[key] = found[0] if len(found) == 1 and key not in VARIADIC else found
    label = value(proto.attributes["name"]) if "name" in proto.attributes else ""
    outputs = tuple((o.name, value_type(o.type)) for o in proto.outputs)
    name = label if isinstance(label, str) and label else outputs[0][0] if outputs else proto.type
    blocks = tuple(_block(b, depth + 1) for b in proto.blocks)
    operation = Operation(proto.type, inputs, outputs, blocks, name)
    if not outputs and proto.type != "write_state":
        raise PackageError(f"{proto.type} {name!r} has no result")
    if proto.type == "const":
        _refuse_constant(operation)
    return operation


def _binding(proto: Any) -> Argument:
    return Name(proto.name) if proto.WhichOneof("binding") == "name" else value(proto.value)


def _refuse_constant(operation: Operation) -> None:
    held = operation.inputs.get("val")
    if held is None or isinstance(held, Name | list) or len(operation.outputs) != 1:
        raise PackageError(f"const {operation.name!r} has no value")
    kind = operation.outputs[0][1]
    if isinstance(held, Stored):
        fits = held.type == kind
    elif isinstance(held, Tensor) and isinstance(kind, TensorType):
        fits = (held.dtype, tuple(held.shape)) == (kind.dtype, kind.shape)
    else:
        fits = not isinstance(held, Tensor) and not isinstance(kind, TensorType)
        fits = fits or (isinstance(kind, TensorType) and kind.element.name == "string")
    if not fits:
        raise PackageError(f"const {operation.name!r} has another value than its type {kind} says")
