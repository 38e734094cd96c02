"""``qcompile generate BUNDLE PROMPT``."""

from __future__ import annotations

from pathlib import Path

import click

from qcompile.compiler.cli.common import print_json, reports_errors, threads_option


@click.command("generate")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("prompt")
@click.option(
    "--max-tokens", type=click.IntRange(1), default=256, show_default=True, help="At most so many."
)
@click.option(
    "--temperature",
    type=click.FloatRange(0),
    default=0.0,
    show_default=True,
    help="0: always the likeliest token; 1: as the model says.",
)
@click.option(
    "--top-k", type=click.IntRange(0), default=40, show_default=True,
    help="Above temperature 0: choose among so many; 0 for all.",
)  # fmt: skip
@click.option(
    "--top-p", type=click.FloatRange(0, 1, min_open=True), default=0.95, show_default=True,
    help="Above temperature 0: among the likeliest with this probability.",
)  # fmt: skip
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the choice.")
@click.option("--stop", multiple=True, metavar="TEXT", help="End at this text; may be repeated.")
@click.option(
    "--chat/--raw",
    default=None,
    help="Through the chat template, or as it is; default: if it has one.",
)
@threads_option
@reports_errors
def command(
    bundle: Path,
    prompt: str,
    max_tokens: int,
    temperature: float,
    top_k: int,
    top_p: float,
    seed: int,
    stop: tuple[str, ...],
    chat: bool | None,
    threads: int,
    as_json: bool,
) -> None:
    """Continue a text, or answer it, with a bundle's language model or a .gguf file."""
    from qcompile.runtime.generation import generate

    made = generate(
        bundle, prompt, chat=chat, max_tokens=max_tokens, temperature=temperature,
        top_k=top_k, top_p=top_p, seed=seed, stop=stop, threads=threads,
    )  # fmt: skip
    if as_json:
        text = "".join(made)
        told = made.statistics
        print_json({"text": text, **vars(told), "tokens_per_second": told.tokens_per_second})
        return
    for piece in made:
        click.echo(piece, nl=False)
    click.echo()
    told = made.statistics
    click.echo(
        f"{told.prompt_tokens} tokens read in {told.prompt_seconds:.2f} s, {told.tokens} made "
        f"({told.tokens_per_second:.1f} tokens/s), ended by {_FINISH[told.finish]}",
        err=True,
    )


_FINISH = {
    "stop": "the model or a stop text",
    "length": "--max-tokens",
    "context": "the context, which is full",
}
