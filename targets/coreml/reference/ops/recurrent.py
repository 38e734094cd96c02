"""Recurrent layers.

Sources: coremltools' op definitions, recurrent.py; NeuralNetwork.proto of the Core ML format where these
leave a choice (gates of the GRU, clipping, order of the sequence).

How Core ML keeps the state of a float16 layer between steps is not documented. Here it is float32 inside
of the op, and what the op returns is rounded once.

With the direction ``reverse`` the sequence comes out in the order in which it was computed, the last
input first. The two halves of a ``bidirectional`` sequence both belong to the input at their place.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from qcompile.targets.coreml.reference.errors import ExecutionError
from qcompile.targets.coreml.reference.registry import op

Activation = Callable[[Tensor], Tensor]


def _hard_sigmoid(x: Tensor) -> Tensor:
    return (0.2 * x + 0.5).clamp(0.0, 1.0)


_ACTIVATIONS: dict[str, Activation] = {
    "tanh": torch.tanh,
    "scaled_tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "hard_sigmoid": _hard_sigmoid,
    "sigmoid_hard": _hard_sigmoid,
    "relu": torch.relu,
    "linear": lambda x: x,
}
"""By MIL's names, with the default parameters of each: ``scaled_tanh`` has both factors 1."""


@op("rnn")
def rnn(
    x: Tensor,
    initial_h: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias: Tensor | None = None,
    direction: str = "forward",
    output_sequence: Tensor | bool = False,
    activation: str = "tanh",
) -> tuple[Tensor, Tensor]:
    """``h = activation(W_ih x + W_hh h + b)``; the sequence of ``h``, and the last."""
    act = _activation(activation)
    h, steps = initial_h, []
    for given in F.linear(_one_way(x, direction), weight_ih, bias):
        h = act(given + F.linear(h, weight_hh))
        steps.append(h)
    return _sequence(steps, output_sequence), h


