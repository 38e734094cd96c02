"""Each published limit keeps an op off a unit, and an op within all limits runs everywhere."""

from __future__ import annotations

import dataclasses
import gc
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qcompile.targets.coreml.compute_units import (
    MAX_IPHONE_BYTES,
    PREDICTION,
    Row,
    cautions,
    predict,
    summary,
)
from qcompile.targets.coreml.reference.package import read_package
from qcompile.targets.coreml.reference.program import (
    Block,
    Function,
    Name,
    Operation,
    Program,
    Stored,
)
from qcompile.targets.coreml.reference.types import DTYPES, StateType, TensorType, ValueType
from qcompile.targets.coreml.tools import load_coremltools, quiet
from qcompile.targets.coreml.unit_rules import RULES
from qcompile.targets.device import load_device

M1, M2, M3, M4 = (load_device(f"apple-m{n}") for n in (1, 2, 3, 4))
PHONE = load_device("apple-a17-pro")
ALL = ("CPU", "GPU", "Neural Engine")
CPU_GPU = ("CPU", "GPU")


def typed(*shape: int | None, dtype: str = "fp16") -> TensorType:
    return TensorType(DTYPES[dtype], shape)


def op(type: str, made: ValueType, *reads: str, **inputs: Any) -> Operation:
    named = {f"x{i}": Name(read) for i, read in enumerate(reads)}
    return Operation(type, {**named, **inputs}, (("y", made),), name=f"the {type}")


def program(operation: Operation, given_type: ValueType, *constants: Operation) -> Program:
    block = Block((("a", given_type),), (*constants, operation), ("y",))
    return Program({"main": Function("CoreML8", block)})


def row(operation: Operation, given_type: ValueType | None = None, device: Any = M1) -> Row:
    (found,) = predict(program(operation, given_type or typed(1, 8)), device)
    return found


def constant(name: str, made: TensorType) -> Operation:
    return Operation("const", {"val": torch.zeros(1)}, ((name, made),), name=name)


def test_an_op_within_all_limits_runs_everywhere() -> None:
    found = row(op("relu", typed(1, 8), "a"))
    assert found == Row("relu", "the relu", ALL)


def test_units_are_those_of_the_device() -> None:
    device = dataclasses.replace(M1, compute_units=("CPU",))
    assert row(op("relu", typed(1, 8), "a"), device=device).units == ("CPU",)


@pytest.mark.parametrize(
    ("operation", "given_type", "part"),
    [
        (op("relu", typed(1, 8, dtype="fp32"), "a"), typed(1, 8, dtype="fp32"), "float32"),
        (op("add", typed(3, dtype="int32"), "a"), typed(3, dtype="int32"), "integers"),
        (op("gather", typed(1, 8), "a"), typed(1, dtype="int32"), "integers"),
        (op("cast", typed(3, dtype="int32"), "a"), typed(3), "integers"),
        (op("lstm", typed(1, 8), "a"), typed(1, 8), "recurrent"),
        (op("while_loop", typed(1, 8), "a"), typed(1, 8), "branches or loops"),
        (op("non_maximum_suppression", typed(1, 8), "a"), typed(1, 8), "box suppression"),
        (op("topk", typed(1, 8), "a"), typed(1, 8), "sorting"),
        (op("custom_layer", typed(1, 8), "a"), typed(1, 8), "custom op"),
        (op("scatter_nd", typed(1, 8), "a"), typed(1, 8), "has this op"),
        (op("logical_and", typed(8, dtype="bool"), "a"), typed(8, dtype="bool"), "has this op"),
        (op("conv", typed(1, 4, 2, 2, 2), "a"), typed(1, 4, 2, 2, 2), "3-d convolution"),
        (op("relu", typed(1, None), "a"), typed(1, None), "only at run time"),
        (op("transpose", typed(1, 1, 1, 1, 1, 2), "a"), typed(1, 2), "at most 5 dimensions"),
        (op("matmul", typed(1, 2, 3, 4, 5), "a"), typed(1, 2, 3, 4, 5), "at most 4 dimensions"),
        (op("linear", typed(1, 16385), "a"), typed(1, 8), "beyond the Neural Engine's 16384"),
        (op("read_state", typed(1, 270), "a"), StateType(typed(1, 270)), "multiple of 32"),
    ],
)
def test_each_limit_keeps_an_op_off_the_neural_engine(
    operation: Operation, given_type: ValueType, part: str
) -> None:
    found = row(operation, given_type)
    assert found.units == CPU_GPU
    assert part in found.why
    assert all(source.startswith("https://") for source in found.sources)


