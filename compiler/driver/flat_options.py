"""What the command line and ``qcompile.toml`` say of a build, by the flags' names -> ``BuildOptions``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from qcompile.compiler.driver.budget import Budget
from qcompile.compiler.driver.options import BuildOptions
from qcompile.targets.formats import is_directory
from qcompile.targets.options import BlockOptions, Tuning, WeightOptions

_PATHS = ("dump_ir", "imatrix", "plan", "save_plan", "tune_database")


def build_options(model: str, flags: Mapping[str, Any]) -> BuildOptions:
    """Return what flags say, in the driver's words; what is left out is the default.

    Args:
        model: MODEL: a language model's directory becomes a GGUF file if no flag says otherwise.
        flags: By name with underscores; ``tensor_type`` is pairs of an expression and a type.
    """
    given = {name: value for name, value in flags.items() if value is not None}
    given |= {name: Path(given[name]) for name in _PATHS if name in given}
    if is_directory(model, given["target"]):
        given.setdefault("format", "gguf")
    types = tuple((expression, kind) for expression, kind in given.pop("tensor_type", ()))
    grouped: dict[str, Any] = {
        "keep_float": frozenset(given.pop("ignore", ())),
        "weights": WeightOptions(**_taken(given, WeightOptions)),
        "blocks": BlockOptions(types, **_taken(given, BlockOptions)),
        "budget": Budget(**_taken(given, Budget)),
        "tuning": Tuning(given.pop("tune", 0), given.pop("tune_database", None)),
        "plan_file": given.pop("plan", None),
    }
    return BuildOptions(**grouped, **given)


def _taken(given: dict[str, Any], kind: type) -> dict[str, Any]:
    """Take those flags that are fields of a dataclass."""
    return {f.name: given.pop(f.name) for f in fields(kind) if f.name in given}
