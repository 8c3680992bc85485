"""The kinds of data that an encoder is evaluated on, a module for each."""

from __future__ import annotations

OF_DATA = ("probe", "retrieval", "pairs")
"""Suites that take a user's own data."""
