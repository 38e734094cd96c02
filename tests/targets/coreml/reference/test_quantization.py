"""``quantize`` and ``dequantize`` through saved packages, against the formula and coremltools."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from qcompile.targets.coreml.reference.errors import ExecutionError
from qcompile.targets.coreml.reference.ops import quantization

FLOATS = [np.float32, np.float16]
properties = settings(
    phases=[Phase.explicit, Phase.generate],  # a package an example: shrinking takes minutes
    max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)  # fmt: skip


@pytest.mark.parametrize("codes", ["int8", "uint8"])
@pytest.mark.parametrize("dtype", FLOATS)
@properties
@given(st.integers(0, 10_000), st.sampled_from([None, 0, 1, -1, -3]), st.booleans())
def test_both_ways(
    run_mil: Any, fold_mil: Any, dtype: Any, codes: str, seed: int, axis: int | None, shifted: bool
) -> None:
    rng = np.random.default_rng(seed)
    x = (rng.standard_normal((2, 3, 4)) * 3).astype(dtype)
    size = () if axis is None else (x.shape[axis],)
    scale = rng.uniform(0.005, 0.05, size).astype(dtype)
    limits = np.iinfo(codes)
    zero = rng.integers(limits.min, limits.max, size).astype(codes)
    more: dict[str, Any] = {"scale": scale}
    more |= {} if axis is None else {"axis": np.int32(axis)}
    more |= {"zero_point": zero} if shifted else {}

    def build(mb: Any, x: Any) -> Any:
        return mb.quantize(input=x, output_dtype=codes, **more)

    def back(mb: Any, x: Any) -> Any:
        quantized = build(mb, x)
        return mb.cast(x=quantized, dtype="int32"), mb.dequantize(input=quantized, **more)

    quantized, restored = run_mil(back, {"x": x})
    along = np.ones(3, int)
    along[axis or 0] = -1
    s = scale.reshape(along).astype(np.float32)
    z = zero.reshape(along).astype(np.float32) if shifted else np.float32(0)
    expected = np.clip(np.round(x.astype(np.float32) / s) + z, limits.min, limits.max)
    np.testing.assert_array_equal(quantized, expected)
    np.testing.assert_array_equal(restored, ((expected.astype(np.float32) - z) * s).astype(dtype))
    (folded,) = fold_mil(build, {"x": x})
    if dtype == np.float32:
        np.testing.assert_array_equal(quantized, folded)
    else:  # coremltools rounds the quotient to float16 too
        assert np.abs(quantized - folded.astype(np.int32)).max() <= 1


def test_halves_go_to_even_and_values_saturate(run_mil: Any) -> None:
    x = np.array([0.5, 1.5, -0.5, -2.5, 1e9, -1e9, np.inf, np.nan], np.float32)

    def build(mb: Any, x: Any) -> Any:
        signed = mb.quantize(input=x, scale=np.float32(1), output_dtype="int8")
        moved = mb.quantize(
            input=x, scale=np.float32(1), zero_point=np.uint8(3), output_dtype="uint8"
        )
        return [mb.cast(x=v, dtype="int32") for v in (signed, moved)]

    signed, moved = run_mil(build, {"x": x}, "iOS17")
    assert signed.tolist() == [0, 2, 0, -2, 127, -128, 127, 0]
    assert moved.tolist() == [3, 5, 3, 1, 255, 0, 255, 0]


def test_the_quotient_of_halves_is_taken_in_single() -> None:
    """In float16 the quotient would be 1.5, which goes to 2."""
    x, scale = torch.tensor([1.4990234375]), torch.tensor(0.99951171875)
    assert float(np.float16(x.item()) / np.float16(scale.item())) == 1.5
    assert quantization.quantize(x, scale, "int8").tolist() == [1]


def test_parameters_that_do_not_fit_are_refused() -> None:
    x, axis = torch.ones(2, 3), torch.tensor(1)
    with pytest.raises(ExecutionError, match="int8 or uint8, not int4"):
        quantization.quantize(x, torch.tensor(1.0), "int4")
    with pytest.raises(ExecutionError, match="has the axis None"):
        quantization.quantize(x, torch.ones(3), "int8")
    with pytest.raises(ExecutionError, match="2 scales or zero points for 3 channels"):
        quantization.dequantize(x.to(torch.int8), torch.ones(2), None, axis)
    with pytest.raises(ExecutionError, match="has the axis 2"):
        quantization.dequantize(x.to(torch.int8), torch.ones(2), None, torch.tensor(2))


def test_the_input_is_not_written_to() -> None:
    codes = torch.tensor([3.0])
    found = quantization.dequantize(codes, torch.tensor(2.0), torch.tensor(1))
    assert (found.item(), codes.item()) == (4.0, 3.0)
