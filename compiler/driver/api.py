"""The Python API: ``qcompile.compile``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from qcompile.compiler.driver.build import build
from qcompile.compiler.driver.bundle import Bundle
from qcompile.compiler.driver.options import BuildOptions
from qcompile.compiler.driver.progress import Progress
from qcompile.compiler.frontend.load import Evaluate, from_module
from qcompile.compiler.frontend.trace import Inputs


def compile(
    model: nn.Module,
    inputs: Inputs,
    *,
    target: str,
    calibration: str | Path | Mapping[str, Any] | None = None,
    output: str | Path | None = None,
    dynamic_shapes: Any = None,
    evaluate: Evaluate | None = None,
    force: bool = False,
    progress: Progress | None = None,
    **options: Any,
) -> Bundle:
    """Compile a PyTorch model into a bundle for one device.

    Args:
        model: Any module that ``torch.export`` takes; it is not changed.
        inputs: Example inputs, by name of ``forward``'s argument or in order.
        target: Device, ``host``, path of a device file, or format.
        calibration: Arrays ``[samples, ...]`` by input name, a path, or ``"random"``.
        output: The bundle's folder; ``NAME.qc`` in the current folder by default.
        dynamic_shapes: As ``torch.export.export`` takes it; these axes stay free in the artifact.
        evaluate: Called with ``predict`` (numpy in, numpy out), returns metrics; higher is better.
        force: Replace a bundle that is there.
        progress: Told what happens.
        options: Further fields of ``BuildOptions``.

    Returns:
        The bundle; ``bundle.session().run({...})`` runs it.

    Raises:
        GateError: A gate failed; the bundle is kept as ``NAME.qc.rejected``.
        QCompileError: The input, the options or the environment are wrong; nothing was written.
    """
    source = from_module(model, inputs, dynamic_shapes=dynamic_shapes)
    source.evaluate = evaluate
    folder = Path(output) if output is not None else Path(f"{source.name}.qc")
    settings = BuildOptions(target=target, calibrate=calibration, **options)
    return build(source, folder, settings, force=force, progress=progress)
