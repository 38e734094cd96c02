"""Two bundles on the same vectors: what each gives, and how far they are from one another."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from numpy.typing import NDArray

from qcompile.compiler.driver.check import open_session
from qcompile.compiler.report.bundles import Entry
from qcompile.compiler.report.figures import plain, text
from qcompile.compiler.report.samples import top_agreement
from qcompile.runtime.errors import BundleError, MissingPackageError, QCompileError
from qcompile.runtime.manifest import Manifest, TensorInfo
from qcompile.runtime.vectors import compare, read_arrays

Array = NDArray[Any]
_INPUTS, _OUTPUTS, _REFERENCE = (f"vectors/{n}.npz" for n in ("inputs", "outputs", "reference"))


@dataclass(frozen=True)
class OutputRow:
    """An output of two bundles on the first one's vectors.

    Args:
        name: Of the output.
        sqnr_db: The first one's power over the difference of the two; ``None`` where equal.
        largest: Largest difference of the two.
        agreement: Share of rows whose largest number is at the same place; ``None`` for other outputs.
        before_db: The first against PyTorch; ``None`` where equal.
        after_db: The second against PyTorch.
        referred: Whether PyTorch's outputs are known.
    """

    name: str
    sqnr_db: float | None
    largest: float
    agreement: float | None
    before_db: float | None = None
    after_db: float | None = None
    referred: bool = False


@dataclass(frozen=True)
class Outputs:
    """What two bundles give.

    Args:
        rows: An output each.
        notes: What was not run and why, a sentence each.
    """

    rows: tuple[OutputRow, ...] = ()
    notes: tuple[str, ...] = ()


class _CannotRunError(Exception):
    """Says why, in a sentence."""


def compare_outputs(before: Entry, after: Entry) -> Outputs:
    """Run both bundles on the first one's vectors and compare what they give.

    Where an engine is not installed, what the build kept stands in for it, if it was of the same inputs.
    """
    notes: list[str] = []
    try:
        inputs = _inputs(before, after)
        found = [_run(entry, before, inputs, notes) for entry in (before, after)]
    except _CannotRunError as error:
        return Outputs(notes=(*notes, str(error)))
    reference = _read(before, _REFERENCE) or {}
    rows = tuple(_row(n, found[0][n], found[1][n], reference.get(n)) for n in sorted(found[0]))
    return Outputs(rows, tuple(notes))


def _inputs(before: Entry, after: Entry) -> dict[str, Array]:
    sides = (before.manifest, after.manifest)
    if wrong := [
        f"{t} against {o}" for t, o in zip(*map(_interface, sides), strict=True) if t != o
    ]:
        raise _CannotRunError(f"outputs are not compared: {'; '.join(wrong)}")
    found = _read(before, _INPUTS)
    if found is None:
        raise _CannotRunError(f"outputs are not compared: {before.label} has no {_INPUTS}")
    return found


def _interface(manifest: Manifest) -> tuple[str, str]:
    return f"inputs {_listed(manifest.inputs)}", f"outputs {_listed(manifest.outputs)}"


def _listed(tensors: tuple[TensorInfo, ...]) -> str:
    """Return names, types and sizes; how a free axis is called says nothing."""
    found = (
        f"{plain(t.name)}: {t.dtype}[{', '.join('?' if isinstance(s, str) else str(s) for s in t.shape)}]"
        for t in sorted(tensors, key=lambda t: t.name)
    )
    return ", ".join(found)


def _run(
    entry: Entry, owner: Entry, inputs: Mapping[str, Array], notes: list[str]
) -> dict[str, Array]:
    try:
        return open_session(entry.folder).run(inputs)
    except MissingPackageError as error:
        reason = f"its engine is not installed ({error.package})"
    except QCompileError as error:
        reason = text(str(error))
    files = [side.manifest.files.get(_INPUTS) for side in (entry, owner)]
    kept = _read(entry, _OUTPUTS) if files[0] == files[1] else None
    if kept is None:
        raise _CannotRunError(
            f"outputs are not compared: {entry.label} does not run here: {reason}"
        )
    notes.append(f"{entry.label} was not run, but shows what its build kept: {reason}")
    return kept


def _read(entry: Entry, name: str) -> dict[str, Array] | None:
    return read_arrays(entry.folder / name) if name in entry.manifest.files else None


def _row(name: str, before: Array, after: Array, reference: Array | None) -> OutputRow:
    if before.shape != after.shape:
        raise BundleError(f"output {name!r} has shape {before.shape} and {after.shape}")
    between = compare(name, before, after, 0.0)
    agreement = top_agreement(before, after)
    row = OutputRow(text(name), _finite(between.sqnr_db), between.largest, agreement)
    if reference is None or reference.shape != before.shape:
        return row
    a, b = (_finite(compare(name, reference, side, 0.0).sqnr_db) for side in (before, after))
    return replace(row, before_db=a, after_db=b, referred=True)


def _finite(decibels: float | None) -> float | None:
    """Return decibels for JSON: an infinite error is -1000, as in manifests."""
    return None if decibels is None else max(decibels, -1000.0)
