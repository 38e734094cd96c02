"""A loaded bundle: what it takes, what it refuses, what it costs."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from qcompile.runtime import Session
from qcompile.runtime.errors import BundleError, InputError, MissingPackageError


def arrays(size: int = 2) -> dict[str, np.ndarray]:
    image = np.linspace(-1, 1, size * 192, dtype=np.float32).reshape(size, 3, 8, 8)
    return {"image": image, "extra": np.ones((size, 4), np.float32)}


@pytest.mark.parametrize("size", [1, 2, 7, 64])
def test_free_axes_take_any_size(session: Session, size: int) -> None:
    assert session.run(arrays(size))["output"].shape == (size, 4)


def test_a_batch_is_its_samples(session: Session) -> None:
    whole = session.run(arrays(8))["output"]
    for index in range(8):
        one = {name: value[index : index + 1] for name, value in arrays(8).items()}
        np.testing.assert_array_equal(session.run(one)["output"][0], whole[index])


def test_the_order_of_inputs_does_not_matter(session: Session) -> None:
    turned = dict(reversed(arrays().items()))
    np.testing.assert_array_equal(session.run(turned)["output"], session.run(arrays())["output"])
    strided = {n: np.asfortranarray(v) for n, v in arrays().items()}
    np.testing.assert_array_equal(session.run(strided)["output"], session.run(arrays())["output"])


EXPECTED = "expected image: float32[batch, 3, 8, 8], extra: float32[batch, 4]"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a.pop("extra"), f"got image: float32[2, 3, 8, 8]; {EXPECTED}"),
        (lambda a: a.clear(), f"got none; {EXPECTED}"),
        (lambda a: a.update(more=a["extra"]), "more: float32[2, 4]; expected"),
        (lambda a: a.update(extra=a["extra"].astype(np.float64)), "extra: float64[2, 4]"),
        (lambda a: a.update(extra=a["extra"].astype(">f4")), "extra: >f4[2, 4]"),
        (lambda a: a.update(extra=a["extra"][0]), "extra: float32[4]"),
        (lambda a: a.update(extra=[[1.0] * 4] * 2), "extra: list, which is no numpy array"),
        (lambda a: a.update(extra=a["extra"][:, :3]), "extra has 3 on axis 1, not 4"),
        (lambda a: a.update(extra=a["extra"][:1]), "extra has 1 on axis 0 (batch), not 2"),
    ],
)
def test_inputs_that_do_not_fit(session: Session, change: Callable, message: str) -> None:
    given = arrays()
    change(given)
    with pytest.raises(InputError) as error:
        session.run(given)
    assert str(error.value).startswith("inputs do not fit the model: ")
    assert message in str(error.value).replace("'", "")


def test_a_missing_engine(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingPackageError, match=r"run: pip install onnxruntime$"):
        Session(built)


def test_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"is no bundle: it has no manifest.json"):
        Session(tmp_path)


def test_the_cost_of_a_call(session: Session) -> None:
    """Over a bare engine; the aim is 50 us, measured are 4 to 5 on an EPYC."""
    given, bare = arrays(1), session._engine._session  # type: ignore[attr-defined]

    def median(call: Callable[[], object]) -> float:
        seconds = []
        for _ in range(1000):
            start = time.perf_counter()
            call()
            seconds.append(time.perf_counter() - start)
        return statistics.median(seconds) * 1e6

    overheads = [
        median(lambda: session.run(given)) - median(lambda: bare.run(None, given)) for _ in range(3)
    ]
    print(f"overhead of Session.run: {min(overheads):.1f} us")
    assert min(overheads) < 50


def test_the_cost_of_importing() -> None:
    program = (
        "import time, sys, numpy; start = time.perf_counter(); import qcompile.runtime;"
        "print(time.perf_counter() - start, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    seconds, has_torch = done.stdout.split()
    print(f"import qcompile.runtime: {1000 * float(seconds):.0f} ms beyond numpy")
    assert has_torch == "False"
    assert float(seconds) < 0.5


@pytest.mark.parametrize(
    ("version", "old"),
    [("1.22.1", True), ("1.9", True), ("1.23", False), ("1.23.0rc1", False), ("2.0", False)],
)
def test_an_engine_older_than_the_bundle_needs_is_refused(
    session: Session, monkeypatch: pytest.MonkeyPatch, version: str, old: bool
) -> None:
    assert session.manifest.engine["minimum"] == "1.23"
    monkeypatch.setattr("onnxruntime.__version__", version)
    if not old:
        assert Session(session.folder).run(arrays())
        return
    with pytest.raises(BundleError, match=rf"1\.23 or later, and this is {version}.*pip install"):
        Session(session.folder)
