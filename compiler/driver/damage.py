"""What each format of each weight of a language model would do: measured once, kept in the user's cache.

The cache's file is named by all that the damage depends on: weights, configuration, calibration data. So
builds that differ in their limits alone share it, and a killed one goes on where it stopped. For other
models see ``weight_damages.py``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from qcompile.compiler.driver.problem import Damages
from qcompile.compiler.ir.blocks.format import BlockFormat
from qcompile.compiler.ir.errors import OutputError, UnsupportedError
from qcompile.passes.calibration.samples import Samples
from qcompile.passes.calibration.way_back import WayBack
from qcompile.passes.mixed_precision.block_damage import BlockDamage, Told
from qcompile.passes.mixed_precision.cotangents import drawn_labels
from qcompile.targets.cache import cache_root, digest
from qcompile.targets.plans import TensorChoices

if TYPE_CHECKING:
    from qcompile.compiler.driver.build import Build

Damage = Mapping[str, float]
TOKENS = 16_384
"""Of the calibration data on which damage is measured."""
METHOD = "2"
"""Of measuring: what an older one has found is not used."""


def measure_damage(work: Build, choices: Sequence[TensorChoices], max_bytes: int) -> Damages:
    """Return what each format of each weight of a language model would do.

    Args:
        work: With its float graph and calibration data.
        choices: Whose formats are tried.
        max_bytes: Activations in memory.

    Raises:
        UnsupportedError: Weights whose damage cannot be measured.
    """
    assert work.graph is not None
    assert work.samples is not None
    formats = {
        source: [f for f in choice.formats if isinstance(f, BlockFormat)]
        for choice in choices
        for source in choice.sources
    }
    file = cache_file(work)
    known = _known(file, formats)
    visitor = BlockDamage(work.graph, formats, known, _keeping(file))
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


def cache_file(work: Build) -> Path:
    """Return the cache's file for a model and its calibration data."""
    assert work.graph is not None
    assert work.samples is not None
    assert work.source.checkpoint is not None
    config = json.dumps(dict(work.source.checkpoint.config), sort_keys=True, default=str)
    weights = [f"{name} {work.graph.weights.sha256(name)}" for name in sorted(work.graph.weights)]
    name = digest([METHOD, str(TOKENS), config, work.samples.sha256(), *weights])
    return cache_root() / "damage" / f"{name}.json"


def _known(file: Path, formats: Mapping[str, Sequence[BlockFormat]]) -> dict[str, Damage]:
    """Return what is known of weights of which all is known."""
    found = _read(file)
    return {
        name: found[name]
        for name, wanted in formats.items()
        if {format.name for format in wanted} <= found.get(name, {}).keys()
    }


def _read(file: Path) -> dict[str, Damage]:
    try:
        found: dict[str, Damage] = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found


def _keeping(file: Path) -> Told:
    """Return what adds a weight's results to a file, which is whole at any moment."""

    def keep(name: str, found: Damage) -> None:
        known = _read(file)
        known[name] = {**known.get(name, {}), **found}
        part = file.with_suffix(f".{os.getpid()}")
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            part.write_text(json.dumps(known, sort_keys=True), encoding="utf-8")
            part.replace(file)
        except OSError as error:
            raise OutputError(
                f"the cache {file.parent} cannot be written: {error.strerror}"
            ) from error

    return keep
