"""PaletteSpec: its text, its sizes, and that codes are the nearest entries."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qcompile.compiler.ir.palette import Entries, PaletteParams, PaletteSpec
from qcompile.compiler.ir.quant import parse_weight_spec
from qcompile.compiler.ir.storage import half_scale, to_half

SPECS = st.builds(
    PaletteSpec,
    bits=st.sampled_from([1, 2, 3, 4, 6, 8]),
    group_size=st.none() | st.integers(1, 64),
    channel_scale=st.booleans(),
    entries=st.sampled_from(Entries),
)


@given(SPECS)
def test_text_round_trip(spec: PaletteSpec) -> None:
    assert PaletteSpec.parse(str(spec)) == spec
    assert parse_weight_spec(str(spec)) == spec


def test_text_is_what_people_say() -> None:
    assert str(PaletteSpec()) == "palette4 fp16 per_tensor"
    grouped = PaletteSpec(bits=3, group_size=16, channel_scale=True, entries=Entries.INT8)
    assert str(grouped) == "palette3 int8 per_channels(16) channel-scale"


@pytest.mark.parametrize("text", ["palette5 fp16 per_tensor", "palette4 per_tensor", "palette"])
def test_other_text_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"is no PaletteSpec|6 or 8 bits, not 5"):
        parse_weight_spec(text)


def test_a_group_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="holds no channel"):
        PaletteSpec(group_size=0)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("palette4 fp16 per_tensor", 64 * 9 // 2 + 16 * 2),
        ("palette4 fp16 per_channels(2)", 64 * 9 // 2 + 4 * 16 * 2),
        ("palette3 fp16 per_tensor", 64 * 9 * 3 // 8 + 8 * 2),
        ("palette1 int8 per_tensor", 64 * 9 // 8 + 2 + 2),
        ("palette4 fp16 per_tensor channel-scale", 64 * 9 // 2 + 16 * 2 + 8 * 2),
    ],
)
def test_storage(text: str, size: int) -> None:
    spec = PaletteSpec.parse(text)
    assert spec.storage_bytes((8, 8, 3, 3)) == size
    assert spec.bits_per_weight((8, 8, 3, 3)) == 8 * size / 576


@settings(max_examples=20)
@given(
    st.sampled_from([1, 2, 4]),
    st.sampled_from([None, 2, 3]),
    st.booleans(),
    st.sampled_from([(6, 5), (6, 2, 3), (6, 1, 2, 2)]),
    st.integers(0, 2**31),
)
def test_codes_are_the_nearest_entries(
    bits: int, group: int | None, scaled: bool, shape: tuple[int, ...], seed: int
) -> None:
    draw = torch.Generator().manual_seed(seed)
    spec = PaletteSpec(bits, group, channel_scale=scaled)
    lut = to_half(torch.randn(spec.groups(shape), spec.size, generator=draw).sort(1).values)
    scale = half_scale(torch.rand(6, generator=draw) + 0.1) if scaled else None
    params, x = PaletteParams(lut, scale), torch.randn(shape, generator=draw)
    codes = spec.encode(x, params)
    decoded = spec.decode(codes, params)
    assert codes.dtype == torch.uint8
    assert torch.equal(decoded, to_half(decoded))
    assert torch.equal(spec.decode(spec.encode(decoded, params), params), decoded)
    for row in range(6):
        table = lut[row // (6 // len(lut))] * (1 if scale is None else scale[row])
        distance = (x[row].flatten()[:, None] - table).abs()
        taken = distance.gather(1, codes[row].flatten().long()[:, None])[:, 0]
        torch.testing.assert_close(taken, distance.min(1).values)
        assert torch.equal(to_half(table)[codes[row].long()], decoded[row])
