"""``qcompile evaluate BUNDLE --against MODEL --dataset FILE --seq-len N``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.table import Table

from qcompile.compiler.cli.common import (
    console,
    print_json,
    progress_display,
    reports_errors,
    threads_option,
)

if TYPE_CHECKING:
    from qcompile.compiler.driver.evaluate import Evaluation


@click.command("evaluate")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--against", required=True, metavar="MODEL", type=click.Path(path_type=Path),
    help="The original: a Hugging Face directory, or a bundle or .gguf file.",
)  # fmt: skip
@click.option(
    "--dataset", required=True, metavar="FILE", type=click.Path(path_type=Path),
    help=".txt, .jsonl (text or messages), or .npz of token ids.",
)  # fmt: skip
@click.option(
    "--seq-len", required=True, type=click.IntRange(3), help="Tokens a sequence; half are scored."
)
@click.option("--max-sequences", type=click.IntRange(1), help="Use the first ones only.")
@threads_option
@reports_errors
def command(
    bundle: Path,
    against: Path,
    dataset: Path,
    seq_len: int,
    max_sequences: int | None,
    threads: int,
    as_json: bool,
) -> None:
    """Measure perplexity and KL divergence of a language model's artifact to its original.

    The text is cut into sequences as llama.cpp's perplexity tool does, and the second half of each is
    scored.
    """
    from qcompile.compiler.driver.evaluate import evaluate

    with progress_display(quiet=as_json) as progress:
        found = evaluate(
            bundle, against, dataset, seq_len=seq_len, max_sequences=max_sequences,
            threads=threads, progress=progress,
        )  # fmt: skip
    if as_json:
        print_json(found.to_data())
    else:
        _show(found)


def _show(found: Evaluation) -> None:
    own, error, floor = found.quality.figures, found.quality.errors, found.floor.figures
    table = Table("", "measured", "standard error", "floor", box=None, pad_edge=False)
    for label, value, deviation in (
        ("perplexity", own.perplexity, error.perplexity),
        ("perplexity of the original", own.perplexity_reference, error.perplexity_reference),
    ):
        table.add_row(label, f"{value:.4f}", f"{deviation:.4f}")
    for label, name in (("mean", "mean"), ("median", "median"), ("99 %", "p99"), ("max", "max")):
        values = (f"{getattr(each.kl, name):.4g}" for each in (own, error, floor))
        table.add_row(f"KL divergence, {label}", *values)
    shares = (f"{100 * each.same_top:.3f}" for each in (own, error, floor))
    table.add_row("same top token, %", *shares)
    out = console()
    out.print(table)
    said = [
        f"artifact: {found.artifact}",
        f"original: {found.original}",
        f"{found.quality.tokens:,} predictions scored, the second half of each sequence",
        found.texts.summary(),
        f"floor: the original beside itself ({found.noise}), {found.floor.tokens:,} predictions",
    ]
    shared, *known = found.vocabulary
    if set(known) != {shared}:
        said.append(
            f"probabilities of {shared:,} tokens: the artifact knows {known[0]:,}, the original "
            f"{known[1]:,}"
        )
    for line in said:
        out.print(line, markup=False, soft_wrap=True)
