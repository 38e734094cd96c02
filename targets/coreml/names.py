"""Names of inputs and outputs: Core ML takes letters, digits and underscores, and no digit first."""

from __future__ import annotations

import re
from collections.abc import Mapping

from qcompile.compiler.ir.graph import Graph


def feature_names(graph: Graph) -> dict[str, str]:
    """Return Core ML's name of each input and output; inputs first, outputs made to differ from them."""
    found: dict[str, str] = {}
    for kind, names in (("input", tuple(graph.inputs)), ("output", graph.outputs)):
        for name in names:
            wanted = re.sub(r"\W", "_", name, flags=re.ASCII)
            wanted = f"_{wanted}" if not wanted or wanted[0].isdigit() else wanted
            taken = set(found.values())
            if wanted in taken:
                options = (f"{wanted}_{kind}{i}" for i in ("", *range(2, len(taken) + 3)))
                wanted = next(o for o in options if o not in taken)
            found[_key(kind, name)] = wanted
    return found


def input_name(names: Mapping[str, str], name: str) -> str:
    """Return Core ML's name of an input."""
    return names[_key("input", name)]


def output_name(names: Mapping[str, str], name: str) -> str:
    """Return Core ML's name of an output."""
    return names[_key("output", name)]


def renamed(graph: Graph) -> tuple[str, ...]:
    """Return a sentence for each name that Core ML does not take as it is."""
    names = feature_names(graph)
    pairs = [("input", n, input_name(names, n)) for n in graph.inputs]
    pairs += [("output", n, output_name(names, n)) for n in graph.outputs]
    return tuple(
        f"the {kind} {name!r} is called {new!r} in Core ML"
        for kind, name, new in pairs
        if name != new
    )


def _key(kind: str, name: str) -> str:
    return f"{kind} {name}"


_SUFFIX = re.compile(r"(_cast_fp16|_to_fp16|_cast_uint16|_cast_int16)+$")


def plain_name(name: str) -> str:
    """Return a program's name of a value without what coremltools adds when it changes the type."""
    return _SUFFIX.sub("", name)
