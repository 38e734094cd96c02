r"""INT8 within a limit of quality: which layers stay float, beside NNCF's quantize_with_accuracy_control.

The same float model, calibration images and validation images, ONNX Runtime for all, one run:

    python benchmarks/mixed_precision_int8.py --data shared \
        --output benchmarks/results/mixed_precision_int8.md

DATA holds models/NAME.py with models/NAME.safetensors, data/cifar10_test.npz and
data/cifar10_calibration.npz.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from coreml_vision import Inputs, prepare, timed
from float_vision import MODELS, export, load_images
from measure_int8 import agreement, logits_of, top1
from mixed_inputs import Test, bundle_folder, evaluation, logits
from pages import command_parser, publish, tell, working_folder
from peers_coreml import INPUT
from peers_float_layers import accuracy_control, float_in_engine, float_inputs
from report_mixed import OURS, environment
from runs import eager

from qcompile.compiler.driver import Bundle
from qcompile.compiler.driver.build import build
from qcompile.compiler.driver.options import BuildOptions
from qcompile.compiler.ir.errors import GateError

TARGET = "x86-avx512-vnni"
COLUMNS = (
    "tool", "layers without int8 inputs", "float in the engine", "agreement, validation %",
    "agreement %", "top-1 %", "bytes", "s",
)  # fmt: skip
NOTES = """\
The limit is of agreement: the share of validation images for which a model names the class that the float
model names, 100 % for the float model itself. On top-1 these networks lose nothing in int8 (see
int8_vision.md), so that no layer would have to stay float. qcompile: `-p int8 --max-drop LIMIT`. NNCF:
`quantize_with_accuracy_control`, by its defaults and with the options that were best in ONNX Runtime
(`tuned`, as in int8_vision.md). Calibration: 512 images; validation: {tune:,} test images; agreement and
top-1 are of {judged:,} others. A layer (convolution, linear) is without int8 inputs if its activation or its
weight is not decoded from codes in the file; it is float in the engine if ONNX Runtime computes it in float
then. `int8` rows are of all layers in integers. Seconds are of one run on a shared machine; those of qcompile
include verification.
"""


@dataclass(frozen=True)
class Built:
    """A model to judge."""

    tool: str
    file: Path
    seconds: float
    note: str = ""


def ours(name: str, inputs: Inputs, **options: Any) -> Built:
    """Build with this project."""
    given = BuildOptions(
        target=TARGET, precision="int8", calibrate={INPUT: inputs.calibration}, **options
    )
    folder, found = bundle_folder(inputs, name), list[Bundle]()

    def run() -> None:
        try:
            found.append(build(inputs.source, folder, given, force=True))
        except GateError as error:
            found.append(error.bundle)  # type: ignore[arg-type]

    seconds = timed(run)
    (bundle,) = found
    layers = ", ".join(row["layer"] for row in bundle.manifest.plan.get("float_layers", ()))
    said = "" if bundle.passed else "the limit is missed; "
    return Built(name, bundle.path / "model.onnx", seconds, f"{said}float: {layers or 'none'}")


def benchmark(options: argparse.Namespace, folder: Path) -> str:
    """Build and measure everything for one model; return the page."""
    folder.mkdir(parents=True, exist_ok=True)
    inputs = prepare(options.model, options.data, folder)
    images, labels = load_images(options.data / "data" / "cifar10_test.npz")
    reference = logits(eager(inputs.source.module), images)
    wanted, tune = reference.argmax(1), slice(0, options.tune)
    judge = slice(options.tune, options.tune + options.images)
    evaluate = evaluation(images[tune], wanted[tune])
    inputs = replace(inputs, source=replace(inputs.source, evaluate=evaluate))
    file, float_model = options.data / "models" / f"{options.model}.py", folder / "float.onnx"
    export(file, file.with_suffix(".safetensors"), float_model)
    tell("building int8")
    built = [ours(f"{OURS} int8", inputs, evaluate=False)]
    tell("building within the limit")
    built.append(ours(f"{OURS} within {options.max_drop:g}", inputs, max_drop=options.max_drop))
    given = (inputs.calibration, images[tune], wanted[tune], options.max_drop)
    for name, tuned in (("nncf", False), ("nncf tuned", True)):
        tell(f"building {name}")
        output = folder / f"{name}.onnx"

        def control(output: Path = output, tuned: bool = tuned) -> None:
            accuracy_control(float_model, output, *given, tuned=tuned)

        built.append(Built(f"{name} within {options.max_drop:g}", output, timed(control)))
    validation = Test(images[tune], labels[tune], reference[tune])
    test = Test(images[judge], labels[judge], reference[judge])
    return page(options, built, validation, test)


def page(options: argparse.Namespace, built: Sequence[Built], validation: Test, test: Test) -> str:
    """Return the page."""
    lines = [f"# {options.model} in int8 within {options.max_drop:g} points, beside NNCF", ""]
    lines += [NOTES.format(tune=len(validation.images), judged=len(test.images))]
    rows = [cells(one, validation, test) for one in built]
    ruler = ["---", *["---:"] * (len(COLUMNS) - 1)]
    lines += ["| " + " | ".join(row) + " |" for row in (list(COLUMNS), ruler, *rows)]
    lines += ["", *(f"- {one.tool}: {one.note}" for one in built if one.note)]
    own = next(one for one in built if one.tool.startswith(f"{OURS} within"))
    lines += [
        f"- seconds of qcompile over those of {one.tool}: {own.seconds / one.seconds:.2f}"
        for one in built
        if one.tool.startswith("nncf")
    ]
    facts = environment(
        command(options), len(test.images), ("onnx", "onnxruntime", "nncf", "scipy")
    )
    lines += ["", "## Environment", "", *(f"- {name}: {value}" for name, value in facts.items())]
    return "\n".join(lines) + "\n"


def cells(built: Built, validation: Test, test: Test) -> list[str]:
    """Return a model as a row of the table."""
    found = logits_of(built.file, test.images)
    tuned = agreement(logits_of(built.file, validation.images), validation.reference)
    with tempfile.TemporaryDirectory() as folder:
        engine = float_in_engine(built.file, Path(folder))
    return [
        built.tool, "{} of {}".format(*float_inputs(built.file)), "{} of {}".format(*engine),
        f"{tuned:.2f}", f"{agreement(found, test.reference):.2f}", f"{top1(found, test.labels):.2f}",
        f"{built.file.stat().st_size:,}", f"{built.seconds:.0f}",
    ]  # fmt: skip


def command(options: argparse.Namespace) -> str:
    """Return the command, with DATA for the folder."""
    script = "python benchmarks/mixed_precision_int8.py --data DATA"
    return f"{script} --model {shlex.quote(options.model)} --max-drop {options.max_drop:g}"


def parse(arguments: list[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = command_parser(__doc__)
    add = parser.add_argument
    add("--data", type=Path, required=True, help="folder with models/ and data/")
    add("--model", choices=MODELS, default="resnet20")
    add("--max-drop", type=float, default=0.5, help="points of agreement with the float model")
    add("--images", type=int, default=8_000, help="test images to judge on")
    add("--tune", type=int, default=2_000, help="other test images: those of the limit")
    add("--keep", type=Path, help="leave the artifacts in KEEP/")
    add("--output", type=Path, help="FILE.md")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> int:
    """Run the benchmark."""
    options = parse(arguments)
    with working_folder(options.keep) as folder:
        publish(benchmark(options, folder), options.output)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
