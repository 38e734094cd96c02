"""Tensors read run by run are those that safetensors reads, to the last bit."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from qcompile.compiler.frontend.trace import trace
from qcompile.compiler.ir import tensor_file
from qcompile.compiler.ir.errors import ModelError
from qcompile.compiler.ir.stored import ScaledTensor, StoredTensor
from qcompile.compiler.ir.tensor_file import RUN, find_tensor

KINDS = (torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int8, torch.int64)


def numbers(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    values = torch.randn(shape, generator=torch.Generator().manual_seed(3)) * 50
    return values.to(dtype)


@settings(max_examples=12, deadline=None)
@given(st.sampled_from(KINDS), st.lists(st.integers(0, 7), max_size=3))
def test_all_kinds_and_shapes(
    tmp_path_factory: pytest.TempPathFactory, dtype: torch.dtype, shape: list[int]
) -> None:
    file = tmp_path_factory.mktemp("kinds") / "model.safetensors"
    save_file({"before": torch.ones(3), "x": numbers(tuple(shape), dtype)}, file)
    wanted, stored = load_file(file)["x"], StoredTensor(file, "x")
    assert torch.equal(stored.load(), wanted)
    assert stored.load().dtype == wanted.dtype
    assert torch.equal(replace(stored, dtype=torch.float32).load(), wanted.float())


def test_more_than_a_run(tmp_path: Path) -> None:
    file, value = tmp_path / "model.safetensors", numbers((3, RUN // 5 + 1), torch.bfloat16)
    save_file({"x": value}, file)
    stored = StoredTensor(file, "x", dtype=torch.float32, finite=True)
    assert torch.equal(stored.load(), value.float())
    assert torch.equal(replace(stored, transposed=True).load(), value.float().t())
    halved = replace(stored, rounded_to=torch.float16).load()
    assert torch.equal(halved, value.to(torch.float16).float())
    place = find_tensor(file, "x")
    assert place is not None
    raw = value.view(torch.uint8).numpy().tobytes()
    assert place.sha256(finite=True) == hashlib.sha256(raw).hexdigest()


@pytest.mark.parametrize("kept", ["stored", "transposed", "scaled"])
def test_some_rows_at_a_time(tmp_path: Path, kept: str) -> None:
    file, value = tmp_path / "model.safetensors", numbers((11, 6), torch.bfloat16)
    save_file({"before": torch.ones(3), "x": value}, file)
    net = nn.Sequential(nn.Linear(11, 6) if kept == "transposed" else nn.Linear(6, 11))
    weights = trace(net, torch.ones(1, net[0].in_features)).weights
    weights["0.weight"] = weights["0.weight"].to("meta")
    plain = StoredTensor(file, "x", dtype=torch.float32, transposed=kept == "transposed")
    weights.store("0.weight", plain)
    if kept == "scaled":
        weights.scale("0.weight", torch.arange(1.0, 7.0), 1)
    parts = [part() for part in weights.parts("0.weight", 4)]
    assert [len(part) for part in parts] == ([4, 2] if kept == "transposed" else [4, 4, 3])
    assert torch.equal(torch.cat(parts), weights["0.weight"])


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_what_is_no_number_is_counted(tmp_path: Path, bad: float) -> None:
    file, value = tmp_path / "model.safetensors", numbers((4, RUN // 4), torch.bfloat16)
    value[1, 7] = value[3, -1] = bad
    save_file({"x": value}, file)
    stored = StoredTensor(file, "x", dtype=torch.float32)
    assert int((~stored.load().isfinite()).sum()) == 2
    with pytest.raises(ModelError, match=rf"x in .* holds 2 of {value.numel():,} values"):
        replace(stored, finite=True).load()
    place = find_tensor(file, "x")
    assert place is not None
    with pytest.raises(ModelError, match="holds 2 of"):
        place.sha256(finite=True)


def test_a_file_that_is_cut_off_after_it_was_opened(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    save_file({"x": numbers((1000,), torch.float32)}, file)
    data = file.read_bytes()
    file.write_bytes(data[:-100])
    with pytest.raises(ModelError, match="ends before its tensors do"):
        StoredTensor(file, "x").load()
    file.write_bytes((1 << 40).to_bytes(8, "little") + data[8:])
    with pytest.raises(ModelError, match="is no whole safetensors file"):
        StoredTensor(file, "x").load()


def test_kinds_that_are_not_known_are_left_to_safetensors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, value = tmp_path / "model.safetensors", numbers((5, 3), torch.bfloat16)
    save_file({"x": value}, file)
    monkeypatch.delitem(tensor_file._DTYPES, "BF16")
    assert find_tensor(file, "x") is None
    assert torch.equal(StoredTensor(file, "x", dtype=torch.float32).load(), value.float())


def test_factors_along_both_axes(tmp_path: Path) -> None:
    """Some rows at a time, in float64, rounded once."""
    file, value = tmp_path / "model.safetensors", numbers((1000, 3), torch.float32)
    save_file({"x": value}, file)
    for axis, size in enumerate(value.shape):
        factors = torch.linspace(0.5, 2.0, size).double()
        found = ScaledTensor(StoredTensor(file, "x"), factors, axis, shift=1.0).load()
        along = factors[:, None] if axis == 0 else factors
        assert torch.equal(found, ((value.double() + 1) * along - 1).float())
