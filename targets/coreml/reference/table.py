"""docs/coreml-ops.md: which ops of MIL the reference interpreter runs, and which the emitter may write.

Run: python -m qcompile.targets.coreml.reference.table > docs/coreml-ops.md

The ops are those of coremltools' own registry for iOS 15 to 18. What the emitter may write is read from the
sources: a converter of ours, a converter of coremltools' PyTorch front end, or one of its passes names it.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qcompile.targets.coreml.reference.control import CONTROL
from qcompile.targets.coreml.reference.registry import operators
from qcompile.targets.coreml.tools import load_coremltools

_BUILT = re.compile(r"\b(?:mb|Builder)\.([a-z]\w*)")
_ASIDE = {"test", "tests", "reference"}
"""Folders that are not read: tests, and this interpreter."""
_OLDEST = 15
"""The iOS with the first ML Programs; coremltools calls older ops iOS 13's."""
_OURS, _FRONT_END, _PASSES = "qcompile", "the front end", "a pass"
_SPLIT = "is written as `write_state` and `read_state`"
_TORCH = "is coremltools' own, between its front end and its passes, which replace it"
_COMPLEX = "is coremltools' own for complex numbers, which a pass takes apart into real ones"


@dataclass(frozen=True)
class Row:
    """One op.

    Args:
        name: MIL's.
        since: The versions of iOS that defined it, oldest first.
        family: The module that computes it; ``None`` where the interpreter lacks it.
        written_by: Who may put it into a program; empty where nobody does.
    """

    name: str
    since: tuple[int, ...]
    family: str | None
    written_by: str


def rows() -> list[Row]:
    """Return the ops that a saved program may hold, by name."""
    written, known = _written(), operators()
    found = {name: _versions(classes) for name, classes in _registry().core_ops.items()}
    found = {name: since for name, since in found.items() if name not in absent()}
    found["write_state"] = (18,)  # in files alone: see coreml_update_state
    families = {name: op.family for name, op in known.items()} | dict.fromkeys(CONTROL, "control")
    return [
        Row(name, since, families.get(name), written.get(name, ""))
        for name, since in sorted(found.items())
    ]


def absent() -> dict[str, str]:
    """Return the ops of coremltools' registry that stand in no file, with the reason."""
    found = {"_const_symbolic": "is coremltools' own, for sizes that are not known yet"}
    for name in _registry().dialect_ops:
        if name.startswith("complex"):
            found[name] = _COMPLEX
        elif name.startswith("torch_"):
            found[name] = _TORCH
        elif name == "coreml_update_state":
            found[name] = _SPLIT
    return found


def _registry() -> Any:
    load_coremltools()
    from coremltools.converters.mil.mil.ops.registry import SSAOpRegistry

    return SSAOpRegistry


def _versions(classes: Mapping[Any, Any]) -> tuple[int, ...]:
    """Return the versions of iOS at which the definition is new."""
    found: dict[Any, int] = {}
    for target in sorted(classes):
        found.setdefault(classes[target], max(_OLDEST, int(target.name.removeprefix("iOS"))))
    return tuple(sorted(set(found.values())))


def _written() -> dict[str, str]:
    """Return who names an op, ours first."""
    mil = Path(load_coremltools().__file__).parent / "converters" / "mil"
    found: dict[str, str] = {}
    for place, who in (
        (Path(__file__).parents[1], _OURS),
        (mil / "frontend" / "torch", _FRONT_END),
        (mil / "frontend" / "_utils.py", _FRONT_END),
        (mil / "mil" / "passes" / "defs", _PASSES),
        (mil / "backend" / "mil", _PASSES),
    ):
        for name in _named(place):
            if who == _OURS or not name.startswith("constexpr_"):  # codes are ours alone
                found.setdefault(name, who)
    update = found.pop("coreml_update_state", _PASSES)
    return found | {"write_state": update, "const": _OURS}


def _named(place: Path) -> Iterator[str]:
    for file in [place] if place.is_file() else sorted(place.rglob("*.py")):
        parts = file.relative_to(place).parts
        if not _ASIDE & set(parts) and not file.name.startswith("test_"):
            yield from _BUILT.findall(file.read_text(encoding="utf-8"))


def text() -> str:
    """Return the document."""
    found = rows()
    runs = sum(row.family is not None for row in found)
    writes = sum(bool(row.written_by) for row in found)
    lines = [
        "# MIL ops",
        "",
        "Written by `python -m qcompile.targets.coreml.reference.table > docs/coreml-ops.md`; a test holds",
        "it to that.",
        "",
        f"A saved ML Program for iOS 15 to 18 may hold {len(found)} ops, by the registry of coremltools",
        f"{load_coremltools().__version__}. The reference interpreter runs {runs} of them; the emitter may",
        f"write {writes}: a converter of ours names them, or one of coremltools' PyTorch front end, or",
        "a pass of it. `since iOS` has the versions that defined an op or changed it; the interpreter",
        "takes each. `computed in` is a module of `targets/coreml/reference/ops/`, or `control.py` beside",
        "them.",
        "",
        "| op | since iOS | computed in | written by |",
        "| --- | --- | --- | --- |",
    ]
    for row in found:
        since = ", ".join(str(version) for version in row.since)
        lines.append(f"| `{row.name}` | {since} | {row.family or '-'} | {row.written_by or '-'} |")
    lines += ["", "## Not in the table", ""]
    lines += [f"- `{name}` {reason}." for name, reason in sorted(absent().items())]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.stdout.write(text())
