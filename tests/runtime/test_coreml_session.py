"""The Core ML engine, on a Mac that is made up: coremltools and the platform are stand-ins."""

from __future__ import annotations

import enum
import hashlib
import platform
import subprocess
import sys
import types
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from coremltools import ComputeUnit
from coremltools.proto import FeatureTypes_pb2, Model_pb2

from qcompile.compiler.driver.write import write_runtime
from qcompile.runtime import Session
from qcompile.runtime.errors import BundleError, MissingPackageError, QCompileError
from qcompile.runtime.manifest import FileInfo, Manifest, TensorInfo
from qcompile.runtime.sessions import coreml

HALF, SINGLE, INTEGER, RGB, BGR = 65552, 65568, 131104, 20, 30
Units = enum.Enum("Units", ["ALL", "CPU_AND_GPU", "CPU_ONLY", "CPU_AND_NE"])  # type: ignore[misc]


def feature(name: str, **kind: Any) -> Any:
    """An input or output as a package describes it."""
    return Model_pb2.FeatureDescription(name=name, type=kind)


def array(name: str, dtype: int) -> Any:
    return feature(name, multiArrayType={"dataType": dtype})


class FakeModel:
    """What the tests look at: how it was made, and what it was given."""

    __proxy__: Any = "loaded"
    inputs = (array("image", HALF), array("ids", INTEGER), array("extra", SINGLE))
    outputs = (array("boxes", HALF), array("count", INTEGER))
    made: tuple[Any, ...]
    given: Mapping[str, Any]

    def __init__(self, model: str, compute_units: Any) -> None:
        type(self).made = (model, compute_units)

    def get_spec(self) -> types.SimpleNamespace:
        return types.SimpleNamespace(
            description=types.SimpleNamespace(input=self.inputs, output=self.outputs)
        )

    def predict(self, given: Mapping[str, Any]) -> dict[str, Any]:
        type(self).given = given
        return {"count": np.full(1, 3, np.float64), "boxes": np.ones((2, 4), np.float32)}


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> type[FakeModel]:
    """A Mac of macOS 15.1 with coremltools."""
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    monkeypatch.setattr(platform, "mac_ver", lambda: ("15.1", ("", "", ""), "arm64"))
    fake = types.ModuleType("coremltools")
    own: type[FakeModel] = type("Model", (FakeModel,), {})
    fake.models = types.SimpleNamespace(MLModel=own)  # type: ignore[attr-defined]
    fake.ComputeUnit = Units  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "coremltools", fake)
    return own


OPTIONS = {"inputs": ["extra", "image", "ids"], "outputs": ["boxes", "count"]}
VALUES = [
    np.ones((2, 4), np.float32),
    np.full((2, 3), 0.1, np.float16),
    np.array([[1, 2]], np.int32),
]


def engine(**options: Any) -> coreml.Engine:
    return coreml.Engine(Path("two.qc/model.mlpackage"), {**OPTIONS, **options}, 1)


def test_values_go_by_name(model: type[FakeModel]) -> None:
    """The manifest's order is neither the package's nor that of what Core ML returns."""
    boxes, count = engine().run(VALUES)
    assert list(model.given) == OPTIONS["inputs"]
    np.testing.assert_array_equal(model.given["ids"], [[1, 2]])
    assert boxes.shape == (2, 4)
    np.testing.assert_array_equal(count, [3])


def test_the_order_is_the_packages_if_none_is_given(model: type[FakeModel]) -> None:
    extra, image, ids = VALUES
    made = coreml.Engine(Path("two.qc/model.mlpackage"), {"float_bits": 16}, 1)
    assert [value.shape for value in made.run([image, ids, extra])] == [(2, 4), (1,)]
    assert list(model.given) == ["image", "ids", "extra"]


def test_dtypes(model: type[FakeModel]) -> None:
    """Half precision goes in as single; outputs come back as the package declares them."""
    found = engine().run(VALUES)
    dtypes = {name: value.dtype.name for name, value in model.given.items()}
    assert dtypes == {"extra": "float32", "image": "float32", "ids": "int32"}
    np.testing.assert_array_equal(model.given["image"], np.full((2, 3), np.float16(0.1)))
    assert [value.dtype.name for value in found] == ["float16", "int32"]


