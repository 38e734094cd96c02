"""Hugging Face directories with small tokenizers, trained here, of every structure that models use."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qcompile.targets.gguf.container import write_gguf
from qcompile.targets.gguf.tokenizer.corpus import CODE, LANGUAGES
from qcompile.targets.gguf.tokenizer.differences import tokenizer_differences
from qcompile.targets.gguf.tokenizer.fields import tokenizer_fields
from qcompile.targets.gguf.tokenizer.parts import full_pattern
from qcompile.targets.gguf.tokenizer.report import TokenizerReport
from qcompile.targets.gguf.tokenizer.structure import pre_tokenizers

HEAD: dict[str, Any] = {
    "general.architecture": "llama",
    "llama.block_count": 1,
    "llama.context_length": 64,
    "llama.embedding_length": 32,
    "llama.feed_forward_length": 32,
    "llama.attention.head_count": 1,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
}
"""What llama.cpp must know of a model to load its tokenizer alone."""
Json = dict[str, Any]
Make = Callable[..., Path]

CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
LLAMA3 = (
    CONTRACTIONS
    + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace("{1,3}", "")
TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
DEEPSEEK3 = (
    r"\p{N}{1,3}",
    "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
    (
        r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
        r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
)
BYTES: Json = {
    "type": "ByteLevel",
    "add_prefix_space": False,
    "trim_offsets": True,
    "use_regex": True,
}
PLAIN_BYTES: Json = {**BYTES, "use_regex": False}
DIGITS: Json = {"type": "Digits", "individual_digits": True}
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
MARKS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


def split(pattern: str, behavior: str = "Isolated", invert: bool = False) -> Json:
    return {
        "type": "Split",
        "pattern": {"Regex": pattern},
        "behavior": behavior,
        "invert": invert,
    }


def sequence(key: str, *parts: Json) -> Json:
    return {"type": "Sequence", key: list(parts)}


def template(before: str | None, vocab: dict[str, int]) -> Json:
    """The post-processor that puts a token before a text."""
    piece = [{"SpecialToken": {"id": before, "type_id": 0}}] if before else []
    tokens = {before: {"id": before, "ids": [vocab[before]], "tokens": [before]}} if before else {}
    single = [*piece, {"Sequence": {"id": "A", "type_id": 0}}]
    pair = [*single, {"Sequence": {"id": "B", "type_id": 1}}]
    return {"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": tokens}


PRE_TOKENIZERS: dict[str, Json] = {
    "gpt-2": BYTES,
    "smollm": sequence("pretokenizers", DIGITS, BYTES),
    "llama-bpe": sequence("pretokenizers", split(LLAMA3), PLAIN_BYTES),
    "dbrx": sequence("pretokenizers", split(LLAMA3), PLAIN_BYTES),
    "qwen2": sequence("pretokenizers", split(QWEN2), PLAIN_BYTES),
    "tekken": sequence("pretokenizers", split(TEKKEN), PLAIN_BYTES),
    "deepseek-v3": sequence("pretokenizers", *map(split, DEEPSEEK3), PLAIN_BYTES),
    "falcon": sequence(
        "pretokenizers",
        {"type": "Punctuation", "behavior": "Contiguous"},
        BYTES,
        {"type": "Digits", "individual_digits": False},
        split("[0-9][0-9][0-9]"),
    ),
}

UNDERLINES: Json = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
PREPEND: Json = {"type": "Prepend", "prepend": "▁"}
METASPACE: Json = {
    "type": "Metaspace",
    "replacement": "▁",
    "prepend_scheme": "first",
    "split": False,
}
STYLES: dict[str, Json] = {
    "llama2": {"normalizer": sequence("normalizers", PREPEND, UNDERLINES), "pre_tokenizer": None},
    "metaspace": {"normalizer": None, "pre_tokenizer": METASPACE},
    "gemma": {
        "normalizer": UNDERLINES,
        "pre_tokenizer": {
            "type": "Split",
            "pattern": {"String": " "},
            "behavior": "MergedWithPrevious",
            "invert": False,
        },
    },
}


@functools.cache
def byte_level_json(name: str) -> str:
    """Train byte-level BPE with the pre-tokenizer that llama.cpp calls so."""
    from tokenizers import Tokenizer, models, trainers

    row = next(row for row in pre_tokenizers() if row.name == name)
    tokenizer = Tokenizer(models.BPE(ignore_merges=row.ignore_merges))
    state = json.loads(tokenizer.to_str())
    state["pre_tokenizer"] = PRE_TOKENIZERS.get(name) or from_table(name)
    state["decoder"] = BYTES
    state["normalizer"] = {"type": "NFC"} if name == "qwen2" else None
    tokenizer = Tokenizer.from_str(json.dumps(state))
    from tokenizers.pre_tokenizers import ByteLevel

    trainer = trainers.BpeTrainer(
        vocab_size=900,
        special_tokens=list(MARKS),
        initial_alphabet=sorted(ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(training_text(), trainer)
    state = json.loads(tokenizer.to_str())
    first = MARKS[0] if name == "llama-bpe" else None
    state["post_processor"] = template(first, state["model"]["vocab"])
    return json.dumps(state)


@functools.cache
def sentencepiece_json(style: str) -> str:
    """Make what is made from SentencePiece models: each merge that gives a token, in the tokens' order."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace("▁", "always", split=True)
    tokenizer.train_from_iterator(
        training_text(), trainers.BpeTrainer(vocab_size=700, show_progress=False)
    )
    trained = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    long = [text for text, _ in trained if len(text) > 1]
    single = [text for text, _ in trained if len(text) == 1]
    marks = ["<unk>", "<s>", "</s>", "<|user|>", "<|end|>"]
    tokens = [*marks, *(f"<0x{i:02X}>" for i in range(256)), *long, *single]
    vocab = {text: number for number, text in enumerate(tokens)}
    merges = [
        [text[:i], text[i:]]
        for text in long
        for i in range(1, len(text))
        if text[:i] in vocab and text[i:] in vocab
    ]
    strip = [] if style == "gemma" else [{"type": "Strip", "content": " ", "start": 1, "stop": 0}]
    back = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
    fallback = [back, {"type": "ByteFallback"}, {"type": "Fuse"}, *strip]
    state = {
        "version": "1.0",
        "added_tokens": [added(number, text) for number, text in enumerate(marks)],
        **STYLES[style],
        "post_processor": template("<s>", vocab),
        "decoder": sequence("decoders", *fallback),
        "model": {
            "type": "BPE",
            "unk_token": "<unk>",
            "fuse_unk": True,
            "byte_fallback": True,
            "vocab": vocab,
            "merges": merges,
        },
    }
    return json.dumps(state)


