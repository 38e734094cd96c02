"""Ops that move elements: each against NumPy or PyTorch, through saved packages."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from qcompile.targets.coreml.reference.errors import ExecutionError
from qcompile.targets.coreml.reference.ops import shape as ops

Array = NDArray[Any]
Run = Callable[..., list[Any]]
IO = ("fp32", "fp16", "int32")


def sample(shape: tuple[int, ...], kind: str) -> Array:
    values = np.random.default_rng(0).integers(0 if kind[0] in "ub" else -100, 100, shape)
    return (values > 50).astype(bool) if kind == "bool" else values.astype(kind)


def as_output(mb: Any, var: Any) -> Any:
    """Cast what a model cannot give out."""
    is_io = any(name in var.dtype.__name__ for name in IO)
    return mb.identity(x=var) if is_io else mb.cast(x=var, dtype="int32")


def same(found: list[Any], wanted: dict[str, Array], kind: str) -> None:
    for (name, want), got in zip(wanted.items(), found, strict=True):
        assert got.dtype == (kind if kind in ("float32", "float16") else "int32"), name
        np.testing.assert_array_equal(got, want, err_msg=name)


@pytest.mark.parametrize("kind", ["float32", "float16", "int32", "int8", "uint16", "bool"])
def test_all_dtypes_keep_their_values(run_mil: Run, fold_mil: Run, kind: str) -> None:
    x = sample((2, 1, 3, 4), kind)
    lengths = np.array([2, 4], np.int32)
    reversed_rows = x.copy()
    for row, length in enumerate(lengths):
        reversed_rows[row, ..., :length] = x[row, ..., :length][..., ::-1]
    built = {
        "reshape": lambda mb, x: mb.reshape(x=x, shape=[4, -1, 2]),
        "zeros": lambda mb, x: mb.reshape(x=x, shape=[0, 3, -1, 0]),
        "expand": lambda mb, x: mb.expand_dims(x=mb.squeeze(x=x), axes=[-1, 1]),
        "squeeze": lambda mb, x: mb.squeeze(x=x),
        "squeeze_axes": lambda mb, x: mb.squeeze(x=x, axes=[1]),
        "transpose": lambda mb, x: mb.transpose(x=x, perm=[-1, 0, 2, 1]),
        "reverse": lambda mb, x: mb.reverse(x=x),
        "reverse_axes": lambda mb, x: mb.reverse(x=x, axes=[-1, 0]),
    }
    wanted = {
        "reshape": x.reshape(4, -1, 2), "zeros": x.reshape(2, 3, -1, 4),
        "expand": x[..., None],
        "squeeze": x.squeeze(), "squeeze_axes": x[:, 0],
        "transpose": x.transpose(3, 0, 2, 1), "reverse": np.flip(x),
        "reverse_axes": x[::-1, ..., ::-1], "sequence": reversed_rows,
        "windows": np.stack([x[..., 0:3], x[..., 1:4]], -2),
    }  # fmt: skip

    def build(mb: Any, x: Any) -> list[Any]:
        outputs = [make(mb, x) for make in built.values()]
        outputs.append(mb.reverse_sequence(x=x, lengths=lengths, seq_axis=-1, batch_axis=0))
        outputs.append(mb.sliding_windows(x=x, axis=3, size=3))
        return [as_output(mb, output) for output in outputs]

    same(run_mil(build, {"x": x}), wanted, kind)
    if kind in ("float32", "int32"):
        folded = fold_mil(lambda mb, x: [make(mb, x) for make in built.values()], {"x": x})
        for (name, _), got in zip(built.items(), folded, strict=True):
            np.testing.assert_array_equal(got, wanted[name], err_msg=name)


@pytest.mark.parametrize("axis", [-2, 0, 1, 3])
def test_flatten2d(run_mil: Run, axis: int) -> None:
    x = sample((2, 3, 4), "int32")
    (found,) = run_mil(lambda mb, x: mb.flatten2d(x=x, axis=axis), {"x": x})
    np.testing.assert_array_equal(found, x.reshape(int(np.prod(x.shape[:axis])), -1))


def test_rules_of_zero_by_version(run_mil: Run) -> None:
    x = sample((2, 50), "float32")
    (newer,) = run_mil(lambda mb, x: mb.reshape(x=x, shape=[1, 0, -1, 0]), {"x": x}, "iOS17")
    (older,) = run_mil(lambda mb, x: mb.reshape(x=x, shape=[0, 0]), {"x": x}, "iOS15")
    np.testing.assert_array_equal(newer, x.reshape(1, 1, 2, 50))
    np.testing.assert_array_equal(older, x)


@pytest.mark.parametrize("shape", [[-1, -1], [5, -1], [7], [0, 0, -1, -2]])
def test_impossible_shapes_are_refused(shape: list[int]) -> None:
    with pytest.raises(ExecutionError, match="cannot become"):
        ops.reshape(torch.zeros(2, 3), torch.tensor(shape))


def test_reshape_like(run_mil: Run) -> None:
    x, a, b = (sample(s, "float32") for s in ((30, 6), (2, 3, 4), (1, 5, 6)))

    def several(mb: Any, x: Any, a: Any, b: Any) -> Any:
        return mb.reshape_like(
            x=x, ref_tensors=(a, b), begins=(0, 1), ends=(2, 0), end_masks=(False, True)
        )

    def one(mb: Any, x: Any, a: Any) -> Any:
        return mb.reshape_like(x=x, ref_tensors=(a,), begins=(-1,), ends=(0,), end_masks=(True,))

    (found,) = run_mil(several, {"x": x, "a": a, "b": b}, "iOS16")
    np.testing.assert_array_equal(found, x.reshape(2, 3, 5, 6))
    (found,) = run_mil(one, {"x": x, "a": sample((3, 180), "float32")}, "iOS16")
    np.testing.assert_array_equal(found, x.reshape(180))


@pytest.mark.parametrize("kind", ["float32", "float16"])
def test_blocks_of_pixels(run_mil: Run, kind: str) -> None:
    x = sample((2, 12, 4, 6), kind)
    t = torch.from_numpy(x)

    def build(mb: Any, x: Any) -> list[Any]:
        deep = mb.space_to_depth(x=x, block_size=2)
        batches = mb.space_to_batch(x=x, block_shape=[2, 3], paddings=[[1, 3], [2, 1]])
        return [
            mb.pixel_shuffle(x=x, upscale_factor=2),
            mb.pixel_unshuffle(x=x, downscale_factor=np.uint32(2)),
            deep,
            mb.depth_to_space(x=deep, block_size=2),
            batches,
            mb.batch_to_space(x=batches, block_shape=[2, 3], crops=[[1, 3], [2, 1]]),
        ]

    padded = np.pad(x, ((0, 0), (0, 0), (1, 3), (2, 1)))
    wanted = {
        "shuffle": torch.nn.functional.pixel_shuffle(t, 2).numpy(),
        "unshuffle": torch.nn.functional.pixel_unshuffle(t, 2).numpy(),
        "deep": np.concatenate([x[:, :, i::2, j::2] for i in (0, 1) for j in (0, 1)], 1),
        "shallow": x,
        "batches": np.concatenate(
            [padded[:, :, i::2, j::3] for i in range(2) for j in range(3)], 0
        ),
        "joined": x,
    }
    same(run_mil(build, {"x": x}, "iOS16"), wanted, kind)


def test_depth_to_space_as_the_format_describes_it() -> None:
    """The example of ``ReorganizeDataLayerParams`` in NeuralNetwork.proto."""
    x = torch.arange(1, 17).reshape(1, 8, 1, 2)
    shallow = ops.depth_to_space(x, torch.tensor(2))
    assert shallow[0].tolist() == [
        [[1, 5, 2, 6], [9, 13, 10, 14]],
        [[3, 7, 4, 8], [11, 15, 12, 16]],
    ]
    assert ops.pixel_shuffle(x, torch.tensor(2))[0, 0].tolist() == [[1, 3, 2, 4], [5, 7, 6, 8]]


@settings(max_examples=20, deadline=None)
@given(st.data())
def test_windows_are_slices(data: st.DataObject) -> None:
    shape = data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=4))
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    size = data.draw(st.integers(1, shape[axis]))
    stride = data.draw(st.integers(1, 3))
    x = torch.rand(shape)
    found = ops.sliding_windows(x, torch.tensor(axis), torch.tensor(size), torch.tensor(stride))
    along = axis % len(shape)
    count = (shape[axis] - size) // stride + 1
    wanted = torch.stack([x.narrow(along, i * stride, size) for i in range(count)], along)
    assert torch.equal(found, wanted)


def test_wrong_values_are_refused() -> None:
    x = torch.zeros(1, 6, 3, 4)
    two = torch.tensor([2, 2])
    none = torch.zeros(2, 2, dtype=torch.int32)
    with pytest.raises(ExecutionError, match="does not divide"):
        ops.depth_to_space(x, torch.tensor(2))
    with pytest.raises(ExecutionError, match="does not divide"):
        ops.space_to_batch(x, two, none)
    with pytest.raises(ExecutionError, match="no blocks"):
        ops.batch_to_space(x, two, none)
    with pytest.raises(ExecutionError, match="do not fit"):
        ops.batch_to_space(torch.zeros(4, 1, 1, 1), two, none + 2)
    with pytest.raises(ExecutionError, match="numbers from 0 to 6"):
        ops.reverse_sequence(x, torch.tensor([7]), torch.tensor(1))
    with pytest.raises(ExecutionError, match="no 2 places"):
        ops.expand_dims(x, torch.tensor([0, -6]))
