"""Layouts: what bytes decode to, checked against ggml's own Python package, and pack after unpack."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from qcompile.compiler.ir.blocks.affine import AffineFormat
from qcompile.compiler.ir.blocks.bits import join_bits, join_words, split_bits, split_words
from qcompile.compiler.ir.blocks.catalog import BLOCK_FORMATS
from qcompile.compiler.ir.blocks.grids import grid

SIZES = {
    "F32": (1, 4), "F16": (1, 2), "BF16": (1, 2), "Q8_0": (32, 34), "Q4_0": (32, 18),
    "Q4_1": (32, 20), "Q5_0": (32, 22), "Q5_1": (32, 24), "Q2_K": (256, 84), "Q3_K": (256, 110),
    "Q4_K": (256, 144), "Q5_K": (256, 176), "Q6_K": (256, 210), "IQ4_NL": (32, 18),
    "IQ4_XS": (256, 136), "IQ2_XXS": (256, 66), "IQ2_XS": (256, 74), "IQ2_S": (256, 82),
    "IQ3_XXS": (256, 98), "IQ3_S": (256, 110),
}  # fmt: skip
NAMES = sorted(SIZES)

DIGESTS = {
    "BF16": "fac7592f46d698b9", "F16": "9b3f4b2880f88e6a",
    "F32": "8781beb8eed0e4f0", "IQ2_S": "cd4997d9e3e2a3ea",
    "IQ2_XS": "999b75a89fb8cf18", "IQ2_XXS": "4ee474bd2d9c87ab",
    "IQ3_S": "4ceadf6b1d92fc11", "IQ3_XXS": "26e5ef09724086ae",
    "IQ4_NL": "0b32c7debaa1e23d", "IQ4_XS": "4007e7442a6e6147",
    "Q2_K": "297b35b4bec92713", "Q3_K": "3d20cbacafe6e7b8",
    "Q4_0": "b7005970919aaa15", "Q4_1": "72dcb9425c0a5e5d",
    "Q4_K": "351edc5321174e05", "Q5_0": "4e35cc06315a2d2b",
    "Q5_1": "234691fb201683e1", "Q5_K": "05ff3816738df338",
    "Q6_K": "4db092a39b12f850", "Q8_0": "59b89198514a37aa",
}  # fmt: skip
"""Of what gguf 0.19.0 decodes from ``pattern``: the layouts are held where that package is missing too."""


def pattern(size: int) -> Tensor:
    """Three rows of one block; each byte depends on its place."""
    place = torch.arange(3 * size)
    return ((place * place * 7 + place * 31 + 5) % 251).to(torch.uint8).reshape(3, size)


def digest(values: np.ndarray) -> str:
    return hashlib.sha256(np.nan_to_num(values, nan=0.0).astype("<f4").tobytes()).hexdigest()[:16]


@pytest.mark.parametrize("name", NAMES)
def test_a_pattern_decodes_to_the_values_of_the_gguf_package(name: str) -> None:
    values = BLOCK_FORMATS[name].decode(pattern(SIZES[name][1])).numpy()
    assert np.isfinite(values).any()
    assert digest(values) == DIGESTS[name]


def random_bytes(name: str, rows: int, blocks: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    width = blocks * BLOCK_FORMATS[name].size
    return torch.randint(0, 256, (rows, width), dtype=torch.uint8, generator=generator)


def test_blocks_and_bytes_are_those_of_ggml() -> None:
    assert {n: (f.block, f.size) for n, f in BLOCK_FORMATS.items()} == SIZES
    assert BLOCK_FORMATS["Q4_K"].storage_bytes((3, 512)) == 3 * 2 * 144
    assert BLOCK_FORMATS["Q6_K"].bits_per_weight((1, 256)) == 6.5625


def test_sizes_and_numbers_are_those_of_the_gguf_package() -> None:
    gguf = pytest.importorskip("gguf")
    for name, block_format in BLOCK_FORMATS.items():
        kind = gguf.GGMLQuantizationType[name]
        assert block_format.type_id == kind
        assert (block_format.block, block_format.size) == gguf.GGML_QUANT_SIZES[kind]


@pytest.mark.parametrize("name", NAMES)
@given(rows=st.integers(1, 20), blocks=st.integers(1, 3), seed=st.integers(0, 1 << 30))
@settings(max_examples=10, deadline=None)
def test_any_bytes_decode_to_what_the_gguf_package_decodes(
    name: str, rows: int, blocks: int, seed: int
) -> None:
    gguf = pytest.importorskip("gguf")
    data = random_bytes(name, rows, blocks, seed)
    ours = BLOCK_FORMATS[name].decode(data)
    with np.errstate(all="ignore"):
        theirs = gguf.quants.dequantize(data.numpy(), gguf.GGMLQuantizationType[name])
    expected = torch.from_numpy(theirs.astype(np.float32))
    numbers = ~expected.isnan()
    assert torch.equal(ours.isnan(), ~numbers)
    assert torch.equal(ours[numbers].view(torch.int32), expected[numbers].view(torch.int32))


@pytest.mark.parametrize("name", NAMES)
@given(rows=st.integers(1, 5), blocks=st.integers(1, 3), seed=st.integers(0, 1 << 30))
@settings(max_examples=10, deadline=None)
def test_fields_hold_all_of_the_bytes(name: str, rows: int, blocks: int, seed: int) -> None:
    data = random_bytes(name, rows, blocks, seed)
    block_format = BLOCK_FORMATS[name]
    assert torch.equal(block_format.pack(block_format.unpack(data)).reshape(data.shape), data)


@pytest.mark.parametrize("name", NAMES)
def test_decoding_in_parts_changes_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    block_format, data = BLOCK_FORMATS[name], random_bytes(name, 4, 2, 1)
    whole = block_format.decode(data)
    monkeypatch.setattr("qcompile.compiler.ir.blocks.format.DONE_AT_ONCE", 3 * block_format.block)
    torch.testing.assert_close(block_format.decode(data), whole, rtol=0, atol=0, equal_nan=True)


def test_no_rows_decode_and_encode_to_no_rows() -> None:
    block_format = BLOCK_FORMATS["Q4_K"]
    packed = block_format.encode(torch.empty(0, 512))
    assert packed.shape == (0, 288)
    assert block_format.decode(packed).shape == (0, 512)


def test_a_block_by_hand() -> None:
    """Q4_0 with scale 0.5, where byte j is 16 * j + (15 - j): low nibbles first."""
    scale = torch.tensor([0.5], dtype=torch.float16).view(torch.uint8)
    j = torch.arange(16)
    data = torch.cat([scale, (16 * j + 15 - j).to(torch.uint8)])[None]
    expected = 0.5 * (torch.cat([15 - j, j]) - 8)
    assert torch.equal(BLOCK_FORMATS["Q4_0"].decode(data)[0], expected)


AFFINE = sorted(n for n, f in BLOCK_FORMATS.items() if isinstance(f, AffineFormat))


@pytest.mark.parametrize("name", AFFINE)
def test_codes_rounded_at_the_scales_of_a_block_are_nearest(name: str) -> None:
    block_format = BLOCK_FORMATS[name]
    assert isinstance(block_format, AffineFormat)
    x = torch.randn(2, 512)
    fields = block_format.unpack(block_format.encode(x))
    codes = block_format.rounded(x.reshape(-1, block_format.block), fields).codes
    step, low = block_format.steps(fields)
    every = block_format.level(
        torch.arange(-127, 128) if name == "Q8_0" else torch.arange(1 << block_format.bits)
    )
    grid_ = step[..., None, None] * every - (0 if low is None else low[..., None, None])
    error = (x.reshape(*step.shape, block_format.run, 1) - grid_).abs()
    chosen = step[..., None] * block_format.level(codes).reshape(*step.shape, -1)
    chosen = chosen - (0 if low is None else low[..., None])
    ours = (x.reshape(chosen.shape) - chosen).abs()
    torch.testing.assert_close(ours, error.amin(-1), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "count"),
    [("IQ2_XXS", 256), ("IQ2_XS", 512), ("IQ2_S", 1024), ("IQ3_XXS", 256), ("IQ3_S", 512)],
)
def test_grids_have_as_many_vectors_as_there_are_codes(name: str, count: int) -> None:
    vectors = grid(name)
    assert vectors.shape == (count, 8 if name.startswith("IQ2") else 4)
    assert len(vectors.unique(dim=0)) == count
    assert (vectors > 0).all()


@given(st.sampled_from([1, 2, 4]), st.sampled_from([1, 4, 16]), st.integers(0, 1 << 30))
@settings(max_examples=15, deadline=None)
def test_bits_are_joined_as_they_were_split(width: int, run: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    packed = torch.randint(0, 256, (3, 32), dtype=torch.uint8, generator=generator)
    codes = split_bits(packed, width, run)
    assert codes.shape == (3, 32 * 8 // width)
    assert codes.max() < 1 << width
    assert codes[0, 0] == packed[0, 0] & ((1 << width) - 1)
    assert codes[0, run] == (packed[0, 0] >> width) & ((1 << width) - 1)
    assert torch.equal(join_bits(codes, width, run), packed)


def test_words_are_little_endian() -> None:
    packed = torch.tensor([[0x78, 0x56, 0x34, 0xF2]], dtype=torch.uint8)
    assert split_words(packed, 4).tolist() == [[0xF2345678]]
    assert torch.equal(join_words(split_words(packed, 4), 4), packed)
