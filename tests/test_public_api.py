"""What ``import qcompile`` gives; a name that is added or lost is a decision, not an accident."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import qcompile

PUBLIC = [
    "BuildOptions",
    "Bundle",
    "QCompileError",
    "Session",
    "Tuning",
    "WeightOptions",
    "compile",
    "load",
]


class Classifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.head = nn.Linear(8, 4)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.conv(image)).mean((2, 3)))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> qcompile.Bundle:
    torch.manual_seed(0)
    model = Classifier()
    images = np.random.default_rng(0).standard_normal((32, 3, 8, 8)).astype(np.float32)
    stages: list[str] = []
    from qcompile.compiler.driver.progress import Progress

    built = qcompile.compile(
        model,
        {"image": torch.from_numpy(images[:2])},
        target="x86-avx512-vnni",
        calibration={"image": images},
        dynamic_shapes={"image": {0: torch.export.Dim("batch", min=1, max=64)}},
        evaluate=lambda predict: float(predict({"image": images})["output"].mean()),
        output=tmp_path_factory.mktemp("api") / "c.qc",
        progress=Progress(stage=stages.append),
    )
    assert model.training, "the model's flags are restored"
    assert stages[0] == "calibration data"
    return built


def test_the_names() -> None:
    assert qcompile.__all__ == PUBLIC
    assert dir(qcompile) == sorted([*PUBLIC, "__version__"])
    for name in PUBLIC:
        assert getattr(qcompile, name).__doc__
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        qcompile.nothing  # noqa: B018


@pytest.mark.parametrize("statement", ["import qcompile", "from qcompile import load, Session"])
def test_importing_needs_no_torch(statement: str) -> None:
    program = f"{statement}; import sys; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == "False", done.stderr


def test_compile_and_load(bundle: qcompile.Bundle) -> None:
    assert bundle.passed
    assert bundle.manifest.name == "classifier"
    assert list(bundle.manifest.quality) == ["metric"]
    session = qcompile.load(bundle.path)
    for size in (1, 3, 32):
        outputs = session.run({"image": np.zeros((size, 3, 8, 8), np.float32)})
        assert {n: v.shape for n, v in outputs.items()} == {"output": (size, 4)}
    assert bundle.session().run({"image": np.zeros((1, 3, 8, 8), np.float32)})
    assert repr(session) == (
        "Session(classifier for x86-avx512-vnni; image: float32[batch, 3, 8, 8])"
    )


def test_a_bundle_prints_well(bundle: qcompile.Bundle) -> None:
    text = repr(bundle)
    assert text.splitlines()[0] == "Bundle c.qc"
    assert "x86-avx512-vnni (onnx, int8)" in text
    assert "all passed" in text
    page = bundle._repr_html_()
    assert page.startswith("<table>")
    assert "<caption>c.qc</caption>" in page
    opened = qcompile.Bundle.open(bundle.path)
    assert repr(opened) == text


def test_errors_have_one_root(tmp_path: Path) -> None:
    inputs = {"image": torch.zeros(2, 3, 8, 8)}
    folder = tmp_path / "x.qc"
    with pytest.raises(qcompile.QCompileError, match="no target 'moon'"):
        qcompile.compile(Classifier(), inputs, target="moon", output=folder)
    with pytest.raises(qcompile.QCompileError, match="needs calibration data"):
        qcompile.compile(Classifier(), inputs, target="host", precision="int8", output=folder)
    with pytest.raises(qcompile.QCompileError, match=r"must be a torch.nn.Module, not str"):
        qcompile.compile("model", inputs, target="host", output=folder)  # type: ignore[arg-type]
    with pytest.raises(qcompile.QCompileError, match="is no bundle"):
        qcompile.load(folder)
    assert list(tmp_path.iterdir()) == []
