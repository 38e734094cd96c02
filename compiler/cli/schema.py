"""``qcompile schema``."""

from __future__ import annotations

import click

from qcompile.compiler.cli.common import print_json


@click.command("schema")
def command() -> None:
    """Print the JSON schema of qcompile.toml: save it, and name it in the file's first line.

    \b
    qcompile schema > qcompile.schema.json
    #:schema ./qcompile.schema.json
    """  # noqa: D301
    from qcompile.compiler.matrix.schema import json_schema

    print_json(json_schema())
