"""Which functions are tasks: not the kernels of this project, not what mixes images."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from qcompile.targets.device import load_device
from qcompile.targets.tvm.kernels import elementwise
from qcompile.targets.tvm.machine import Machine
from qcompile.targets.tvm.tuning_batch import for_each_image, for_one_image
from qcompile.targets.tvm.tuning_tasks import Tasks, lowered, plain_function, tasks_of

tvm = pytest.importorskip("tvm", reason="apache-tvm is not installed")


class Both(nn.Module):
    """Something for each image, and something across images."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return torch.softmax(x * 2, 1), x.mean(0)


def _target() -> Any:
    return Machine.of(load_device("x86-avx2")).target()


def _module(module: nn.Module, *shape: int) -> Any:
    from tvm.relax.frontend.torch import from_exported_program

    axes = ({0: torch.export.Dim("batch", min=1, max=64)},)
    program = torch.export.export(module, (torch.zeros(shape),), dynamic_shapes=axes)
    return from_exported_program(program.run_decompositions())


def _tasks(module: nn.Module, *shape: int) -> tuple[Any, Tasks]:
    found = lowered(_module(module, *shape), _target())
    return found, tasks_of(found)


def test_a_function_that_mixes_images_is_none() -> None:
    _, tasks = _tasks(Both(), 4, 7)
    assert [task.name.split()[0] for task in tasks.tunable] == ["multiply", "softmax"]
    assert tasks.free == {"mean": 1}
    assert tasks.operators == 3


class Crossed(nn.Module):
    """A batch in another order, added to itself; sums over the images before."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x + x.flip(0), torch.cumsum(x, 0)


def test_other_ways_to_mix_images() -> None:
    _, tasks = _tasks(Crossed(), 4, 7)
    assert [task.name for task in tasks.tunable] == ["add 1x7"]
    assert set(tasks.free) == {"flip", "cumsum"}


def test_a_loop_over_images_computes_the_same() -> None:
    """TVM's own functions, as they are, in the loop: whatever the batch, what the free function computes."""
    module, tasks = _tasks(nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.Softmax(1)), 4, 2, 5, 6)
    assert not tasks.free
    for task in tasks.tunable:
        for symbol in task.symbols:
            function = module[symbol]
            looped = for_each_image(function, task.function)
            _same(function, looped)


def _same(function: Any, other: Any, batch: int = 3) -> None:
    random = np.random.default_rng(0)
    shapes = [
        [int(s) if isinstance(s, tvm.tirx.IntImm) else batch for s in p.ty.shape]
        for p in function.params
    ]
    values = [random.standard_normal(shape).astype(np.float32) for shape in shapes]
    found = []
    for chosen in (function, other):
        named = tvm.IRModule({"main": chosen.with_attr("global_symbol", "main")})
        library = tvm.runtime.Executable(tvm.tirx.build(named, tvm.target.Target({"kind": "llvm"})))
        arguments = [tvm.runtime.tensor(v) for v in values]
        library.jit()["main"](*arguments)
        found.append(arguments[-1].numpy())
    np.testing.assert_array_equal(*found)


def test_kernels_of_this_project_are_no_tasks() -> None:
    relax = tvm.relax
    kernel = elementwise.table((4, 4, 8), "uint8", "uint8")
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((2, 4, 4, 8), "uint8"))
    table = relax.const(np.arange(256, dtype=np.uint8))
    with builder.function("main", [x]):
        symbol = builder.add_func(kernel, "integer_table")
        result = relax.TensorType((2, 4, 4, 8), "uint8")
        found = builder.emit(relax.call_tir(symbol, [x, table], result))
        builder.emit_func_output(builder.emit(relax.op.add(found, found)))
    module = lowered(builder.get(), _target(), for_tuning=True)
    tasks = tasks_of(module)
    assert [task.name.split()[0] for task in tasks.tunable] == ["add"]
    left = next(f for s, f in module.functions.items() if s.name_hint.startswith("integer_table"))
    tvm.ir.assert_structural_equal(_body(left), _body(kernel))


def _body(function: Any) -> Any:
    return plain_function(function).without_attr("layout_free_buffers")


def test_a_known_size_needs_no_loop() -> None:
    _, tasks = _tasks(nn.Softmax(1), 4, 7)
    function = tasks.tunable[0].function
    assert for_one_image(function).same_as(function)


def test_a_size_that_is_an_argument_of_its_own_is_free() -> None:
    te = pytest.importorskip("tvm.te", reason="apache-tvm is not installed")
    size = te.var("n", "int64")
    values = te.compute((8,), lambda i: size + i)
    assert for_one_image(te.create_prim_func([size, values])) is None
