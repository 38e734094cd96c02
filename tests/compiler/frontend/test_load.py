"""MODEL as the user names it; what the command line does with it is in ``tests/compiler/cli``."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from qcompile.compiler.frontend.load import from_module, load
from qcompile.compiler.ir.errors import ModelError


def test_a_model_file_leaves_no_trace(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    before = list(sys.path)
    source = load("tiny.py")
    assert (source.name, source.where) == ("tiny", "tiny.py")
    assert list(source.graph.inputs) == ["input"]
    assert source.calibration is not None
    assert source.calibration()["input"].shape == (32, 3, 8, 8)
    assert sys.path == before
    assert os.listdir(here) == ["tiny.py"]


def test_licence_fields_pass_through(here: Path) -> None:
    (here / "tiny.py").write_text((here / "tiny.py").read_text() + '\nLICENSE = "MIT"\n')
    assert load("tiny.py").licence == "MIT"


def test_errors_name_the_users_line_even_in_a_folder_called_qcompile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "qcompile").mkdir()
    monkeypatch.chdir(tmp_path / "qcompile")
    file = tmp_path / "qcompile" / "m.py"
    file.write_text(
        "import torch\ndef inputs(): pass\ndef model():\n    return torch.nn.ReLU(1, 2)\n"
    )
    with pytest.raises(ModelError, match=rf"TypeError: .* \(at {file}:4\)"):
        load(str(file))


def test_a_program(tmp_path: Path) -> None:
    program = torch.export.export(nn.Linear(3, 4).eval(), (torch.zeros(2, 3),))
    torch.export.save(program, tmp_path / "m.pt2")
    source = load(str(tmp_path / "m.pt2"))
    assert source.name == "m"
    assert list(source.graph.inputs) == ["input"]


class Bomb:
    """Leaves a file if it is unpickled."""

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, ("unpickled",)


def test_a_program_that_holds_a_pickle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``torch.export.load`` would unpickle the example inputs."""
    import zipfile

    monkeypatch.chdir(tmp_path)
    program = torch.export.export(nn.Linear(3, 4).eval(), (torch.zeros(2, 3),))
    torch.export.save(program, "good.pt2")
    torch.save({"args": Bomb()}, "bomb")
    payload = Path("bomb").read_bytes()
    with zipfile.ZipFile("good.pt2") as good, zipfile.ZipFile("bad.pt2", "w") as bad:
        names = [n for n in good.namelist() if n.endswith(".pt")]
        assert names, good.namelist()
        for name in good.namelist():
            bad.writestr(name, payload if name in names else good.read(name))
    with pytest.raises(ModelError, match=r"bad.pt2 is not a program that torch .* can load"):
        load("bad.pt2")
    assert not Path("unpickled").exists()
    assert "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ


def test_a_module() -> None:
    source = from_module(nn.Linear(3, 4), torch.zeros(2, 3))
    assert source.name == "linear"
    with pytest.raises(ModelError, match=r"must be a torch.nn.Module, not dict"):
        from_module({}, torch.zeros(2, 3))  # type: ignore[arg-type]
    with pytest.raises(ModelError, match="inputs\\(\\) must give tensors"):
        from_module(nn.Linear(3, 4), "zeros")  # type: ignore[arg-type]