@pytest.mark.parametrize(
    ("operation", "given_type"),
    [
        (op("cast", typed(1, 8), "a"), typed(1, 8, dtype="fp32")),
        (op("cast", typed(1, 8, dtype="fp32"), "a"), typed(1, 8)),
        (op("quantize", typed(1, 8, dtype="int8"), "a"), typed(1, 8)),
        (op("greater", typed(1, 8, dtype="bool"), "a"), typed(1, 8)),
        (op("transpose", typed(1, 1, 1, 1, 2), "a"), typed(1, 2)),
        (op("linear", typed(1, 16384), "a"), typed(1, 8)),
        (op("conv", typed(1, 20000, 2, 2), "a"), typed(1, 8, 2, 2)),
        (op("read_state", typed(1, 256), "a"), StateType(typed(1, 256))),
    ],
)
def test_what_is_just_within_a_limit(operation: Operation, given_type: ValueType) -> None:
    assert row(operation, given_type).units == ALL


@pytest.mark.parametrize(
    ("operation", "needed"),
    [(op("sin", typed(1, 8), "a"), M3), (op("resample", typed(1, 8), "a"), M2)],
)
def test_ops_that_came_with_a_generation(operation: Operation, needed: Any) -> None:
    generations = [(d, d.neural_engine_generation or 0) for d in (M1, M2, M3, M4)]
    since = needed.neural_engine_generation
    for device, generation in generations:
        assert (row(operation, device=device).units == ALL) is (generation >= since), device.name
    assert row(operation, device=PHONE).units == ALL  # its generation is not known to be too old


def test_the_m4_takes_larger_tensors() -> None:
    assert row(op("relu", typed(1, 65536), "a"), device=M4).units == ALL
    assert row(op("relu", typed(1, 65537), "a"), device=M4).units == CPU_GPU


@pytest.mark.parametrize(
    ("width", "m1", "m2"), [(13, True, True), (16, False, True), (17, False, False)]
)
def test_a_wide_kernel(width: int, m1: bool, m2: bool) -> None:
    convolution = op("conv", typed(1, 4, 8, 8), "a", weight=Name("w"))
    built = program(convolution, typed(1, 4, 8, 8), constant("w", typed(4, 4, 3, width)))
    assert (predict(built, M1)[0].units == ALL) is m1
    assert (predict(built, M2)[0].units == ALL) is m2


def test_3d_convolution_on_the_gpu_needs_macos_14() -> None:
    operation = op("conv", typed(1, 4, 2, 2, 2), "a")
    found = row(operation, typed(1, 4, 2, 2, 2), M4.with_os_minimum("13"))
    assert found.units == ("CPU",)
    assert "macOS 14" in found.why
    assert row(operation, typed(1, 4, 2, 2, 2), M4.with_os_minimum("14")).units == CPU_GPU


def test_constants_are_no_values_and_get_no_row() -> None:
    indices = constant("i", typed(3, dtype="int32"))
    table = Operation("constexpr_lut_to_dense", {}, (("t", typed(40000, 8)),), name="t")
    built = program(op("gather", typed(3, 8), "t", "i"), typed(1), indices, table)
    assert [r.op for r in predict(built, M1)] == ["gather"]
    assert predict(built, M1)[0].units == ALL


def test_listed_shapes_stay_unless_a_shape_is_computed() -> None:
    still = program(op("relu", typed(1, None), "a"), typed(1, None))
    assert predict(still, M1)[0].units == CPU_GPU
    assert predict(still, M1, enumerated=True)[0].units == ALL
    moved = program(op("reshape", typed(None, 4), x=Name("a"), shape=Name("a")), typed(1, None))
    found = predict(moved, M1, enumerated=True)[0]
    assert found.units == CPU_GPU
    assert found.why.startswith("a shape is computed at run time")