@pytest.mark.parametrize(
    ("units", "expected"),
    [
        (None, "ALL"),
        ("all", "ALL"),
        ("cpu-only", "CPU_ONLY"),
        ("cpu-and-gpu", "CPU_AND_GPU"),
        ("cpu-and-neural-engine", "CPU_AND_NE"),
    ],
)
def test_compute_units(model: type[FakeModel], units: str | None, expected: str) -> None:
    engine(**({} if units is None else {"compute_units": units}))
    assert model.made == (str(Path("two.qc/model.mlpackage")), Units[expected])


def test_the_numbers_are_those_of_coremltools() -> None:
    kinds = dict(FeatureTypes_pb2.ArrayFeatureType.ArrayDataType.items())
    names = {value: name.lower().replace("double", "float64") for name, value in kinds.items()}
    assert {value: names[value] for value in coreml._DTYPES} == coreml._DTYPES
    assert set(names) - {0} == set(coreml._DTYPES)
    assert FeatureTypes_pb2.ImageFeatureType.ColorSpace.Value("BGR") == coreml._BGR
    assert set(coreml.UNITS.values()) == set(ComputeUnit.__members__)


@pytest.mark.parametrize(("colours", "first"), [(RGB, 0), (BGR, 2)])
def test_images(
    model: type[FakeModel], monkeypatch: pytest.MonkeyPatch, colours: int, first: int
) -> None:
    """Pillow's images are RGB, whatever order the model's channels have."""
    pillow = types.ModuleType("PIL")
    pillow.Image = types.SimpleNamespace(fromarray=lambda value: value)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "PIL", pillow)
    model.inputs = (feature("image", imageType={"colorSpace": colours}),)
    values = np.stack([np.full((2, 5), v, np.uint8) for v in (0, 100, 255)])
    engine(inputs=["image"], images={"image": "RGB"}).run([values[None]])
    found = model.given["image"]
    assert (found.shape, found.dtype) == ((2, 5, 3), np.uint8)
    assert found[0, 0].tolist() == ([0, 100, 255] if first == 0 else [255, 100, 0])
    engine(inputs=["image"]).run([values[None, 1:2]])
    assert model.given["image"].shape == (2, 5)


LABELS = ["dog", "cat", "eel"]
CLASSIFIER = {"label": "classLabel", "probabilities": "classLabel_probs", "labels": LABELS}


@pytest.fixture
def classifier(model: type[FakeModel]) -> type[FakeModel]:
    """A model that returns a class and, in an order of its own, the probabilities."""
    model.outputs = (
        feature("classLabel_probs", dictionaryType={"stringKeyType": {}}),
        feature("classLabel", stringType={}),
    )
    by_label = {"cat": 0.25, "dog": 0.125, "eel": 0.625}
    model.predict = lambda *_: {"classLabel": "eel", "classLabel_probs": by_label}  # type: ignore[assignment,return-value,method-assign]
    return model


def test_a_classifier_gives_the_labels_order(classifier: type[FakeModel]) -> None:
    made = engine(outputs=["scores"], classifier=CLASSIFIER, float_bits=16)
    (scores,) = made.run(VALUES)
    assert scores.dtype == np.float32
    np.testing.assert_array_equal(scores, [[0.125, 0.25, 0.625]])


@pytest.mark.parametrize("labels", [[], ["dog", "cat"], ["dog", "cat", "eel", "owl"]])
def test_another_classifier(classifier: type[FakeModel], labels: list[str]) -> None:
    with pytest.raises(BundleError, match=r"^the package has other classes than .*cat, dog, eel"):
        engine(outputs=["scores"], classifier={**CLASSIFIER, "labels": labels}).run(VALUES)


def fail(error: Exception) -> Callable[..., None]:
    def call(*args: Any, **kwargs: Any) -> None:
        raise error

    return call


def warn(self: FakeModel, model: str, compute_units: Any) -> None:
    prefix = "You will not be able to run predict() on this Core ML model."
    warnings.warn(f"{prefix} Underlying exception message was: it is cut\noff", RuntimeWarning, 2)


