"""What ``qcompile.toml`` may not say: all of it is told at once, each with its place."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from qcompile.compiler.ir.errors import ProjectError

GOOD = '[models.a]\npath = "a.py"\n[matrix]\ntargets = ["host"]\n'


@pytest.fixture
def wrong(cells_of: Callable[..., object]) -> Callable[[str], list[str]]:
    """Return what is said of a text, a sentence each, without the folder."""

    def check(text: str) -> list[str]:
        with pytest.raises(ProjectError) as caught:
            cells_of(text)
        return [line.rpartition("/")[2].removeprefix("qcompile.toml:") if "there is no /" not in line
                else line for line in str(caught.value).split("\n")]  # fmt: skip

    return check


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("outptu = 'x'", "1:1: there is no key 'outptu'; nearest: output"),
        ("[defaults]\ncalibrat = 'x'", "6:1: [defaults] has no key 'calibrat'; nearest: calibrate"),
        ("[defaults]\nseed = '1'", "6:1: defaults.seed is '1', a text, and must be a whole number"),
        ("[defaults]\nseed = true", "6:1: defaults.seed is True, true or false, and must be a whole number"),
        ("[defaults]\nmin-sqnr = '3'", "6:1: defaults.min-sqnr is '3', a text, and must be a number"),
        ("[defaults]\nmin-sqnr = nan", "6:1: defaults.min-sqnr is nan: input should be a finite number"),
        ("[defaults]\nevaluate = 1",
         "6:1: defaults.evaluate is 1, a whole number, and must be true or false"),
        ("[defaults]\nignore = 'x'", "6:1: defaults.ignore is 'x', a text, and must be a list: ['x']"),
        ("[defaults]\nignore = ['x',\n 3]",
         "7:2: defaults.ignore[1] is 3, a whole number, and must be a text"),
        ("[defaults]\nrounding = 'up'",
         "6:1: defaults.rounding is 'up', and must be 'nearest', 'gptq' or 'adaround'"),
        ("[defaults]\nmax-size = '4XB'",
         "6:1: defaults.max-size: '4XB' is no size; write 4GiB, 500MB or 1024"),
        ("[defaults]\nmax-kl = 0", "6:1: defaults.max-kl is 0: input should be greater than 0"),
        ("[defaults]\ncalibrate = 'x.npz'", "6:1: defaults.calibrate: there is no x.npz"),
        ("[defaults]\ncalibrate = '/x.npz'",
         "x.npz, a path of one machine: write it relative to the file's folder"),
        ("[models.b]", "5:1: [models.b] has no 'path', and needs it"),
        ("[models.'b c']\npath = 'b.py'",
         "5:1: models.b c: 'b c' is no name: letters, digits and . _ + - after a letter or digit"),
        ("[models.b]\npath = 'c.py'", "6:1: models.b.path: there is no c.py"),
        ("[models.b]\npath = 'b.py'\nfiles = ['a.py', 'w']", "7:18: models.b.files[1]: there is no w"),
        ("[models.b]\npath = 3", "6:1: models.b.path is 3, a whole number, and must be a text"),
        ("[models.a]", "5:1: [models.a] is there twice: leave one out, or rename it"),
        ("[targets.host]\n\n[targets.host]", "7:1: [targets.host] is there twice"),
        ("targets = ['onnx']", "5:1: targets is there twice: leave one out, or rename it"),
        ("[models.c", "not TOML: Expected ']' at the end of a table declaration"),
        ("[targets.apple-m2]", "5:1: [targets.apple-m2] is of no target of [matrix]"),
        ("output = 'a.py'", "output: a.py is a file, and must be a folder"),
    ],
)  # fmt: skip
def test_one_thing(wrong: Callable[[str], list[str]], text: str, said: str) -> None:
    lines = wrong(f"{text}\n{GOOD}" if text.startswith("out") else GOOD + text)
    assert len(lines) == 1
    assert said in lines[0]


@pytest.mark.parametrize(
    ("matrix", "said"),
    [
        ("targets = ['host', 'host']", "4:20: matrix.targets names 'host' twice"),
        ("targets = ['host']\nmodels = ['a', 'a']", "5:16: matrix.models names 'a' twice"),
        ("targets = ['host']\nprecisions = ['int8', 'int8']",
         "5:23: matrix.precisions names 'int8' twice"),
        ("targets = ['host']\nmodels = ['aa']", "5:11: there is no [models.aa]; nearest: a"),
        ("targets = ['apple-m22']", "4:12: there is no target 'apple-m22'; nearest: apple-m2;"),
        ("targets = []", "3:1: there is nothing to build: [matrix] needs targets"),
        ("targets = ['host']\nmodels = []", "3:1: there is nothing to build: [matrix] has no models"),
        ("targets = ['host']\nexclude = [{model = 'a'}]",
         "3:1: there is nothing to build: exclude takes every build"),
        ("targets = ['host']\nexclude = [{}]",
         "5:12: matrix.exclude[0] has none of model, target and precision"),
        ("targets = ['host']\nexclude = [{target = 'apple-*'}]",
         "5:12: matrix.exclude[0] fits no build; there are: a-host"),
        ("targets = ['host']\n[[matrix.override]]\nmodel = 'a'\nprecision = 'int4'",
         "there are: a-host; precision names builds here, and precisions are listed in [matrix], "),
        ("targets = ['host']\n[[matrix.override]]\nmodle = 'a'",
         "6:1: [matrix.override[0]] has no key 'modle'; nearest: model"),
        ("targets = ['x']\n[targets.x]\ndevice = 'd.toml'", "6:1: target file 'd.toml' cannot be read"),
    ],
)  # fmt: skip
def test_a_matrix(wrong: Callable[[str], list[str]], matrix: str, said: str) -> None:
    lines = wrong(f'[models.a]\npath = "a.py"\n[matrix]\n{matrix}\n')
    assert len(lines) == 1
    assert said in lines[0]


def test_no_models(wrong: Callable[[str], list[str]]) -> None:
    assert wrong("") == [
        '1:1: there is nothing to build: give each model a table [models.NAME] with path = "FILE"'
    ]


def test_two_builds_of_one_name(wrong: Callable[[str], list[str]]) -> None:
    text = ("[models.a]\npath = 'a.py'\n[models.a-x]\npath = 'b.py'\n[targets.x-y]\ndevice = 'host'\n"
            "[targets.y]\ndevice = 'host'\n[matrix]\ntargets = ['x-y', 'y']\n")  # fmt: skip
    assert wrong(text) == ["9:1: 2 builds have the name 'a-x-y': rename a model or target"]


def test_all_at_once_in_order(wrong: Callable[[str], list[str]]) -> None:
    text = (
        "[models.a]\npath = 'c.py'\nseq-len = 1\n[models.b]\nfiles = 3\n[matrix]\n"
        "targets = ['hosst', 'host', 'host']\nprecision = 3\n"
    )
    assert [line.split(": ")[0] for line in wrong(text)] == [
        "2:1", "3:1", "4:1", "5:1", "7:12", "7:29", "8:1",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["build"],
            "there is no qcompile.toml: write one with `qcompile init`, name it with -c, or give",
        ),
        (["check", "-c", "x.toml"], "there is no x.toml"),
        (["check", "-c", "."], ". is a folder; give the file in it, as -c qcompile.toml"),
        (
            ["build", "-t", "host"],
            "--target is for a single MODEL: give one, or write it into qcompile.toml",
        ),
        (["build", "--dry-run", "-p", "int8"], "--dry-run, --precision is for a single MODEL"),
        (["tiny.py", "--jobs", "2", "--locked"], "--jobs, --locked is for builds without MODEL"),
        (["tiny.py"], "Missing option '-t' / '--target' / '--device'"),
        (["build", "--jobs", "0"], "Invalid value for '--jobs'"),
    ],
)
def test_the_command_line(
    here: Path, refuses: Callable[..., str], arguments: list[str], said: str
) -> None:
    assert said in refuses(*arguments)


def test_every_line_is_an_error_of_its_own(here: Path, run: Callable[..., Result]) -> None:
    (here / "qcompile.toml").write_text(GOOD.replace("host", "hosst"))
    result = run("build")
    assert result.exit_code == 2
    lines = result.stderr.splitlines()
    assert len(lines) == 2
    assert all(line.startswith("error: qcompile.toml:") for line in lines)


@pytest.mark.parametrize("data", [b"\xff\xfe", b"a = 1\x00", b"#" * (1 << 20) + b"\n"])
def test_no_text(here: Path, refuses: Callable[..., str], data: bytes) -> None:
    (here / "qcompile.toml").write_bytes(data)
    assert refuses("check").startswith("qcompile.toml")


def test_only(here: Path, refuses: Callable[..., str]) -> None:
    (here / "qcompile.toml").write_text(GOOD.replace("a.py", "tiny.py"))
    assert refuses("build", "--only", "hos") == "--only hos names no build; nearest: host"


@pytest.mark.parametrize("text", ["{", "[]", '{"schema": 1}', '{"schema": 2, "builds": {}}',
                                  '{"schema": 1, "builds": {"a": {"bundle": "x"}}}'])  # fmt: skip
def test_a_lock_that_is_none(here: Path, refuses: Callable[..., str], text: str) -> None:
    (here / "qcompile.toml").write_text(GOOD.replace("a.py", "tiny.py"))
    (here / "qcompile.lock").write_text(text)
    said = refuses("build")
    assert said.startswith("qcompile.lock ")
    assert said.endswith("build without --locked, or delete it, to have it written anew")
