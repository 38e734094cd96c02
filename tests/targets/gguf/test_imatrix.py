"""Importance matrices against the ``gguf`` package and libggml, and files that are none."""

from __future__ import annotations

import ctypes
import re
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qcompile.compiler.ir.errors import CalibrationError
from qcompile.targets.gguf.imatrix import Imatrix, check_fits, read_imatrix, write_imatrix

DENSE, EXPERTS = "blk.0.attn_q.weight", "blk.0.ffn_up_exps.weight"


def _imatrix() -> Imatrix:
    random = np.random.default_rng(0)
    values = {EXPERTS: random.random((3, 5)), DENSE: random.random((1, 64)) * 100}
    return Imatrix(
        {name: v.astype(np.float32) for name, v in values.items()},
        {EXPERTS: np.array([7, 1, 2000], np.float32), DENSE: np.array([2560], np.float32)},
        256,
        10,
        ("kalibrierung ü.txt", "b"),
    )


def _legacy(
    entries: Mapping[str, tuple[int, np.ndarray]],
    tail: bytes | None = None,
    count: int | None = None,
) -> bytes:
    """Write the older layout as FORMATS A.1.7 says."""
    data = struct.pack("<i", len(entries) if count is None else count)
    for name, (calls, values) in entries.items():
        data += struct.pack("<i", len(name)) + name.encode()
        data += struct.pack("<ii", calls, len(values)) + values.astype("<f4").tobytes()
    return data + (struct.pack("<ii", 10, 5) + b"a.txt" if tail is None else tail)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    write_imatrix(tmp_path / "i.gguf", _imatrix())
    return tmp_path / "i.gguf"


def test_the_gguf_package_reads_what_is_written(file: Path) -> None:
    gguf = pytest.importorskip("gguf")
    reader, made = gguf.GGUFReader(file), _imatrix()
    fields = {n: f.contents() for n, f in reader.fields.items() if not n.startswith("GGUF.")}
    assert fields == {
        "general.type": "imatrix",
        "imatrix.datasets": list(made.datasets),
        "imatrix.chunk_count": 10,
        "imatrix.chunk_size": 256,
    }
    found = {t.name: t.data for t in reader.tensors}
    assert list(found) == [
        name + end for name in (DENSE, EXPERTS) for end in (".in_sum2", ".counts")
    ]
    for name, value in made.values.items():
        count = made.counts[name]
        assert found[f"{name}.counts"].ravel().tolist() == count.tolist()
        means = found[f"{name}.in_sum2"].reshape(value.shape) / count[:, None]
        np.testing.assert_allclose(means, value, rtol=1e-6)


def test_libggml_writes_the_same_bytes(file: Path, tmp_path: Path) -> None:
    """It reads the file and writes what it read with the calls of llama-imatrix."""
    llama = pytest.importorskip("llama_cpp")
    ggml = ctypes.CDLL(str(next((Path(llama.__file__).parent / "lib").glob("libggml-base.*"))))
    pointer = ctypes.c_void_p
    ggml.gguf_init_from_file.argtypes = [ctypes.c_char_p, _Parameters]
    ggml.gguf_set_kv.argtypes = ggml.gguf_add_tensor.argtypes = [pointer, pointer]
    ggml.ggml_get_next_tensor.argtypes = [pointer, pointer]
    ggml.ggml_get_first_tensor.argtypes = [pointer]
    ggml.gguf_write_to_file.argtypes = [pointer, ctypes.c_char_p, ctypes.c_bool]
    for name in ("gguf_init_from_file", "gguf_init_empty"):
        getattr(ggml, name).restype = pointer
    for name in ("ggml_get_first_tensor", "ggml_get_next_tensor"):
        getattr(ggml, name).restype = pointer
    context = pointer()
    read = ggml.gguf_init_from_file(str(file).encode(), _Parameters(False, ctypes.pointer(context)))
    assert read
    made = ggml.gguf_init_empty()
    ggml.gguf_set_kv(made, read)
    tensor = ggml.ggml_get_first_tensor(context)  # the data of all of them
    while tensor := ggml.ggml_get_next_tensor(context, tensor):
        ggml.gguf_add_tensor(made, tensor)
    assert ggml.gguf_write_to_file(made, str(tmp_path / "again").encode(), False)
    assert (tmp_path / "again").read_bytes() == file.read_bytes()


class _Parameters(ctypes.Structure):
    _fields_ = (("no_alloc", ctypes.c_bool), ("ctx", ctypes.POINTER(ctypes.c_void_p)))


def test_what_is_written_is_read(file: Path, tmp_path: Path) -> None:
    made, found = _imatrix(), read_imatrix(file)
    assert (found.chunk_size, found.chunk_count, found.datasets) == (256, 10, made.datasets)
    for name, value in made.values.items():
        np.testing.assert_allclose(found.values[name], value, rtol=2e-7)
        np.testing.assert_array_equal(found.counts[name], made.counts[name])
    write_imatrix(tmp_path / "b.gguf", _imatrix())
    assert (tmp_path / "b.gguf").read_bytes() == file.read_bytes()


