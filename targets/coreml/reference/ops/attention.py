"""Attention. Source of the formula: coremltools' op definitions, iOS18 transformers.py."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from qcompile.targets.coreml.reference.errors import ExecutionError
from qcompile.targets.coreml.reference.registry import op


@op("scaled_dot_product_attention")
def scaled_dot_product_attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None
) -> Tensor:
    """``softmax(query @ key.T / sqrt(E) + attn_mask) @ value``.

    A mask of booleans says which keys take part. A query to which it leaves no key gives NaN, as in
    MIL's formula; torch's function of this name gives zeros. It all is float32 inside of the op.

    Raises:
        ExecutionError: The mask is neither of booleans nor of floats.
    """
    scores = query @ key.transpose(-2, -1)
    scores = scores / math.sqrt(query.shape[-1])
    if attn_mask is not None:
        if attn_mask.dtype == torch.bool:
            scores = scores.masked_fill(~attn_mask, -math.inf)
        elif attn_mask.is_floating_point():
            scores = scores + attn_mask
        else:
            raise ExecutionError(f"a mask of {attn_mask.dtype} is neither bool nor float")
    return torch.softmax(scores, dim=-1) @ value
