"""Line and column of each key and value of a TOML document, which ``tomllib`` does not tell.

The scanner trusts that ``tomllib`` has taken the document: it finds tokens, and does not judge them.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field

Key = tuple[str | int, ...]
_BLANK = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_STRING = re.compile(
    r'"""(?:\\.|[^\\])*?"{3,5}|\'\'\'.*?\'{3,5}|"(?:\\.|[^"\\])*"|\'[^\']*\'', re.S
)
_WORD = re.compile(r"[A-Za-z0-9_-]+")
_BARE = re.compile(r"[^,\]}#\r\n]+")


def positions(text: str) -> Mapping[Key, tuple[int, int]]:
    """Return line and column, from 1, of each key, and of each element of an array by its index."""
    return _Scanner(text).run()


@dataclass
class _Scanner:
    text: str
    at: int = 0
    found: dict[Key, tuple[int, int]] = field(default_factory=dict)
    counts: dict[Key, int] = field(default_factory=dict)

    def run(self) -> dict[Key, tuple[int, int]]:
        table: Key = ()
        self.blank()
        while self.at < len(self.text):
            table = self.header() if self.text[self.at] == "[" else self.pair(table)
            self.blank()
        return self.found

    def header(self) -> Key:
        """Read ``[a.b]`` or ``[[a.b]]``; return what its pairs belong to."""
        start, many = self.at, self.text.startswith("[[", self.at)
        self.at += 2 if many else 1
        key = self.inside(self.words())
        self.at = self.text.index("]", self.at) + (2 if many else 1)
        if many:
            self.counts[key] = self.counts.get(key, -1) + 1
            self.note(key, start)
            key = (*key, self.counts[key])
        self.note(key, start)
        return key

    def inside(self, words: list[str]) -> Key:
        """Return the key of a header: of an array of tables its last one is meant."""
        key: Key = ()
        for word in words[:-1]:
            key = (*key, word)
            key = (*key, self.counts[key]) if key in self.counts else key
        return (*key, words[-1])

    def pair(self, table: Key) -> Key:
        """Read ``a.b = value``."""
        start, key = self.at, table
        for word in self.words():
            key = (*key, word)
            self.note(key, start)
        self.at = self.text.index("=", self.at) + 1
        self.blank()
        self.value(key)
        return table

    def words(self) -> list[str]:
        words = []
        while True:
            self.blank()
            quoted = _STRING.match(self.text, self.at)
            found = quoted or _WORD.match(self.text, self.at)
            assert found is not None
            words.append(tomllib.loads(f"x = {found[0]}")["x"] if quoted else found[0])
            self.at = found.end()
            self.blank()
            if not self.text.startswith(".", self.at):
                return words
            self.at += 1

    def value(self, key: Key) -> None:
        opening = self.text[self.at]
        if opening == "[":
            self.items(key, "]")
        elif opening == "{":
            self.items(key, "}")
        else:
            found = _STRING.match(self.text, self.at) or _BARE.match(self.text, self.at)
            assert found is not None
            self.at = found.end()

    def items(self, key: Key, closing: str) -> None:
        """Read what an array or an inline table holds."""
        self.at += 1
        index = 0
        while True:
            self.blank()
            if self.text[self.at] == closing:
                self.at += 1
                return
            if self.text[self.at] == ",":
                self.at += 1
            elif closing == "}":
                self.pair(key)
            else:
                self.note((*key, index), self.at)
                self.value((*key, index))
                index += 1

    def blank(self) -> None:
        found = _BLANK.match(self.text, self.at)
        assert found is not None
        self.at = found.end()

    def note(self, key: Key, at: int) -> None:
        line = self.text.count("\n", 0, at) + 1
        self.found.setdefault(key, (line, at - self.text.rfind("\n", 0, at)))
