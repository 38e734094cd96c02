"""Runs TVM libraries on the machine that builds: as they are, or under an emulator of another CPU."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from qcompile.runtime.sessions.tvm import Engine
from qcompile.runtime.vectors import read_arrays, save_arrays
from qcompile.targets.tvm import cuda, libraries, native, stand_in
from qcompile.targets.tvm.machine import Machine

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
        self._program, self._bundle, self._options = artifact.parent, artifact.parent, options
        if options.get("device") == "cuda" and not cuda.has_gpu():
            self._bundle = artifact.parent / stand_in.FOLDER
            self._options = Machine.read(options).stand_in.options()
        library = self._bundle / artifact.name
        is_native = libraries.is_native(str(options["arch"]))
        self._native = Engine(library, self._options, threads) if is_native else None
        self.version: str = libraries.versions()[0]

    def run(self, inputs: Sequence[Any]) -> Sequence[Any]:
        """Run on inputs in the manifest's order."""
        if self._native is not None:
            return self._native.run(inputs)
        return run_emulated(self._program, self._bundle, self._options, inputs)


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
    arch, cpu = str(options["arch"]), options.get("llvm_cpu")
    manifest = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))
    names = [i["name"] for i in manifest["inputs"]]
    with TemporaryDirectory() as temporary:
        given, found = Path(temporary) / "inputs.npz", Path(temporary) / "outputs.npz"
        save_arrays(given, dict(zip(names, inputs, strict=True)))
        emulated = cpu if cpu in EMULATED else None
        native.run_program(program, bundle, arch, given, found, cpu=emulated)
        outputs = read_arrays(found)
    return [outputs[o["name"]] for o in manifest["outputs"]]
