"""Layers that stay float so that an integer build keeps its limit: as few as any set can be, and told why.

The network is trained; then one channel of a value is moved by 1,000, and the next layer takes that off
again. In float nothing changes. In int8 the other channels are lost where that value is stored: after the
convolution that gives it, and before the one that reads it. GELU lies between, through which nothing can be
moved. Neither layer alone helps, so what must be found is a pair.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch import nn
from torch.nn.functional import cross_entropy, gelu

from qcompile.compiler.cli import cli
from qcompile.compiler.driver import BuildOptions as Options
from qcompile.compiler.driver import Bundle, build, weight_trials
from qcompile.compiler.frontend.load import Source, from_module
from qcompile.compiler.ir.errors import GateError, ModelError
from qcompile.targets.onnx.emitter import OnnxEmitter

CLASSES, MOVED, DROP = 5, 1000.0, 1.0
PAIR = {"second.weight", "third.weight"}
LAYERS = ("first", "second", "third", "fourth", "last")
Images = tuple[torch.Tensor, torch.Tensor]


def data(count: int, seed: int) -> Images:
    """Return noisy patterns and their labels."""
    patterns = torch.randn(CLASSES, 3, 8, 8, generator=torch.Generator().manual_seed(9))
    drawn = torch.Generator().manual_seed(seed)
    labels = torch.randint(CLASSES, (count,), generator=drawn)
    return patterns[labels] * 0.25 + torch.randn(count, 3, 8, 8, generator=drawn), labels


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(3, 8, 3, padding=1, stride=2)
        self.second = nn.Conv2d(8, 8, 3, padding=1)
        self.third = nn.Conv2d(8, 8, 1)
        self.fourth = nn.Conv2d(8, 16, 1)
        self.last = nn.Linear(256, CLASSES)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = self.second(torch.relu(self.first(image)))
        x = torch.cat([x[:, :1], gelu(x[:, 1:])], 1) if self.training else gelu(x)
        x = torch.relu(self.fourth(torch.relu(self.third(x))))
        return self.last(x.flatten(1))


def trained(moved: float) -> Network:
    """Return the network; GELU leaves a channel that lies this far up as it is, as in training."""
    net = Network().train()
    optimizer = torch.optim.Adam(net.parameters(), lr=5e-3)
    for step in range(100):
        images, labels = data(128, 100 + step)
        optimizer.zero_grad()
        cross_entropy(net(images), labels).backward()
        optimizer.step()
    with torch.no_grad():
        net.second.bias[0] += moved
        net.third.bias -= moved * net.third.weight[:, 0, 0, 0]
    return net.eval()


def judge(images: torch.Tensor, labels: torch.Tensor) -> Callable[[Any], dict[str, float]]:
    def evaluate(predict: Callable[[Mapping[str, Any]], Mapping[str, Any]]) -> dict[str, float]:
        logits = next(iter(predict({"image": images.numpy()}).values()))
        return {"top1": 100.0 * float((logits.argmax(1) == labels.numpy()).mean())}

    return evaluate


@pytest.fixture(scope="module")
def source() -> Source:
    shapes = {"image": {0: torch.export.Dim("batch", min=1, max=2048)}}
    example = {"image": data(2, 0)[0]}
    made = from_module(trained(MOVED), example, dynamic_shapes=shapes, name="net")
    return replace(made, evaluate=judge(*data(1024, 2)))


def options(target: str = "onnx", **changes: Any) -> Options:
    given = {"calibrate": {"image": data(64, 1)[0].numpy()}, "precision": "int8", **changes}
    return Options(target=target, **given)


@pytest.fixture(scope="module")
def found(source: Source, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle within the limit, which no test may change."""
    return build(source, tmp_path_factory.mktemp("found") / "a.qc", options(max_drop=DROP))


def drop(source: Source, folder: Path, keep_float: frozenset[str]) -> float:
    """Return how much a build with these layers float loses, whatever that is."""
    try:
        bundle = build(source, folder, options(keep_float=keep_float), force=True)
    except GateError as error:  # sums of values as large as these differ in the engine
        bundle = error.bundle  # type: ignore[assignment]
    figures = bundle.manifest.quality["top1"]
    return float(figures["before"] - figures["after"])


def test_the_smallest_set_is_found(found: Bundle, source: Source, tmp_path: Path) -> None:
    """Every smaller set misses the limit: all of them are built."""
    kept = {row["layer"] for row in found.manifest.plan["float_layers"]}
    names = [f"{name}.weight" for name in LAYERS]
    smaller = itertools.chain.from_iterable(itertools.combinations(names, n) for n in range(2))
    drops = {s: drop(source, tmp_path / "a.qc", frozenset(s)) for s in smaller}

    assert found.passed
    assert kept == PAIR
    assert min(drops.values()) > DROP, drops


