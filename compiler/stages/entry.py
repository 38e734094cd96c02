"""What a stage found, as bytes: a line with their SHA-256, then safetensors with facts as metadata.

No format that can hold code (pickle) is used: entries may come from a folder that others write to.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

_FACTS = "facts"
_HEADER = 65
"""Bytes of the first line: 64 digits and its end."""


@dataclass(frozen=True)
class Entry:
    """What a stage found.

    Args:
        tensors: By name; what is read is what was written, bit for bit.
        facts: What JSON holds.
    """

    tensors: Mapping[str, Tensor]
    facts: Any

    def pack(self) -> bytes:
        """Return the bytes; the same for the same content."""
        whole = {name: self.tensors[name].contiguous().clone() for name in sorted(self.tensors)}
        data = save(whole, {_FACTS: json.dumps(self.facts)})
        return hashlib.sha256(data).hexdigest().encode() + b"\n" + data

    @classmethod
    def unpack(cls, data: bytes) -> Entry | None:
        """Return the entry; ``None`` if the bytes are not those that were written."""
        body = data[_HEADER:]
        if data[:_HEADER] != hashlib.sha256(body).hexdigest().encode() + b"\n":
            return None
        try:
            return cls(load(body), json.loads(_metadata(body)[_FACTS]))
        except (SafetensorError, KeyError, ValueError):
            return None


def _metadata(body: bytes) -> Mapping[str, str]:
    """Return the metadata of safetensors: their header is its length, 8 bytes, and JSON."""
    length = int.from_bytes(body[:8], "little")
    found: dict[str, str] = json.loads(body[8 : 8 + length])["__metadata__"]
    return found
