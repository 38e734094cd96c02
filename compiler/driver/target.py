"""``--target`` and ``-p`` -> device, emitter and scheme."""

from __future__ import annotations

from dataclasses import dataclass, replace

from qcompile.compiler.ir.errors import TargetError
from qcompile.targets.base import Emitter, find_emitter
from qcompile.targets.device import Device, load_device
from qcompile.targets.formats import emitter_names
from qcompile.targets.options import DEFAULT_WEIGHTS, NO_TUNING, Tuning, WeightOptions
from qcompile.targets.order import Order, Scheme


@dataclass(frozen=True)
class Target:
    """Where a build goes.

    Args:
        name: As the user named it.
        device: Facts.
        emitter: Of the format.
        scheme: Formats of weights and activations.
        tuning: What is to be measured while it is emitted.
    """

    name: str
    device: Device
    emitter: Emitter
    scheme: Scheme
    tuning: Tuning = NO_TUNING

    def order(self, model: str) -> Order:
        """Return what is to be emitted for a model of this name."""
        return Order(model, self.device, self.scheme, self.tuning)

    def tuned(self, tuning: Tuning) -> Target:
        """Return this target with something to measure.

        Raises:
            TargetError: The format has no tuning, or this machine cannot do it.
        """
        self.emitter.check_tuning(tuning, self.device)
        return replace(self, tuning=tuning)


def resolve(
    name: str,
    *,
    format: str | None = None,
    precision: str | None = None,
    weights: WeightOptions = DEFAULT_WEIGHTS,
    minimum_os: str | None = None,
) -> Target:
    """Return what the user's words mean.

    Args:
        name: A device, ``host``, a device file, or a format: that format for this machine.
        format: Emitter; the device's own by default.
        precision: The device's own by default.
        weights: How weights are stored, beyond the precision.
        minimum_os: Oldest system to run on; the device's own by default.

    Raises:
        TargetError: A word is unknown, or the device has no such precision.
    """
    is_format = name in emitter_names()
    if is_format:
        emitter = find_emitter(name)
        device = load_device(emitter.bare_device)
    else:
        device = load_device(name)
        emitter = find_emitter(format or device.format)
    if minimum_os is not None:
        device = device.with_os_minimum(minimum_os)
    wanted = (precision or emitter.default_precision(device)).lower()
    possible = emitter.precisions(device)
    if wanted not in possible:
        raise TargetError(
            f"{name} has no precision {wanted!r} in {emitter.name}; it has: {', '.join(possible)}"
        )
    scheme = emitter.scheme(wanted, device, weights)
    return Target(name if is_format else device.name, device, emitter, scheme)
