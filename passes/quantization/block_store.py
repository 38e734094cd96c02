"""Blocks that are done, on disk: memory holds one weight at a time, and a killed build goes on from here."""

from __future__ import annotations

import json
import os
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

from torch import Tensor

from qcompile.compiler.ir.stored import StoredBytes
from qcompile.compiler.stages.shelf import NO_SHELF
from qcompile.passes.quantization.block_rounding import Blocks
from qcompile.passes.quantization.records import LayerRecord

_BLOCKS = "blocks"


class BlockStore:
    """A folder with two files a weight: its bytes, and then what was done.

    A weight is flushed to disk beside the work on the next ones; until then it counts as done in this
    process alone.

    Args:
        folder: Is made.

    Attributes:
        shelf: Where weights are found that other builds have done, and are left for others.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.shelf = NO_SHELF
        folder.mkdir(parents=True, exist_ok=True)
        self._flushing = ThreadPoolExecutor(1)
        self._waiting: dict[str, tuple[StoredBytes, LayerRecord, Future[None]]] = {}

    def put(self, name: str, blocks: Blocks, record: LayerRecord) -> StoredBytes:
        """Keep a weight's blocks."""
        self.shelf.put(name, {_BLOCKS: blocks.data}, asdict(record))
        return self._write(name, blocks.data, record)

    def _write(self, name: str, data: Tensor, record: LayerRecord) -> StoredBytes:
        file, rows = self.folder / f"{name}.blocks", len(data)
        part = file.with_name(f"{file.name}.part")
        with part.open("wb") as stream:
            stream.write(data.contiguous().numpy().data)
        part.rename(file)
        done = json.dumps({"rows": rows, "record": asdict(record)}).encode()
        stored = StoredBytes(file, rows)
        self._waiting[name] = stored, record, self._flushing.submit(self._flush, name, done)
        return stored

    def get(self, name: str) -> tuple[StoredBytes, LayerRecord] | None:
        """Return what is kept of a weight; ``None`` if it is not done."""
        if name in self._waiting:
            stored, record, flushed = self._waiting[name]
            if flushed.done():
                flushed.result()
                del self._waiting[name]
            return stored, record
        file = self.folder / f"{name}.json"
        if not file.exists():
            return self._shared(name)
        done = json.loads(file.read_text())
        data = StoredBytes(self.folder / f"{name}.blocks", done["rows"])
        return data, LayerRecord(**done["record"])

    def _shared(self, name: str) -> tuple[StoredBytes, LayerRecord] | None:
        if (found := self.shelf.get(name)) is None:
            return None
        record = LayerRecord(**found.facts)
        return self._write(name, found.tensors[_BLOCKS], record), record

    def flush(self) -> None:
        """Wait until all is on disk."""
        for _, _, flushed in self._waiting.values():
            flushed.result()
        self._waiting.clear()

    def _flush(self, name: str, done: bytes) -> None:
        """Flush a weight's bytes, and then say that they are done: in a file that is whole or not there."""
        with (self.folder / f"{name}.blocks").open("rb") as stream:
            os.fsync(stream.fileno())
        file = self.folder / f"{name}.json"
        part = file.with_name(f"{file.name}.part")
        with part.open("wb") as stream:
            stream.write(done)
            stream.flush()
            os.fsync(stream.fileno())
        part.rename(file)
