"""Precisions as number formats, and what a device's oldest system refuses."""

from __future__ import annotations

import pytest

from qcompile.compiler.ir.errors import TargetError
from qcompile.compiler.ir.palette import Entries, PaletteSpec
from qcompile.compiler.ir.quant import Granularity, QuantSpec
from qcompile.targets.coreml.precisions import INT4_BLOCK, PALETTE_GROUP, scheme
from qcompile.targets.device import load_device
from qcompile.targets.options import WeightOptions

PHONE = load_device("apple-a17-pro")
OLD = PHONE.with_os_minimum("17")
PLAIN = WeightOptions()


def test_floats_store_no_codes() -> None:
    for name, bits in (("fp16", 16), ("fp32", 32)):
        found = scheme(name, PHONE, PLAIN)
        assert (found.weight, found.activation, found.float_bits) == (None, None, bits)


def test_int8_has_a_scale_a_channel_and_no_minus_128() -> None:
    weight = scheme("int8", PHONE, PLAIN).weight
    assert isinstance(weight, QuantSpec)
    assert (weight.bits, weight.granularity, weight.axis) == (8, Granularity.PER_CHANNEL, 0)
    assert not weight.full_range
    assert weight.scale_bits == 16


def test_int4_has_blocks() -> None:
    weight = scheme("int4", PHONE, PLAIN).weight
    assert isinstance(weight, QuantSpec)
    assert (weight.bits, weight.granularity, weight.axis) == (4, Granularity.PER_GROUP, 1)
    assert weight.group_size == INT4_BLOCK
    other = scheme("int4", PHONE, WeightOptions(group_size=64)).weight
    assert isinstance(other, QuantSpec)
    assert other.group_size == 64


def test_w8a8_has_codes_for_activations() -> None:
    found = scheme("w8a8", OLD, PLAIN)
    assert found.activation is not None
    assert (found.activation.bits, found.activation.symmetric) == (8, True)


@pytest.mark.parametrize(("device", "group"), [(PHONE, PALETTE_GROUP), (OLD, None)])
def test_palettes_have_one_table_before_ios_18(device: object, group: int | None) -> None:
    found = scheme("palette-4", device, PLAIN).weight  # type: ignore[arg-type]
    assert found == PaletteSpec(4, group, False, Entries.FP16)


def test_int8_entries_are_of_one_table() -> None:
    options = WeightOptions(palette_entries="int8")
    assert scheme("palette-6", PHONE, options).weight == PaletteSpec(6, None, False, Entries.INT8)


@pytest.mark.parametrize(
    ("precision", "options", "ios", "needs"),
    [
        ("w8a8", PLAIN, "16", "w8a8 .8-bit activations. needs iOS 17"),
        ("int4", PLAIN, "17", "int4 .* needs iOS 18, .* run on iOS 17; there, palette-4"),
        ("palette-3", PLAIN, "17", "palette-3 needs iOS 18, .* palette-4 or palette-2"),
        ("palette-4", WeightOptions(granularity="per-group"), "17", "each group of channels needs"),
        ("palette-4", WeightOptions(channel_scales=True), "17", "scales a channel needs iOS 18"),
        ("palette-4", WeightOptions(palette_entries="int8"), "16", "int8 values needs iOS 18"),
    ],
)
def test_what_a_system_cannot_load(
    precision: str, options: WeightOptions, ios: str, needs: str
) -> None:
    refuses(precision, options, f"^apple-a17-pro: .*{needs}", ios)


@pytest.mark.parametrize(
    ("precision", "options", "message"),
    [
        ("fp16", WeightOptions(group_size=32), "fp16 has no scales: leave out"),
        ("fp32", WeightOptions(granularity="per-tensor"), "fp32 has no scales"),
        ("int8", WeightOptions(group_size=32), "--group-size needs --granularity per-group"),
        ("int8", WeightOptions(channel_scales=True), "int8 has no palette"),
        ("w8a8", WeightOptions(palette_entries="int8"), "w8a8 has no palette"),
        (
            "palette-4",
            WeightOptions(granularity="per-channel"),
            "--group-size 1 gives one a channel",
        ),
        (
            "palette-4",
            WeightOptions(granularity="per-tensor", group_size=8),
            "--group-size needs --granularity per-group",
        ),
        (
            "palette-4",
            WeightOptions(granularity="per-group", palette_entries="int8"),
            "int8 palette entries need --granularity per-tensor",
        ),
    ],
)
def test_options_that_do_not_fit(precision: str, options: WeightOptions, message: str) -> None:
    refuses(precision, options, message, "18")


def refuses(precision: str, options: WeightOptions, message: str, ios: str) -> None:
    with pytest.raises(TargetError, match=message) as error:
        scheme(precision, PHONE.with_os_minimum(ios), options)
    assert "\n" not in str(error.value)
