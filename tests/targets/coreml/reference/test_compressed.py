"""Packages that coremltools.optimize compressed: the interpreter equals PyTorch with those weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from qcompile.targets.coreml.reference.interpreter import Interpreter
from qcompile.targets.coreml.reference.package import read_package
from qcompile.targets.coreml.tools import load_coremltools, quiet

ct = load_coremltools()


class Net(nn.Module):
    """A convolution and a linear layer, each with enough weights to be compressed."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.linear = nn.Conv2d(8, 32, 3, padding=1), nn.Linear(32, 64)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.linear(torch.relu(self.conv(x)).mean((2, 3))))


@pytest.fixture(scope="module")
def net() -> Net:
    """Give the net, with weights from a seed."""
    torch.manual_seed(0)
    return Net().eval()


@pytest.fixture(scope="module")
def plain(net: Net) -> Any:
    """Give the net as coremltools' model."""
    x = torch.zeros(2, 8, 6, 6)
    with quiet():
        return ct.convert(
            torch.jit.trace(net, x), inputs=[ct.TensorType(name="x", shape=x.shape)],
            outputs=[ct.TensorType(name="y", dtype=np.float32)], skip_model_load=True,
            minimum_deployment_target=ct.target.iOS18, compute_precision=ct.precision.FLOAT32,
        )  # fmt: skip


def linear(**settings: Any) -> Callable[[Any], Any]:
    return _with("linear_quantize_weights", "OpLinearQuantizerConfig", settings)


def palette(**settings: Any) -> Callable[[Any], Any]:
    return _with("palettize_weights", "OpPalettizerConfig", {"mode": "kmeans", **settings})


def pruned(**settings: Any) -> Callable[[Any], Any]:
    return _with("prune_weights", "OpMagnitudePrunerConfig", {"target_sparsity": 0.5, **settings})


def _with(function: str, config: str, settings: dict[str, Any]) -> Callable[[Any], Any]:
    def compress(model: Any, *, joint: bool = False) -> Any:
        import coremltools.optimize.coreml as cto

        options = cto.OptimizationConfig(getattr(cto, config)(weight_threshold=64, **settings))
        more = {"joint_compression": True} if joint else {}
        return getattr(cto, function)(model, options, **more)

    return compress


WAYS: dict[str, tuple[float, tuple[Callable[..., Any], ...], set[str]]] = {
    "int8": (0.02, (linear(mode="linear_symmetric"),), {"blockwise_shift_scale"}),
    "uint8 with zero points": (0.02, (linear(dtype="uint8"),), {"blockwise_shift_scale"}),
    "int4 per block": (
        0.3, (linear(dtype="int4", granularity="per_block", block_size=8),),
        {"blockwise_shift_scale"},
    ),
    "palette of 4 bits": (0.3, (palette(nbits=4),), {"lut_to_dense"}),
    "palettes a group": (
        0.3, (palette(nbits=4, granularity="per_grouped_channel", group_size=8),), {"lut_to_dense"}
    ),
    "palettes of 3 bits and scales": (
        0.6,
        (palette(nbits=3, granularity="per_grouped_channel", group_size=8,
                 enable_per_channel_scale=True),),
        {"lut_to_dense", "blockwise_shift_scale"},
    ),
    "palettes of vectors": (0.9, (palette(nbits=4, cluster_dim=2),), {"lut_to_dense"}),
    "pruned": (0.9, (pruned(),), {"sparse_to_dense"}),
    "pruned, int8": (
        0.9, (pruned(), linear(mode="linear_symmetric")),
        {"sparse_blockwise_shift_scale", "sparse_to_dense"},
    ),
    "pruned palettes": (
        0.9, (pruned(), palette(nbits=6)), {"lut_to_sparse", "sparse_to_dense"}
    ),
    "palettes of int8": (
        0.3, (palette(nbits=4), linear(granularity="per_tensor")),
        {"lut_to_dense", "blockwise_shift_scale"},
    ),
}  # fmt: skip
"""How far the output may be from the float net's, relative; the ways, one after the other; the decoders."""


@pytest.mark.parametrize("name", WAYS)
def test_a_compressed_package(plain: Any, net: Net, tmp_path: Path, name: str) -> None:
    bound, ways, decoders = WAYS[name]
    model = plain
    with quiet():
        for index, way in enumerate(ways):
            model = way(model, joint=index > 0)
        weights = decompressed(model)
    model.save(str(tmp_path / "net.mlpackage"))
    package = read_package(tmp_path / "net.mlpackage")
    kinds = {o.type for o in package.program.functions["main"].block.operations}
    assert {k for k in kinds if "constexpr" in k} == {f"constexpr_{d}" for d in decoders}
    x = torch.randn(2, 8, 6, 6)
    found = Interpreter(package).run({"x": x})["y"]
    with torch.no_grad():
        changed = torch.func.functional_call(net, weights, (x,))
        torch.testing.assert_close(found, changed, rtol=1e-5, atol=1e-5)
        distance = (found - net(x)).norm() / net(x).norm()
    assert 0 < distance < bound


def decompressed(model: Any) -> dict[str, Tensor]:
    """Return both weights as coremltools' own decompression gives them."""
    import coremltools.optimize.coreml as cto

    found = {}
    for weight in cto.get_weights_metadata(cto.decompress_weights(model), 64).values():
        key = "conv.weight" if weight.val.ndim == 4 else "linear.weight"
        if weight.val.ndim in (2, 4):
            found[key] = torch.from_numpy(weight.val)
    assert len(found) == 2
    return found
