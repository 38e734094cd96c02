"""What ``kernels/`` computes on codes; all else is float between conversions."""

from __future__ import annotations

from typing import Any

from torch import Tensor, fx

from qcompile.compiler.ir.ops import aten
from qcompile.passes.quantization.integer_ops import MOVES, IntegerOps

UNARY = frozenset(
    {
        aten.sigmoid.default,
        aten.leaky_relu.default,
        aten.hardswish.default,
        aten.hardsigmoid.default,
        aten.silu.default,
        aten.tanh.default,
        aten.gelu.default,
        aten.elu.default,
    }
)
"""A table of 256 codes each: exact, and as fast as a look-up."""

INTEGER_OPS = IntegerOps(
    layers=frozenset({aten.conv2d.default, aten.linear.default}),
    needs_output=frozenset({aten.conv2d.default}),
    arithmetic=frozenset(
        {aten.add.Tensor, aten.cat.default, aten.adaptive_avg_pool2d.default, *UNARY}
    ),
    products=frozenset(),
    moves=MOVES,
    unit_range=frozenset({aten.sigmoid.default, aten.hardsigmoid.default}),
)


def conv_settings(node: fx.Node) -> tuple[Any, Any, Any, Any]:
    """Return stride, padding, dilation and groups of a convolution."""
    given: list[Any] = list(node.args[3:])
    stride, padding, dilation, groups = given + [1, 0, 1, 1][len(given) :]
    return stride, padding, dilation, groups


def conv_reason(node: fx.Node) -> str:
    """Return why no integer kernel takes a convolution; nothing if one does."""
    x, weight = node.args[:2]
    assert isinstance(x, fx.Node)
    assert isinstance(weight, fx.Node)
    image: Tensor = x.meta["val"]
    kernel: Tensor = weight.meta["val"]
    _, padding, dilation, groups = conv_settings(node)
    if any(not isinstance(s, int) for s in image.shape[1:]):
        return "the size of its image is free"
    if isinstance(padding, str):
        return f"padding {padding!r}"
    if any(d != 1 for d in (dilation if isinstance(dilation, (list, tuple)) else [dilation])):
        return "dilation"
    depthwise = groups == image.shape[1] == kernel.shape[0]
    return "" if groups == 1 or depthwise else "groups that are not depthwise"


def has_float_kernel(node: fx.Node) -> bool:
    """Return whether a kernel computes a float layer: one that decodes a constant weight in the register."""
    bias = node.args[2] if len(node.args) > 2 else None
    if bias is not None and not (isinstance(bias, fx.Node) and bias.op == "get_attr"):
        return False
    if node.target == aten.conv2d.default:
        return not conv_reason(node)
    x = node.args[0]
    assert isinstance(x, fx.Node)
    return bool(node.target == aten.linear.default and x.meta["val"].dim() > 1)


def is_depthwise(node: fx.Node) -> bool:
    """Return whether each channel of a convolution that has a kernel has weights of its own."""
    return bool(node.target == aten.conv2d.default and conv_settings(node)[3] != 1)
