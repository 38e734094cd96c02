"""A bundle whose artifact is a language model in GGUF."""

from __future__ import annotations

import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from qcompile.runtime import generation
from qcompile.runtime.chat import ChatTemplate
from qcompile.runtime.errors import BundleError, InputError, MissingPackageError
from qcompile.runtime.generation import generate, prompt_tokens
from qcompile.runtime.llama.library import library
from qcompile.runtime.llama.model import Model
from qcompile.runtime.manifest import FileInfo, Manifest, TensorInfo, file_sha256
from qcompile.runtime.session import Session
from qcompile.runtime.sessions.llama_cpp import Engine, open_engine


@pytest.fixture
def bundle(language_gguf: Path, tmp_path: Path) -> Path:
    artifact = Path(shutil.copy(language_gguf, tmp_path / "model.gguf"))
    made = Manifest(
        name="lm",
        target="gguf",
        format="gguf",
        precision="f32",
        artifact="model.gguf",
        engine={"name": "llama_cpp", "minimum": "0.3", "options": {"kv_type": "f32"}},
        inputs=(TensorInfo("input_ids", "int64", ("sequences", "tokens")),),
        outputs=(TensorInfo("logits", "float32", ("sequences", "tokens", 4096)),),
        files={"model.gguf": FileInfo(artifact.stat().st_size, file_sha256(artifact))},
    )
    _write(tmp_path, made)
    return tmp_path


def _write(folder: Path, made: Manifest) -> None:
    (folder / "manifest.json").write_text(made.to_json())


def test_a_session_runs_it(bundle: Path) -> None:
    ids = np.random.default_rng(0).integers(0, 4096, (2, 5))
    session = Session(bundle)
    found = session.run({"input_ids": ids})["logits"]
    assert found.shape == (2, 5, 4096)
    expected = Engine(bundle / "model.gguf", {"kv_type": "f32"}, 1).run([ids])[0]
    np.testing.assert_array_equal(found, expected)
    with pytest.raises(InputError, match="token ids must be 0 to 4095"):
        session.run({"input_ids": ids + 4096})


def test_its_options_hold_for_text_too(bundle: Path) -> None:
    assert open_engine(bundle).options.kv_type == "f32"
    assert open_engine(bundle / "model.gguf").options.kv_type == "f16"
    made = generate(bundle, "The sea", chat=False, max_tokens=5)
    assert "".join(made) == "".join(
        generate(bundle / "model.gguf", "The sea", chat=False, max_tokens=5)
    )


def test_the_package_to_update_is_named(bundle: Path) -> None:
    made = Session(bundle).manifest
    _write(bundle, replace(made, engine={**made.engine, "minimum": "99"}))
    with pytest.raises(BundleError, match="pip install --upgrade 'llama-cpp-python>=99'"):
        Session(bundle)


def test_the_package_to_install_is_named(
    language_gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library.cache_clear()
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    try:
        with pytest.raises(MissingPackageError, match=r"pip install 'qcompile\[gguf\]'"):
            Model(language_gguf)
    finally:
        library.cache_clear()


def test_the_beginning_is_not_doubled(
    language_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the model wants it and its template writes it as well."""
    data = language_gguf.read_bytes()
    key = b"tokenizer.ggml.add_bos_token" + (7).to_bytes(4, "little")
    assert data.count(key + b"\0") == 1
    file = tmp_path / "begins.gguf"
    file.write_bytes(data.replace(key + b"\0", key + b"\1"))
    plain, model = Model(language_gguf), Model(file)
    assert (plain.beginning, model.beginning, model.ending) == (None, 0, 2)
    text = plain.tokenize("The sea", special=False)
    assert model.tokenize("The sea", special=False) == [0, *text]
    assert model.tokenize("The sea", special=False, begin=False) == text
    for source in ("{{ bos_token }}{{ messages[0].content }}", "{{ messages[0].content }}"):
        template = ChatTemplate(source, model.word("bos"), model.word("eos"))
        monkeypatch.setattr(generation, "chat_template", lambda _, t=template: t)
        assert prompt_tokens(model, "The sea") == [0, *text]
        assert prompt_tokens(model, "The sea", chat=False) == [0, *text]


def test_special_words_are_read_or_not(language_gguf: Path) -> None:
    model = Model(language_gguf)
    assert model.tokenize("<|im_end|>", special=True) == [2]
    spelled = model.tokenize("<|im_end|>", special=False)
    assert len(spelled) > 1
    assert b"".join(map(model.piece, spelled)) == b"<|im_end|>"
    assert model.piece(2) == b""
    assert model.piece(2, special=True) == b"<|im_end|>"
    assert model.metadata("general.architecture") == "llama"
    assert model.metadata("no.such.key") is None
