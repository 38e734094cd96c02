"""Golden files, seeds, and the checks that every pass of ``passes/graph`` must stand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from torch import nn

from qcompile.compiler.ir.graph import Graph
from qcompile.passes.base import Pass, run

ROOT = Path(__file__).parent.parent

torch.set_num_threads(1)
settings.register_profile("qcompile", deadline=None, derandomize=True, database=None)
settings.load_profile("qcompile")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--update-golden", action="store_true", help="rewrite tests/golden/ with what was computed"
    )


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """Compare a text with ``tests/golden/NAME``; with ``--update-golden`` write it there."""

    def compare(name: str, text: str) -> None:
        file = ROOT / "tests" / "golden" / name
        if request.config.getoption("--update-golden"):
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8")
        if not file.is_file():
            pytest.fail(
                f"{file} does not exist: make it with "
                f"`pytest --update-golden '{request.node.nodeid}'`, read it, and commit it"
            )
        assert text == file.read_text(encoding="utf-8"), (
            f"differs from {file}; if that is meant, run with --update-golden and read the diff"
        )

    return compare


@pytest.fixture(scope="session")
def shared() -> Path:
    """Models and data beside the checkout, which are in no repository."""
    folder = ROOT.parent / "shared"
    if not folder.is_dir():
        pytest.skip(f"{folder} is missing: it holds the models and data of the larger tests")
    return folder


@pytest.fixture
def rewrite() -> Callable[[Graph, Pass], int]:
    """Run a pass, which must keep the function and have nothing left to do; return its count."""

    def check(graph: Graph, current: Pass) -> int:
        expected = graph.run(graph.inputs)
        rewrites = run(graph, [current])[0].rewrites
        torch.testing.assert_close(graph.run(graph.inputs), expected)
        assert run(graph, [current])[0].rewrites == 0, "the second run must find nothing"
        return rewrites

    return check


@pytest.fixture
def quarters() -> Callable[[nn.Module], nn.Module]:
    """Fill a module with multiples of 1/4: digests in golden files are the same everywhere."""

    def fill(module: nn.Module) -> nn.Module:
        for index, (name, tensor) in enumerate(module.state_dict().items()):
            if tensor.is_floating_point():
                values = (torch.arange(tensor.numel()) * 7 + index) % 11 - 5
                values = values.abs() + 1 if name.endswith("running_var") else values
                tensor.copy_((values / 4).reshape(tensor.shape))
        return module.eval()

    return fill