def test_what_is_said(found: Bundle) -> None:
    plan = found.manifest.plan
    layers = {row["name"]: row for row in found.manifest.layers}

    assert plan["layers"] == len(LAYERS)
    assert plan["measure"] == "kl"
    assert plan["all_in_integers"]["max-drop"] > DROP
    assert plan["builds"] == 2
    damages = [row["damage"] for row in plan["float_layers"]]
    assert damages == sorted(damages, reverse=True)
    assert min(damages) > 0.01
    for name in PAIR:
        assert layers[name]["weight"] == "int8 sym per_channel(0)"
        assert "computes in float: in integers it would cost" in layers[name]["note"]
    assert all(row["weight_in_codes"] for row in plan["float_layers"])
    said = "2 of 5, 2 with the weight in codes, by the KL divergence that integers would cost: "
    assert said + "second.weight (" in repr(found)
    shown = CliRunner().invoke(cli, ["inspect", str(found.path)]).output
    assert "float layers" in shown
    assert "computes in float: in" in shown


def test_in_the_file_weights_are_codes_and_their_layers_read_floats(found: Bundle) -> None:
    """GELU's output, which codes would ruin, is read as it is; no weight of a layer is float."""
    onnx = pytest.importorskip("onnx")
    graph = onnx.load(found.path / "model.onnx").graph
    writers = {output: node for node in graph.node for output in node.output}
    kinds = {i.name: i.data_type for i in graph.initializer}
    layers = [node for node in graph.node if node.op_type in ("Conv", "Gemm")]
    decoded = [
        [name in writers and writers[name].op_type == "DequantizeLinear" for name in node.input[:2]]
        for node in layers
    ]

    assert sorted(decoded) == [[False, True], *[[True, True]] * 4]
    for node in layers:
        assert kinds[writers[node.input[1]].input[0]] == onnx.TensorProto.INT8


@pytest.fixture
def without_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine that cannot compute in float on codes beside integers."""
    monkeypatch.setattr(OnnxEmitter, "decodes_weights", False)


@pytest.mark.usefixtures("without_decoding")
def test_where_no_codes_can_be_read_it_is_what_ignore_builds(
    source: Source, tmp_path: Path
) -> None:
    found = build(source, tmp_path / "a.qc", options(max_drop=DROP))
    named = build(source, tmp_path / "b.qc", options(keep_float=frozenset(PAIR)))

    layers = {row["name"]: row for row in found.manifest.layers}
    assert named.manifest.files["model.onnx"] == found.manifest.files["model.onnx"]
    assert not any(row["weight_in_codes"] for row in found.manifest.plan["float_layers"])
    for name in PAIR:
        assert layers[name]["weight"] == "fp32"
        assert "stays float: in integers it would cost" in layers[name]["note"]


def test_only_what_may_keep_the_limit_is_written(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All layers in integers miss it by far: that is seen in PyTorch, and one artifact is made."""
    written, emit = [], OnnxEmitter.emit

    def counted(*given: Any) -> Any:
        written.append(given)
        return emit(*given)

    monkeypatch.setattr(OnnxEmitter, "emit", counted)
    bundle = build(source, tmp_path / "a.qc", options(max_drop=DROP))

    assert bundle.passed
    assert len(written) == 1
    assert bundle.manifest.plan["builds"] == 2


def test_the_same_again_byte_for_byte(found: Bundle, source: Source, tmp_path: Path) -> None:
    again = build(source, tmp_path / "a.qc", options(max_drop=DROP))

    assert again.manifest.files == found.manifest.files
    assert again.manifest.plan == found.manifest.plan


def test_nothing_changes_where_all_in_integers_keep_the_limit(
    source: Source, tmp_path: Path
) -> None:
    plain = build(source, tmp_path / "a.qc", options())
    gated = build(source, tmp_path / "b.qc", options(max_drop=50.0))

    assert gated.manifest.files == plain.manifest.files
    assert gated.manifest.plan == {}


def test_a_limit_of_decibels(source: Source, tmp_path: Path) -> None:
    bundle = build(source, tmp_path / "a.qc", options(min_sqnr=25.0, evaluate=False))

    (gate,) = (g for g in bundle.manifest.gates if g["gate"] == "min-sqnr")
    assert gate["measured"] >= 25.0
    assert {row["layer"] for row in bundle.manifest.plan["float_layers"]} == PAIR


