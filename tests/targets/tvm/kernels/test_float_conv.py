"""Float kernels beside PyTorch in float64: every coding of weights, every register here, any size.

Sums of float32 products differ by their order and by how often they are rounded: by some 1e-7 of the sum
of the products' sizes. A wrong weight, border or scale is a difference of 1e-2 and more.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from qcompile.targets.tvm.float_layers import FloatLayer
from qcompile.targets.tvm.float_ops import decoded
from qcompile.targets.tvm.kernels.shapes import Window
from qcompile.targets.tvm.kernels.vectors import Limits
from qcompile.targets.tvm.kernels.weights import Coding

CLOSE = 2e-6
"""Of the sum of the products' sizes."""
CODINGS = st.sampled_from([Coding(), Coding(8), Coding(4)])
KINDS = pytest.mark.parametrize("kind", ["conv", "depthwise", "linear"])


@dataclass
class Case:
    """A layer with random numbers, and how it is computed."""

    layer: FloatLayer
    x: NDArray[np.float32]

    def found(self, cpu: Any) -> NDArray[Any]:
        """Return what the kernel stores."""
        window, rows = self.layer.window, len(self.x)
        shape = (rows,) if self.layer.is_linear else (rows, *window.output)
        y = np.zeros((*shape, window.features), np.float32)
        kernel, constants = self.layer.kernel(cpu.vectors), self.layer.constants(cpu.vectors)
        result: NDArray[Any] = cpu.call(kernel, self.x, *constants, y)
        return result

    def expected(self) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return the results, and the sums of the products' sizes."""
        layer = self.layer
        scale = None if layer.scale is None else torch.from_numpy(layer.scale)
        weight = decoded(torch.from_numpy(layer.weight), scale).double()
        x, bias = torch.from_numpy(self.x).double(), torch.from_numpy(layer.bias).double()
        exact = self._computed(x, weight, bias)
        size = self._computed(x.abs(), weight.abs(), bias.abs())
        return exact.clamp(layer.limits.low, layer.limits.high).numpy(), size.numpy()

    def _computed(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        window = self.layer.window
        if self.layer.is_linear:
            return x @ weight[:, :, 0, 0].T + bias
        groups = window.channels if self.layer.is_depthwise else 1
        found = torch.nn.functional.conv2d(
            x.permute(0, 3, 1, 2), weight, bias, window.stride, window.padding, 1, groups
        )
        return found.permute(0, 2, 3, 1)

    def check(self, cpu: Any) -> None:
        """Compare both."""
        (exact, size), found = self.expected(), self.found(cpu)
        assert (np.abs(found - exact) <= CLOSE * size).all()


def case(
    kind: str, window: Window, coding: Coding, rows: int = 1, limits: Limits | None = None
) -> Case:
    """Return a layer with random numbers; codes have the ends of their range among them."""
    rng = np.random.default_rng(0)
    shape = window.features, 1 if kind == "depthwise" else window.channels, *window.kernel
    scale = None
    weight: NDArray[Any] = rng.uniform(0.1, 1, shape).astype(np.float32)
    weight *= rng.choice([-1, 1], shape).astype(np.float32)
    if coding.bits < 32:
        most = 2 ** (coding.bits - 1)
        weight = rng.integers(-most, most, shape).astype(np.int8)
        weight.flat[0], weight.flat[-1] = -most, most - 1
        scales = (window.features, coding.groups) if coding.groups > 1 else (window.features,)
        scale = (rng.uniform(0.5, 1, scales) / most).astype(np.float32)
    bias = rng.standard_normal(window.features).astype(np.float32)
    is_linear, is_depthwise = kind == "linear", kind == "depthwise"
    layer = FloatLayer(
        window, is_linear, is_depthwise, coding, limits or Limits(), weight, scale, bias
    )
    image = (rows, window.channels) if is_linear else (rows, *window.image, window.channels)
    return Case(layer, rng.standard_normal(image).astype(np.float32))


@st.composite
def cases(draw: st.DrawFn, kind: str) -> Case:
    """Draw a geometry with at least one output."""
    coding, rows = draw(CODINGS), draw(st.integers(1, 3))
    limits = draw(st.sampled_from([Limits(), Limits(0.0), Limits(0.0, 6.0), Limits(-0.5, 0.5)]))
    channels, features = draw(st.integers(1, 40)), draw(st.integers(1, 70))
    if kind == "linear":
        window, rows = Window((1, 1), channels, features), draw(st.integers(1, 40))
        return case(kind, window, coding, rows, limits)
    kernel = draw(st.tuples(st.integers(1, 5), st.integers(1, 5)))
    image = draw(st.tuples(st.integers(1, 9), st.integers(1, 20)))
    stride = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    padding = draw(st.sampled_from([(0, 0), (1, 1), (0, 2), (2, 1)]))
    features = channels if kind == "depthwise" else features
    window = Window(image, channels, features, kernel, stride, padding)
    assume(min(s + 2 * p - k for s, p, k in zip(image, padding, kernel, strict=True)) >= 0)
    return case(kind, window, coding, rows, limits)


@KINDS
@settings(max_examples=5, deadline=None)
@given(data=st.data())
def test_any_size(float_cpu: Any, kind: str, data: st.DataObject) -> None:
    data.draw(cases(kind)).check(float_cpu)


@pytest.mark.parametrize(
    ("kind", "window", "groups", "rows"),
    [
        ("linear", Window((1, 1), 96, 50), 3, 29),  # tiles of every size
        ("linear", Window((1, 1), 66, 33), 2, 1),  # a group of 33: an odd code is left
        ("conv", Window((8, 8), 64, 24), 2, 2),
        ("conv", Window((5, 4), 6, 17, (3, 2), (1, 1), (1, 1)), 2, 1),
        ("conv", Window((1, 1), 64, 24), 2, 2),  # one pixel: sums are scaled, not weights
    ],
    ids=str,
)
def test_groups_of_four_bit_codes(
    float_cpu: Any, kind: str, window: Window, groups: int, rows: int
) -> None:
    case(kind, window, Coding(4, groups), rows).check(float_cpu)


@pytest.mark.parametrize("bits", [32, 8, 4])
@KINDS
def test_what_is_not_read_may_be_infinite(float_cpu: Any, kind: str, bits: int) -> None:
    """A number that is multiplied by a weight of zero that is none of the layer's would give NaN."""
    given = case(kind, Window((4, 5), 3, 3, (1, 1), (4, 5)), Coding(bits))
    if kind == "linear":
        given.x = np.full((3, 3), np.inf, np.float32)
        given.x[1] = 1.0
        found = given.found(float_cpu)[1]
    else:
        given.x[...] = np.inf
        given.x[:, 0, 0] = 1.0
        found = given.found(float_cpu)
    assert np.isfinite(found).all()


@pytest.mark.parametrize("bits", [32, 4])
@KINDS
def test_nan_is_not_limited_away(float_cpu: Any, kind: str, bits: int) -> None:
    given = case(kind, Window((2, 2), 4, 4), Coding(bits), 2, Limits(0.0, 6.0))
    given.x[0, ...] = np.nan
    found = given.found(float_cpu)
    assert np.isnan(found[0]).all()
    assert np.isfinite(found[1]).all()


@pytest.mark.parametrize("bits", [8, 4])
def test_each_code_is_decoded_exactly(float_cpu: Any, bits: int) -> None:
    """The rows of a unit matrix give the weights themselves: all codes, in every lane."""
    codes, features = 2**bits, 2 * float_cpu.vectors.lanes + 1
    given = case("linear", Window((1, 1), codes, features), Coding(bits), codes)
    weight = np.arange(codes)[None, :] + np.arange(features)[:, None]
    given.layer.weight[:, :, 0, 0] = (weight % codes - codes // 2).astype(np.int8)
    given.layer.bias[...] = 0
    given.x = np.eye(codes, dtype=np.float32)
    scale = given.layer.scale
    assert scale is not None
    expected = given.layer.weight[:, :, 0, 0].T.astype(np.float32) * scale
    np.testing.assert_array_equal(given.found(float_cpu), expected)
