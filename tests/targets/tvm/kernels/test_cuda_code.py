"""The PTX of kernels for NVIDIA GPUs, and the threads that they are given; no GPU is needed to look.

Names: PTX ISA, ``dp4a``, ``ld.local``, ``fma.rn.f32``.
"""

from __future__ import annotations

import re
import shutil
import warnings
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from qcompile.targets.device import load_device
from qcompile.targets.tvm import cuda as toolkit
from qcompile.targets.tvm import gpu_schedules, program
from qcompile.targets.tvm.code_ops import integer_conv2d
from qcompile.targets.tvm.kernels import cuda, cuda_conv
from qcompile.targets.tvm.kernels.cuda import THREADS, Grid
from qcompile.targets.tvm.kernels.parts import Codes
from qcompile.targets.tvm.kernels.shapes import Window
from qcompile.targets.tvm.machine import Machine

pytest.importorskip("tvm", reason="apache-tvm is not installed")
NVCC = pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not installed")
ARCHES = pytest.mark.parametrize("arch", ["sm_80", "sm_90"])

CODES = Codes("int8", -128, 127)
GPU = Grid(on_gpu=True)
CONVS = {
    "plain": Window((8, 8), 16, 32, (3, 3)),
    "padded": Window((16, 16), 16, 32, (3, 3), (1, 1), (1, 1)),
    "two_pixels": Window((64, 64), 16, 32, (3, 3), (1, 1), (1, 1)),
    "four_pixels": Window((128, 128), 8, 16),
    "strided": Window((9, 9), 12, 10, (3, 3), (2, 2), (1, 1)),
    "linear": Window((1, 1), 96, 40),
    "linear_to_one": Window((1, 1), 8, 1),
}
"""Channels are multiples of four."""
IMAGE = Window((32, 32), 3, 16, (3, 3), (2, 2), (1, 1))
DEPTHWISE = Window((8, 8), 32, 32, (3, 3), (1, 1), (1, 1))
TILES = {
    **{"plain": (1, 4), "padded": (1, 4), "two_pixels": (2, 4), "four_pixels": (4, 4)},
    **{"strided": (1, 2), "linear": (1, 4), "linear_to_one": (1, 1)},
}
"""Pixels and features that a thread computes."""
DOT = re.compile(r"dp4a\.s32\.s32\s+%r\d+, (%r\d+), (%r\d+), %r\d+;")


def kernels() -> dict[str, Any]:
    """Return a TIR function by name, of each kind."""
    shape = 5, 7, 6
    return {
        **{name: cuda_conv.conv(GPU, window, 3, CODES) for name, window in CONVS.items()},
        "image": cuda_conv.conv(GPU, IMAGE, 3, CODES),
        "depthwise": cuda_conv.depthwise(GPU, DEPTHWISE, 3, CODES),
        "sum": cuda.add(GPU, shape, ("int8", "int8"), (0.3, 0.7), 1.5, CODES),
        "table": cuda.table(GPU, shape, "int8", "int8"),
        "quantize": cuda.quantize_channels_last(GPU, (3, 5, 7), 0.1, 3, CODES),
        "average": cuda.global_average(GPU, shape, 0.1, 3.0, CODES),
        "maximum": cuda.maximum(GPU, Window((9, 9), 6, 6, (3, 3), (2, 2), (1, 1)), CODES),
    }


@cache
def ptx(arch: str) -> dict[str, str]:
    """Return each kernel's PTX; all are compiled at once."""
    import tvm

    named = {k: f.with_attr("global_symbol", k) for k, f in kernels().items()}
    target = Machine.of(load_device(f"cuda-{arch.replace('_', '')}")).target()
    source = toolkit.source_of(tvm.compile(tvm.IRModule(named), target=target).mod)
    text = toolkit.compile_source(source, arch, [toolkit.EXACT], "ptx").decode()
    parts = re.split(r"\.visible \.entry (\w+)_kernel\(", text)[1:]
    return dict(zip(parts[::2], parts[1::2], strict=True))


@NVCC
@ARCHES
def test_every_kernel_is_there(arch: str) -> None:
    assert ptx(arch).keys() == kernels().keys()


