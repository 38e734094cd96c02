"""Gradle and Swift files of the example parse, as their grammars say; nothing here compiles them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import tree_sitter_kotlin
import tree_sitter_swift
from tree_sitter import Language, Node, Parser

from qcompile.compiler.matrix.read import parse

APP = Path(__file__).parents[2] / "examples" / "app"
PARSERS = {
    ".kts": Parser(Language(tree_sitter_kotlin.language())),
    ".swift": Parser(Language(tree_sitter_swift.language())),
}
FILES = sorted(
    f for folder in ("gradle", "swift") for s in PARSERS for f in (APP / folder).rglob(f"*{s}")
)


def has_errors(suffix: str, text: bytes) -> bool:
    def wrong(node: Node) -> bool:
        return node.is_error or node.is_missing or any(map(wrong, node.children))

    return wrong(PARSERS[suffix].parse(text).root_node)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_it_parses(file: Path) -> None:
    assert not has_errors(file.suffix, file.read_bytes())
    assert has_errors(file.suffix, file.read_bytes() + b"}")


def test_all_are_here() -> None:
    assert len(FILES) == 5


def test_the_builds_are_those_that_the_projects_name() -> None:
    file = APP / "qcompile.toml"
    names = {cell.name for cell in parse(file.read_text(), file).cells}
    texts = [f.read_text() for f in APP.rglob("*") if f.suffix in (".kts", ".swift")]
    used = {name for text in texts for name in re.findall(r"build/([\w-]+)\.qc", text)}
    assert used == {"digits-pixel-8", "digits-apple-a17-pro"}
    project = (APP / "cmake" / "CMakeLists.txt").read_text()
    target = re.search(r"set\(TARGET (\S+) CACHE", project)
    models = re.search(r"foreach\(model (.*)\)", project)
    assert target
    assert models
    used |= {f"{model}-{target[1]}" for model in models[1].split()}
    assert used <= names
    assert len(names) == 6
