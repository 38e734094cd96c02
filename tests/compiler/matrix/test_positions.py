"""Places of keys, compared with documents of other people's making."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qcompile.compiler.matrix.positions import Key, positions

ROOT = Path(__file__).parents[3]
FILES = [ROOT / "pyproject.toml", *sorted((ROOT / "targets" / "devices").glob("*.toml"))]


def keys(data: Any, path: Key = ()) -> Iterator[Key]:
    """Give each key of a document, and each index of a list."""
    items = (
        data.items()
        if isinstance(data, dict)
        else enumerate(data)
        if isinstance(data, list)
        else ()
    )
    for key, value in items:
        yield (*path, key)
        yield from keys(value, (*path, key))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_each_key_is_where_it_is_said(file: Path) -> None:
    text = file.read_text()
    lines, found = text.split("\n"), positions(text)
    for key in keys(tomllib.loads(text)):
        if key not in found:
            assert any(place[: len(key)] == key for place in found), key  # [a.b] says a too
            continue
        line, column = found[key]
        if isinstance(key[-1], str):
            assert key[-1] in lines[line - 1][column - 1 :], key


_NAMES = st.from_regex(r"[A-Za-z0-9_-]{1,5}", fullmatch=True)
_TEXTS = st.text(st.sampled_from("ab ],}[{#='"), max_size=6)
_VALUES = st.one_of(
    st.integers(-9, 9).map(str),
    st.just("true"),
    st.just("1979-05-27 07:32:00"),
    _TEXTS.map(lambda t: '"' + t.replace('"', "") + '"'),
    _TEXTS.map(lambda t: f"'''\n{t.replace(chr(39), '')}\n'''"),
    st.lists(_TEXTS.map(lambda t: f'"{t}"'), max_size=3).map(
        lambda v: "[" + " ,\n # ]\n".join(v) + "]"
    ),
)


@given(st.dictionaries(_NAMES, st.dictionaries(_NAMES, _VALUES, max_size=4), max_size=4))
def test_any_document(tables: dict[str, dict[str, str]]) -> None:
    text, expected = "", {}
    for name, pairs in tables.items():
        expected[(name,)] = (text.count("\n") + 1, 1)
        text += f"[{name}]\n"
        for key, value in pairs.items():
            expected[(name, key)] = (text.count("\n") + 1, 3)
            text += f"  {key} = {value} # [x]\n"
    assert set(keys(tomllib.loads(text))) >= set(expected)
    found = positions(text)
    assert {key: found[key] for key in expected} == expected
    assert {key for key in found if len(key) < 3} == set(expected)


def test_inline_tables_and_arrays_of_tables() -> None:
    text = 'a = [{ b = 1, "c.d" = [2] },\n  { e.f = 3 }]\n[[g]]\nh = 1\n[g.i]\n[[g]]\nh = 2\n'
    assert positions(text) == {
        ("a",): (1, 1), ("a", 0): (1, 6), ("a", 0, "b"): (1, 8), ("a", 0, "c.d"): (1, 15),
        ("a", 0, "c.d", 0): (1, 24), ("a", 1): (2, 3), ("a", 1, "e"): (2, 5), ("a", 1, "e", "f"): (2, 5),
        ("g",): (3, 1), ("g", 0): (3, 1), ("g", 0, "h"): (4, 1), ("g", 0, "i"): (5, 1),
        ("g", 1): (6, 1), ("g", 1, "h"): (7, 1),
    }  # fmt: skip
