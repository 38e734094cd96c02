"""What each Apple system can load."""

from __future__ import annotations

import pytest

from qcompile.targets.coreml.deployment import NEEDS, OPSETS, ios_equivalent, opset, refusal
from qcompile.targets.device import load_device
from qcompile.targets.device_schema import FORMATS

PHONE, MAC = load_device("apple-a14"), load_device("apple-m1")
OLD_PALETTES = [f"palette-{bits}" for bits in (1, 2, 4, 6, 8)]


@pytest.mark.parametrize(
    ("mac", "ios", "newest"),
    [("13", 16, 16), ("14.2", 17, 17), ("15.0", 18, 18), ("26", 26, 18), ("27.1", 27, 18)],
)
def test_a_mac_and_the_phone_of_its_year(mac: str, ios: int, newest: int) -> None:
    device = MAC.with_os_minimum(mac)
    phone = PHONE.with_os_minimum(str(ios))
    assert ios_equivalent(device) == ios_equivalent(phone) == ios
    assert opset(device) == opset(phone) == newest
    assert newest in OPSETS


def test_every_precision_has_a_need() -> None:
    assert set(FORMATS["coreml"].precisions) <= set(NEEDS)
    assert {need.ios for need in NEEDS.values()} <= set(OPSETS)
    assert all(need.instead for need in NEEDS.values() if need.ios > OPSETS[0])


@pytest.mark.parametrize(
    ("ios", "refused"),
    [
        ("16", {"w8a8", "palette-3", "int4"}),
        ("17", {"palette-3", "int4"}),
        ("18", set()),
        ("26", set()),
    ],
)
def test_precisions_that_a_system_refuses(ios: str, refused: set[str]) -> None:
    device = PHONE.with_os_minimum(ios)
    found = {p for p in device.precisions if refusal(p, device) is not None}
    assert found == refused
    assert not refused & {"fp32", "fp16", "int8", *OLD_PALETTES}


@pytest.mark.parametrize("form", ["palette-per-group", "palette-with-scales", "palette-of-int8"])
def test_refinements_of_palettes_came_with_ios_18(form: str) -> None:
    assert refusal(form, PHONE.with_os_minimum("17.4")) is not None
    assert refusal(form, PHONE) is None


def test_a_refusal_says_what_is_possible() -> None:
    assert refusal("int4", MAC.with_os_minimum("14.1")) == (
        "int4 (4-bit weights in blocks) needs macOS 15, and this artifact is to run on macOS 14.1; "
        "there, palette-4 is possible"
    )
    assert refusal("w8a8", PHONE.with_os_minimum("16")) == (
        "w8a8 (8-bit activations) needs iOS 17, and this artifact is to run on iOS 16; "
        "there, int8 (8-bit weights alone) is possible"
    )
