"""Models that cannot be traced: each is refused with what is wrong, where, and what to do."""

from __future__ import annotations

import inspect
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from qcompile.compiler.frontend.trace import from_exported, trace
from qcompile.compiler.ir.errors import ModelError


class Raises(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y = x + 1
        return y @ torch.ones(7, 7)  # LINE: raises


class Branches(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:  # LINE: branches
            return x + 1
        return x - 1


class Counts(nn.Module):
    """Changes a buffer while it runs."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("steps", torch.zeros(()))
        self.register_buffer("another", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.steps += 1
        self.another.add_(x.sum())
        return x + self.steps


class Gives(nn.Module):
    """Returns what it was made with, beside a tensor."""

    def __init__(self, extra: Any) -> None:
        super().__init__()
        self.extra = extra

    def forward(self, x: Tensor) -> Any:
        return {"y": x + 1, "extra": self.extra}


def line_of(marker: str) -> str:
    lines = Path(__file__).read_text(encoding="utf-8").splitlines()
    number = next(i for i, line in enumerate(lines, 1) if f"# LINE: {marker}" in line)
    return f"{__file__}:{number}"


def refusal(module: nn.Module, inputs: Any, shapes: Any = None) -> str:
    with pytest.raises(ModelError) as caught:
        trace(module, inputs, shapes)
    message = str(caught.value)
    assert "\n" not in message, "an error is one sentence"
    return message


def test_a_model_that_raises_names_its_line_and_the_inputs() -> None:
    message = refusal(Raises(), {"x": torch.ones(2, 3)})
    assert "does not run on its example inputs (x=(2, 3))" in message
    assert line_of("raises") in message
    assert "RuntimeError" in message


def test_the_cause_is_kept() -> None:
    with pytest.raises(ModelError) as caught:
        trace(Raises(), torch.ones(2, 3))
    assert isinstance(caught.value.__cause__, RuntimeError)


def test_a_branch_on_a_value_names_its_line_and_the_way_out() -> None:
    message = refusal(Branches(), torch.ones(2, 3))
    assert "torch.export refuses the model" in message
    assert line_of("branches") in message
    assert "if x.sum() > 0" in message
    assert "torch.where" in message
    assert "torch.cond" in message


def test_an_axis_that_cannot_be_free_is_refused() -> None:
    class Fixed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.ones(2, 3)

    message = refusal(Fixed(), torch.ones(2, 3), {"x": {0: torch.export.Dim("batch")}})
    assert message.endswith("specialized it to be a constant (2); it suggests: batch = 2")
    assert "torch.where" not in message, "there is no branch"


def test_axes_that_go_together_are_told() -> None:
    class Halves(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.reshape(x.shape[0] // 2, 2, 3)

    message = refusal(Halves(), torch.ones(4, 3), {"x": {0: torch.export.Dim("batch")}})
    assert message.endswith("it suggests: _batch = Dim('_batch', min=1, max=oo), batch = 2*_batch")


@pytest.mark.parametrize(
    ("inputs", "named"),
    [
        ([torch.ones(2), 3], "int"),
        ({"x": "a cat"}, "str"),
        ([torch.ones(2), None, 1.5], "NoneType, float"),
        ([], "nothing"),
        ({}, "nothing"),
    ],
)
def test_inputs_that_are_no_tensors(inputs: Any, named: str) -> None:
    message = refusal(Gives(None), inputs)
    assert message.endswith(f"it gave {named}")
    assert "must give tensors" in message


def test_a_program_with_inputs_that_are_no_tensors() -> None:
    class Scales(nn.Module):
        def forward(self, x: Tensor, factor: int) -> Tensor:
            return x * factor

    program = torch.export.export(Scales(), (torch.ones(2), 3))
    with pytest.raises(ModelError, match="inputs must be tensors; got int"):
        from_exported(program)


def test_a_program_without_example_inputs() -> None:
    program = torch.export.export(Gives(None), (torch.ones(2),))
    program.example_inputs = None
    with pytest.raises(ModelError, match="saved without example inputs; export it with them"):
        from_exported(program)


@pytest.mark.parametrize("extra", [3, 1.5, True, "text"])
def test_outputs_that_are_no_tensors(extra: Any) -> None:
    assert refusal(Gives(extra), torch.ones(2)) == "outputs must be tensors; extra are not"


def test_nothing_beside_a_tensor_is_left_out() -> None:
    assert trace(Gives(None), torch.ones(2)).outputs == ("y",)


def test_a_model_with_memory_names_every_buffer() -> None:
    message = refusal(Counts(), torch.ones(2, 3))
    assert "(another, steps)" in message
    assert "pass the state in and return it" in message


def test_a_model_that_writes_its_input() -> None:
    class Writes(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            x.add_(1)
            return x * 2

    message = refusal(Writes(), torch.ones(2))
    assert "writes into its inputs (x)" in message
    assert "x = x.clone()" in message


def test_what_is_written_in_place_may_be_the_models_own() -> None:
    class Own(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = x.clone()
            y.add_(1)
            y[0] = 7
            return y

    graph = trace(Own(), torch.ones(3))
    assert graph.run({"x": torch.zeros(3)})["output"].tolist() == [7, 1, 1]


@pytest.mark.parametrize("folder", ["models", "qcompile-models", "torch"])
def test_the_users_line_is_found_wherever_the_file_lies(tmp_path: Path, folder: str) -> None:
    file = tmp_path / folder / "net.py"
    file.parent.mkdir()
    source = inspect.cleandoc(
        """
        import torch
        class Net(torch.nn.Module):
            def forward(self, x):
                return x @ torch.ones(7, 7)
        """
    )
    file.write_text(source, encoding="utf-8")
    net = runpy.run_path(str(file))["Net"]()
    assert f"{file}:4" in refusal(net, torch.ones(2, 3))
