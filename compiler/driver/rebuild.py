"""``qcompile rebuild``: a bundle made again from what its manifest says, and compared byte for byte."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qcompile.compiler.driver.build import build
from qcompile.compiler.driver.flat_options import build_options
from qcompile.compiler.driver.progress import Progress
from qcompile.compiler.frontend.calibration_tables import RANDOM
from qcompile.compiler.frontend.load import load
from qcompile.compiler.ir.errors import GateError, TargetError
from qcompile.runtime import manifest as manifests
from qcompile.runtime.manifest import FILE, FileInfo, Manifest, file_sha256
from qcompile.targets.device import device_names
from qcompile.targets.formats import emitter_names

_OWN = "calibration()"
_SAME_NAME = (
    "channel_scales", "encoder", "format", "granularity", "group_size", "kv_type", "max_drop", "min_sqnr",
    "minimum_os", "num_samples", "objects", "palette_entries", "precision", "rounding", "seed", "seq_len",
    "target", "tune",
)  # fmt: skip


@dataclass(frozen=True)
class Difference:
    """A file that is not the same, or what it was made from.

    Args:
        what: A file of the bundle, ``model``, ``calibration`` or a tool.
        before: Its digest, size or version in the bundle; ``none``.
        after: The same now.
    """

    what: str
    before: str
    after: str


def rebuild(
    bundle: Path, model: str, given: Mapping[str, Any], *, progress: Progress | None = None
) -> list[Difference]:
    """Make a bundle again and compare.

    Args:
        bundle: It must be whole.
        model: MODEL, as the command line takes it.
        given: Paths that a manifest does not hold, by their flags' names: ``calibrate``, ``target``,
            ``imatrix``, ``plan``, ``tune_database``.
        progress: Told what happens.

    Returns:
        What differs: files, and what explains it; empty if all bytes are the same.

    Raises:
        TargetError: Something that the manifest names is not given.
        QCompileError: As of a build; ``BundleError`` if the bundle is damaged.
    """
    before = manifests.read(bundle)
    options = build_options(model, flags(before, given))
    source = load(model)
    with tempfile.TemporaryDirectory() as folder:
        try:
            again = build(source, Path(folder) / "again.qc", options, progress=progress).path
        except GateError as error:
            if error.bundle is None:
                raise
            again = error.bundle.path  # type: ignore[attr-defined]
        return list(_differences(bundle, before, again))


def flags(before: Manifest, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return what must be said to make a bundle again.

    Raises:
        TargetError: Names all that the manifest does not hold and that was not given.
    """
    said = before.options
    found = {name: said[name] for name in _SAME_NAME if said.get(name) is not None}
    found |= {
        "ignore": said["keep_float"],
        "evaluate": bool(before.quality),
        **said.get("budget", {}),
    }
    types = (text.rpartition("=") for text in said.get("tensor_types", ()))
    found["tensor_type"] = [(expression, kind) for expression, _, kind in types]
    if said.get("budget") or said.get("plan_file") or ("budget" in said and "encoder" not in said):
        found.pop("precision", None)  # each weight has one of its own
    if before.calibration.get("source") == RANDOM:
        found["calibrate"] = RANDOM
    needed = dict(_needed(before))
    missing = [
        f"--{n.replace('_', '-')} for {why}" for n, why in needed.items() if not given.get(n)
    ]
    if missing:
        raise TargetError(
            f"the manifest of {before.name} does not hold all of its inputs: give {', '.join(missing)}"
        )
    return found | {name: value for name, value in given.items() if value}


def _needed(before: Manifest) -> Iterator[tuple[str, str]]:
    """Give the flags of inputs that a manifest names and does not hold."""
    said = before.options
    if said["target"] not in (*device_names(), *emitter_names()):
        yield "target", f"the device file {said['target']}.toml"
    source = before.calibration.get("source", _OWN)
    if source not in (_OWN, RANDOM):
        yield "calibrate", source
    if said.get("imatrix"):
        yield "imatrix", said["imatrix"]
    if said.get("plan_file"):
        yield "plan", said["plan_file"]
    if said.get("tune"):
        yield "tune_database", f"the schedules of --tune {said['tune']}"


def _shown(file: FileInfo | None) -> str:
    return f"{file.bytes:,} bytes, {file.sha256[:12]}" if file else "none"


def _differences(bundle: Path, before: Manifest, again: Path) -> Iterator[Difference]:
    after = manifests.read(again)
    for name in sorted({*before.files, *after.files}):
        old, new = before.files.get(name), after.files.get(name)
        if old != new:
            yield Difference(name, _shown(old), _shown(new))
    if file_sha256(bundle / FILE) != file_sha256(again / FILE):
        yield Difference(FILE, file_sha256(bundle / FILE)[:12], file_sha256(again / FILE)[:12])
    for what, old_data, new_data in (
        ("model", before.model, after.model), ("calibration", before.calibration, after.calibration)
    ):  # fmt: skip
        if old_data.get("sha256") != new_data.get("sha256"):
            yield Difference(
                what, *(str(d.get("sha256", "none"))[:12] for d in (old_data, new_data))
            )
    for tool in sorted({*before.tools, *after.tools}):
        versions = before.tools.get(tool, "none"), after.tools.get(tool, "none")
        if versions[0] != versions[1]:
            yield Difference(tool, *versions)
