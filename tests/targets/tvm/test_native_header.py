"""``qcompile.hpp`` as an app includes it: .npy and .npz, CPU features, digests, threads, library alone."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import subprocess
import tomllib
from pathlib import Path

import numpy as np
import pytest

from qcompile.runtime.vectors import read_arrays
from qcompile.targets import device
from qcompile.targets.tvm import libraries

APP = r"""
#include <iostream>
#include "qcompile.hpp"

using qcompile::Tensor;

int main(int, char** values) {
  const std::string task = values[1], first = values[2], second = values[3];
  if (task == "npz") {
    qcompile::write_npz(second, qcompile::read_npz(first));
  } else if (task == "npy") {
    qcompile::write_npy(second, qcompile::read_npy(first));
  } else if (task == "features") {
    for (const auto& [name, has] : qcompile::detail::cpu_features()) {
      std::cout << name << " " << has << "\n";
    }
  } else if (task == "digest") {
    std::cout << qcompile::detail::sha256(qcompile::detail::read_file(first)) << "\n";
  } else if (task == "threads") {
    qcompile::Options options;
    options.threads = std::stoi(second);
    qcompile::Model model(first, options);
    std::cout << qcompile::detail::call("runtime.NumThreads").cast<int64_t>() << "\n";
  } else if (task == "pin") {
    qcompile::Options options;
    options.cpus = {std::stoi(second)};
    qcompile::Model model(first, options);
    cpu_set_t mask;
    sched_getaffinity(0, sizeof(mask), &mask);
    std::cout << CPU_COUNT(&mask) << " " << CPU_ISSET(options.cpus[0], &mask) << "\n";
  } else {
    qcompile::Model one(first), two(first);
    const Tensor image = qcompile::read_npz(second).at("image");
    const std::vector<Tensor> before = one.run({image}), other = two.run({image});
    Tensor changed = image;
    changed.data<float>()[0] += 1;
    one.run({changed});
    const std::vector<Tensor> after = one.run({image});
    const bool same = before[0].bytes == after[0].bytes && before[0].bytes == other[0].bytes;
    std::cout << same << " " << before.size() << " " << before[0].dtype << "\n";
  }
}
"""


@pytest.fixture(scope="module")
def app(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A program against the bundle's own files, with the compiler's warnings as errors."""
    folder = tmp_path_factory.mktemp("app")
    (folder / "app.cpp").write_text(APP)
    lib = tiny / "lib"
    include = libraries.package_folder("tvm_ffi") / "include"
    flags = [
        "-std=c++17",
        "-O1",
        "-Wall",
        "-Wextra",
        "-Wconversion",
        "-Werror",
        "-isystem",
        include,
    ]
    link = [lib / "libtvm_ffi.so", lib / "libtvm_runtime.so", f"-Wl,-rpath,{lib}"]
    sources = [
        "-I",
        tiny / "native",
        folder / "app.cpp",
        "-o",
        folder / "app",
        "-Wl,--no-as-needed",
    ]
    subprocess.run(["g++", *flags, *sources, *link], check=True)
    return folder / "app"


def ask(app: Path, *arguments: str | Path) -> str:
    command = [app, *arguments, *[""] * (3 - len(arguments))]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_npz_round_trip_with_numpy(app: Path, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    dtypes = [
        "bool",
        *(f"f{n}" for n in (2, 4, 8)),
        *(f"{s}{n}" for s in "iu" for n in (1, 2, 4, 8)),
    ]
    arrays = {
        f"{dtype}-{index}": generator.integers(0, 2, shape).astype(dtype)
        for dtype in dtypes
        for index, shape in enumerate([(), (0,), (3,), (2, 0, 5), (2, 3, 4)])
    }
    arrays["Größe"] = np.arange(3)
    arrays["a/b c"] = np.array([np.nan, np.inf, -0.0], np.float32)
    np.savez(tmp_path / "in.npz", **arrays)
    ask(app, "npz", tmp_path / "in.npz", tmp_path / "out.npz")
    found = read_arrays(tmp_path / "out.npz")
    assert found.keys() == arrays.keys()
    for name, expected in arrays.items():
        assert found[name].dtype == expected.dtype
        assert found[name].shape == expected.shape
        assert found[name].tobytes() == expected.tobytes()
    np.savez(tmp_path / "in.npz", **found)
    ask(app, "npz", tmp_path / "in.npz", tmp_path / "again.npz")
    assert (tmp_path / "again.npz").read_bytes() == (tmp_path / "out.npz").read_bytes()


def test_npy_round_trip_with_numpy(app: Path, tmp_path: Path) -> None:
    expected = np.arange(6, dtype=np.int16).reshape(2, 3)
    with (tmp_path / "two.npy").open("wb") as stream:
        np.lib.format.write_array(stream, expected, version=(2, 0))
    np.save(tmp_path / "one.npy", expected)
    for name in ("one.npy", "two.npy"):
        ask(app, "npy", tmp_path / name, tmp_path / "out.npy")
        found = np.load(tmp_path / "out.npy")
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected)


def test_cpu_features_are_those_that_the_kernel_reports(app: Path) -> None:
    found = dict(line.split() for line in ask(app, "features").splitlines())
    text = Path("/proc/cpuinfo").read_text()
    flags = set(next(line for line in text.splitlines() if line.startswith("flags")).split())
    names = {
        **{"sse4.2": "sse4_2", "avxvnni": "avx_vnni", "avx512vnni": "avx512_vnni"},
        **{"avx512bf16": "avx512_bf16"},
        **{f"amx-{n}": f"amx_{n}" for n in ("tile", "int8", "bf16")},
    }
    for name in ("avx", "avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512vl", *names):
        assert found[name] == str(int(names.get(name, name) in flags)), name


def test_every_device_names_features_that_the_program_knows() -> None:
    known = set(re.findall(r'"([a-z0-9.-]+)"', (libraries.SOURCES / "qcompile.hpp").read_text()))
    for file in Path(device.__file__).parent.glob("devices/*.toml"):
        facts = tomllib.loads(file.read_text(encoding="utf-8"))
        if facts.get("arch") in libraries.TRIPLES and facts.get("os", "linux") == "linux":
            assert set(facts["isa"]) <= known, file.name


@pytest.mark.parametrize("size", [0, 1, 55, 56, 63, 64, 65, 119, 120, 1000])
def test_digest(app: Path, tmp_path: Path, size: int) -> None:
    data = bytes(index * 7 % 256 for index in range(size))
    (tmp_path / "f").write_bytes(data)
    assert ask(app, "digest", tmp_path / "f").strip() == hashlib.sha256(data).hexdigest()


def test_threads_and_affinity(app: Path, tiny: Path) -> None:
    assert platform.machine() == "x86_64"
    assert ask(app, "threads", tiny, "1").strip() == "1"
    cpus = sorted(os.sched_getaffinity(0))
    if len(cpus) > 1:
        assert ask(app, "threads", tiny, "2").strip() == "2"
    assert ask(app, "pin", tiny, str(cpus[-1])).strip() == "1 1"


def test_two_models_and_repeated_calls(app: Path, tiny: Path) -> None:
    assert ask(app, "run", tiny, tiny / "vectors" / "inputs.npz").split() == ["1", "2", "float32"]


def test_a_library_without_its_bundle(app: Path, tiny: Path) -> None:
    inputs = tiny / "vectors" / "inputs.npz"
    assert ask(app, "run", tiny / "model.so", inputs).split() == ["1", "2", "float32"]