@NVCC
@ARCHES
def test_four_products_are_one_instruction_where_channels_are_multiples_of_four(arch: str) -> None:
    has_dots = {name for name, text in ptx(arch).items() if DOT.search(text)}
    assert has_dots == set(CONVS)
    for name in ("image", "depthwise"):
        assert re.search(r"mad\.lo\.s32|mul\.lo\.s(16|32)|mul\.wide\.s16", ptx(arch)[name])


@NVCC
@ARCHES
def test_sums_stay_in_registers(arch: str) -> None:
    for name, text in ptx(arch).items():
        assert not re.search(r"\.local|__local_depot", text), f"{name} spills to local memory"
        assert len(re.findall(r"\sst\.", text)) == len(re.findall(r"\sst\.global", text)), name


@NVCC
@ARCHES
def test_products_and_sums_are_rounded_apart(arch: str) -> None:
    for name, text in ptx(arch).items():
        assert "fma.rn" not in text, name
    for name in (*CONVS, "image", "depthwise"):
        assert re.search(r"mul\.rn\.f32", ptx(arch)[name])
        assert re.search(r"add\.rn\.f32", ptx(arch)[name])
        assert re.search(r"cvt\.rni\.f32", ptx(arch)[name]), "ties go to even"


@NVCC
@ARCHES
@pytest.mark.parametrize("name", CONVS)
def test_what_is_loaded_is_used_for_each_pixel_and_feature(arch: str, name: str) -> None:
    pixels, features = TILES[name]
    dots = DOT.findall(ptx(arch)[name])
    assert len(dots) % (pixels * features) == 0
    weights = {weight for _, weight in dots}
    assert len(dots) == pixels * len(weights), "a weight is loaded once for all pixels"
    loads = re.findall(r"ld\.global\.nc\.u32\s+(%r\d+),", ptx(arch)[name])
    assert weights <= set(loads), "four weights are one load of 32 bits"
    steps = len(dots) // (pixels * features)
    assert len({code for code, _ in dots}) == pixels * steps, "codes serve all features"


@NVCC
@ARCHES
def test_neighbouring_threads_store_neighbouring_codes(arch: str) -> None:
    stores = {name: len(re.findall(r"\sst\.global", ptx(arch)[name])) for name in TILES}
    assert stores == {name: pixels * features for name, (pixels, features) in TILES.items()}


def extents(kernel: Any, batch: int) -> dict[str, int]:
    """Return how many blocks and threads a kernel asks for, read from its text."""
    text = kernel.script().replace('T.Cast("int32", v)', str(batch))
    found = re.findall(r'in T\.thread_binding\((.*), thread="(\S+)"\):', text)
    return {name: eval(count, {}) for count, name in found}


