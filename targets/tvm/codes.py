"""What is known of 8-bit codes in a graph: their format, and where their channels lie."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from qcompile.compiler.ir.graph import Graph
from qcompile.compiler.ir.ops import DEQUANTIZE, QUANTIZE, aten

TO_LAST, TO_FIRST = [0, 2, 3, 1], [0, 3, 1, 2]
_NAMES = {torch.uint8: "uint8", torch.int8: "int8"}


@dataclass(frozen=True)
class Format:
    """How a value is coded."""

    scale: float
    zero_point: int
    low: int
    high: int
    dtype: torch.dtype

    @staticmethod
    def of(node: fx.Node) -> Format:
        """Return the format that a quantize or dequantize node names."""
        return Format(*node.args[1:6])  # type: ignore[arg-type]

    @property
    def limits(self) -> tuple[int, int, str]:
        """Arguments of the ops on codes."""
        return self.low, self.high, _NAMES[self.dtype]


@dataclass(frozen=True)
class Stored:
    """Codes of a lowered graph.

    Args:
        node: Name of the node that computes them.
        is_last: Whether their channels lie last.
    """

    node: str
    is_last: bool


def stored(node: fx.Node) -> Stored:
    """Return what computes codes, behind a permute that the next op may not need."""
    last = shown(node)
    return Stored(node.name, False) if last is None else Stored(last.name, True)


def is_shown_first(node: fx.Node) -> bool:
    """Return whether a node moves the channels to where PyTorch has them."""
    order: Any = node.args[1] if len(node.args) > 1 else None
    return node.target == aten.permute.default and list(order) == TO_FIRST


def channels_first(graph: Graph, node: fx.Node) -> fx.Node:
    """Add what shows ``[batch, height, width, channels]`` with channels first."""
    return graph.add_call(aten.permute.default, node, TO_FIRST)


def shown(node: fx.Node) -> fx.Node | None:
    """Return the value with channels last that a node shows with channels first."""
    source = node.args[0] if is_shown_first(node) else None
    return source if isinstance(source, fx.Node) else None


def feeds_quantizer(node: fx.Node) -> bool:
    """Return whether a value is quantized and not read otherwise."""
    return len(node.users) == 1 and all(user.target == QUANTIZE for user in node.users)


def coded(node: Any) -> tuple[fx.Node, Format] | None:
    """Return the codes that a value is made from, and their format."""
    if not isinstance(node, fx.Node) or node.target != DEQUANTIZE:
        return None
    codes = node.args[0]
    assert isinstance(codes, fx.Node)
    return None if codes.op == "get_attr" else (codes, Format.of(node))


def is_fixed(value: Tensor) -> bool:
    """Return whether all sizes but the first are numbers."""
    return value.dim() > 1 and all(isinstance(s, int) for s in value.shape[1:])


def both(value: Any) -> list[int]:
    """Return a setting of both axes as a list of two."""
    if isinstance(value, int):
        return [value, value]
    return list(value) * 2 if len(value) == 1 else list(value)