def test_ops_in_blocks_are_predicted_after_their_op() -> None:
    inner = Block((("z", typed(1, 8, dtype="fp32")),), (op("exp", typed(1, 8), "z", "a"),), ("y",))
    loop = Operation("while_loop", {}, (("y", typed(1, 8)),), (inner,), "loop")
    built = program(loop, typed(1, 8))
    assert [(r.op, r.units) for r in predict(built, M1)] == [
        ("while_loop", CPU_GPU),
        ("exp", CPU_GPU),
    ]
    assert "float32" in predict(built, M1)[1].why


def test_a_summary_counts_stretches_and_reasons() -> None:
    rows = [
        Row("relu", "a", ALL),
        Row("lstm", "b", CPU_GPU, "no loops; too large"),
        Row("gru", "c", CPU_GPU, "no loops"),
        Row("relu", "d", ALL),
        Row("topk", "e", CPU_GPU, "no sorting"),
    ]
    assert summary(rows) == [
        "2 of 5 ops can run on the Neural Engine, in 2 stretches; each change of unit takes time.",
        "2 not (gru, lstm): no loops.",
        "1 not (topk): no sorting.",
        PREDICTION,
    ]
    assert summary(rows[:1])[0] == "1 of 1 ops can run on the Neural Engine."
    assert summary([]) == ["0 of 0 ops can run on the Neural Engine.", PREDICTION]


@settings(max_examples=20, deadline=None)
@given(st.lists(st.booleans(), max_size=12))
def test_a_summary_accounts_for_every_op(there: list[bool]) -> None:
    rows = [
        Row("op", "n", ALL if on else CPU_GPU, "" if on else f"why {i % 3}")
        for i, on in enumerate(there)
    ]
    said = summary(rows)
    assert said[0].startswith(f"{sum(there)} of {len(there)} ops")
    assert sum(int(line.split()[0]) for line in said[1:-1]) == len(there) - sum(there)
    assert said[-1] == PREDICTION


def test_an_iphone_takes_no_more_than_a_gibibyte() -> None:
    elements = MAX_IPHONE_BYTES // 2 + 1
    for dtype, device, expected in (("fp16", PHONE, 1), ("fp16", M4, 0), ("uint4", PHONE, 0)):
        weight = Stored(typed(elements, dtype=dtype), "weights", 64)
        for value in (weight, [weight]):
            held = Operation("const", {"val": value}, (("w", weight.type),))
            found = cautions(program(op("relu", typed(1), "a"), typed(1), held), device)
            assert len(found) == expected, (dtype, device.name)
            assert all("The weights take 1.00 GiB" in said for said in found)


def test_rules_are_sourced_and_named_once() -> None:
    assert len({rule.name for rule in RULES}) == len(RULES)
    assert all(rule.source.startswith("https://") and rule.why for rule in RULES)
    assert not any("; " in rule.why for rule in RULES)  # which parts reasons in a row


def test_a_converted_model(tmp_path: Path) -> None:
    ct = load_coremltools()
    from coremltools.converters.mil import Builder
    from coremltools.converters.mil.mil import types

    def small(x: Any) -> Any:
        weight = torch.ones(4, 4, 3, 3).half().numpy()
        x = Builder.relu(x=Builder.conv(x=x, weight=weight, pad_type="same"))
        return Builder.reduce_prod(x=x, axes=[1])

    with quiet():
        spec = Builder.TensorSpec((1, 4, 8, 8), types.fp16)
        build = Builder.program(input_specs=[spec], opset_version=ct.target.iOS18)
        ct.convert(
            build(small), minimum_deployment_target=ct.target.iOS18, skip_model_load=True
        ).save(str(tmp_path / "small.mlpackage"))
        gc.collect()  # coremltools removes its temporary folder with a warning
    rows = predict(read_package(tmp_path / "small.mlpackage").program, M4)
    assert {r.op: r.units for r in rows} == {"conv": ALL, "relu": ALL, "reduce_prod": CPU_GPU}
    assert summary(rows)[0].startswith("2 of 3 ops can run on the Neural Engine, in 1 stretch;")
