"""What each format of each weight of a language model would do: measured once, kept for a resumed build."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from qcompile.compiler.driver.plan import Damages
from qcompile.compiler.ir.errors import UnsupportedError
from qcompile.passes.calibration.samples import Samples
from qcompile.passes.calibration.way_back import WayBack
from qcompile.passes.mixed_precision.block_damage import BlockDamage
from qcompile.passes.mixed_precision.cotangents import drawn_labels
from qcompile.targets.plans import TensorChoices

if TYPE_CHECKING:
    from qcompile.compiler.driver.build import Build

TOKENS = 16_384
"""Of the calibration data on which damage is measured."""
FILE = "damage.json"


def measure_damage(work: Build, choices: Sequence[TensorChoices], max_bytes: int) -> Damages:
    """Return what each format of each weight would do.

    Args:
        work: With its float graph and calibration data.
        choices: Whose formats are tried.
        max_bytes: Activations in memory.

    Raises:
        UnsupportedError: Weights whose damage cannot be measured.
    """
    assert work.graph is not None
    assert work.samples is not None
    formats = {source: choice.formats for choice in choices for source in choice.sources}
    known = _known(work.folder / FILE)
    visitor = BlockDamage(work.graph, formats, known, _keeping(work.folder / FILE, dict(known)))
    if missing := sorted(formats.keys() - known.keys() - visitor.weights):
        raise UnsupportedError(
            f"{len(missing)} weights, {missing[0]} the first, are read by no layer whose errors can be "
            "measured yet: give them a type with --tensor-type, or build a precision without a budget"
        )
    if visitor.watched:
        samples = some_sequences(work.samples, TOKENS)
        WayBack(work.graph, samples, drawn_labels, max_bytes, work.progress.share).run(visitor)
    return visitor.found


def some_sequences(samples: Samples, tokens: int) -> Samples:
    """Return sequences at equal distances, about so many tokens, one in each batch."""
    rows = [
        {name: value[i : i + 1] for name, value in batch.items()}
        for batch in samples
        for i in range(len(next(iter(batch.values()))))
    ]
    length = next(iter(rows[0].values())).numel()
    wanted = max(1, min(len(rows), tokens // length))
    picked = [rows[int(i)] for i in np.linspace(0, len(rows) - 1, wanted).round()]
    return Samples(picked, wanted, samples.source)


def _known(file: Path) -> dict[str, Mapping[str, float]]:
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def _keeping(file: Path, known: dict[str, Mapping[str, float]]) -> Any:
    """Return what adds a weight's results to a file, which is whole at any moment."""

    def keep(name: str, found: Mapping[str, float]) -> None:
        known[name] = found
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_suffix(".part")
        part.write_text(json.dumps(known, sort_keys=True), encoding="utf-8")
        part.replace(file)

    return keep
