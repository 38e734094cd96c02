"""What keeps an op off the Neural Engine or the GPU, as far as it has been published.

Apple documents a few of these limits; the rest were measured by others, or read from its compiler. "The
guide" is S. Bryngelson, Apple Neural Engine: Architecture, Programming, and Performance, arXiv 2606.22283:
its M1 and M5 columns are measured, the others partly predicted. No rule is kept for what sources contradict
each other on: dilated convolution and large pooling windows are on an older list
(https://github.com/hollance/neural-engine/blob/master/docs/unsupported-layers.md), and the guide ran both.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from qcompile.targets.coreml.deployment import ios_equivalent
from qcompile.targets.coreml.reference.program import Operation
from qcompile.targets.coreml.reference.types import StateType, TensorType, ValueType
from qcompile.targets.device import Device

_DOCS = "https://apple.github.io/coremltools/docs-guides/source/"
_ISSUES = "https://github.com/apple/coremltools/issues/"
_GUIDE = "https://ane-guide.readthedocs.io/en/latest/"
_MATRIX = f"{_GUIDE}appendices/a-op-device-matrix.html"
_LIMITS = f"{_GUIDE}part-1-machine/04-capability-surface.html"
_DTYPES = f"{_GUIDE}part-5-practice/17-model-design-rules.html"
NEURAL_ENGINE, GPU = "Neural Engine", "GPU"


@dataclass(frozen=True)
class Site:
    """One op where it stands.

    Args:
        operation: The op.
        values: Types of what it computes from and of what it makes, constants aside.
        constants: Types of its constant inputs by MIL's name.
        computed: MIL's names of the inputs that are not constant.
        enumerated: Whether the model's input shapes are a list, not a range.
    """

    operation: Operation
    values: tuple[ValueType, ...]
    constants: Mapping[str, TensorType]
    computed: frozenset[str]
    enumerated: bool = False

    @property
    def tensors(self) -> tuple[TensorType, ...]:
        """The tensors among its values."""
        return tuple(v for v in self.values if isinstance(v, TensorType))

    @property
    def rank(self) -> int:
        """The largest rank of its tensors."""
        return max((len(t.shape) for t in self.tensors), default=0)


@dataclass(frozen=True)
class Rule:
    """One published limit.

    Args:
        name: A short one.
        test: Whether an op is beyond it on a device.
        why: One clause.
        source: Where it was read.
        keeps_off: The units that cannot take the op.
    """

    name: str
    test: Callable[[Site, Device], bool]
    why: str
    source: str
    keeps_off: tuple[str, ...] = (NEURAL_ENGINE,)


def _is(*types: str) -> Callable[[Site, Device], bool]:
    return lambda site, device: site.operation.type in types


def _before(generation: int, *types: str) -> Callable[[Site, Device], bool]:
    def test(site: Site, device: Device) -> bool:
        known = device.neural_engine_generation
        return site.operation.type in types and known is not None and known < generation

    return test


def _has(*elements: str) -> Callable[[Site, Device], bool]:
    return lambda site, device: any(t.element.name in elements for t in site.tensors)


def _computes_in_float32(site: Site, device: Device) -> bool:
    """Return whether an op has wide floats; a cast to or from them is taken by every unit."""
    wide = any(t.element.name in ("fp32", "fp64") for t in site.tensors)
    return wide and site.operation.type != "cast"


def _is_dynamic(site: Site, device: Device) -> bool:
    return not site.enumerated and any(None in t.shape for t in site.tensors)


def _has_computed_shape(site: Site, device: Device) -> bool:
    return site.operation.type in _SHAPED and bool(site.computed & _SHAPES)


def _is_too_large(site: Site, device: Device) -> bool:
    side = 65536 if (device.neural_engine_generation or 0) >= 16 else 16384
    return any(
        size is not None and size > (65536 if _is_batch_or_channel(axis, len(t.shape)) else side)
        for t in site.tensors
        for axis, size in enumerate(t.shape)
    )


def _is_batch_or_channel(axis: int, rank: int) -> bool:
    return rank >= 4 and axis in (0, 1)


def _has_wide_kernel(site: Site, device: Device) -> bool:
    weight = site.constants.get("weight")
    if weight is None or site.operation.type not in ("conv", "conv_transpose"):
        return False
    width = weight.shape[-1] if len(weight.shape) > 3 else None
    return (width or 0) > (13 if device.neural_engine_generation == 13 else 16)


def _has_odd_state(site: Site, device: Device) -> bool:
    states = [v.wrapped for v in site.values if isinstance(v, StateType)]
    return any((s.shape[-1] or 0) % 32 != 0 for s in states if s.shape)


def _is_3d_convolution(site: Site, device: Device) -> bool:
    return site.operation.type in ("conv", "conv_transpose") and site.rank == 5


_INTEGERS = ("int16", "int32", "int64", "uint16", "uint32", "uint64")
_SHAPED = ("reshape", "tile", "fill", "slice_by_size", "slice_by_index", "pad", "range_1d")
_SHAPES = frozenset(("shape", "reps", "size", "begin", "end", "pad", "start"))
_RANDOM = tuple(f"random_{kind}" for kind in ("bernoulli", "categorical", "normal"))
_LISTS = ("make_list", "list_gather", "list_length", "list_read", "list_scatter", "list_write")
_MISSING = (
    *("reduce_prod", "scatter", "scatter_along_axis", "scatter_nd", "mod", "one_hot", "non_zero"),
    *("band_part", "reverse_sequence", "shape", "sliding_windows"),
    *("logical_and", "logical_or", "logical_xor", "tan", "asin", "acos", "sinh", "cosh"),
    *("asinh", "acosh", "atanh", *_RANDOM, *_LISTS),
)

RULES = (
    Rule(
        "recurrent", _is("lstm", "gru", "rnn"),
        "recurrent layers do not run on the Neural Engine", f"{_ISSUES}1780",
    ),
    Rule(
        "control flow", _is("cond", "while_loop"),
        "the Neural Engine has no branches or loops", _MATRIX,
    ),
    Rule(
        "suppression", _is("non_maximum_suppression"),
        "box suppression runs on the CPU or the GPU only", _MATRIX,
    ),
    Rule(
        "top k", _is("topk", "argsort"),
        "sorting and its indices were seen to stay on the CPU (M3 Pro, macOS 27)",
        "https://github.com/roboflow/rf-detr/pull/1495",
    ),
    Rule(
        "custom", _is("custom_layer"),
        "a custom op has code for the CPU and the GPU only", f"{_ISSUES}1278",
    ),
    Rule("missing", _is(*_MISSING), "no Neural Engine up to the M5's has this op", _MATRIX),
    Rule(
        "sine", _before(15, "sin", "cos"),
        "the Neural Engine has sine and cosine from the M3 on", _MATRIX,
    ),
    Rule(
        "sampler", _before(14, "crop_resize", "resample", "affine", "gather_nd"),
        "the Neural Engine has this op from the M2 on", _MATRIX,
    ),
    Rule(
        "3d convolution", _is_3d_convolution,
        "the Neural Engine's compiler does not take 3-d convolution", _LIMITS,
    ),
    Rule(
        "3d convolution before macOS 14",
        lambda site, device: _is_3d_convolution(site, device) and ios_equivalent(device) < 17,
        "3-d convolution runs on the GPU from iOS 17 and macOS 14 on", f"{_ISSUES}1368", (GPU,),
    ),
    Rule(
        "float32", _computes_in_float32,
        "the Neural Engine does not compute in float32", f"{_DOCS}typed-execution.html",
    ),
    Rule(
        "integers", _has(*_INTEGERS),
        "the Neural Engine computes in fp16, not on integers of 16 bits or more", _DTYPES,
    ),
    Rule(
        "dynamic", _is_dynamic,
        "a size is known only at run time (a list of shapes, or the reshape hint Infrequent, may help)",
        f"{_DOCS}faqs.html",
    ),
    Rule(
        "computed shape", _has_computed_shape,
        "a shape is computed at run time, which the Neural Engine does not do",
        f"{_DOCS}faqs.html",
    ),
    Rule(
        "rank", lambda site, device: site.rank > 5,
        "the Neural Engine takes at most 5 dimensions",
        "https://github.com/microsoft/onnxruntime/issues/14212",
    ),
    Rule(
        "product of rank 5",
        lambda site, device: site.operation.type in ("matmul", "linear") and site.rank > 4,
        "the Neural Engine multiplies matrices of at most 4 dimensions", _LIMITS,
    ),
    Rule(
        "size", _is_too_large,
        "a dimension is beyond the Neural Engine's 16384 (65536 from the M4 on)", _LIMITS,
    ),
    Rule("kernel", _has_wide_kernel, "a kernel is wider than 16 (13 on the M1)", _LIMITS),
    Rule(
        "state", _has_odd_state,
        "a state whose last size is no multiple of 32 was seen to fail (M4, macOS 15.2)",
        f"{_ISSUES}2631",
    ),
)  # fmt: skip
"""In order of what says most: the first that applies is the one to show first."""
