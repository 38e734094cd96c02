"""The Swift package: all that it names is in the bundle. Apple's tools, which compile it, are not here."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from qcompile.compiler.driver.check import open_session

Bundle = Callable[[str], Path]
PACKAGE = Path(__file__).parents[2] / "examples" / "app" / "swift"
NAME = "digits-apple-a17-pro"


def test_each_target_has_its_folder() -> None:
    text = (PACKAGE / "Package.swift").read_text()
    targets = re.findall(r"\.target\(\s*name: \"(\w+)\"", text)
    tests = re.findall(r"\.testTarget\(\s*name: \"(\w+)\"", text)
    assert {f.name for f in (PACKAGE / "Sources").iterdir()} == set(targets)
    assert {f.name for f in (PACKAGE / "Tests").iterdir()} == set(tests)


@pytest.mark.slow
def test_what_it_names_is_in_the_bundle(bundle: Bundle) -> None:
    pytest.importorskip("coremltools")
    built = bundle(NAME)
    app, model = (f.read_text() for f in (PACKAGE / "Package.swift", built / "Package.swift"))
    for path in re.findall(r"(\.\./\S+\.qc)", app):
        assert (PACKAGE / path).resolve().name == built.name
    product = re.search(r'\.product\(name: "(\w+)"', app)
    assert product
    assert f'.library(name: "{product[1]}"' in model
    assert re.search("platforms: .*", app)[0] == re.search("platforms: .*", model)[0]  # type: ignore[index]

    reader = next((PACKAGE / "Sources").rglob("*.swift")).read_text()
    source = next((built / "swift" / "Sources").iterdir()).read_text()
    assert f"import {product[1]}\n" in reader
    called = re.search(r"predict\((\w+)\((\w+): \w+\)\)\.(\w+)\.scalars", reader)
    assert called
    assert f"public init({called[2]}: MLShapedArray<Float>)" in source
    assert f"public struct {called[1]} " in source
    assert f"public let {called[3]}: MLShapedArray<Float>" in source
    declared = re.search(r"let model: (\w+)", reader)
    assert declared
    assert f"public final class {declared[1]} " in source


@pytest.mark.slow
def test_the_apps_own_test_is_right(bundle: Bundle) -> None:
    """What Core ML is to say of the pixels in it, the reference interpreter says."""
    pytest.importorskip("coremltools")
    text = next((PACKAGE / "Tests").rglob("*.swift")).read_text()
    row = [float(x) for x in re.search(r"row: \[Float\] = \[(.*)\]", text)[1].split(",")]  # type: ignore[index]
    expected = int(re.search(r"XCTAssertEqual\(found, (\d)\)", text)[1])  # type: ignore[index]
    image = np.tile(np.array(row, np.float32), (8, 1)).reshape(1, 1, 8, 8)
    found = open_session(bundle(NAME)).run({"image": image})
    assert found["output"].argmax() == expected
