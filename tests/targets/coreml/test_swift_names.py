"""Names and strings that a model brings are taken by Swift, and stay different ones."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import tree_sitter_swift
from hypothesis import given, settings
from hypothesis import strategies as st
from tree_sitter import Language, Parser

from qcompile.targets.coreml import swift_names

PARSER = Parser(Language(tree_sitter_swift.language()))


def is_swift(text: str) -> bool:
    return not PARSER.parse(text.encode()).root_node.has_error


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("mobilenet_v2", "MobilenetV2"),
        ("ResNet-50", "ResNet50"),
        ("3d unet", "Model3dUnet"),
        ("data", "DataNet"),
        ("self", "SelfNet"),
        ("\N{GREEK SMALL LETTER ALPHA}", "Model"),
    ],
)
def test_type_names(name: str, expected: str) -> None:
    assert swift_names.type_name(name) == expected


TEXT = st.text(st.characters(codec="utf-8"), max_size=12)
NAMES: Callable[..., Any] = st.lists(
    TEXT | st.sampled_from(["a b", "a_b", "a_b_2", "in"]), max_size=6
)


@settings(max_examples=20, deadline=None)
@given(NAMES)
def test_identifiers_are_swifts_and_differ(given_names: list[str]) -> None:
    found = swift_names.identifiers(given_names)
    assert len(set(found)) == len(given_names)
    members = "\n".join(f"    var {name}: Int" for name in found)
    assert is_swift(f"struct S {{\n{members}\n}}\n")
    assert all(name.isascii() and name.isidentifier() for name in found)


def test_no_identifier_is_a_keyword() -> None:
    """The grammar takes ``var in: Int``, which Swift refuses."""
    words = ["in", "self", "init", "Type", "default", "qcompileFeatures", "_"]
    assert swift_names.identifiers(words) == [f"{word}_" for word in words]
    assert swift_names.identifiers(["a.b", "a-b", "a_b_2"]) == ["a_b", "a_b_2", "a_b_2_2"]


@settings(max_examples=20, deadline=None)
@given(TEXT)
def test_literals_keep_the_text(text: str) -> None:
    literal = swift_names.literal(text)
    assert is_swift(f"let x = {literal}\n")
    pattern = r'\\u\{(\w+)\}|\\([\\"])|(.)'
    parts = re.findall(pattern, literal[1:-1], re.DOTALL)
    assert "".join(chr(int(code, 16)) if code else a or b for code, a, b in parts) == text
    assert literal.isprintable()
