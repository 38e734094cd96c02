"""How well the damage of plans is predicted: random plans of a language model, predicted and measured.

    python benchmarks/mixed_precision_prediction.py --data shared --output OUTPUT

writes OUTPUT.md and OUTPUT.svg. DATA holds models/lm (a Hugging Face directory), text/calibration.txt and
text/test.txt. Every weight is rounded once in each format; a plan is then one run of the model in PyTorch.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from pages import command_line, tell, working_folder
from pages import write as write_page
from report_language import environment, table
from torch import Tensor, fx

from qcompile.compiler.driver import language
from qcompile.compiler.driver.build import (
    Build,
    calibration_samples,
    float_graph,
)
from qcompile.compiler.driver.damage import TOKENS, measure_damage, some_sequences
from qcompile.compiler.driver.language_models import TorchModel
from qcompile.compiler.driver.language_quality import compare_logits
from qcompile.compiler.driver.options import BuildOptions
from qcompile.compiler.driver.plot import Axis, Series, svg
from qcompile.compiler.driver.progress import Progress
from qcompile.compiler.frontend.load import load
from qcompile.compiler.frontend.texts import read_texts
from qcompile.compiler.ir.blocks.format import BlockFormat
from qcompile.passes.calibration.parallel import each, one_thread_per_op
from qcompile.passes.calibration.walk import Values, Walk
from qcompile.passes.quantization.block_layers import reader, readers
from qcompile.passes.quantization.block_moments import fitted, judges, moments
from qcompile.passes.quantization.block_rounding import best_rounding, round_table
from qcompile.passes.quantization.records import LayerRecord
from qcompile.targets.plans import TensorChoices

SEQ_LEN = 256
SEQUENCES = 48
"""Of the test text."""
NEAR = 2.0
"""Formats: how far those of a plan are from its level."""
NOTES = """\
A plan gives each weight of the model one format. Half of the plans draw every format by chance, the others
around a level of their own (a normal distribution over the formats in order of bits). Predicted is the sum of
what the formats of the weights do, as a build under a budget has it. Measured is the mean KL divergence of
the predictions from the original's, nats a token, on text that nothing has seen, with the rounded weights in
PyTorch: llama.cpp's rounding of activations is not in it. Weights are rounded by the encoders of a build,
error feedback included, on the inputs of the float model.
"""


@dataclass(frozen=True)
class Point:
    """A plan.

    Args:
        kind: How it was drawn.
        predicted: Nats a token.
        measured: The same.
    """

    kind: str
    predicted: float
    measured: float


class Rounder:
    """A visitor that rounds every weight in every format and leaves the graph as it is.

    Args:
        formats: Of each weight.
        folder: For the results.
    """

    def __init__(self, formats: Mapping[str, Sequence[BlockFormat]], folder: Path) -> None:
        self.formats, self.folder = formats, folder

    def visit(self, walk: Walk, node: fx.Node) -> tuple[fx.Node, Values] | None:
        """Round the weight of a linear layer; a table is rounded at the output layer that reads it."""
        layer = reader(node)
        if layer is None or layer.looks_up or layer.name not in self.formats:
            return None
        tied = any(one.looks_up for one in readers(walk.graph, layer.name))
        inputs, count = walk.values[layer.source], len(walk.samples)
        fit = moments(inputs, fitted(count))
        judge = moments(inputs, judges(count), judging=True)
        weight, method = walk.graph.weights[layer.name], round_table if tied else best_rounding

        def keep(format: BlockFormat) -> None:
            file = decoded_file(self.folder, layer.name, format.name)
            if not file.exists():
                record = LayerRecord(layer.name, "", format.name, 0, 0)
                decoded = method(weight.float(), format, fit, judge, record).decoded
                np.save(file, decoded.half().numpy() if format.name == "F16" else decoded.numpy())

        tell(layer.name)
        each(keep, self.formats[layer.name])
        return None


def decoded_file(folder: Path, name: str, format: str) -> Path:
    """Return where a rounded weight lies."""
    return folder / f"{name}.{format}.npy"


def random_plan(
    choices: Sequence[TensorChoices], near: bool, draw: np.random.Generator
) -> dict[str, str]:
    """Return the name of a format for each weight."""
    level = draw.random()
    plan = {}
    for choice in choices:
        formats = sorted(choice.formats, key=lambda f: f.bits_per_weight((1, f.block)))
        last = len(formats) - 1
        at = round(draw.normal(level * last, NEAR)) if near else draw.integers(0, last + 1)
        plan |= dict.fromkeys(choice.sources, formats[int(np.clip(at, 0, last))].name)
    return plan


def measured_kl(
    model: TorchModel, plan: Mapping[str, str], folder: Path, ids: np.ndarray, own: np.ndarray
) -> float:
    """Return the KL divergence of the model with rounded weights."""
    parameters = dict(model._module.named_parameters())
    kept: dict[str, Tensor] = {}
    for name, format in plan.items():
        kept[name] = parameters[name].data
        rounded = torch.from_numpy(np.load(decoded_file(folder, name, format))).float()
        parameters[name].data = rounded.reshape(kept[name].shape)
    found = compare_logits(iter(own), model.logits(ids), ids)
    for name, data in kept.items():
        parameters[name].data = data
    return found.figures.kl.mean


def prepare(
    options: argparse.Namespace, folder: Path
) -> tuple[Sequence[TensorChoices], Mapping[str, Mapping[str, float]]]:
    """Measure damage and round all weights; return what there is to choose and what it does."""
    text = str(options.data / "text" / "calibration.txt")
    given = BuildOptions(target="apple-m2", format="gguf", calibrate=text, seq_len=SEQ_LEN)
    source, target = load(str(options.data / "models" / "lm")), given.resolve()
    work = Build(source, given, target, Progress())
    assert source.checkpoint is not None
    blocks = language.block_options(given)
    choices = target.emitter.tensor_choices(source.checkpoint, target.scheme, blocks, frozenset())
    with one_thread_per_op():
        work.samples, _ = calibration_samples(source, target, given)
        float_graph(work)
        damages = measure_damage(work, choices, 1 << 30)
        assert work.graph is not None
        assert work.samples is not None
        formats = {name: choice.formats for choice in choices for name in choice.sources}
        if not all(
            decoded_file(folder, n, f.name).exists() for n, fs in formats.items() for f in fs
        ):
            samples = some_sequences(work.samples, TOKENS)
            Walk(work.graph, samples, 1 << 30).run(Rounder(formats, folder))
    return choices, damages


def measure(options: argparse.Namespace, folder: Path) -> list[Point]:
    """Draw plans; predict and measure each."""
    folder.mkdir(parents=True, exist_ok=True)
    choices, damages = prepare(options, folder)
    model = TorchModel(options.data / "models" / "lm")
    test = options.data / "text" / "test.txt"
    ids = read_texts(test, model.words, SEQ_LEN, max_sequences=SEQUENCES).ids
    own = np.stack(list(model.logits(ids)))
    draw, found = np.random.default_rng(options.seed), []
    for number in range(options.plans):
        near = number % 2 == 1
        plan = random_plan(choices, near, draw)
        predicted = sum(damages[name][format] for name, format in plan.items())
        measured = measured_kl(model, plan, folder, ids, own)
        found.append(Point("around a level" if near else "any format", predicted, measured))
        tell(f"{number}: {predicted:.5f} {measured:.5f}")
    return found


def rank_correlation(points: Sequence[Point]) -> float:
    """Return Spearman's: the correlation of the ranks."""
    pairs = [[p.predicted for p in points], [p.measured for p in points]]
    ranks = [np.argsort(np.argsort(values)) for values in pairs]
    return float(np.corrcoef(*ranks)[0, 1])


