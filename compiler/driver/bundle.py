"""``Bundle``: what a build returns; prints well in a terminal and in a notebook."""

from __future__ import annotations

import html
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from qcompile.compiler.driver.plan import MEASURES
from qcompile.runtime import manifest as manifests
from qcompile.runtime.manifest import Manifest
from qcompile.runtime.session import Session

_NAMED = 5
"""Float layers that a summary names."""


@dataclass(frozen=True)
class Bundle:
    """A folder with an artifact, its proof and its runtime.

    Args:
        path: The folder.
        manifest: What it holds.
        seconds: Wall time of each stage of the build; empty for one that was opened.
    """

    path: Path
    manifest: Manifest
    seconds: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def open(cls, path: str | Path) -> Bundle:
        """Open a bundle that lies on disk; all its files are checked.

        Raises:
            BundleError: It is incomplete, edited or no bundle.
        """
        return cls(Path(path), manifests.read(Path(path)))

    @property
    def passed(self) -> bool:
        """Whether every gate holds."""
        return all(gate["passed"] for gate in self.manifest.gates)

    @property
    def failures(self) -> list[str]:
        """What failed, a sentence a gate."""
        return [f"{g['gate']}: {g['message']}" for g in self.manifest.gates if not g["passed"]]

    def session(self, *, threads: int = 1) -> Session:
        """Load the artifact in its engine."""
        return Session(self.path, threads=threads)

    def summary(self) -> list[tuple[str, str]]:
        """Return the figures that matter, as label and text."""
        m = self.manifest
        rows = [
            ("target", f"{m.target} ({m.format}, {m.precision})"),
            ("size", _size(m.sizes)),
            *[(f"{name}", _quality(values)) for name, values in m.quality.items()],
            ("plan", _plan(m.plan) if "types" in m.plan else ""),
            ("float layers", _float_layers(m.plan)),
            ("SQNR to PyTorch", _total(m.parity)),
            ("rescaled inputs", _foldings(m.foldings)),
            ("stays float", _floats(m)),
            ("gates", "all passed" if self.passed else "; ".join(self.failures)),
        ]
        return [(label, text) for label, text in rows if text]

    def __repr__(self) -> str:
        width = max(len(label) for label, _ in self.summary())
        lines = [f"  {label:<{width}}  {text}" for label, text in self.summary()]
        return "\n".join([f"Bundle {self.path.name}", *lines])

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><th style='text-align:left'>{html.escape(label)}</th>"
            f"<td style='text-align:left'>{html.escape(text)}</td></tr>"
            for label, text in self.summary()
        )
        return f"<table><caption>{html.escape(self.path.name)}</caption>{rows}</table>"


def _size(sizes: Mapping[str, Any]) -> str:
    artifact, before = sizes.get("artifact_bytes"), sizes.get("float_bytes")
    if not artifact or not before:
        return ""
    bits = f", {sizes['bits_per_weight']:.2f} bits a weight" if sizes.get("bits_per_weight") else ""
    return f"{artifact:,} bytes, {before:,} as float32 weights ({before / artifact:.2f} x){bits}"


def _quality(values: Mapping[str, Any]) -> str:
    before, after = values["before"], values["after"]
    return f"{after:.2f} (float {before:.2f}, change {after - before:+.2f})"


def _total(parity: Mapping[str, Any]) -> str:
    values = [row["sqnr_db"] for row in parity.get("total", {}).values()]
    found = [v for v in values if v is not None]
    return f"{min(found):.1f} dB" if found else "equal" if values else ""


def _plan(plan: Mapping[str, Any]) -> str:
    """Return how many formats a plan has, and what it predicted and did."""
    counts = Counter(plan["types"].values())
    kinds = ", ".join(f"{count} x {kind}" for kind, count in sorted(counts.items()))
    said = [kinds]
    if plan["damage"] is not None:
        what = MEASURES[plan.get("measure", "kl")]
        said.append(f"predicted {what} of the weights {plan['damage']:.3g}")
    if "measured" in plan:
        found = plan["measured"]
        kind, unit = (
            ("kl" if "kl" in found else "error"),
            ("tokens" if "tokens" in found else "samples"),
        )
        said.append(
            f"measured {found[kind]:.3g} +- {found[f'{kind}_error'] or 0:.1g} on {found[unit]:,} held-out "
            f"{unit}"
        )
    return "; ".join(said)


def _float_layers(plan: Mapping[str, Any]) -> str:
    """Return how many layers stay float for a limit of quality, and which cost most in integers."""
    rows = plan.get("float_layers", ())
    if not rows:
        return ""
    what = MEASURES[plan["measure"]]
    named = ", ".join(f"{row['layer']} ({row['damage']:.2g})" for row in rows[:_NAMED])
    more = f" and {len(rows) - _NAMED} more" if len(rows) > _NAMED else ""
    coded = sum(row.get("weight_in_codes", False) for row in rows)
    codes = f", {coded} with the weight in codes" if coded else ""
    whole = f"{len(rows)} of {plan['layers']}{codes}"
    return f"{whole}, by the {what} that integers would cost: {named}{more}"


def _foldings(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return how many groups of layers read rescaled inputs, and what that does to their errors."""
    errors = sorted(row["error"] for row in rows if row["error"] < 1)
    if not errors:
        return ""
    found = f"of {len(errors)} of {len(rows)} groups of layers; their error"
    return f"{found} times {errors[0]:.2f} to {errors[-1]:.2f}, {median(errors):.2f} in the middle"


def _floats(manifest: Manifest) -> str:
    ops = [f"{row['count']} x {row['op']}" for row in manifest.floats]
    said = {row["layer"] for row in manifest.plan.get("float_layers", ())}
    layers = [
        str(row["name"])
        for row in manifest.layers
        if row["weight"] == "fp32" and row["name"] not in said
    ]
    return ", ".join(ops + layers)
