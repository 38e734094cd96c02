"""A manifest survives being written and read; equal manifests have equal bytes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qcompile.runtime.errors import BundleError
from qcompile.runtime.manifest import DTYPES, FileInfo, Manifest, TensorInfo

words = st.text(max_size=12)
paths = st.from_regex(r"[a-z]{1,8}(/[a-z.]{1,8}[a-z]){0,2}", fullmatch=True)
numbers = st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False)
values = st.recursive(
    st.none() | st.booleans() | numbers | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=8,
)
tables = st.dictionaries(words, values, max_size=3)
rows = st.lists(tables, max_size=2).map(tuple)
sizes = st.lists(st.integers(0, 2**40) | words, max_size=4).map(tuple)
tensors = st.lists(
    st.builds(TensorInfo, words, st.sampled_from(sorted(DTYPES)), sizes), max_size=2
).map(tuple)
files = st.dictionaries(paths, st.builds(FileInfo, st.integers(0, 2**40), words), max_size=3)
manifests = st.builds(
    Manifest, name=words, target=words, format=words, precision=words, artifact=paths,
    engine=tables, inputs=tensors, outputs=tensors, files=files, tools=tables, model=tables,
    calibration=tables, options=tables, passes=rows, layers=rows, activations=rows, floats=rows,
    parity=tables, quality=tables, sizes=tables, gates=rows,
)  # fmt: skip


@given(manifests)
def test_round_trip(manifest: Manifest) -> None:
    text = manifest.to_json()
    found = Manifest.from_json(text)
    assert found == manifest
    assert found.to_json() == text


@given(st.text() | values.map(repr))
def test_other_text_is_refused(text: str) -> None:
    with pytest.raises(BundleError):
        Manifest.from_json(text)
