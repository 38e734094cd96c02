"""Builds of a language model: this project's bundles, and llama-quantize's files from one of them."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from measure_int8 import Build, run_measured
from pages import tell

from qcompile.targets.gguf.mixes import MIXES

HERE = Path(__file__).resolve().parent
TARGET = "apple-m2"
SEQ_LEN = 256


@dataclass(frozen=True)
class Workplace:
    """Builds files in a folder, or takes what an earlier run left there.

    Args:
        model: A Hugging Face directory.
        calibration: A text.
        folder: For all files.
        reuse: Whether to take what is there.
        samples: Calibration sequences; all by default.
    """

    model: Path
    calibration: Path
    folder: Path
    reuse: bool
    samples: int | None = None

    def bundle(self, precision: str) -> tuple[Path, Build]:
        """Build this project's bundle; f32 is the same for both."""
        folder = self.folder / f"{precision}.qc"
        command = [str(self.model), "--target", TARGET, "-p", precision, "-o", str(folder)]
        if precision != "f32":
            command += self._calibrated()
        file = folder / "model.gguf"
        return file, self._qcompile([*command, "--force"], file, precision)

    def budget(self, size: int) -> tuple[Path, Build]:
        """Build this project's bundle of so many bytes at most."""
        folder = self.folder / f"size-{size}.qc"
        command = [str(self.model), "--target", TARGET, "--max-size", str(size), "-o", str(folder)]
        file = folder / "model.gguf"
        return file, self._qcompile([*command, *self._calibrated(), "--force"], file, folder.stem)

    def front(self) -> list[tuple[int, float]]:
        """Return bytes and predicted KL divergence of the best plans of all sizes."""
        record = self.folder / "front.json"
        if not (self.reuse and record.exists()):
            tell(f"{self.folder.name}: the front")
            given = [str(self.model), "--target", TARGET, *self._calibrated(), "--pareto", "--json"]
            command = [sys.executable, "-m", "qcompile", *given]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            record.write_text(done.stdout)
        plans = json.loads(record.read_text())["plans"]
        return [(plan["bytes"], plan["damage"]) for plan in plans]

    def imatrix(self) -> tuple[Path, Build]:
        """Write the imatrix for llama-quantize."""
        file = self.folder / "imatrix.gguf"
        command = ["imatrix", str(self.model), *self._calibrated(), "-o", str(file), "--force"]
        return file, self._qcompile(command, file, "imatrix")

    def peer(self, precision: str, source: Path, imatrix: Path) -> tuple[Path, Build]:
        """Run llama-quantize."""
        folder = self.folder / f"{precision}.llama.cpp"
        folder.mkdir(exist_ok=True)
        file, script = folder / "model.gguf", str(HERE / "peers_gguf.py")
        given = [str(source), str(imatrix), str(MIXES[precision].file_type), str(file)]
        return file, self._measured([sys.executable, script, *given], file, folder.name)

    def _calibrated(self) -> list[str]:
        given = ["--calibrate", str(self.calibration), "--seq-len", str(SEQ_LEN)]
        return given if self.samples is None else [*given, "--num-samples", str(self.samples)]

    def _qcompile(self, arguments: list[str], result: Path, name: str) -> Build:
        command = [sys.executable, "-m", "qcompile", *arguments, "--json"]
        return self._measured(command, result, name)

    def _measured(self, command: list[str], result: Path, name: str) -> Build:
        """Run a command that makes a file, in a process of its own."""
        record = self.folder / f"{name}.json"
        if self.reuse and result.exists() and record.exists():
            return Build(**json.loads(record.read_text()))
        tell(f"{self.folder.name}: building {name}")
        build = run_measured(command)
        record.write_text(json.dumps(asdict(build)))
        return build
