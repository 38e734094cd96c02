"""Formats that a shape allows, and why they are not those that were asked for."""

from __future__ import annotations

import pytest

from qcompile.compiler.ir.quant import QuantSpec, parse_weight_spec
from qcompile.passes.quantization.fitting import fitting_spec, formats, unfit

INT4 = parse_weight_spec("int4 full per_group(1,32) fp16-scale")


@pytest.mark.parametrize(
    ("text", "shape", "fitted", "note"),
    [
        ("int4 full per_group(1,32) fp16-scale", (8, 64, 3, 3), "", ""),
        (
            "int4 full per_group(1,32) fp16-scale",
            (8, 60),
            "int4 full per_group(1,30) fp16-scale",
            "groups of 32 do not divide 60: groups of 30",
        ),
        (
            "int4 sym per_group(1,32) fp16-scale",
            (8, 34, 1, 1),
            "int4 sym per_group(1,17) fp16-scale",
            "groups of 32 do not divide 34: groups of 17",
        ),
        (
            "int4 sym per_group(1,32) fp16-scale",
            (8, 38, 3, 3),
            "int4 sym per_group(1,19) fp16-scale",
            "groups of 32 do not divide 38: groups of 19",
        ),
        (
            "int4 sym per_group(1,4) fp16-scale",
            (8, 6, 1),
            "int4 sym per_channel(0) fp16-scale",
            "groups of 4 do not divide 6: a scale a channel",
        ),
        (
            "int4 sym per_group(1,4) fp16-scale",
            (8, 6, 3),
            "int4 sym per_group(1,3) fp16-scale",
            "groups of 4 do not divide 6: groups of 3",
        ),
        (
            "int4 sym per_group(1,32) fp16-scale",
            (8, 16, 3, 3),
            "int4 sym per_channel(0) fp16-scale",
            "groups of 32 do not divide 16: a scale a channel",
        ),
        (
            "uint4 asym per_group(1,32) fp16-scale",
            (64, 1, 3, 3),
            "uint4 asym per_channel(0) fp16-scale",
            "groups of 32 do not divide 1: a scale a channel",
        ),
        (
            "int4 sym per_group(1,32) fp16-scale",
            (8, 34),
            "int4 sym per_group(1,17) fp16-scale",
            "groups of 32 do not divide 34: groups of 17",
        ),
        (
            "palette4 fp16 per_channels(16)",
            (40, 64),
            "palette4 fp16 per_channels(10)",
            "groups of 16 do not divide 40: groups of 10",
        ),
        (
            "int4 full per_group(1,32)",
            (8, 60),
            "int4 full per_group(1,30)",
            "groups of 32 do not divide 60: groups of 30",
        ),
        (
            "int4 full per_group(1,32)",
            (8, 1, 3, 3),
            "int4 full per_channel(0)",
            "groups of 32 do not divide 1: a scale a channel",
        ),
        ("int4 full per_channel(0)", (8, 60), "", ""),  # not ours to change
        ("palette2 fp16 per_tensor", (7, 5), "", ""),
    ],
)
def test_group_sizes(text: str, shape: tuple[int, ...], fitted: str, note: str) -> None:
    found, why = fitting_spec(parse_weight_spec(text), shape)
    assert str(found) == (fitted or text)
    assert why == note


@pytest.mark.parametrize(
    ("text", "wide"),
    [
        ("int4 full per_group(1,32) fp16-scale", "int8 full per_channel(0) fp16-scale"),
        ("uint4 asym per_group(1,32) fp16-scale", "uint8 asym per_channel(0) fp16-scale"),
        ("palette2 fp16 per_tensor", "int8 sym per_channel(0) fp16-scale"),
    ],
)
def test_eight_bits_come_next(text: str, wide: str) -> None:
    found = [str(spec) for spec, _ in formats(parse_weight_spec(text), (64, 64))]
    assert found == [text, wide]


def test_nothing_that_float16_would_store_in_less() -> None:
    assert formats(INT4, (16, 1)) == []
    assert [str(s) for s, _ in formats(parse_weight_spec("palette8 fp16 per_tensor"), (8, 8))] == []
    assert len(formats(INT4, (16, 32))) == 2


def test_an_integer_engine_gets_what_it_asked_for() -> None:
    spec = QuantSpec(bits=2)
    assert formats(spec, (1, 1)) == [(spec, "")]


def test_eight_bits_have_nothing_wider() -> None:
    spec = parse_weight_spec("int8 sym per_channel(0) fp16-scale")
    assert formats(spec, (8, 8)) == [(spec, "")]


@pytest.mark.parametrize(
    ("text", "bits"),
    [
        ("int4 full per_group(1,32)", 32),
        ("int4 full per_group(1,32) fp16-scale", 16),
        ("palette4 fp16 per_channels(16)", 16),
        ("int8 sym per_channel(0)", 32),
    ],
)
def test_what_fits_nothing_has_the_width_of_its_scales(text: str, bits: int) -> None:
    assert unfit(parse_weight_spec(text)).bits == bits
