"""Layers as quantization sees them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from torch import Tensor, nn

from qcompile.compiler.frontend.trace import trace
from qcompile.passes.graph.channel_links import LAYERS
from qcompile.passes.quantization.layer import Layer


@pytest.fixture
def layer_of() -> Callable[[nn.Module, Tensor], Layer]:
    """Return the only layer of a module that takes such an input."""

    def find(module: nn.Module, x: Tensor) -> Layer:
        graph = trace(module.eval(), x)
        (node,) = graph.calls(*LAYERS)
        weight = graph.constant(node.args[1])
        assert weight is not None
        bias = graph.constant(node.args[2]) if len(node.args) > 2 else None
        return Layer(node, "weight", weight, bias)

    return find
