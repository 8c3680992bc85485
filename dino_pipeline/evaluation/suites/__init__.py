"""What an encoder is evaluated on: a file a kind of data, each of which measures embeddings in its own way."""

from __future__ import annotations

NAMES = ("sts", "probe", "retrieval", "pairs", "pocket")
OF_DATA = ("probe", "retrieval", "pairs")
"""Those that take a user's own data."""
