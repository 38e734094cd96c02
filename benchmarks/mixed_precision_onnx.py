r"""ONNX models whose weights have 8, 4 and 2 bits under a budget, beside uniform formats.

The same float model, ONNX Runtime for all, one run:

    python benchmarks/mixed_precision_onnx.py --data shared \
        --output benchmarks/results/mixed_precision_onnx.md

DATA holds models/NAME.py with models/NAME.safetensors, data/cifar10_test.npz and
data/cifar10_calibration.npz. Needs ``pip install nncf`` for the rows of NNCF.
"""

from __future__ import annotations

import argparse
import re
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from coreml_vision import Inputs, timed
from float_vision import export
from measure_int8 import logits_of, top1
from mixed_inputs import Test, bundle_folder, formats_of, prepared, run
from pages import command_line, tell
from peers_coreml import INPUT
from report_mixed import MIXED, OURS, POINTS, Row, environment, page, row

from qcompile.compiler.driver import Bundle
from qcompile.compiler.driver.budget import Budget
from qcompile.compiler.driver.build import build
from qcompile.compiler.driver.options import BuildOptions
from qcompile.compiler.driver.target import resolve
from qcompile.compiler.driver.weight_plans import early_choices, planned_target
from qcompile.targets.onnx.registry import OPSET
from qcompile.targets.options import BlockOptions

UNIFORM = ("int8", "int4", "int4-per-channel", "int2", "int2-per-channel")
"""Of this project: every weight is pinned."""
NEARLY_ALL = 16.0
"""Bits a weight that no uniform format needs: the pins decide."""
NOTES = """\
Weights alone are in codes; arithmetic is in float32. Uniform formats of qcompile pin every weight with
`--tensor-type .=FORMAT`: int8 with a scale a channel, int4 and int2 (with a zero point) with a scale for 32
input channels, or for all. They and plans are rounded alike, with the 512 calibration images. NNCF's
`compress_weights` stores convolutions so that ONNX Runtime does not run them. A plan `mixed, N bytes` is
`--max-size N`, with N the bytes of a uniform model; `mixed, top-1` is `--optimize size --max-drop 0.5`, whose
`evaluate` are other test images than those of this table. All models run in ONNX Runtime. Agreement and KL
divergence are with the float32 model in PyTorch. Seconds are of one run on a shared machine, with
verification and damage.
"""


@dataclass(frozen=True)
class Built:
    """A model to judge."""

    weights: str
    tool: str
    file: Path
    seconds: float
    formats: str = ""


def judged(built: Built, test: Test) -> Row:
    """Return the row of a model."""
    found = logits_of(built.file, test.images)
    size = built.file.stat().st_size
    return row(
        built.weights, built.tool, size, found, test.reference, test.labels, built.seconds, built.formats
    )  # fmt: skip


def build_ours(name: str, inputs: Inputs, **options: Any) -> Built:
    """Build with this project."""
    given = BuildOptions(target="onnx", calibrate={INPUT: inputs.calibration}, **options)
    folder = bundle_folder(inputs, name)
    found: list[Bundle] = []
    seconds = timed(lambda: found.append(build(inputs.source, folder, given, force=True)))
    return Built(name, OURS, folder / "model.onnx", seconds, formats_of(found[0]))


def build_nncf(mode: str, float_model: Path, inputs: Inputs) -> Built:
    """Compress the float model with NNCF."""
    import nncf
    import onnx
    import onnx.version_converter

    output = inputs.folder / f"nncf {mode}.onnx"

    def compress() -> None:
        wanted = getattr(nncf.CompressWeightsMode, mode)
        more = {"all_layers": True, "ratio": 1.0, "group_size": -1} if "INT4" in mode else {}
        model = onnx.version_converter.convert_version(onnx.load(float_model), OPSET)
        onnx.save(nncf.compress_weights(model, mode=wanted, **more), output)

    return Built(mode, "nncf", output, timed(compress))


def uniform_rows(inputs: Inputs, float_model: Path, test: Test) -> tuple[list[Row], list[str]]:
    """Return the rows of uniform formats, and why others could not be built."""
    rows = [judged(Built("float32", "torch.onnx", float_model, 0.0), test)]
    for kind in UNIFORM:
        tell(f"building {kind}")
        pins = BlockOptions(tensor_types=_all_of(kind, inputs))
        budget = Budget(target_bpw=NEARLY_ALL)
        built = build_ours(kind, inputs, blocks=pins, budget=budget, evaluate=False)
        rows.append(judged(replace(built, formats=""), test))
    failures = []
    for mode in ("INT8_SYM", "INT4_SYM"):
        try:
            rows.append(judged(build_nncf(mode, float_model, inputs), test))
        except Exception as error:
            reason = (str(error).splitlines() or [""])[0]
            failures.append(f"{mode} by nncf: {type(error).__name__}: {reason}")
    return rows, failures


def _all_of(kind: str, inputs: Inputs) -> tuple[tuple[str, str], ...]:
    """Return a pin for each weight; one of few channels has one scale for all of them in any case."""
    options = BuildOptions(target="onnx")
    target = planned_target(inputs.source, resolve("onnx"), options, wanted=True)
    pins = []
    for choice in early_choices(inputs.source, target, options):
        has = kind in {format.name for format in choice.formats}
        own = kind if has else kind.removesuffix("-per-channel")
        pins.append((f"^{re.escape(choice.name)}$", own))
    return tuple(pins)


def benchmark(options: argparse.Namespace, folder: Path) -> str:
    """Build and measure everything for one model; return the page."""
    inputs, test = prepared(options, folder)
    float_model = folder / "float.onnx"
    file = options.data / "models" / f"{options.model}.py"
    export(file, file.with_suffix(".safetensors"), float_model)
    rows, failures = uniform_rows(inputs, float_model, test)
    four = [r for r in rows if r.tool == OURS and r.weights.startswith("int4")]
    wanted = {f"{MIXED}, {r.bytes:,} bytes": r for r in four}
    for name, uniform in wanted.items():
        tell(f"building {name}")
        rows.append(judged(build_ours(name, inputs, budget=Budget(uniform.bytes)), test))
    tell("building the smallest")
    smallest = Budget(optimize="size")
    rows.append(
        judged(build_ours(f"{MIXED}, top-1", inputs, budget=smallest, max_drop=POINTS), test)
    )
    sizes = {f"{name} by {OURS}": uniform.name for name, uniform in wanted.items()}
    packages = ("onnx", "onnxruntime", "nncf", "scipy")
    facts = environment(command_line(sys.argv[1:]), len(test.images), packages)
    notes = NOTES + "".join(f"\nNot built: {reason}\n" for reason in failures)
    title = f"{options.model} as ONNX models under a budget, beside uniform formats"
    return page(title, notes, rows, top1(test.reference, test.labels), sizes, facts)


if __name__ == "__main__":
    sys.exit(run(__doc__, benchmark, sys.argv[1:]))
