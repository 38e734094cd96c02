"""A small trained classifier, its formats, and the KL divergence that plans of it really have."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from qcompile.compiler.frontend.trace import trace
from qcompile.compiler.ir.graph import Graph
from qcompile.compiler.ir.palette import PaletteSpec
from qcompile.compiler.ir.quant import WeightFormat
from qcompile.passes.calibration.samples import Samples
from qcompile.passes.calibration.way_back import WayBack
from qcompile.passes.mixed_precision.cotangents import weighed_labels
from qcompile.passes.mixed_precision.weight_damage import Trials, Tried, WeightDamage
from qcompile.targets.weight_choices import weight_readers

CLASSES = 6
BITS = (1, 2, 3, 4)
FORMATS = tuple(WeightFormat(f"palette-{n}", PaletteSpec(n)) for n in BITS)


def network() -> nn.Sequential:
    """Return six layers with weights, not trained."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.ReLU(),
        nn.Conv2d(8, 16, 1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
        nn.Linear(64, 24), nn.ReLU(),
        nn.Linear(24, CLASSES),
    )  # fmt: skip


def images(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return noisy pictures of six patterns ``[count, 1, 8, 8]``, and which they are."""
    seeded = torch.Generator().manual_seed(seed)
    patterns = torch.randn(CLASSES, 1, 8, 8, generator=torch.Generator().manual_seed(99))
    labels = torch.randint(0, CLASSES, (count,), generator=seeded)
    return patterns[labels] + 1.5 * torch.randn(count, 1, 8, 8, generator=seeded), labels


def trained() -> nn.Sequential:
    """Return the network after some steps."""
    torch.manual_seed(0)
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), 0.005)
    for step in range(150):
        x, labels = images(64, 1000 + step)
        optimizer.zero_grad()
        functional.cross_entropy(model(x), labels).backward()
        optimizer.step()
    return model.eval()


@dataclass(frozen=True)
class Tested:
    """The network with what is known of its formats.

    Args:
        graph: Of it.
        samples: It is judged on.
        trials: By the weight's name.
    """

    graph: Graph
    samples: Samples
    trials: Mapping[str, Trials]
    formats: tuple[WeightFormat, ...] = FORMATS

    @classmethod
    def make(cls, batches: int = 4, rounding: str = "gptq") -> Tested:
        """Train the network and try its formats."""
        x, _ = images(32 * batches, 1)
        graph = trace(trained(), x[:2], {"input": {0: torch.export.Dim("batch", min=1, max=64)}})
        samples = Samples([{"input": part} for part in x.split(32)], len(x), "test")
        found: dict[str, Trials] = {}
        readers = weight_readers(graph)
        formats = dict.fromkeys(readers, FORMATS)
        visitor = WeightDamage(graph, formats, readers, [32] * batches, rounding, found.__setitem__)
        WayBack(graph, samples, weighed_labels).run(visitor)
        return cls(graph, samples, {name: found[name] for name in readers})

    def bytes(self, name: str, kind: str) -> int:
        """Return what a weight takes."""
        shape = tuple(self.graph.weights.peek(name).shape)
        return next(f.spec.storage_bytes(shape) for f in FORMATS if f.name == kind)

    def every_kl(self) -> Iterator[tuple[dict[str, str], float]]:
        """Yield every plan with its measured KL divergence; layers before a change are run once."""
        layers = list(trained())
        x = torch.cat([batch["input"] for batch in self.samples])
        with torch.no_grad():
            exact = nn.Sequential(*layers)(x).log_softmax(-1)
            yield from self._every(layers, x, exact, {}, list(self.trials))

    def _every(
        self,
        layers: list[nn.Module],
        x: Tensor,
        exact: Tensor,
        plan: dict[str, str],
        left: list[str],
    ) -> Iterator[tuple[dict[str, str], float]]:
        while layers and not hasattr(layers[0], "weight"):
            x, layers = layers[0](x), layers[1:]
        if not layers:
            yield plan, float((exact.exp() * (exact - x.log_softmax(-1))).sum(-1).mean())
            return
        for kind, tried in self.trials[left[0]].tried.items():
            after = _run(layers[0], x, tried)
            yield from self._every(layers[1:], after, exact, {**plan, left[0]: kind}, left[1:])


def _run(layer: nn.Module, x: Tensor, tried: Tried) -> Tensor:
    bias = layer.bias if tried.bias is None else tried.bias
    if isinstance(layer, nn.Conv2d):
        padding, groups = layer.padding, layer.groups
        return functional.conv2d(x, tried.weight, bias, padding=padding, groups=groups)
    return functional.linear(x, tried.weight, bias)


@pytest.fixture(scope="session")
def tested() -> Tested:
    """The trained network, which no test may change."""
    return Tested.make()
