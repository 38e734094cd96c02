"""Directories that are no models, or damaged ones: a sentence that says what, before any weight is read."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from qcompile.compiler.frontend.huggingface.directory import INDEX, SINGLE, open_directory
from qcompile.compiler.frontend.load import load
from qcompile.compiler.ir.errors import ModelError

CONFIG = {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}
PARTS = {"one.safetensors": ["a", "b"], "two.safetensors": ["c"]}


def configured(folder: Path, **config: Any) -> Path:
    (folder / "config.json").write_text(json.dumps({**CONFIG, **config}))
    return folder


def sharded(folder: Path) -> dict[str, str]:
    """Write two shards and their index; return what the index says."""
    configured(folder)
    for file, names in PARTS.items():
        save_file({name: torch.ones(4, 3) for name in names}, folder / file)
    said = {name: file for file, names in PARTS.items() for name in names}
    indexed(folder, said)
    return said


def indexed(folder: Path, said: Any) -> None:
    (folder / INDEX).write_text(json.dumps({"weight_map": said}))


def refused(folder: Path) -> str:
    with pytest.raises(ModelError) as found:
        open_directory(folder)
    assert "\n" not in str(found.value)
    return str(found.value)


def test_shards_and_a_single_file(tmp_path: Path) -> None:
    sharded(tmp_path)
    found = open_directory(tmp_path)
    assert {n: t.file.name for n, t in found.tensors.items()} == {
        "a": "one.safetensors",
        "b": "one.safetensors",
        "c": "two.safetensors",
    }
    assert [f.name for f in found.files] == list(PARTS)
    assert found.tensors["c"].shape() == (4, 3)
    (tmp_path / INDEX).unlink()
    save_file({"x": torch.ones(2)}, tmp_path / SINGLE)
    assert list(open_directory(tmp_path).tensors) == ["x"]


def test_without_weights(tmp_path: Path) -> None:
    configured(tmp_path)
    assert "has no weights: neither model.safetensors nor" in refused(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80")
    message = refused(tmp_path)
    assert "pickled weights only (pytorch_model.bin)" in message
    assert "save_pretrained" in message


def test_a_folder_that_is_no_model_and_a_file_that_is_none(tmp_path: Path) -> None:
    assert "is no model: it has no config.json" in refused(tmp_path)
    with pytest.raises(ModelError, match="does not exist; MODEL is neither"):
        load(str(tmp_path / "nowhere"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "config.json is not JSON"),
        ("[1]", "holds list, not an object"),
        ("\xff", "config.json is not JSON"),
        ("{}", "names no architecture"),
        ('{"architectures": []}', "names no architecture"),
        ('{"architectures": ["X"], "quantization_config": {"quant_method": "awq"}}', "(awq)"),
        ('{"architectures": ["X"], "quantization_config": 4}', "quantized already (unknown)"),
    ],
)
def test_a_configuration_that_is_none(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "config.json").write_bytes(text.encode("latin-1"))
    assert message in refused(tmp_path)


def test_missing_shards_are_all_named(tmp_path: Path) -> None:
    sharded(tmp_path)
    for file in PARTS:
        (tmp_path / file).unlink()
    assert "lacks 2 of 2 shards: one.safetensors, two.safetensors" in refused(tmp_path)


@pytest.mark.parametrize("kept", [0, 4, 40, -1])
def test_a_truncated_shard(tmp_path: Path, kept: int) -> None:
    sharded(tmp_path)
    file = tmp_path / "two.safetensors"
    file.write_bytes(file.read_bytes()[:kept])
    size = file.stat().st_size
    assert f"two.safetensors ({size:,} bytes) is no whole safetensors file" in refused(tmp_path)


def test_an_index_that_lies(tmp_path: Path) -> None:
    said = sharded(tmp_path)
    indexed(tmp_path, {**said, "d": "two.safetensors"})
    assert "d is not in two.safetensors" in refused(tmp_path)
    indexed(tmp_path, {**said, "a": "two.safetensors"})
    assert "a is in one.safetensors, not in two.safetensors" in refused(tmp_path)
    indexed(tmp_path, {name: said[name] for name in "bc"})
    assert "a of one.safetensors is not listed" in refused(tmp_path)
    for wrong in ({}, [], None):
        indexed(tmp_path, wrong)
        assert "has no weight_map" in refused(tmp_path)
    indexed(tmp_path, {**said, "a": "../one.safetensors"})
    assert "outside of its directory: ../one.safetensors" in refused(tmp_path)
    (tmp_path / INDEX).write_text("no JSON")
    assert "is not JSON" in refused(tmp_path)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_values_that_are_no_numbers(tmp_path: Path, value: float, dtype: torch.dtype) -> None:
    from dataclasses import replace

    configured(tmp_path)
    wrong = torch.ones(4, 3, dtype=dtype)
    wrong[2, 1] = value
    save_file({"good": torch.ones(2), "bad.weight": wrong}, tmp_path / SINGLE)
    tensors = open_directory(tmp_path).tensors
    assert replace(tensors["good"], finite=True).load().sum() == 2
    with pytest.raises(ModelError, match=re.escape("bad.weight in ")) as found:
        replace(tensors["bad.weight"], finite=True).load()
    assert "holds 1 of 12 values that are NaN or infinite" in str(found.value)
