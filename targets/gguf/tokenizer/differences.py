"""Does the tokenizer of a GGUF file give what the source's tokenizer gives.

Equal means: the same ids for the same text, with special tokens in the text and without; the same ids put
before and after a text; the same text for every id; the same ids that begin, end and stop; the same chat
templates, and the same ids of the chats that they write. What llama.cpp cannot do is told from errors and
reported beside them (``limits``).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

from qcompile.compiler.ir.errors import ModelError
from qcompile.targets.gguf.tokenizer.cases import AS_TEXT, CHAT, PLAIN, WHOLE, Comparison
from qcompile.targets.gguf.tokenizer.corpus import MOST_TOKENS, corpus
from qcompile.targets.gguf.tokenizer.engine import Vocabulary
from qcompile.targets.gguf.tokenizer.limits import engine_limits
from qcompile.targets.gguf.tokenizer.reference import Chat, Reference, Transformers, source_json
from qcompile.targets.gguf.tokenizer.report import Difference, TokenizerReport
from qcompile.targets.gguf.tokenizer.source import TokenizerSource, read_source
from qcompile.targets.gguf.tokenizer.special import special_ids
from qcompile.targets.gguf.tokenizer.structure import recognize
from qcompile.targets.gguf.tokenizer.vocabulary import unwritable_bytes

CHATS: tuple[Chat, ...] = (
    [{"role": "user", "content": "Hello"}],
    [
        {"role": "user", "content": "  two  spaces\n\n"},
        {"role": "assistant", "content": "Né, 👍🏽 123"},
    ],
    [
        {"role": "system", "content": "You are a helpful assistant."},
        {"role": "user", "content": "What's 12345 + 678?"},
        {"role": "assistant", "content": "\tfor i in x:\n\t\tpass"},
        {"role": "user", "content": "再见"},
    ],
)
_WRITTEN = (
    "llama.cpp writes added tokens as they stand, and nothing for one that it takes for an end"
)
FEW = 10  # every tenth text
SEQUENCES = 200  # of random ids, turned into text


def tokenizer_differences(
    directory: Path, gguf_file: Path, seed: int = 0, texts: int = 2000
) -> TokenizerReport:
    """Compare the tokenizer of a GGUF file with that of the Hugging Face directory that it was made from.

    Args:
        directory: The source.
        gguf_file: With weights or without; they are not read.
        seed: Of the texts; the same seed gives the same texts.
        texts: How many random ones, besides the fixed ones.

    Raises:
        MissingPackageError: llama-cpp-python, transformers, tokenizers or jinja2 is not installed.
        ModelError: The source or the file cannot be loaded.
        UnsupportedError: The source's tokenizer is not one that llama.cpp can follow.
    """
    source = read_source(Path(directory))
    structure = recognize(source)
    loaded = Transformers(source)
    with Vocabulary(Path(gguf_file)) as engine:
        comparison = Comparison(
            tokenizer=source_json(source, len(engine)),
            limits=engine_limits(source, structure),
            engine=engine,
            around=loaded.added_around(),
            unwritable=unwritable_bytes(source) if structure.model == "gpt2" else frozenset(),
        )
        tokens = [token.text for token in source.added.values()]
        sample = corpus(seed, texts, tokens)
        _compare_special(comparison, source, loaded)
        comparison.texts(PLAIN, sample)
        # The other ways differ from the first at the ends of a text, and where a token stands in it.
        few = sample[::FEW]
        comparison.texts(WHOLE, few)
        marked = [text for text in sample if any(token in text for token in tokens[:MOST_TOKENS])]
        comparison.texts(AS_TEXT, list(dict.fromkeys([*few, *marked])))
        _compare_pieces(comparison)
        _compare_decoding(comparison, sample, seed, strips=structure.space_prefix)
        _compare_templates(comparison, source, loaded)
        _compare_transformers(comparison, loaded, sample)
        return comparison.report()


def _compare_special(comparison: Comparison, source: TokenizerSource, loaded: Transformers) -> None:
    engine = comparison.engine
    for name in ("bos", "eos"):
        wanted = loaded.special(name)
        if wanted is not None:
            comparison.equal("the id of", name, wanted, engine.special(name))
    stops = special_ids(source, len(engine)).stops
    named = {number: token.text for number, token in source.added.items()}
    for number in stops:
        text = named.get(number, str(number))
        comparison.equal("does it end an answer:", text, "yes", _yes(engine.stops(number)))


def _compare_pieces(comparison: Comparison) -> None:
    """Compare the text of every id, with and without special tokens."""
    for special, kind in ((True, "the text of the token"), (False, "the text, as an answer, of")):
        wanted = _pieces(comparison, comparison.reference, special=special)
        given = [
            comparison.engine.piece(number, special=special).decode(errors="replace")
            for number in range(len(wanted))
        ]
        comparison.cases += len(wanted)
        wrong = [number for number, text in enumerate(wanted) if text != given[number]]
        if wrong:
            limited = _pieces(comparison, comparison.with_all_limits(), special=special)
            found = [(n, Difference(kind, str(n), wanted[n], given[n])) for n in wrong]
            comparison.add([one for n, one in found if limited[n] != given[n]])
            for _, one in (pair for pair in found if limited[pair[0]] == given[pair[0]]):
                comparison.excuse(_WRITTEN, one)


def _pieces(comparison: Comparison, reference: Reference, *, special: bool) -> list[str]:
    """Return the source's text of every id, after a letter, since some decoders drop a space in front."""
    anchor = comparison.engine.encode("a", add_special=False, parse_special=False)
    sequences = [[*anchor, number] for number in range(len(comparison.engine))]
    start = len(reference.decode_all([anchor], special=special)[0])
    return [text[start:] for text in reference.decode_all(sequences, special=special)]


