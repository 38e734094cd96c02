"""Groups of layers whose inputs can be rescaled: which there are, and that factors cancel."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qcompile.compiler.frontend.trace import trace
from qcompile.compiler.ir.graph import Graph
from qcompile.passes.quantization.input_groups import Group, find_groups

ATTENTION = {"input_layernorm": ["q_proj", "k_proj", "v_proj"], "v_proj": ["o_proj"]}
MLP = {"up_proj": ["down_proj"]}
LLAMA = {**ATTENTION, "post_attention_layernorm": ["gate_proj", "up_proj"], **MLP}
GEMMA = {**ATTENTION, "pre_feedforward_layernorm": ["gate_proj", "up_proj"], **MLP}
PHI3 = {
    "input_layernorm": ["qkv_proj"],
    "qkv_proj": ["o_proj"],
    "post_attention_layernorm": ["gate_up_proj"],
    "gate_up_proj": ["down_proj"],
}
GPT2 = {"ln_1": ["c_attn"], "c_attn": ["c_proj"], "ln_2": ["c_fc"]}
HEAD = {"norm": ["lm_head"]}


def names(groups: list[Group]) -> dict[str, list[str]]:
    """Return the modules that make what the modules of each group read."""
    return {_module(g.name): [_module(r.weight) for r in g.readers] for g in groups}


def _module(weight: str) -> str:
    return weight.split(".")[-2]


def rescale(graph: Graph, groups: list[Group]) -> None:
    """Apply random factors of 1/8 to 8 wherever one is possible."""
    for group in groups:
        factors = 8 ** (2 * torch.rand(len(group.free)).double() - 1)
        group.apply(graph, factors.where(group.free, 1.0))


@pytest.mark.parametrize(
    ("family", "expected"),
    [
        ("llama-biases", {**LLAMA, **HEAD}),
        pytest.param("qwen3", {**LLAMA, **HEAD}, marks=pytest.mark.slow),
        pytest.param("gemma3", GEMMA, marks=pytest.mark.slow),
        ("phi3", {**PHI3, **HEAD}),
        ("gpt2", GPT2),
    ],
)
def test_language_models(
    family: str, expected: dict[str, list[str]], checkpoints: ModuleType, tmp_path: Path
) -> None:
    from qcompile.compiler.frontend.huggingface.directory import open_directory
    from qcompile.compiler.frontend.huggingface.language_model import load_graph

    layers = {"n_layer" if family == "gpt2" else "num_hidden_layers": 1}
    changes = {"layer_types": ["full_attention"]} if family == "gemma3" else {}
    folder = checkpoints.random_checkpoint(tmp_path / family, family, **layers, **changes)
    graph = load_graph(open_directory(folder)).graph
    ids = {"input_ids": torch.randint(0, 250, (3, 11))}
    before = graph.run(ids)["logits"]
    groups = find_groups(graph, set(graph.weights))
    assert names(groups) == expected
    stored = set(graph.weights.stored)
    rescale(graph, groups)
    after = graph.run(ids)["logits"]
    assert float((after - before).abs().max()) <= 1e-4 * float(before.abs().max())
    assert set(graph.weights.stored) == stored, "what was in files stays there"


def test_gemma2_computes_attention_step_by_step(checkpoints: ModuleType) -> None:
    from transformers import AutoModelForCausalLM

    config = checkpoints.random_config("gemma2", num_hidden_layers=1, use_cache=False)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    checkpoints._fill(model, 0)

    class Logits(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, ids: Tensor) -> Tensor:
            return self.model(input_ids=ids).logits  # type: ignore[no-any-return]

    graph = trace(Logits(), torch.randint(0, 250, (2, 9)))
    groups = find_groups(graph, set(graph.weights))
    assert names(groups) == GEMMA
    _assert_cancels(graph, groups)


def test_query_heads_share_the_factors_of_their_value_head(
    checkpoints: ModuleType, tmp_path: Path
) -> None:
    from qcompile.compiler.frontend.huggingface.directory import open_directory
    from qcompile.compiler.frontend.huggingface.language_model import load_graph

    folder = checkpoints.random_checkpoint(tmp_path, "qwen2", num_hidden_layers=1)
    graph = load_graph(open_directory(folder)).graph
    groups = find_groups(graph, set(graph.weights))
    assert names(groups) == LLAMA, "the output layer's weight is the embedding's table: no factors"
    group = groups[1]
    assert [part.name.split(".")[-1] for part in group.parts] == ["weight", "bias"]
    value = torch.arange(24).reshape(2, 1, 12)  # 2 heads of 12 channels, each read by 2 query heads
    assert group.readers[0].channels.tolist() == value.expand(2, 2, 12).flatten().tolist()


class Norm(nn.Module):
    """A norm with a weight, and what reads it."""

    def __init__(self, readers: Callable[..., Tensor], *layers: nn.Module) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(8) + 0.5)
        self.layers, self.readers = nn.ModuleList(layers), readers

    def forward(self, x: Tensor) -> Tensor:
        normed = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)
        return self.readers(normed * self.weight, *self.layers)


def groups_of(readers: Callable[..., Tensor], count: int) -> tuple[Graph, list[Group]]:
    layers = [nn.Linear(8, 8) for _ in range(count)]
    graph = trace(Norm(readers, *layers).eval(), torch.randn(2, 3, 8))
    return graph, find_groups(graph, {"layers.0.weight"})


def _assert_cancels(graph: Graph, groups: list[Group]) -> None:
    before = graph.run(graph.inputs)
    rescale(graph, groups)
    for name, value in graph.run(graph.inputs).items():
        limit = 1e-4 * float(before[name].abs().max())
        torch.testing.assert_close(value, before[name], rtol=0, atol=limit)


def test_a_router_that_stays_float_is_rescaled_too() -> None:
    graph, groups = groups_of(lambda h, a, router: a(h) * router(h).softmax(-1), 2)
    assert [[r.weight for r in g.readers] for g in groups] == [
        ["layers.0.weight", "layers.1.weight"]
    ]
    _assert_cancels(graph, groups)


@pytest.mark.parametrize(
    "readers",
    [
        lambda h, a: a(h) + h,
        lambda h, a: a(h) + h.sum(),
        lambda h, a: a(h * h),
        lambda h, a: a(F.silu(h)),
        lambda h, a: a(h.flip(-1)),
        lambda h, a: a(h.int().float()),
        lambda h, a: a(torch.cat([h, h], 1)),
        lambda h, a: a(h.transpose(0, 2).reshape(2, 3, 8)),
        lambda h, a: a(h @ h.transpose(1, 2) @ torch.ones(2, 3, 8)),
    ],
)
def test_readers_that_are_no_layers_leave_no_group(readers: Callable[..., Tensor]) -> None:
    assert groups_of(readers, 1)[1] == []


def test_channels_that_something_else_reads_keep_their_scale() -> None:
    graph, groups = groups_of(lambda h, a: a(h) + h[..., :2].sum(), 1)
    assert [g.free.tolist() for g in groups] == [[False] * 2 + [True] * 6]
    _assert_cancels(graph, groups)


def test_a_layer_before_is_rescaled_through_products_attention_and_relu() -> None:
    def readers(h: Tensor, a: nn.Module, gate: nn.Module, b: nn.Module, c: nn.Module) -> Tensor:
        gated = b(F.silu(gate(h)) * a(h).relu())
        value = gated.reshape(2, 3, 2, 4).transpose(1, 2)
        fixed = torch.ones(2, 2, 3, 4)
        mixed = F.scaled_dot_product_attention(fixed, fixed, value).transpose(1, 2)
        return c(mixed.reshape(2, 3, 8))  # type: ignore[no-any-return]

    layers = [nn.Linear(8, 8) for _ in range(4)]
    graph = trace(Norm(readers, *layers).eval(), torch.randn(2, 3, 8))
    groups = find_groups(graph, {f"layers.{i}.weight" for i in range(4)})
    assert [(g.name, [r.weight for r in g.readers]) for g in groups] == [
        ("weight", ["layers.1.weight", "layers.0.weight"]),
        ("layers.0.weight", ["layers.2.weight"]),
        ("layers.2.weight", ["layers.3.weight"]),
    ]
    _assert_cancels(graph, groups)


def test_a_weight_that_two_layers_share_cannot_be_rescaled() -> None:
    layer = nn.Linear(8, 8)
    graph = trace(Norm(lambda h, a: a(a(h)), layer).eval(), torch.randn(2, 3, 8))
    assert find_groups(graph, {"layers.0.weight"}) == []


@pytest.mark.parametrize(
    ("norm", "constants"),
    [
        (nn.RMSNorm(8), ["0.weight"]),
        (nn.LayerNorm(8), ["0.weight", "0.bias"]),
        (nn.LayerNorm(8, bias=False), ["0.weight"]),
        (nn.LayerNorm(8, elementwise_affine=False), None),
        (nn.LayerNorm((3, 8)), None),
    ],
)
def test_norms(norm: nn.Module, constants: list[str] | None) -> None:
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    graph = trace(nn.Sequential(norm, nn.Linear(8, 8)).eval(), torch.randn(2, 3, 8))
    groups = find_groups(graph, {"1.weight"})
    assert [[p.name for p in g.parts] for g in groups] == ([constants] if constants else [])
    _assert_cancels(graph, groups)
