"""Conditions, loops and states, of saved packages."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from qcompile.targets.coreml.reference import control
from qcompile.targets.coreml.reference.errors import ExecutionError
from qcompile.targets.coreml.reference.interpreter import Interpreter
from qcompile.targets.coreml.reference.package import read_package
from qcompile.targets.coreml.tools import load_coremltools, quiet

ct = load_coremltools()
Save = Callable[..., Path]


def total(mb: Any, x: Any) -> Any:
    return mb.reduce_sum(x=x, axes=[0], keep_dims=False)


def chosen(mb: Any, x: Any) -> Any:
    """Two results; one of them from a condition in the condition."""
    is_large = mb.greater(x=total(mb, x), y=np.float32(0))
    is_huge = mb.greater(x=total(mb, x), y=np.float32(10))
    return mb.cond(
        pred=is_large,
        _true_fn=lambda: (
            mb.add(x=x, y=np.float32(1)),
            mb.cond(
                pred=is_huge,
                _true_fn=lambda: mb.mul(x=x, y=np.float32(10)),
                _false_fn=lambda: mb.mul(x=x, y=np.float32(5)),
            ),
        ),
        _false_fn=lambda: (mb.sub(x=x, y=np.float32(1)), mb.identity(x=x)),
    )


@pytest.mark.parametrize(("value", "factor"), [(-1.0, 1), (1.0, 5), (20.0, 10)])
def test_cond(save: Save, value: float, factor: float) -> None:
    x = torch.tensor([value, 0.5])
    first, second = Interpreter(read_package(save(chosen, (2,)))).run({"x": x}).values()
    assert torch.equal(first, x + (1 if value > 0 else -1))
    assert torch.equal(second, x * factor)


def powers(mb: Any, x: Any) -> Any:
    """Doubles until the sum is 100; in each round a loop that adds ``i`` to ``x`` ``i`` times."""

    def inner(i: Any, y: Any) -> Any:
        _, found = mb.while_loop(
            _cond=lambda j, z: mb.less(x=j, y=i),
            _body=lambda j, z: (mb.add(x=j, y=np.int32(1)), mb.add(x=z, y=mb.cast(x=i, dtype="fp32"))),
            loop_vars=(np.int32(0), y),
        )  # fmt: skip
        return mb.add(x=i, y=np.int32(1)), mb.mul(x=found, y=np.float32(2))

    return mb.while_loop(
        _cond=lambda i, y: mb.less(x=total(mb, y), y=np.float32(100)),
        _body=inner,
        loop_vars=(np.int32(0), x),
    )


@pytest.fixture(scope="module")
def loops(save: Save) -> Interpreter:
    """Give the program of ``powers``."""
    return Interpreter(read_package(save(powers, (2,))))


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(-3, 120), min_size=2, max_size=2).filter(lambda v: sum(v) > -9))
def test_while_loop(loops: Interpreter, values: list[int]) -> None:
    i, y = 0, [float(v) for v in values]
    while sum(y) < 100 and i < 50:
        i, y = i + 1, [2 * (v + i * i) for v in y]
    rounds, found = loops.run({"x": torch.tensor(values).float()}).values()
    assert (int(rounds), found.tolist()) == (i, y)


def test_a_loop_that_never_ends(save: Save, monkeypatch: pytest.MonkeyPatch) -> None:
    def build(mb: Any, x: Any) -> Any:
        return mb.while_loop(
            _cond=lambda y: mb.less(x=total(mb, y), y=np.float32(1)),
            _body=lambda y: mb.mul(x=y, y=np.float32(0)),
            loop_vars=(x,),
        )

    interpreter = Interpreter(read_package(save(build, (2,))))
    (found,) = interpreter.run({"x": torch.ones(2)}).values()
    assert torch.equal(found, torch.ones(2)), "not a round"
    monkeypatch.setattr(control, "MAX_WORK", 1000)
    for _ in range(2):
        with pytest.raises(ExecutionError, match=r"^while_loop .*its loops do not end in time"):
            interpreter.run({"x": torch.zeros(2)})


class Counter(nn.Module):
    """Adds its input to a buffer, twice, and gives the buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(3, dtype=torch.float16))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.add_(x)
        between = self.seen * 1
        self.seen.mul_(2)
        return between + self.seen


@pytest.fixture(scope="module")
def counter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give ``Counter`` with its buffer as a state."""
    folder = tmp_path_factory.mktemp("state") / "counter.mlpackage"
    with quiet():
        traced = torch.jit.trace(Counter().eval(), torch.zeros(3, dtype=torch.float16))
        model = ct.convert(
            traced, inputs=[ct.TensorType(name="x", shape=(3,), dtype=np.float16)],
            outputs=[ct.TensorType(name="y", dtype=np.float16)],
            states=[ct.StateType(ct.TensorType(shape=(3,), dtype=np.float16), name="seen")],
            minimum_deployment_target=ct.target.iOS18, skip_model_load=True,
        )  # fmt: skip
    model.save(str(folder))
    return folder


def test_a_state_goes_on_from_run_to_run(counter: Path) -> None:
    package, net = read_package(counter), Counter()
    interpreter = Interpreter(package)
    kinds = {o.type for o in package.program.functions["main"].block.operations}
    assert {"read_state", "write_state"} <= kinds
    for value in (1.0, 2.5, -4.0):
        x = torch.tensor([value, 1.0, 0.0], dtype=torch.float16)
        assert torch.equal(interpreter.run({"x": x})["y"], net(x))
        assert torch.equal(interpreter.state["seen"], net.seen)
    fresh = Interpreter(package, state={"seen": torch.ones(3).half()})
    assert fresh.run({"x": torch.zeros(3).half()})["y"].tolist() == [3.0, 3.0, 3.0]
    assert torch.equal(interpreter.state["seen"], net.seen), "states are not shared"


def test_a_state_of_another_type_is_refused(counter: Path) -> None:
    x = {"x": torch.zeros(3).half()}
    for wrong in (torch.ones(4).half(), torch.ones(3, dtype=torch.int32)):
        with pytest.raises(ExecutionError, match=r"^read_state .* the program says"):
            Interpreter(read_package(counter), state={"seen": wrong}).run(x)
