"""What each format of each weight of a model that is no language model would do: kept for a resumed build."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

import qcompile
from qcompile.compiler.driver import describe
from qcompile.compiler.driver.weight_plans import choices as weight_choices
from qcompile.compiler.driver.weight_plans import predictions
from qcompile.compiler.ir.errors import UnsupportedError
from qcompile.compiler.ir.graph import Graph
from qcompile.compiler.ir.quant import FloatSpec, WeightFormat
from qcompile.compiler.stages.shelf import Shelf
from qcompile.passes.calibration.samples import Batch, Samples
from qcompile.passes.calibration.way_back import WayBack
from qcompile.passes.mixed_precision.trial_store import TrialStore
from qcompile.passes.mixed_precision.weight_damage import WeightDamage
from qcompile.passes.quantization.quantize_stored_weights import RECURRENT
from qcompile.targets.plans import TensorChoices
from qcompile.targets.weight_choices import weight_readers

if TYPE_CHECKING:
    from qcompile.compiler.driver.build import Build

SAMPLES = 1024
"""Of the calibration data on which damage is measured."""


def measure_weights(
    work: Build, choices: Sequence[TensorChoices], max_bytes: int
) -> dict[str, Mapping[str, float]]:
    """Return what each format of each weight would do; what is known is not measured again.

    Raises:
        UnsupportedError: Weights that no float output depends on.
    """
    assert work.graph is not None
    assert work.samples is not None
    store = trial_store(work)
    found: dict[str, Mapping[str, float]] = {}
    missing = {}
    for choice in choices:
        kinds = [f for f in choice.formats if isinstance(f, WeightFormat)]
        known = store.damage(choice.name, (f.name for f in kinds))
        if all(isinstance(f.spec, FloatSpec) for f in kinds):
            found[choice.name] = dict.fromkeys((f.name for f in kinds), 0.0)
        elif known is None:
            missing[choice.name] = kinds
        else:
            found[choice.name] = known
    if missing:
        samples, cotangent = some_samples(work.graph, work.samples), predictions(work).cotangent
        sizes = [len(next(iter(batch.values()))) for batch in samples]
        readers, rounding = weight_readers(work.graph), work.options.rounding
        visitor = WeightDamage(work.graph, missing, readers, sizes, rounding, store.put)
        WayBack(work.graph, samples, cotangent, max_bytes, work.progress.share).run(visitor)
    unreached = []
    for name, kinds in missing.items():
        known = store.damage(name, (f.name for f in kinds))
        if known is None:
            unreached.append(name)
        else:
            found[name] = known
    if unreached:
        raise UnsupportedError(
            f"no gradient of an output reaches {len(unreached)} weight(s), so that nothing says what their "
            f"errors do: {', '.join(unreached)}; keep them float with --ignore"
        )
    return found


def some_samples(graph: Graph, samples: Samples, most: int = SAMPLES) -> Samples:
    """Return batches at equal distances; one sample each where steps of time come before samples."""
    batches: list[Batch] = list(samples)
    if graph.calls(*RECURRENT) and all(0 in graph.dynamic.get(n, {}) for n in graph.inputs):
        batches = [
            {name: value[i : i + 1] for name, value in batch.items()}
            for batch in batches
            for i in range(len(next(iter(batch.values()))))
        ]
    size = len(next(iter(batches[0].values())))
    wanted = max(1, min(len(batches), most // max(1, size)))
    picked = [batches[int(i)] for i in np.linspace(0, len(batches) - 1, wanted).round()]
    return Samples(picked, wanted * size, samples.source)


def trial_store(work: Build) -> TrialStore:
    """Return where trials are kept: in a folder whose name stands for all that they depend on."""
    assert work.graph is not None
    assert work.samples is not None
    if work.trials is not None:
        return work.trials
    given = (
        [(choice.name, choice.formats) for choice in weight_choices(work)],
        describe.model_sha256(work.graph),
        work.samples.sha256(),
        work.options.rounding,
        work.target.emitter.name,
        predictions(work),
        qcompile.__version__,
    )
    key = hashlib.sha256(repr(given).encode()).hexdigest()
    shelf = Shelf(work.stages, "trials", (key,))
    work.trials = TrialStore(work.folder / f"trials-{key[:16]}", shelf)
    return work.trials
