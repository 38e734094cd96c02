"""A package's bytes depend on the model alone; what it says about itself is read by coremltools."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from qcompile.compiler.ir.interface import ImageInput, Interface
from qcompile.targets.coreml.tools import load_coremltools, quiet

Emit = Callable[..., Any]
METADATA = {"author": "A", "licence": "MIT", "version": "1.2", "description": "adds"}


def digests(package: Path) -> dict[str, str]:
    files = sorted(f for f in package.rglob("*") if f.is_file())
    return {
        f.relative_to(package).as_posix(): hashlib.sha256(f.read_bytes()).hexdigest() for f in files
    }


def description(emission: Any) -> Any:
    """Return what coremltools reads of the package's description."""
    ct = load_coremltools()
    with quiet():
        return ct.utils.load_spec(str(emission.folder / "model.mlpackage")).description


class Net(nn.Module):
    """A convolution and two results."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3, padding=1)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        x = self.conv(image)
        return {"features": x, "largest": x.amax((2, 3))}


class Classifier(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.softmax(x * 2, 1)


def test_bytes_are_the_same_again(emit: Emit) -> None:
    net, x = Net(), torch.randn(1, 3, 8, 8)
    first, second = (emit(net, x, interface=Interface(metadata=METADATA)).folder for _ in range(2))
    assert digests(first / "model.mlpackage") == digests(second / "model.mlpackage")


SCRIPT = """
import sys
from pathlib import Path
import torch
from torch import nn
from qcompile.compiler.frontend.trace import trace
from qcompile.targets.order import Order, Scheme
from qcompile.targets.coreml.emitter import EMITTER
from qcompile.targets.device import load_device
torch.manual_seed(0)
graph = trace(nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU()).eval(), torch.zeros(1, 3, 8, 8))
scheme = Scheme("fp16", None, None, 16)
EMITTER.emit(graph, Path(sys.argv[1]), Order("net", load_device("apple-a14"), scheme))
"""


@pytest.mark.slow
def test_bytes_are_the_same_in_another_process(tmp_path: Path) -> None:
    """Sets and dictionaries of another order leave no trace."""
    found = []
    for seed in ("1", "2"):
        folder = tmp_path / seed
        folder.mkdir()
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        command = [sys.executable, "-c", SCRIPT, str(folder)]
        subprocess.run(command, env=environment, check=True, capture_output=True)
        found.append(digests(folder / "model.mlpackage"))
    assert found[0] == found[1]
    assert len(found[0]) == 3


def test_files_and_their_list(emit: Emit) -> None:
    emission = emit(Net(), torch.randn(1, 3, 8, 8))
    package = emission.folder / "model.mlpackage"
    assert set(emission.emitted.files) == {f"model.mlpackage/{n}" for n in digests(package)}
    manifest = json.loads((package / "Manifest.json").read_text())
    entries = manifest["itemInfoEntries"]
    assert {e["path"] for e in entries.values()} == {
        "com.apple.CoreML/model.mlmodel", "com.apple.CoreML/weights",
    }  # fmt: skip
    assert entries[manifest["rootModelIdentifier"]]["name"] == "model.mlmodel"
    assert all((package / "Data" / e["path"]).exists() for e in entries.values())


def test_metadata(emit: Emit) -> None:
    interface = Interface(metadata=METADATA)
    found = description(emit(Net(), torch.randn(1, 3, 8, 8), interface=interface)).metadata
    assert (found.author, found.license) == ("A", "MIT")
    assert (found.versionString, found.shortDescription) == ("1.2", "adds")
    assert not [key for key in found.userDefined if "date" in key]


@pytest.mark.parametrize("color", ["RGB", "BGR"])
def test_a_picture(emit: Emit, color: str) -> None:
    """Pixels that are whole numbers arrive as scale * pixel + bias; BGR is another order, not another sum."""
    image = ImageInput(1 / 64, (-1.0, -1.5, -2.0), color)
    pixels = torch.randint(0, 256, (1, 3, 8, 8))
    bias = torch.tensor(image.bias).reshape(1, 3, 1, 1)
    emission = emit(Net(), pixels / 64 + bias, interface=Interface(images={"image": image}))
    assert emission.arrays["image"].dtype.name == "uint8"
    assert torch.equal(torch.from_numpy(emission.arrays["image"]).long(), pixels)
    assert emission.gate()["passed"], emission.gate()
    kind = description(emission).input[0].type.imageType
    assert (kind.width, kind.height) == (8, 8)
    assert kind.ColorSpace.Name(kind.colorSpace) == color
    expected = emission.source.run(emission.inputs)
    for name, value in emission.run().items():
        torch.testing.assert_close(torch.from_numpy(value), expected[name], rtol=4e-3, atol=4e-3)


def test_shapes_that_are_listed(emit: Emit) -> None:
    shapes = ((1, 3, 8, 8), (1, 3, 8, 16))
    dynamic = {"image": {3: torch.export.Dim("width", min=4, max=32)}}
    emission = emit(
        Net(),
        torch.randn(1, 3, 8, 8),
        dynamic=dynamic,
        interface=Interface(shapes={"image": shapes}),
    )
    kind = description(emission).input[0].type.multiArrayType
    assert [tuple(s.shape) for s in kind.enumeratedShapes.shapes] == list(shapes)
    assert tuple(kind.shape) == shapes[0]
    assert emission.gate()["passed"]


def test_shapes_within_a_range(emit: Emit) -> None:
    dynamic = {"image": {3: torch.export.Dim("width", min=4, max=32)}}
    emission = emit(Net(), torch.randn(1, 3, 8, 8), dynamic=dynamic)
    kind = description(emission).input[0].type.multiArrayType
    sizes = [(r.lowerBound, r.upperBound) for r in kind.shapeRange.sizeRanges]
    assert sizes == [(1, 1), (3, 3), (8, 8), (4, 32)]
    assert emission.gate()["passed"]
    emission.inputs = {"image": torch.randn(1, 3, 8, 24)}
    expected = emission.source.run(emission.inputs)
    for name, value in emission.run().items():
        torch.testing.assert_close(torch.from_numpy(value), expected[name], rtol=4e-3, atol=4e-3)


def test_classes(emit: Emit) -> None:
    emission = emit(
        Classifier(), torch.tensor([[0.1, 0.9, 0.4]]), interface=Interface(labels=("b", "a", "c"))
    )
    found = description(emission)
    assert [o.name for o in found.output] == ["classLabel", "classLabel_probs"]
    assert found.predictedFeatureName == "classLabel"
    assert emission.gate()["passed"]
    expected = torch.softmax(torch.tensor([[0.2, 1.8, 0.8]]), 1)
    probabilities = torch.from_numpy(emission.run()["output"]).float()
    torch.testing.assert_close(probabilities, expected, rtol=2e-3, atol=1e-3)


@pytest.mark.parametrize(("ios", "specification"), [(16, 7), (17, 8), (18, 9)])
def test_the_specification_of_a_system(emit: Emit, ios: int, specification: int) -> None:
    """Core ML refuses a newer one than its own."""
    emission = emit(Classifier(), torch.randn(1, 3), ios=ios)
    assert emission.package.specification == specification
    opset = emission.package.program.functions["main"].opset
    assert opset == {16: "CoreML6", 17: "CoreML7", 18: "CoreML8"}[ios]
    assert emission.emitted.engine["minimum"] == {16: "13", 17: "14", 18: "15"}[ios]


def test_whole_numbers_are_32_bits(emit: Emit) -> None:
    class Counts(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + 3

    emission = emit(Counts(), torch.tensor([1, 2**20]))
    assert emission.emitted.notes == ("the input 'x' is int64 in PyTorch and int32 in Core ML",)
    assert emission.run()["output"].tolist() == [4, 2**20 + 3]
