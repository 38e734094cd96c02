"""What ``--executor`` and ``--ray-address`` refuse, in a sentence; a matrix without work starts no Ray."""

from __future__ import annotations

import importlib.util
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qcompile.compiler.matrix.lock import Basis
from qcompile.compiler.matrix.ray_task import _unlike

TOML = '[models.a]\npath = "tiny.py"\n[matrix]\ntargets = ["host"]\n'
RAY = ("build", "--executor", "ray")


@pytest.fixture
def matrix(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "qcompile.toml").write_text(TOML)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


def test_ray_is_not_installed(
    matrix: None, refuses: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "ray" else found(name)
    )
    assert refuses(*RAY) == (
        "this step needs the package 'ray', which is not installed; run: pip install 'qcompile[ray]'"
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("build", "--ray-address", "x:1"), "--ray-address is for --executor ray"),
        (("tiny.py", "-t", "host", "--executor", "ray"), "--executor is for builds without MODEL"),
        (("build", "--executor", "rya"), "'rya' is not one of 'local', 'ray'"),
    ],
)
def test_the_command_line(
    matrix: None, refuses: Callable[..., str], arguments: tuple[str, ...], said: str
) -> None:
    assert said in refuses(*arguments)


@pytest.mark.parametrize("address", ["nonsense", "ray://127.0.0.1:10001", "127.0.0.1:99999"])
def test_no_address(matrix: None, refuses: Callable[..., str], address: str) -> None:
    pytest.importorskip("ray")
    assert refuses(*RAY, "--ray-address", address) == (
        f"the Ray cluster {address} cannot be reached (it is not HOST:PORT): "
        "give the HOST:PORT of a cluster's head, on one of the cluster's machines"
    )


def test_nothing_listens_there(
    matrix: None, refuses: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ray")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
        said = f"the Ray cluster {address} cannot be reached (Connection refused)"
        assert refuses(*RAY, "--ray-address", address).startswith(said)
        monkeypatch.setenv("RAY_ADDRESS", address)
        assert refuses(*RAY).startswith(said)


def test_nothing_to_do_starts_no_ray(project: Any) -> None:
    pytest.importorskip("ray")
    rows = project.results(*RAY, "--only", project.good, "--ray-address", "127.0.0.1:1")
    assert rows[project.good]["result"] == "up to date"


def test_what_another_machine_has_otherwise() -> None:
    ours = Basis("device", {"torch": "2.13.0", "onnx": "1.23.2"})
    assert _unlike(ours, ours) == []
    assert _unlike(ours, Basis("other", {"torch": "2.12.0"})) == [
        "onnx: 1.23.2 -> none", "torch: 2.13.0 -> 2.12.0", "the facts about the device",
    ]  # fmt: skip
