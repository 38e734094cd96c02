"""Reports about finished bundles: data (``bundles``, ``layers``, ``differences``), then pages of it.

``reports.py`` says what a report is; ``page.py``, ``markdown.py``, ``junit.py`` and ``sarif.py`` write one.
"""

from __future__ import annotations
