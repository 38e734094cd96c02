"""A baseline at a URL: the manifests are compared as those of a folder, and no secret of the URL is told."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from click.testing import Result

Variant = Callable[..., Path]
Run = Callable[..., Result]
Refuses = Callable[..., str]


@pytest.fixture
def memory() -> Iterator[Any]:
    """The file system in memory, with no release in it afterwards."""
    found = fsspec.filesystem("memory")
    yield found
    if found.exists("/release"):
        found.rm("/release", recursive=True)


def worse(manifest: dict[str, Any]) -> None:
    manifest["layers"][0]["weight_sqnr_db"] -= 3
    manifest["sizes"]["artifact_bytes"] += 10


def data_of(run: Run, *arguments: str | Path) -> dict[str, Any]:
    result = run("report", *arguments, "--json")
    assert (result.exit_code, result.stderr) == (0, "")
    return json.loads(result.stdout)["baseline"]


def test_as_a_folder_of_the_same_bundles(variant: Variant, run: Run, memory: Any) -> None:
    for name in ("old/net.qc", "old/deep/two.qc", "old/gone.qc"):
        manifest = variant(name, *([worse] if name == "old/net.qc" else [])) / "manifest.json"
        memory.pipe(
            f"/release/{manifest.parent.relative_to('old')}/manifest.json", manifest.read_bytes()
        )
    new = (
        variant("new/net.qc"),
        variant("new/two.qc"),
        variant("new/fresh.qc", lambda m: m.update(name="else")),
    )

    expected = data_of(run, *new, "--baseline", "old")
    assert [d["after"] for d in expected["differences"]] == ["net", "two"]
    assert expected["differences"][0]["figures"][0]["change"] == -10
    assert (expected["added"], expected["removed"]) == (["fresh"], ["gone"])
    assert data_of(run, *new, "--baseline", "memory://release") == expected
    assert data_of(run, *new, "--baseline", Path("old").absolute().as_uri()) == expected

    kept = {name: memory.cat(name) for name in memory.find("/release")}
    assert len(kept) == 3  # nothing was written
    data = data_of(run, new[0], "--baseline", "memory://release/net.qc")
    assert [d["before"] for d in data["differences"]] == ["net"]


def test_files_of_a_report_may_lie_anywhere(variant: Variant, run: Run, memory: Any) -> None:
    manifest = variant("net.qc") / "manifest.json"
    memory.pipe("/release/net.qc/manifest.json", manifest.read_bytes())
    result = run("report", "net.qc", "--baseline", "memory://u:s3cret@release", "-o", "r.html",
                 "--markdown", "r.md", "--junit", "r.xml", "--sarif", "r.sarif")  # fmt: skip
    assert (
        result.exit_code == 2
    )  # the host of memory: is part of the path, and there is no such folder
    result = run("report", "net.qc", "--baseline", "memory://release", "-o", "r.html", "--markdown", "r.md",
                 "--junit", "r.xml", "--sarif", "r.sarif")  # fmt: skip
    assert result.exit_code == 0, result.output
    texts = [Path(name).read_text() for name in ("r.html", "r.md", "r.xml", "r.sarif")]
    assert "Since the baseline" in texts[0]
    assert not any("release" in text or "memory:" in text for text in texts)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"schema": 99}', "has schema 99; this qcompile reads up to 3: update qcompile"),
        ('{"schema": 3}', "has wrong or missing fields: activations, artifact, "),
        ("no json", "is not a manifest ("),
        ("\udcff", "is not text; build the bundle again"),
    ],
)  # fmt: skip
def test_what_is_no_manifest(
    variant: Variant, refuses: Refuses, memory: Any, content: str, said: str
) -> None:
    variant("net.qc")
    memory.pipe("/release/a.qc/manifest.json", content.encode(errors="surrogateescape"))
    message = refuses("report", "net.qc", "--baseline", "memory://release", "-o", "r.html")
    assert message.startswith(f"memory://release/a.qc/manifest.json {said}")
    assert not Path("r.html").exists()


def test_a_damaged_manifest(variant: Variant, refuses: Refuses, memory: Any) -> None:
    manifest = variant("net.qc", lambda m: m["layers"][0].update(bytes="12")) / "manifest.json"
    memory.pipe("/release/a.qc/manifest.json", manifest.read_bytes())
    message = refuses(
        "report", variant("good.qc"), "--baseline", "memory://release", "-o", "r.html"
    )
    assert message.startswith("memory://release/a.qc/manifest.json is damaged ('12' is no count)")


def test_where_there_is_none(
    variant: Variant, refuses: Refuses, memory: Any, tmp_path: Path
) -> None:
    variant("net.qc")
    (tmp_path / "empty").mkdir()
    memory.mkdir("/release/empty")
    ask = ("report", "net.qc", "-o", "r.html", "--baseline")
    assert refuses(*ask, "empty") == "empty is no bundle and holds none"
    assert refuses(*ask, "memory://release/empty") == (
        "memory://release/empty is no bundle, and no list of folders that has any"
    )
    assert refuses(*ask, "memory://nowhere?token=s3cret").startswith(
        "memory://nowhere cannot be read: there is nothing; check the address"
    )
    assert refuses(*ask, "quux://u:s3cret@h").startswith(
        "quux://***@h has the scheme 'quux', which fsspec"
    )
    assert refuses(*ask, f"file://{tmp_path}/none").startswith("the baseline file:///")
    assert (
        refuses(*ask, "u:s3cret@host")
        == "the baseline ***@host is no folder; give one with bundles in it"
    )