def test_files_of_the_gguf_package(tmp_path: Path) -> None:
    """Fields of every type, another alignment, an expert that saw nothing."""
    gguf = pytest.importorskip("gguf")
    file = tmp_path / "g.gguf"
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_type("imatrix")
    writer.add_custom_alignment(64)
    writer.add_array("x.floats", [1.5, 2.5])
    writer.add_array("x.words", ["a", "b"])
    writer.add_bool("x.bool", True)
    writer.add_float64("x.double", 1.5)
    writer.add_uint32("imatrix.chunk_size", 128)
    sums = np.arange(8, dtype=np.float32).reshape(2, 4)
    writer.add_tensor(f"{EXPERTS}.in_sum2", sums)
    writer.add_tensor(f"{EXPERTS}.counts", np.array([[2.0], [0.0]], np.float32))
    for step in ("header", "kv_data", "tensors"):
        getattr(writer, f"write_{step}_to_file")()
    writer.close()
    found = read_imatrix(file)
    assert found.values[EXPERTS].tolist() == [[0, 0.5, 1, 1.5], [1, 1, 1, 1]]
    assert found.unvisited == {EXPERTS: 1}
    assert (found.chunk_size, found.chunk_count, found.datasets) == (128, 0, ())


@pytest.mark.parametrize("tail", [None, b""])
def test_the_older_layout(tmp_path: Path, tail: bytes | None) -> None:
    values = np.array([1.0, 2.0, 4.0, 8.0, 0.0, 3.0], np.float32)
    file = tmp_path / "a.dat"
    file.write_bytes(_legacy({DENSE: (4, values), EXPERTS: (2, values)}, tail))
    found = read_imatrix(file)
    np.testing.assert_array_equal(found.weights(DENSE, 6), values[None] / 4)
    np.testing.assert_array_equal(found.weights(EXPERTS, 3), values.reshape(2, 3) / 2)
    assert found.datasets == (("a.txt",) if tail is None else ())
    check_fits(found, {DENSE: 6, EXPERTS: 3})
    with pytest.raises(CalibrationError, match=r"attn_q\.weight \(6, not 3\)"):
        check_fits(found, {DENSE: 3, EXPERTS: 3})
    write_imatrix(tmp_path / "a.gguf", found)
    np.testing.assert_array_equal(
        read_imatrix(tmp_path / "a.gguf").values[DENSE], found.values[DENSE]
    )


def test_an_imatrix_of_another_model() -> None:
    made = _imatrix()
    check_fits(made, {DENSE: 64})
    check_fits(made, {DENSE: 64, EXPERTS: 5})
    with pytest.raises(CalibrationError) as found:
        check_fits(made, {"a": 1, DENSE: 128, "b": 2, EXPERTS: 15}, "i.gguf")
    assert str(found.value) == (
        "i.gguf is of another model: it has nothing for a, b; other widths: "
        "blk.0.attn_q.weight (64, not 128), blk.0.ffn_up_exps.weight (5, not 15); make one from this "
        "model (qcompile imatrix), or give --calibrate instead"
    )


ONE = np.ones(4, np.float32)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "nothing: it is empty"),
        (b"GG", "announces 4 more at byte 0"),
        (b"hello, this is a text of some length", "it is cut off"),
        (struct.pack("<i", 0), "0 entries"),
        (_legacy({DENSE: (1, ONE)})[:-20], "it is cut off, or another kind of file"),
        (_legacy({DENSE: (1, ONE)}, count=2), "it is cut off"),
        (_legacy({DENSE: (1, ONE)}) + b"x", "1 bytes after its end"),
        (_legacy({DENSE: (0, ONE)}), "without values"),
        (_legacy({DENSE: (1, ONE * np.nan)}), "negative or not finite for blk.0.attn_q.weight"),
        (_legacy({DENSE: (1, -ONE)}), "negative or not finite for blk.0.attn_q.weight"),
        (b"GGUF" + struct.pack("<IQQ", 3, 1 << 60, 0), "it is cut off"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1 << 60), "it is cut off"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "GGUF of version 50331648, not 2 or 3"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 0), "GGUF of type 'model', with no tensor"),
    ],
)
def test_files_that_are_none(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(CalibrationError, match=re.escape(message)) as found:
        read_imatrix(tmp_path / "x")
    assert "\n" not in str(found.value)


def test_a_model_is_no_imatrix(language_gguf: Path, tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="it holds GGUF of type 'model'"):
        read_imatrix(language_gguf)
    with pytest.raises(CalibrationError, match="does not exist"):
        read_imatrix(tmp_path / "none")


@settings(max_examples=15)
@given(st.data())
def test_damage_is_refused_or_harmless(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("damage")
    write_imatrix(folder / "a", _imatrix())
    (folder / "b").write_bytes(_legacy({DENSE: (4, ONE), EXPERTS: (2, ONE)}))
    for name in "ab":
        file = folder / name
        whole = file.read_bytes()
        file.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 33))])
        with pytest.raises(CalibrationError):
            read_imatrix(file)
        changed = bytearray(whole)
        for _ in range(3):
            changed[data.draw(st.integers(0, min(400, len(whole) - 1)))] = data.draw(
                st.sampled_from([0, 1, 9, 127, 255])
            )
        file.write_bytes(changed)
        _read_or_refuse(file)


def _read_or_refuse(file: Path) -> Any:
    try:
        return read_imatrix(file)
    except CalibrationError as error:
        assert "\n" not in str(error)  # noqa: PT017
        return None
