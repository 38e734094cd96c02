"""Products in float16: summed in float32 with their bias, and rounded once."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from qcompile.targets.tvm import half, program
from qcompile.targets.tvm.machine import Machine

pytest.importorskip("tvm", reason="apache-tvm is not installed")
CPU = Machine("x86_64", (), "x86-64-v2", stands_in=True)
FLOAT16 = {"rtol": 2**-10, "atol": 2**-12}
"""One rounding: half a unit in the last place of PyTorch's, and of ours."""


class Call(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *given: Tensor) -> Tensor:
        return self.function(*given)


def run(module: nn.Module, *given: Tensor) -> Tensor:
    """Return what TVM computes on the CPU."""
    import tvm
    from tvm.relax import VirtualMachine

    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        exported = torch.export.export(module.eval(), given).run_decompositions()
        found = program.imported(exported, CPU)
    machine = VirtualMachine(tvm.compile(found, CPU.target()), tvm.cpu())
    result: Any = machine["main"](*(tvm.runtime.tensor(g.numpy()) for g in given))
    value = result if hasattr(result, "numpy") else result[0]
    return torch.from_numpy(value.numpy())


def rounded_once(module: nn.Module, *given: Tensor) -> Tensor:
    """Return PyTorch's result in float64, rounded to float16."""
    wide = [g.double() for g in given]
    with torch.no_grad():
        found: Tensor = module.double()(*wide)
    return found.half()


def normal(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).half()


PRODUCTS: dict[str, tuple[Callable[[], nn.Module], tuple[Tensor, ...]]] = {
    "conv": (lambda: nn.Conv2d(6, 8, 3, padding=1, stride=2), (normal(2, 6, 9, 7),)),
    "conv, no bias": (lambda: nn.Conv2d(6, 8, 3, bias=False), (normal(2, 6, 9, 7),)),
    "grouped": (lambda: nn.Conv2d(6, 12, 3, groups=6), (normal(2, 6, 9, 7),)),
    "conv1d": (lambda: nn.Conv1d(6, 8, 3, padding=1), (normal(2, 6, 9),)),
    "linear": (lambda: nn.Linear(33, 7), (normal(3, 33),)),
    "linear, no bias": (lambda: nn.Linear(33, 7, bias=False), (normal(3, 33),)),
    "linear of three axes": (lambda: nn.Linear(33, 7), (normal(2, 3, 33),)),
    "bmm": (lambda: Call(torch.bmm), (normal(2, 3, 5), normal(2, 5, 4, seed=2))),
    "matmul": (lambda: Call(torch.matmul), (normal(2, 2, 3, 5), normal(2, 2, 5, 4, seed=2))),
    "addmm": (
        lambda: Call(torch.addmm),
        (normal(3, 4), normal(3, 5, seed=2), normal(5, 4, seed=3)),
    ),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_products_are_float16_and_near_pytorch(name: str) -> None:
    make, given = PRODUCTS[name]
    module = make().half()
    found = run(module, *given)
    assert found.dtype == torch.float16
    torch.testing.assert_close(found, rounded_once(module, *given), **FLOAT16)


def test_a_product_goes_on_in_float16() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(36, 5)).half()
    x = normal(2, 3, 5, 5)
    found = run(module, x)
    assert found.dtype == torch.float16
    torch.testing.assert_close(found, rounded_once(module, x), rtol=4e-3, atol=1e-3)


def test_a_sum_that_float16_cannot_hold() -> None:
    """Partial sums reach 128,000, beyond float16's 65,504, and the result does not."""
    module = nn.Linear(512, 2).half()
    with torch.no_grad():
        module.weight[:, :256], module.weight[:, 256:] = 25.0, -25.0
        module.bias[:] = torch.tensor([3.0, -3.0])
    assert run(module, torch.full((1, 512), 20.0).half()).tolist() == [[3.0, -3.0]]


def test_small_terms_are_not_lost_beside_a_large_one() -> None:
    """In float16, 2048 + 1 is 2048, however often it is added."""
    module = nn.Conv2d(1024, 1, 1).half()
    with torch.no_grad():
        module.weight.fill_(1.0)
        module.bias.fill_(0.5)
    x = torch.ones(1, 1024, 1, 1).half()
    x[0, 0] = 2048.0
    assert run(module, x).item() == torch.tensor(2048 + 1023.5).half().item()


def test_the_bias_is_added_before_the_rounding() -> None:
    """The sum is 2049, which float16 has not; with the bias it is 2050, which float16 has."""
    module = nn.Linear(2, 1).half()
    with torch.no_grad():
        module.weight[:] = torch.tensor([[2048.0, 1.0]])
        module.bias.fill_(1.0)
    assert run(module, torch.ones(1, 2).half()).item() == 2050.0


def test_a_bias_used_twice_keeps_its_type() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.second(self.first(x)) * self.first.bias

    module, x = Twice().half(), normal(3, 4)
    found = run(module, x)
    assert found.dtype == torch.float16
    torch.testing.assert_close(found, rounded_once(module, x), rtol=4e-3, atol=1e-3)


def test_float32_is_converted_as_tvm_does() -> None:
    module, x = nn.Linear(33, 7), normal(3, 33).float()
    found = run(module, x)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, module(x).detach())


def test_every_product_with_a_bias_is_converted() -> None:
    from qcompile.targets.tvm.program import front_end_ops

    assert half.converters().keys() == half.BIAS.keys()
    assert half.BIAS.keys() <= front_end_ops(), "a name that the front end does not know"
