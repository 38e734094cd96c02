"""``resample`` and ``affine`` through saved packages, against torch's ``grid_sample``."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qcompile.targets.coreml.reference.errors import ExecutionError
from qcompile.targets.coreml.reference.ops import resample as ops

COORDINATES = ("unnormalized", "normalized_minus_one_to_one", "normalized_zero_to_one")
SQUARE = torch.tensor([11.0, 22.0, 33.0, 44.0]).reshape(1, 1, 2, 2)
properties = settings(
    max_examples=4, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def as_mode(grid: Any, mode: str, size: tuple[int, int], aligns: bool) -> Any:
    """Coordinates from -1 to 1 in another mode, from what each says of the corner pixels."""
    if mode == "normalized_minus_one_to_one":
        return grid
    share = (grid + 1) / 2
    if mode == "normalized_zero_to_one":
        return share
    sizes = torch.tensor([size[1], size[0]])
    return share * (sizes - 1) if aligns else share * sizes - 0.5


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("aligns", [True, False])
@pytest.mark.parametrize("padding", ["constant", "border", "mirrored"])
@properties
@given(seed=st.integers(0, 10_000), mode=st.sampled_from(COORDINATES))
def test_resample_is_grid_sample(
    run_mil: Any, padding: str, aligns: bool, dtype: Any, seed: int, mode: str
) -> None:
    chosen = torch.Generator().manual_seed(seed)
    high, wide = (int(n) for n in torch.randint(2, 6, (2,), generator=chosen))
    x = torch.randn(2, 3, high, wide, generator=chosen).to(
        torch.from_numpy(np.zeros(0, dtype)).dtype
    )
    grid = torch.rand(2, 4, 3, 2, generator=chosen) * 5 - 2.5
    theirs = {"constant": "zeros", "border": "border", "mirrored": "reflection"}[padding]
    mirrored = "reflection" if aligns else "symmetric"
    ours = mirrored if padding == "mirrored" else padding
    given = as_mode(grid, mode, (high, wide), aligns)

    def build(mb: Any, x: Any, grid: Any) -> Any:
        return tuple(
            mb.resample(
                x=x, coordinates=grid, sampling_mode=how, padding_mode=ours,
                padding_value=dtype(0), coordinates_mode=mode, align_corners=aligns,
            )
            for how in ("bilinear", "nearest")
        )  # fmt: skip

    found = run_mil(build, {"x": x.numpy(), "grid": given.numpy()}, "iOS17")
    for got, how in zip(found, ("bilinear", "nearest"), strict=True):
        want = F.grid_sample(x.float(), grid, how, theirs, align_corners=aligns)
        tolerance = 1e-4 if dtype == np.float32 else 2e-3
        np.testing.assert_allclose(got, want.numpy(), rtol=tolerance, atol=tolerance)
        assert got.dtype == dtype


@pytest.mark.parametrize(
    ("how", "padding", "mode", "aligns", "expected"),
    [
        ("bilinear", "constant", "normalized_minus_one_to_one", True, [8.585, 6.17, 27.5, 6.17]),
        ("nearest", "border", "unnormalized", False, [11.0, 11.0, 11.0, 44.0]),
        ("bilinear", "reflection", "normalized_zero_to_one", True, [22.0, 36.3, 11.0, 34.1]),
        ("nearest", "symmetric", "normalized_zero_to_one", False, [22.0, 33.0, 11.0, 33.0]),
    ],
)
def test_values_of_coremltools_own_tests(
    run_mil: Any, how: str, padding: str, mode: str, aligns: bool, expected: list[float]
) -> None:
    grid = np.array([-1, -2, -3.7, -1, 0, 0, 3.5, 1.2], np.float32).reshape(1, 2, 2, 2)

    def build(mb: Any, x: Any, grid: Any) -> Any:
        return mb.resample(
            x=x, coordinates=grid, sampling_mode=how, padding_mode=padding,
            padding_value=np.float32(6.17), coordinates_mode=mode, align_corners=aligns,
        )  # fmt: skip

    (found,) = run_mil(build, {"x": SQUARE.numpy(), "grid": grid}, "iOS15")
    np.testing.assert_allclose(found.flatten(), expected, rtol=1e-5)


def test_integers_as_coordinates(run_mil: Any) -> None:
    def build(mb: Any, x: Any, grid: Any) -> Any:
        return mb.resample(
            x=x, coordinates=grid, sampling_mode="bilinear", padding_mode="constant",
            padding_value=np.float32(0), coordinates_mode="unnormalized", align_corners=True,
        )  # fmt: skip

    grid = np.array([0, 1, 1, 0, 2, 0], np.int32).reshape(1, 1, 3, 2)
    (found,) = run_mil(build, {"x": SQUARE.numpy(), "grid": grid})
    assert found.tolist() == [[[[33.0, 22.0, 0.0]]]]


@pytest.mark.parametrize("padding", ["reflection", "symmetric", "border"])
def test_one_pixel_is_everywhere(padding: str) -> None:
    x, grid = (
        torch.full((1, 1, 1, 1), 7.0),
        torch.tensor([-3.0, 0.5, 1e9, -1e9]).reshape(1, 1, 2, 2),
    )
    found = ops.resample(x, grid, "nearest", padding, 0.0, "unnormalized", True)
    assert found.flatten().tolist() == [7.0, 7.0]


@pytest.mark.parametrize("padding", ["constant", "border", "reflection", "symmetric"])
def test_coordinates_that_are_no_places_touch_nothing_else(padding: str) -> None:
    grid = torch.tensor([float("nan"), 0.0, float("inf"), 0.0, 1.0, 1.0]).reshape(1, 1, 3, 2)
    found = ops.resample(SQUARE, grid, "bilinear", padding, 0.0, "unnormalized", True)
    assert found[0, 0, 0, 2] == 44.0


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("aligns", [True, False])
@pytest.mark.parametrize("matrices", [1, 2])
def test_affine(run_mil: Any, matrices: int, aligns: bool, dtype: Any) -> None:
    chosen = torch.Generator().manual_seed(matrices)
    x = torch.randn(2, 3, 4, 5, generator=chosen)
    theta = torch.randn(matrices, 6, generator=chosen)
    x, theta = (torch.from_numpy(v.numpy().astype(dtype)) for v in (x, theta))

    def build(mb: Any, x: Any, theta: Any) -> Any:
        return mb.affine(
            x=x, transform_matrix=theta, output_height=3, output_width=6,
            sampling_mode="bilinear", padding_mode="constant", padding_value=dtype(0),
            coordinates_mode="normalized_minus_one_to_one", align_corners=aligns,
        )  # fmt: skip

    (found,) = run_mil(build, {"x": x.numpy(), "theta": theta.numpy()})
    each = theta.float().reshape(-1, 2, 3).expand(2, 2, 3)
    grid = F.affine_grid(each, [2, 3, 3, 6], align_corners=aligns)
    expected = F.grid_sample(x.float(), grid, align_corners=aligns).numpy()
    tolerance = 1e-4 if dtype == np.float32 else 2e-3
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance)
    assert found.dtype == dtype


def test_values_that_cannot_be_are_refused() -> None:
    grid, minus = torch.zeros(1, 1, 1, 2), "normalized_minus_one_to_one"
    for args, message in (
        (("cubic", "border", 0.0, minus), "sampling mode"),
        (("nearest", "wrap", 0.0, minus), "padding mode"),
        (("nearest", "border", 0.0, "normalized"), "coordinates mode"),
    ):
        with pytest.raises(ExecutionError, match=message):
            ops.resample(SQUARE, grid, *args, align_corners=True)
    with pytest.raises(ExecutionError, match="are not for"):
        ops.resample(SQUARE, torch.zeros(2, 1, 1, 2), "nearest", "border", 0.0, minus, True)
    theta, modes = torch.zeros(1, 6), ("bilinear", "constant")
    with pytest.raises(ExecutionError, match="affine has no modes"):
        ops.affine(SQUARE, theta, 2, 2, *modes, 1.0, minus, True)
    with pytest.raises(ExecutionError, match="affine has no modes"):
        ops.affine(SQUARE, theta, 2, 2, "nearest", "constant", 0.0, minus, True)
    with pytest.raises(ExecutionError, match="are not for 1 images"):
        ops.affine(SQUARE, torch.zeros(2, 6), 2, 2, *modes, 0.0, minus, True)
    with pytest.raises(ExecutionError, match="GiB"):
        ops.affine(SQUARE, theta, 1 << 20, 1 << 20, *modes, 0.0, minus, True)
