"""The ``tokenizer.*`` fields of a GGUF file, from a Hugging Face directory."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from qcompile.targets.gguf.tokenizer.source import TokenizerSource, read_source
from qcompile.targets.gguf.tokenizer.special import special_fields
from qcompile.targets.gguf.tokenizer.structure import recognize
from qcompile.targets.gguf.tokenizer.vocabulary import merges, scores, tokens_and_types


def tokenizer_fields(directory: Path, vocab_size: int) -> dict[str, Any]:
    """Return the fields for a directory's tokenizer, in the order in which llama.cpp's converter writes them.

    Integers are u32, lists of them i32, floats f32.

    Args:
        directory: With ``tokenizer.json`` and the files beside it.
        vocab_size: Rows of the model's embedding; the vocabulary is padded to it.

    Raises:
        ModelError: A file is missing or damaged.
        UnsupportedError: llama.cpp cannot do what this tokenizer does.
    """
    source = read_source(Path(directory))
    structure = recognize(source)
    tokens, types = tokens_and_types(source, structure.model, vocab_size)
    fields: dict[str, Any] = {
        "tokenizer.ggml.model": structure.model,
        "tokenizer.ggml.pre": structure.pre.name if structure.pre else "default",
        "tokenizer.ggml.tokens": tokens,
    }
    if structure.model == "llama":
        fields["tokenizer.ggml.scores"] = scores(source, tokens, types)
    fields["tokenizer.ggml.token_type"] = types
    if structure.model == "gpt2":
        # GGUF has no type for an empty list, and llama.cpp wants the field: one pair that is never met.
        fields["tokenizer.ggml.merges"] = merges(source) or ["Ġ Ġ"]
    fields |= special_fields(source, vocab_size)
    if structure.model == "llama":
        fields["tokenizer.ggml.add_space_prefix"] = structure.space_prefix
    return fields | template_fields(source)


def template_fields(source: TokenizerSource) -> dict[str, Any]:
    """Return the chat templates; names keep letters and digits, as llama.cpp's converter writes them."""
    named = {
        re.sub("[^A-Za-z0-9]", "_", name): text
        for name, text in sorted(source.templates.items())
        if name != "default"
    }
    fields: dict[str, Any] = {
        f"tokenizer.chat_template.{name}": text for name, text in named.items()
    }
    if named:
        fields["tokenizer.chat_templates"] = sorted(named)
    if "default" in source.templates:
        fields["tokenizer.chat_template"] = source.templates["default"]
    return fields
