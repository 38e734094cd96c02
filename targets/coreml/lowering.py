"""Converters for the ops of our IR that coremltools' PyTorch front end lacks.

Codes, scales and tables go into the program as they are; coremltools' passes that would change codes are
not in our pipeline (``convert.py``), and ``compare.py`` reads every code back from the saved package.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
TABLE = "_table"
"""What the name of a palette's table in codes ends with, when it has the palette's rank."""


@cache
def register() -> None:
    """Register the converters with coremltools, once."""
    from coremltools.converters.mil.frontend.torch.torch_op_registry import register_torch_op

    from qcompile.targets.coreml.recurrent import lstm

    for name, function in (
        ("qcompile::dequantize_blockwise", _dequantize_blockwise),
        ("qcompile::lookup", _lookup),
        ("quantized_decomposed::dequantize_per_channel", _dequantize_per_channel),
        ("quantized_decomposed::dequantize_per_tensor", _dequantize_per_tensor),
        ("quantized_decomposed::quantize_per_tensor", _quantize_per_tensor),
        ("gelu", _gelu),
        ("linear", _linear),
        ("rms_norm", _rms_norm),
        ("lstm.input", lstm),
    ):
        function.__name__ = name
        register_torch_op(function, override=True)


def arguments(context: Any, node: Any) -> list[Any]:
    """Return a node's inputs: ``Var`` for what the context knows, Python values for the rest."""

    def one(value: Any) -> Any:
        if isinstance(value, list | tuple):
            return [one(v) for v in value]
        return context[value] if isinstance(value, str) and value in context else value

    return [one(value) for value in node.inputs]


def affine(codes: Array, scale: Array, zero_point: Array | None, bits: int, name: str) -> Any:
    """Return a constant ``scale * (codes - zero_point)`` that stays compressed in the file.

    Args:
        codes: int8 or uint8.
        scale: float32, the rank of ``codes``, sizes that divide its own.
        zero_point: As ``scale``, the dtype of ``codes``; or ``None``.
        bits: 4 or 8.
        name: Of the op.
    """
    from coremltools.converters.mil.mil import Builder

    if _is_ios18():
        kind = _packed_dtype(bits, signed=codes.dtype == np.int8)
        offset = {} if zero_point is None else {"offset": zero_point.astype(kind)}
        return Builder.constexpr_blockwise_shift_scale(
            data=codes.astype(kind), scale=scale, name=name, **offset
        )
    axes = [a for a, size in enumerate(scale.shape) if size != 1]
    assert len(axes) <= 1, "blocks need iOS 18"
    axis = axes[0] if axes else 0
    flat = scale.reshape(-1) if axes else scale.reshape(())
    zeros = (
        np.zeros_like(flat, codes.dtype) if zero_point is None else zero_point.reshape(flat.shape)
    )
    return Builder.constexpr_affine_dequantize(
        quantized_data=codes, zero_point=zeros, scale=flat, axis=np.int32(axis), name=name
    )


def palette(indices: Array, lut: Array, scale: Array | None, lut_codes: Any, name: str) -> Any:
    """Return a constant ``scale * lut[indices]`` that stays compressed in the file.

    Args:
        indices: uint8 ``[out, ...]``.
        lut: float32 ``[groups, entries]``.
        scale: float32 ``[out]`` or ``None``.
        lut_codes: Name, int8 codes ``[groups, entries]`` and scale, for int8 entries; or ``None``.
        name: Of the op.
    """
    from coremltools.converters.mil.mil import Builder

    bits = int(lut.shape[1]).bit_length() - 1
    if not _is_ios18():
        assert lut.shape[0] == 1
        assert scale is None
        assert lut_codes is None
        packed = np.packbits(
            (indices.reshape(-1, 1) >> np.arange(bits)) & 1, bitorder="little"
        ).astype(np.uint8)
        shape = np.array(indices.shape, np.uint32)
        return Builder.constexpr_lut_to_dense(indices=packed, lut=lut[0], shape=shape, name=name)
    rank = indices.ndim
    table_shape = (lut.shape[0], *[1] * (rank - 1), lut.shape[1], 1)
    table: Any = lut.reshape(table_shape)
    if lut_codes is not None:
        table_name, codes, step = lut_codes
        table = affine(
            codes.reshape(table_shape),
            np.full([1] * len(table_shape), step, np.float32),
            None,
            8,
            f"{table_name}{TABLE}",
        )
    dense = Builder.constexpr_lut_to_dense(
        indices=indices.astype(_packed_dtype(bits, signed=False)),
        lut=table,
        name=name if scale is None else f"{name}_entries",
    )
    if scale is None:
        return dense
    return Builder.constexpr_blockwise_shift_scale(
        data=dense, scale=scale.reshape(-1, *[1] * (rank - 1)), name=name
    )


def _packed_dtype(bits: int, *, signed: bool) -> Any:
    from coremltools.converters.mil.mil import types

    return types.nptype_from_builtin(types.string_to_builtin(f"{'' if signed else 'u'}int{bits}"))


def _is_ios18() -> bool:
    from coremltools import target
    from coremltools.converters.mil.mil.block import is_current_opset_version_compatible_with

    return bool(is_current_opset_version_compatible_with(target.iOS18))