def _compare_decoding(
    comparison: Comparison, sample: Sequence[str], seed: int, *, strips: bool
) -> None:
    """Compare the text of sequences; where bytes are no UTF-8 the two write different signs for them."""
    source = random.Random(seed)
    size = len(comparison.engine)
    chosen = sample[:: max(len(sample) // SEQUENCES, 1)]
    sequences = comparison.reference.encode_all(chosen, parse_special=True)
    sequences += [[source.randrange(size) for _ in range(8)] for _ in range(SEQUENCES)]
    texts = comparison.reference.decode_all(sequences, special=True)
    limited = comparison.with_all_limits().decode_all(sequences, special=True)
    for ids, wanted, excused in zip(sequences, texts, limited, strict=True):
        given = comparison.engine.decode(ids).decode(errors="replace")
        accepted = {given, given.removeprefix(" ") if strips else given}  # the space put in front
        if "\ufffd" in wanted:
            continue
        text = " ".join(map(str, ids))
        if wanted not in accepted and excused in accepted:
            comparison.excuse(_WRITTEN, Difference("the text of the ids", text, wanted, given))
        else:
            shown = wanted if wanted in accepted else given
            comparison.equal("the text of the ids", text, wanted, shown)


def _compare_templates(
    comparison: Comparison, source: TokenizerSource, loaded: Transformers
) -> None:
    for name, template in sorted(source.templates.items()):
        stored = comparison.engine.template(None if name == "default" else _field(name))
        comparison.equal("the chat template", name, template, stored)
        chats = [
            (chat, prompt, text)
            for chat in CHATS
            for prompt in (False, True)
            if (text := loaded.render(chat, template, prompt=prompt)) is not None
        ]
        comparison.texts(CHAT, [text for _, _, text in chats])
        if name == "default":
            _compare_builtin(comparison, chats)


def _compare_builtin(comparison: Comparison, chats: Sequence[tuple[Chat, bool, str]]) -> None:
    """Note where llama.cpp's own renderer, which runs no template, writes a chat otherwise."""
    for chat, prompt, text in chats:
        own = comparison.engine.builtin_chat(chat, prompt=prompt)
        comparison.cases += own is not None
        if own is not None and own != text:
            comparison.excuse(
                "llama.cpp writes this chat otherwise where it is not told to run the template (--jinja)",
                Difference("the chat", str(chat), text, own),
            )


def _compare_transformers(
    comparison: Comparison, loaded: Transformers, sample: Sequence[str]
) -> None:
    """Note where transformers reads the directory otherwise than ``tokenizer.json`` says."""
    wanted = comparison.reference.encode_all(sample, parse_special=True)
    try:
        given = loaded.encode_all(sample)
    except Exception as error:  # whatever a tokenizer of another class does
        raise ModelError(f"transformers' {loaded.class_name} fails on a text: {error}") from error
    for text, one, other in zip(sample, wanted, given, strict=True):
        if one != other:
            comparison.excuse(
                f"transformers' {loaded.class_name} gives other ids than tokenizer.json, which was followed",
                Difference("ids of", text, tuple(one), tuple(other)),
            )


def _field(name: str) -> str:
    return "".join(c if c.isascii() and c.isalnum() else "_" for c in name)


def _yes(value: bool) -> str:
    return "yes" if value else "no"
