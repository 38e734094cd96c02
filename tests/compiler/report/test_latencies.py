"""Latencies of ``qcompile bench`` in a report, the front of a plan; what was not measured is not shown."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from click.testing import Result

from qcompile.compiler.report import pictures
from qcompile.compiler.report.bundles import open_entry
from qcompile.compiler.report.differences import Difference

Variant = Callable[..., Path]
Run = Callable[..., Result]
Refuses = Callable[..., str]
SVG = "{http://www.w3.org/2000/svg}"
FRONT = [{"bytes": 1000 * k, "damage": 0.5**k, "milliseconds": None} for k in range(1, 6)]


def planned(manifest: dict[str, Any]) -> None:
    """Give it a plan beside the third of the front."""
    manifest["plan"] = {
        "bytes": 3100,
        "damage": 0.11,
        "milliseconds": None,
        "front": FRONT,
        "measure": "kl",
    }


def bench(run: Run, bundle: Path, file: str) -> dict[str, Any]:
    result = run("bench", bundle, "--runs", "20", "--json")
    assert result.exit_code == 0, result.output
    Path(file).write_text(result.stdout)
    return json.loads(result.stdout)


def test_a_latency_belongs_to_the_bundle_it_was_measured_on(variant: Variant, run: Run) -> None:
    folders = variant("a.qc"), variant("b.qc", lambda m: m["notes"].append("another manifest"))
    found = bench(run, folders[1], "b.json")
    result = run(
        "report", *folders, "--bench", "b.json", "--json", "-o", "r.html", "--markdown", "r.md"
    )
    assert result.exit_code == 0, result.output
    first, second = json.loads(result.stdout)["bundles"]
    assert first["latency"] is None
    assert second["latency"] == {
        "ms": found["p50"] / 1000, "of": "call",
        "where": f"median of 20, {found['engine']} on {found['cpu']}, 1 thread",
    }  # fmt: skip
    shown = f"{found['p50'] / 1000:.3g}"
    assert f"{shown} <small>a call</small>" in Path("r.html").read_text()
    rows = [line for line in Path("r.md").read_text().splitlines() if line.startswith("| ")]
    assert [f"{shown} ms a call" in row for row in rows[2:4]] == [False, True]


def test_what_run_pyz_prints_will_do_too(variant: Variant, run: Run) -> None:
    folder = variant("a.qc")
    found = {
        key: value
        for key, value in bench(run, folder, "b.json").items()
        if key not in ("engine", "cpu")
    }
    Path("b.json").write_text(json.dumps(found))
    data = json.loads(run("report", folder, "--bench", "b.json", "--json").stdout)
    assert data["bundles"][0]["latency"]["where"] == "median of 20, 1 thread"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"manifest": "0" * 64}, "1 of 1 latencies were measured of other bundles than these: measure again"),
        ({"p50": 0}, "b.json is no measured latency ("),
        ({"p50": "fast"}, "b.json is no measured latency ("),
        ({"threads": None}, "b.json is no measured latency ("),
        ({"manifest": 1}, "b.json is no measured latency ("),
    ],
)  # fmt: skip
def test_wrong_latencies(
    variant: Variant, run: Run, refuses: Refuses, change: dict[str, Any], said: str
) -> None:
    folder = variant("a.qc")
    found = bench(run, folder, "b.json")
    Path("b.json").write_text(json.dumps(found | change))
    assert refuses("report", folder, "--bench", "b.json", "-o", "r.html").startswith(said)


def test_files_that_are_no_latencies(variant: Variant, run: Run, refuses: Refuses) -> None:
    folder = variant("a.qc")
    bench(run, folder, "b.json")
    Path("c.json").write_text(Path("b.json").read_text())
    both = ("--bench", "b.json", "--bench", "c.json")
    message = refuses("report", folder, *both, "-o", "r.html")
    assert message == "c.json is of a bundle that another --bench is of; give one of them"
    assert refuses("report", folder, "--bench", "no.json", "-o", "r.html") == (
        "no.json is no measured latency (No such file or directory); give what `qcompile bench BUNDLE "
        "--json` printed"
    )
    Path("list.json").write_text("[]")
    assert "is no measured latency" in refuses(
        "report", folder, "--bench", "list.json", "-o", "r.html"
    )


@pytest.mark.parametrize(("unit", "change"), [("ms a token", -0.5), ("ms a call of one", None)])
def test_latencies_of_one_kind_are_compared(
    variant: Variant, unit: str, change: float | None
) -> None:
    def measured(ms: float, unit: str) -> Callable[[dict[str, Any]], Any]:
        gate = {
            "gate": "max-latency",
            "limit": 9,
            "measured": ms,
            "passed": True,
            "message": f"1 {unit}, x",
        }
        return lambda manifest: manifest["gates"].append(gate)

    sides = variant("a.qc", measured(2.0, "ms a token")), variant("b.qc", measured(1.5, unit))
    found = Difference(*(open_entry(folder, folder.stem) for folder in sides))
    assert [f.change for f in found.figures if f.name == "latency"] == (
        [] if change is None else [change]
    )


def test_the_front_of_a_plan(variant: Variant, run: Run) -> None:
    folder = variant("a.qc", planned)
    entry = open_entry(folder, "a")
    picture = ElementTree.fromstring(pictures.plan_front(entry.front, "KL divergence"))
    dots = [(dot.attrib["fill"], dot[0].text) for dot in picture.iter(f"{SVG}circle") if len(dot)]
    blue, orange = pictures.COLOURS[:2]
    expected = [(blue, f"{row['bytes']:,} bytes, {row['damage']:.3g}") for row in FRONT]
    assert dots == [*expected, (orange, "3,100 bytes, 0.11")]
    result = run("report", folder, "-o", "r.html", "--json")
    assert result.exit_code == 0, result.output
    assert "The best plan of each size" in Path("r.html").read_text()
    assert json.loads(result.stdout)["bundles"][0]["front"]["points"] == FRONT


def test_a_front_of_times(variant: Variant) -> None:
    def timed(manifest: dict[str, Any]) -> None:
        planned(manifest)
        rows = [{**row, "milliseconds": 0.1 * k} for k, row in enumerate(FRONT, 1)]
        manifest["plan"] |= {"milliseconds": 0.3, "front": rows}

    entry = open_entry(variant("a.qc", timed), "a")
    assert entry.front is not None
    assert entry.front.timed
    picture = pictures.plan_front(entry.front, "KL divergence")
    assert "ms, predicted" in picture
    assert "3,000 bytes, 0.125, 0.3 ms" in picture


def test_without_a_plan_there_is_no_front(variant: Variant) -> None:
    entry = open_entry(variant("a.qc"), "a")
    assert entry.front is None
    assert pictures.plan_front(entry.front, "KL divergence") == ""
