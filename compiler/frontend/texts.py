"""Calibration and evaluation data for language models -> sequences of token ids, all of one length.

``.txt`` is one document. ``.jsonl`` has a document a line, ``{"text": ...}`` or ``{"messages": [...]}``,
which the model's chat template writes out. ``.npz`` holds token ids: 1-D arrays are documents, rows of
2-D arrays are too. Documents are joined in order and cut into sequences, as llama.cpp's tools do; so
a sequence may hold the end of one document and the beginning of the next. Nothing is padded, and what
remains at the end, less than a sequence, is counted. Rules:

* Before each text stands the token that begins a text, if the model wants one; texts in ``.jsonl`` are
  separated by the token that ends a text. Rendered chats and arrays are joined as they are.
* With a token that begins a text, it takes the place of the first token of each sequence cut from
  text, as in llama.cpp's perplexity and imatrix tools; how many tokens gave way is counted.
* If every document in an ``.npz`` has just the length of a sequence, they are the sequences.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from qcompile.compiler.frontend.words import Words
from qcompile.compiler.ir.errors import CalibrationError, QCompileError

Ids = NDArray[np.int64]


@dataclass(frozen=True)
class Texts:
    """Sequences of token ids.

    Args:
        ids: ``[sequences, length]``.
        source: Name of the file.
        documents: That the file held.
        tokens: Of all documents, with those that begin and separate them.
        left_over: At the end, which no sequence holds.
        replaced: Tokens whose place the beginning of a text took.
        sha256: Of the ids.
    """

    ids: Ids
    source: str
    documents: int
    tokens: int
    left_over: int
    replaced: int
    sha256: str

    def summary(self) -> str:
        """Say what is used and what is not, in one sentence."""
        count, length = self.ids.shape
        said = f"{self.source}: {self.tokens:,} tokens, {count:,} sequences of {length}"
        if self.left_over:
            said += f"; the last {self.left_over:,} tokens are left over"
        if self.replaced:
            said += f"; {self.replaced:,} tokens gave way to the beginning of a text"
        return said


def read_texts(
    file: Path, words: Words, seq_len: int, *, max_sequences: int | None = None
) -> Texts:
    """Read a file into sequences.

    Args:
        file: ``.txt``, ``.jsonl`` or ``.npz``.
        words: How the model reads text.
        seq_len: Tokens a sequence.
        max_sequences: Use the first ones only; what follows is left over.

    Raises:
        CalibrationError: Says what does not fit: the file, its ids, the length.
    """
    _check_length(words, seq_len)
    if not file.is_file():
        raise CalibrationError(f"{file} does not exist, or is no file")
    readers = {".txt": _plain, ".jsonl": _lines, ".npz": _arrays}
    if file.suffix not in readers:
        raise CalibrationError(
            f"{file.name}: texts are {', '.join(readers)}, not "
            f"{file.suffix or 'a file without a suffix'}"
        )
    documents = list(readers[file.suffix](file, words))
    beginning = None if file.suffix == ".npz" else words.beginning
    joined = np.concatenate([np.zeros(0, np.int64), *(np.asarray(d, np.int64) for d in documents)])
    _check_ids(joined, file.name, words)
    count = min(len(joined) // seq_len, max_sequences or len(joined))
    if not count:
        raise CalibrationError(
            f"{file.name} has {len(joined)} tokens, which is less than one sequence of {seq_len}; "
            "give more text or shorter sequences (--seq-len)"
        )
    ids = joined[: count * seq_len].reshape(count, seq_len)
    replaced = 0
    if beginning is not None:
        replaced = int((ids[:, 0] != beginning).sum())
        ids[:, 0] = beginning
    left_over = len(joined) - ids.size
    return Texts(ids, file.name, len(documents), len(joined), left_over, replaced, _digest(ids))


def _plain(file: Path, words: Words) -> Iterator[list[int]]:
    yield _begun(words.encode(_read(file)), words)


def _lines(file: Path, words: Words) -> Iterator[list[int]]:
    """Read a document a line; lines of nothing but space are none."""
    before: list[int] = []
    for number, line in enumerate(_read(file).split("\n"), 1):
        if not line.strip():
            continue
        try:
            is_text, ids = _document(line, words)
        except (ValueError, RecursionError, QCompileError) as error:
            raise CalibrationError(f"{file.name}, line {number}: {error}") from error
        yield before + ids
        before = [words.ending] if is_text and words.ending is not None else []


def _document(line: str, words: Words) -> tuple[bool, list[int]]:
    """Return whether a line is a plain text, and its ids."""
    data = json.loads(line)
    given = {"text", "messages"} & data.keys() if isinstance(data, dict) else set()
    if len(given) != 1:
        raise ValueError('give an object with "text" or with "messages", one of the two')
    if "messages" in given:
        return False, words.encode_chat(data["messages"])
    if not isinstance(data["text"], str):
        raise ValueError(f'"text" is {type(data["text"]).__name__}, not a string')
    return True, _begun(words.encode(data["text"]), words)


def _arrays(file: Path, words: Words) -> Iterator[Ids]:
    """Read token ids; a row is a document."""
    try:
        with file.open("rb") as stream, np.load(stream, allow_pickle=False) as data:
            arrays = {name: data[name] for name in data.files}
    except (ValueError, OSError, EOFError, KeyError, TypeError, AttributeError,
            zipfile.BadZipFile, zlib.error) as error:  # fmt: skip
        raise CalibrationError(f"{file.name} cannot be read: {_reason(error)}") from error
    wrong = [
        f"{name} is {value.dtype}{list(value.shape)}"
        for name, value in arrays.items()
        if value.dtype.kind not in "iu" or value.ndim not in (1, 2)
    ]
    if wrong:
        raise CalibrationError(
            f"{file.name} must hold token ids, integers in 1-D or 2-D arrays: {'; '.join(wrong)}"
        )
    for value in arrays.values():
        yield from np.atleast_2d(value)


def _begun(ids: list[int], words: Words) -> list[int]:
    return ids if words.beginning is None else [words.beginning, *ids]


def _read(file: Path) -> str:
    try:
        return file.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise CalibrationError(
            f"{file.name} is no UTF-8 text: byte {error.start:,} is {file.read_bytes()[error.start]:#x}"
        ) from error


def _check_length(words: Words, length: int) -> None:
    if length < 2 or (words.context is not None and length > words.context):
        limit = "" if words.context is None else f" to {words.context}, the model's context"
        raise CalibrationError(f"sequences of {length} tokens: the length must be 2{limit}")


def _check_ids(ids: Ids, source: str, words: Words) -> None:
    wrong = np.flatnonzero((ids < 0) | (ids >= words.vocabulary))
    if len(wrong):
        raise CalibrationError(
            f"{source}: {len(wrong):,} token ids are not in the vocabulary of {words.vocabulary:,}, "
            f"first {ids[wrong[0]]} at place {wrong[0]:,}"
        )


def _reason(error: Exception) -> str:
    text = (str(error).splitlines() or [type(error).__name__])[0]
    if (
        "pickle" in text
        or "Python objects" in text
        or isinstance(error, AttributeError | TypeError)
    ):
        return (
            "it is no .npz, or holds pickled Python objects, and loading those runs code; save one "
            "array a document, as np.savez(file, *documents) does"
        )
    return text


def _digest(ids: Ids) -> str:
    head = f"{list(ids.shape)} int64 little-endian\n".encode()
    return hashlib.sha256(head + ids.astype("<i8").tobytes()).hexdigest()
