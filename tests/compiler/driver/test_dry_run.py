"""The plan says what the build then makes."""

from __future__ import annotations

from pathlib import Path

import pytest

from qcompile.compiler.driver import BuildOptions, build, dry_run
from qcompile.compiler.frontend.load import load

EXAMPLES = Path(__file__).parents[3] / "examples"


@pytest.mark.parametrize("name", ["resnet", "audio_lstm"])
@pytest.mark.parametrize("precision", ["int8", "fp32"])
def test_the_predicted_size_is_near_the_real_one(name: str, precision: str, tmp_path: Path) -> None:
    source = load(str(EXAMPLES / f"{name}.py"))
    options = BuildOptions(
        target="x86-avx512-vnni", precision=precision, evaluate=False, rounding="nearest"
    )
    planned = dry_run(source, options).artifact_bytes
    built = build(source, tmp_path / "model.qc", options).manifest.sizes["artifact_bytes"]
    assert planned == pytest.approx(built, rel=0.12)


def test_every_layer_has_its_format_and_every_float_op_its_reason() -> None:
    plan = dry_run(load(str(EXAMPLES / "audio_lstm.py")), BuildOptions(target="x86-avx512-vnni"))
    (recurrent,) = [n for n in plan.nodes if n.op == "lstm"]
    assert (recurrent.runs, recurrent.fast) == ("fp32", False)
    assert "LSTM" in recurrent.why
    (head,) = [n for n in plan.nodes if n.op == "linear"]
    assert (head.name, head.runs, head.fast) == ("classifier.weight", "uint8", True)
    assert [line for line in plan.slow() if line.startswith("1 x lstm in fp32: ")]


def test_a_device_without_an_int8_dot_product_says_so() -> None:
    plan = dry_run(load(str(EXAMPLES / "resnet.py")), BuildOptions(target="raspberry-pi-4"))
    assert any("int8" in line for line in plan.slow())
