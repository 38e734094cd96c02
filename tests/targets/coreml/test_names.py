"""Names of inputs and outputs that Core ML does not take are changed, and the change is told."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from qcompile.compiler.frontend.trace import trace
from qcompile.compiler.ir.graph import Graph
from qcompile.targets.coreml.names import (
    feature_names,
    input_name,
    output_name,
    plain_name,
    renamed,
)
from qcompile.targets.coreml.tools import load_coremltools, quiet

Emit = Callable[..., Any]
FEATURE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class Named(nn.Module):
    """Gives its input back under other names."""

    def __init__(self, *names: str) -> None:
        super().__init__()
        self.names = names

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {name: x * (index + 2) for index, name in enumerate(self.names)}


def graph_of(*names: str) -> Graph:
    return trace(Named(*names), torch.ones(2))


def test_allowed_names_stay() -> None:
    graph = graph_of("logits", "_hidden", "Out2")
    names = feature_names(graph)
    assert [output_name(names, n) for n in graph.outputs] == ["logits", "_hidden", "Out2"]
    assert input_name(names, "x") == "x"
    assert renamed(graph) == ()


def test_forbidden_names_are_changed_and_told() -> None:
    graph = graph_of("a b", "2nd", "größe")
    names = feature_names(graph)
    assert [output_name(names, n) for n in graph.outputs] == ["a_b", "_2nd", "gr__e"]
    assert renamed(graph) == (
        "the output 'a b' is called 'a_b' in Core ML",
        "the output '2nd' is called '_2nd' in Core ML",
        "the output 'größe' is called 'gr__e' in Core ML",
    )


def test_an_output_that_is_called_like_an_input() -> None:
    """Core ML has one name space for both; the input keeps its name."""
    graph = graph_of("x")
    names = feature_names(graph)
    assert (input_name(names, "x"), output_name(names, "x")) == ("x", "x_output")
    assert renamed(graph) == ("the output 'x' is called 'x_output' in Core ML",)


@given(st.lists(st.text(alphabet="ax_ -.1é", min_size=1, max_size=3), min_size=1, unique=True))
@settings(max_examples=15)
def test_names_are_allowed_and_differ(names: list[str]) -> None:
    graph = graph_of("y").copy()
    graph.outputs = tuple(names)
    found = feature_names(graph)
    assert len(found) == len(names) + 1
    assert len(set(found.values())) == len(found)
    assert all(FEATURE.fullmatch(name) for name in found.values())
    told = [re.findall(r"'(.*?)'", sentence) for sentence in renamed(graph)]
    expected = [[n, output_name(found, n)] for n in names if output_name(found, n) != n]
    assert told == expected


def test_suffixes_that_coremltools_adds() -> None:
    assert plain_name("linear_cast_fp16") == "linear"
    assert plain_name("w_to_fp16") == "w"
    assert plain_name("i_cast_uint16_cast_fp16") == "i"
    assert plain_name("my_cast_fp16_x") == "my_cast_fp16_x"


def test_a_package_has_the_new_names_and_the_right_values(emit: Emit) -> None:
    """Coremltools reads them too; the session's arrays go by them."""
    emission = emit(Named("x", "2nd out", "z"), torch.tensor([1.0, 2.0]))
    assert emission.gate()["passed"]
    found = emission.run()
    assert {n: v.tolist() for n, v in found.items()} == {
        "x": [2.0, 4.0], "2nd out": [3.0, 6.0], "z": [4.0, 8.0],
    }  # fmt: skip
    ct = load_coremltools()
    with quiet():
        spec = ct.utils.load_spec(str(emission.folder / "model.mlpackage"))
    assert [i.name for i in spec.description.input] == ["x"]
    assert [o.name for o in spec.description.output] == ["x_output", "_2nd_out", "z"]
    assert emission.emitted.engine["options"]["outputs"] == ["x_output", "_2nd_out", "z"]
    assert emission.emitted.notes == (
        "the output 'x' is called 'x_output' in Core ML",
        "the output '2nd out' is called '_2nd_out' in Core ML",
    )
