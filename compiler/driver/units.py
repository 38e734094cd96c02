"""Where the ops of a bundle's artifact would run, as far as the format leaves that to the device."""

from __future__ import annotations

from qcompile.compiler.driver.bundle import Bundle
from qcompile.compiler.ir.errors import TargetError
from qcompile.targets.base import find_emitter
from qcompile.targets.device import device_names, load_device
from qcompile.targets.formats import emitter_names
from qcompile.targets.plans import UnitPlan


def compute_units(bundle: Bundle, target: str | None) -> tuple[list[UnitPlan], list[str]]:
    """Return a row an op and a summary; nothing for a format that runs on one unit.

    Args:
        bundle: An open bundle.
        target: A device; the bundle's own by default.

    Raises:
        TargetError: The device is of another format.
    """
    manifest = bundle.manifest
    if manifest.format not in emitter_names():
        return [], []
    emitter = find_emitter(manifest.format)
    if target is None:
        known = manifest.target in device_names()
        device = load_device(manifest.target if known else emitter.bare_device)
    else:
        device = load_device(target)
        if device.format != manifest.format:
            raise TargetError(
                f"target {target!r} is for {device.format}, and the bundle holds {manifest.format}"
            )
    return emitter.inspect(bundle.path / manifest.artifact, device)
