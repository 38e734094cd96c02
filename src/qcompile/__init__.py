"""qcompile: a PyTorch model becomes a small, fast artifact for one device, proven against PyTorch.

    bundle = qcompile.compile(model, inputs, target="x86-avx512-vnni", calibration=arrays)
    session = qcompile.load(bundle.path)
    outputs = session.run({"image": array})

Names are imported when they are first used: ``qcompile.load`` and ``qcompile.runtime`` need no
torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qcompile.compiler.driver import BuildOptions, Bundle, compile
    from qcompile.runtime import Session, load
    from qcompile.runtime.errors import QCompileError
    from qcompile.targets.options import Tuning, WeightOptions

__all__ = [
    "BuildOptions",
    "Bundle",
    "QCompileError",
    "Session",
    "Tuning",
    "WeightOptions",
    "compile",
    "load",
]
__version__ = "0.1.0"

_HOMES = {
    "BuildOptions": "qcompile.compiler.driver",
    "Bundle": "qcompile.compiler.driver",
    "QCompileError": "qcompile.runtime.errors",
    "Session": "qcompile.runtime",
    "Tuning": "qcompile.targets.options",
    "WeightOptions": "qcompile.targets.options",
    "compile": "qcompile.compiler.driver",
    "load": "qcompile.runtime",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'qcompile' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
