"""The Swift package around a Core ML bundle: it parses, it finds its files, it says what it must."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tree_sitter_swift
from tree_sitter import Language, Node, Parser

from qcompile.compiler.ir.errors import UnsupportedError
from qcompile.runtime.manifest import TensorInfo
from qcompile.targets.coreml.swift import write_swift_package

PARSER = Parser(Language(tree_sitter_swift.language()))
IMAGE = TensorInfo("image", "float32", (1, 3, 64, 48))
SCORES = TensorInfo("scores", "float32", (1, 10))
WEIRD = '"; }\\(0)\n\N{SNOWMAN}<<model>>'
MODELS: dict[str, dict[str, Any]] = {
    "array": {},
    "several": {
        "inputs": [
            IMAGE,
            TensorInfo("features", "float16", (2, 4)),
            TensorInfo("ids", "int32", (7,)),
        ],
        "outputs": [SCORES, TensorInfo("found", "float16", (1,)), TensorInfo("n", "int32", (1,))],
    },
    "free-axes": {
        "inputs": [TensorInfo("tokens", "int32", ("batch", "length"))],
        "outputs": [TensorInfo("output", "float32", ("batch", "length", 32))],
    },
    "rgb": {"images": {"image": "RGB"}},
    "bgr-and-an-array": {
        "inputs": [IMAGE, TensorInfo("extra", "float32", (1, 4))],
        "images": {"image": "BGR"},
    },
    "grey-uint8": {
        "inputs": [TensorInfo("image", "uint8", (1, 1, 28, 28))],
        "images": {"image": "GRAYSCALE"},
    },
    "image-of-free-size": {
        "inputs": [TensorInfo("image", "float32", (1, 3, "height", "width"))],
        "images": {"image": "RGB"},
    },
    "classifier": {
        "outputs": [TensorInfo("scores", "float32", (1, 3))],
        "labels": ["cat", "dog", WEIRD],
    },
    "classifier-of-images": {
        "inputs": [TensorInfo("image", "uint8", (1, 3, 64, 48))],
        "images": {"image": "RGB"},
        "outputs": [TensorInfo(WEIRD, "float32", (1, 1))],
        "labels": ["only"],
    },
    "bad-names": {
        "name": "2nd/try: in",
        "inputs": [TensorInfo(n, "float32", (1,)) for n in ("in", "1", "a.b", "a-b", WEIRD, "_")],
        "outputs": [TensorInfo(n, "int8", (1,)) for n in ("self", "init", "qcompileOutput", "")],
    },
}


def write(folder: Path, **changes: Any) -> dict[str, str]:
    """Write a package; return its files by name."""
    known: dict[str, Any] = {
        "name": "my-net",
        "inputs": [IMAGE],
        "outputs": [SCORES],
        "images": {},
        "labels": None,
        "minimum_os": ("14.0", "17.0"),
        "vectors_limit_db": 31.5,
    }
    files = write_swift_package(folder, **{**known, **changes})
    assert sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*.swift")) == list(files)
    return {Path(name).name: (folder / name).read_text(encoding="utf-8") for name in files}


def source(files: dict[str, str]) -> str:
    """Return the file that an app calls."""
    (name,) = files.keys() - {"Package.swift", "VectorTests.swift", "Vectors.swift"}
    return files[name]


def nodes(node: Node) -> Iterator[Node]:
    yield node
    for child in node.children:
        yield from nodes(child)


def wrong(text: str) -> list[str]:
    """Return what the grammar does not know, with its line."""
    tree = PARSER.parse(text.encode())
    return [
        f"{n.type} in line {n.start_point.row + 1}: {n.text!r}"
        for n in nodes(tree.root_node)
        if n.is_error or n.is_missing
    ]


@pytest.mark.parametrize("name", MODELS)
def test_every_file_parses(name: str, tmp_path: Path) -> None:
    files = write(tmp_path, **MODELS[name])
    assert {file: wrong(text) for file, text in files.items() if wrong(text)} == {}
    texts = [text.replace("\N{SNOWMAN}<<model>>", "") for text in files.values()]
    assert not any(re.search(r"<<\w+>>", text) for text in texts)


def test_the_grammar_sees_errors() -> None:
    assert wrong("let x = (1")
    assert wrong("struct A { var 1st: Int }")
    assert wrong('let x = "a"b"')
    assert not wrong("struct A { var _1st: Int }")


@pytest.mark.parametrize("name", MODELS)
def test_the_same_model_gives_the_same_bytes(name: str, tmp_path: Path) -> None:
    first = write(tmp_path / "a", **MODELS[name])
    assert write(tmp_path / "b", **MODELS[name]) == first


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A folder with all that a bundle holds."""
    for name in ("manifest.json", "run.pyz", "model.mlpackage/Manifest.json", "vectors/inputs.npz"):
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    write(tmp_path)
    return tmp_path


def test_each_target_accounts_for_each_file(bundle: Path) -> None:
    """Swift's package manager warns of files that no rule names, and of names without a file."""
    text = (bundle / "Package.swift").read_text(encoding="utf-8")
    targets = re.findall(r"path: \"\.\",(.*?)\n        \),", text, re.DOTALL)
    assert len(targets) == 2
    sources = []
    for target in targets:
        lists = {
            key: re.findall(r'"([^"]+)"', re.search(rf"{key}: \[(.*?)\]", target)[1])  # type: ignore[index]
            for key in ("exclude", "sources", "resources")
        }
        named = [path for paths in lists.values() for path in paths]
        assert all((bundle / path).exists() for path in named)
        for file in (f for f in bundle.rglob("*") if f.is_file() and f.name != "Package.swift"):
            owners = [p for p in named if file.is_relative_to(bundle / p)]
            assert len(owners) == 1, f"{file.name}: {owners}"
        sources += lists["sources"]
    assert len(set(sources)) == 2


