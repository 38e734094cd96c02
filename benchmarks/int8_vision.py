"""INT8 of this project beside onnxruntime.quantization and NNCF.

The same float model, the same 512 calibration images, the same engine, one run:

    python benchmarks/int8_vision.py --data shared --output benchmarks/results/int8_vision.md

DATA holds models/NAME.py with models/NAME.safetensors, data/cifar10_test.npz and
data/cifar10_calibration.npz.
"""

import argparse
import hashlib
import importlib.util
import json
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from float_vision import MODELS, load_images
from measure_int8 import (
    Build,
    Latency,
    agreement,
    latency_us,
    logits_of,
    run_measured,
    sqnr_db,
    top1,
)
from pages import command_line, command_parser, working_folder, write
from peers_int8 import PEERS
from report_int8 import environment, markdown, versions

HERE = Path(__file__).parent
OURS = "qcompile"
ROWS = (OURS, f"{OURS}-nearest", f"{OURS}-adaround")
TARGET = "x86-avx512-vnni"


@dataclass(frozen=True)
class Inputs:
    """What each build of one model starts from."""

    model_file: Path
    float_onnx: Path
    calibration: Path


@dataclass(frozen=True)
class Artifact:
    """A file to measure, and what it took to build; ``reused`` if an earlier run built it."""

    path: Path
    build: Build | None
    reused: bool = False


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    name: str
    top1: float
    agreement: float
    sqnr_db: float
    bytes: int
    latency: Latency
    build: Build | None
    reused: bool


def build_qcompile(
    model_file: Path, calibration_npz: Path, output: Path, rounding: str = "gptq"
) -> Build:
    """Build with this project, from the PyTorch file; copy the bundle's ONNX file to the output."""
    bundle = output.with_suffix(".qc")
    shutil.rmtree(bundle, ignore_errors=True)
    os.environ["BENCHMARK_MODEL"] = str(model_file)
    command = [sys.executable, "-m", "qcompile", str(HERE / "vision_model.py"), "--target", TARGET]
    command += ["--calibrate", str(calibration_npz), "-o", str(bundle), "--json"]
    build = run_measured([*command, "--rounding", rounding])
    shutil.copyfile(bundle / "model.onnx", output)
    return build


def build_peer(name: str, float_onnx: Path, calibration_npz: Path, output: Path) -> Build:
    """Build with a peer, from the float ONNX file."""
    script = str(HERE / "peers_int8.py")
    return run_measured(
        [sys.executable, script, name, str(float_onnx), str(calibration_npz), str(output)]
    )


def builder(name: str, inputs: Inputs) -> Callable[[Path], Build]:
    """Return the function that builds the named artifact at a path."""
    if name.startswith(OURS):
        rounding = name.removeprefix(OURS).removeprefix("-") or "gptq"
        return lambda output: build_qcompile(
            inputs.model_file, inputs.calibration, output, rounding
        )
    return lambda output: build_peer(name, inputs.float_onnx, inputs.calibration, output)


def built(name: str, inputs: Inputs, folder: Path, *, reuse: bool) -> Artifact:
    """Build the named artifact in the folder, or reuse the one that an earlier run left there."""
    path, record = folder / f"{name}.onnx", folder / f"{name}.json"
    origin = fingerprint(inputs)
    if reuse and not name.startswith(OURS) and path.exists() and record.exists():
        known = json.loads(record.read_text())
        if known["origin"] == origin:
            return Artifact(path, Build(**known["build"]), reused=True)
    build = builder(name, inputs)(path)
    record.write_text(json.dumps({"origin": origin, "build": asdict(build)}))
    return Artifact(path, build)


