"""Arrays in files, and how outputs are compared."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from qcompile.runtime.errors import BundleError
from qcompile.runtime.vectors import compare, read_arrays, save_arrays

some = arrays.arrays(
    st.sampled_from([np.float32, np.float16, np.uint8, np.int64, np.bool_]),
    arrays.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4),
)
named = st.dictionaries(st.from_regex(r"[a-z_]{1,8}", fullmatch=True), some, min_size=1, max_size=3)


@given(named)
def test_the_bytes_depend_on_the_arrays_alone(
    tmp_path_factory: pytest.TempPathFactory, data: dict[str, np.ndarray]
) -> None:
    folder = tmp_path_factory.mktemp("npz")
    save_arrays(folder / "a.npz", data)
    save_arrays(folder / "b.npz", dict(reversed(data.items())))
    assert (folder / "a.npz").read_bytes() == (folder / "b.npz").read_bytes()
    found = read_arrays(folder / "a.npz")
    assert found.keys() == data.keys()
    for name, value in data.items():
        np.testing.assert_array_equal(found[name], value)
        assert found[name].dtype == value.dtype


@pytest.mark.parametrize("content", [b"", b"PK\3\4 cut", b"\x93NUMPY", b"text", b"PK"])
def test_damaged_files(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.npz").write_bytes(content)
    with pytest.raises(BundleError, match=r"x.npz cannot be read"):
        read_arrays(tmp_path / "x.npz")


def test_files_of_another_kind(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros(3))
    with pytest.raises(BundleError, match="is an array without a name"):
        read_arrays(tmp_path / "x.npy")
    np.savez(tmp_path / "x.npz", x=np.array([{}], dtype=object))
    with pytest.raises(BundleError, match="objects are never loaded"):
        read_arrays(tmp_path / "x.npz")
    with pytest.raises(BundleError, match="No such file"):
        read_arrays(tmp_path / "nowhere.npz")


def test_compare() -> None:
    expected = np.array([3.0, 4.0], np.float32)
    assert compare("y", expected, expected.copy(), 30).sqnr_db is None
    near = compare("y", expected, expected + np.float32(0.05), 30)
    assert near.sqnr_db == pytest.approx(10 * np.log10(25 / (2 * 0.05**2)), abs=1e-4)
    assert near.largest == pytest.approx(0.05, abs=1e-6)
    assert near.passed
    assert not compare("y", expected, expected + np.float32(0.05), 40).passed
    with pytest.raises(BundleError, match="'y' has shape"):
        compare("y", expected, expected[:1], 30)


def test_infinities_must_stand_where_they_stood() -> None:
    expected = np.array([1.0, -np.inf, np.nan])
    assert compare("y", expected, expected.copy(), 30).passed
    for index in range(3):
        other = expected.copy()
        other[index] = np.inf
        assert not compare("y", expected, other, 30).passed
    assert compare("y", np.float32(2), np.float32(2), 30).passed