def test_what_an_app_sees(tmp_path: Path) -> None:
    files = write(tmp_path, **MODELS["several"])
    text = source(files)
    for line in (
        "public struct MyNetInput {",
        '    /// "image": float32 [1, 3, 64, 48].',
        "    public var image: MLShapedArray<Float>",
        "    public var features: MLShapedArray<Float16>",
        "    public var ids: MLShapedArray<Int32>",
        '            "ids": MLFeatureValue(shapedArray: ids),',
        "    public let found: MLShapedArray<Float16>",
        '        self.n = try qcompileOutput(found, "n")',
        "public final class MyNet {",
    ):
        assert line in text.splitlines()
    assert 'name: "MyNetModel"' in files["Package.swift"]
    assert "import MyNetModel" in files["VectorTests.swift"]


def test_intel_macs_have_no_half_precision(tmp_path: Path) -> None:
    guard = "#if (os(macOS) || targetEnvironment(macCatalyst)) && arch(x86_64)"
    assert guard in source(write(tmp_path / "a", **MODELS["several"]))
    assert guard not in source(write(tmp_path / "b"))


@pytest.mark.parametrize(
    ("model", "order", "format"),
    [
        ("rgb", "[2, 1, 0]", "_32BGRA"),
        ("bgr-and-an-array", "[0, 1, 2]", "_32BGRA"),
        ("grey-uint8", "[0]", "_OneComponent8"),
        ("image-of-free-size", "[2, 1, 0]", None),
    ],
)
def test_images(tmp_path: Path, model: str, order: str, format: str | None) -> None:
    files = write(tmp_path, **MODELS[model])
    text = source(files)
    assert "public var image: CVPixelBuffer" in text
    assert f'image: try inputs.pixels("image", order: {order})' in files["VectorTests.swift"]
    found = re.search(r"qcompilePixels\(image, (\d+), (\d+), kCVPixelFormatType(\w+)\)", text)
    if format is None:
        assert found is None
        assert "CGImage," not in text
        return
    *_, height, width = MODELS[model].get("inputs", [IMAGE])[0].shape
    assert found is not None
    assert found.groups() == (str(width), str(height), format)


def test_a_classifier(tmp_path: Path) -> None:
    files = write(tmp_path / "a", **MODELS["classifier"])
    text = source(files)
    listed = re.search(r"labels: \[String\] = \[\n(.*?)\n    \]", text, re.DOTALL)
    assert listed is not None
    lines = [line.strip() for line in listed[1].splitlines()]
    assert lines == ['"cat",', '"dog",', '"\\"; }\\\\(0)\\u{a}\N{SNOWMAN}<<model>>",']
    for line in (
        "    public let classLabel: String",
        "    public let probabilities: [String: Double]",
        '        guard let label = found.featureValue(for: "classLabel"), label.type == .string,',
        '            let byLabel = found.featureValue(for: "classLabel_probs")?.dictionaryValue,',
        '            throw MyNetError(description: "the model returned no class with probabilities")',
    ):
        assert line in text.splitlines()
    assert "qcompileOutput" not in text
    assert "scores" not in text
    assert "labels" not in source(write(tmp_path / "b", labels=None))


def test_a_classifiers_vectors_are_in_the_labels_order(tmp_path: Path) -> None:
    """The vectors hold the model's own output, [1, classes]."""
    text = write(tmp_path, **MODELS["classifier"])["VectorTests.swift"]
    assert '        try compare("scores", found, expected)' in text.splitlines()
    assert "_ name: String, _ found: MyNetOutput, _ expected: Vectors" in text
    assert "let values = try MyNet.labels.map { label in" in text
    assert "try compare(name, [1, values.count], values, expected)" in text


def test_the_vectors_are_compared(tmp_path: Path) -> None:
    text = write(tmp_path, **MODELS["several"], vectors_limit_db=40)["VectorTests.swift"]
    assert "static let limit = 40.0" in text
    for name in ("scores", "found", "n"):
        assert f'try compare("{name}", found.{name}, expected)' in text
    assert 'features: try inputs.floating("features"),' in text
    assert 'ids: try inputs.whole("ids")\n' in text


@pytest.mark.parametrize(
    ("minimum", "expected"),
    [
        (("12", "15.4"), ("13.0", "16.0")),
        (("14", "17.4.1"), ("14.0", "17.4.1")),
        (("13.10", "16.2"), ("13.10", "16.2")),
        (("26", "26.0"), ("26.0", "26.0")),
    ],
)
def test_platforms(tmp_path: Path, minimum: tuple[str, str], expected: tuple[str, str]) -> None:
    text = write(tmp_path, minimum_os=minimum)["Package.swift"]
    assert f'platforms: [.macOS("{expected[0]}"), .iOS("{expected[1]}")]' in text


def test_dtypes_without_arrays(tmp_path: Path) -> None:
    outputs = [TensorInfo("mask", "bool", (1,)), SCORES, TensorInfo("ids", "int64", (1,))]
    with pytest.raises(
        UnsupportedError, match=r"dtypes: mask \(bool\), ids \(int64\); it has float"
    ):
        write(tmp_path, outputs=outputs)
    assert not list(tmp_path.iterdir())
