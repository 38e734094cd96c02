"""PyTorch's windows, resizes and recurrent layers, converted by coremltools: equal to PyTorch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qcompile.targets.coreml.reference.interpreter import Interpreter
from qcompile.targets.coreml.reference.package import read_package
from qcompile.targets.coreml.tools import load_coremltools, quiet

ct = load_coremltools()


class Pools(nn.Module):
    """All pools, with sizes that do not divide."""

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return (
            F.max_pool2d(x, 3, 2, 1, ceil_mode=True),
            F.max_pool2d(x, (2, 3), ceil_mode=True),
            F.avg_pool2d(x, 3, 2, 1, ceil_mode=True),
            F.avg_pool2d(x, 3, 2, 1, ceil_mode=True, count_include_pad=False),
            F.avg_pool2d(x, 2, 3),
            F.adaptive_avg_pool2d(x, 1),
            F.adaptive_avg_pool2d(x, (5, 3)),
            F.adaptive_max_pool2d(x, (5, 3)),
            F.max_pool1d(x[0], 3, 2, 1),
            F.avg_pool3d(x[None], (1, 3, 3), 2, (0, 1, 1)),
        )


class Convolutions(nn.Module):
    """Convolutions of all kinds, and what surrounds them."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([
            nn.Conv2d(4, 6, 3, 2, 1, bias=False),
            nn.Conv2d(4, 8, (3, 2), dilation=(2, 1), groups=4, padding=(2, 0)),
            nn.Conv2d(4, 2, 4, padding="same"),
            nn.ConvTranspose2d(4, 6, 3, 2, 1, output_padding=1),
            nn.ConvTranspose2d(4, 6, (4, 3), (2, 3), (1, 0), groups=2),
            nn.ConvTranspose2d(4, 2, 3, dilation=2, padding=1),
        ])  # fmt: skip
        self.line, self.back = nn.Conv1d(10, 5, 3, 2, 1), nn.ConvTranspose1d(10, 2, 4, 2, 1)
        self.room, self.out = nn.Conv3d(1, 2, 2), nn.ConvTranspose3d(1, 2, 2, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return (
            *(layer(x) for layer in self.layers),
            self.line(x[0]),
            self.back(x[0]),
            self.room(x[:, None]),
            self.out(x[:, None]),
            F.pad(x, (1, 2, 0, 3), value=0.5),
            F.pad(x, (1, 2, 3, 0), mode="reflect"),
            F.pad(x, (1, 2, 3, 0), mode="replicate"),
        )


class Resizes(nn.Module):
    """All interpolations that coremltools converts."""

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        up: Any = {"mode": "bilinear"}
        return (
            F.interpolate(x, scale_factor=2, mode="nearest"),
            F.interpolate(x, (25, 18), mode="nearest"),
            F.interpolate(x, scale_factor=(2, 3), align_corners=False, **up),
            F.interpolate(x, scale_factor=(2, 3), align_corners=True, **up),
            F.interpolate(x, (13, 7), align_corners=False, **up),
            F.interpolate(x, (13, 7), align_corners=True, **up),
            F.interpolate(x[0], 25, mode="linear", align_corners=False),
            F.pixel_shuffle(x, 2),
        )


class Layers(nn.Module):
    """Recurrent layers of several directions and layers."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.LSTM(9, 5, batch_first=True)
        self.two = nn.LSTM(9, 5, num_layers=2, bidirectional=True, batch_first=True)
        self.gru, self.rnn = nn.GRU(9, 5, batch_first=True), nn.RNN(9, 5, batch_first=True)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        rows = x[0]
        (one, (h, c)), (two, states) = self.one(rows), self.two(rows)
        gru, last = self.gru(rows)
        rnn, end = self.rnn(rows)
        return one, h, c, two, *states, gru, last, rnn, end


class Sampled(nn.Module):
    """Sampling at coordinates, and attention."""

    def __init__(self, aligns: bool) -> None:
        super().__init__()
        self.aligns = aligns
        self.theta = torch.tensor([[[0.9, 0.3, -0.2], [-0.4, 1.2, 0.1]]])

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        grid = x[:, :2, :, :7].permute(0, 2, 3, 1)
        modes = [
            (how, padding)
            for how in ("bilinear", "nearest")
            for padding in ("zeros", "border", "reflection")
        ]
        moved = F.affine_grid(self.theta, [1, 4, 6, 5], align_corners=self.aligns)
        return (
            *(F.grid_sample(x, grid, *mode, align_corners=self.aligns) for mode in modes),
            F.grid_sample(x, moved, align_corners=self.aligns),
            F.scaled_dot_product_attention(x, x, x),
        )


def compare(folder: Path, module: nn.Module, opset: str) -> set[str]:
    """Compare a converted module with PyTorch; return the ops that ran."""
    x = torch.randn(1, 4, 10, 9, generator=torch.Generator().manual_seed(0))
    with quiet(), torch.no_grad():
        traced = torch.jit.trace(module.eval(), x)
        wanted = module(x)
        model = ct.convert(
            traced, inputs=[ct.TensorType("x", x.shape)], skip_model_load=True,
            minimum_deployment_target=getattr(ct.target, opset),
            compute_precision=ct.precision.FLOAT32,
        )  # fmt: skip
        model.save(str(folder / "m.mlpackage"))
    package = read_package(folder / "m.mlpackage")
    found = Interpreter(package).run({"x": x})
    assert len(found) == len(wanted)
    for name, want in zip(found, wanted, strict=True):
        torch.testing.assert_close(found[name], want, rtol=1e-4, atol=1e-5)
    return {o.type for o in package.program.functions["main"].block.operations}


@pytest.mark.parametrize("opset", ["iOS15", "iOS17"])
@pytest.mark.parametrize(
    ("module", "ops"),
    [
        (Pools(), {"avg_pool", "max_pool"}),
        (Convolutions(), {"conv", "conv_transpose", "pad"}),
        (Resizes(), {"upsample_bilinear", "upsample_nearest_neighbor"}),
        (Layers(), {"lstm", "rnn", "while_loop"}),
        (Sampled(True), {"resample", "affine"}),
        (Sampled(False), {"resample", "affine"}),
    ],
)
def test_converted(tmp_path: Path, module: nn.Module, ops: set[str], opset: str) -> None:
    ran = compare(tmp_path, module, opset)
    assert ops <= ran, ops - ran


def test_attention_of_ios18(tmp_path: Path) -> None:
    assert "scaled_dot_product_attention" in compare(tmp_path, Sampled(True), "iOS18")
