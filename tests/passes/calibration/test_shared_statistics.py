"""Statistics that another build has measured of an equal graph are the same, in the same order."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from qcompile.compiler.frontend.trace import trace
from qcompile.compiler.ir.ops import aten
from qcompile.compiler.stages.cache import StageCache
from qcompile.passes.calibration import channel_statistics as module
from qcompile.passes.calibration.channel_statistics import channel_statistics
from qcompile.passes.calibration.samples import Samples


def test_they_are_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.ReLU())
    cache, found = StageCache(tmp_path), []
    batches = [{"input": torch.randn(2, 3, 8, 8)} for _ in range(3)]
    samples, others = Samples(batches, 6, "some"), Samples(batches[:2], 4, "others")
    for given, stages in ((samples, None), (samples, cache), (samples, cache), (others, cache)):
        graph = trace(layers.eval(), {"input": torch.randn(1, 3, 8, 8)})
        nodes = graph.calls(aten.conv2d.default, aten.relu.default)
        axes = dict.fromkeys(reversed(nodes), 1)
        if found and given is samples and stages is cache and cache.misses:
            monkeypatch.setattr(module, "_seen", None)  # it is not measured again
        rows = channel_statistics(graph, given, axes, *([] if stages is None else [stages]))
        monkeypatch.undo()
        found.append([(node.name, vars(seen)) for node, seen in rows.items()])
    assert (len(cache.hits), len(cache.misses)) == (1, 2)
    alone, cold, warm, elsewhere = found
    for shared in (cold, warm):
        assert [name for name, _ in shared] == [name for name, _ in alone]
        for (_, one), (_, other) in zip(alone, shared, strict=True):
            assert all(torch.equal(one[part], other[part]) for part in one)
    assert not torch.equal(elsewhere[0][1]["power"], alone[0][1]["power"])
