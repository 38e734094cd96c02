"""Small networks compiled into bundles with a library of TVM."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as functional
from torch import Tensor, nn

import qcompile
from qcompile.runtime.errors import BundleError
from qcompile.runtime.sessions.tvm import check_machine
from qcompile.targets.device import load_device
from qcompile.targets.tvm import libraries
from qcompile.targets.tvm.machine import Machine

X86 = "x86-avx512-vnni"


class Tiny(nn.Module):
    """Convolutions with a border and without, a sum, a function, a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.point = nn.Conv2d(8, 8, 1)
        self.head = nn.Linear(8, 5)

    def forward(self, image: Tensor) -> Tensor:
        first = torch.relu(self.first(image))
        total = first + self.point(functional.hardswish(self.depthwise(first)))
        pooled = functional.adaptive_avg_pool2d(total, 1)
        found: Tensor = self.head(torch.flatten(pooled, 1))
        return found


class Odd(nn.Module):
    """Sizes that nothing divides, a pool with a border, branches that join."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 37, (5, 3), stride=(1, 2), padding=(2, 1))
        self.second = nn.Conv2d(37, 10, (1, 4), padding=(0, 2))
        self.depthwise = nn.Conv2d(10, 10, (3, 5), padding=(0, 2), groups=10)
        self.third = nn.Conv2d(10, 7, 1)
        self.last = nn.Conv2d(17, 1, 2)

    def forward(self, image: Tensor) -> Tensor:
        first = functional.max_pool2d(torch.relu(self.first(image)), 3, 2, 1)
        second = self.depthwise(torch.sigmoid(self.second(first)))
        joined = torch.cat([second, functional.silu(self.third(second))], 1)
        found: Tensor = self.last(joined)
        return found


def images(count: int, seed: int = 0) -> Any:
    """Return normal noise."""
    return np.random.default_rng(seed).standard_normal((count, 3, 8, 8)).astype(np.float32)


def build(
    folder: Path, target: str = X86, model: type[nn.Module] = Tiny, **options: Any
) -> qcompile.Bundle:
    """Compile ``Tiny`` or another model in ``tvm`` with a free batch axis."""
    torch.manual_seed(0)
    return qcompile.compile(
        model(),
        {"image": torch.from_numpy(images(2))},
        target=target,
        format="tvm",
        calibration={"image": images(16)},
        dynamic_shapes={"image": {0: torch.export.Dim("batch", min=1, max=64)}},
        output=folder / "tiny.qc",
        **options,
    )


def need(device: str) -> None:
    """Skip where a library for the device can be neither built nor run."""
    found = Machine.of(load_device(device))
    tools = ["g++"]
    if libraries.is_native(found.arch):
        try:
            check_machine(found.arch, found.features)
        except BundleError as error:
            pytest.skip(str(error))
    else:
        tools += [f"{found.arch}-linux-gnu-g++", f"qemu-{found.arch}"]
    if missing := [tool for tool in tools if shutil.which(tool) is None]:
        pytest.skip(f"not installed: {', '.join(missing)}")


@pytest.fixture(scope="session")
def build_for() -> Callable[..., qcompile.Bundle]:
    """Return a function that compiles ``Tiny`` or ``Odd`` for a device; the test is skipped without it."""
    pytest.importorskip("tvm", reason="apache-tvm is not installed")

    def make(folder: Path, target: str = X86, *, odd: bool = False, **options: Any) -> Any:
        need(target)
        return build(folder, target, Odd if odd else Tiny, **options)

    return make


@pytest.fixture(scope="session")
def bundle(build_for: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A bundle for AVX-512 VNNI, which no test may change."""
    return build_for(tmp_path_factory.mktemp("emitter"))


@pytest.fixture(scope="session")
def tiny_outputs() -> Callable[[Any], Any]:
    """Return a function that runs ``Tiny`` in float."""

    def run(image: Any) -> Any:
        torch.manual_seed(0)
        with torch.no_grad():
            return Tiny().eval()(torch.from_numpy(image)).numpy()

    return run


@pytest.fixture(scope="session")
def make_images() -> Callable[..., Any]:
    """Return the function that draws noise: ``(count, seed)``."""
    return images