@op("gru")
def gru(
    x: Tensor,
    initial_h: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias: Tensor | None = None,
    direction: str = "forward",
    output_sequence: Tensor | bool = False,
    recurrent_activation: str = "sigmoid",
    activation: str = "tanh",
    reset_after: Tensor | bool = False,
    input_bias: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Gated recurrent unit; rows of the weights and biases are those of reset, output and update gate.

    ``h = (1 - z) * o + z * h`` with ``r`` and ``z`` as usual, and the output gate
    - ``activation(W x + input_bias + R (r * h) + bias)`` by default, as NeuralNetwork.proto has it and
      as coremltools' own tests expect, whereas the docstring of the MIL op writes ``r * R h``;
    - ``activation(W x + input_bias + r * (R h + bias))`` with ``reset_after``, as torch.
    """
    gate, act = _activation(recurrent_activation), _activation(activation)
    after, h, steps = bool(reset_after), initial_h, []
    size = weight_hh.shape[1]
    w_r, w_o, w_z = weight_hh.split(size)
    b_r, b_o, b_z = (None,) * 3 if bias is None else bias.split(size)
    for given in F.linear(_one_way(x, direction), weight_ih, input_bias):
        in_r, in_o, in_z = given.split(size, dim=-1)
        r = gate(in_r + F.linear(h, w_r, b_r))
        z = gate(in_z + F.linear(h, w_z, b_z))
        hidden = r * F.linear(h, w_o, b_o) if after else F.linear(r * h, w_o, b_o)
        h = torch.lerp(act(in_o + hidden), h, z)
        steps.append(h)
    return _sequence(steps, output_sequence), h


@dataclass(frozen=True)
class _Lstm:
    """One direction of an LSTM; rows are those of input, forget, output and cell gate.

    Args:
        weight_ih: ``[4 H, I]``.
        weight_hh: ``[4 H, H]``.
        bias: ``[4 H]``.
        peephole: ``[3 H]``, of input, forget and output gate.
        gate: Activation of these three.
        cell: Of the cell gate.
        output: Of the cell's state on its way out.
        clip: Limit of the cell's state.
    """

    weight_ih: Tensor
    weight_hh: Tensor
    bias: Tensor | None
    peephole: Tensor | None
    gate: Activation
    cell: Activation
    output: Activation
    clip: float | None

    def run(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[list[Tensor], Tensor]:
        """Return all hidden states and the last state of the cell."""
        size = self.weight_hh.shape[1]
        peeks = (None,) * 3 if self.peephole is None else self.peephole.split(size)
        steps = []
        for given in F.linear(x, self.weight_ih, self.bias):
            i, f, o, z = (given + F.linear(h, self.weight_hh)).split(size, dim=-1)
            i, f = self.gate(_peeking(i, c, peeks[0])), self.gate(_peeking(f, c, peeks[1]))
            c = c * f + i * self.cell(z)
            if self.clip is not None:
                c = c.clamp(-self.clip, self.clip)
            h = self.gate(_peeking(o, c, peeks[2])) * self.output(c)
            steps.append(h)
        return steps, c


@op("lstm")
def lstm(
    x: Tensor,
    initial_h: Tensor,
    initial_c: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias: Tensor | None = None,
    peephole: Tensor | None = None,
    weight_ih_back: Tensor | None = None,
    weight_hh_back: Tensor | None = None,
    bias_back: Tensor | None = None,
    peephole_back: Tensor | None = None,
    direction: str = "forward",
    output_sequence: Tensor | bool = False,
    recurrent_activation: str = "sigmoid",
    cell_activation: str = "tanh",
    activation: str = "tanh",
    clip: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Long short-term memory: the sequence of hidden states, the last of them, the last cell state.

    ``clip`` limits the state of the cell, before the output gate peeks at it.

    Raises:
        ExecutionError: ``bidirectional`` without weights of the backward direction.
    """
    gate, cell = _activation(recurrent_activation), _activation(cell_activation)
    acts = (gate, cell, _activation(activation))
    limit = None if clip is None else float(clip)
    first = _Lstm(weight_ih, weight_hh, bias, peephole, *acts, limit)
    if direction != "bidirectional":
        steps, c = first.run(_one_way(x, direction), initial_h, initial_c)
        return _sequence(steps, output_sequence), steps[-1], c
    if weight_ih_back is None or weight_hh_back is None:
        raise ExecutionError("a bidirectional lstm needs weight_ih_back and weight_hh_back")
    second = _Lstm(weight_ih_back, weight_hh_back, bias_back, peephole_back, *acts, limit)
    (h, h_back), (c, c_back) = initial_h.chunk(2, dim=-1), initial_c.chunk(2, dim=-1)
    ahead, c = first.run(x, h, c)
    back, c_back = second.run(x.flip(0), h_back, c_back)
    last = torch.cat([ahead[-1], back[-1]], dim=-1)
    aligned = [torch.cat(pair, dim=-1) for pair in zip(ahead, reversed(back), strict=True)]
    found = torch.stack(aligned) if bool(output_sequence) else last[None]
    return found, last, torch.cat([c, c_back], dim=-1)


def _peeking(gate: Tensor, c: Tensor, weights: Tensor | None) -> Tensor:
    return gate if weights is None else gate + c * weights


def _sequence(steps: list[Tensor], output_sequence: Tensor | bool) -> Tensor:
    return torch.stack(steps) if bool(output_sequence) else steps[-1][None]


def _one_way(x: Tensor, direction: str) -> Tensor:
    if direction not in ("forward", "reverse"):
        raise ExecutionError(f"there is no direction {direction!r} here")
    return x if direction == "forward" else x.flip(0)


def _activation(name: str) -> Activation:
    if name.lower() not in _ACTIVATIONS:
        raise ExecutionError(f"there is no activation {name!r}, but {', '.join(_ACTIVATIONS)}")
    return _ACTIVATIONS[name.lower()]