def test_what_the_user_ignores_stays_float_besides(source: Source, tmp_path: Path) -> None:
    given = options(max_drop=DROP, keep_float=frozenset({"third.weight"}))
    plan = build(source, tmp_path / "a.qc", given).manifest.plan

    assert [row["layer"] for row in plan["float_layers"]] == ["second.weight"]
    assert plan["layers"] == len(LAYERS) - 1


@pytest.mark.slow
def test_core_ml(source: Source, tmp_path: Path) -> None:
    pytest.importorskip("coremltools")
    given = options("apple-m4", precision="w8a8", max_drop=DROP)
    bundle = build(source, tmp_path / "a.qc", given)
    rows = bundle.manifest.plan["float_layers"]
    layers = {row["name"]: row["weight"] for row in bundle.manifest.layers}

    assert bundle.passed
    assert {row["layer"] for row in rows} <= PAIR
    assert all(row["weight_in_codes"] for row in rows)
    assert all(kind.startswith("int8") for kind in layers.values())


@pytest.mark.slow
def test_tvm(source: Source, tmp_path: Path) -> None:
    """Each library is judged by itself, though it is built in the place of the one before."""
    pytest.importorskip("tvm")
    bundle = build(source, tmp_path / "a.qc", options("tvm", max_drop=DROP))

    assert bundle.passed
    assert {row["layer"] for row in bundle.manifest.plan["float_layers"]} <= PAIR


def test_a_limit_that_no_integer_layer_keeps(source: Source, tmp_path: Path) -> None:
    """All layers in integers are kept as the rejected bundle: nothing is gained by fewer."""
    with pytest.raises(
        GateError, match=r"top1 fell by .*; with layers in float it is missed"
    ) as caught:
        build(source, tmp_path / "a.qc", options(max_drop=-50.0, evaluate=True))

    assert isinstance(caught.value.bundle, Bundle)
    assert caught.value.bundle.manifest.plan == {}
    assert [p.name for p in tmp_path.iterdir()] == ["a.qc.rejected"]


def test_an_artifact_that_is_worse_than_its_trial(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trials that promise too much: what is built then says so, and more layers stay float."""
    measured = weight_trials._drop
    monkeypatch.setattr(weight_trials, "_drop", lambda *given: measured(*given) - 10.0)
    bundle = build(source, tmp_path / "a.qc", options(max_drop=DROP))

    assert bundle.passed
    assert bundle.manifest.plan["builds"] == 3
    assert {row["layer"] for row in bundle.manifest.plan["float_layers"]} == PAIR


def figures(*values: Any) -> Callable[[Any], Any]:
    """Return an ``evaluate`` that gives one of these after the other, then the last."""
    left: Iterator[Any] = itertools.chain(values, itertools.repeat(values[-1]))

    def evaluate(predict: Any) -> Any:
        value = next(left)
        if isinstance(value, Exception):
            raise value
        return value

    return evaluate


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ((80.0, 78.5), "metric 80 and then 78.5 for the same float model: 1.5 apart, more than --max"),
        (({"a": 1.0}, {"b": 1.0}), "must measure the same each time; it gave a, and then b"),
        (({"a": 1.0}, {"a": 1.0}, {"b": 1.0}), "it gave a, and then b"),
        ((80.0, 80.0, 10.0, float("nan")), "must return finite numbers; metric is nan"),
        ((80.0, 80.0, 10.0, float("-inf")), "must return finite numbers; metric is -inf"),
        ((80.0, 80.0, 10.0, {}), "it returned none"),
        ((80.0, 80.0, 10.0, KeyError("x")), "fails: KeyError: 'x'"),
        ((float("inf"),), "must return finite numbers; metric is inf"),
    ],
)  # fmt: skip
def test_figures_that_decide_nothing(
    source: Source, values: tuple[Any, ...], message: str, tmp_path: Path
) -> None:
    """On the float model, on the artifact, or on a trial: one sentence, and nothing is written."""
    given = replace(source, evaluate=figures(*values))
    with pytest.raises(ModelError) as caught:
        build(given, tmp_path / "a.qc", options(max_drop=DROP))

    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not any(tmp_path.iterdir())


def test_noise_within_the_limit_is_no_reason_to_refuse(source: Source, tmp_path: Path) -> None:
    noisy = replace(source, evaluate=figures(80.0, 79.5, 79.8))
    bundle = build(noisy, tmp_path / "a.qc", options(max_drop=DROP))

    assert json.loads(bundle.manifest.to_json())["quality"]["metric"] == {
        "before": 80.0,
        "after": 79.8,
    }
