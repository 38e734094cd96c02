"""``qcompile imatrix MODEL --calibrate FILE -o imatrix.gguf``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from qcompile.compiler.cli.common import Size, console, print_json, progress_display, reports_errors


@click.command("imatrix")
@click.argument("model")
@click.option("--calibrate", required=True, metavar="FILE", type=click.Path(path_type=Path),
              help=".txt, .jsonl (text or messages), or .npz of token ids.")  # fmt: skip
@click.option("-o", "--output", type=click.Path(path_type=Path), default="imatrix.gguf",
              show_default=True, metavar="FILE", help="The file to write.")  # fmt: skip
@click.option("--seq-len", type=click.IntRange(min=2), metavar="N",
              help="Tokens of a sequence; default: 512, or the context.")  # fmt: skip
@click.option("--num-samples", type=click.IntRange(min=1), metavar="N",
              help="Use the first sequences only; default: all.")  # fmt: skip
@click.option("--max-host-ram", type=Size(), default="1GiB", show_default=True,
              help="Activations in memory; the rest waits on disk.")  # fmt: skip
@click.option("--force", is_flag=True, help="Replace a file that is there.")
@reports_errors
def command(model: str, calibrate: Path, output: Path, as_json: bool, **given: Any) -> None:
    """Let a language model read a text, and write which of its inputs matter, as llama-imatrix does.

    MODEL is a Hugging Face directory. llama-quantize reads the file, and so does --imatrix of a build.
    """
    from qcompile.compiler.driver.imatrix import make_imatrix

    with progress_display(quiet=as_json) as progress:
        found = make_imatrix(model, calibrate, output, progress=progress, **given)
    if as_json:
        print_json(found.to_data())
        return
    out = console()
    out.print(f"[bold]{found.file}[/bold]", soft_wrap=True)
    out.print(f"{found.matrices} matrices", markup=False)
    out.print(found.texts.summary(), markup=False, soft_wrap=True)
