"""Budgets on the command line: exit codes, data for machines, tables for people."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

pytest.importorskip("llama_cpp")
pytestmark = pytest.mark.usefixtures("own_cache")
Run = Callable[..., Result]
TEXT = "It was a bright cold day in April, and the clocks were striking thirteen. " * 40


@pytest.fixture
def arguments(tiny_llama: Path, tmp_path: Path) -> list[str]:
    text = tmp_path / "text.txt"
    text.write_text(TEXT)
    return [str(tiny_llama), "--target", "gguf", "--calibrate", str(text), "--seq-len", "32",
            "-o", str(tmp_path / "a.qc")]  # fmt: skip


def test_a_size_that_nothing_reaches(run: Run, arguments: list[str], tmp_path: Path) -> None:
    found = run(*arguments, "--max-size", "1kB")

    assert found.exit_code == 1
    assert "no plan keeps these limits; the smallest file is" in found.stderr
    assert not (tmp_path / "a.qc").exists()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--max-size", "much"], "'much' is no size"),
        (["--optimize", "size"], "--optimize size has no limit to keep"),
        (["--max-kl", "0.1", "--dry-run"], "leave out --dry-run"),
        (["--max-kl", "0.1", "--pareto"], "leave out the limits"),
        (["--max-kl", "0.1", "--plot", "a.svg"], "--plot draws what --pareto finds"),
        (["--pareto", "--plot", "a.png"], "name it .svg or .html"),
        (["--pareto", "--plot", "no/folder/a.svg"], "does not exist"),
        (["--context", "32"], "there is none"),
    ],
)
def test_budgets_that_mean_nothing(
    run: Run, arguments: list[str], given: list[str], message: str
) -> None:
    found = run(*arguments, *given)

    assert found.exit_code == 2
    assert message in found.stderr


def test_a_budget_of_a_target_that_takes_none(run: Run, tmp_path: Path) -> None:
    example = Path(__file__).parents[3] / "examples" / "mobilenet_v2.py"
    given = [
        str(example),
        "--target",
        "cuda-sm80",
        "--max-size",
        "1MB",
        "-o",
        str(tmp_path / "a.qc"),
    ]
    found = run(*given)

    assert found.exit_code == 2
    assert "cuda-sm80 computes on its GPU, for which tvm stores all weights in one" in found.stderr


def test_the_front_and_one_of_its_plans(run: Run, arguments: list[str], tmp_path: Path) -> None:
    shown = run(*arguments, "--num-samples", "8", "--pareto")
    data = json.loads(run(*arguments, "--num-samples", "8", "--pareto", "--json").output)

    assert shown.exit_code == 0
    middle = data["plans"][len(data["plans"]) // 2]
    assert f"{middle['bytes']:,}" in shown.output
    built = run(*arguments, "--num-samples", "8", "--max-size", str(middle["bytes"]), "--json")
    assert built.exit_code == 0, built.output
    plan = json.loads(built.output)["manifest"]["plan"]
    assert plan["types"] == middle["types"]
    inspected = run("inspect", tmp_path / "a.qc")
    assert plan["rows"][0]["tensor"] in inspected.output


def test_the_front_as_a_plot(run: Run, arguments: list[str], tmp_path: Path) -> None:
    drawn, page = tmp_path / "front.svg", tmp_path / "front.html"
    given = [*arguments, "--num-samples", "8", "--pareto"]
    data = json.loads(run(*given, "--json", "--plot", drawn).output)
    shown = run(*given, "--plot", page)

    assert shown.exit_code == 0
    dots = [line for line in drawn.read_text().splitlines() if line.startswith("<circle")]
    assert len(dots) == sum(plan["damage"] > 0 for plan in data["plans"])
    assert all(f"<td>{plan['bytes']:,}</td>" in page.read_text() for plan in data["plans"])


def test_limits_that_contradict_each_other(run: Run, arguments: list[str]) -> None:
    """For machines: of each what it would have to be, and a plan that keeps it with the others."""
    given = [*arguments, "--num-samples", "8", "--json"]
    plans = json.loads(run(*given, "--pareto").output)["plans"]
    small, good = plans[2]["bytes"], plans[-3]["damage"]
    found = run(*given, "--max-size", str(small), "--max-kl", str(good))

    data = json.loads(found.output)
    size, kl = data["nearest"]
    assert found.exit_code == 1
    assert (size["limit"], kl["limit"]) == ("--max-size", "--max-kl")
    assert small < size["least"] <= plans[-3]["bytes"]
    assert good < kl["least"] <= plans[2]["damage"] * 1.001
    assert size["plan"]["damage"] <= good
    assert kl["plan"]["bytes"] <= small
    assert f"--max-size would have to be {size['least']:,}" in data["error"]
