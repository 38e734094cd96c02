"""A small float network, tuned once for all tests, with its database."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import qcompile
from qcompile.compiler.driver import Bundle
from qcompile.compiler.ir.errors import TargetError
from qcompile.targets.device import host_device
from qcompile.targets.options import Tuning
from qcompile.targets.tvm import libraries, tuning
from qcompile.targets.tvm.tuning_measure import Measurer

TRIALS = 12
Make = Callable[..., Bundle]


class Small(nn.Module):
    """A convolution, whose default schedule is slow by far, a softmax over pixels, a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(16, 16, 3, padding=1)
        self.head = nn.Linear(16, 5)

    def forward(self, image: Tensor) -> Tensor:
        pixels = torch.softmax(torch.relu(self.conv(image)).flatten(2), 2)
        found: Tensor = self.head((pixels * pixels).sum(2))
        return found


@dataclass(frozen=True)
class Made:
    """What the tests look at.

    Args:
        module: The network.
        images: Its inputs, a batch of four.
        bundle: Tuned.
        database: What was measured.
        measured: Calls of the measurer.
    """

    module: nn.Module
    images: Tensor
    bundle: Bundle
    database: Path
    measured: int


def make(folder: Path, given: Tuning, *, target: str = "host", free: bool = True) -> Bundle:
    """Build ``Small``."""
    module, images = network()
    shapes = {"image": {0: torch.export.Dim("batch", min=1, max=64)}} if free else None
    options: dict[str, Any] = {"format": "tvm", "precision": "fp32", "tuning": given}
    return qcompile.compile(
        module, {"image": images}, target=target, output=folder, dynamic_shapes=shapes, **options
    )


def network() -> tuple[nn.Module, Tensor]:
    """Return ``Small`` and images, the same each time."""
    torch.manual_seed(0)
    return Small().eval(), torch.randn(4, 16, 8, 8)


class Counted:
    """How often something was measured."""

    def __init__(self) -> None:
        self.calls = 0


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counted:
    """Count measurements."""
    return count(monkeypatch)


def count(patch: pytest.MonkeyPatch) -> Counted:
    """Count measurements from here on."""
    found, measure = Counted(), Measurer.measure

    def counting(self: Measurer, module: str) -> float | None:
        found.calls += 1
        return measure(self, module)

    patch.setattr(Measurer, "measure", counting)
    return found


@pytest.fixture(scope="session")
def can_tune() -> None:
    """Skip where nothing can be measured."""
    pytest.importorskip("tvm", reason="apache-tvm is not installed")
    if shutil.which("g++") is None or not libraries.is_native("x86_64"):
        pytest.skip("measures with g++ on x86-64 Linux")
    try:
        tuning.check(Tuning(1), host_device())
    except TargetError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def tuned(can_tune: None, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """``Small`` after ``TRIALS`` trials."""
    folder = tmp_path_factory.mktemp("tuned")
    with pytest.MonkeyPatch.context() as patch:
        counted = count(patch)
        bundle = make(folder / "small.qc", Tuning(TRIALS, folder / "tuning.jsonl"))
    module, images = network()
    return Made(module, images, bundle, folder / "tuning.jsonl", counted.calls)


@pytest.fixture(scope="session", name="make")
def _make(can_tune: None) -> Make:
    """Build ``Small`` with some tuning."""
    return make