def _dequantize_blockwise(context: Any, node: Any) -> None:
    codes, scale, zero_point, bits, _ = arguments(context, node)
    offset = None if zero_point is None else zero_point.val
    context.add(affine(codes.val, scale.val, offset, int(bits), node.name), node.name)


def _dequantize_per_channel(context: Any, node: Any) -> None:
    codes, scale, zero_point, axis = arguments(context, node)[:4]
    shape = [-1 if d == int(axis) else 1 for d in range(codes.val.ndim)]
    offset = zero_point.val.astype(codes.val.dtype).reshape(shape) if zero_point.val.any() else None
    found = affine(codes.val, scale.val.reshape(shape), offset, 8, node.name)
    context.add(found, node.name)


def _dequantize_per_tensor(context: Any, node: Any) -> None:
    """Convert a constant's codes to a compressed constant, an activation's to ``dequantize``."""
    from coremltools.converters.mil.mil import Builder

    codes, scale, zero_point = arguments(context, node)[:3]
    if codes.val is None:
        kind = np.dtype(types_name(codes))
        offset = None if zero_point == 0 else kind.type(zero_point)
        given = {} if offset is None else {"zero_point": offset}
        found = Builder.dequantize(input=codes, scale=np.float32(scale), name=node.name, **given)
    else:
        shape = [1] * max(1, codes.val.ndim)
        offset = np.full(shape, zero_point, codes.val.dtype) if zero_point else None
        found = affine(codes.val, np.full(shape, scale, np.float32), offset, 8, node.name)
    context.add(found, node.name)


def _quantize_per_tensor(context: Any, node: Any) -> None:
    from coremltools.converters.mil.mil import Builder

    value, scale, zero_point, qmin = arguments(context, node)[:4]
    kind = np.int8 if qmin < 0 else np.uint8
    given = {"zero_point": kind(zero_point)} if zero_point else {}
    found = Builder.quantize(
        input=value,
        scale=np.float32(scale),
        output_dtype=np.dtype(kind).name,
        name=node.name,
        **given,
    )
    context.add(found, node.name)


def _linear(context: Any, node: Any) -> None:
    """Convert a linear layer; coremltools' own converter gives the op another name."""
    from coremltools.converters.mil.mil import Builder

    x, weight, *rest = arguments(context, node)
    bias = rest[0] if rest else None
    is_constant = weight.val is not None or weight.op.op_type.startswith("constexpr_")
    if is_constant and (bias is None or bias.val is not None):
        given = {} if bias is None else {"bias": bias}
        found = Builder.linear(x=x, weight=weight, name=node.name, **given)
    else:
        found = Builder.matmul(x=x, y=weight, transpose_y=True, name=node.name)
        if bias is not None:
            found = Builder.add(x=found, y=bias, name=f"{node.name}_biased")
    context.add(found, node.name)


def _gelu(context: Any, node: Any) -> None:
    """Convert GELU; coremltools' own converter overlooks ``approximate`` of an exported program."""
    from coremltools.converters.mil.mil import Builder

    x, *rest = arguments(context, node)
    wanted = rest or (node.kwinputs or {}).get("approximate", ["none"])
    mode = {"none": "EXACT", "tanh": "TANH_APPROXIMATION"}[str(_plain(context, wanted[0]))]
    context.add(Builder.gelu(x=x, mode=mode, name=node.name), node.name)


def _plain(context: Any, value: Any) -> Any:
    return context[value].val if isinstance(value, str) and value in context else value


def _rms_norm(context: Any, node: Any) -> None:
    """Convert ``x / sqrt(mean(x**2) + eps) * weight`` as the layer norm of ``x`` beside ``-x``.

    Their mean is 0 and their variance is ``mean(x**2)``, so that no square overflows in float16 and
    ``eps`` has its own meaning; coremltools' converter adds it to squares that it has scaled.
    """
    from coremltools.converters.mil.mil import Builder

    x, shape, *rest = arguments(context, node)
    weight, epsilon = [*rest, None, None][:2]
    axes = list(range(-len(shape), 0))
    small = np.float32(np.finfo(np.float32).eps if epsilon is None else epsilon)
    both = Builder.concat(values=[x, Builder.mul(x=x, y=np.float32(-1))], axis=axes[-1])
    both = Builder.layer_norm(x=both, axes=axes, epsilon=small)
    half, _ = Builder.split(x=both, num_splits=2, axis=axes[-1])
    if weight is None:
        context.add(Builder.identity(x=half, name=node.name), node.name)
    else:
        context.add(Builder.mul(x=half, y=weight, name=node.name), node.name)


def types_name(var: Any) -> str:
    """Return numpy's name of a variable's dtype."""
    from coremltools.converters.mil.mil import types

    return str(types.builtin_to_string(var.dtype))


def _lookup(context: Any, node: Any) -> None:
    indices, lut, scale, _ = arguments(context, node)
    codes, entries = None, lut.val
    if lut.op is not None and lut.op.op_type.startswith("constexpr_"):
        codes = (lut.op.name, lut.op.data.val, lut.op.scale.val.reshape(()))
        entries = codes[1].astype(np.float32) * codes[2]
    factor = None if scale is None else scale.val
    context.add(palette(indices.val, entries, factor, codes, node.name), node.name)
