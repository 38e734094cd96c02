"""Layouts that meet at a sum: a shortcut made by TVM's own operators, beside layers with kernels of ours."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

import qcompile


class Shortcut(nn.Module):
    """A block of a residual network whose shortcut takes every other pixel and adds empty channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.first = nn.Conv2d(8, 16, 3, stride=2, padding=1)
        self.second = nn.Conv2d(16, 16, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        x = torch.relu(self.stem(image))
        y = self.second(torch.relu(self.first(x)))
        short = functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 4, 4))
        return torch.relu(y + short).mean((2, 3))


def test_a_shortcut_of_tvm_s_own_operators(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = Shortcut().eval()
    images = torch.randn(4, 3, 12, 12)
    batch = torch.export.Dim("batch", min=1, max=64)
    bundle = qcompile.compile(
        module,
        {"image": images},
        dynamic_shapes={"image": {0: batch}},
        target="x86-avx512-vnni",
        format="tvm",
        precision="fp32",
        output=tmp_path / "shortcut.qc",
    )
    assert bundle.passed
    (found,) = qcompile.load(bundle.path).run({"image": images.numpy()}).values()
    torch.testing.assert_close(
        torch.from_numpy(found), module(images).detach(), rtol=1e-5, atol=1e-6
    )
