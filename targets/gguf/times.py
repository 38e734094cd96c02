"""What each format of each tensor adds to the time of a token."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from qcompile.compiler.ir.blocks.format import BlockFormat
from qcompile.compiler.ir.errors import TargetError
from qcompile.targets.device import HOST, Device
from qcompile.targets.gguf import running
from qcompile.targets.gguf.activity import activity
from qcompile.targets.gguf.layout import Layout
from qcompile.targets.gguf.planning import planned_tensors
from qcompile.targets.gguf.tensors import never_quantized
from qcompile.targets.options import NO_BLOCK_OPTIONS
from qcompile.targets.plans import TensorChoices, TokenTimes
from qcompile.targets.times import shared_times, uniform_plans

_MS = 1e3


def token_times(
    layout: Layout, choices: Sequence[TensorChoices], device: Device, options: Mapping[str, Any]
) -> TokenTimes:
    """Return them: measured for this machine, for others bytes over their memory's bandwidth.

    Raises:
        TargetError: Of another device nobody knows the bandwidth.
    """
    if device.name == HOST:
        return _measured(layout, choices, options)
    if device.memory_bandwidth_gbs is None:
        raise TargetError(
            f"the time of a token on {device.name} can be neither measured here nor modelled, for its memory "
            "bandwidth is not known: leave out --max-latency and --optimize latency, give --target host, or "
            "a device file with memory_bandwidth_gbs (docs/add-a-device.md)"
        )
    return _modelled(layout, choices, device.memory_bandwidth_gbs)


def _modelled(layout: Layout, choices: Sequence[TensorChoices], gigabytes: float) -> TokenTimes:
    """Return bytes that a token reads by the bandwidth: no device is faster."""
    a_byte = _MS / (gigabytes * 1e9)
    of = {}
    for choice in choices:
        shares = {name: activity(layout, name) for name in choice.tensors}
        of[choice.name] = {
            format.name: a_byte
            * sum(share * format.storage_bytes(choice.tensors[n]) for n, share in shares.items())
            for format in choice.formats
            if isinstance(format, BlockFormat)
        }
    rest = sum(t.nbytes for t in planned_tensors(layout) if never_quantized(t.name, t.shape))
    return TokenTimes(of, a_byte * rest, modelled=True)


def _measured(
    layout: Layout, choices: Sequence[TensorChoices], options: Mapping[str, Any]
) -> TokenTimes:
    """Return shares of measured times of whole models, one a format, whose weights are all zero."""
    numbers = {
        choice.name: sum(math.prod(s) * activity(layout, n) for n, s in choice.tensors.items())
        for choice in choices
    }
    plans = uniform_plans(choices)
    layouts = [with_types(layout, choices, plan) for plan in plans.values()]
    taken = dict(zip(plans, running.empty_milliseconds(layouts, options), strict=True))
    return shared_times(numbers, choices, taken)


def with_types(layout: Layout, choices: Sequence[TensorChoices], plan: Mapping[str, str]) -> Layout:
    """Return the layout with the types of a plan, which names the first tensor of each choice."""
    types = {name: plan[choice.name] for choice in choices for name in choice.tensors}
    pairs = tuple((f"^{re.escape(name)}$", kind) for name, kind in types.items())
    own = replace(NO_BLOCK_OPTIONS, tensor_types=pairs)
    return Layout.of(layout.checkpoint, layout.mix, own)
