"""What an Apple system can load: its opset, and the weight formats that came with each.

The table is that of Core ML Tools, "What's New"
(https://apple.github.io/coremltools/docs-guides/source/opt-whats-new.html).
"""

from __future__ import annotations

from dataclasses import dataclass

from qcompile.targets.device import Device
from qcompile.targets.systems import SYSTEMS, major

OPSETS = (16, 17, 18)
"""By the version of iOS that they came with; later systems add none."""
_IOS_OF_MACOS = {13: 16, 14: 17, 15: 18}


@dataclass(frozen=True)
class Need:
    """What a weight format asks of the system.

    Args:
        ios: The first version of iOS.
        what: The format in words.
        instead: What an older system can do.
    """

    ios: int
    what: str
    instead: str = ""


NEEDS = {
    **{name: Need(16, name) for name in ("fp32", "fp16", "int8")},
    **{f"palette-{bits}": Need(16, f"palette-{bits}") for bits in (1, 2, 4, 6, 8)},
    "palette-3": Need(18, "palette-3", "palette-4 or palette-2"),
    "w8a8": Need(17, "w8a8 (8-bit activations)", "int8 (8-bit weights alone)"),
    "int4": Need(18, "int4 (4-bit weights in blocks)", "palette-4"),
    "palette-per-group": Need(18, "a palette for each group of channels", "one palette a tensor"),
    "palette-with-scales": Need(18, "a palette with scales a channel", "one palette a tensor"),
    "palette-of-int8": Need(18, "a palette of int8 values", "a palette of fp16 values"),
}
"""By precision, and by refinement of one."""


def ios_equivalent(device: Device) -> int:
    """Return the version of iOS that has the Core ML of a device's oldest system: 17 for macOS 14."""
    number = major(device.os_minimum or "")
    if number is None or device.os not in SYSTEMS:
        raise AssertionError(f"{device.name} has no system that runs Core ML")
    return _IOS_OF_MACOS.get(number, number) if device.os == "macos" else number


def macos_equivalent(device: Device) -> int:
    """Return the version of macOS that has the Core ML of a device's oldest system: 15 for iOS 18."""
    ios = ios_equivalent(device)
    return next((mac for mac, same in _IOS_OF_MACOS.items() if same == ios), ios)


def opset(device: Device) -> int:
    """Return the newest opset that a device's oldest system can load."""
    return max(o for o in OPSETS if o <= ios_equivalent(device))


def refusal(precision: str, device: Device) -> str | None:
    """Return why a device's oldest system cannot load a format, ``None`` if it can.

    Args:
        precision: One of ``NEEDS``.
        device: With a format of ``coreml``.
    """
    need = NEEDS[precision]
    if need.ios <= ios_equivalent(device):
        return None
    system = SYSTEMS[str(device.os)].name
    return (
        f"{need.what} needs {_first_system(need.ios, str(device.os))}, and this artifact is to run on "
        f"{system} {device.os_minimum}; there, {need.instead} is possible"
    )


def _first_system(ios: int, os: str) -> str:
    if os == "ios":
        return f"iOS {ios}"
    return f"macOS {next(mac for mac, same in _IOS_OF_MACOS.items() if same == ios)}"
