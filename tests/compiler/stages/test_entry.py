"""Entries come back bit for bit, and no other bytes are taken for one."""

from __future__ import annotations

import math
from typing import Any

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from qcompile.compiler.stages.entry import Entry

DTYPES = (
    torch.float32, torch.float16, torch.float64, torch.int8, torch.uint8, torch.int64, torch.bool,
)  # fmt: skip
FACTS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@st.composite
def tensors(draw: st.DrawFn) -> Tensor:
    shape = draw(st.lists(st.integers(0, 4), max_size=3))
    seed = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    values = torch.randint(0, 2, shape, generator=seed)
    found = values.to(draw(st.sampled_from(DTYPES)))
    return found.t() if found.dim() == 2 and draw(st.booleans()) else found


@given(st.dictionaries(st.text("ab.", min_size=1), tensors(), max_size=4), FACTS)
def test_what_is_read_is_what_was_written(found: dict[str, Tensor], facts: Any) -> None:
    data = Entry(found, facts).pack()
    assert data == Entry(dict(reversed(found.items())), facts).pack()
    back = Entry.unpack(data)
    assert back is not None
    assert back.facts == facts
    assert back.tensors.keys() == found.keys()
    for name, value in found.items():
        assert back.tensors[name].dtype == value.dtype
        assert torch.equal(back.tensors[name], value)


def test_tensors_that_share_memory_and_infinite_figures() -> None:
    one = torch.arange(4.0)
    back = Entry.unpack(Entry({"a": one, "b": one[:2]}, {"db": math.inf}).pack())
    assert back is not None
    assert torch.equal(back.tensors["b"], one[:2])
    assert back.facts["db"] == math.inf


@given(st.data())
def test_damaged_bytes_are_no_entry(data: st.DataObject) -> None:
    whole = Entry({"a": torch.arange(3)}, {"k": 1}).pack()
    at = data.draw(st.integers(0, len(whole) - 1))
    changed = whole[:at] + bytes([whole[at] ^ data.draw(st.integers(1, 255))]) + whole[at + 1 :]
    assert Entry.unpack(changed) is None
    assert Entry.unpack(whole[:at]) is None
    assert Entry.unpack(whole + b"\n") is None
