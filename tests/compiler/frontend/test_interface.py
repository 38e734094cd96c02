"""What a model file says about pictures, shapes, classes and its author; what does not fit is refused."""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from qcompile.compiler.frontend.interface import read_interface
from qcompile.compiler.frontend.trace import trace
from qcompile.compiler.ir.errors import ModelError
from qcompile.compiler.ir.graph import Graph
from qcompile.compiler.ir.interface import ImageInput, Interface


class Two(nn.Module):
    """A picture of three channels, one of one channel, and a row of numbers."""

    def forward(self, image: Tensor, grey: Tensor, row: Tensor) -> Tensor:
        return image.mean() + grey.mean() + row


@pytest.fixture(scope="module")
def graph() -> Graph:
    inputs = {"image": torch.zeros(1, 3, 8, 8), "grey": torch.zeros(1, 1, 8, 8)}
    sizes = {3: torch.export.Dim("width", min=4, max=16)}
    dynamic = {"image": sizes, "grey": None, "row": None}
    return trace(Two(), {**inputs, "row": torch.zeros(5)}, dynamic)


def read(graph: Graph, hooks: Mapping[str, Any] | None = None, **texts: Any) -> Interface:
    """Return the interface that a file with these hooks and constants describes."""
    module = ModuleType("m")
    for name, value in texts.items():
        setattr(module, name, value)
    given = hooks or {}
    return read_interface(
        graph, module, lambda name: (lambda: given[name]) if name in given else None, "m.py"
    )


def test_a_file_that_says_nothing(graph: Graph) -> None:
    assert read(graph) == Interface()


def test_pictures(graph: Graph) -> None:
    scale = {"scale": 1 / 127.5, "bias": [-1, -1.5, -1], "color": "BGR"}
    found = read(graph, {"image_inputs": {"image": scale, "grey": {"bias": 2}}}).images
    assert found["image"] == ImageInput(1 / 127.5, (-1.0, -1.5, -1.0), "BGR")
    assert found["grey"] == ImageInput(1.0, (2.0,), "GRAYSCALE")
    (plain,) = read(graph, {"image_inputs": {"image": {}}}).images.values()
    assert plain == ImageInput(1.0, (0.0, 0.0, 0.0), "RGB")


BAD_PICTURES: list[tuple[Any, str]] = [
    (
        {"image": {"scale": 0}},
        r"image_inputs\(\) of m.py gives \{'scale': 0\} for 'image'; it must",
    ),
    ({"image": {"scale": float("nan")}}, "'scale': nan"),
    ({"image": {"scale": "1"}}, "'scale': '1'"),
    ({"image": {"bias": [1, 2]}}, r"bias \(a number, or one a channel\)"),
    ({"image": {"bias": float("inf")}}, "'bias': inf"),
    ({"image": {"color": "CMYK"}}, r"color \(RGB, BGR, GRAYSCALE\)"),
    ({"image": {"scales": 2}}, "'scales': 2"),
    ({"grey": {"color": "RGB"}}, r"'grey' must have the shape \[1, 3, height, width\]"),
    ({"image": {"color": "GRAYSCALE"}}, r"shape \[1, 1, height, width\], one picture, not \[1, 3"),
    ({"row": {}}, r"'row' must have the shape \[1, 3, height, width\], one picture, not \[5\]"),
    ({"picture": {}}, "names picture; it must give a dictionary by input: image, grey, row"),
    ([{"image": {}}], r"gives \[\{'image': \{\}\}\]; it must give a dictionary by input"),
]


@pytest.mark.parametrize(("given", "message"), BAD_PICTURES)
def test_pictures_that_do_not_fit(graph: Graph, given: Any, message: str) -> None:
    refuses(graph, message, {"image_inputs": given})


def test_a_batch_of_pictures_is_refused() -> None:
    graph = trace(nn.ReLU(), torch.zeros(2, 3, 8, 8), ({0: torch.export.Dim("batch")},))
    refuses(graph, "one picture, not .* with a free batch", {"image_inputs": {"input": {}}})


def test_shapes(graph: Graph) -> None:
    given = {"image": [(1, 3, 8, 4), [1, 3, 8, 16]], "row": [(5,)]}
    found = read(graph, {"input_shapes": given}).shapes
    assert found == {"image": ((1, 3, 8, 4), (1, 3, 8, 16)), "row": ((5,),)}


BAD_SHAPES: list[tuple[Any, str]] = [
    ({"image": [(1, 3, 8, 8), (1, 3, 8, 17)]}, r"gives \[1, 3, 8, 17\] for 'image', .* axes \[3\]"),
    ({"image": [(1, 3, 8, 3)]}, r"gives \[1, 3, 8, 3\]"),
    ({"image": [(1, 3, 9, 8)]}, r"free the axis in dynamic_shapes\(\) first"),
    ({"image": [(1, 3, 8)]}, r"gives \[1, 3, 8\] for 'image'"),
    ({"row": [(6,)]}, r"gives \[6\] for 'row', whose shape is \[5\] with axes none"),
    ({"image": []}, r"gives no shape for 'image'"),
    ({"size": [(1,)]}, "names size; it must give a dictionary by input"),
]


@pytest.mark.parametrize(("given", "message"), BAD_SHAPES)
def test_shapes_that_do_not_fit(graph: Graph, given: Any, message: str) -> None:
    refuses(graph, message, {"input_shapes": given})


def test_labels(graph: Graph) -> None:
    assert read(graph, {"class_labels": ["cat", "dog"]}).labels == ("cat", "dog")
    assert read(graph, {"class_labels": (0, 1)}).labels == ("0", "1")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("cat", r"class_labels\(\) of m.py must give a list of class names, not 'cat'"),
        ([], r"must give a list of class names, not \[\]"),
        ({"cat": 0}, "must give a list of class names"),
        (["cat", "cat"], r"class_labels\(\) of m.py names a class twice"),
        ([1, "1"], "names a class twice"),
    ],
)
def test_labels_that_do_not_fit(graph: Graph, given: Any, message: str) -> None:
    refuses(graph, message, {"class_labels": given})


def test_texts(graph: Graph) -> None:
    texts = {"AUTHOR": "A", "LICENSE": "MIT", "VERSION": "1.2", "DESCRIPTION": "what it does"}
    assert read(graph, **texts).metadata == {
        "author": "A", "licence": "MIT", "version": "1.2", "description": "what it does",
    }  # fmt: skip


@pytest.mark.parametrize("name", ["AUTHOR", "LICENSE", "VERSION", "DESCRIPTION"])
def test_texts_that_are_none(graph: Graph, name: str) -> None:
    refuses(graph, rf"{name} of m.py must be a text, not 1.2", **{name: 1.2})


def refuses(
    graph: Graph, message: str, hooks: Mapping[str, Any] | None = None, **texts: Any
) -> None:
    """Expect one line that ends without a full stop."""
    with pytest.raises(ModelError, match=message) as error:
        read(graph, hooks, **texts)
    text = str(error.value)
    assert "\n" not in text
    assert not text.endswith(".")
