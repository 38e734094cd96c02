"""llama.cpp's encoders: ours write their bytes where they are the same, and theirs are called safely."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from qcompile.compiler.ir.blocks.catalog import BLOCK_FORMATS
from qcompile.compiler.ir.errors import CalibrationError, MissingPackageError, TargetError
from qcompile.passes.quantization import ggml_encoder
from qcompile.passes.quantization.ggml_encoder import ggml_encode, needs_importance

llama_cpp = pytest.importorskip("llama_cpp")

FLOATS = ["F32", "F16", "BF16"]
LATTICE = ["IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S"]
SAME = [name for name in BLOCK_FORMATS if name not in (*FLOATS, *LATTICE)]
WIDTH = 512


def gaussian(rows: int = 16, seed: int = 0) -> Tensor:
    return torch.randn(rows, WIDTH, generator=torch.Generator().manual_seed(seed))


def with_outliers(x: Tensor) -> Tensor:
    return x * torch.where(torch.arange(WIDTH) % 50 == 0, 20, 1)


def with_zeros(x: Tensor) -> Tensor:
    kept = x * (gaussian(len(x), 1) > 0)
    kept[:4], kept[4:8, :256] = 0, 0
    return kept


CASES = {
    "gaussian": lambda x: x,
    "outliers": with_outliers,
    "zeros": with_zeros,
    "constant": lambda x: x[:, :1].expand_as(x).contiguous(),
    "steps": lambda x: (4 * x).round() / 8,
    "two values": lambda x: torch.where(x > 0, 0.5, -0.5),
    "positive": lambda x: x.abs() + 1,
    "negative": lambda x: -x.abs() - 1,
    "tiny": lambda x: x * torch.logspace(-24, -4, len(x))[:, None],
    "huge": lambda x: x * 1e4,
    "long tails": lambda x: x / x.flip(0).abs().clamp(min=0.01),
}


def importances(seed: int) -> list[Tensor | None]:
    """None, a skewed one, and one that has zeros, in whole blocks too."""
    generator = torch.Generator().manual_seed(seed)
    skewed, zeros = (torch.rand(WIDTH, generator=generator) for _ in range(2))
    zeros[zeros < 0.3], zeros[:64] = 0, 0
    return [None, skewed**4, zeros]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", SAME)
@given(seed=st.integers(0, 1 << 30))
@settings(max_examples=2, deadline=None)
def test_our_encoders_write_the_bytes_of_libggml(name: str, case: str, seed: int) -> None:
    block_format, x = BLOCK_FORMATS[name], CASES[case](gaussian(seed=seed))
    for importance in importances(seed):
        theirs = ggml_encode(x, block_format, importance)
        assert torch.equal(block_format.encode(x, importance), theirs)


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("IQ2_XS", "IQ2_S")]
"""libggml needs seconds to make their tables."""


@pytest.mark.parametrize("name", ["IQ2_XXS", "IQ3_XXS", "IQ3_S", *SLOW])
def test_our_search_of_lattice_formats_has_less_error_than_libggml(name: str) -> None:
    """By the weights that libggml's search goes by; ours is another search (FORMATS A.1.8)."""
    block_format, x, importance = BLOCK_FORMATS[name], gaussian(), torch.rand(WIDTH) ** 2
    weights = block_format.importance(x, importance.expand_as(x)).reshape(x.shape)
    ours, theirs = block_format.encode(x, importance), ggml_encode(x, block_format, importance)
    errors = [((block_format.decode(data) - x).square() * weights).sum() for data in (ours, theirs)]
    assert errors[0] < errors[1] < 2.5 * errors[0]


@pytest.mark.parametrize("name", FLOATS)
def test_numbers_are_rounded_as_numpy_rounds_them(name: str) -> None:
    x = gaussian()
    data = ggml_encode(x, BLOCK_FORMATS[name], None).numpy()
    if name == "BF16":
        assert np.array_equal(data.view(np.int16), x.bfloat16().view(torch.int16).numpy())
    else:
        dtype = np.float16 if name == "F16" else np.float32
        assert data.tobytes() == x.numpy().astype(dtype).tobytes()


@pytest.mark.parametrize("name", ["Q4_0", "Q4_K", "IQ2_XXS"])
def test_bytes_do_not_depend_on_how_rows_are_cut(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, importance = gaussian(), torch.rand(WIDTH)
    whole = ggml_encode(x, BLOCK_FORMATS[name], importance)
    monkeypatch.setattr(ggml_encoder, "PART", 3 * WIDTH)
    assert torch.equal(ggml_encode(x, BLOCK_FORMATS[name], importance), whole)


def test_rows_may_lie_apart_in_memory() -> None:
    wide, importance = gaussian().repeat(1, 2), torch.rand(2 * WIDTH)
    q4_k, half = BLOCK_FORMATS["Q4_K"], slice(0, 2 * WIDTH, 2)
    copied = ggml_encode(wide[:, half].clone(), q4_k, importance[half].clone())
    assert torch.equal(ggml_encode(wide[:, half], q4_k, importance[half]), copied)


@pytest.mark.parametrize("name", ["IQ2_XXS", "IQ2_XS"])
def test_an_importance_is_asked_for_where_ggml_would_end_the_process(name: str) -> None:
    assert needs_importance(BLOCK_FORMATS[name])
    with pytest.raises(CalibrationError, match=f"{name} needs to know .* --imatrix"):
        ggml_encode(gaussian(), BLOCK_FORMATS[name], None)


def test_other_formats_need_no_importance() -> None:
    assert not any(needs_importance(BLOCK_FORMATS[name]) for name in (*SAME, *FLOATS))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["Q4_K", "IQ2_XS", "F16"])
