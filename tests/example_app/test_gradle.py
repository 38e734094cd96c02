"""The Gradle project: what it names is in the bundle, its test runs on a JVM with ONNX Runtime's answers.

Gradle and ONNX Runtime for Java are not here: ``java_stubs`` has what the sources use of JUnit and ONNX
Runtime; its session gives what ONNX Runtime gave in Python.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from qcompile.compiler.driver.check import open_session
from qcompile.runtime.vectors import read_arrays, save_arrays

Bundle = Callable[[str], Path]
PROJECT = Path(__file__).parents[2] / "examples" / "app" / "gradle"
STUBS = Path(__file__).parent / "java_stubs"
SCRIPT = (PROJECT / "digits" / "build.gradle.kts").read_text()
NAME = "digits-pixel-8"


def test_each_project_and_source_is_there() -> None:
    included = re.findall(r'include\(":(\w+)"\)', (PROJECT / "settings.gradle.kts").read_text())
    assert included == ["digits"]
    package = re.search('namespace = "(.*)"', SCRIPT)[1]  # type: ignore[index]
    files = list(PROJECT.rglob("*.java"))
    assert len(files) == 3
    for file in files:
        assert file.read_text().startswith(f"package {package};\n")
        assert file.parent.as_posix().endswith(package.replace(".", "/"))
    for folder in re.findall(r'java\.srcDir\("(.*)"\)', SCRIPT):
        assert (PROJECT / "digits" / folder).is_dir()


@pytest.mark.slow
def test_what_it_names_is_in_the_bundle(bundle: Bundle) -> None:
    built = bundle(NAME)
    manifest = json.loads((built / "manifest.json").read_text())
    (path,) = re.findall(r'rootDir\.resolve\("(.*)"\)', SCRIPT)
    assert (PROJECT / path).resolve().name == built.name
    assert re.findall(r'include\("(.*)"\)', SCRIPT) == [manifest["artifact"]]
    for file in re.findall(
        r'open\("(.*?)"\)', " ".join(f.read_text() for f in PROJECT.rglob("*.java"))
    ):
        assert file in manifest["files"]
    version = re.search('onnxRuntime = "(.*)"', SCRIPT)[1].split(".")  # type: ignore[index]
    least = manifest["engine"]["minimum"].split(".")
    assert [int(part) for part in version] >= [int(part) for part in least]
    ((given,), (returned,)) = (manifest["inputs"], manifest["outputs"])
    test, model = (source(name) for name in ("VectorsTest.java", "Digits.java"))
    assert f'inputs.npz")).get("{given["name"]}")' in test
    assert f'outputs.npz")).get("{returned["name"]}")' in test
    assert f'singletonMap("{given["name"]}", input)' in model


def source(name: str) -> str:
    return next(PROJECT.rglob(name)).read_text()


@pytest.fixture(scope="module")
def classes(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project's classes, compiled with the stubs and what Gradle makes of the manifest."""
    if not (shutil.which("javac") and shutil.which("java")):
        pytest.skip("needs a JDK")
    folder = tmp_path_factory.mktemp("classes")
    generated = folder / "BuildConfig.java"
    manifest = json.loads((bundle(NAME) / "manifest.json").read_text())
    options = ", ".join(f'{{"{k}", "{v}"}}' for k, v in manifest["engine"]["options"].items())
    limit = manifest["parity"]["vectors_min_sqnr_db"]
    generated.write_text(
        "package com.example.digits;\nfinal class BuildConfig {\n"
        f"static final String[][] SESSION_OPTIONS = {{{options}}};\n"
        f"static final double VECTORS_MIN_SQNR_DB = {limit};\n}}\n"
    )
    sources = [*PROJECT.rglob("*.java"), *STUBS.rglob("*.java"), generated]
    compiled = subprocess.run(
        ["javac", "--release", "8", "-Xlint:all,-options", "-Werror", "-d", folder, *sources],
        capture_output=True, text=True,
    )  # fmt: skip
    assert compiled.returncode == 0, compiled.stderr
    return folder


def run(classes: Path, built: Path, answers: Path) -> subprocess.CompletedProcess[str]:
    """Run the test with the bundle among its resources and the engine's answers."""
    command = ["java", "-cp", f"{classes}:{built}", f"-Danswers={answers}", "org.junit.RunTest"]
    return subprocess.run(
        [*command, "com.example.digits.VectorsTest"], capture_output=True, text=True
    )


@pytest.mark.slow
def test_the_vectors_on_a_jvm(classes: Path, bundle: Bundle, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    built = Path(shutil.copytree(bundle(NAME), tmp_path / "copy.qc"))
    inputs = read_arrays(built / "vectors" / "inputs.npz")
    found = open_session(built).run(inputs)["output"]
    answers = tmp_path / "answers"
    answers.write_bytes(inputs["image"].astype(">f4").tobytes() + found.astype(">f4").tobytes())
    passed = run(classes, built, answers)
    assert passed.returncode == 0, passed.stderr
    options = json.loads((built / "manifest.json").read_text())["engine"]["options"]
    assert passed.stdout.split() == [
        *sorted(f"{k}={v}" for k, v in options.items()), "image[16,1,8,8]",
    ]  # fmt: skip

    expected = read_arrays(built / "vectors" / "outputs.npz")
    expected["output"][3, 4] += np.float32(1)
    save_arrays(built / "vectors" / "outputs.npz", expected)
    failed = run(classes, built, answers)
    assert failed.returncode == 1
    assert re.search(r"AssertionError: \d\d\.\d+ dB", failed.stderr)
