"""Precisions of TVM libraries as number formats, and which options they refuse."""

from __future__ import annotations

import pytest

from qcompile.compiler.ir.errors import TargetError
from qcompile.targets.device import load_device
from qcompile.targets.options import WeightOptions
from qcompile.targets.tvm.emitter import EMITTER

DEVICE = load_device("raspberry-pi-5")


@pytest.mark.parametrize(
    ("precision", "options", "weight"),
    [
        ("fp32", {}, "None"),
        ("w8a16", {}, "int8 sym per_channel(0)"),
        ("w8a16", {"granularity": "per-tensor"}, "int8 sym per_tensor"),
        ("int4", {}, "int4 full per_group(1,32)"),
        ("int4", {"group_size": 64}, "int4 full per_group(1,64)"),
        ("int4", {"granularity": "per-channel"}, "int4 full per_channel(0)"),
    ],
)
def test_weights_alone_are_integers(precision: str, options: dict[str, str], weight: str) -> None:
    scheme = EMITTER.scheme(precision, DEVICE, WeightOptions(**options))  # type: ignore[arg-type]
    assert (str(scheme.weight), scheme.activation, scheme.float_bits) == (weight, None, 32)
    assert scheme.needs_calibration == (precision != "fp32")


@pytest.mark.parametrize(
    ("precision", "options", "message"),
    [
        ("fp32", WeightOptions(group_size=32), "without groups"),
        ("w8a16", WeightOptions(granularity="per-group"), "use --granularity per-channel"),
        ("int4", WeightOptions(channel_scales=True), "int4 has no palette"),
        ("int4", WeightOptions("per-channel", 32), "--group-size needs --granularity per-group"),
    ],
)
def test_options_that_do_not_fit(precision: str, options: WeightOptions, message: str) -> None:
    with pytest.raises(TargetError, match=message):
        EMITTER.scheme(precision, DEVICE, options)


@pytest.mark.parametrize("name", ["raspberry-pi-4", "x86-avx2", "host"])
def test_each_cpu_has_facts_for_each(name: str) -> None:
    facts = load_device(name).facts("tvm")
    assert tuple(facts) == ("int8", "fp32", "w8a16", "int4")
    assert facts["fp32"].fast
