"""The files of ``qcompile report``: the manifests' figures, no markup of a model, the same bytes."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote
from xml.etree import ElementTree

import pytest
from click.testing import Result

from qcompile.compiler.report.page import MOST_BYTES

Variant = Callable[..., Path]
Run = Callable[..., Result]
EVIL = "</script></style></title><script>alert(1)</script><img src=x onerror=alert(1)>\"'{{7*7}}&"


class Parsed(HTMLParser):
    """Elements, attributes, and the rows of tables as texts by the table's id."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: Counter[str] = Counter()
        self.attributes: list[tuple[str, str | None]] = []
        self.tables: dict[str | None, list[list[str]]] = {}
        self._rows: list[list[str]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements[tag] += 1
        self.attributes += attrs
        if tag == "table":
            self._rows = self.tables.setdefault(dict(attrs).get("id"), [])
        elif tag == "tr":
            self._rows.append([])
        elif tag in ("td", "th"):
            self._rows[-1].append("")

    def handle_data(self, data: str) -> None:
        if self._rows and self._rows[-1]:
            self._rows[-1][-1] += data.rstrip("\n")


def fails_a_gate(manifest: dict[str, Any]) -> None:
    """Let the gate ``export`` fail."""
    manifest["gates"][0].update(passed=False, message="float graph and PyTorch: 12.0 dB")


def report(run: Run, *arguments: str | Path, code: int = 0) -> str:
    result = run("report", *arguments)
    assert result.exit_code == code, result.output
    assert result.stderr == ""
    return result.stdout


def evil(manifest: dict[str, Any]) -> None:
    """Put markup wherever a manifest has text."""
    manifest["layers"][0].update(name=EVIL, weight=EVIL, note=EVIL, op=EVIL, rounding=EVIL)
    manifest["parity"]["engine"][0]["name"] = EVIL
    manifest["interface"]["labels"] = [EVIL + str(k) for k in range(4)]
    manifest["quality"] = {EVIL: {"before": 1.0, "after": 2.0}}
    manifest["gates"][0].update(gate=EVIL, message=EVIL, passed=False)
    manifest["options"][EVIL] = EVIL
    manifest.update(name=EVIL, target=EVIL, precision=EVIL, notes=[EVIL])
    manifest["tools"][EVIL] = EVIL
    manifest["floats"] = [{"count": 1, "op": EVIL, "why": EVIL}]


def test_the_page_has_the_manifests_figures(variant: Variant, run: Run) -> None:
    folders = [variant("a.qc"), variant("b.qc", fails_a_gate)]
    text = report(run, *folders, "-o", "r.html", code=1)
    assert text == "2 bundles; 1 fails a gate\n"
    page = Parsed(Path("r.html").read_text())
    heading, *rows = page.tables["matrix"]
    manifest = json.loads(Path("a.qc/manifest.json").read_text())
    cells = [dict(zip(heading, row, strict=True)) for row in rows]
    assert [row["bundle"] for row in cells] == ["a", "b"]
    assert [row["gates"] for row in cells] == ["passed", "failed: export"]
    assert cells[0]["bytes"] == f"{manifest['sizes']['artifact_bytes']:,}"
    assert cells[0]["SQNR dB"] == f"{manifest['parity']['total']['output']['sqnr_db']:.1f}"
    assert "latency ms" not in heading  # nothing was measured
    heading, *rows = page.tables["l1"]
    found = [dict(zip(heading, row, strict=True)) for row in rows]
    assert [row["layer"] for row in found] == [row["name"] for row in manifest["layers"]]
    assert [row["bytes"] for row in found] == [f"{row['bytes']:,}" for row in manifest["layers"]]
    decibels = [f"{row['weight_sqnr_db']:.1f}" for row in manifest["layers"]]
    assert [row["own dB"] for row in found] == decibels


def test_markup_in_a_model_stays_text(variant: Variant, run: Run) -> None:
    plain = [variant("old/a.qc"), variant("a.qc")]
    report(run, plain[1], "--baseline", "old", "-o", "plain.html")
    expected = Parsed(Path("plain.html").read_text()).elements
    shutil.rmtree("a.qc")
    arguments = (variant("a.qc", evil), "--baseline", "old", "-o", "r.html")
    report(run, *arguments, "--markdown", "r.md", code=1)
    page = Parsed(Path("r.html").read_text())
    assert page.elements["script"] == expected["script"] == 1
    assert page.elements["style"] == expected["style"] == 2
    assert page.elements["img"] == 0
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert page.tables["l1"][1][0] == EVIL
    assert page.tables["matrix"][1][2] == EVIL
    assert "49" not in page.tables["l1"][1][0]
    text = Path("r.md").read_text()
    assert "<" not in text
    assert "alert" in text


def test_the_page_asks_for_nothing(variant: Variant, run: Run) -> None:
    report(run, variant("a.qc"), "-o", "r.html")
    text = Path("r.html").read_text()
    addresses = [v for n, v in Parsed(text).attributes if n in ("src", "href", "action", "srcset")]
    assert addresses
    assert all(re.fullmatch("#[bc][0-9]+", str(address)) for address in addresses)
    assert set(re.findall(r"url\((.{15})", text)) == {"data:image/png;"}
    (policy,) = re.findall('http-equiv="Content-Security-Policy" content="([^"]*)"', text)
    allowed = set(re.findall("sha256-([^&]*)&", policy))
    inline = re.findall("<(?:style|script)>(.*?)</(?:style|script)>", text, re.DOTALL)
    digests = {base64.b64encode(hashlib.sha256(t.encode()).digest()).decode() for t in inline}
    assert digests == allowed
    assert policy.startswith("default-src &#39;none&#39;; img-src data:; ")


def test_a_report_of_many_layers_stays_small(variant: Variant, run: Run) -> None:
    def edit(manifest: dict[str, Any]) -> None:
        row = manifest["layers"][0]
        manifest["layers"] = [{**row, "name": f"experts.{k}.{'w' * 60}"} for k in range(12_000)]

    report(run, variant("a.qc", edit), variant("b.qc", edit), "-o", "r.html")
    text = Path("r.html").read_text()
    assert len(text.encode()) <= MOST_BYTES
    shown = Parsed(text).tables["l1"][1:]
    assert f"The worst {len(shown):,}".replace(",", "") in text
    assert len(shown) in (1000, 500)


def test_equal_bundles_give_equal_bytes(
    variant: Variant, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = {"--output": "r.html", "--junit": "r.xml", "--markdown": "r.md", "--sarif": "r.sarif"}
    files = [part for option, name in names.items() for part in (option, name)]
    arguments = (*files, "--baseline", "old")
    for name in ("a.qc", "b.qc", "old/b.qc"):
        variant(name)
    report(run, "a.qc", "b.qc", *arguments)
    shutil.copytree(tmp_path, tmp_path / "elsewhere/deep")
    monkeypatch.chdir(tmp_path / "elsewhere/deep")
    for name in names.values():
        Path(name).unlink()
    report(run, "b.qc", "a.qc", *arguments)
    for name in names.values():
        text = Path(name).read_text()
        assert text == (tmp_path / name).read_text()
        assert str(tmp_path) not in text


@pytest.mark.slow
def test_equal_bytes_in_processes_of_other_hash_orders(variant: Variant) -> None:
    variant("old/a.qc")
    variant("a.qc", worse, lambda m: m["options"].update({f"x{k}": k for k in range(9)}))
    texts = set()
    for seed in ("1", "2"):
        command = (sys.executable, "-m", "qcompile", "report", "a.qc", "--baseline", "old")
        files = ("-o", f"{seed}.html", "--sarif", f"{seed}.sarif", "--markdown", f"{seed}.md")
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        subprocess.run([*command, *files], check=True, capture_output=True, env=environment)
        texts.add(tuple(Path(f"{seed}.{kind}").read_text() for kind in ("html", "sarif", "md")))
    assert len(texts) == 1


def test_junit_counts_the_gates(variant: Variant, run: Run) -> None:
    folders = [
        variant("a.qc"),
        variant("b.qc", fails_a_gate, lambda m: m.update(name="\x00\x1b<&")),
    ]
    report(run, *folders, "--junit", "r.xml", code=1)
    root = ElementTree.parse("r.xml").getroot()
    gates = len(json.loads(Path("a.qc/manifest.json").read_text())["gates"])
    for element, tests, failures in (
        (root, 2 * gates, 1),
        (root[0], gates, 0),
        (root[1], gates, 1),
    ):
        cases = element.findall(".//testcase")
        assert int(element.attrib["tests"]) == len(cases) == tests
        assert int(element.attrib["failures"]) == len(element.findall(".//failure")) == failures
        assert element.attrib["errors"] == element.attrib["skipped"] == "0"
    (failure,) = root.findall(".//failure")
    assert failure.attrib["message"] == "float graph and PyTorch: 12.0 dB"
    model = root.find("./testsuite[@name='b']//property[@name='model']")
    assert model is not None
    assert model.attrib["value"] == "\ufffd\ufffd<&"


def worse(manifest: dict[str, Any]) -> None:
    """Let a layer lose 3 dB and get another format."""
    manifest["layers"][0]["weight_sqnr_db"] -= 3
    manifest["layers"][0]["weight"] = "int4"
    manifest["sizes"]["artifact_bytes"] += 100


def test_sarif_has_what_its_schema_requires(variant: Variant, run: Run) -> None:
    variant("old/a b.qc")
    report(
        run,
        variant("a b.qc", worse, fails_a_gate),
        "--baseline",
        "old",
        "--sarif",
        "r.sarif",
        code=1,
    )
    log = json.loads(Path("r.sarif").read_text())
    assert log["version"] == "2.1.0"
    (one,) = log["runs"]
    driver = one["tool"]["driver"]
    assert driver["name"] == "qcompile"
    ids = [rule["id"] for rule in driver["rules"]]
    assert len(set(ids)) == len(ids)
    found = []
    for result in one["results"]:
        assert result["message"]["text"]
        assert result["level"] in ("error", "warning", "note", "none")
        assert ids[result["ruleIndex"]] == result["ruleId"]
        (location,) = result["locations"]
        uri = location["physicalLocation"]["artifactLocation"]["uri"]
        assert Path(unquote(uri)).is_file()
        assert " " not in uri
        found.append((result["ruleId"], result["level"]))
    assert found == [
        ("gate-failed", "error"), ("layer-worse", "warning"), ("artifact-grew", "warning"),
        ("format-changed", "note"),
    ]  # fmt: skip
    prints = [result["partialFingerprints"]["qcompile/v1"] for result in one["results"]]
    assert len(set(prints)) == len(prints)


def test_markdown_is_for_a_pull_request(variant: Variant, run: Run) -> None:
    variant("old/a.qc")
    variant("old/gone.qc")
    name = "x|y @someone #12 `z` [l](http://a)"
    arguments = (variant("a.qc", worse), variant("new.qc", lambda m: m.update(target=name)))
    report(run, *arguments, "--baseline", "old", "--markdown", "r.md")
    text = Path("r.md").read_text()
    assert text.startswith("## qcompile: 2 bundles; all gates passed\n")
    assert "| a | +100 | +0.0 | 1 | 1 |" in text
    assert "New: new" in text
    assert "Gone: gone" in text
    assert "@someone" not in text
    assert "#12" not in text
    assert "://" not in text
    for table in re.findall(r"(?:^\|.*\|\n)+", text, re.MULTILINE):
        bars = {len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}
        assert len(bars) == 1, table


def test_bundles_of_a_baseline_are_found_by_name_or_by_kind(variant: Variant, run: Run) -> None:
    variant("old/moved-away.qc")
    variant("old/same.qc", lambda m: m.update(target="x"))
    folders = [variant("same.qc", lambda m: m.update(target="y")), variant("moved-here.qc")]
    data = json.loads(report(run, *folders, "--baseline", "old", "--json"))
    pairs = {(d["before"], d["after"]) for d in data["baseline"]["differences"]}
    assert pairs == {("moved-away", "moved-here"), ("same", "same")}
    assert data["baseline"]["added"] == data["baseline"]["removed"] == []
    variant("third.qc")  # as moved-here.qc: now it is not known which of the two is meant
    data = json.loads(report(run, *folders, "third.qc", "--baseline", "old", "--json"))
    assert data["baseline"]["added"] == ["moved-here", "third"]
    assert data["baseline"]["removed"] == ["moved-away"]
    assert data["baseline"]["differences"][0]["settings"][0] == {
        "name": "bundle target", "before": "x", "after": "y",
    }  # fmt: skip


def test_what_cannot_be_written(variant: Variant, refuses: Callable[..., str]) -> None:
    folder = variant("a.qc")
    Path("file").write_text("")
    message = refuses("report", folder)
    assert message.startswith(
        "nothing to write: give --output, --junit, --markdown, --sarif or --js"
    )
    message = refuses("report", folder, "-o", "a.qc/manifest.json")
    assert message == "--output a.qc/manifest.json lies in the bundle a.qc, which it would change"
    message = refuses("report", folder, "-o", "r", "--markdown", "./r")
    assert message == "--output and --markdown name one file; give each its own"
    message = refuses("report", folder, "--junit", "file/r.xml")
    assert message == "--junit file/r.xml cannot be written: file is no folder; make it first"
    message = refuses("report", folder, "-o", ".")
    assert message == "--output . is a folder; name a file"
    message = refuses("report", folder, "--baseline", "none", "-o", "r.html")
    assert message == "the baseline none is no folder; give one with bundles in it"
    assert "no.qc is no bundle" in refuses("report", folder, "no.qc", "-o", "r.html")