def fingerprint(inputs: Inputs) -> str:
    """Return a digest of what a peer's file follows from: inputs, packages, how it is called."""
    digest = hashlib.sha256(json.dumps(versions(), sort_keys=True).encode())
    for path in (inputs.float_onnx, inputs.calibration, HERE / "peers_int8.py"):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def build_all(
    names: list[str], inputs: Inputs, folder: Path, *, reuse: bool
) -> tuple[dict[str, Artifact], dict[str, str]]:
    """Return the artifacts that were built, the float file first, and why the others were not."""
    artifacts, failures = {"float": Artifact(inputs.float_onnx, None)}, {}
    for name in names:
        print(f"{inputs.model_file.stem}: building {name}", file=sys.stderr)
        try:
            artifacts[name] = built(name, inputs, folder, reuse=reuse)
        except (OSError, RuntimeError) as error:
            failures[name] = str(error)
    return artifacts, failures


def prepare(model: str, data: Path, folder: Path) -> Inputs:
    """Write the float ONNX file and the calibration images, normalized, to the folder."""
    model_file = data / "models" / f"{model}.py"
    inputs = Inputs(model_file, folder / "float.onnx", folder / "calibration.npz")
    script, weights = str(HERE / "float_vision.py"), model_file.with_suffix(".safetensors")
    run_measured([sys.executable, script, str(model_file), str(weights), str(inputs.float_onnx)])
    np.savez(inputs.calibration, image=load_images(data / "data" / "cifar10_calibration.npz")[0])
    return inputs


def measure_all(artifacts: dict[str, Artifact], test: Path, *, rounds: int) -> list[Row]:
    """Measure all artifacts on the test images."""
    images, labels = load_images(test)
    paths = {name: artifact.path for name, artifact in artifacts.items()}
    logits = {name: logits_of(path, images) for name, path in paths.items()}
    latencies = latency_us(paths, images[:1], rounds=rounds)
    return [
        Row(
            name,
            top1(logits[name], labels),
            agreement(logits[name], logits["float"]),
            sqnr_db(logits[name], logits["float"]),
            artifact.path.stat().st_size,
            latencies[name],
            artifact.build,
            artifact.reused,
        )
        for name, artifact in artifacts.items()
    ]


def benchmark(model: str, options: argparse.Namespace, folder: Path) -> dict[str, object]:
    """Build and measure everything for one model."""
    folder.mkdir(parents=True, exist_ok=True)
    inputs = prepare(model, options.data, folder)
    artifacts, failures = build_all(
        options.only or selectable(), inputs, folder, reuse=options.reuse
    )
    rows = measure_all(artifacts, options.data / "data" / "cifar10_test.npz", rounds=options.rounds)
    return {"model": model, "rows": [asdict(row) for row in rows], "failures": failures}


def selectable() -> list[str]:
    """Return what can be built here: the peers, and this project where it is installed."""
    return [*PEERS, *ROWS] if importlib.util.find_spec(OURS) else list(PEERS)


def parse(arguments: list[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = command_parser(__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with models/ and data/")
    parser.add_argument(
        "--model", action="append", choices=MODELS, help="repeatable; all by default"
    )
    parser.add_argument(
        "--only", action="append", choices=[*PEERS, *ROWS], help="repeatable; all by default"
    )
    parser.add_argument("--keep", type=Path, help="leave the files in KEEP/MODEL/NAME.onnx")
    parser.add_argument(
        "--reuse",
        action="store_true",
        help="take what an earlier --keep left, if its inputs were the same",
    )
    parser.add_argument(
        "--rounds", type=int, default=100, help="rounds of the latency measurement (20 calls each)"
    )
    parser.add_argument("--date", help="printed in the results; none by default")
    parser.add_argument(
        "--output", type=Path, action="append", default=[], help="FILE.md or FILE.json; repeatable"
    )
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> int:
    """Run the benchmark; exit code 1 if something could not be built."""
    options = parse(arguments)
    with working_folder(options.keep) as folder:
        results = [benchmark(model, options, folder / model) for model in options.model or MODELS]
    report = {"environment": environment(command_line(arguments), options.date), "results": results}
    print(markdown(report))
    for output in options.output:
        is_json = output.suffix == ".json"
        write(output, json.dumps(report, indent=1) + "\n" if is_json else markdown(report))
    return int(any(result["failures"] for result in results))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
