"""``qcompile passes [NAME]``."""

from __future__ import annotations

import dataclasses
import inspect
import sys

import click

from qcompile.compiler.cli.common import print_json, reports_errors
from qcompile.runtime.errors import QCompileError


@click.command("passes")
@click.argument("name", required=False)
@reports_errors
def command(name: str | None, as_json: bool) -> None:
    """List passes, or show one: what it rewrites, before and after, and its options."""
    from qcompile.passes import base

    if name is None:
        found = {n: _headline(base.find(n)) for n in base.names()}
        if as_json:
            print_json(found)
        else:
            width = max(map(len, found))
            click.echo("\n".join(f"{n:<{width}}  {line}" for n, line in found.items()))
        return
    try:
        pass_ = base.find(name)
    except KeyError as error:
        raise QCompileError(str(error.args[0])) from error
    options = [f.name for f in dataclasses.fields(pass_)]
    text = inspect.getdoc(sys.modules[pass_.__module__]) or ""
    if as_json:
        print_json({"name": name, "docstring": text, "options": options})
    else:
        click.echo(f"{name}\n\n{text}\n\noptions: {', '.join(options) or 'none'}")


def _headline(pass_: type) -> str:
    return (inspect.getdoc(sys.modules[pass_.__module__]) or "").splitlines()[0]
