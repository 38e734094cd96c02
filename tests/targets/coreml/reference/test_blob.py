"""weight.bin that is damaged: an error that names the weight, before anything is allocated."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from qcompile.compiler.ir.errors import QCompileError
from qcompile.targets.coreml.reference.blob import BlobFile
from qcompile.targets.coreml.reference.errors import PackageError
from qcompile.targets.coreml.reference.interpreter import Interpreter
from qcompile.targets.coreml.reference.limits import MAX_VALUE_BYTES
from qcompile.targets.coreml.reference.package import read_package
from qcompile.targets.coreml.reference.types import DTYPES

WEIGHTS = "Data/com.apple.CoreML/weights/weight.bin"
FP32 = DTYPES["fp32"]
FIRST = 64
Edit = Callable[[Path, Callable[[Any], None]], Path]


def run_fails(package: Path) -> str:
    """Return the message of a run, one line."""
    with pytest.raises(QCompileError) as caught:
        Interpreter(read_package(package)).run({"x": torch.ones(1, 3, 6, 6)})
    message = str(caught.value)
    assert "\n" not in message
    return message


def patched(package: Path, at: int, form: str, *values: int) -> Path:
    with (package / WEIGHTS).open("r+b") as file:
        file.seek(at)
        file.write(struct.pack(form, *values))
    return package


@pytest.mark.parametrize(
    ("at", "form", "value", "message"),
    [
        (4, "<I", 1, "no blob file of version 2"),
        (FIRST, "<I", 0xDEADBEEE, "has no metadata"),
        (FIRST + 4, "<I", 1, "holds fp16, the program says fp32"),
        (FIRST + 4, "<I", 200, "holds type 200, the program says fp32"),
        (FIRST + 8, "<Q", 428, "has 428 bytes"),
        (FIRST + 8, "<Q", (1 << 64) - 1, "which is no fp32"),
        (FIRST + 16, "<Q", 1 << 40, "which is no fp32"),
        (FIRST + 16, "<Q", (1 << 64) - 64, "which is no fp32"),
    ],
)
def test_metadata(broken: Path, at: int, form: str, value: int, message: str) -> None:
    """The first weight is the convolution's, 4 x 3 x 3 x 3 in fp32, 432 bytes."""
    assert message in run_fails(patched(broken, at, form, value))


@pytest.mark.parametrize("length", [0, 1, 63, 64, 100, 127, 128, 300, 559])
def test_a_file_that_is_cut_off(broken: Path, length: int) -> None:
    whole = (broken / WEIGHTS).read_bytes()
    (broken / WEIGHTS).write_bytes(whole[:length])
    assert "weight.bin" in run_fails(broken)


def stored(model: Any) -> list[Any]:
    (function,) = model.mlProgram.functions.values()
    (block,) = function.block_specializations.values()
    values = [o.attributes["val"] for o in block.operations if o.type == "const"]
    return [v for v in values if v.WhichOneof("value") == "blobFileValue"]


@pytest.mark.parametrize(
    ("offset", "message"),
    [
        (0, "lies outside"),
        (1 << 40, "lies outside"),
        ((1 << 64) - 64, "lies outside"),
        (65, "not on a boundary"),
        (128, "has no metadata"),
    ],
)
def test_offsets(broken: Path, edit: Edit, offset: int, message: str) -> None:
    def change(model: Any) -> None:
        stored(model)[0].blobFileValue.offset = offset

    assert message in run_fails(edit(broken, change))


def test_a_size_beyond_the_limit(broken: Path, edit: Edit) -> None:
    def change(model: Any) -> None:
        for constant in stored(model):
            for dimension in constant.type.tensorType.dimensions:
                dimension.constant.size = 1 << 30

    assert f"larger than {MAX_VALUE_BYTES >> 30} GiB" in run_fails(edit(broken, change))


def test_another_shape_than_the_type_of_the_constant(broken: Path, edit: Edit) -> None:
    def change(model: Any) -> None:
        stored(model)[0].type.tensorType.dimensions[0].constant.size = 5

    assert "has another value than its type" in run_fails(edit(broken, change))


def test_a_weight_is_read_as_it_stands(small: Path) -> None:
    blob = BlobFile(small / WEIGHTS)
    start, size = blob.locate(FIRST, FP32, (4, 3, 3, 3))
    raw = (small / WEIGHTS).read_bytes()[start : start + size]
    weight = blob.read(FIRST, FP32, (4, 3, 3, 3))
    assert (size, weight.numpy().tobytes()) == (432, raw)
    with pytest.raises(PackageError, match="which is no fp32"):
        blob.read(FIRST, FP32, (4, 3, 3, 4))
