"""The ops of the IR beyond ATen: quantize/dequantize of the field, and five of our own.

``quantized_decomposed`` is what PT2E, ExecuTorch, coremltools and ``torch.onnx`` read. The ops exist
once ``torch.ao.quantization.fx._decomposed`` is imported; that import is here and nowhere else.

Those ops know one scale a tensor or a channel and float32 values. ``qcompile::dequantize_blockwise``
and ``qcompile::lookup`` say what engines that decode weights while they load them store: blocks of any
shape, tables, and values that are rounded to float16 (Core ML's ``constexpr_*``, FORMATS A.8);
``qcompile::decode_blocks`` says what llama.cpp stores (FORMATS A.1). ``qcompile::expert_linear`` is the
linear layer of a mixture of experts.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from qcompile.compiler.ir.blocks.catalog import BLOCK_FORMATS
from qcompile.compiler.ir.storage import spread, to_half

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    import torch.ao.quantization.fx._decomposed

aten = torch.ops.aten
_qd = torch.ops.quantized_decomposed

QUANTIZE = _qd.quantize_per_tensor.default
DEQUANTIZE = _qd.dequantize_per_tensor.default
DEQUANTIZE_PER_CHANNEL = _qd.dequantize_per_channel.default


@torch.library.custom_op("qcompile::observe", mutates_args=())
def observe(x: Tensor, spec: str, shares: str) -> Tensor:
    """Mark ``x`` to be quantized in the format ``spec`` once its values were seen; the identity.

    Args:
        x: A weight or an activation, any shape.
        spec: ``str(QuantSpec)``, or ``str(PaletteSpec)`` for a weight.
        shares: Name of the observed node whose scale and zero point this one takes over; ``""`` for
            its own.

    Returns:
        ``x``, unchanged.
    """
    return x.clone()


@observe.register_fake
def _(x: Tensor, spec: str, shares: str) -> Tensor:
    return torch.empty_like(x)


observe.register_autograd(lambda context, gradient: (gradient, None, None))

OBSERVE = torch.ops.qcompile.observe.default


@torch.library.custom_op("qcompile::dequantize_blockwise", mutates_args=())
def dequantize_blockwise(
    codes: Tensor, scale: Tensor, zero_point: Tensor | None, bits: int, float_bits: int
) -> Tensor:
    """Return ``scale * (codes - zero_point)``, where blocks of codes share a scale.

    Args:
        codes: int8, or uint8 where there is a zero point; any shape.
        scale: float32, positive, of the rank of ``codes``; each size divides that of ``codes``. With
            ``float_bits=16`` its values are float16 numbers.
        zero_point: Of the shape of ``scale`` and the dtype of ``codes``; ``None`` is 0.
        bits: Of a stored code: all codes fit into a number of so many bits, signed as the dtype is.
        float_bits: 16 to round each value once to float16, 32 to leave it.

    Returns:
        float32, the shape of ``codes``.
    """
    shape = tuple(codes.shape)
    steps = codes.float()
    if zero_point is not None:
        steps = steps - spread(zero_point.float(), shape)
    values = steps * spread(scale, shape)
    return to_half(values) if float_bits == 16 else values


@dequantize_blockwise.register_fake
def _(
    codes: Tensor, scale: Tensor, zero_point: Tensor | None, bits: int, float_bits: int
) -> Tensor:
    return torch.empty_like(codes, dtype=torch.float32)


DEQUANTIZE_BLOCKWISE = torch.ops.qcompile.dequantize_blockwise.default


@torch.library.custom_op("qcompile::lookup", mutates_args=())
def lookup(indices: Tensor, lut: Tensor, scale: Tensor | None, float_bits: int) -> Tensor:
    """Return the entries that ``indices`` name in the table of their output channel.

    Args:
        indices: uint8, ``[out, ...]``.
        lut: float32 ``[groups, 2**bits]``: the first ``out / groups`` channels read the first table,
            and so on.
        scale: float32 ``[out]``, multiplied to what is read; ``None`` is 1.
        float_bits: 16 to round each value once to float16, 32 to leave it.

    Returns:
        float32, the shape of ``indices``.
    """
    grouped = indices.reshape(lut.shape[0], -1).long()
    values = lut.gather(1, grouped).reshape(indices.shape)
    if scale is not None:
        values = values * scale.reshape(-1, *[1] * (indices.dim() - 1))
    return to_half(values) if float_bits == 16 else values


@lookup.register_fake
def _(indices: Tensor, lut: Tensor, scale: Tensor | None, float_bits: int) -> Tensor:
    return torch.empty_like(indices, dtype=torch.float32)


LOOKUP = torch.ops.qcompile.lookup.default


@torch.library.custom_op("qcompile::decode_blocks", mutates_args=())
def decode_blocks(data: Tensor, format: str) -> Tensor:
    """Return what ggml's blocks decode to.

    Args:
        data: uint8 ``[rows, bytes]``: whole blocks of each row.
        format: Name of a ``BlockFormat``, ``Q4_K``.

    Returns:
        float32 ``[rows, columns]``.
    """
    return BLOCK_FORMATS[format].decode(data)


@decode_blocks.register_fake
def _(data: Tensor, format: str) -> Tensor:
    layout = BLOCK_FORMATS[format]
    columns = data.shape[1] // layout.size * layout.block
    return data.new_empty((data.shape[0], columns), dtype=torch.float32)


DECODE_BLOCKS = torch.ops.qcompile.decode_blocks.default
WEIGHT_DECODERS = (DEQUANTIZE, DEQUANTIZE_PER_CHANNEL, DEQUANTIZE_BLOCKWISE, LOOKUP, DECODE_BLOCKS)
"""What may stand between a stored weight and the op that reads it."""


@torch.library.custom_op("qcompile::expert_linear", mutates_args=())
def expert_linear(
    x: Tensor, chosen: Tensor, shares: Tensor | None, weights: Sequence[Tensor]
) -> Tensor:
    """Return what the chosen experts make of each token: only those rows are computed.

    ggml's ``mul_mat_id``, with the matrix of each expert as a weight of its own.

    Args:
        x: ``[tokens, choices, in]``, or ``[tokens, 1, in]`` where all choices read the same.
        chosen: int64 ``[tokens, choices]``: numbers of experts.
        shares: ``[tokens, choices]``, multiplied to what each choice gives; ``None`` is 1.
        weights: Of each expert ``[out, in]``.

    Returns:
        ``[tokens, choices, out]``.
    """
    result = x.new_zeros((*chosen.shape, weights[0].shape[0]))
    for expert, weight in enumerate(weights):
        rows = routed_rows(x, chosen, shares, expert)
        if len(rows):
            result[chosen == expert] = torch.nn.functional.linear(rows, weight)
    return result


@expert_linear.register_fake
def _(x: Tensor, chosen: Tensor, shares: Tensor | None, weights: Sequence[Tensor]) -> Tensor:
    return x.new_empty((*chosen.shape, weights[0].shape[0]))


def _keep_inputs(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, chosen, shares, weights = inputs
    ctx.with_shares = shares is not None
    ctx.save_for_backward(x, chosen, *([shares] if ctx.with_shares else []), *weights)


def _expert_gradients(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
    """Return the gradients of inputs and shares; weights are constants and have none."""
    x, chosen, *weights = ctx.saved_tensors
    shares = weights.pop(0) if ctx.with_shares else None
    of_x, of_shares = torch.zeros_like(x), None if shares is None else torch.zeros_like(shares)
    for expert, weight in enumerate(weights):
        token, place = (chosen == expert).nonzero(as_tuple=True)
        column = place if x.shape[1] > 1 else torch.zeros_like(place)
        back = gradient[token, place] @ weight
        if shares is not None and of_shares is not None:
            of_shares[token, place] = (back * x[token, column]).sum(-1)
            back = back * shares[token, place, None]
        of_x.index_put_((token, column), back, accumulate=True)
    return of_x, None, of_shares, [None] * len(weights)


expert_linear.register_autograd(_expert_gradients, setup_context=_keep_inputs)


def routed_rows(x: Tensor, chosen: Tensor, shares: Tensor | None, expert: int) -> Tensor:
    """Return what one expert's matrix multiplies, ``[rows, in]``, in the order of tokens and choices.

    A share is multiplied to the input: that gives the same output.
    """
    token, place = (chosen == expert).nonzero(as_tuple=True)
    rows = x[token, place if x.shape[1] > 1 else 0]
    return rows if shares is None else rows * shares[token, place, None]


EXPERT_LINEAR = torch.ops.qcompile.expert_linear.default
