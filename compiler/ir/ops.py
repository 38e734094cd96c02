"""The ops of the IR beyond ATen: quantize/dequantize of the field, and one marker of our own.

``quantized_decomposed`` is what PT2E, ExecuTorch, coremltools and ``torch.onnx`` read. The ops exist
once ``torch.ao.quantization.fx._decomposed`` is imported; that import is here and nowhere else.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

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
        spec: ``str(QuantSpec)``.
        shares: Name of the observed node whose scale and zero point this one takes over; ``""`` for
            its own.

    Returns:
        ``x``, unchanged.
    """
    return x.clone()


@observe.register_fake
def _(x: Tensor, spec: str, shares: str) -> Tensor:
    return torch.empty_like(x)


OBSERVE = torch.ops.qcompile.observe.default
