"""Which ids begin and end a text, and which stop an answer.

Three files of a Hugging Face directory name stop tokens, and they often differ; all of them count. A GGUF
file has room for three ids (eos, eot, eom); llama.cpp adds those that it knows by their text. What is put
before and after a text is what the post-processor of ``tokenizer.json`` puts there: transformers 5 drops
``add_bos_token`` and ``add_eos_token`` of the settings where there is a ``tokenizer.json``. Sources:
llama.cpp, ``src/llama-vocab.cpp``; transformers 5.23, ``tokenization_utils_base.py``.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from qcompile.compiler.ir.errors import UnsupportedError
from qcompile.targets.gguf.tokenizer.parts import describe, parts_of
from qcompile.targets.gguf.tokenizer.source import TokenizerSource, token_text

# Texts that llama.cpp takes for the end of an answer, whatever the file says, since 2024.
KNOWN_STOPS = frozenset(
    {"<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "<|eom_id|>", "<EOT>"}
)


@dataclass(frozen=True)
class SpecialIds:
    """Ids with a meaning; None where the source has none.

    Args:
        bos: Begins a text.
        eos: Ends a text.
        unknown: Stands for what the vocabulary lacks.
        padding: Fills a batch.
        stops: Every id that ends an answer, ``eos`` among them, in the order of the files.
        add_bos: Is ``bos`` put before every text.
        add_eos: Is ``eos`` put after every text.
    """

    bos: int | None
    eos: int | None
    unknown: int | None
    padding: int | None
    stops: tuple[int, ...]
    add_bos: bool
    add_eos: bool


def special_ids(source: TokenizerSource, vocab_size: int) -> SpecialIds:
    """Return the special ids of a source.

    Raises:
        UnsupportedError: What the post-processor adds cannot be said in a GGUF file, or nothing ends a text.
    """
    before, after = _template(source)
    bos = before if before is not None else _id(source, "bos")
    eos = after if after is not None else _id(source, "eos")
    stops = _stops(source, eos, vocab_size)
    if not stops:
        raise UnsupportedError(
            f"nothing in {source.directory} says which token ends a text, and llama.cpp would take id 11 or "
            f"2 for it; put eos_token into tokenizer_config.json or eos_token_id into generation_config.json"
        )
    return SpecialIds(
        bos=bos,
        eos=stops[0],
        unknown=_id(source, "unk"),
        padding=_id(source, "pad"),
        stops=stops,
        add_bos=before is not None,
        add_eos=after is not None,
    )


def special_fields(source: TokenizerSource, vocab_size: int) -> dict[str, Any]:
    """Return the fields for special ids and for what is added to a text.

    Raises:
        UnsupportedError: As ``special_ids``; or more tokens end an answer than a file can say.
    """
    ids = special_ids(source, vocab_size)
    numbers = {
        "bos": ids.bos,
        "eos": ids.eos,
        **_other_stops(source, ids),
        "unknown": ids.unknown,
        "padding": ids.padding,
    }
    fields: dict[str, Any] = {
        f"tokenizer.ggml.{name}_token_id": number
        for name, number in numbers.items()
        if number is not None and number < vocab_size
    }
    # Written always: without them llama.cpp adds what it thinks usual for the pre-tokenizer.
    fields["tokenizer.ggml.add_bos_token"] = ids.add_bos
    fields["tokenizer.ggml.add_eos_token"] = ids.add_eos
    return fields


def id_of(source: TokenizerSource, text: str | None) -> int | None:
    """Return the id of a token's text."""
    added = {token.text: number for number, token in source.added.items()}
    if text is None or text in added:
        return added.get(text or "")
    number = source.model["vocab"].get(text)
    return number if isinstance(number, int) else None


def _id(source: TokenizerSource, name: str) -> int | None:
    """Return the id that the tokenizer's settings name, or else the model's configuration."""
    text = token_text(source.settings.get(f"{name}_token"))
    if name == "unk" and text is None:
        text = source.model.get("unk_token")
    number = id_of(source, text)
    if number is not None:
        return number
    found = [one for config in (source.generation, source.config) for one in _list(config, name)]
    return found[0] if found else None


def _list(config: dict[str, Any], name: str) -> list[int]:
    value = config.get(f"{name}_token_id")
    values = value if isinstance(value, list) else [value]
    return [one for one in values if isinstance(one, int) and one >= 0]


def _stops(source: TokenizerSource, eos: int | None, vocab_size: int) -> tuple[int, ...]:
    named = [*_list(source.generation, "eos"), *_list(source.config, "eos")]
    ids = ([eos] if eos is not None else []) + named
    return tuple(dict.fromkeys(number for number in ids if number < vocab_size))


def _other_stops(source: TokenizerSource, ids: SpecialIds) -> dict[str, int]:
    """Return the stop ids besides eos that llama.cpp does not know by their text."""
    texts = {number: token.text for number, token in source.added.items()}
    rest = [number for number in ids.stops[1:] if texts.get(number) not in KNOWN_STOPS]
    if len(rest) > 2:
        names = ", ".join(repr(texts.get(number, number)) for number in rest)
        raise UnsupportedError(
            f"{source.directory} names {len(ids.stops)} tokens that end an answer; a GGUF file has room "
            f"for one and two more besides those that llama.cpp knows by their text, and these are left: "
            f"{names}; take some out of eos_token_id in generation_config.json"
        )
    return dict(zip(("eot", "eom"), rest, strict=False))


def _template(source: TokenizerSource) -> tuple[int | None, int | None]:
    """Return the ids that the post-processor puts before and after a text."""
    before: list[int] = []
    after: list[int] = []
    for part in parts_of(source.tokenizer, "post_processor"):
        side = before
        for piece in part.get("single") or []:
            if "Sequence" in piece:
                side = after
            else:
                side += _template_ids(source, part, piece["SpecialToken"]["id"])
    if len(before) > 1 or len(after) > 1:
        shown = "; ".join(describe(p) for p in parts_of(source.tokenizer, "post_processor"))
        raise UnsupportedError(
            f"{source.directory / 'tokenizer.json'} puts {len(before)} tokens before a text and {len(after)} "
            f"after it; llama.cpp puts at most one on each side; the post-processor is {shown}"
        )
    return _only(before), _only(after)


def _template_ids(source: TokenizerSource, part: dict[str, Any], name: str) -> Iterable[int]:
    entry = (part.get("special_tokens") or {}).get(name)
    number = id_of(source, name)
    return entry["ids"] if entry else [number] if number is not None else []


def _only(numbers: list[int]) -> int | None:
    return numbers[0] if numbers else None
