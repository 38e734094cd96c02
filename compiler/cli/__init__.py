"""The command line: one file a verb. ``qcompile MODEL`` builds; the other verbs are named."""

from __future__ import annotations

import importlib
from typing import Any

import click

import qcompile

VERBS = {
    "build": "compile MODEL into a bundle (the default verb); without MODEL: what changed of qcompile.toml",
    "rebuild": "make a bundle again from its manifest, and compare every byte",
    "check": "check qcompile.toml and print the plan of its builds",
    "init": "write a qcompile.toml",
    "schema": "print the JSON schema of qcompile.toml, for editors",
    "cache": "show what builds keep for each other, or remove some of it",
    "verify": "check a bundle: files, test vectors, and against its model",
    "inspect": "show what a bundle holds: layers, formats, errors, sizes",
    "diff": "compare two bundles: layers, sizes, errors, options, outputs",
    "report": "write an HTML page, JUnit, Markdown or SARIF about bundles",
    "bench": "measure latency, load time and peak memory of a bundle",
    "generate": "let a language model continue or answer a text",
    "evaluate": "compare a language model with its original on a text",
    "imatrix": "write what a text says of a language model's inputs, as llama-imatrix does",
    "targets": "list devices, or show the facts about one",
    "passes": "list passes, or show what one does",
    "completion": "print the script that completes commands in your shell",
}


_JSON = "qcompile.json"


class _Verbs(click.Group):
    """Imports a verb when it is used, and takes an unknown first word as MODEL of ``build``."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        command: click.Command = importlib.import_module(
            f"qcompile.compiler.cli.{cmd_name}"
        ).command
        return command

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.meta[_JSON] = "--json" in args
        special = {"--help", "-h", "--version"}
        if args and args[0] not in VERBS and args[0] not in special:
            args = ["build", *args]
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except click.UsageError as error:
            from qcompile.compiler.cli.common import report

            ctx.exit(report(error, as_json=ctx.meta[_JSON]))

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Verbs"):
            formatter.write_dl(list(VERBS.items()))


@click.group(
    cls=_Verbs,
    context_settings={"help_option_names": ["-h", "--help"]},
    no_args_is_help=True,
    subcommand_metavar="MODEL | VERB [OPTIONS]",
)
@click.version_option(qcompile.__version__, prog_name="qcompile")
def cli() -> None:
    """Compile a PyTorch model into a small, fast artifact for one device, proven against PyTorch.

    \b
    qcompile model.py --target raspberry-pi-5       build model.qc
    qcompile model.py --target host --dry-run       print the plan only
    qcompile verify model.qc --against model.py     check a bundle
    qcompile build                                  build what changed of qcompile.toml
    """  # noqa: D301


def main(arguments: list[str] | None = None) -> Any:
    """Run the command line; the exit code is 0, 1 (a gate failed) or 2 (something is wrong)."""
    return cli(args=arguments, prog_name="qcompile")
