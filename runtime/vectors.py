"""Test vectors: inputs and expected outputs in the bundle, to check it on the device."""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qcompile.runtime.errors import BundleError
from qcompile.runtime.session import Session

Array = NDArray[Any]


@dataclass(frozen=True)
class VectorResult:
    """How one output compares with what the build machine's engine gave.

    Args:
        output: Its name.
        sqnr_db: Power of the expected output over the difference; ``None`` if they are equal.
        largest: Largest absolute difference.
        limit_db: What it must reach.
    """

    output: str
    sqnr_db: float | None
    largest: float
    limit_db: float

    @property
    def passed(self) -> bool:
        """Whether the output is as expected."""
        return self.sqnr_db is None or self.sqnr_db >= self.limit_db


def read_arrays(file: Path) -> dict[str, Array]:
    """Read an .npz (arrays by name) without unpickling anything.

    Raises:
        BundleError: The file is damaged or holds objects.
    """
    try:
        with file.open("rb") as stream:
            data = np.load(stream, allow_pickle=False)
            if isinstance(data, np.ndarray):
                raise BundleError(f"{file} is an array without a name; give an .npz keyed by input")
            return {name: data[name] for name in data.files}
    except (ValueError, OSError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise BundleError(f"{file} cannot be read: {_reason(error)}") from error


def check(session: Session) -> list[VectorResult]:
    """Run a bundle's vectors.

    Raises:
        BundleError: The bundle has none.
    """
    folder = session.folder / "vectors"
    if missing := [n for n in ("inputs.npz", "outputs.npz") if not (folder / n).is_file()]:
        raise BundleError(f"{session.folder} has no {' and no '.join(missing)} in vectors/")
    expected = read_arrays(folder / "outputs.npz")
    found = session.run(read_arrays(folder / "inputs.npz"))
    if expected.keys() != found.keys():
        raise BundleError(f"{folder / 'outputs.npz'} has other names than the outputs")
    limit = float(session.manifest.parity.get("vectors_min_sqnr_db", 30.0))
    return [compare(name, expected[name], found[name], limit) for name in sorted(expected)]


def compare(name: str, expected: Array, found: Array, limit_db: float) -> VectorResult:
    """Compare one output with its expected value; an infinity or NaN must stand where it stood."""
    if expected.shape != found.shape:
        raise BundleError(f"output {name!r} has shape {found.shape}, not {expected.shape}")
    reference, value = expected.astype(np.float64), found.astype(np.float64)
    same = (reference == value) | (np.isnan(reference) & np.isnan(value))
    with np.errstate(invalid="ignore"):
        difference = np.where(same, 0.0, value - reference)
    if not np.isfinite(difference).all():
        return VectorResult(name, -np.inf, np.inf, limit_db)
    error = float(np.square(difference).sum())
    if error == 0:
        return VectorResult(name, None, 0.0, limit_db)
    power = float(np.square(reference[np.isfinite(reference)]).sum())
    sqnr = 10 * np.log10(power / error) if power else -np.inf
    return VectorResult(name, float(sqnr), float(np.abs(difference).max()), limit_db)


def _reason(error: Exception) -> str:
    text = str(error)
    if "allow_pickle" in text or "pickled" in text:
        return "it holds pickled Python objects or is no .npz; objects are never loaded"
    return text


def save_arrays(file: Path, arrays: Mapping[str, Array]) -> None:
    """Write an .npz whose bytes depend on the arrays alone."""
    with zipfile.ZipFile(file, "w") as archive:
        for name in sorted(arrays):
            buffer = io.BytesIO()
            values = np.asarray(arrays[name], order="C")  # ascontiguousarray adds an axis to none
            np.lib.format.write_array(buffer, values, allow_pickle=False)
            entry = zipfile.ZipInfo(f"{name}.npy", (1980, 1, 1, 0, 0, 0))
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, buffer.getvalue())
