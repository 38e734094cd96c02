"""The program of a bundle: equal to PyTorch, exit codes, reports, threads, batches."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from qcompile.runtime.errors import BundleError
from qcompile.runtime.vectors import read_arrays, save_arrays
from qcompile.targets.tvm import native

MakeBundle = Callable[..., Path]


def run(bundle: Path, *options: str) -> tuple[int, str, str]:
    result = subprocess.run(
        [bundle / "run", *options], capture_output=True, text=True, check=False, timeout=120
    )
    return result.returncode, result.stdout, result.stderr


def test_outputs_equal_pytorch(tiny: Path, tmp_path: Path) -> None:
    native.run_program(
        tiny, tiny, "x86_64", tiny / "vectors" / "inputs.npz", tmp_path / "found.npz"
    )
    found = read_arrays(tmp_path / "found.npz")
    expected = read_arrays(tiny / "vectors" / "outputs.npz")
    assert found.keys() == expected.keys()
    assert found["large"].dtype == bool
    assert 0 < found["large"].mean() < 1
    np.testing.assert_array_equal(found["large"], expected["large"])
    np.testing.assert_allclose(found["logits"], expected["logits"], rtol=1e-5, atol=1e-6)


def test_a_program_runs_another_folder(tiny: Path, bundle: Path, tmp_path: Path) -> None:
    (bundle / "run").unlink()
    manifest = (bundle / "manifest.json").read_text()
    (bundle / "manifest.json").write_text(manifest.replace('"logits"', '"scores"'))
    inputs, file = bundle / "vectors" / "inputs.npz", tmp_path / "o.npz"
    native.run_program(tiny, bundle, "x86_64", inputs, file)
    found, expected = read_arrays(file), read_arrays(bundle / "vectors" / "outputs.npz")
    assert found.keys() == {"scores", "large"}
    np.testing.assert_allclose(found["scores"], expected["logits"], rtol=1e-5, atol=1e-6)


def test_a_program_that_dies_without_a_word(bundle: Path) -> None:
    (bundle / "run").write_text("#!/bin/sh\nexit 3\n")
    with pytest.raises(BundleError, match=r"^run failed: exit code 3$"):
        native.run_program(bundle, bundle, "x86_64", bundle / "i.npz", bundle / "o.npz")


def test_checks_the_vectors_and_measures(tiny: Path) -> None:
    code, lines, errors = run(tiny, "--calls", "3")
    assert (code, errors) == (0, "")
    assert [line.split(":")[0] for line in lines.splitlines()] == [
        *("ok  large", "ok  logits", "latency")
    ]
    assert "median" in lines
    assert "p90" in lines


def test_json(tiny: Path) -> None:
    code, text, _ = run(tiny, "--json", "--calls", "5")
    report = json.loads(text)
    assert code == 0
    assert report["passed"] is True
    assert report["outputs"]["large"]["equal"] is True
    assert report["outputs"]["logits"]["largest"] < 1e-5
    assert 0 < report["median_us"] <= report["p90_us"]
    assert json.loads(run(tiny, "--json", "--calls", "0")[1])["median_us"] is None


def test_a_changed_float_fails_by_its_sqnr(bundle: Path) -> None:
    file = bundle / "vectors" / "outputs.npz"
    arrays = read_arrays(file)
    power = float(np.square(arrays["logits"], dtype=np.float64).sum())
    arrays["logits"][0, 0] += np.float32(np.sqrt(power) * 1e-3)
    save_arrays(file, arrays)
    code, text, _ = run(bundle, "--json", "--calls", "0")
    report = json.loads(text)
    assert code == 1
    assert report["outputs"]["large"]["passed"] is True
    assert report["outputs"]["logits"]["passed"] is False
    assert report["outputs"]["logits"]["sqnr_db"] == pytest.approx(60, abs=0.1)


@pytest.mark.parametrize("value", [np.inf, np.nan])
def test_an_infinity_or_nan_must_stand_where_it_stood(bundle: Path, value: float) -> None:
    file = bundle / "vectors" / "outputs.npz"
    arrays = read_arrays(file)
    arrays["logits"][1, 2] = value
    save_arrays(file, arrays)
    code, lines, _ = run(bundle, "--calls", "0")
    assert code == 1
    assert "FAILED  logits" in lines


def test_integers_must_be_equal(bundle: Path) -> None:
    file = bundle / "vectors" / "outputs.npz"
    arrays = read_arrays(file)
    arrays["large"][0, 0] ^= True
    save_arrays(file, arrays)
    code, lines, _ = run(bundle, "--calls", "0")
    assert code == 1
    assert "FAILED  large: differs" in lines
    assert "ok  logits" in lines


def test_another_type_or_shape_is_named(bundle: Path) -> None:
    file = bundle / "vectors" / "outputs.npz"
    arrays = read_arrays(file)
    save_arrays(file, {**arrays, "logits": arrays["logits"].astype(np.float16)})
    code, lines, _ = run(bundle, "--calls", "0")
    assert code == 1
    assert "logits: is float32[2, 5], not float16[2, 5]" in lines


def test_threads_do_not_change_the_result(tiny: Path, tmp_path: Path) -> None:
    files = [tmp_path / "one.npz", tmp_path / "two.npz"]
    for file, options in zip(files, (["--cpus", "0"], ["--threads", "2"]), strict=True):
        code, _, errors = run(tiny, "--output", str(file), "--calls", "1", *options)
        assert (code, errors) == (0, "")
    assert files[0].read_bytes() == files[1].read_bytes()


class Difference(nn.Module):
    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return left - 2 * right


def test_a_free_batch_and_the_order_of_inputs(make_bundle: MakeBundle, tmp_path: Path) -> None:
    inputs = {"right": torch.randn(4, 3), "left": torch.randn(4, 3)}
    folder = make_bundle(tmp_path / "d.qc", Difference(), inputs, ("out",), batch=True)
    code, lines, errors = run(folder, "--calls", "2")
    assert (code, errors) == (0, ""), lines
    arrays = {
        name: np.full((7, 3), value, np.float32) for name, value in (("right", 5), ("left", 1))
    }
    save_arrays(tmp_path / "seven.npz", arrays)
    native.run_program(folder, folder, "x86_64", tmp_path / "seven.npz", tmp_path / "o.npz")
    found = read_arrays(tmp_path / "o.npz")["out"]
    np.testing.assert_array_equal(found, np.full((7, 3), 3.0, np.float32))

    save_arrays(tmp_path / "odd.npz", {**arrays, "left": arrays["left"][:6]})
    with pytest.raises(BundleError, match=r"left must be float32\[batch, 3\], not float32\[6, 3\]"):
        native.run_program(folder, folder, "x86_64", tmp_path / "odd.npz", tmp_path / "o.npz")


def test_the_bundle_holds_what_an_app_needs(tiny: Path) -> None:
    assert sorted(f.name for f in (tiny / "native").iterdir()) == sorted(native.SHIPPED)
    libraries = {f.name for f in (tiny / "lib").iterdir()}
    assert libraries == {"LICENSE", "NOTICE", "libtvm_ffi.so", "libtvm_runtime.so"}
    assert sum(f.stat().st_size for f in tiny.rglob("*") if f.is_file()) < 10_000_000
    assert len((tiny / "native" / "CMakeLists.txt").read_text().splitlines()) <= 12


def test_help(tiny: Path) -> None:
    code, lines, _ = run(tiny, "--help")
    assert code == 0
    assert "usage: run [BUNDLE]" in lines
