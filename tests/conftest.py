"""Golden files, seeds, and the checks that every pass of ``passes/graph`` must stand."""

from __future__ import annotations

import gc
import importlib.util
import json
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from hypothesis import settings
from safetensors.torch import load_file
from torch import nn

from qcompile.compiler.ir.graph import Graph
from qcompile.passes.base import Pass, run

ROOT = Path(__file__).parent.parent

torch.set_num_threads(1)
signal.signal(signal.SIGINT, signal.default_int_handler)  # shells ignore it for what runs behind
settings.register_profile("qcompile", deadline=None, derandomize=True, database=None)
settings.load_profile("qcompile")


def pytest_collection_finish() -> None:
    """Spare the garbage collector what was imported: coremltools runs it at every conversion."""
    gc.freeze()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--update-golden", action="store_true", help="rewrite tests/golden/ with what was computed"
    )


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session", autouse=True)
def _temporary(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Give this process a temporary folder, and remove it.

    coremltools leaves packages there until Python ends, which pytest-xdist's workers do too abruptly.
    """
    folder = tmp_path_factory.mktemp("temporary")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(folder))
        yield
    shutil.rmtree(folder)


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """Compare a text with ``tests/golden/NAME``; with ``--update-golden`` write it there."""

    def compare(name: str, text: str) -> None:
        file = ROOT / "tests" / "golden" / name
        if request.config.getoption("--update-golden"):
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8")
        if not file.is_file():
            pytest.fail(
                f"{file} does not exist: make it with "
                f"`pytest --update-golden '{request.node.nodeid}'`, read it, and commit it"
            )
        assert text == file.read_text(encoding="utf-8"), (
            f"differs from {file}; if that is meant, run with --update-golden and read the diff"
        )

    return compare


@pytest.fixture(scope="session")
def shared() -> Path:
    """Models and data beside the checkout, which are in no repository."""
    folder = ROOT.parent / "shared"
    if not folder.is_dir():
        pytest.skip(f"{folder} is missing: it holds the models and data of the larger tests")
    return folder


@pytest.fixture
def rewrite() -> Callable[[Graph, Pass], int]:
    """Run a pass, which must keep the function and have nothing left to do; return its count."""

    def check(graph: Graph, current: Pass) -> int:
        expected = graph.run(graph.inputs)
        rewrites = run(graph, [current])[0].rewrites
        torch.testing.assert_close(graph.run(graph.inputs), expected)
        assert run(graph, [current])[0].rewrites == 0, "the second run must find nothing"
        return rewrites

    return check


@pytest.fixture
def quarters() -> Callable[[nn.Module], nn.Module]:
    """Fill a module with multiples of 1/4: digests in golden files are the same everywhere."""

    def fill(module: nn.Module) -> nn.Module:
        for index, (name, tensor) in enumerate(module.state_dict().items()):
            if tensor.is_floating_point():
                values = (torch.arange(tensor.numel()) * 7 + index) % 11 - 5
                values = values.abs() + 1 if name.endswith("running_var") else values
                tensor.copy_((values / 4).reshape(tensor.shape))
        return module.eval()

    return fill


def helper(file: str) -> ModuleType:
    """Import a module of helpers that lies beside the tests that use it most."""
    path = ROOT / "tests" / file
    name = f"helper_{path.stem}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


@pytest.fixture(scope="session")
def stored() -> ModuleType:
    """Weights in codes and tables in Core ML packages: ``tests/targets/coreml/stored_weights.py``."""
    return helper("targets/coreml/stored_weights.py")


@pytest.fixture(scope="session")
def streams() -> ModuleType:
    """Nets with scaled channels, equalized: ``tests/passes/graph/streams.py``."""
    return helper("passes/graph/streams.py")


@pytest.fixture(scope="session")
def checkpoints() -> ModuleType:
    """Small random language models of every family: ``tests/targets/gguf/checkpoints.py``."""
    pytest.importorskip("transformers")
    return helper("targets/gguf/checkpoints.py")


@pytest.fixture(scope="session")
def llama_cpp() -> ModuleType:
    """llama.cpp's own functions: ``tests/targets/gguf/engine.py``."""
    pytest.importorskip("llama_cpp")
    return helper("targets/gguf/engine.py")


@pytest.fixture(scope="session")
def language_model(shared: Path) -> Path:
    """A Hugging Face directory: a Llama of 7 million parameters, trained on English books."""
    return shared / "models" / "lm"


@pytest.fixture(scope="session")
def tiny_llama(checkpoints: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of one layer with tied embeddings; its down projection is too narrow for K-quants."""
    sizes = {"hidden_size": 256, "intermediate_size": 288, "num_hidden_layers": 1}
    folder = tmp_path_factory.mktemp("tiny") / "tiny"
    found: Path = checkpoints.random_checkpoint(folder, "llama", tie_word_embeddings=True, **sizes)
    return found


@pytest.fixture(scope="session")
def tiny_source(tiny_llama: Path) -> Any:
    """The same, loaded: tests must not change it."""
    from qcompile.compiler.frontend.load import load

    return load(str(tiny_llama))


@pytest.fixture(scope="session")
def language_gguf(language_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model as GGUF in float32, written by the ``gguf`` package."""
    pytest.importorskip("llama_cpp")
    gguf = pytest.importorskip("gguf")
    file = tmp_path_factory.mktemp("gguf") / "lm.gguf"
    writer = gguf.GGUFWriter(file, "llama")
    config = json.loads((language_model / "config.json").read_text())
    _write_sizes(writer, config)
    _write_words(gguf, writer, language_model)
    for name, value in load_file(language_model / "model.safetensors").items():
        layer, _, part = name.removeprefix("model.").removeprefix("layers.").partition(".")
        weights = value.float()
        if part.startswith(("self_attn.q", "self_attn.k")):
            heads = config["num_key_value_heads" if "k_proj" in part else "num_attention_heads"]
            split = weights.reshape(heads, 2, config["head_dim"] // 2, -1)
            weights = split.swapaxes(1, 2).reshape(weights.shape)
        own = f"blk.{layer}.{_GGUF_NAMES[part]}" if part in _GGUF_NAMES else _GGUF_NAMES[name]
        writer.add_tensor(own, weights.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


_GGUF_NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "input_layernorm.weight": "attn_norm.weight",
    "post_attention_layernorm.weight": "ffn_norm.weight",
    **{f"self_attn.{n}_proj.weight": f"attn_{n}.weight" for n in "qkv"},
    "self_attn.o_proj.weight": "attn_output.weight",
    **{f"mlp.{n}_proj.weight": f"ffn_{n}.weight" for n in ("gate", "up", "down")},
}


def _write_sizes(writer: Any, config: Any) -> None:
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_vocab_size(config["vocab_size"])


def _write_words(gguf: Any, writer: Any, folder: Path) -> None:
    data = json.loads((folder / "tokenizer.json").read_text())
    control = {token["id"] for token in data["added_tokens"]}
    words = sorted(data["model"]["vocab"].items(), key=lambda item: item[1])
    types = [gguf.TokenType.CONTROL if i in control else gguf.TokenType.NORMAL for _, i in words]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([word for word, _ in words])
    writer.add_token_types(types)
    writer.add_token_merges([" ".join(pair) for pair in data["model"]["merges"]])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(False)
    writer.add_chat_template((folder / "chat_template.jinja").read_text())
