"""Runs TVM libraries on the machine that builds: as they are, or under an emulator of another CPU."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from qcompile.runtime.errors import BundleError
from qcompile.runtime.sessions.tvm import Engine
from qcompile.runtime.vectors import save_arrays
from qcompile.targets.tvm import libraries, native

EMULATED = ("cortex-a53", "cortex-a55", "cortex-a72", "cortex-a76", "neoverse-n1")
"""CPUs that qemu-aarch64 has by LLVM's names; others run as one that has every instruction."""


class VerifyingEngine:
    """What stands in for the runtime's engine while a bundle is verified.

    Args:
        artifact: ``model.so``, in a bundle with its program.
        options: Of the manifest's engine.
        threads: Of the engine.
    """

    def __init__(self, artifact: Path, options: Mapping[str, Any], threads: int) -> None:
        self._folder, self._options = artifact.parent, options
        arch = str(options["arch"])
        self._native = Engine(artifact, options, threads) if libraries.is_native(arch) else None
        self.version: str = libraries.versions()[0]

    def run(self, inputs: Sequence[Any]) -> Sequence[Any]:
        """Run on inputs in the manifest's order."""
        if self._native is not None:
            return self._native.run(inputs)
        return run_emulated(self._folder, self._folder, self._options, inputs)


def run_bundle(
    program: Path, bundle: Path, options: Mapping[str, Any], inputs: Sequence[Any]
) -> Sequence[Any]:
    """Run a library once.

    Args:
        program: Folder with the C++ program for its architecture.
        bundle: Folder with ``manifest.json`` and ``model.so``.
        options: Of the manifest's engine.
        inputs: Arrays in the manifest's order.
    """
    if libraries.is_native(str(options["arch"])):
        return Engine(bundle / "model.so", options, 1).run(inputs)
    return run_emulated(program, bundle, options, inputs)


def run_emulated(
    program: Path, bundle: Path, options: Mapping[str, Any], inputs: Sequence[Any]
) -> list[Any]:
    """Run a library in the C++ program under an emulator; see ``run_bundle``.

    Raises:
        TargetError: The emulator is not installed.
        BundleError: The program refused something, or died.
    """
    cpu = options.get("llvm_cpu")
    manifest = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))
    command = native.emulator(str(options["arch"]), cpu if cpu in EMULATED else None)
    with TemporaryDirectory() as temporary:
        given, found = Path(temporary) / "inputs.npz", Path(temporary) / "outputs.npz"
        names = [i["name"] for i in manifest["inputs"]]
        save_arrays(given, dict(zip(names, inputs, strict=True)))
        files = ["--input", str(given), "--output", str(found), "--calls", "0"]
        result = subprocess.run(
            [*command, str(program / native.PROGRAM), str(bundle), *files],
            capture_output=True,
            text=True,
            check=False,
        )
        if result.returncode:
            lines = result.stderr.strip().splitlines() or [f"exit code {result.returncode}"]
            raise BundleError(f"under {command[0]}: {lines[-1].removeprefix('error: ')}")
        with np.load(found) as arrays:
            return [arrays[o["name"]] for o in manifest["outputs"]]
