"""Models, targets and options that qcompile must refuse in one sentence."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

Refuses = Callable[..., str]
LINEAR = "import torch\nfrom torch import nn\ndef model(): return nn.Linear(3, 4)\n"
NET = """import torch
from torch import nn


class Net(nn.Module):
    def forward(self, x):
{body}

def model(): return Net()
def inputs(): return {{"x": torch.randn(2, 8)}}
def calibration(): return {{"x": torch.randn(32, 8)}}
"""


@pytest.fixture
def say(here: Path, refuses: Refuses) -> Callable[..., str]:
    """Build a model file of some text for this machine; return the refusal."""

    def build(text: str, *options: str) -> str:
        (here / "m.py").write_text(text)
        return refuses("m.py", "--target", "x86-avx512-vnni", *options)

    return build


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def inputs(): return {}", "m.py has no function model() that returns the model"),
        ("model = 3", "m.py has model, which is no function but int"),
        (LINEAR, "m.py has no function inputs() that returns example inputs"),
        ("def model(:", "the model file m.py fails: SyntaxError: invalid syntax"),
        ("import nothing_here", "No module named 'nothing_here' (at "),
        ("raise SystemExit(3)", "the model file m.py fails: SystemExit: 3 (at "),
        (
            "def inputs(): pass\ndef model():\n    raise ValueError('no weights')",
            "model() of m.py fails: ValueError: no weights (at ",
        ),
        (
            "def inputs(): pass\ndef model(): return 3",
            "model() of m.py must return a torch.nn.Module, not int",
        ),
        (f"{LINEAR}def inputs(): return None", "inputs() must give tensors, by name or in order"),
        (f"{LINEAR}def inputs(): return {{'input': 3}}", "it gave int"),
        (f"{LINEAR}def inputs(): 1 / 0", "inputs() of m.py fails: ZeroDivisionError"),
        (
            f"{LINEAR}def inputs(): return {{'input': torch.zeros(2, 5)}}",
            "the model does not run on its example inputs (input=(2, 5))",
        ),
        (
            f"{LINEAR}def inputs(): return {{'image': torch.zeros(2, 3)}}",
            "unexpected keyword argument 'image'",
        ),
        (
            f"{LINEAR}def inputs(): return torch.zeros(2, 3)\ndef dynamic_shapes(): return 7",
            "dynamic_shapes() must give free axes by input name",
        ),
    ],
)
def test_a_model_file_that_cannot_be_used(say: Callable[..., str], text: str, message: str) -> None:
    assert message in say(text)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("nowhere.py", "the model file nowhere.py does not exist"),
        ("nowhere.pt2", "the model file nowhere.pt2 does not exist"),
        ("nowhere", "nowhere does not exist; MODEL is neither a model file (.py)"),
        ("tiny.txt", "tiny.txt is neither a model file (.py)"),
        (".", ". is no model: it has no config.json"),
        ("no_package.here:make", "there is no module 'no_package' to import the model from"),
        ("json:make", "json:make has no function make() that returns the model"),
        ("broken.pt2", "broken.pt2 is not a program that torch"),
    ],
)
def test_a_model_that_is_none(here: Path, refuses: Refuses, model: str, message: str) -> None:
    (here / "tiny.txt").write_text("")
    (here / "broken.pt2").write_bytes(b"PK\3\4 and no more")
    assert message in refuses(model, "--target", "host")


@pytest.mark.parametrize("suffix", ["pt", "pth", "bin", "ckpt", "pkl"])
def test_a_pickled_checkpoint_is_never_loaded(here: Path, refuses: Refuses, suffix: str) -> None:
    torch.save({"weight": torch.zeros(3)}, here / f"w.{suffix}")
    message = refuses(f"w.{suffix}", "--target", "host")
    assert f"w.{suffix} is a pickled checkpoint" in message
    assert "safetensors" in message


def test_a_line_that_torch_export_refuses(say: Callable[..., str], here: Path) -> None:
    message = say(
        NET.format(body="        if x.sum() > 0:\n            x = x + 1\n        return x\n")
    )
    assert f"(at {here / 'm.py'}:7: if x.sum() > 0:)" in message
    assert "torch.where" in message


def test_all_unsupported_ops_with_their_places(say: Callable[..., str]) -> None:
    library = (
        "lib = torch.library.Library('qcompile_test', 'FRAGMENT')\n"
        "for op in ('twist', 'turn'):\n"
        "    if not hasattr(torch.ops.qcompile_test, op):\n"
        "        lib.define(f'{op}(Tensor x) -> Tensor')\n"
        "        lib.impl(op, lambda x: x.clone(), 'CompositeExplicitAutograd')\n"
    )
    ops = "torch.ops.qcompile_test"
    text = NET.format(body=f"        return {ops}.turn({ops}.twist(x) + 1)\n")
    message = say(text + library)
    assert "2 part(s)" in message
    assert "qcompile_test.twist.default (at twist)" in message
    assert "qcompile_test.turn.default (at turn)" in message
    assert "rewrite them" in message


def test_a_dtype_that_cannot_be_stored(say: Callable[..., str]) -> None:
    assert "complex64 (at " in say(NET.format(body="        return torch.fft.fft(x).abs()\n"))


def test_a_model_that_changes_its_buffers(say: Callable[..., str]) -> None:
    body = "        self.seen.add_(1)\n        return x + self.seen\n"
    text = NET.format(body=body).replace("return Net()", "return keep(Net())")
    text += "\n\ndef keep(net):\n    net.register_buffer('seen', torch.zeros(8))\n    return net\n"
    assert "the model changes its buffers while it runs (seen)" in say(text)


def test_an_output_that_is_no_tensor(say: Callable[..., str]) -> None:
    assert "outputs must be tensors" in say(NET.format(body="        return x + 1, 3\n"))


def test_a_free_axis_that_is_not_free(say: Callable[..., str]) -> None:
    text = NET.format(body="        return x.reshape(2, 8) + 1\n")
    text += "def dynamic_shapes(): return {'x': {0: torch.export.Dim('batch')}}\n"
    message = say(text)
    assert "batch" in message
    assert "TORCH_LOGS" not in message


def test_hooks_that_fail_later(say: Callable[..., str], here: Path) -> None:
    tiny = (here / "tiny.py").read_text()
    message = say(tiny.replace('return {"input": images(32, 2)}', "raise ValueError('no disk')"))
    assert "calibration() of m.py fails: ValueError: no disk (at " in message
    message = say(tiny + "\n\ncalibration = 3\n")
    assert message == "m.py has calibration, which is no function but int"
    message = say(tiny.replace("logits = predict", "raise ValueError('no labels')\n    predict"))
    assert "evaluate() of m.py fails: ValueError: no labels (at " in message
    message = say(tiny + "\n\ndef evaluate(predict): return {'top1': float('nan')}\n")
    assert "evaluate() of m.py must return finite numbers; top1 is nan" in message


@pytest.mark.parametrize(
    ("options", "messages"),
    [
        (["-t", "raspbery-pi4"], ["no target 'raspbery-pi4'", "raspberry-pi-4"]),
        (["-t", "nothing-like-it"], ["no target 'nothing-like-it'", "`qcompile targets`"]),
        (["-t", "own.toml"], ["target file 'own.toml' cannot be read"]),
        (["-t", "host", "-p", "int3"], ["no precision 'int3'", "int8, fp16, fp32, w8a16"]),
        (["-t", "host", "--format", "elf"], ["no format 'elf'; there are:", "onnx"]),
        (["-t", "host", "--num-samples", "2"], ["--num-samples 2 is below 8"]),
        (["-t", "host", "--num-samples", "99"], ["--num-samples 99", "holds 32"]),
        (["-t", "host", "--ignore", "nothing.weight"], ["nothing.weight", "0.weight"]),
        (["-t", "host", "--max-drop", "1", "--no-evaluate"], ["--no-evaluate is given"]),
        (["-t", "host", "--max-host-ram", "1.2.3G"], ["'1.2.3G' is no size"]),
        (["-t", "host", "--rounding", "up"], ["'up' is not one of 'nearest'", "build --help"]),
        (["-t", "host", "--dump-ir", "tiny.py"], ["tiny.py is a file", "--dump-ir"]),
        ([], ["Missing option", "--target"]),
    ],
)
def test_options_that_are_wrong(
    here: Path, refuses: Refuses, options: list[str], messages: list[str]
) -> None:
    text = refuses("tiny.py", *options)
    for message in messages:
        assert message in text


@pytest.mark.parametrize(
    "arguments", [["nowhere.py", "-t", "host"], ["tiny.py"], ["verify", "no.qc"], ["passes", "no"]]
)
def test_errors_as_data(here: Path, run: Callable, arguments: list[str]) -> None:
    result = run(*arguments, "--json")
    data = json.loads(result.stdout)
    assert result.exit_code == data["exit_code"] == 2
    assert data["error"]
    assert result.stderr == ""


def test_a_missing_extra(here: Path, refuses: Refuses, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.metadata

    real = importlib.metadata.version

    def version(name: str) -> str:
        if name == "onnxscript":
            raise importlib.metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    message = refuses("tiny.py", "--target", "host")
    assert "'onnxscript', which is not installed; run: pip install 'qcompile[onnx]'" in message


def test_a_defect_says_so(here: Path, run: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    importlib.import_module("qcompile.compiler.driver.build")
    module = sys.modules[
        "qcompile.compiler.driver.build"
    ]  # the package has a function of that name

    def fail(*arguments: object) -> None:
        raise IndexError("deep inside")

    monkeypatch.setattr(module, "run_passes", fail)
    result = run("tiny.py", "--target", "host")
    assert result.exit_code == 2
    assert "IndexError: deep inside" in result.stderr
    assert "this is a defect" in result.stderr
    assert isinstance(run("tiny.py", "--target", "host", "--debug").exception, IndexError)
