"""Budgets of TVM libraries: each weight has a format of its own, and the library has the bytes that were said."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from qcompile.compiler.driver import BuildOptions as Options
from qcompile.compiler.driver import Bundle, build, weight_sizes
from qcompile.compiler.driver.budget import Budget
from qcompile.compiler.driver.front import front
from qcompile.compiler.frontend.load import Source, from_module
from qcompile.compiler.ir.errors import BudgetError, QCompileError, TargetError
from qcompile.runtime.session import load
from qcompile.targets.options import BlockOptions
from qcompile.targets.tvm import libraries

pytest.importorskip("tvm", reason="apache-tvm is not installed")
pytestmark = pytest.mark.skipif(
    not libraries.is_native("x86_64"), reason="the libraries are compiled for this machine"
)
BYTES = 160_000
"""A size between those of int4 and of int8 for all weights."""


class Network(nn.Module):
    """Two layers of one shape, that share a kernel while their formats are the same, and one depthwise."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(3, 64, 3, padding=1)
        self.deep = nn.Conv2d(64, 64, 3, padding=1, groups=64)
        self.one = nn.Conv2d(64, 64, 3, padding=1)
        self.other = nn.Conv2d(64, 64, 3, padding=1)
        self.spread = nn.Conv2d(64, 16, 1, dilation=2)
        self.last = nn.Linear(16, 10)
        for layer in self.children():
            nn.init.kaiming_normal_(layer.weight)  # type: ignore[arg-type]

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.deep(torch.relu(self.first(image))))
        x = torch.relu(self.other(torch.relu(self.one(x))))
        return self.last(torch.relu(self.spread(x)).mean((2, 3)))


def images(count: int, seed: int) -> torch.Tensor:
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def source() -> Source:
    module, x = Network().eval(), images(64, 2)
    with torch.no_grad():
        labels = module(x).argmax(1)

    def evaluate(predict: Callable[[Mapping[str, Any]], Mapping[str, Any]]) -> dict[str, float]:
        logits = next(iter(predict({"image": x.numpy()}).values()))
        return {"top1": 100.0 * float((logits.argmax(1) == labels.numpy()).mean())}

    shapes = {"image": {0: torch.export.Dim("batch", min=1, max=256)}}
    made = from_module(module, {"image": x[:2]}, dynamic_shapes=shapes, name="net")
    return replace(made, evaluate=evaluate)


def options(target: str = "tvm", **changes: Any) -> Options:
    return Options(target=target, calibrate={"image": images(32, 1).numpy()}, **changes)


@pytest.fixture(scope="module")
def bundle(source: Source, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle under a size, which no test may change."""
    folder = tmp_path_factory.mktemp("bundle")
    given = options(budget=Budget(max_size=BYTES), save_plan=folder / "plan.json")
    return build(source, folder / "a.qc", given)


def test_a_size_is_kept_and_used(bundle: Bundle) -> None:
    size = bundle.manifest.sizes["artifact_bytes"]
    print(bundle.manifest.plan["types"], size, bundle.manifest.plan["bytes"])
    assert 0.9 * BYTES < size <= BYTES


def test_front(source):
    import time
    t=time.time()
    for p in front(source, options()).plans: print(p.bytes, p.damage, p.types)
    print(time.time()-t)
