"""Packages to damage: small programs, saved, and a way to change what was saved."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qcompile.targets.coreml.tools import load_coremltools, quiet

ct = load_coremltools()
Build = Callable[..., Any]


@pytest.fixture(scope="session")
def save(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Give ``save(build, *shapes, opset="iOS18", dtype="fp32")``: the saved package, not optimized."""

    def saved(
        build: Build, *shapes: tuple[int, ...], opset: str = "iOS18", dtype: str = "fp32"
    ) -> Path:
        from coremltools.converters.mil.mil import Builder, types

        specs = [Builder.TensorSpec(shape, getattr(types, dtype)) for shape in shapes]
        names = ["x", "y", "z"][: len(shapes)]
        arguments = ", ".join(names)
        function = eval(
            f"lambda {arguments}: build(mb, {arguments})", {"build": build, "mb": Builder}
        )
        target = getattr(ct.target, opset)
        with quiet():
            program = Builder.program(input_specs=specs, opset_version=target)(function)
            model = ct.convert(
                program, convert_to="mlprogram", pass_pipeline=ct.PassPipeline.EMPTY,
                minimum_deployment_target=target, compute_precision=ct.precision.FLOAT32,
                skip_model_load=True,
            )  # fmt: skip
        folder = tmp_path_factory.mktemp("saved") / "model.mlpackage"
        model.save(str(folder))
        return folder

    return saved


@pytest.fixture(scope="session")
def small(save: Callable[..., Path]) -> Path:
    """Give a package that has constants of both kinds, a loop, a condition and stored weights."""
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(4, 3, 3, 3)).astype(np.float32)
    matrix = rng.normal(size=(20, 4)).astype(np.float32)

    def build(mb: Any, x: Any) -> Any:
        y = mb.relu(x=mb.conv(x=x, weight=weight, pad_type="same"))
        y = mb.tile(x=y, reps=[1, 1, 2, 1])
        y = mb.pad(x=y, pad=[1, 1, 2, 2], mode="constant", constant_val=np.float32(0))
        y = mb.reduce_mean(x=y, axes=[2, 3], keep_dims=False)
        is_large = mb.greater(x=mb.reduce_sum(x=y, axes=[0, 1], keep_dims=False), y=np.float32(0))
        y = mb.cond(
            pred=is_large,
            _true_fn=lambda: mb.add(x=y, y=np.float32(1)),
            _false_fn=lambda: mb.sub(x=y, y=np.float32(1)),
        )
        _, y = mb.while_loop(
            _cond=lambda i, a: mb.less(x=i, y=np.int32(3)),
            _body=lambda i, a: (mb.add(x=i, y=np.int32(1)), mb.mul(x=a, y=a)),
            loop_vars=(np.int32(0), y),
        )
        return mb.linear(x=y, weight=matrix)

    return save(build, (1, 3, 6, 6))


@pytest.fixture
def broken(small: Path, tmp_path: Path) -> Path:
    """Give a copy of ``small`` to break."""
    return Path(shutil.copytree(small, tmp_path / "broken.mlpackage"))


@pytest.fixture
def edit() -> Callable[[Path, Callable[[Any], None]], Path]:
    """Give ``edit(package, change)``: calls ``change`` with the model's protobuf and writes it back."""

    def edited(package: Path, change: Callable[[Any], None]) -> Path:
        from coremltools.proto import Model_pb2

        file = next(package.rglob("model.mlmodel"))
        model = Model_pb2.Model()
        model.ParseFromString(file.read_bytes())
        change(model)
        file.write_bytes(model.SerializeToString())
        return package

    return edited
