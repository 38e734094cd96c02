"""``Report``: bundles, what changed since a baseline, and what a reader should look at first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from qcompile.compiler.report.baselines import read_baseline
from qcompile.compiler.report.bundles import Entry, open_entries
from qcompile.compiler.report.differences import Difference
from qcompile.compiler.report.findings import Finding, of_bundle, of_difference
from qcompile.compiler.report.latencies import read_benches
from qcompile.runtime.errors import BundleError
from qcompile.runtime.manifest import FILE, file_sha256


@dataclass(frozen=True)
class Report:
    """What the pages show.

    Args:
        entries: The bundles, by label.
        differences: Each bundle that the baseline has too, in the same order.
        added: Labels that the baseline has not.
        removed: Labels that only the baseline has.
        compared: Whether there is a baseline.
    """

    entries: tuple[Entry, ...]
    differences: tuple[Difference, ...] = ()
    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    compared: bool = False

    @property
    def passed(self) -> bool:
        """Whether every gate of every bundle holds."""
        return all(entry.passed for entry in self.entries)

    @cached_property
    def findings(self) -> tuple[Finding, ...]:
        """What is worth a look, the most serious first."""
        found = [f for entry in self.entries for f in of_bundle(entry)]
        found += [f for each in self.differences for f in of_difference(each)]
        return tuple(sorted(found, key=lambda f: (f.rule.rank, f.bundle)))

    @property
    def models(self) -> dict[str, tuple[Entry, ...]]:
        """The bundles of each model."""
        names = sorted({entry.identity[0] for entry in self.entries})
        return {n: tuple(e for e in self.entries if e.identity[0] == n) for n in names}

    @property
    def summary(self) -> str:
        """How many bundles there are and how many hold their gates, in words."""
        count, good = len(self.entries), sum(entry.passed for entry in self.entries)
        noun = "bundle" if count == 1 else "bundles"
        if good == count:
            return f"{count} {noun}; all gates passed"
        failed = count - good
        return f"{count} {noun}; {failed} {'fails' if failed == 1 else 'fail'} a gate"


def make_report(
    bundles: Sequence[Path], baseline: str | None = None, benches: Sequence[Path] = ()
) -> Report:
    """Read bundles.

    Args:
        bundles: Bundles, or folders of bundles.
        baseline: A bundle or a folder of bundles from before, or the URL of one.
        benches: Files with latencies that were measured of the bundles.

    Raises:
        BundleError: One cannot be read, or is given twice.
        RemoteError: The URL cannot be read.
    """
    entries = _measured(open_entries(bundles), benches)
    if baseline is None:
        return Report(entries)
    old = read_baseline(baseline)
    pairs = _pairs(old, entries)
    known = {id(before) for before, _ in pairs}
    return Report(
        entries,
        tuple(Difference(before, after) for before, after in pairs),
        tuple(e.label for e in entries if e not in [after for _, after in pairs]),
        tuple(e.label for e in old if id(e) not in known),
        compared=True,
    )


def _measured(entries: tuple[Entry, ...], files: Sequence[Path]) -> tuple[Entry, ...]:
    """Return bundles with their latencies.

    Raises:
        BundleError: A latency was measured of none of them.
    """
    if not files:
        return entries
    benches = read_benches(files)
    digests = [file_sha256(entry.folder / FILE) for entry in entries]
    if strangers := benches.keys() - {*digests}:
        raise BundleError(
            f"{len(strangers)} of {len(benches)} latencies were measured of other bundles than these: "
            "measure again with `qcompile bench BUNDLE --json`"
        )
    found = zip(entries, digests, strict=True)
    return tuple(replace(entry, bench=benches.get(digest)) for entry, digest in found)


def _pairs(old: Sequence[Entry], new: Sequence[Entry]) -> list[tuple[Entry, Entry]]:
    """Return what belongs together: of one name, or else the only ones of a model, target and format."""
    labels = {entry.label: entry for entry in old}
    named = {e.label: labels[e.label] for e in new if e.label in labels}
    taken = {entry.label for entry in named.values()}
    left = [entry for entry in old if entry.label not in taken]
    rest = [entry for entry in new if entry.label not in named]
    for entry in rest:
        same = [[e for e in side if e.identity == entry.identity] for side in (left, rest)]
        if [len(side) for side in same] == [1, 1]:
            named[entry.label] = same[0][0]
    return [(named[entry.label], entry) for entry in new if entry.label in named]
