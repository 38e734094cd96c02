r"""INT8 within a limit of quality: which layers stay float, beside NNCF's quantize_with_accuracy_control.

The same float model, calibration images and validation images, ONNX Runtime for all, one run:

    python benchmarks/mixed_precision_int8.py --output benchmarks/results/mixed_precision_int8.md
    python benchmarks/mixed_precision_int8.py --model resnet20 --data DATA --max-drop 1

DATA holds models/NAME.py with models/NAME.safetensors, data/cifar10_test.npz and
data/cifar10_calibration.npz; ``moved-channel`` is made here.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import moved_channel
import numpy as np
import torch
from coreml_vision import Inputs, prepare
from float_vision import MODELS, load_images
from measure_int8 import agreement, logits_of, top1
from mixed_inputs import Test, bundle_folder, evaluation, logits
from pages import command_parser, publish, tell, working_folder
from peers_coreml import INPUT
from peers_float_layers import accuracy_control, export_module, float_in_engine, float_inputs
from report_mixed import OURS, environment
from runs import eager

from qcompile.compiler.driver import Bundle
from qcompile.compiler.driver.build import build
from qcompile.compiler.driver.options import BuildOptions
from qcompile.compiler.frontend.load import from_module
from qcompile.compiler.ir.errors import GateError

TARGET = "x86-avx512-vnni"
COLUMNS = (
    "tool", "layers without int8 inputs", "float in the engine", "validation %",
    "agreement %", "top-1 %", "bytes", "s", "CPU s",
)  # fmt: skip
MOVED = "moved-channel"
CALIBRATION = 512
ON_OTHERS = """\
The limit is of agreement: the share of validation images for which a model names the class that the float
model names, 100 % for the float model itself. On top-1 this network loses nothing in int8 (see
int8_vision.md), so that no layer would have to stay float."""
ON_MOVED = """\
A made-up case: the small network of moved_channel.py, trained on synthetic images, in which a channel lies
1,000 away from the others at one value, so that int8 loses them there: MobileNetV2 and ResNet-20 lose at
most 0.12 points of top-1 in int8 (int8_vision.md). The limit is of top-1 on the validation images."""
NOTES = """\
qcompile: `-p int8 --max-drop LIMIT`. NNCF: `quantize_with_accuracy_control`, by its defaults and with the
options that were best in ONNX Runtime (`tuned`, as in int8_vision.md). Calibration: {calibration:,} images;
validation: {tune:,}; agreement with the float model and top-1 are of {judged:,} others. A layer (convolution,
linear) is without int8 inputs if its activation or its weight is not decoded from codes in the file; it is
float in the engine if ONNX Runtime computes it in float. The `int8` row has all layers in integers. Seconds
are of one run on a shared, busy machine, without imports, all from the module in PyTorch: those of NNCF
include the export to ONNX that it starts from, those of qcompile verification. CPU seconds are of all cores.
"""


@dataclass(frozen=True)
class Seconds:
    """Of the clock, and of all cores together."""

    wall: float
    cpu: float

    def __add__(self, other: Seconds) -> Seconds:
        """Return both after one another."""
        return Seconds(self.wall + other.wall, self.cpu + other.cpu)


def timed(work: Callable[[], object]) -> Seconds:
    """Return the seconds that something takes."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return Seconds(time.perf_counter() - wall, time.process_time() - cpu)


@dataclass(frozen=True)
class Built:
    """A model to judge."""

    tool: str
    file: Path
    seconds: Seconds
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
    rows = bundle.manifest.plan.get("float_layers", ())
    layers = [row["layer"] + (" (codes)" if row["weight_in_codes"] else "") for row in rows]
    said = "" if bundle.passed else "the limit is missed; "
    note = f"{said}float: {', '.join(layers) or 'none'}"
    if rows:
        note += f"; {bundle.manifest.plan['trials']} trials"
    return Built(name, bundle.path / "model.onnx", seconds, note)


@dataclass(frozen=True)
class Case:
    """A network, and what it is judged on.

    Args:
        inputs: With ``evaluate``, of which the limit is.
        float_model: As ONNX.
        exported: What that took.
        validation: What ``evaluate`` judges on.
        right: Labels by which it does.
        test: Other images.
    """

    inputs: Inputs
    float_model: Path
    exported: Seconds
    validation: Test
    right: np.ndarray
    test: Test


def case(options: argparse.Namespace, folder: Path) -> Case:
    """Return the network that is asked for."""
    if options.model == MOVED:
        module, shape = moved_channel.trained(), (2, 3, moved_channel.SIZE, moved_channel.SIZE)
        calibration = moved_channel.data(CALIBRATION, 1)[0].numpy()
        images, labels = (t.numpy() for t in moved_channel.data(options.tune + options.images, 2))
        free = {INPUT: {0: torch.export.Dim("batch", min=1, max=1024)}}
        source = from_module(module, {INPUT: torch.zeros(shape)}, dynamic_shapes=free, name=MOVED)
        inputs = Inputs(source, calibration, folder)
    else:
        inputs = prepare(options.model, options.data, folder)
        images, labels = load_images(options.data / "data" / "cifar10_test.npz")
    reference = logits(eager(inputs.source.module), images)
    right = labels if options.model == MOVED else reference.argmax(1)
    tune, judge = slice(0, options.tune), slice(options.tune, options.tune + options.images)
    evaluate = evaluation(images[tune], right[tune])
    inputs = replace(inputs, source=replace(inputs.source, evaluate=evaluate))
    parts = [Test(images[part], labels[part], reference[part]) for part in (tune, judge)]
    float_model = folder / "float.onnx"
    exported = timed(lambda: export_module(inputs.source.module, images[:2].shape, float_model))
    return Case(inputs, float_model, exported, parts[0], right[tune], parts[1])


