"""``Entry``: a bundle as a report shows it, and how the bundles of a folder are found and named."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePath

from qcompile.compiler.report import layers as rows
from qcompile.compiler.report.figures import count, number, optional, plain, text
from qcompile.compiler.report.fronts import Front, front
from qcompile.compiler.report.latencies import Latency, of_build
from qcompile.compiler.report.samples import Samples, samples
from qcompile.runtime import manifest as manifests
from qcompile.runtime.errors import BundleError
from qcompile.runtime.manifest import FILE, Manifest

_ENDINGS = (".rejected", ".qc")


@dataclass(frozen=True)
class Gate:
    """A gate, and what it found in words."""

    name: str
    passed: bool
    message: str


@dataclass(frozen=True)
class Quality:
    """A metric of the model's own, for the float model and the artifact."""

    name: str
    before: float
    after: float


@dataclass(frozen=True)
class Entry:
    """A bundle that was read and whose files are as its manifest says.

    Args:
        label: What people call it: unique in a report, and the same wherever the bundles lie.
        folder: The bundle; of one at a URL a path where nothing is.
        manifest: What it holds.
        samples: Predictions of the float model and the artifact.
        bench: What ``qcompile bench`` measured.
    """

    label: str
    folder: Path
    manifest: Manifest
    samples: Samples
    bench: Latency | None = None

    @property
    def identity(self) -> tuple[str, str, str, str]:
        """Model, target, format, precision."""
        m = self.manifest
        return text(m.name), text(m.target), text(m.format), text(m.precision)

    @cached_property
    def layers(self) -> tuple[rows.Layer, ...]:
        """The layer table, worst first."""
        return rows.layers(self.manifest)

    @cached_property
    def planned(self) -> tuple[rows.Planned, ...]:
        """The plan's tensors, most damaged first."""
        return rows.planned(self.manifest)

    @cached_property
    def values(self) -> tuple[rows.Value, ...]:
        """What was compared in the engine."""
        return rows.values(self.manifest)

    @cached_property
    def outputs(self) -> tuple[rows.OutputErrors, ...]:
        """The errors of the outputs."""
        return rows.outputs(self.manifest)

    @cached_property
    def gates(self) -> tuple[Gate, ...]:
        """All gates, in the order in which they were judged."""
        return tuple(
            Gate(text(g["gate"]), g["passed"] is True, text(g["message"]))
            for g in self.manifest.gates
        )

    @property
    def passed(self) -> bool:
        """Whether every gate holds."""
        return all(gate.passed for gate in self.gates)

    @cached_property
    def quality(self) -> tuple[Quality, ...]:
        """The metrics, by name."""
        found = sorted(self.manifest.quality.items())
        return tuple(
            Quality(text(name), number(v["before"]) or 0.0, number(v["after"]) or 0.0)
            for name, v in found
        )

    @property
    def bytes(self) -> int:
        """Of the artifact."""
        return count(self.manifest.sizes["artifact_bytes"])

    @property
    def float_bytes(self) -> int:
        """Of the weights as float32."""
        return count(self.manifest.sizes["float_bytes"])

    @property
    def bits(self) -> float | None:
        """Bits of a weight, with scales, on average."""
        return optional(self.manifest.sizes, "bits_per_weight")

    @property
    def total_db(self) -> float | None:
        """The worst output against PyTorch; ``None`` where all are equal."""
        return min((o.total_db for o in self.outputs if o.total_db is not None), default=None)

    @property
    def latency(self) -> Latency | None:
        """What was measured; ``None`` where nobody measured a time."""
        return self.bench or of_build(self.manifest)

    @cached_property
    def front(self) -> Front | None:
        """What other budgets would have bought, by prediction."""
        return front(self.manifest)

    @property
    def ram_bytes(self) -> float | None:
        """Measured peak of a process that runs it; ``None`` where the build measured none."""
        found = (g for g in self.manifest.gates if g["gate"] == "max-ram")
        return next((number(g["measured"]) for g in found), None)

    @property
    def floats(self) -> tuple[str, ...]:
        """What the engine computes in float, and why, a sentence each."""
        return tuple(
            f"{count(r['count'])} x {text(r['op'])}: {text(r['why'])}" for r in self.manifest.floats
        )

    @property
    def notes(self) -> tuple[str, ...]:
        """What is not as one might expect."""
        return tuple(map(text, self.manifest.notes))

    @property
    def facts(self) -> tuple[tuple[str, str], ...]:
        """What it was made of, as label and text."""
        m = self.manifest
        data = m.calibration
        source = f"{plain(data['source'])}, {count(data['samples']):,} samples" if data else ""
        return tuple(
            (label, found)
            for label, found in (
                ("model", plain(m.model.get("source", ""))),
                ("model sha256", plain(m.model.get("sha256", ""))),
                ("licence", plain(m.model.get("licence", ""))),
                ("calibration", source),
                ("engine", f"{plain(m.engine['name'])}, {plain(m.engine['minimum'])} or later"),
                ("verified by", plain(m.parity.get("by", {}).get("engine", ""))),
                (
                    "made with",
                    ", ".join(f"{plain(t)} {plain(v)}" for t, v in sorted(m.tools.items())),
                ),
            )
            if found
        )

    def check(self) -> None:
        """Read all that a report shows once, so that nothing fails half-way."""
        for name in dir(type(self)):
            if isinstance(getattr(type(self), name), property | cached_property):
                getattr(self, name)


