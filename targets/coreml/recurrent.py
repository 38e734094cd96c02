"""LSTM layers of PyTorch as MIL's ``lstm``, with compressed weights left compressed.

PyTorch stacks the gates as input, forget, cell, output; MIL as input, forget, output, cell. The rows of a
stored weight are put into MIL's order with their scales and tables; no code changes.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qcompile.compiler.ir.errors import UnsupportedError

GATES = "_gates"
"""What the name of a weight whose rows were moved ends with."""


def lstm(context: Any, node: Any) -> None:
    """Convert ``aten.lstm.input``: one MIL op a layer, both directions in one.

    Raises:
        UnsupportedError: Its weights are compressed, and the program is for iOS 16.
    """
    from coremltools.converters.mil.mil import Builder

    from qcompile.targets.coreml.lowering import arguments

    x, state, weights, has_bias, layers, _, _, bidirectional, batch_first = arguments(context, node)
    ways = 2 if bidirectional else 1
    each = len(weights) // (int(layers) * ways)
    _refuse_codes_before_ios17(weights)
    hidden, cells = _by_layer(state[0], int(layers), ways), _by_layer(state[1], int(layers), ways)
    if batch_first:
        x = Builder.transpose(x=x, perm=[1, 0, 2])
    last_h, last_c = [], []
    for layer in range(int(layers)):
        own = weights[layer * ways * each : (layer + 1) * ways * each]
        given = _weights(own[:each], has_bias, "")
        if bidirectional:
            given |= _weights(own[each:], has_bias, "_back")
        x, h, c = Builder.lstm(
            x=x, initial_h=hidden[layer], initial_c=cells[layer], output_sequence=True,
            direction="bidirectional" if bidirectional else "forward", **given,
        )  # fmt: skip
        last_h.append(_as_torch(h, ways))
        last_c.append(_as_torch(c, ways))
    if batch_first:
        x = Builder.transpose(x=x, perm=[1, 0, 2])
    found = (
        x,
        *(Builder.concat(values=v, axis=0) if len(v) > 1 else v[0] for v in (last_h, last_c)),
    )
    context.add(found, torch_name=node.name)


def _refuse_codes_before_ios17(weights: list[Any]) -> None:
    """Refuse compressed weights where the op computes in float32 alone: between would stand a cast."""
    from coremltools import target
    from coremltools.converters.mil.mil.block import is_current_opset_version_compatible_with

    coded = [w.op.name for w in weights if w.op.op_type.startswith("constexpr_")]
    if coded and not is_current_opset_version_compatible_with(target.iOS17):
        raise UnsupportedError(
            f"an LSTM whose weights are compressed ({', '.join(coded)}) needs iOS 17 or macOS 14: keep "
            "its weights in float with --ignore, or raise --minimum-os"
        )


def _by_layer(state: Any, layers: int, ways: int) -> list[Any]:
    """Return the state ``[layers * ways, batch, hidden]`` as ``[batch, ways * hidden]`` a layer."""
    from coremltools.converters.mil.mil import Builder

    parts = (
        [state] if layers * ways == 1 else Builder.split(x=state, num_splits=layers * ways, axis=0)
    )
    rows = [Builder.squeeze(x=part, axes=[0]) for part in parts]
    if ways == 1:
        return rows
    return [Builder.concat(values=rows[i : i + 2], axis=-1) for i in range(0, len(rows), 2)]


def _as_torch(state: Any, ways: int) -> Any:
    """Return ``[batch, ways * hidden]`` as ``[ways, batch, hidden]``."""
    from coremltools.converters.mil.mil import Builder

    if ways == 1:
        return Builder.expand_dims(x=state, axes=[0])
    return Builder.stack(values=Builder.split(x=state, num_splits=ways, axis=-1), axis=0)


def _weights(weights: list[Any], has_bias: bool, suffix: str) -> dict[str, Any]:
    found = {
        f"weight_ih{suffix}": reordered(weights[0]),
        f"weight_hh{suffix}": reordered(weights[1]),
    }
    if has_bias:
        found[f"bias{suffix}"] = gates_in_order(
            weights[2].val + weights[3].val, len(weights[2].val)
        )
    return found


def gates_in_order(values: NDArray[Any], rows: int) -> NDArray[Any]:
    """Return what belongs to stacked rows in MIL's order; done twice, it is PyTorch's again.

    Args:
        values: One element a row, or one for each of equal runs of rows. A run that crosses the border of
            a gate is cut into smaller ones, each with the same element.
        rows: Of all gates.
    """
    if len(values) == 1:
        return values
    run = rows // len(values)
    values = np.repeat(values, run // math.gcd(run, rows // 4), axis=0)
    i, f, g, o = np.split(values, 4)
    return np.concatenate([i, f, o, g])


def reordered(weight: Any) -> Any:
    """Return a weight with its gates in MIL's order; a compressed one stays compressed."""
    from coremltools.converters.mil.mil import Builder

    op = weight.op
    if not op.op_type.startswith("constexpr_"):
        return gates_in_order(weight.val, len(weight.val))
    given = {name: value for name, value in op.inputs.items() if value is not None}
    if "shape" in given:
        moved = _packed(given, weight.shape)
    elif "axis" in given and int(given["axis"].val) != 0:
        codes = gates_in_order(given["quantized_data"].val, weight.shape[0])
        moved = {n: codes if n == "quantized_data" else v.val for n, v in given.items()}
    else:
        moved = {name: _moved(value, weight.shape[0]) for name, value in given.items()}
    return getattr(Builder, op.op_type)(name=op.name + GATES, **moved)


def _moved(value: Any, rows: int) -> Any:
    from coremltools.converters.mil.mil import types

    if value.op.op_type.startswith("constexpr_"):
        return value if value.shape[0] == 1 else reordered(value)
    if value.val.ndim == 0:
        return value.val
    kind = types.nptype_from_builtin(value.dtype)  # which concatenation forgets
    return gates_in_order(value.val, rows).astype(kind)


def _packed(given: dict[str, Any], shape: tuple[int, ...]) -> dict[str, Any]:
    """Return the inputs of iOS 16's palette, whose indices are a stream of bits."""
    bits = len(given["lut"].val).bit_length() - 1
    count = int(np.prod(shape)) * bits
    stream = np.unpackbits(given["indices"].val, count=count, bitorder="little")
    rows = gates_in_order(stream.reshape(shape[0], -1), shape[0])
    indices = np.packbits(rows.reshape(-1), bitorder="little")
    return {**{n: v.val for n, v in given.items()}, "indices": indices}
