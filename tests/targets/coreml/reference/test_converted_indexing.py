"""PyTorch's indexing, converted by coremltools and run from the package: equal to PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from qcompile.targets.coreml.reference.interpreter import Interpreter
from qcompile.targets.coreml.reference.package import read_package
from qcompile.targets.coreml.tools import load_coremltools, quiet

ct = load_coremltools()
SHIFTED = (torch.arange(4 * 6 * 8).reshape(4, 6, 8) * 7) % 4


class Written(nn.Module):
    """Everything that writes at indices or into slices."""

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        once, twice = torch.tensor([2, 0]), torch.tensor([2, 0, 2])
        assigned = x.clone()
        assigned[:, 1:5:2] = 7.0
        return (
            x.index_put((once,), torch.ones(2, 6, 8)),
            x.index_put((twice, torch.tensor([1, 1, 1])), torch.ones(3, 8), accumulate=True),
            x.scatter_add(0, SHIFTED, x * 2),
            x.scatter(1, SHIFTED[:, :1], torch.ones(4, 1, 8)),
            assigned,
            x.masked_fill(x > 0, -1.0),
        )


class Read(nn.Module):
    """Everything that reads at indices, in slices, or in another order."""

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return (
            *torch.topk(x, 3, dim=1),
            *torch.topk(x, 3, largest=False),
            *torch.sort(x, dim=1, descending=True),
            torch.argsort(x, dim=-1),
            torch.roll(x, (1, -3), (0, 2)),
            x.flip(0, 2),
            x.narrow(1, 2, 3),
            x[:, -4:-1, ::3],
            torch.index_select(x, 1, torch.tensor([5, 0, 5])),
            torch.gather(x, 0, SHIFTED),
            x[torch.tensor([0, 3]), torch.tensor([5, -1])],
            x[:, torch.tensor([5, -1])],
            torch.nonzero(x > 0),
        )


class Shaped(nn.Module):
    """Everything that joins, splits, repeats and reshapes."""

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        blocks = torch.cat([x, x + 1, x + 2, x + 3])[None]
        return (
            torch.pixel_shuffle(blocks, 2),
            torch.pixel_unshuffle(blocks, 2),
            x.repeat(2, 1, 3),
            x[:, None].expand(4, 2, 6, 8),
            *x.chunk(3, 1),
            *x.split([1, 5], 1),
            *x.unbind(0),
            torch.stack([x, x * 2], -1),
            torch.tril(x, 1),
            torch.triu(x, -1),
            torch.cumsum(x, 1),
            x.repeat_interleave(2, 1),
            torch.full_like(x, 3) + torch.arange(8),
        )


def compare(folder: Path, module: nn.Module, inputs: tuple[Tensor, ...], opset: str) -> set[str]:
    """Compare a converted module with PyTorch; return the ops that ran."""
    program = torch.export.export(module.eval(), inputs).run_decompositions({})
    with quiet():
        model = ct.convert(
            program, minimum_deployment_target=getattr(ct.target, opset),
            compute_precision=ct.precision.FLOAT32, skip_model_load=True,
        )  # fmt: skip
        model.save(str(folder / "m.mlpackage"))
    package = read_package(folder / "m.mlpackage")
    interpreter = Interpreter(package)
    kinds = zip(interpreter.inputs, inputs, strict=True)
    found = interpreter.run({name: value.to(kind.dtype) for (name, kind), value in kinds})
    wanted = module(*inputs)
    for got, want in zip(
        found.values(), wanted if isinstance(wanted, tuple) else [wanted], strict=True
    ):
        torch.testing.assert_close(got.to(want.dtype), want)
    return {o.type for o in package.program.functions["main"].block.operations}


@pytest.mark.parametrize("opset", ["iOS17", "iOS18"])
@pytest.mark.parametrize(
    ("module", "ops"),
    [
        (Written, {"scatter_nd", "scatter_along_axis", "select"}),
        (Read, {"topk", "argsort", "gather", "gather_nd", "gather_along_axis", "reverse",
                "slice_by_index", "non_zero"}),
        (Shaped, {"pixel_shuffle", "pixel_unshuffle", "tile", "split", "stack", "concat",
                  "band_part", "cumsum", "fill_like"}),
    ],
)  # fmt: skip
def test_one_input(
    tmp_path: Path, module: Callable[[], nn.Module], ops: set[str], opset: str
) -> None:
    x = torch.randn(4, 6, 8, generator=torch.Generator().manual_seed(0))
    ran = compare(tmp_path, module(), (x,), opset)
    assert ops <= ran, ops - ran
    if module is Written:
        assert ("slice_update" if opset == "iOS18" else "scatter") in ran


class Looked(nn.Module):
    """Indices that are an input, negative ones among them."""

    def forward(self, x: Tensor, at: Tensor) -> tuple[Tensor, ...]:
        put = torch.index_put(x, (at,), x, accumulate=True)
        return x[at], x.index_select(0, at), put


@pytest.mark.parametrize("opset", ["iOS16", "iOS17"])
def test_indices_of_the_run(tmp_path: Path, opset: str) -> None:
    x = torch.arange(12.0).reshape(4, 3)
    at: Any = torch.tensor([2, 0, 3, 2], dtype=torch.int32)
    compare(tmp_path, Looked(), (x, at), opset)
