"""A bundle with a free batch axis and two inputs, which no test may change."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import qcompile
from qcompile.runtime import Session


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.head = nn.Linear(12, 4)

    def forward(self, image: torch.Tensor, extra: torch.Tensor) -> torch.Tensor:
        pooled = torch.relu(self.conv(image)).mean((2, 3))
        return self.head(torch.cat([pooled, extra], 1))


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    random = np.random.default_rng(0)
    data = {
        "image": random.standard_normal((32, 3, 8, 8)).astype(np.float32),
        "extra": random.standard_normal((32, 4)).astype(np.float32),
    }
    batch = torch.export.Dim("batch", min=1, max=64)
    return qcompile.compile(
        TwoInputs(),
        {name: torch.from_numpy(value[:2]) for name, value in data.items()},
        target="x86-avx512-vnni",
        calibration=data,
        dynamic_shapes={"image": {0: batch}, "extra": {0: batch}},
        output=tmp_path_factory.mktemp("runtime") / "two.qc",
    ).path


@pytest.fixture(scope="session")
def session(built: Path) -> Session:
    return Session(built)
