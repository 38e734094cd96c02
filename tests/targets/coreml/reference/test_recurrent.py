"""Recurrent layers through saved packages, against torch's and against the documented steps."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from qcompile.targets.coreml.reference.errors import ExecutionError
from qcompile.targets.coreml.reference.ops import recurrent as ops

properties = settings(
    max_examples=4, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
FLOATS = pytest.mark.parametrize("dtype", [np.float32, np.float16])
TOLERANCE = {np.float32: 1e-5, np.float16: 3e-3}
ACTIVATIONS: dict[str, Any] = {
    "tanh": np.tanh,
    "scaled_tanh": np.tanh,
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "hard_sigmoid": lambda x: np.clip(0.2 * x + 0.5, 0, 1),
    "relu": lambda x: np.maximum(x, 0),
    "linear": lambda x: x,
}


def ordered(rows: Tensor, order: list[int]) -> Any:
    """The gates of a torch layer's weight in MIL's order."""
    return torch.cat([rows.chunk(len(order))[i] for i in order]).detach().numpy()


def rounded(module: nn.Module, dtype: Any) -> nn.Module:
    """The module with weights that the dtype has."""
    with torch.no_grad():
        for weight in module.parameters():
            weight.copy_(weight.half().float() if dtype == np.float16 else weight)
    return module


def close(found: Any, expected: Any, dtype: Any) -> None:
    assert found.dtype == dtype
    tolerance = TOLERANCE[dtype]
    np.testing.assert_allclose(found, np.asarray(expected), rtol=tolerance, atol=tolerance)


def drawn(seed: int, dtype: Any, *shapes: tuple[int, ...]) -> list[Any]:
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape).astype(dtype) for shape in shapes]


@FLOATS
@pytest.mark.parametrize("sequence", [True, False])
@properties
@given(seed=st.integers(0, 10_000), batch=st.integers(1, 3), length=st.integers(1, 5))
def test_bidirectional_lstm_is_torchs(
    run_mil: Any, sequence: bool, dtype: Any, seed: int, batch: int, length: int
) -> None:
    torch.manual_seed(seed)
    theirs = rounded(nn.LSTM(3, 4, bidirectional=True), dtype)
    x, h, c = drawn(seed, dtype, (length, batch, 3), (2, batch, 4), (2, batch, 4))
    weights = dict(theirs.named_parameters())
    ifoz = [0, 1, 3, 2]

    def direction(end: str) -> list[Any]:
        ih, hh = (ordered(weights[f"weight_{n}_l0{end}"], ifoz) for n in ("ih", "hh"))
        both = weights[f"bias_ih_l0{end}"] + weights[f"bias_hh_l0{end}"]
        return [v.astype(dtype) for v in (ih, hh, ordered(both, ifoz))]

    def build(mb: Any, x: Any, h: Any, c: Any) -> Any:
        ahead, back = direction(""), direction("_reverse")
        return mb.lstm(
            x=x, initial_h=h, initial_c=c, weight_ih=ahead[0], weight_hh=ahead[1], bias=ahead[2],
            weight_ih_back=back[0], weight_hh_back=back[1], bias_back=back[2],
            direction="bidirectional", output_sequence=sequence,
        )  # fmt: skip

    def side_by_side(state: Any) -> Any:
        return np.concatenate(list(state), axis=-1)

    found = run_mil(build, {"x": x, "h": side_by_side(h), "c": side_by_side(c)})
    given_states = (torch.from_numpy(h).float(), torch.from_numpy(c).float())
    with torch.no_grad():
        outputs, (last_h, last_c) = theirs(torch.from_numpy(x).float(), given_states)
    states = [side_by_side(s.numpy()) for s in (last_h, last_c)]
    expected = outputs if sequence else states[0][None]
    for got, want in zip(found, [expected, *states], strict=True):
        close(got, want, dtype)


def stepped_lstm(
    x: Any, h: Any, c: Any, w: Any, r: Any, b: Any, p: Any, acts: Any, clip: Any
) -> Any:
    """One step after the other, as NeuralNetwork.proto's LSTMParams writes them."""
    gate, cell, output = (ACTIVATIONS[a] for a in acts)
    steps = []
    for step in x.astype(float):
        i, f, o, z = np.split(step @ w.T + h @ r.T + b, 4, axis=-1)
        p_i, p_f, p_o = np.split(p.astype(float), 3)
        i, f, z = gate(i + p_i * c), gate(f + p_f * c), cell(z)
        c = np.clip(f * c + i * z, -clip, clip)
        h = gate(o + p_o * c) * output(c)
        steps.append(h)
    return np.stack(steps), h, c


@FLOATS
@pytest.mark.parametrize("direction", ["forward", "reverse"])
@properties
@given(
    seed=st.integers(0, 10_000),
    acts=st.lists(st.sampled_from(list(ACTIVATIONS)), min_size=3, max_size=3),
    clip=st.sampled_from([0.125, 50.0]),
)
def test_lstm_with_peephole_clip_and_activations(
    run_mil: Any, direction: str, dtype: Any, seed: int, acts: list[str], clip: float
) -> None:
    shapes: Any = [(4, 2, 3), (2, 2), (2, 2), (8, 3), (8, 2), (8,), (6,)]
    # Small ones, as a linear gate lets states grow from step to step.
    x, h, c, w, r, b, p = (value * dtype(0.25) for value in drawn(seed, dtype, *shapes))

    def build(mb: Any, x: Any, h: Any, c: Any) -> Any:
        return mb.lstm(
            x=x, initial_h=h, initial_c=c, weight_ih=w, weight_hh=r, bias=b, peephole=p,
            direction=direction, output_sequence=True, recurrent_activation=acts[0],
            cell_activation=acts[1], activation=acts[2], clip=dtype(clip),
        )  # fmt: skip

    found = run_mil(build, {"x": x, "h": h, "c": c})
    given = x if direction == "forward" else x[::-1]
    expected = stepped_lstm(given, h, c, w, r, b, p, acts, clip)
    for got, want in zip(found, expected, strict=True):
        close(got, want, dtype)


