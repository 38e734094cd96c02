"""Places that fsspec reaches by a URL: ``urls`` (what may be printed, how they are opened), ``reading``."""

from __future__ import annotations
