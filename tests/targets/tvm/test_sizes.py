"""Free sizes: models of any batch and length, and indices beyond what a table has."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from qcompile.compiler.ir.errors import UnsupportedError
from qcompile.targets.tvm import program, sizes
from qcompile.targets.tvm.machine import Machine

pytest.importorskip("tvm", reason="apache-tvm is not installed")
CPU = Machine("x86_64", (), "x86-64-v2", stands_in=True)
Run = Callable[..., Tensor]


def relax(module: nn.Module, given: tuple[Tensor, ...], free: Any) -> Any:
    """Return a module as it is imported for the CPU."""
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        exported = torch.export.export(module.eval(), given, dynamic_shapes=free)
        return program.imported(exported.run_decompositions(), CPU)


def build(module: nn.Module, given: tuple[Tensor, ...], free: Any) -> Run:
    """Return a function that runs a module as TVM compiled it for the CPU."""
    import tvm
    from tvm.relax import VirtualMachine

    found = relax(module, given, free)
    machine = VirtualMachine(tvm.compile(found, CPU.target()), tvm.cpu())

    def run(*values: Tensor) -> Tensor:
        result: Any = machine["main"](*(tvm.runtime.tensor(v.numpy()) for v in values))
        first = result if hasattr(result, "numpy") else result[0]
        return torch.from_numpy(first.numpy())

    return run


class Positions(nn.Module):
    """A table of words, and the first rows of a table of positions."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.positions = nn.Embedding(11, 8), nn.Parameter(torch.randn(16, 8))
        self.linear = nn.Linear(8, 8)

    def forward(self, tokens: Tensor) -> Tensor:
        length = tokens.shape[1]
        found: Tensor = self.linear(self.words(tokens) + self.positions[:length])
        return found


class Attention(nn.Module):
    """Heads by reshaping with sizes, products over a free length, a softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(8, 24)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        q, k, v = (
            part.reshape(batch, length, 2, width // 2).transpose(1, 2)
            for part in self.qkv(x).chunk(3, -1)
        )
        scores = torch.softmax(q @ k.transpose(-1, -2), -1)
        return (scores @ v).transpose(1, 2).reshape(batch, length, width)


class Joined(nn.Module):
    """Lengths s + 1, 2 * s and 2 * s + 1, which later sums must find equal."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.randn(1, 1, 4))

    def forward(self, x: Tensor) -> Tensor:
        batch = x.shape[0]
        longer = torch.cat([self.first.expand(batch, 1, 4), x], 1)
        twice = torch.cat([x, x * 2], 1)
        both = torch.cat([longer, x], 1)
        return both + torch.cat([self.first.expand(batch, 1, 4), twice], 1)


class Halves(nn.Module):
    """Means of pairs of rows, which leave out an odd one, and twice as many rows by other sizes."""

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        half = functional.avg_pool2d(x[:, None], (2, 1))[:, 0]
        twice = x.unsqueeze(2).expand(batch, length, 2, width).reshape(batch, length * 2, width)
        again = torch.cat([x, x * 3], 1)
        return torch.cat([twice + again, torch.cat([half, half], 1) + torch.cat([half] * 2, 1)], 1)


class Viewed(nn.Module):
    """A size that is left to the op, beside the same size that is a sum."""

    def forward(self, x: Tensor) -> Tensor:
        parts = x.view(x.shape[0], -1, 4)
        total = parts + torch.cat([x[..., :4], x[..., 4:]], 1)
        return functional.layer_norm(total, [4]).unsqueeze(1)


class Steps(nn.Module):
    """Every second row, of a length that is rounded up."""

    def forward(self, x: Tensor) -> Tensor:
        return x[:, ::2] * 2