@FLOATS
@pytest.mark.parametrize("direction", ["forward", "reverse"])
@pytest.mark.parametrize("has_bias", [True, False])
def test_gru_resets_before_the_product(
    run_mil: Any, has_bias: bool, direction: str, dtype: Any
) -> None:
    x, h, w, r, b = drawn(7, dtype, (4, 2, 3), (2, 5), (15, 3), (15, 5), (15,))

    def build(mb: Any, x: Any, initial_h: Any) -> Any:
        more = {"bias": b} if has_bias else {}
        return mb.gru(
            x=x, initial_h=initial_h, weight_ih=w, weight_hh=r, direction=direction,
            output_sequence=True, recurrent_activation="hard_sigmoid", activation="relu", **more,
        )  # fmt: skip

    found = run_mil(build, {"x": x, "initial_h": h}, "iOS17")
    gate, state, steps = ACTIVATIONS["hard_sigmoid"], h.astype(float), []
    w_r, w_o, w_z = np.split(w.astype(float), 3)
    r_r, r_o, r_z = np.split(r.astype(float), 3)
    b_r, b_o, b_z = np.split(b.astype(float) * has_bias, 3)
    for step in x if direction == "forward" else x[::-1]:
        reset = gate(step @ w_r.T + state @ r_r.T + b_r)
        update = gate(step @ w_z.T + state @ r_z.T + b_z)
        new = np.maximum(step @ w_o.T + (reset * state) @ r_o.T + b_o, 0)
        state = (1 - update) * new + update * state
        steps.append(state)
    close(found[0], np.stack(steps), dtype)
    close(found[1], state, dtype)


@FLOATS
@pytest.mark.parametrize("sequence", [True, False])
def test_gru_that_resets_after_the_product_is_torchs(
    run_mil: Any, sequence: bool, dtype: Any
) -> None:
    torch.manual_seed(3)
    theirs = rounded(nn.GRU(3, 4), dtype)
    x, h = drawn(3, dtype, (5, 2, 3), (2, 4))
    w, r, given, hidden = (ordered(value, [0, 2, 1]).astype(dtype) for value in theirs.parameters())

    def build(mb: Any, x: Any, initial_h: Any) -> Any:
        return mb.gru(
            x=x, initial_h=initial_h, weight_ih=w, weight_hh=r, input_bias=given, bias=hidden,
            reset_after=True, output_sequence=sequence,
        )  # fmt: skip

    found = run_mil(build, {"x": x, "initial_h": h})
    with torch.no_grad():
        outputs, last = theirs(torch.from_numpy(x).float(), torch.from_numpy(h).float()[None])
    close(found[0], outputs if sequence else last, dtype)
    close(found[1], last[0], dtype)


@FLOATS
@pytest.mark.parametrize("direction", ["forward", "reverse"])
@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_rnn_is_torchs(run_mil: Any, activation: str, direction: str, dtype: Any) -> None:
    torch.manual_seed(5)
    theirs = rounded(nn.RNN(3, 4, nonlinearity=activation, bias=False), dtype)
    x, h, b = drawn(5, dtype, (5, 2, 3), (2, 4), (4,))
    w, r = (value.detach().numpy().astype(dtype) for value in theirs.parameters())

    def build(mb: Any, x: Any, initial_h: Any) -> Any:
        given = {"x": x, "initial_h": initial_h, "weight_ih": w, "weight_hh": r}
        given |= {"direction": direction, "activation": activation}
        return (
            *mb.rnn(**given, output_sequence=True),
            *mb.rnn(**given),
            *mb.rnn(**given, bias=b),
        )

    found = run_mil(build, {"x": x, "initial_h": h})
    wide = torch.from_numpy(x).float()
    wide = wide if direction == "forward" else wide.flip(0)
    with torch.no_grad():
        outputs, last = theirs(wide, torch.from_numpy(h).float()[None])
    for got, want in zip(found, (outputs, last[0], last, last[0]), strict=False):
        close(got, want, dtype)
    with torch.no_grad():
        biased = nn.RNN(3, 4, nonlinearity=activation)
        for own, value in zip(biased.parameters(), (w, r, b, 0 * b), strict=True):
            own.copy_(torch.from_numpy(value))
        close(found[5], biased(wide, torch.from_numpy(h).float()[None])[1][0], dtype)


def test_values_that_cannot_be_are_refused() -> None:
    x, h, w, r = torch.ones(1, 1, 1), torch.ones(1, 1), torch.ones(4, 1), torch.ones(4, 1)
    with pytest.raises(ExecutionError, match="no direction 'bidirectional' here"):
        ops.rnn(x, h, w[:1], r[:1], direction="bidirectional")
    with pytest.raises(ExecutionError, match="no activation 'gelu'"):
        ops.lstm(x, h, h, w, r, cell_activation="gelu")
    with pytest.raises(ExecutionError, match="weight_ih_back"):
        ops.lstm(x, h.expand(1, 2), h.expand(1, 2), w, r, direction="bidirectional")
    with pytest.raises(ExecutionError, match="no direction"):
        ops.gru(x, h, w[:3], r[:3], direction="backward")
