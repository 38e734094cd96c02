"""Reductions and ``classify`` through saved packages, against numpy and coremltools' folding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from qcompile.targets.coreml.reference.errors import ExecutionError
from qcompile.targets.coreml.reference.interpreter import Interpreter
from qcompile.targets.coreml.reference.ops import reduction
from qcompile.targets.coreml.reference.package import read_package
from qcompile.targets.coreml.reference.registry import operators
from qcompile.targets.coreml.tools import load_coremltools, quiet

REDUCTIONS = {
    "reduce_l1_norm": lambda x, **k: np.abs(x).sum(**k),
    "reduce_l2_norm": lambda x, **k: np.sqrt(np.square(x).sum(**k)),
    "reduce_log_sum": lambda x, **k: np.log(x.sum(**k)),
    "reduce_log_sum_exp": lambda x, **k: np.log(np.exp(x).sum(**k)),
    "reduce_max": np.max,
    "reduce_mean": np.mean,
    "reduce_min": np.min,
    "reduce_prod": np.prod,
    "reduce_sum": np.sum,
    "reduce_sum_square": lambda x, **k: np.square(x).sum(**k),
}
properties = settings(
    phases=[Phase.explicit, Phase.generate],  # a package an example: shrinking takes minutes
    max_examples=4,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@st.composite
def cases(draw: st.DrawFn) -> tuple[list[int], list[int] | None, bool]:
    shape = draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
    rank = len(shape)
    some = st.lists(st.integers(0, rank - 1), min_size=1, max_size=rank, unique=True)
    axes = draw(st.none() | some)
    if axes is not None:
        axes = [a - rank if draw(st.booleans()) else a for a in axes]
    return shape, axes, draw(st.booleans())


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@properties
@given(cases(), st.integers(0, 10_000))
def test_floats(run_mil: Any, dtype: Any, case: Any, seed: int) -> None:
    shape, axes, keep = case
    x = np.random.default_rng(seed).uniform(0.25, 1.5, shape).astype(dtype)
    found = run_mil(
        lambda mb, x: [getattr(mb, n)(x=x, axes=axes, keep_dims=keep) for n in REDUCTIONS],
        {"x": x},
    )
    over = None if axes is None else tuple(axes)
    rtol = 1e-5 if dtype == np.float32 else 1e-3
    for name, value in zip(REDUCTIONS, found, strict=True):
        expected = np.asarray(REDUCTIONS[name](x.astype(np.float64), axis=over, keepdims=keep))
        assert value.shape == expected.shape
        np.testing.assert_allclose(
            value, expected.astype(dtype), rtol=rtol, atol=rtol, err_msg=name
        )


@properties
@given(cases(), st.integers(0, 10_000))
def test_integers_equal_folding(run_mil: Any, fold_mil: Any, case: Any, seed: int) -> None:
    shape, axes, keep = case
    x = np.random.default_rng(seed).integers(1, 9, shape).astype(np.int32)

    def build(mb: Any, x: Any) -> Any:
        return [getattr(mb, n)(x=x, axes=axes, keep_dims=keep) for n in REDUCTIONS]

    found, folded = run_mil(build, {"x": x}), fold_mil(build, {"x": x})
    for name, value, expected in zip(REDUCTIONS, found, folded, strict=True):
        assert value.dtype == np.int32
        np.testing.assert_array_equal(value, expected, err_msg=name)


def test_sums_of_integers_wrap_and_means_are_cut_towards_zero(run_mil: Any) -> None:
    x = np.array([2**31 - 1, 2, -(2**31), -2], np.int32)
    names = ("reduce_sum", "reduce_prod", "reduce_sum_square", "reduce_mean")
    found = run_mil(lambda mb, x: [getattr(mb, n)(x=x) for n in names], {"x": x})
    squares = (1 + 4 + 0 + 4) & 0xFFFFFFFF
    assert [int(v) for v in found] == [-1, 0, squares, 0]
    (mean,) = run_mil(lambda mb, x: mb.reduce_mean(x=x), {"x": np.array([-3, 0], np.int32)})
    assert int(mean) == -1


def test_half_is_summed_wide_and_rounded_once(run_mil: Any) -> None:
    x = np.full((4096,), 100, np.float16)
    total, mean, norm = run_mil(
        lambda mb, x: (mb.reduce_sum(x=x), mb.reduce_mean(x=x), mb.reduce_l2_norm(x=x)), {"x": x}
    )
    assert (float(total), float(mean), float(norm)) == (np.inf, 100.0, 6400.0)


def test_the_logarithm_of_a_sum_of_exponentials_does_not_overflow(run_mil: Any) -> None:
    x = np.array([[1000, 999], [-1000, -np.inf]], np.float32)
    (found,) = run_mil(lambda mb, x: mb.reduce_log_sum_exp(x=x, axes=[1]), {"x": x})
    np.testing.assert_allclose(found, [1000 + np.log1p(np.exp(-1)), -1000])


def test_no_axes_reduce_nothing() -> None:
    x, none = torch.tensor([[1.0, -2.0]]), torch.tensor([], dtype=torch.int32)
    ops = operators()
    assert ops["reduce_sum"].run(x, axes=none, keep_dims=True).tolist() == [[1.0, -2.0]]
    assert ops["reduce_l1_norm"].run(x, axes=none).tolist() == [[1.0, 2.0]]


@pytest.mark.parametrize("axes", [[2], [-3], [0, -2]])
def test_wrong_axes_are_refused(axes: list[int]) -> None:
    with pytest.raises(ExecutionError, match=r"axis"):
        operators()["reduce_sum"].run(torch.ones(2, 2), axes=torch.tensor(axes))


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int32])
@pytest.mark.parametrize(("axis", "keep"), [(-1, False), (0, True), (-2, True), (1, False)])
def test_arguments(run_mil: Any, fold_mil: Any, dtype: Any, axis: int, keep: bool) -> None:
    x = np.random.default_rng(0).integers(-2, 3, (3, 5)).astype(dtype)  # with ties

    def build(mb: Any, x: Any) -> Any:
        return [
            mb.reduce_argmax(x=x, axis=axis, keep_dims=keep),
            mb.reduce_argmin(x=x, axis=axis, keep_dims=keep),
            mb.reduce_argmax(x=x, axis=axis, keep_dims=keep, output_dtype="uint16"),
        ]

    found = run_mil(build, {"x": x})
    for value, function in zip(found, (np.argmax, np.argmin, np.argmax), strict=True):
        np.testing.assert_array_equal(value, function(x, axis=axis, keepdims=keep))


def test_arguments_of_ios_15(run_mil: Any) -> None:
    x = np.array([[1, np.nan, 3]], np.float32)
    found = run_mil(lambda mb, x: (mb.reduce_argmax(x=x), mb.reduce_argmin(x=x)), {"x": x}, "iOS15")
    assert [v.tolist() for v in found] == [[1], [1]]


def test_the_largest_of_nothing_is_refused() -> None:
    for name in ("reduce_max", "reduce_argmin"):
        with pytest.raises(ExecutionError, match="no elements"):
            operators()[name].run(torch.ones(0, 3))


def _saved_classifier(folder: Path, labels: list[Any]) -> Path:
    from coremltools.converters.mil.mil import Builder

    ct = load_coremltools()
    with quiet():

        @Builder.program(input_specs=[Builder.TensorSpec((1, 4))], opset_version=ct.target.iOS16)
        def program(x: Any) -> Any:
            return Builder.add(x=x, y=x)

        model = ct.convert(
            program, convert_to="mlprogram", skip_model_load=True,
            minimum_deployment_target=ct.target.iOS16, compute_precision=ct.precision.FLOAT32,
            classifier_config=ct.ClassifierConfig(labels),
        )  # fmt: skip
        model.save(str(folder / "model.mlpackage"))
    return folder / "model.mlpackage"


@pytest.mark.parametrize("labels", [["cat", "dog", "ant", "bee"], [7, 5, 9, 1]])
def test_classify(tmp_path: Path, labels: list[Any]) -> None:
    x = torch.tensor([[0.1, 0.4, 0.4, 0.1]])
    interpreter = Interpreter(read_package(_saved_classifier(tmp_path, labels)))
    label, probabilities = interpreter.run({"x": x}).values()
    assert label == labels[1]
    assert probabilities == dict(zip(labels, (x[0] * 2).tolist(), strict=True))


def test_classify_refuses_other_numbers_of_labels() -> None:
    with pytest.raises(ExecutionError, match="2 probabilities of 1 labels"):
        reduction.classify(torch.ones(2), ["a"])