class Ends(nn.Module):
    """The last rows, and all but the last."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x[:, -2:], x[:, :-1], x[:, 1:]], 1)


BATCH, LENGTH = torch.export.Dim("batch", max=64), torch.export.Dim("length", min=2, max=16)
TOKENS = (torch.zeros(3, 6, dtype=torch.int64),)


def tokens(batch: int, length: int) -> Tensor:
    return torch.randint(0, 11, (batch, length))


def rows(batch: int, length: int, width: int = 8) -> Tensor:
    return torch.randn(batch, length, width)


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[int, int], Tensor], Any]] = {
    "positions": (Positions, tokens, LENGTH),
    "attention": (Attention, rows, LENGTH),
    "joined": (Joined, lambda b, n: rows(b, n, 4), LENGTH),
    "halves": (Halves, rows, torch.export.Dim("length", min=4, max=16)),
    "viewed": (Viewed, rows, torch.export.Dim("length", min=4, max=16)),
    "steps": (Steps, rows, torch.export.Dim("length", min=4, max=16)),
    "ends": (Ends, rows, torch.export.Dim("length", min=4, max=16)),
}


@pytest.mark.parametrize("name", MODELS)
def test_any_batch_and_length_is_computed_as_pytorch_does(name: str) -> None:
    make, draw, length = MODELS[name]
    module = make().eval()
    run = build(module, (draw(3, 6),), ({0: BATCH, 1: length},))
    for batch, size in ((1, 4), (2, 7), (5, 16)):
        x = draw(batch, size)
        with torch.no_grad():
            expected = module(x)
        found = run(x)
        assert found.shape == expected.shape
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("name", MODELS)
def test_no_value_loses_its_sizes(name: str) -> None:
    from tvm.relax import ShapeExpr, TensorType

    make, draw, length = MODELS[name]
    found = relax(make(), (draw(3, 6),), ({0: BATCH, 1: length},))["main"]
    values = [binding.var for block in found.body.blocks for binding in block.bindings]
    tensors = [v for v in values if isinstance(v.ty, TensorType)]
    assert len(tensors) >= 2
    assert [v.name_hint for v in tensors if not isinstance(v.ty.shape, ShapeExpr)] == []


def test_the_size_of_a_slice_from_the_end_is_stated_as_pytorch_knows_it() -> None:
    make, draw, length = MODELS["ends"]
    found = relax(make(), (draw(3, 6),), ({0: BATCH, 1: length},))
    assert "match_cast" in found.script()


@pytest.mark.parametrize("index", [-1000, -12, 11, 1000, 2**40])
def test_a_word_that_the_table_has_not_is_nan_and_harms_no_other(index: int) -> None:
    torch.manual_seed(0)
    module = nn.Embedding(11, 8)
    run = build(module, TOKENS, ({0: BATCH, 1: LENGTH},))
    x = tokens(2, 5)
    expected = module(x).detach()
    x[1, 2] = index
    found = run(x)
    assert found[1, 2].isnan().all()
    expected[1, 2], found[1, 2] = 0, 0
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize("index", [-12, 11, 2**40])
def test_a_table_in_codes_gives_nan_there_too(index: int) -> None:
    class Rows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            codes = torch.randint(-127, 128, (11, 8), dtype=torch.int8)
            self.register_buffer("codes", codes)
            self.register_buffer("scale", torch.rand(11, 1))

        def forward(self, ids: Tensor) -> Tensor:
            rows = functional.embedding(ids, self.codes).float()  # type: ignore[arg-type]
            return rows * functional.embedding(ids, self.scale)  # type: ignore[arg-type]

    torch.manual_seed(0)
    module, x = Rows(), torch.tensor([[0, 10, 3]])
    run = build(module, (x,), None)
    expected = module(x)
    torch.testing.assert_close(run(x), expected, rtol=0, atol=0)
    x[0, 1] = index
    found = run(x)
    assert found[0, 1].isnan().all()
    torch.testing.assert_close(found[0, [0, 2]], expected[0, [0, 2]], rtol=0, atol=0)


def test_a_slice_that_starts_before_the_end() -> None:
    module = Ends()
    x = rows(2, 5)
    run = build(module, (x,), None)
    torch.testing.assert_close(run(x), module(x), rtol=0, atol=0)


def test_two_inputs_must_have_the_same_free_size() -> None:
    class Sum(nn.Module):
        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return torch.cat([a, b], 1) + torch.cat([b, a], 1)

    run = build(Sum(), (rows(2, 5), rows(2, 5)), ({0: BATCH, 1: LENGTH}, {0: BATCH, 1: LENGTH}))
    a, b = rows(4, 3), rows(4, 3)
    torch.testing.assert_close(run(a, b), torch.cat([a, b], 1) + torch.cat([b, a], 1))
    with pytest.raises(Exception, match=r"(?i)match_cast|shape|expect"):
        run(rows(4, 3), rows(4, 2))


def test_a_length_that_must_be_even_is_refused_in_one_sentence() -> None:
    """The size is 2 * half, and no input says what half is."""
    free = ({0: BATCH, 1: 2 * torch.export.Dim("half", min=2, max=8)},)
    with pytest.raises(
        UnsupportedError, match=r"use --format onnx, or fix its free axes$"
    ) as caught:
        build(Steps(), (rows(2, 6),), free)
    assert "\n" not in str(caught.value)


def test_a_defect_of_a_converter_of_ours_is_no_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    def defect(*given: Any) -> bool:
        raise ValueError("a defect of ours")

    monkeypatch.setattr(sizes, "_says", defect)
    with pytest.raises(ValueError, match="a defect of ours"):
        relax(Steps(), (rows(2, 6),), ({0: BATCH},))


def test_only_models_with_free_sizes_are_said_to_have_them() -> None:
    for free, expected in ((None, False), (({0: BATCH},), True), (({1: LENGTH},), True)):
        exported = torch.export.export(Attention(), (rows(3, 6),), dynamic_shapes=free)
        assert sizes.is_free(exported.graph) is expected
