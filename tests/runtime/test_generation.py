"""Generated text against transformers' own, and what must hold for any text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qcompile.runtime.__main__ import main
from qcompile.runtime.errors import BundleError, InputError
from qcompile.runtime.generation import Generation, generate, prompt_tokens
from qcompile.runtime.sampling import Sampler
from qcompile.runtime.sessions.llama_cpp import Engine

PROMPT = "It was a dark night, and the captain"


@pytest.fixture(scope="module")
def engine(language_gguf: Path) -> Engine:
    return Engine(language_gguf, {"kv_type": "f32"}, threads=1)


@pytest.fixture(scope="module")
def reference(language_model: Path) -> Any:
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(language_model, dtype=torch.float32)
    return model, transformers.AutoTokenizer.from_pretrained(language_model)


def _answer(reference: Any, ids: list[int], count: int) -> str:
    model, tokenizer = reference
    given = torch.tensor([ids])
    with torch.no_grad():
        made = model.generate(
            given, attention_mask=torch.ones_like(given), max_new_tokens=count, do_sample=False
        )
    return str(tokenizer.decode(made[0, len(ids) :], skip_special_tokens=True))


def test_a_text_goes_on_as_in_transformers(engine: Engine, reference: Any) -> None:
    _, tokenizer = reference
    made = generate(engine, PROMPT, chat=False, max_tokens=24)
    assert "".join(made) == _answer(reference, tokenizer(PROMPT).input_ids, 24)
    told = made.statistics
    assert (told.tokens, told.finish) == (24, "length")
    assert told.prompt_tokens == len(tokenizer(PROMPT).input_ids)
    assert told.tokens_per_second > 0


def test_a_chat_is_answered_as_in_transformers(engine: Engine, reference: Any) -> None:
    _, tokenizer = reference
    talk = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": PROMPT}]
    for messages, prompt in ((talk, talk), (talk[1:], PROMPT)):
        ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
        assert prompt_tokens(engine.model, prompt) == ids
        made = "".join(generate(engine, prompt, max_tokens=12))
        assert made == _answer(reference, ids, 12)


def test_seeds(engine: Engine) -> None:
    def made(**options: Any) -> str:
        return "".join(generate(engine, PROMPT, chat=False, max_tokens=12, **options))

    assert made(temperature=1, seed=3) == made(temperature=1, seed=3)
    assert len({made(temperature=1, seed=seed) for seed in range(4)}) == 4
    assert made(temperature=1, top_k=1, seed=5) == made()


def test_the_context_ends_it(engine: Engine) -> None:
    tokens = [50] * 1020
    made = Generation(engine, tokens, Sampler(0, 0, 1, 0), 99)
    assert len(list(made)) <= 5
    assert (made.statistics.tokens, made.statistics.finish) == (5, "context")


def test_all_ending_tokens_end_it(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The end of a text and the end of a turn: transformers knows one of them."""
    words = {engine.model.piece(t, special=True): engine.model.ends(t) for t in range(8)}
    assert words[b"<|im_end|>"]
    assert words[b"<|endoftext|>"]
    assert not words[b"<|im_start|>"]
    whole = "".join(generate(engine, PROMPT, chat=False, max_tokens=9))
    last = engine.model.tokenize(whole, special=False)[4]
    monkeypatch.setattr(engine.model, "ends", lambda token: token == last)
    made = generate(engine, PROMPT, chat=False, max_tokens=9)
    assert whole.startswith("".join(made))
    assert made.statistics.finish == "stop"
    assert made.statistics.tokens <= 4


class _Bytes:
    """A model whose tokens are indices of pieces."""

    def __init__(self, pieces: list[bytes]) -> None:
        self.piece = pieces.__getitem__


def _stream(pieces: list[bytes], stop: tuple[str, ...]) -> list[str]:
    made = Generation.__new__(Generation)
    made._stop = stop
    made.statistics = type("S", (), {"finish": ""})()
    return list(made._text(iter(range(len(pieces))), _Bytes(pieces)))  # type: ignore[arg-type]


@settings(max_examples=15)
@given(st.text(st.sampled_from("ab√Ü🎈\u200d")), st.lists(st.integers(1, 3), min_size=1), st.data())
def test_pieces_are_whole_characters(text: str, sizes: list[int], data: st.DataObject) -> None:
    stop = tuple(data.draw(st.lists(st.text("ab🎈", min_size=1, max_size=3), max_size=1)))
    raw, pieces = text.encode(), []
    while raw:
        size = sizes[len(pieces) % len(sizes)]
        pieces.append(raw[:size])
        raw = raw[size:]
    found = _stream(pieces, stop)
    ends = [text.index(word) for word in stop if word in text]
    expected = text[: min(ends)] if ends else text
    assert "".join(found) == expected
    assert all(found)


def test_broken_bytes_are_replaced() -> None:
    assert "".join(_stream([b"a\xff", b"\xe2\x88"], ())) == "a\N{REPLACEMENT CHARACTER}" + "\ufffd"


def test_sampling_follows_the_distribution() -> None:
    """Shares of 4000 draws are within 4 standard deviations of softmax(logits / T)."""
    logits = np.array([0.0, 1.0, -1.0, 2.0, 1.0], np.float32)
    for temperature, top_k, top_p, kept in ((0.7, 0, 1.0, 5), (1.0, 2, 1.0, 2), (1.0, 0, 0.7, 2)):
        sampler = Sampler(temperature, top_k, top_p, 0)
        shares = np.exp(logits.astype(np.float64) / temperature)
        shares[np.argsort(-logits, kind="stable")[kept:]] = 0
        shares /= shares.sum()
        counts = np.bincount([sampler(logits) for _ in range(4000)], minlength=5)
        deviation = np.sqrt(4000 * shares * (1 - shares)) + 1e-9
        assert (np.abs(counts - 4000 * shares) <= 4 * deviation).all(), (temperature, top_k, top_p)


def test_wrong_settings(engine: Engine, tmp_path: Path) -> None:
    message = (
        "temperature -1 is not 0 or more; top_k -2 is not 0 or more; top_p 0 is not above 0 and at "
        "most 1; seed -1 is not 0 or more"
    )
    with pytest.raises(InputError, match=message):
        generate(engine, PROMPT, temperature=-1, top_k=-2, top_p=0, seed=-1)
    with pytest.raises(InputError, match="max_tokens 0 is below 1"):
        generate(engine, PROMPT, max_tokens=0)
    with pytest.raises(InputError, match="message 2 has no role or no content that is text"):
        generate(engine, [{"role": "user", "content": "a"}, {"role": "user"}])
    with pytest.raises(InputError, match="the prompt has no tokens"):
        generate(engine, "", chat=False)
    with pytest.raises(InputError, match=r"has 2000 tokens, and the model's context is 1024"):
        generate(engine, " the" * 2000, chat=False)
    with pytest.raises(InputError, match="the text is no Unicode text"):
        generate(engine, "\udcff", chat=False)
    with pytest.raises(BundleError, match=r"is no bundle and no \.gguf file"):
        generate(tmp_path / "x.onnx", "a")


def test_run_pyz_answers(
    language_gguf: Path, engine: Engine, capsys: pytest.CaptureFixture
) -> None:
    asked = ["--bundle", str(language_gguf), "--prompt", "Who?", "--max-tokens", "9"]
    assert main(asked) == 0
    assert capsys.readouterr().out == "".join(generate(engine, "Who?", max_tokens=9)) + "\n"