@settings(max_examples=10)
@given(
    batch=st.integers(1, 300), image=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    features=st.sampled_from([1, 6, 7, 64]), channels=st.sampled_from([3, 8]),
)  # fmt: skip
def test_blocks_cover_every_output_of_any_batch(
    batch: int, image: tuple[int, int], features: int, channels: int
) -> None:
    window = Window(image, channels, features)
    made = cuda_conv._Conv(GPU, window, 0, CODES)
    threads = batch * image[0] * image[1] * features / (made.pixels * made.features)
    found = extents(made.build(), batch)
    assert found == {"blockIdx.x": -(-threads // THREADS), "threadIdx.x": THREADS}
    shape = *image, features
    found = extents(cuda.table(GPU, shape, "int8", "int8"), batch)
    assert found["blockIdx.x"] == -(-batch * image[0] * image[1] * features // THREADS)


@pytest.mark.parametrize("name", ["two_pixels", "four_pixels", "strided", "linear_to_one"])
def test_all_outputs_of_a_thread_are_where_they_belong(name: str) -> None:
    import tvm

    window, pixels = CONVS[name], TILES[name][0]
    assert cuda_conv._Conv(GPU, window, 3, CODES).pixels == pixels
    machine = Machine("x86_64", (), "x86-64-v2", stands_in=True)
    kernel = machine.kernels().layer(window, False, 3, Codes("float32"))
    module = tvm.IRModule({"main": kernel.with_attr("global_symbol", "main")})
    rng = np.random.default_rng(0)
    x = rng.integers(-128, 128, (2, *window.image, window.channels)).astype(np.int8)
    shape = window.features, window.channels, *window.kernel
    weight = rng.integers(-127, 128, shape).astype(np.int8)
    sums = (-3 * weight.astype(np.int64).sum((1, 2, 3))).astype(np.int32)
    factors = np.ones(window.features, np.float32), np.zeros(window.features, np.float32)
    constants = machine.kernels().constants(weight, False, [sums, *factors])
    y = np.full((2, *window.output, window.features), np.nan, np.float32)
    given_ = [tvm.runtime.tensor(a) for a in (x, *constants, y)]
    tvm.compile(module, target=machine.target())["main"](*given_)
    given_torch = [torch.from_numpy(a) for a in (x, weight, *factors)]
    stride, padding = list(window.stride), list(window.padding)
    expected = integer_conv2d(*given_torch, stride, padding, 1, 3, 0, 0, "float32")
    np.testing.assert_array_equal(given_[-1].numpy(), expected.numpy())


class Half(nn.Module):
    """A convolution with a bias and a function after it, statistics, a softmax, branches that join."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.norm = nn.LayerNorm(16)
        self.head = nn.Linear(16, 10)

    def forward(self, image: Tensor) -> Tensor:
        first = torch.relu(self.conv(image))
        joined = torch.cat([first, torch.sigmoid(self.depthwise(first))], 1)
        pooled = torch.nn.functional.max_pool2d(joined, 2).mean((2, 3))
        return torch.softmax(self.head(self.norm(pooled)), -1)


def source(module: nn.Module, given_: Tensor, is_free: bool = True) -> str:
    """Return the CUDA code of a module, which TVM makes for threads only: it checks that."""
    import tvm

    machine = Machine.of(load_device("cuda-sm80"))
    free = ({0: torch.export.Dim("batch")},) if is_free else None
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        exported = torch.export.export(module.eval(), (given_,), dynamic_shapes=free)
        found = program.imported(exported.run_decompositions(), machine)
    target = machine.target()
    built = tvm.compile(found, target, relax_pipeline=gpu_schedules.pipeline(target))
    return toolkit.source_of(built.mod)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
def test_tvm_s_own_operators_are_given_to_threads(dtype: torch.dtype) -> None:
    code = source(Half().to(dtype), torch.randn(2, 3, 8, 8, dtype=dtype))
    definition = r"__global__ void (?:__launch_bounds__\(\d+\) )?(\w+)\([^)]*\) \{"
    parts = re.split(definition, code)[1:]
    bodies = dict(zip(parts[::2], parts[1::2], strict=True))
    assert len(bodies) >= 6
    assert sum("conv2d" in name for name in bodies) == 2
    for name, body in bodies.items():
        assert re.search(r"(threadIdx|blockIdx)\.x", body), name


def test_steps_after_a_product_are_one_function() -> None:
    conv = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU()).half()
    code = source(conv, torch.randn(2, 3, 8, 8).half())
    kernels_ = set(re.findall(r"(\w+_kernel(?:_\d+)?)\(", code))
    assert len(kernels_) == 1, "the bias, the cast and the function are not joined to the sum"


@pytest.mark.parametrize("is_free", [False, True], ids=["fixed", "free"])
def test_products_in_float16_use_tensor_cores(is_free: bool) -> None:
    code = source(nn.Linear(128, 256).half(), torch.randn(128, 128).half(), is_free)
    assert "wmma::mma_sync" in code
    assert re.search(r"fragment<\S*accumulator, 16, 16, 16, float>", code), "sums are float32"


@pytest.mark.parametrize("sizes", [(128, 40), (40, 128)], ids=str)
def test_small_products_do_not(sizes: tuple[int, int]) -> None:
    code = source(nn.Linear(*sizes).half(), torch.randn(128, sizes[0]).half())
    assert "wmma" not in code
