"""Packages as such, whoever wrote them: run on made-up inputs, and where their ops would run."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qcompile.targets.coreml import compute_units
from qcompile.targets.coreml.reference.errors import ExecutionError
from qcompile.targets.coreml.reference.interpreter import Interpreter
from qcompile.targets.coreml.reference.limits import bounded
from qcompile.targets.coreml.reference.package import Package, read_package
from qcompile.targets.coreml.reference.types import TensorType
from qcompile.targets.device import Device
from qcompile.targets.plans import Probe, UnitPlan


def probe(folder: Path) -> Probe:
    """Read a package, see that all its ops are known, and make inputs of its default shapes.

    Raises:
        PackageError: It is damaged.
        ExecutionError: It uses ops that the interpreter lacks; names all.
    """
    package = read_package(folder)
    interpreter = Interpreter(package, default_function(package))
    operations = [o.type for f in package.program.functions.values() for o in f.block.operations]
    count = sum(kind != "const" for kind in operations)
    checks = (
        ("package", f"specification {package.specification}, {len(package.blobs)} weight file(s)"),
        ("ops", f"all {count} ops are known to the reference interpreter"),
    )

    def run(inputs: Mapping[str, Any]) -> dict[str, Any]:
        tensors = {
            name: torch.from_numpy(np.array(inputs[name])).to(kind.dtype)
            for name, kind in interpreter.inputs
        }
        found = interpreter.run(tensors)
        return {n: v.numpy() if isinstance(v, Tensor) else v for n, v in found.items()}

    made = {n: _made_up(n, k, _default_shape(package, n, k)) for n, k in interpreter.inputs}
    return Probe(checks, made, run)


def default_function(package: Package) -> str:
    """Return the function that Core ML runs unless it is told another."""
    return str(package.description.defaultFunctionName) or "main"


def predicted_units(package: Package, device: Device) -> tuple[list[UnitPlan], list[str]]:
    """Return the prediction of ``compute_units`` for a package."""
    enumerated = any(
        i.type.multiArrayType.HasField("enumeratedShapes")
        or i.type.imageType.HasField("enumeratedSizes")
        for i in package.description.input
    )
    rows = compute_units.predict(package.program, device, enumerated=enumerated)
    plans = [UnitPlan(row.name, row.op, row.units, row.why) for row in rows]
    said = [*compute_units.summary(rows), *compute_units.cautions(package.program, device)]
    return plans, said


def _default_shape(package: Package, name: str, kind: TensorType) -> tuple[int, ...]:
    """Return the program's shape, its free sizes from the description's default."""
    if None not in kind.shape:
        return bounded([s or 0 for s in kind.shape], kind.dtype)
    found = {i.name: i.type for i in package.description.input}.get(name)
    if found is not None and found.WhichOneof("Type") == "imageType":
        image = found.imageType
        default = [1, kind.shape[1] or 3, image.height, image.width]
    else:
        default = [] if found is None else list(found.multiArrayType.shape)
    if len(default) != len(kind.shape):
        raise ExecutionError(f"the input {name!r} has free sizes and no default shape")
    sizes = [d if s is None else s for s, d in zip(kind.shape, default, strict=True)]
    return bounded(sizes, kind.dtype)


def _made_up(name: str, kind: TensorType, shape: tuple[int, ...]) -> Any:
    """Return values from a seed of the input's own: normal, or 0 and 1 for whole numbers."""
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "little")
    generator = torch.Generator().manual_seed(seed)
    if kind.dtype.is_floating_point:
        return torch.randn(shape, generator=generator).to(kind.dtype).numpy()
    return torch.randint(0, 2, shape, generator=generator).to(kind.dtype).numpy()