def picture(points: Sequence[Point]) -> str:
    """Return the plot."""
    kinds = sorted({p.kind for p in points})
    series = [
        Series(kind, [(p.predicted, p.measured) for p in points if p.kind == kind])
        for kind in kinds
    ]
    x = Axis("predicted KL divergence, nats a token", [p.predicted for p in points], True)
    y = Axis("measured KL divergence, nats a token", [p.measured for p in points], True)
    return svg(f"{len(points)} random plans", x, y, series, diagonal=True)


def markdown(points: Sequence[Point], name: str, environment: Mapping[str, str]) -> str:
    """Return the page."""
    rows = []
    for kind in ("all", *sorted({p.kind for p in points})):
        some = [p for p in points if kind in ("all", p.kind)]
        ratios = sorted(p.measured / p.predicted for p in some)
        shown = (rank_correlation(some), ratios[0], ratios[len(ratios) // 2], ratios[-1])
        rows.append([kind, str(len(some)), *(f"{value:.3f}" for value in shown)])
    columns = ("", "plans", "rank correlation", "measured / predicted: least", "median", "most")
    lines = ["# Damage of plans, predicted and measured", "", NOTES]
    lines += [
        *table(columns, rows),
        "",
        "The goal for all plans is a rank correlation above 0.9.",
        "",
    ]
    lines += [f"![{len(points)} plans]({name}.svg)", "", "## Environment", ""]
    return "\n".join([*lines, *(f"- {key}: {value}" for key, value in environment.items())]) + "\n"


def main(arguments: list[str]) -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--data", type=Path, required=True, help="folder with models/ and text/")
    add("--plans", type=int, default=50)
    add("--seed", type=int, default=0)
    add("--keep", type=Path, help="leave rounded weights in KEEP/, and take those that are there")
    add("--output", type=Path, help="without a suffix: .md and .svg are added")
    options = parser.parse_args(arguments)
    with working_folder(options.keep) as folder:
        points = measure(options, folder)
    name = options.output.name if options.output else "plot"
    page = markdown(points, name, environment(command_line(arguments)))
    print(page)
    if options.output is not None:
        write_page(options.output.with_suffix(".md"), page)
        write_page(options.output.with_suffix(".svg"), picture(points))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
