"""What cannot be tuned is refused in one sentence, before any work."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from click.testing import CliRunner

from qcompile.compiler.cli import cli
from qcompile.compiler.driver import BuildOptions
from qcompile.compiler.ir.errors import OutputError, TargetError
from qcompile.targets.device import host_device, load_device
from qcompile.targets.options import Tuning
from qcompile.targets.tvm import libraries, tuning
from qcompile.targets.tvm.tuning_records import Record, Records, open_records

TRACE = [["EnterPostproc", [], [], []], []]


@pytest.mark.parametrize("format", ["onnx", "coreml"])
def test_formats_without_tuning(format: str) -> None:
    options = BuildOptions(target=format, tuning=Tuning(5))
    with pytest.raises(TargetError, match=f"{format} has nothing to tune: .* use --format tvm"):
        options.resolve()


def test_negative() -> None:
    with pytest.raises(TargetError, match="give the number of trials"):
        tuning.check(Tuning(-1), host_device())


def test_another_architecture() -> None:
    name = {"x86_64": "raspberry-pi-5"}.get(host_device().arch, "x86-avx2")
    with pytest.raises(TargetError, match=r"measures on this machine.*build on the device"):
        tuning.check(Tuning(1), load_device(name))


def test_instructions_that_are_not_here(monkeypatch: pytest.MonkeyPatch) -> None:
    device = load_device("x86-avx512-vnni")
    monkeypatch.setattr(tuning, "host_device", lambda: load_device("x86-avx2"))
    with pytest.raises(TargetError, match=r"lacks .*avx512vnni of x86-avx512-vnni"):
        tuning.check(Tuning(1), device)


def test_applying_needs_no_such_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libraries, "versions", lambda: ("0.27.0", "0.1.14"))
    tuning.check(Tuning(0, Path("a")), load_device("raspberry-pi-4"))


def test_packages_that_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libraries, "versions", lambda: ("0.27.0.post1", "0.1.15.post2"))
    with pytest.raises(TargetError, match=r"pip install 'apache-tvm-ffi<0.1.15'"):
        tuning.check(Tuning(1), host_device())
    tuning.check(Tuning(0), host_device())


def test_the_command_line_says_it(tmp_path: Path) -> None:
    result = CliRunner().invoke(cli, ["model.py", "--target", "onnx", "--tune", "3"])
    assert result.exit_code == 2
    assert "onnx has nothing to tune" in result.output


def test_a_database_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match=r"none.jsonl cannot be read: .*--tune N"):
        open_records(tmp_path / "none.jsonl", "1", "t", must_exist=True)


def test_a_disk_that_is_full(monkeypatch: pytest.MonkeyPatch) -> None:
    records = Records(Path("/dev/full"), "1", "t")
    with pytest.raises(OutputError, match="No space left on device; what it holds is kept"):
        records.append(Record("a", "b", 1e-6, None))


def test_a_folder_is_a_database(tmp_path: Path) -> None:
    open_records(tmp_path, "1", "t", must_exist=False).append(Record("a", "b", 2e-6, TRACE))
    found = open_records(tmp_path, "1", "t", must_exist=True)
    assert found.file == tmp_path / "tuning.jsonl"
    assert found.best("a") == Record("a", "b", 2e-6, TRACE)


def test_records_of_another_version_are_not_used(tmp_path: Path) -> None:
    open_records(tmp_path, "1", "t", must_exist=False).append(Record("a", "b", 2e-6, TRACE))
    found = open_records(tmp_path, "2", "t", must_exist=True)
    assert found.best("a") is None
    assert "of another version of TVM or another target than TVM 2 for t" in found.notes[0]


def test_the_default_schedule_may_be_the_best(tmp_path: Path) -> None:
    records = open_records(tmp_path, "1", "t", must_exist=False)
    records.append(Record("a", "b", 2e-6, TRACE))
    records.append(Record("a", "b", 1e-6, None))
    records.append(Record("a", "b", None, []))
    assert records.best("a") is None


_GOOD = {"tvm": "1", "target": "t", "task": "a", "name": "b", "seconds": 1e-6, "trace": None}


@pytest.mark.parametrize(
    "line",
    ["{", "[]", '{"a": 1}', "\xff\x00"]
    + [
        json.dumps(_GOOD | change)
        for change in ({"tvm": 1}, {"seconds": -1.0}, {"seconds": math.nan})
    ],
)
def test_lines_that_are_no_records(tmp_path: Path, line: str) -> None:
    records = open_records(tmp_path, "1", "t", must_exist=False)
    records.append(Record("a", "b", 2e-6, TRACE))
    good = records.file.read_bytes()
    records.file.write_bytes(line.encode("latin-1") + b"\n" + good)
    found = open_records(tmp_path, "1", "t", must_exist=True)
    assert len(found.found) == 1
    assert found.notes == ["line 1 of tuning.jsonl is no record and was not used"]