def from_table(name: str) -> Json:
    """Write the pre-tokenizer of a row as patterns, the last of them before the bytes."""
    row = next(row for row in pre_tokenizers() if row.name == name)
    return sequence(
        "pretokenizers", *(split(full_pattern(step)) for step in row.steps), PLAIN_BYTES
    )


def added(number: int, text: str, special: bool = True) -> Json:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {"id": number, "content": text, "special": special, **flags}


def training_text() -> list[str]:
    english = "the quick brown fox jumps over the lazy dog and then it's running 1234 times; " * 3
    return [
        *LANGUAGES,
        *CODE,
        english,
        english.title(),
        " ".join(LANGUAGES),
        "a  b   c    d\n\n\n\te",
    ]


def write_directory(folder: Path, tokenizer: Json, **settings: Any) -> Path:
    """Write a Hugging Face directory without weights."""
    marks = [one["content"] for one in tokenizer["added_tokens"] if isinstance(one, dict)]
    known = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>" if "<s>" in marks else MARKS[0],
        "eos_token": "</s>" if "</s>" in marks else MARKS[2],
        "clean_up_tokenization_spaces": False,
    }
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / "tokenizer.json", tokenizer)
    _write(folder / "tokenizer_config.json", {**known, **settings})
    _write(folder / "config.json", {"model_type": "llama", "vocab_size": rows(tokenizer)})
    (folder / "chat_template.jinja").write_text(CHATML, encoding="utf-8")
    return folder


def rows(tokenizer: Json) -> int:
    return len(tokenizer["model"]["vocab"]) + 5


def _write(file: Path, content: Json) -> None:
    file.write_text(json.dumps(content), encoding="utf-8")


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Write the directory of a named tokenizer, changed as asked."""

    def build(name: str, change: Callable[[Json], None] | None = None, **settings: Any) -> Path:
        text = sentencepiece_json(name) if name in STYLES else byte_level_json(name)
        state = json.loads(text)
        if change is not None:
            change(state)
        return write_directory(tmp_path / name, state, **settings)

    return build


@pytest.fixture
def check(tmp_path: Path) -> Callable[..., TokenizerReport]:
    """Compare a directory with a file of its own fields, some of them changed."""

    def compare(
        directory: Path,
        wrong: Json | None = None,
        *,
        types: dict[int, int] | None = None,
        change: Callable[[Json], object] | None = None,
        name: str | None = None,
    ) -> TokenizerReport:
        size = json.loads((directory / "config.json").read_text())["vocab_size"]
        fields = {**tokenizer_fields(directory, size), **(wrong or {})}
        for number, kind in (types or {}).items():
            fields["tokenizer.ggml.token_type"][number] = kind
        if change is not None:
            change(fields)
        file = tmp_path / "vocabulary.gguf"
        named = {"general.name": name} if name else {}
        write_gguf(file, {**HEAD, **named, **fields}, [])
        return tokenizer_differences(directory, file, texts=200)

    return compare
