"""The container: byte for byte what ``gguf.GGUFWriter`` writes, one tensor in memory at a time."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from torch import Tensor

from qcompile.compiler.ir.blocks.catalog import BLOCK_FORMATS
from qcompile.targets.gguf.container import StoredTensor, predicted_bytes, write_gguf
from qcompile.targets.gguf.fields import Typed

FIELDS: dict[str, Any] = {
    "general.architecture": "llama",
    "a.whole": 7,
    "a.number": 1e-5,
    "a.flag": True,
    "a.text": "Ж🙂",
    "a.words": ["", "b", b"\xff\xfe"],
    "a.integers": [-1, 2],
    "a.numbers": [0.5, -2.0],
    "a.flags": [True, False],
    "a.wide": Typed("u64", 1 << 40),
    "a.bytes": Typed("u8", [1, 2, 3]),
}


def values(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def stored(name: str, type_name: str, x: Tensor) -> StoredTensor:
    data = BLOCK_FORMATS[type_name].encode(x.reshape(-1, x.shape[-1]))
    return StoredTensor(name, tuple(x.shape), type_name, lambda: data)


TENSORS = [
    stored("norm.weight", "F32", values(5)),
    stored("matrix.weight", "Q4_K", values(3, 256)),
    stored("odd.weight", "F16", values(3, 5)),
    stored("experts.weight", "Q8_0", values(2, 3, 32)),
]


def reference(file: Path) -> Path:
    """Write the same with the gguf package."""
    writer = gguf.GGUFWriter(file, "llama")
    for key, value in list(FIELDS.items())[1:]:
        if isinstance(value, Typed) and isinstance(value.value, list):
            kinds = (gguf.GGUFValueType.ARRAY, gguf.GGUFValueType.UINT8)
            writer.add_key_value(key, value.value, *kinds)
        elif isinstance(value, Typed):
            writer.add_uint64(key, value.value)
        elif isinstance(value, list):
            writer.add_array(key, value)
        else:
            kind = {int: "uint32", float: "float32", bool: "bool", str: "string"}[type(value)]
            getattr(writer, f"add_{kind}")(key, value)
    for tensor in TENSORS:
        rows = tensor.data()
        assert isinstance(rows, Tensor)
        kind = gguf.GGMLQuantizationType[tensor.type_name]
        shape = (*tensor.shape[:-1], rows.shape[-1])
        writer.add_tensor(tensor.name, rows.reshape(shape).numpy(), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def test_the_bytes_are_the_gguf_packages(tmp_path: Path) -> None:
    file = tmp_path / "ours.gguf"
    write_gguf(file, FIELDS, TENSORS)
    assert file.read_bytes() == reference(tmp_path / "theirs.gguf").read_bytes()
    assert file.stat().st_size == predicted_bytes(FIELDS, TENSORS)


def test_the_gguf_package_reads_what_was_written(tmp_path: Path) -> None:
    file = tmp_path / "ours.gguf"
    write_gguf(file, FIELDS, TENSORS)
    reader = gguf.GGUFReader(file)
    assert reader.fields["a.wide"].contents() == 1 << 40
    assert reader.fields["a.text"].contents() == "Ж🙂"
    for mine, theirs in zip(TENSORS, reader.tensors, strict=True):
        rows = mine.data()
        assert isinstance(rows, Tensor)
        decoded = gguf.quants.dequantize(theirs.data, theirs.tensor_type).reshape(mine.shape)
        expected = BLOCK_FORMATS[mine.type_name].decode(rows).reshape(mine.shape)
        np.testing.assert_array_equal(decoded, expected.numpy())


def test_rows_may_come_in_runs_and_are_dropped_when_written(tmp_path: Path) -> None:
    alive: list[weakref.ref[Tensor]] = []

    def runs() -> Iterator[Tensor]:
        for number in range(8):
            assert sum(run() is not None for run in alive) <= 1, "the last run alone is kept"
            run = torch.full((64, 512), number, dtype=torch.uint8)
            alive.append(weakref.ref(run))
            yield run
            del run

    tensors = [StoredTensor(f"t{i}.weight", (512, 128), "F32", runs) for i in range(2)]
    write_gguf(tmp_path / "runs.gguf", {}, tensors)
    last = gguf.GGUFReader(tmp_path / "runs.gguf").tensors[1]
    found = np.asarray(last.data).view(np.uint8).reshape(8, -1)
    np.testing.assert_array_equal(found, np.arange(8)[:, None].repeat(found.shape[1], 1))


def test_each_tensor_is_asked_for_when_its_turn_has_come(tmp_path: Path) -> None:
    order = []

    def data(name: str) -> Tensor:
        order.append(f"read {name}")
        return torch.zeros(1, 8, dtype=torch.uint8)

    tensors = [StoredTensor(n, (1, 2), "F32", lambda n=n: data(n)) for n in "ab"]
    assert predicted_bytes({}, tensors) > 0
    assert order == []
    write_gguf(tmp_path / "x.gguf", {}, tensors, lambda t: order.append(f"wrote {t.name}"))
    assert order == ["read a", "wrote a", "read b", "wrote b"]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (-1, "argument out of range|'I' format|format requires"),
        (1 << 32, "format requires"),
        (1e300, "too large"),
        ([], "an empty list has no type"),
        ([1, "a"], "one type, not i32, str"),
        (None, "a NoneType is none of"),
        (Typed("u128", 1), "u128"),
    ],
)
def test_a_value_that_cannot_be_stored_is_refused(value: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"(?s)the field 'key' cannot be stored.*({message})"):
        write_gguf(tmp_path / "x.gguf", {"key": value}, [])


def test_data_that_is_not_what_the_table_says_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "x.gguf"
    short = StoredTensor("w", (2, 2), "F32", lambda: torch.zeros(1, 8, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"w: \[2, 2\] in F32 is 16 bytes, and 8 were given"):
        write_gguf(file, {}, [short])
    numbers = StoredTensor("w", (2, 2), "F32", lambda: torch.zeros(2, 2))
    with pytest.raises(ValueError, match=r"not torch\.float32"):
        write_gguf(file, {}, [numbers])
    with pytest.raises(ValueError, match=r"named twice: \['w'\].*axes: \['x'\]"):
        write_gguf(file, {}, [short, short, StoredTensor("x", (1,) * 5, "F32", short.data)])