def test_what_is_no_number_is_refused(name: str, value: float) -> None:
    x = gaussian()
    x[1, 7] = value
    with pytest.raises(ValueError, match=r"1 of 8192 values are not finite, .* at \[1, 7\]"):
        ggml_encode(x, BLOCK_FORMATS[name], torch.ones(WIDTH))


@pytest.mark.parametrize("name", ["Q8_0", "Q4_K", "IQ3_S"])
@pytest.mark.parametrize("value", [1e9, 1e12, 3e38])
def test_values_that_float16_scales_cannot_reach_are_refused(name: str, value: float) -> None:
    with pytest.raises(ValueError, match="too large for"):
        ggml_encode(torch.full((1, 256), value), BLOCK_FORMATS[name], torch.ones(256))


def test_importances_are_checked() -> None:
    q4_k, x = BLOCK_FORMATS["Q4_K"], gaussian()
    with pytest.raises(ValueError, match=r"\[256\] does not fit a weight of \[16, 512\]"):
        ggml_encode(x, q4_k, torch.ones(256))
    with pytest.raises(ValueError, match="1 of 512 weights are not finite and not negative"):
        ggml_encode(x, q4_k, torch.where(torch.arange(WIDTH) == 3, -1.0, 1.0))
    with pytest.raises(ValueError, match="divide them all by their mean"):
        ggml_encode(x, q4_k, torch.full((WIDTH,), 3e37))


def test_shapes_are_checked() -> None:
    with pytest.raises(ValueError, match=r"rows \[rows, columns\], not \[256\]"):
        ggml_encode(torch.ones(256), BLOCK_FORMATS["Q4_K"], None)
    with pytest.raises(ValueError, match="use Q5_0, which can store it"):
        ggml_encode(torch.ones(1, 896), BLOCK_FORMATS["Q4_K"], None)


@pytest.fixture
def unknown(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A libggml whose functions tests replace one at a time."""
    real = ggml_encoder.library().handle
    names = (
        "quantize_init",
        "quantize_chunk",
        "quantize_requires_imatrix",
        "type_name",
        "row_size",
    )
    return SimpleNamespace(**{f"ggml_{name}": getattr(real, f"ggml_{name}") for name in names})


def check(handle: SimpleNamespace) -> None:
    ggml_encoder._check_library(ggml_encoder.Library(handle))  # type: ignore[arg-type]


def test_a_library_with_other_types_is_refused(unknown: SimpleNamespace) -> None:
    check(unknown)
    unknown.ggml_type_name = lambda kind: b"q9_9"
    with pytest.raises(TargetError, match=r"calls type .* 'q9_9' and not F32: .* --encoder ggml"):
        check(unknown)


def test_a_library_with_other_block_sizes_is_refused(unknown: SimpleNamespace) -> None:
    unknown.ggml_row_size = lambda kind, width: 7
    with pytest.raises(TargetError, match="blocks of another size for F32"):
        check(unknown)


def test_a_library_that_writes_other_bytes_is_refused(unknown: SimpleNamespace) -> None:
    real = unknown.ggml_quantize_chunk
    unknown.ggml_quantize_chunk = lambda kind, x, y, *rest: real(kind, x + 128, y, *rest)
    with pytest.raises(TargetError, match="encodes Q8_0 in another way"):
        check(unknown)
    unknown.ggml_quantize_chunk = lambda *arguments: 5
    with pytest.raises(TargetError, match="writes 5 bytes of Q8_0"):
        check(unknown)


def test_a_library_that_takes_no_importance_is_refused(unknown: SimpleNamespace) -> None:
    real = unknown.ggml_quantize_chunk
    unknown.ggml_quantize_chunk = lambda *arguments: real(*arguments[:-1], None)
    with pytest.raises(TargetError, match="does not weigh Q4_0"):
        check(unknown)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingPackageError, match=r"qcompile\[gguf\]"):
        ggml_encoder._file()


def test_a_package_without_the_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    empty = SimpleNamespace(submodule_search_locations=["/nonexistent"])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: empty)
    with pytest.raises(TargetError, match="has no libggml-base"):
        ggml_encoder._file()


@pytest.mark.slow
def test_llama_cpp_itself_is_not_imported() -> None:
    code = (
        "import sys, torch; from qcompile.compiler.ir.blocks.catalog import BLOCK_FORMATS; "
        "from qcompile.passes.quantization.ggml_encoder import ggml_encode; "
        "ggml_encode(torch.ones(1, 256), BLOCK_FORMATS['Q4_K'], None); "
        "assert 'llama_cpp' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
