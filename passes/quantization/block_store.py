"""Blocks that are done, on disk: memory holds one weight at a time, and a killed build goes on from here."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path

from qcompile.compiler.ir.weights import StoredBytes
from qcompile.passes.quantization.block_rounding import Blocks
from qcompile.passes.quantization.records import LayerRecord


class BlockStore:
    """A folder with two files a weight: its bytes, and then what was done.

    Args:
        folder: Is made.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def put(self, name: str, blocks: Blocks, record: LayerRecord) -> StoredBytes:
        """Keep a weight's blocks."""
        data = self.folder / f"{name}.blocks"
        self._write(data, blocks.data.numpy().tobytes())
        done = {"rows": len(blocks.data), "record": asdict(record)}
        self._write(self.folder / f"{name}.json", json.dumps(done).encode())
        return StoredBytes(data, len(blocks.data))

    def get(self, name: str) -> tuple[StoredBytes, LayerRecord] | None:
        """Return what is kept of a weight; ``None`` if it is not done."""
        file = self.folder / f"{name}.json"
        if not file.exists():
            return None
        done = json.loads(file.read_text())
        data = StoredBytes(self.folder / f"{name}.blocks", done["rows"])
        return data, LayerRecord(**done["record"])

    def _write(self, file: Path, data: bytes) -> None:
        """Write a file that is there whole or not at all."""
        part = file.with_name(f"{file.name}.part")
        with part.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        part.rename(file)