def open_entry(folder: Path, label: str) -> Entry:
    """Open a bundle; all its files are checked.

    Raises:
        BundleError: It is incomplete, edited or no bundle, or its manifest says what makes no sense.
    """
    manifest = manifests.read(folder)
    return checked(
        lambda: Entry(label, folder, manifest, samples(folder, manifest)), str(folder / FILE)
    )


def checked(make: Callable[[], Entry], where: str) -> Entry:
    """Return a bundle all of which can be shown.

    Raises:
        BundleError: Its manifest says what makes no sense.
    """
    try:
        entry = make()
        entry.check()
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError) as error:
        raise BundleError(
            f"{where} is damaged ({plain(str(error))}); build the bundle again"
        ) from error
    return entry


def open_entries(folders: Sequence[Path]) -> tuple[Entry, ...]:
    """Open bundles, or all bundles below folders, in the order of their labels.

    Raises:
        BundleError: One cannot be read, a folder holds none, or one is given twice.
    """
    found = [bundle for folder in folders for bundle in _bundles(folder)]
    places = [bundle.resolve() for bundle in found]
    if twice := sorted({str(b) for b, p in zip(found, places, strict=True) if places.count(p) > 1}):
        raise BundleError(f"given twice: {', '.join(twice)}; name each bundle once")
    labels = labels_of(places)
    named = sorted(zip(labels, found, strict=True))
    return tuple(open_entry(folder, label) for label, folder in named)


def _bundles(folder: Path) -> list[Path]:
    """Return a bundle, or the bundles below a folder; those that a build is still writing are hidden."""
    if (folder / FILE).is_file() or not folder.is_dir():
        return [folder]
    found = sorted(file.parent for file in folder.rglob(FILE) if not _hidden(file, folder))
    if not found:
        raise BundleError(f"{folder} is no bundle and holds none")
    return found


def _hidden(file: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in file.relative_to(folder).parts)


def labels_of(places: Sequence[PurePath]) -> list[str]:
    """Return names without endings; where two are equal, also the folders below a common one."""
    names = [_name(place.name) for place in places]
    common = Counter(names)
    if max(common.values(), default=0) == 1:
        return names
    top = os.path.commonpath([place.parent for place in places])
    longer = [_name(place.relative_to(top).as_posix()) for place in places]
    if len(set(longer)) < len(longer):
        return [text(place.relative_to(top).as_posix()) for place in places]
    return longer


def _name(path: str) -> str:
    for ending in _ENDINGS:
        path = path.removesuffix(ending)
    return text(path)