@pytest.mark.parametrize(
    ("attributes", "options", "message"),
    [
        ({}, {"compute_units": "npu"}, "no compute units 'npu'; there are: all, cpu-only, cpu-and"),
        ({}, {"inputs": ["image"]}, "has the inputs image, and the package image, ids,"),
        ({}, {"outputs": ["x"]}, "has the outputs x, and the package boxes, count; build the"),
        ({}, {"classifier": CLASSIFIER}, "has the outputs classLabel, classLabel_probs, and the p"),
        (
            {"__proxy__": None},
            {},
            "of macOS 15.1 refuses it: it was made for a newer macOS; update",
        ),
        ({"__proxy__": None, "__init__": warn}, {}, "Core ML of macOS 15.1 refuses it: it is cut"),
        ({"__init__": fail(OSError("no file\nno"))}, {}, "macOS 15.1 refuses it: no file"),
        ({"predict": fail(RuntimeError("bad\nvery"))}, {}, "macOS 15.1 cannot run it: bad"),
    ],
)
def test_what_is_wrong_is_one_sentence(
    model: type[FakeModel], attributes: dict[str, Any], options: dict[str, Any], message: str
) -> None:
    for name, value in attributes.items():
        setattr(model, name, value)
    with pytest.raises(BundleError) as error:
        engine(**options).run(VALUES)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("package", ["coremltools", "PIL"])
def test_missing_packages(
    model: type[FakeModel], monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    model.inputs = (feature("image", imageType={"colorSpace": RGB}),)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingPackageError, match=r"run: pip install (coremltools|pillow)$"):
        engine(inputs=["image"]).run([np.ones((1, 3, 2, 2), np.uint8)])


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A bundle as far as a session looks before it has an engine."""
    folder = tmp_path / "two.qc"
    (folder / "model.mlpackage").mkdir(parents=True)
    (folder / "model.mlpackage" / "Manifest.json").write_bytes(b"{}")
    inputs = [
        TensorInfo(n, str(v.dtype), v.shape) for n, v in zip(OPTIONS["inputs"], VALUES, strict=True)
    ]
    manifest = Manifest(
        name="two",
        target="apple-m2",
        format="coreml",
        precision="fp16",
        artifact="model.mlpackage",
        engine={"name": "coreml", "minimum": "15", "options": OPTIONS},
        inputs=tuple(inputs),
        outputs=(TensorInfo("boxes", "float16", (2, 4)), TensorInfo("count", "int32", (1,))),
        files={"model.mlpackage/Manifest.json": FileInfo(2, hashlib.sha256(b"{}").hexdigest())},
    )
    (folder / "manifest.json").write_text(manifest.to_json(), encoding="utf-8")
    return folder


def test_a_session(model: type[FakeModel], bundle: Path) -> None:
    session = Session(bundle)
    found = session.run(dict(zip(OPTIONS["inputs"], VALUES, strict=True)))
    assert list(found) == ["boxes", "count"]
    assert model.made[0] == str(bundle / "model.mlpackage")


def test_an_older_macos_is_refused(
    model: type[FakeModel], bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform, "mac_ver", lambda: ("14.7.1", ("", "", ""), "arm64"))
    with pytest.raises(BundleError) as error:
        Session(bundle)
    assert str(error.value) == (
        "the bundle was made for macOS 15 or later, and this is 14.7.1, which would compute otherwise "
        "than was verified; update macOS"
    )


def test_elsewhere(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "system", lambda: "Linux")
    with pytest.raises(QCompileError) as error:
        Session(bundle)
    assert str(error.value) == (
        f"{bundle / 'model.mlpackage'}: Core ML runs on macOS and iOS only, and this is Linux; to run "
        f"the package in the reference interpreter instead: qcompile verify {bundle}"
    )


@pytest.mark.skipif(sys.platform == "darwin", reason="Core ML is here")
def test_the_bundles_own_runtime_elsewhere(bundle: Path) -> None:
    write_runtime(bundle / "run.pyz")
    done = subprocess.run([sys.executable, bundle / "run.pyz"], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert "Core ML runs on macOS and iOS only" in done.stderr
    assert done.stderr.count("\n") == 1
