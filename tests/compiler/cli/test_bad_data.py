"""Calibration data that qcompile must refuse in one sentence."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

Refuses = Callable[..., str]


def images(count: int = 32) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((count, 3, 8, 8)).astype(np.float32)


def spoiled(value: float) -> np.ndarray:
    data = images()
    data[20, 1, 2, 3] = value
    return data


ARRAYS = {
    "wrong name": ({"image": images()}, ["data.npz has image", "the model's inputs are input"]),
    "one too many": ({"input": images(), "mask": images()}, ["has input, mask"]),
    "none": ({}, ["has nothing; the model's inputs are input"]),
    "wrong size": (
        {"input": images()[..., :7]},
        ["a sample of input is 3x8x7, the model takes 3x8x8"],
    ),
    "wrong rank": (
        {"input": images()[..., 0]},
        ["a sample of input is 3x8, the model takes 3x8x8"],
    ),
    "wrong dtype": (
        {"input": images().astype(np.float64)},
        ["input is float64, the model takes float32"],
    ),
    "text": ({"input": np.array(["a"] * 32)}, ["input has dtype <U1; it must hold numbers"]),
    "nan": ({"input": spoiled(np.nan)}, ["input has NaN or infinite values (batch 0)"]),
    "infinite": ({"input": spoiled(np.inf)}, ["input has NaN or infinite values"]),
    "empty": ({"input": images(0)}, ["data.npz holds no samples"]),
    "scalar": ({"input": np.float32(3)}, ["data.npz holds no samples"]),
    "too few": ({"input": images(7)}, ["data.npz holds 7 sample(s)", "fewer than 8 mean nothing"]),
}


@pytest.mark.parametrize("case", ARRAYS)
def test_arrays(here: Path, refuses: Refuses, case: str) -> None:
    arrays, messages = ARRAYS[case]
    np.savez(here / "data.npz", **arrays)
    text = refuses("tiny.py", "--target", "host", "--calibrate", "data.npz")
    for message in messages:
        assert message in text


def test_safetensors(here: Path, refuses: Refuses) -> None:
    save_file({"image": images()}, here / "data.safetensors")
    arguments = ["tiny.py", "--target", "host", "--calibrate", "data.safetensors"]
    assert "data.safetensors has image; the model's inputs are input" in refuses(*arguments)
    save_file({"input": spoiled(np.nan)}, here / "data.safetensors")
    assert "input has NaN" in refuses(*arguments)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("nowhere.npz", None, "calibration data nowhere.npz does not exist"),
        ("data.csv", b"1,2", "calibration data is .npz, .npy, .safetensors, a folder of .npy"),
        ("data.npz", b"PK\3\4 cut", "data.npz cannot be read"),
        ("data.npy", b"\x93NUMPY", "data.npy cannot be read"),
        ("data.safetensors", b"\xff" * 64, "data.safetensors cannot be read"),
        ("data.npz", b"", "data.npz cannot be read"),
    ],
)
def test_files(
    here: Path, refuses: Refuses, name: str, content: bytes | None, message: str
) -> None:
    if content is not None:
        (here / name).write_bytes(content)
    assert message in refuses("tiny.py", "--target", "host", "--calibrate", name)


@pytest.mark.parametrize("name", ["data.npz", "data.npy", "folder"])
def test_pickled_arrays_are_never_loaded(here: Path, refuses: Refuses, name: str) -> None:
    objects = np.array([Bomb() for _ in range(32)], dtype=object)
    if name == "folder":
        (here / name).mkdir()
        for index in range(9):
            np.save(here / name / f"{index}.npy", objects, allow_pickle=True)
    else:
        write = np.save if name.endswith("npy") else np.savez
        write(here / name, **{"arr" if name.endswith("npy") else "input": objects})
    message = refuses("tiny.py", "--target", "host", "--calibrate", name)
    assert "it holds pickled Python objects, and loading those runs code" in message


class Bomb:
    """Fails the test if it is unpickled."""

    def __reduce__(self) -> tuple[object, ...]:
        return exec, ("raise SystemExit('unpickled')",)


def test_a_folder(here: Path, refuses: Refuses) -> None:
    (here / "folder").mkdir()
    arguments = ["tiny.py", "--target", "host", "--calibrate", "folder"]
    assert refuses(*arguments) == "folder holds no samples"
    for index in range(9):
        np.save(here / "folder" / f"{index}.npy", images()[index, :, : 8 - index % 2])
    assert "folder, 0.npy to 8.npy: all input arrays must have the same shape" in refuses(
        *arguments
    )


def test_no_data(here: Path, refuses: Refuses) -> None:
    text = (here / "tiny.py").read_text().replace("def calibration", "def unused")
    (here / "tiny.py").write_text(text)
    message = refuses("tiny.py", "--target", "host")
    assert "int8 needs calibration data: give --calibrate FILE" in message
    assert "--calibrate random" in message


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ("[]", "calibration() holds no samples"),
        ("{}", "calibration() has nothing; the model's inputs are input"),
        ("3", "calibration() must return arrays by input name or a list of samples, not int"),
        ("[(images(1, 0), 3)] * 9", "a sample of calibration() has 2 value(s)"),
        ("[{'image': images(1, 0)}] * 9", "calibration() has image"),
        ("[images(1, 0)[0]] * 9", "a sample of input is 8x8, the model takes 3x8x8"),
        ("images(32, 0).double()", "input is float64, the model takes float32"),
        ("{'input': [[1], [2, 3]]}", "input is no array of numbers"),
    ],
)
def test_what_calibration_returns(
    here: Path, refuses: Refuses, returned: str, message: str
) -> None:
    text = (here / "tiny.py").read_text()
    (here / "tiny.py").write_text(f"{text}\n\ndef calibration(): return {returned}\n")
    assert message in refuses("tiny.py", "--target", "host")
