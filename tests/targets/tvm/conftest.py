"""Tiny modules compiled by TVM's own importer, in bundles with the native program."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from qcompile.runtime.manifest import FILE, Manifest, TensorInfo, file_sha256
from qcompile.runtime.manifest import FileInfo as File
from qcompile.runtime.vectors import save_arrays
from qcompile.targets.tvm import libraries
from qcompile.targets.tvm.native import build_program

MakeBundle = Callable[..., Path]
TARGETS: dict[str, dict[str, Any]] = {
    "x86_64": {"kind": "llvm"},
    "aarch64": {"kind": "llvm", "mtriple": "aarch64-linux-gnu", "mcpu": "cortex-a72"},
}


class Tiny(nn.Module):
    """A convolution, a reduction, a matmul and a comparison: float and bool outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.linear = nn.Linear(8, 5)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        pooled = torch.relu(self.conv(image)).mean((2, 3))
        return self.linear(pooled), pooled > 0.3


def _infos(tensors: Mapping[str, Tensor], batch: bool) -> tuple[TensorInfo, ...]:
    return tuple(
        TensorInfo(
            name,
            str(value.dtype).removeprefix("torch."),
            (("batch", *value.shape[1:]) if batch else tuple(value.shape)),
        )
        for name, value in tensors.items()
    )


def _library(folder: Path, module: nn.Module, inputs: list[Tensor], arch: str, batch: bool) -> File:
    tvm = pytest.importorskip("tvm", reason="apache-tvm is not installed")
    from tvm.relax.frontend.torch import from_exported_program

    shapes = tuple({0: torch.export.Dim("batch")} for _ in inputs) if batch else None
    exported = torch.export.export(module, tuple(inputs), dynamic_shapes=shapes)
    target = tvm.target.Target(TARGETS[arch])
    compiled = tvm.compile(from_exported_program(exported), target)
    compiled.export_library(str(folder / "model.so"), cc=libraries.compiler(arch))
    return File((folder / "model.so").stat().st_size, file_sha256(folder / "model.so"))


@pytest.fixture(scope="session")
def make_bundle() -> MakeBundle:
    """Compile a module, write its bundle with vectors from PyTorch, add the program."""

    def make(
        folder: Path,
        module: nn.Module,
        inputs: Mapping[str, Tensor],
        names: tuple[str, ...],
        arch: str = "x86_64",
        batch: bool = False,
    ) -> Path:
        if shutil.which("g++") is None:
            pytest.skip("g++ is not installed")
        (folder / "vectors").mkdir(parents=True)
        given = list(inputs.values())
        found = module(*given)
        outputs = dict(zip(names, found if isinstance(found, tuple) else (found,), strict=True))
        info = _library(folder, module.eval(), given, arch, batch)
        for file, tensors in (("inputs", inputs), ("outputs", outputs)):
            arrays = {name: value.detach().numpy() for name, value in tensors.items()}
            save_arrays(folder / "vectors" / f"{file}.npz", arrays)
        manifest = Manifest(
            *("tiny", "cpu", "tvm", "fp32", "model.so"),
            {"name": "tvm", "options": {"cpu_features": []}},
            *(_infos(inputs, batch), _infos(outputs, batch), {"model.so": info}),
            parity={"vectors_min_sqnr_db": 100.0},
        )
        (folder / FILE).write_text(manifest.to_json(), encoding="utf-8")
        build_program(folder, arch)
        return folder

    return make


@pytest.fixture(scope="session")
def tiny(make_bundle: MakeBundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of ``Tiny`` for this machine; tests copy it before they change it."""
    if not libraries.is_native("x86_64"):
        pytest.skip("the tests of the native program run on x86-64 Linux")
    image = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("tvm") / "tiny.qc"
    return make_bundle(folder, Tiny().eval(), {"image": image}, ("logits", "large"))


@pytest.fixture
def bundle(tiny: Path, tmp_path: Path) -> Path:
    """A copy of ``tiny`` to damage."""
    shutil.copytree(tiny, tmp_path / "copy.qc", symlinks=True)
    return tmp_path / "copy.qc"
