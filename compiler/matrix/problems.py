"""What is wrong with a file, a line each: where, what, and what would be possible."""

from __future__ import annotations

import difflib
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError

from qcompile.compiler.ir.errors import ProjectError
from qcompile.compiler.matrix.positions import Key

_KINDS = {
    "string_type": "a text",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "list_type": "a list",
    "dict_type": "a table",
    "model_type": "a table",
    "model_attributes_type": "a table",
}
_NAMES = {bool: "true or false", int: "a whole number", float: "a number", str: "a text",
          list: "a list", dict: "a table"}  # fmt: skip


@dataclass
class Problems:
    """What is wrong with a file, so that all of it can be told at once.

    Args:
        file: As the user named it.
        places: Line and column of keys.
        found: Line, column and sentence.
    """

    file: str
    places: Mapping[Key, tuple[int, int]]
    found: list[tuple[int, int, str]] = field(default_factory=list)

    def add(self, key: Key, text: str) -> None:
        """Note what is wrong with a key, or with the nearest table around it that is written out."""
        while key and key not in self.places:
            key = key[:-1]
        self.found.append((*self.places.get(key, (1, 1)), text))

    def check(self) -> None:
        """Raise if there is anything.

        Raises:
            ProjectError: A line each, in the file's order.
        """
        if self.found:
            rows = sorted(set(self.found))
            raise ProjectError(
                "\n".join(f"{self.file}:{row}:{col}: {text}" for row, col, text in rows)
            )


def nearest(word: str, known: Iterable[str]) -> str:
    """Return what a word may have been meant to be, as the end of a sentence."""
    words = sorted(known)
    close = difflib.get_close_matches(word, words, n=1, cutoff=0.5)
    return f"nearest: {close[0]}" if close else f"there are: {', '.join(words) or 'none'}"


def explain(
    error: ValidationError, kind: type[BaseModel], problems: Problems, known: Container[Key] = ()
) -> None:
    """Note each thing that pydantic found, but for keys whose values are known to be wrong."""
    for row in error.errors(include_url=False):
        if place(row) not in known:
            problems.add(place(row), _sentence(row, kind))


def place(row: Any) -> Key:
    """Return the key that an error of pydantic's is of."""
    path: Key = row["loc"]
    return path[:-1] if path[-1] == "[key]" else path


def _sentence(row: Any, kind: type[BaseModel]) -> str:
    path, value, code = place(row), row["input"], row["type"]
    name = dotted(path)
    if code == "extra_forbidden":
        table = dotted(path[:-1])
        where = f"[{table}] has" if table else "there is"
        return f"{where} no key {path[-1]!r}; {nearest(str(path[-1]), _keys(kind, path[:-1]))}"
    if code == "missing":
        return f"[{dotted(path[:-1])}] has no {path[-1]!r}, and needs it"
    if code in _KINDS:
        given = _NAMES.get(type(value), type(value).__name__)
        text = f"{name} is {value!r}, {given}, and must be {_KINDS[code]}"
        return f"{text}: [{value!r}]" if code == "list_type" and isinstance(value, str) else text
    if code == "literal_error":
        return f"{name} is {value!r}, and must be {row['ctx']['expected']}"
    if code == "string_pattern_mismatch":
        return f"{name}: {value!r} is no name: letters, digits and . _ + - after a letter or digit"
    if code == "string_too_short":
        return f"{name} is empty"
    if code == "value_error":
        return f"{name}: {row['ctx']['error']}"
    return f"{name} is {value!r}: {row['msg'][0].lower()}{row['msg'][1:]}"


def dotted(path: Sequence[str | int]) -> str:
    """Return a key as a user writes it, ``matrix.exclude[0].model``."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text


def _keys(kind: Any, path: Sequence[str | int]) -> list[str]:
    """Return the keys of the table at a path."""
    for part in path:
        fields = (
            {f.alias or name: f for name, f in kind.model_fields.items()} if _is_table(kind) else {}
        )
        kind = fields[str(part)].annotation if part in fields else _element(kind)
    kind = kind if _is_table(kind) else _element(kind)
    return [f.alias or name for name, f in kind.model_fields.items()] if _is_table(kind) else []


def _is_table(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _element(kind: Any) -> Any:
    """Return the type of what a list or a mapping holds."""
    return get_args(kind)[-1] if get_origin(kind) in (list, dict) else kind
