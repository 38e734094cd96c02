"""Devices that run Core ML: their facts in both formats, and the systems that an artifact may assume."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from torch import nn

from qcompile.compiler.cli.targets import command
from qcompile.compiler.frontend.trace import trace
from qcompile.compiler.ir.errors import TargetError
from qcompile.targets.device import Device, device_names, load_device, precisions_of
from qcompile.targets.device_schema import FORMATS
from qcompile.targets.onnx.emitter import EMITTER as ONNX
from qcompile.targets.options import WeightOptions

APPLE = [n for n in device_names() if n != "host" and load_device(n).format == "coreml"]
PHONE = """
description = "my phone"
format = "coreml"
arch = "aarch64"
isa = ["neon", "dotprod"]
compute_units = ["CPU", "GPU", "Neural Engine"]
os = "ios"
os_minimum = "17.2"
precision = "fp16"
""" + "".join(
    f'precisions.{name} = {{fast = true, why = "it is"}}\n' for name in FORMATS["coreml"].precisions
)


def phone(folder: Path, text: str = PHONE) -> str:
    path = folder / "my-phone.toml"
    path.write_text(text)
    return str(path)


def test_the_chips_that_ship() -> None:
    macs = {f"apple-m{n}" for n in (1, 2, 3, 4)}
    phones = {f"apple-{n}" for n in ("a14", "a15", "a16", "a17-pro", "a18", "a18-pro")}
    assert set(APPLE) == macs | phones
    for name in APPLE:
        device = load_device(name)
        assert (device.os, device.os_minimum) in (("macos", "15.0"), ("ios", "18.0"))
        assert (device.os == "macos") is (name in macs)
        assert device.compute_units == ("CPU", "GPU", "Neural Engine")
        assert device.chip is not None
        assert device.os_first is not None


def test_a_phone_of_ones_own(tmp_path: Path) -> None:
    device = load_device(phone(tmp_path, PHONE))
    assert (device.format, device.os_minimum) == ("coreml", "17.2")
    assert device.compute_units == ("CPU", "GPU", "Neural Engine")
    assert device.facts("coreml")["palette-3"].fast


def test_a_phone_needs_its_system_its_units_and_every_precision(tmp_path: Path) -> None:
    text = PHONE.replace('os_minimum = "17.2"', "").replace("precisions.int4", "precisions.w8a16")
    text = text.replace('"Neural Engine"]', '"TPU"]')
    with pytest.raises(TargetError) as error:
        load_device(phone(tmp_path, text))
    for part in (
        "missing key 'os_minimum'",
        "missing key 'precisions.int4.fast'",
        "missing key 'precisions.int4.why'",
        "unknown key 'precisions.w8a16.fast'",
        "not a list of CPU, GPU, Neural Engine",
    ):
        assert part in str(error.value)


@pytest.mark.parametrize(
    ("wrong", "part"),
    [
        ('os_minimum = "15.4"', "iOS 15.4 is too old: coreml needs iOS 16 or later"),
        ('os_minimum = "21"', "there is no iOS 21: after 18 came 26"),
        ('os_minimum = "new"', "'os_minimum' is 'new', not a version such as '18.0'"),
        ('os_minimum = "17"\nos_first = 17', "'os_first' is 17, not a version such as '18.0'"),
    ],
)
def test_a_phone_with_an_impossible_system(tmp_path: Path, wrong: str, part: str) -> None:
    with pytest.raises(TargetError) as error:
        load_device(phone(tmp_path, PHONE.replace('os_minimum = "17.2"', wrong)))
    assert part in str(error.value)


def test_a_format_that_there_is_not(tmp_path: Path) -> None:
    with pytest.raises(TargetError) as error:
        load_device(phone(tmp_path, PHONE.replace('"coreml"', '"espresso"')))
    message = str(error.value)
    assert "'format' is 'espresso', not one of onnx, coreml" in message
    assert "precisions" not in message


@pytest.mark.parametrize("name", APPLE)
def test_an_apple_device_has_the_facts_of_its_processor_for_onnx(name: str) -> None:
    device = load_device(name)
    assert tuple(ONNX.precisions(device)) == FORMATS["onnx"].precisions
    assert device.facts("onnx") == precisions_of(device.isa)
    assert device.facts("onnx")["int8"].fast
    assert device.default_precision("onnx") == "int8"
    assert device.default_precision("coreml") == device.precision


def test_facts_for_a_format_that_a_device_knows_nothing_of() -> None:
    with pytest.raises(TargetError) as error:
        load_device("raspberry-pi-4").default_precision("coreml")
    message = str(error.value)
    assert message.startswith("target 'raspberry-pi-4' has no facts for coreml; these do: apple-")
    assert all(name in message for name in APPLE)


@pytest.mark.parametrize("name", APPLE)
def test_apple_chips_compute_int8_where_the_default_is_w8a8(name: str) -> None:
    device = load_device(name)
    computes = device.neural_engine_tops is not None and device.neural_engine_tops >= 35
    assert (device.precision == "w8a8") is computes
    assert device.precisions[device.precision].fast
    assert device.precisions["int4"].fast is (device.os == "macos")
    assert not device.precisions["fp32"].fast


@pytest.mark.parametrize(
    ("version", "major"), [("16", 16), ("17.4", 17), ("18.0.1", 18), ("26", 26)]
)
def test_another_oldest_system(version: str, major: int) -> None:
    before = load_device("apple-a14")
    device = before.with_os_minimum(version)
    assert device.os_minimum == version
    assert before.os_minimum == "18.0"
    assert device == Device(**{**vars(before), "os_minimum": version})


@pytest.mark.parametrize(
    ("name", "version", "part"),
    [
        ("apple-a14", "15.7", "iOS 15.7 is too old: coreml needs iOS 16 or later"),
        ("apple-m1", "12", "macOS 12 is too old: coreml needs macOS 13 or later"),
        ("apple-m1", "17", "there is no macOS 17: after 15 came 26"),
        ("apple-a14", "19", "there is no iOS 19: after 18 came 26"),
        ("apple-a14", "seventeen", "'seventeen' is no version of iOS; write '16' or '18.0'"),
        ("apple-a14", "17.", "'17.' is no version of iOS"),
        ("apple-a14", "1\u0667", "is no version of iOS"),
        ("apple-a14", "9" * 5000, "is no version of iOS"),
        ("web-wasm", "17", "its format, onnx, does not depend on the system"),
    ],
)
def test_an_oldest_system_that_cannot_be(name: str, version: str, part: str) -> None:
    with pytest.raises(TargetError) as error:
        load_device(name).with_os_minimum(version)
    assert str(error.value).startswith(f"target '{name}': ")
    assert part in str(error.value)


def test_a_plan_for_onnx_reads_the_processor_s_facts() -> None:
    device = load_device("apple-m4")
    layer = nn.Linear(4, 4)
    graph = trace(layer, (torch.ones(1, 4),))
    (row,) = ONNX.plan(graph, ONNX.scheme("int8", device, WeightOptions()), device)
    assert (row.fast, row.why) == (True, device.facts("onnx")["int8"].why)
    assert row.why != device.precisions["int8"].why


def test_the_command_shows_the_facts_of_a_chip() -> None:
    text = CliRunner().invoke(command, ["apple-m2"]).output
    for part in ("CPU, GPU, Neural Engine", "15.8 trillion operations a second", "8192 MiB"):
        assert part in text
    assert "assumed at least" in text
    assert "neural_engine_tops" in CliRunner().invoke(command, ["apple-m2", "--json"]).output
    listing = CliRunner().invoke(command, [], env={"COLUMNS": "200"}).output
    assert "palette-1/2/3/4/6/8" in listing
