"""``--target`` and ``-p`` -> device, emitter and scheme."""

from __future__ import annotations

from dataclasses import dataclass

from qcompile.compiler.ir.errors import TargetError
from qcompile.targets.base import Emitter, Scheme, emitter_names, find_emitter
from qcompile.targets.device import Device, load_device

GRANULARITIES = ("per-channel", "per-tensor")


@dataclass(frozen=True)
class Target:
    """Where a build goes.

    Args:
        name: As the user named it.
        device: Facts.
        emitter: Of the format.
        scheme: Formats of weights and activations.
    """

    name: str
    device: Device
    emitter: Emitter
    scheme: Scheme


def resolve(
    name: str,
    *,
    format: str | None = None,
    precision: str | None = None,
    granularity: str = "per-channel",
) -> Target:
    """Return what the user's words mean.

    Args:
        name: A device, ``host``, a device file, or a format: that format for this machine.
        format: Emitter; the device's own by default.
        precision: The device's own by default.
        granularity: Of weights, ``per-channel`` or ``per-tensor``.

    Raises:
        TargetError: A word is unknown, or the device has no such precision.
    """
    is_format = name in emitter_names()
    device = load_device("host" if is_format else name)
    emitter = find_emitter(name if is_format else format or device.format)
    wanted = (precision or device.precision).lower()
    possible = emitter.precisions(device)
    if wanted not in possible:
        raise TargetError(
            f"{name} has no precision {wanted!r} in {emitter.name}; it has: {', '.join(possible)}"
        )
    if granularity not in GRANULARITIES:
        raise TargetError(f"granularity is one of {', '.join(GRANULARITIES)}, not {granularity!r}")
    scheme = emitter.scheme(wanted, device, per_tensor=granularity == "per-tensor")
    return Target(name if is_format else device.name, device, emitter, scheme)
