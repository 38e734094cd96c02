"""A convolution or linear layer as quantization sees it: its weight as a matrix, its inputs as rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from qcompile.passes.graph.channel_links import CONVOLUTIONS
from qcompile.passes.graph.rescale import input_columns


@dataclass(frozen=True)
class Layer:
    """A layer node with its constants.

    Args:
        node: The call.
        name: The weight's FQN.
        weight: ``[out, in / groups, ...]``.
        bias: ``[out]`` or ``None``.
    """

    node: fx.Node
    name: str
    weight: Tensor
    bias: Tensor | None

    @property
    def is_convolution(self) -> bool:
        """Whether it slides over positions."""
        return self.node.target in CONVOLUTIONS

    @property
    def channel_axis(self) -> int:
        """The axis of its output that counts output channels."""
        return 1 if self.is_convolution else -1

    @property
    def groups(self) -> int:
        """Groups of a convolution, else 1."""
        args = self.node.args
        return int(args[6]) if self.is_convolution and len(args) > 6 else 1  # type: ignore[arg-type]

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Any:
        """Return the layer's output with another weight and bias."""
        assert callable(self.node.target)
        return self.node.target(x, weight, bias, *self.node.args[3:], **self.node.kwargs)

    def per_channel(self, values: Tensor) -> Tensor:
        """Shape ``[out]`` to broadcast against the output."""
        rank = self.node.meta["val"].dim()
        axis = self.channel_axis % rank
        return values.reshape([-1 if d == axis else 1 for d in range(rank)])

    def channel_means(self, output: Tensor) -> Tensor:
        """Return the mean of each output channel, float64 ``[out]``."""
        axis = self.channel_axis % output.dim()
        return output.double().mean([d for d in range(output.dim()) if d != axis])

    def importance(self, inputs: Sequence[Tensor]) -> Tensor:
        """Return ``E[x**2]`` of the input that each weight reads, shaped to broadcast against it."""
        axis = 1 if self.is_convolution else -1
        total, count = torch.zeros(1, dtype=torch.float64), 0
        for x in inputs:
            dims = [d for d in range(x.dim()) if d != axis % x.dim()]
            total = total + x.square().sum(dims).double()
            count += x.numel() // x.shape[axis]
        mean = (total / max(count, 1)).float()
        columns = mean[input_columns(self.node, self.weight)] if self.is_convolution else mean[None]
        return columns.reshape(*columns.shape, *[1] * (self.weight.dim() - 2))
