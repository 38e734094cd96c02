"""Resizing and cropping through saved packages, against the documented grids and against torch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qcompile.targets.coreml.reference.errors import ExecutionError
from qcompile.targets.coreml.reference.ops import resize as ops
from qcompile.targets.coreml.reference.ops.sampling import MODES, grid_points, linear

properties = settings(
    max_examples=4, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
TOLERANCE = {np.float32: 1e-5, np.float16: 2e-3}


def documented(mode: str, size: int, count: int) -> Any:
    """The grid as NeuralNetwork.proto and image_resizing.py write it, by ``linspace``."""
    last = size - 1
    if mode == "STRICT_ALIGN_CORNERS":
        return np.linspace(0, last, count)
    if mode == "ALIGN_CORNERS":
        return np.array([last / 2]) if count == 1 else np.linspace(0, last, count)
    if mode == "DEFAULT":
        return np.minimum(last, np.linspace(0, size - size / count, count))
    if mode == "OFFSET_CORNERS":
        spacing = max(1, last) / count
        end = spacing / 2 + (count - 1) * spacing
        return np.minimum(last, np.linspace(spacing / 2, end, count))
    spacing = size / count
    return np.clip(np.arange(count) * spacing + 0.5 * spacing - 0.5, 0, last)


def interpolated(x: Any, axis: int, places: Any) -> Any:
    rows = np.moveaxis(x.astype(float), axis, -1)
    flat = rows.reshape(-1, rows.shape[-1])
    found = np.stack([np.interp(places, np.arange(flat.shape[1]), row) for row in flat])
    return np.moveaxis(found.reshape(*rows.shape[:-1], -1), -1, axis)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("size", "count"), [(1, 1), (1, 4), (5, 1), (4, 9), (7, 3), (2, 5), (6, 6)]
)
def test_grid_points(mode: str, size: int, count: int) -> None:
    found = grid_points(mode, size - 1, count)
    np.testing.assert_allclose(found, documented(mode, size, count), rtol=1e-12, atol=1e-12)
    np.testing.assert_array_equal(grid_points(mode, 1 - size, count), -found)


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("UNALIGN_CORNERS", [0.0, 0.0, 1 / 3, 2 / 3, 1.0, 1.0]),
        ("STRICT_ALIGN_CORNERS", [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        ("DEFAULT", [0.0, 1 / 3, 2 / 3, 1.0, 1.0, 1.0]),
        ("OFFSET_CORNERS", [1 / 12, 3 / 12, 5 / 12, 7 / 12, 9 / 12, 11 / 12]),
    ],
)
def test_examples_of_the_documentation(mode: str, expected: list[float]) -> None:
    places = grid_points(mode, 1, 6)
    np.testing.assert_allclose(places, expected, rtol=1e-12, atol=1e-12)
    x = torch.tensor([3.0, 5.0])
    torch.testing.assert_close(linear(x, 0, places), 3 + 2 * places.float())


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("mode", MODES)
@properties
@given(seed=st.integers(0, 10_000), rank=st.integers(3, 5))
def test_linear_resizing(run_mil: Any, mode: str, dtype: Any, seed: int, rank: int) -> None:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(rng.integers(1, 6, rank)).astype(dtype)
    high, wide = (int(n) for n in rng.integers(1, 9, 2))

    def build(mb: Any, x: Any) -> Any:
        return (
            mb.resize_bilinear(
                x=x, target_size_height=high, target_size_width=wide, sampling_mode=mode
            ),
            mb.resize(x=x, shape=[9, high, 0], resized_dims=np.uint32(2), sampling_mode=mode),
            mb.resize(x=x, shape=[2, high, wide], resized_dims=np.uint32(3), sampling_mode=mode),
        )

    found = run_mil(build, {"x": x}, "iOS17")
    places = [documented(mode, n, c) for n, c in zip(x.shape[-3:], (2, high, wide), strict=True)]
    rows = interpolated(x, rank - 2, places[1])
    kept = interpolated(rows, rank - 1, documented(mode, x.shape[-1], x.shape[-1]))
    both = interpolated(rows, rank - 1, places[2])
    expected = [both, kept, interpolated(both, rank - 3, places[0])]
    for got, want in zip(found, expected, strict=True):
        assert got.dtype == dtype
        np.testing.assert_allclose(got, want, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


@properties
@given(
    seed=st.integers(0, 10_000),
    factors=st.sampled_from([(2, 3), (2.5, 0.5), (1.7, 0.75)]),
    aligns=st.booleans(),
)
def test_upsampling_is_torchs_with_the_factor_recomputed(
    run_mil: Any, seed: int, factors: tuple[Any, Any], aligns: bool
) -> None:
    x = torch.randn(2, 3, 4, 8, generator=torch.Generator().manual_seed(seed))

    def build(mb: Any, x: Any) -> Any:
        given = {"x": x, "scale_factor_height": factors[0], "scale_factor_width": factors[1]}
        return (
            mb.upsample_bilinear(**given, align_corners=aligns),
            mb.upsample_nearest_neighbor(**given),
        )

    smooth, blocky = run_mil(build, {"x": x.numpy()}, "iOS16")
    more: Any = {"scale_factor": factors, "recompute_scale_factor": True}
    expected = F.interpolate(x, mode="bilinear", align_corners=aligns, **more)
    torch.testing.assert_close(torch.from_numpy(smooth), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(torch.from_numpy(blocky), F.interpolate(x, mode="nearest", **more))


@pytest.mark.parametrize(
    ("aligns", "halves", "expected"),
    [
        (True, None, [1.0, 1.2, 1.4, 1.6, 1.8, 2.0]),
        (True, False, [1.0, 1.2, 1.4, 1.6, 1.8, 2.0]),
        (False, None, [1.0, 1.0, 4 / 3, 5 / 3, 2.0, 2.0]),
        (False, True, [1.0, 1.0, 4 / 3, 5 / 3, 2.0, 2.0]),
        (False, False, [1.0, 4 / 3, 5 / 3, 2.0, 2.0, 2.0]),
    ],
)
def test_half_pixel_centers(run_mil: Any, aligns: bool, halves: Any, expected: list[float]) -> None:
    def build(mb: Any, x: Any) -> Any:
        more = {} if halves is None else {"half_pixel_centers": halves}
        return mb.upsample_bilinear(x=x, scale_factor_width=3, align_corners=aligns, **more)

    (found,) = run_mil(build, {"x": np.array([[[1.0, 2.0]]], np.float32)}, "iOS16")
    np.testing.assert_allclose(found[0, 0], expected, rtol=1e-6)


@pytest.mark.parametrize(("size", "count"), [(10, 25), (5, 2), (2, 3), (3, 1), (4, 8)])
def test_nearest_to_a_size_is_nearest_to_the_middle(run_mil: Any, size: int, count: int) -> None:
    x = torch.arange(float(size)).reshape(1, 1, 1, size)

    def build(mb: Any, x: Any) -> Any:
        shape, how = [1, count], {"interpolation_mode": "NEAREST_NEIGHBOR"}
        return (
            mb.resize_nearest_neighbor(x=x, target_size_height=1, target_size_width=count),
            mb.resize(x=x, shape=shape, resized_dims=np.uint32(2), **how),
            mb.resize(
                x=x, shape=shape, resized_dims=np.uint32(1), sampling_mode="UNALIGN_CORNERS", **how
            ),
        )

    expected = F.interpolate(x, (1, count), mode="nearest-exact").numpy()
    for found in run_mil(build, {"x": x.numpy()}, "iOS17"):
        np.testing.assert_array_equal(found, expected)


def test_nearest_of_other_modes_is_the_element_nearest_to_the_grid_point() -> None:
    x, shape = torch.arange(4, dtype=torch.int32), torch.tensor([7])
    args = (x, shape, 1, "NEAREST_NEIGHBOR")
    assert ops.resize(*args, "ALIGN_CORNERS").tolist() == [0, 1, 1, 2, 2, 3, 3]
    assert ops.resize(*args, "OFFSET_CORNERS").tolist() == [0, 1, 1, 2, 2, 2, 3]


def test_integers_are_truncated_and_shapes_may_come_from_the_program(run_mil: Any) -> None:
    x = np.array([[[0, 9]]], np.int32)

    def build(mb: Any, x: Any, shape: Any) -> Any:
        return mb.resize(x=x, shape=shape, resized_dims=np.uint32(2))

    (found,) = run_mil(build, {"x": x, "shape": np.array([7, 0, 5], np.int32)}, "iOS17")
    assert found.tolist() == [[[0, 3, 7, 9, 9]]]
    assert found.dtype == np.int32


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_crop(run_mil: Any, dtype: Any) -> None:
    x = np.arange(60).reshape(3, 4, 5).astype(dtype)
    (found,) = run_mil(
        lambda mb, x: mb.crop(x=x, crop_height=[0, 1], crop_width=[3, 1]), {"x": x}, "iOS16"
    )
    np.testing.assert_array_equal(found, x[:, :3, 3:4])
    assert found.dtype == dtype


def test_values_that_cannot_be_are_refused() -> None:
    x, two = torch.ones(1, 2, 2), torch.tensor([1, 1])
    with pytest.raises(ExecutionError, match="cannot be cropped"):
        ops.crop(x, two, torch.tensor([0, 0]))
    with pytest.raises(ExecutionError, match="cannot be cropped"):
        ops.crop(x, torch.tensor([-1, 0]), torch.tensor([0, 0]))
    with pytest.raises(ExecutionError, match="exclude each other"):
        ops.upsample_bilinear(x, align_corners=True, half_pixel_centers=True)
    with pytest.raises(ExecutionError, match="no sampling mode"):
        ops.resize_bilinear(x, 3, 3, "HALF")
    with pytest.raises(ExecutionError, match="interpolation mode"):
        ops.resize(x, two, 2, "CUBIC")
    with pytest.raises(ExecutionError, match="does not fit"):
        ops.resize(x, two, 3)
    with pytest.raises(ExecutionError, match="cannot be resized"):
        ops.resize_bilinear(x, 0, 3)
    for large in (ops.upsample_bilinear, ops.upsample_nearest_neighbor):
        with pytest.raises(ExecutionError, match="GiB"):
            large(x, 1 << 20, 1 << 20)
