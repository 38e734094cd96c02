"""What stages of builds found, to be found again by the digest of all that it was made from."""

from __future__ import annotations
