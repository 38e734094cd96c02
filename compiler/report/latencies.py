"""Latencies that were measured: by a build with such a limit, `qcompile bench` or `run.pyz --bench`."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qcompile.compiler.report.figures import count, number, text
from qcompile.runtime.errors import BundleError
from qcompile.runtime.manifest import Manifest

_MEASURED = re.compile(r" ms a (token|call)\b(?!, (?:bytes over bandwidth|modelled))")
"""In the message of a gate whose time was measured; others were computed."""
_US = 1e-3
_MOST_BYTES = 1 << 20


@dataclass(frozen=True)
class Latency:
    """A time.

    Args:
        ms: Milliseconds.
        of: ``token`` or ``call``.
        where: What measured it, in words.
    """

    ms: float
    of: str
    where: str

    @property
    def unit(self) -> str:
        """What the number counts."""
        return f"ms a {self.of}"


def of_build(manifest: Manifest) -> Latency | None:
    """Return what a build measured, ``None`` where it measured no time."""
    for gate in manifest.gates:
        found = _MEASURED.search(gate["message"]) if gate["gate"] == "max-latency" else None
        if found and (ms := number(gate["measured"])) is not None:
            return Latency(ms, found[1], "measured by the build")
    return None


def read_benches(files: Sequence[Path]) -> dict[str, Latency]:
    """Return the latencies in what ``qcompile bench BUNDLE --json`` printed, by the SHA-256 of the manifests.

    Raises:
        BundleError: A file cannot be read, or is something else; or two are of one bundle.
    """
    found: dict[str, Latency] = {}
    for file in files:
        digest, latency = _read(file)
        if digest in found:
            raise BundleError(f"{file} is of a bundle that another --bench is of; give one of them")
        found[digest] = latency
    return found


def _read(file: Path) -> tuple[str, Latency]:
    try:
        if file.stat().st_size > _MOST_BYTES:
            raise ValueError("too large")
        data = json.loads(file.read_text(encoding="utf-8"))
        return text(data["manifest"]), _bench(data)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        reason = (
            getattr(error, "strerror", None) or "it has no `manifest`, `p50`, `runs` and `threads`"
        )
        advice = "give what `qcompile bench BUNDLE --json` printed"
        raise BundleError(f"{file} is no measured latency ({reason}); {advice}") from error


def _bench(data: Mapping[str, Any]) -> Latency:
    p50, threads = number(data["p50"]), count(data["threads"])
    if p50 is None or p50 <= 0:
        raise ValueError("p50 is no time")
    place = " on ".join(text(data[key]) for key in ("engine", "cpu") if data.get(key))
    noun = "thread" if threads == 1 else "threads"
    words = [f"median of {count(data['runs']):,}", place, f"{threads} {noun}"]
    return Latency(p50 * _US, "call", ", ".join(filter(None, words)))
