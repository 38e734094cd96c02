"""QuantSpec: how many bytes it takes, and what cannot be one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from qcompile.compiler.ir.quant import FloatSpec, Granularity, QuantSpec


@pytest.mark.parametrize(
    ("text", "shape", "size"),
    [
        ("int8 sym per_tensor", (64, 32), 2048 + 4),
        ("uint8 asym per_tensor", (64, 32), 2048 + 4 + 1),
        ("int8 sym per_channel(0)", (64, 32), 2048 + 4 * 64),
        ("int8 asym per_channel(-1)", (64, 32), 2048 + 4 * 32 + 32),
        ("int4 sym per_group(1,32)", (64, 128), 4096 + 4 * 256),
        ("uint4 asym per_group(1,32)", (64, 128), 4096 + 4 * 256 + 128),
        ("int4 sym per_group(1,32)", (2, 33), 33 + 4 * 4),  # a group at the end is shorter
        ("int4 sym per_tensor", (3,), 2 + 4),  # codes end in the middle of a byte
        ("int3 sym per_tensor", (10,), 10 + 4),  # no engine packs 3 bits: a byte a code
        ("int16 sym per_tensor", (10,), 20 + 4),
        ("int8 sym per_channel(0) fp16-scale", (64, 32), 2048 + 2 * 64),
        ("int4 full per_group(1,32) fp16-scale", (64, 128, 3, 3), 36864 + 2 * 256),
        ("uint4 asym per_group(1,32) fp16-scale", (64, 128), 4096 + 2 * 256 + 128),
        ("int8 sym per_tensor", (), 1 + 4),
    ],
)
def test_storage(text: str, shape: tuple[int, ...], size: int) -> None:
    spec = QuantSpec.parse(text)
    assert spec.storage_bytes(shape) == size
    assert spec.bits_per_weight(shape) == 8 * size / int(np.prod(shape))


def test_bits_per_weight_counts_scales() -> None:
    assert QuantSpec.parse("int4 sym per_group(1,32)").bits_per_weight((64, 128)) == 5.0


@pytest.mark.parametrize(
    ("options", "remedy"),
    [
        ({"bits": 1}, "2 to 8 or 16 bits, not 1"),
        ({"bits": 9}, "2 to 8 or 16 bits, not 9"),
        ({"scale_bits": 8}, "16 or 32 bits, not 8"),
        ({"symmetric": False, "full_range": True}, "leave full_range=False"),
        ({"signed": False}, "use signed=True, or symmetric=False"),
        ({"axis": 0}, "axis=0 does not fit granularity=per_tensor"),
        ({"granularity": Granularity.PER_CHANNEL}, "axis=None does not fit granularity=per_chann"),
        ({"group_size": 32}, "give group_size with per_group, and only then"),
        ({"granularity": Granularity.PER_GROUP, "axis": 0}, "give group_size with per_group"),
    ],
)
def test_contradictions_are_refused(options: dict[str, Any], remedy: str) -> None:
    with pytest.raises(ValueError, match=remedy):
        QuantSpec(**options)


def test_float_spec_refuses_other_widths() -> None:
    with pytest.raises(ValueError, match="16 or 32 bits, not 8"):
        FloatSpec(8)


def test_group_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="group_size"):
        QuantSpec(granularity=Granularity.PER_GROUP, axis=0, group_size=0)
