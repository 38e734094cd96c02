"""Which formats each weight of a TVM library may have under a budget, and what it takes there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import fx

from qcompile.compiler.ir.errors import TargetError
from qcompile.compiler.ir.graph import Graph
from qcompile.compiler.ir.ops import aten
from qcompile.compiler.ir.quant import FloatSpec, Granularity, QuantSpec, WeightFormat, WeightSpec
from qcompile.passes.quantization.fitting import fitting_spec
from qcompile.targets.device import Device
from qcompile.targets.options import DEFAULT_WEIGHTS, WeightOptions
from qcompile.targets.order import Scheme
from qcompile.targets.plans import TensorChoices
from qcompile.targets.tvm import precisions
from qcompile.targets.tvm.capabilities import INTEGER_OPS, has_float_kernel, is_depthwise
from qcompile.targets.tvm.kernels import weights
from qcompile.targets.tvm.kernels.vectors import Vectors
from qcompile.targets.tvm.machine import Machine
from qcompile.targets.weight_choices import Shape, weight_choices

MIXED = "mixed"
"""What the precision of a library is called whose weights have formats of their own."""
OFFERED: dict[str, tuple[str, WeightOptions]] = {
    "int8": ("w8a16", DEFAULT_WEIGHTS),
    "int4": ("int4", DEFAULT_WEIGHTS),
    "int4-per-channel": ("int4", WeightOptions(granularity="per-channel")),
}
"""Precision and options by the name in plans."""
INT8 = QuantSpec(granularity=Granularity.PER_CHANNEL, axis=0)
CODE_BYTES = {8: 600, 4: 750}
"""By bits: what a kernel for codes takes in the library beyond one for floats. Measured on MobileNetV2 with
AVX2 and AVX-512: 558 to 784 bytes a layer, and 474 to 868. Layers of one shape share a kernel if they share a
format, so that a plan's library is compiled to know its bytes."""


def mixed_scheme(device: Device) -> Scheme:
    """Return the scheme of a plan: float arithmetic on weights of many formats.

    Raises:
        TargetError: The device computes on its GPU.
    """
    _registers(device)
    return Scheme(MIXED, INT8, None, 32)


def tvm_choices(
    graph: Graph, device: Device, pins: Sequence[tuple[str, str]], keep_float: frozenset[str]
) -> tuple[TensorChoices, ...]:
    """Return the choices of each weight; see ``weight_choices``.

    Raises:
        TargetError: A pin fits no weight; the device computes on its GPU.
    """
    vectors = _registers(device)
    formats = {n: precisions.scheme(p, device, o).weight for n, (p, o) in OFFERED.items()}

    def offer(users: Sequence[fx.Node], shape: Shape) -> list[WeightFormat]:
        return _offer(formats, users, shape)

    def size(users: Sequence[fx.Node], format: WeightFormat, shape: Shape) -> int:
        return stored_bytes(users, format, shape, vectors)

    return weight_choices(graph, offer, size, FloatSpec(32), pins, keep_float)


def stored_bytes(
    users: Sequence[fx.Node], format: WeightFormat, shape: Shape, vectors: Vectors
) -> int:
    """Return what a weight takes in the library: codes and scales as kernels read them, and their code.

    Args:
        users: The calls that read it.
        format: Its format.
        shape: ``[out, in / groups, ...]``.
        vectors: Of the CPU: features are padded to whole registers.
    """
    spec = format.spec
    assert isinstance(spec, QuantSpec | FloatSpec)
    if not _has_kernel(users):
        return spec.storage_bytes(shape)
    coding = weights.Coding()
    if isinstance(spec, QuantSpec):
        groups = spec.scale_count(shape) // shape[0] if spec.group_size is not None else 1
        coding = weights.Coding(spec.bits, groups)
    whole = shape if len(shape) == 4 else (*shape, 1, 1)
    packed = weights.packed_bytes(whole, coding, None if is_depthwise(users[0]) else vectors.lanes)
    return packed + CODE_BYTES.get(spec.bits, 0)


def _registers(device: Device) -> Vectors:
    """Return the registers in which kernels decode weights.

    Raises:
        TargetError: There are no such kernels.
    """
    found = Machine.of(device).vectors
    if found is None:
        raise TargetError(
            f"{device.name} computes on its GPU, for which tvm stores all weights in one precision: give -p "
            f"with one of {', '.join(device.facts('tvm'))}, or a CPU, where budgets give each weight its own"
        )
    return found


def _offer(
    formats: Mapping[str, WeightSpec | None], users: Sequence[fx.Node], shape: Shape
) -> list[WeightFormat]:
    """Return codes of 8 and 4 bits for layers with kernels that decode them, of 8 for rows of tables.

    A weight that several layers read stays float: each would store its own codes.
    """
    if all(user.target == aten.embedding.default for user in users):
        return [WeightFormat("int8", INT8)]
    found: list[WeightFormat] = []
    if len(users) > 1 or not _has_kernel(users):
        return found
    for name, spec in formats.items():
        assert spec is not None
        fitted, _ = fitting_spec(spec, shape)
        if all(fitted != other.spec for other in found):
            found.append(WeightFormat(name, fitted))
    return found


def _has_kernel(users: Sequence[fx.Node]) -> bool:
    layer = users[0]
    return layer.target in INTEGER_OPS.layers and has_float_kernel(layer)
