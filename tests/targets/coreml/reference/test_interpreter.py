"""The interpreter's core: rounding, constants that are kept, functions, what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from qcompile.targets.coreml.reference.errors import ExecutionError
from qcompile.targets.coreml.reference.interpreter import Interpreter
from qcompile.targets.coreml.reference.package import read_package
from qcompile.targets.coreml.tools import load_coremltools, quiet

ct = load_coremltools()
Save = Callable[..., Path]
Edit = Callable[[Path, Callable[[Any], None]], Path]


def test_results_are_rounded_to_float16_after_each_op(run_mil: Callable[..., Any]) -> None:
    x = np.linspace(-3, 3, 24, dtype=np.float16).reshape(2, 3, 4)

    def build(mb: Any, x: Any) -> Any:
        return mb.mul(x=mb.identity(x=x), y=x)

    (found,) = run_mil(build, {"x": x})
    np.testing.assert_array_equal(found, x * x)
    assert found.dtype == np.float16


def joint(mb: Any, x: Any) -> Any:
    """A pruned palette: one decoder has two results, which another takes."""
    from coremltools.converters.mil.mil.types.type_mapping import string_to_nptype

    mask = (np.arange(24).reshape(4, 6) % 3 == 0).astype(string_to_nptype("uint1"))
    indices = (np.arange(8) % 4).astype(string_to_nptype("uint2"))
    lut = np.array([-2, -0.5, 0.25, 3], np.float32).reshape(1, 1, 4, 1)
    where, values = mb.constexpr_lut_to_sparse(
        indices_mask=mask, indices_nonzero_data=indices, lut=lut
    )
    return mb.linear(x=x, weight=mb.constexpr_sparse_to_dense(nonzero_data=values, mask=where))


@pytest.mark.parametrize("cache_bytes", [1 << 30, 0, 40, 100])
def test_runs_are_equal_whatever_is_kept_between_them(save: Save, cache_bytes: int) -> None:
    """Mask, values and weight have 24, 32 and 96 bytes: all are kept, none, or some."""
    interpreter = Interpreter(read_package(save(joint, (2, 6))), cache_bytes=cache_bytes)
    x = torch.randn(2, 6)
    weight = torch.zeros(24)
    weight[::3] = torch.tensor([-2, -0.5, 0.25, 3] * 2)
    for _ in range(3):
        (found,) = interpreter.run({"x": x}).values()
        torch.testing.assert_close(found, x @ weight.reshape(4, 6).T)


def test_unknown_ops_are_all_named(small: Path, save: Save, edit: Edit) -> None:
    def change(model: Any) -> None:
        (function,) = model.mlProgram.functions.values()
        (block,) = function.block_specializations.values()
        kinds = iter(["made_up", "made_up", "of_the_future"])
        for operation in block.operations:
            if operation.type in ("add", "mul", "sub"):
                operation.type = next(kinds)

    def build(mb: Any, x: Any) -> Any:
        return mb.mul(x=mb.add(x=x, y=x), y=mb.sub(x=x, y=x))

    package = read_package(edit(save(build, (2,)), change))
    named = r"lacks: made_up \(2 times\), of_the_future \(1 times\)"
    with pytest.raises(ExecutionError, match=named):
        Interpreter(package)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, "needs the input 'x'"),
        ({"x": torch.ones(1, 3, 6, 5)}, r"shape \[1, 3, 6, 5\]"),
        ({"x": torch.ones(1, 3, 6, 6, dtype=torch.int32)}, "dtype torch.int32"),
        ({"x": [1.0]}, "is no tensor, but list"),
    ],
)
def test_inputs_that_do_not_fit(small: Path, inputs: Any, message: str) -> None:
    with pytest.raises(ExecutionError, match=message):
        Interpreter(read_package(small)).run(inputs)


@pytest.fixture(scope="module")
def two(save: Save, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a package of the functions ``twice``, which is the default, and ``thrice``."""
    weight = np.random.default_rng(0).normal(size=(8, 64)).astype(np.float32)

    def times(factor: float) -> Callable[..., Any]:
        return lambda mb, x: mb.mul(x=mb.linear(x=x, weight=weight), y=np.float32(factor))

    sources = [str(save(times(factor), (2, 64))) for factor in (2, 3)]
    folder = tmp_path_factory.mktemp("two") / "two.mlpackage"
    descriptor = ct.utils.MultiFunctionDescriptor()
    for source, name in zip(sources, ["twice", "thrice"], strict=True):
        descriptor.add_function(source, "main", name)
    descriptor.default_function_name = "twice"
    with quiet():
        ct.utils.save_multifunction(descriptor, str(folder))
    return folder


def test_each_function_of_a_package(two: Path) -> None:
    package, x = read_package(two), torch.randn(2, 64)
    weight = torch.from_numpy(np.random.default_rng(0).normal(size=(8, 64)).astype(np.float32))

    def first(function: str) -> Tensor:
        (found,) = Interpreter(package, function).run({"x": x}).values()
        assert isinstance(found, Tensor)
        return found

    torch.testing.assert_close(first("thrice"), 3 * (x @ weight.T))
    torch.testing.assert_close(first("twice"), 2 * (x @ weight.T))
    assert torch.equal(first(""), first("twice")), "the default"
    with pytest.raises(ExecutionError, match="no function 'main', but thrice, twice"):
        Interpreter(package, "main")