def benchmark(options: argparse.Namespace, folder: Path) -> str:
    """Build and measure everything for one model; return the page."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    importlib.import_module("nncf")
    case(options, folder)  # what tools load when they are first used is loaded
    given = case(options, folder)
    tell("building int8")
    built = [ours(f"{OURS} int8", given.inputs, evaluate=False)]
    tell("building within the limit")
    within = f"within {options.max_drop:g}"
    built.append(ours(f"{OURS} {within}", given.inputs, max_drop=options.max_drop))
    for name, tuned in (("nncf", False), ("nncf tuned", True)):
        tell(f"building {name}")
        built.append(controlled(f"{name} {within}", given, options.max_drop, folder, tuned=tuned))
    return page(options, built, given)


def controlled(name: str, given: Case, max_drop: float, folder: Path, *, tuned: bool) -> Built:
    """Build with NNCF."""
    output = folder / f"{name}.onnx"
    data = (given.inputs.calibration, given.validation.images, given.right, max_drop)
    seconds = timed(lambda: accuracy_control(given.float_model, output, *data, tuned=tuned))
    return Built(name, output, given.exported + seconds)


def page(options: argparse.Namespace, built: Sequence[Built], given: Case) -> str:
    """Return the page."""
    lines = [f"# {options.model} in int8 within {options.max_drop:g} points, beside NNCF", ""]
    figure = ON_MOVED if options.model == MOVED else ON_OTHERS
    sizes = len(given.inputs.calibration), len(given.validation.images), len(given.test.images)
    lines += [figure, NOTES.format(calibration=sizes[0], tune=sizes[1], judged=sizes[2])]
    rows = [cells(one, given) for one in built]
    ruler = ["---", *["---:"] * (len(COLUMNS) - 1)]
    lines += ["| " + " | ".join(row) + " |" for row in (list(COLUMNS), ruler, *rows)]
    float_top1 = top1(given.test.reference, given.test.labels)
    lines += ["", f"- float32 in PyTorch: top-1 {float_top1:.2f} %"]
    lines += [f"- {one.tool}: {one.note}" for one in built if one.note]
    own = next(one for one in built if one.tool.startswith(f"{OURS} within"))
    lines += [ratios(own, one, given) for one in built if one.tool.startswith("nncf")]
    facts = environment(command(options), sizes[2], ("onnx", "onnxruntime", "nncf", "scipy"))
    lines += ["", "## Environment", "", *(f"- {name}: {value}" for name, value in facts.items())]
    return "\n".join(lines) + "\n"


def cells(built: Built, given: Case) -> list[str]:
    """Return a model as a row of the table."""
    found = logits_of(built.file, given.test.images)
    tuned = top1(logits_of(built.file, given.validation.images), given.right)
    with tempfile.TemporaryDirectory() as folder:
        engine = float_in_engine(built.file, Path(folder))
    return [
        built.tool, "{} of {}".format(*float_inputs(built.file)), "{} of {}".format(*engine),
        f"{tuned:.2f}", f"{agreement(found, given.test.reference):.2f}",
        f"{top1(found, given.test.labels):.2f}", f"{built.file.stat().st_size:,}",
        f"{built.seconds.wall:.1f}", f"{built.seconds.cpu:.1f}",
    ]  # fmt: skip


def ratios(own: Built, other: Built, given: Case) -> str:
    """Return how many times as long this project took, with the other's export to ONNX and without."""
    wall, cpu = own.seconds.wall / other.seconds.wall, own.seconds.cpu / other.seconds.cpu
    bare = own.seconds.cpu / (other.seconds.cpu - given.exported.cpu)
    return (
        f"- qcompile's time over that of {other.tool}: {wall:.2f} by the clock, {cpu:.2f} in CPU seconds; "
        f"{bare:.2f} without the export, which took {given.exported.cpu:.1f}"
    )


def command(options: argparse.Namespace) -> str:
    """Return the command, with DATA for the folder."""
    data = "" if options.model == MOVED else " --data DATA"
    figures = f"--max-drop {options.max_drop:g} --tune {options.tune} --images {options.images}"
    return f"python benchmarks/mixed_precision_int8.py --model {options.model}{data} {figures}"


def parse(arguments: list[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = command_parser(__doc__)
    add = parser.add_argument
    add("--data", type=Path, help="folder with models/ and data/; not for moved-channel")
    add("--model", choices=[*MODELS, MOVED], default=MOVED)
    add("--max-drop", type=float, default=1.0, help="points of what evaluate gives")
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
