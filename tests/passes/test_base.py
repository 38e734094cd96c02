"""The contract that the runner holds every pass to, and finding passes by name."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import FrozenInstanceError, dataclass, fields, is_dataclass
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import qcompile.passes
from qcompile.compiler.frontend.trace import trace
from qcompile.compiler.ir.errors import CalibrationError, PassError
from qcompile.compiler.ir.graph import Graph
from qcompile.compiler.ir.ops import aten
from qcompile.passes.base import FOLDERS, Pass, RunOptions, find, names, run
from qcompile.passes.graph.remove_identity import RemoveIdentity

SOURCES = Path(qcompile.passes.__file__).resolve().parent
TESTS = Path(__file__).parent


class Net(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x).exp()


@pytest.fixture(scope="module")
def traced() -> Graph:
    return trace(Net(), torch.ones(2, 3))


@pytest.fixture
def graph(traced: Graph) -> Graph:
    return traced.copy()


@dataclass(frozen=True)
class Acts(Pass):
    """Calls a function, and returns a count whatever that did."""

    name = "acts"
    action: Callable[[Graph], object] = lambda graph: None
    count: int = 0

    def run(self, graph: Graph) -> int:
        self.action(graph)
        return self.count


def drop_relu(graph: Graph) -> None:
    (relu,) = graph.calls(aten.relu.default)
    graph.replace(relu, relu.args[0])  # type: ignore[arg-type]


def fail(graph: Graph) -> None:
    raise RuntimeError("a tensor fell off")


def test_records_what_each_pass_did(graph: Graph) -> None:
    records = run(graph, [Acts(drop_relu, 1), RemoveIdentity()])
    assert [(r.name, r.rewrites) for r in records] == [("acts", 1), ("remove-identity", 0)]
    assert all(r.seconds >= 0 for r in records)


@pytest.mark.parametrize(("action", "count"), [(drop_relu, 0), (lambda graph: None, 3)])
def test_a_wrong_count_is_refused(
    graph: Graph, action: Callable[[Graph], object], count: int
) -> None:
    with pytest.raises(PassError, match=f"pass 'acts' reported {count} rewrites"):
        run(graph, [Acts(action, count)])


def test_without_check_the_count_is_taken_on_trust(graph: Graph) -> None:
    assert run(graph, [Acts(drop_relu, 0)], RunOptions(check=False))[0].rewrites == 0


def test_a_wrong_count_carries_the_ir(graph: Graph) -> None:
    with pytest.raises(PassError) as caught:
        run(graph, [Acts(drop_relu, 0)])
    assert getattr(caught.value, "__notes__", []) == [graph.to_text()]


def test_a_failure_names_the_pass_and_those_before_and_carries_the_ir(graph: Graph) -> None:
    with pytest.raises(PassError) as caught:
        run(graph, [RemoveIdentity(), Acts(drop_relu, 1), Acts(fail)])
    message = "pass 'acts' failed (passes before it: remove-identity, acts): a tensor fell off"
    assert str(caught.value) == message
    assert isinstance(caught.value.__cause__, RuntimeError)
    assert caught.value.__notes__ == [graph.to_text()]


def test_the_first_pass_has_none_before_it(graph: Graph) -> None:
    with pytest.raises(PassError, match="passes before it: none"):
        run(graph, [Acts(fail)])


def test_a_failure_that_leaves_a_graph_without_text_is_still_told() -> None:
    graph = trace(nn.Linear(2, 2), torch.randn(2, 2))

    def destroy(graph: Graph) -> None:
        del graph.weights["weight"]
        fail(graph)

    with pytest.raises(PassError, match="a tensor fell off"):
        run(graph, [Acts(destroy)])


def test_what_is_for_the_user_goes_through_as_it_is(graph: Graph) -> None:
    def refuse(graph: Graph) -> None:
        raise CalibrationError("give more samples")

    with pytest.raises(CalibrationError, match=r"^give more samples$"):
        run(graph, [Acts(refuse)])


@pytest.mark.parametrize("moment", ["requires", "ensures"])
def test_conditions_are_checked(graph: Graph, moment: str) -> None:
    def broken(self: Pass, graph: Graph) -> None:
        raise AssertionError(f"{moment} does not hold")

    cls = type("Conditional", (Acts,), {"name": "conditional", moment: broken})
    with pytest.raises(PassError, match=f"pass 'conditional' failed .*{moment} does not hold"):
        run(graph, [cls()])


def test_a_graph_that_is_not_valid_is_refused(graph: Graph) -> None:
    def swap(graph: Graph) -> None:
        (relu,), (exp,) = graph.calls(aten.relu.default), graph.calls(aten.exp.default)
        relu.args = (exp,)

    with pytest.raises(PassError, match="before it has been defined"):
        run(graph, [Acts(swap, 1)])


def test_dump_writes_a_file_a_pass(graph: Graph, tmp_path: Path) -> None:
    before, folder = graph.to_text(), tmp_path / "new" / "dump"
    started: list[str] = []
    run(graph, [RemoveIdentity(), Acts(drop_relu, 1)], RunOptions(True, folder, started.append))
    texts = {file.name: file.read_text(encoding="utf-8") for file in folder.iterdir()}
    assert texts == {
        "00-input.txt": before,
        "01-remove-identity.txt": before,
        "02-acts.txt": graph.to_text(),
    }
    assert before != graph.to_text()
    assert started == ["remove-identity", "acts"]


def test_an_unknown_name_lists_those_that_there_are() -> None:
    with pytest.raises(KeyError, match=r"no pass 'fold-nothing'; there are: .*remove-identity"):
        find("fold-nothing")


def _files_with_passes() -> list[Path]:
    files = [file for folder in FOLDERS for file in sorted((SOURCES / folder).glob("*.py"))]
    return [file for file in files if "(Pass):" in file.read_text(encoding="utf-8")]


FILES = _files_with_passes()


def test_names_lists_every_file_that_defines_a_pass() -> None:
    assert len(FILES) >= 7
    assert names() == sorted(file.stem.replace("_", "-") for file in FILES)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_pass_keeps_the_conventions(file: Path) -> None:
    name = file.stem.replace("_", "-")
    cls = find(name)
    assert cls.name == name
    assert Path(sys.modules[cls.__module__].__file__ or "").resolve() == file
    module = sys.modules[cls.__module__].__doc__ or ""
    assert "\nBefore:" in module
    assert "\nAfter:" in module
    assert cls.__doc__
    assert not cls.__doc__.startswith(f"{cls.__name__}("), "the docstring is dataclass's own"
    options = [f.name for f in fields(cls)]
    assert all(f"{option}:" in cls.__doc__ for option in options), "Args: explains each option"
    assert is_dataclass(cls)
    assert vars(cls)["__dataclass_params__"].frozen
    test = TESTS / file.parent.name / f"test_{file.stem}.py"
    assert test.is_file(), f"write {test.relative_to(TESTS.parent)}"


def test_options_cannot_be_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        Acts().count = 3  # type: ignore[misc]


def test_find_is_not_misled_by_an_imported_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """``fold_x.py`` may import another pass above its own class."""
    module = sys.modules[find("remove-identity").__module__]
    contents = {"Acts": Acts, **vars(module)}
    stand_in = type(sys)("qcompile.passes.graph.remove_identity")
    vars(stand_in).update(contents)
    monkeypatch.setitem(sys.modules, stand_in.__name__, stand_in)
    assert find("remove-identity").name == "remove-identity"
